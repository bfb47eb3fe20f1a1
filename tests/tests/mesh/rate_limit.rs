//! Local rate limits of a server, as Linkerd's API has them; no object of ours sets them yet.

use crate::WEB;
use gossamer_api::authorization::{
    Authentication, Authorization, InboundHttp, InboundProtocol, Network, RateLimit, Server,
};
use gossamer_api::endpoint::Labels;
use gossamer_api::policy::Meta;
use gossamer_api::process::stop::Stop;
use gossamer_tests::app;
use gossamer_tests::client::H1;
use gossamer_tests::mesh::{Mesh, Proxy, identity_of};
use gossamer_tests::policy::Policy;
use std::time::{Duration, Instant};

fn limited(limit: RateLimit) -> Policy {
    let meta = Meta::named("limited");
    let everybody = Authorization {
        meta: meta.clone(),
        networks: vec![Network { net: "0.0.0.0/0".parse().unwrap(), except: Vec::new() }],
        authentication: Authentication::Unauthenticated,
        labels: Labels::new(),
    };
    let http = InboundHttp { routes: Vec::new(), rate_limit: Some(limit) };
    let server = Server {
        meta,
        protocol: InboundProtocol::Detect { timeout: Duration::from_secs(1), http },
        ips: Vec::new(),
        authorizations: vec![everybody],
        labels: Labels::new(),
    };
    Policy { server: Some(server), outbound: None }
}

async fn web(mesh: &Mesh, policy: Policy, stop: &Stop) -> (Proxy, app::Http) {
    let app = app::http("web");
    let addr = policy.serve(stop).await.to_string();
    let spec = mesh.workload("web").serve(8080, app.handler()).set("policy-addr", &addr).set("policy-name", "");
    (spec.start().await, app)
}

/// How many of some requests were served, and that all others got 429.
async fn served(from: &Proxy, count: usize) -> usize {
    let mut client = H1::connect(from.to(WEB)).await;
    let mut served = 0;
    for _ in 0..count {
        let answer = client.get("web", "/").await;
        match answer.status {
            200 => served += 1,
            _ => assert_eq!((answer.status, answer.reason()), (429, "rate-limited"), "{answer:?}"),
        }
    }
    served
}

#[tokio::test]
async fn a_server_takes_so_many_requests_a_second() {
    let (mesh, stop) = (Mesh::start().await, Stop::new());
    let limit = RateLimit { meta: Some(Meta::named("ten")), total: Some(10), identity: None, overrides: Vec::new() };
    let (web, app) = web(&mesh, limited(limit), &stop).await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let start = Instant::now();
    let served = served(&shop, 100).await;
    let allowed = 10 + 10 * (start.elapsed().as_millis() as usize + 999) / 1000;
    assert!(served >= 10 && served <= allowed, "{served} of 100, {allowed} allowed");
    assert_eq!(app.count(), served);
    let refused = web.metrics().await.sum("inbound_http_local_ratelimit_total", &[]);
    assert_eq!(refused as usize, 100 - served);
}

#[tokio::test]
async fn each_client_has_its_own_share() {
    let (mesh, stop) = (Mesh::start().await, Stop::new());
    let overrides = vec![(vec![identity_of("vip").to_string()], 1000)];
    let limit = RateLimit { meta: Some(Meta::named("each")), total: None, identity: Some(5), overrides };
    let (_web, _) = web(&mesh, limited(limit), &stop).await;
    let caller = async |name| mesh.workload(name).calls(WEB).start().await;
    let (shop, guest, vip) = (caller("shop").await, caller("guest").await, caller("vip").await);
    let greedy = served(&shop, 60).await;
    assert!((5..50).contains(&greedy), "{greedy}");
    assert!(served(&guest, 5).await == 5, "the greedy one's excess is its own");
    assert_eq!(served(&vip, 60).await, 60);
}
