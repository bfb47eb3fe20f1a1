//! What a control plane may say that no object of ours expresses, and a proxy does.

use crate::WEB;
use gossamer_api::endpoint::{Endpoint, ServerTls};
use gossamer_api::policy::{
    Backend, BackendTarget, Distribution, HttpRoute, HttpRoutes, HttpRule, Meta, OutboundPolicy, OutboundProtocol,
    PathMatch, Queue, RequestMatch, RouteBackend,
};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::{self, ClientAuth};
use gossamer_api::workload::Identity;
use gossamer_tests::app::{self, App, handler};
use gossamer_tests::client::{H1, H2, get_request, post_request};
use gossamer_tests::loopback;
use gossamer_tests::mesh::{Mesh, Proxy, identity_of};
use gossamer_tests::policy::Policy;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Paths below `path` go to this endpoint.
fn rule(path: &str, endpoint: Endpoint) -> HttpRule {
    let queue = Queue { capacity: 100, failfast: Duration::from_secs(3) };
    let target = BackendTarget::Forward(Box::new(endpoint));
    let backend = Backend { meta: Meta::service("test", "web", 8080), queue, target };
    HttpRule {
        matches: vec![RequestMatch { path: Some(PathMatch::Prefix(path.into())), ..RequestMatch::default() }],
        backends: Distribution::First(vec![RouteBackend { backend, filters: Vec::new() }]),
        ..HttpRule::default()
    }
}

/// A workload whose control plane has these rules for everything.
async fn shop(mesh: &Mesh, rules: Vec<HttpRule>, stop: &Stop) -> Proxy {
    let route = HttpRoute { meta: Meta::named("said"), hosts: Vec::new(), rules, grpc: false };
    let http = HttpRoutes { routes: vec![route], breaker: None };
    let protocol = OutboundProtocol::Detect {
        timeout: Duration::from_secs(1),
        http1: http.clone(),
        http2: http,
        opaque: Vec::new(),
    };
    let outbound = Some(OutboundPolicy { meta: Meta::service("test", "web", 8080), protocol });
    let addr = Policy { server: None, outbound }.serve(stop).await.to_string();
    mesh.workload("shop").calls(WEB).set("policy-addr", &addr).set("policy-name", "").start().await
}

#[tokio::test]
async fn a_client_may_ask_for_retries_and_timeouts_where_the_route_allows_it() {
    let (mesh, stop) = (Mesh::start().await, Stop::new());
    let app = app::http("web");
    let plain = app::App::start((loopback::address(), 8080).into(), app.handler()).await;
    let allow = |path| HttpRule { allow_l5d_request_headers: true, ..rule(path, Endpoint::new(plain.addr)) };
    let shop =
        shop(&mesh, vec![allow("/fail"), allow("/hang"), rule("/status", Endpoint::new(plain.addr))], &stop).await;
    let mut client = H1::connect(shop.to(WEB)).await;
    let post = |path: &str, name: &'static str, value: &'static str| {
        let mut request = post_request("web", path, "x");
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
        request
    };
    let answer = client.send(post("/fail/1", "l5d-retry-http", "5xx")).await.unwrap();
    assert_eq!((answer.status, app.count()), (200, 2), "{answer:?}");
    assert!(app.seen().iter().all(|seen| !seen.headers.contains_key("l5d-retry-http")), "it is for the proxy");
    let start = Instant::now();
    let answer = client.send(post("/hang", "l5d-request-timeout", "200ms")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (504, "timeout"), "{answer:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    // Elsewhere it is a header like any other.
    let mut client = H1::connect(shop.to(WEB)).await;
    let answer = client.send(post("/status/503", "l5d-retry-http", "5xx")).await.unwrap();
    let seen = app.seen();
    assert_eq!((answer.status, seen.len()), (503, 4), "{answer:?}");
    assert_eq!(seen[3].headers["l5d-retry-http"], "5xx");
}

#[tokio::test]
async fn an_endpoint_may_have_another_authority_than_the_request() {
    let (mesh, stop) = (Mesh::start().await, Stop::new());
    let app = app::http("web");
    let plain = app::App::start((loopback::address(), 8080).into(), app.handler()).await;
    let mut behind = Endpoint::new(plain.addr);
    behind.authority_override = Some("web.other.example:81".into());
    let shop = shop(&mesh, vec![rule("/head", behind), rule("/bytes", Endpoint::new(plain.addr))], &stop).await;
    let mut client = H1::connect(shop.to(WEB)).await;
    let answer = client.get("web", "/head").await;
    assert!(answer.text().contains("host: web.other.example:81\n"), "{}", answer.text());
    assert_eq!(H2::connect(shop.to(WEB)).await.get("web", "/head").await.status, 200);
    assert_eq!(client.get("web", "/bytes/1").await.status, 200);
    let hosts: Vec<_> = app.seen().iter().map(|seen| seen.headers.get("host").cloned()).collect();
    assert_eq!(hosts[2].as_ref().unwrap(), "web", "only for that endpoint");
    assert!(app.seen()[1].uri.starts_with("http://web.other.example:81/"), "{:?}", app.seen()[1]);
}

/// Says who it is by TLS, and yes to one request.
async fn shows(mesh: &Mesh, name: &str) -> (App, SocketAddr) {
    let credentials = mesh.credentials(name);
    let serve = handler(move |io| {
        let credentials = credentials.clone();
        async move {
            // Any client, and no protocol of the mesh: HTTP/1 follows.
            let config = credentials.server_config(&[], ClientAuth::Required);
            let Ok(mut io) = tls::accept(config, io).await else { return };
            let mut got = Vec::new();
            while !got.ends_with(b"\r\n\r\n") && matches!(io.read_buf(&mut got).await, Ok(count) if count > 0) {}
            let _ = io.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await;
            let _ = io.shutdown().await;
        }
    });
    let app = App::start((loopback::address(), 4143).into(), serve).await;
    let addr = app.addr;
    (app, addr)
}

/// What counts is who the server proves to be, not by which name it was asked for.
#[tokio::test]
async fn a_server_is_who_its_certificate_says() {
    let (mesh, stop) = (Mesh::start().await, Stop::new());
    let (_vault, addr) = shows(&mesh, "vault").await;
    let (vault, other) = (identity_of("vault"), identity_of("other"));
    let spiffe = |identity: &Identity| Identity::spiffe(&identity.spiffe_id().unwrap()).unwrap();
    let cases = [
        ("/same", vault.clone(), vault.clone(), 200),
        ("/asked-as-other", vault.clone(), other.clone(), 200),
        ("/not-the-one", other.clone(), vault.clone(), 502),
        ("/by-spiffe-id", spiffe(&vault), other.clone(), 200),
        ("/not-that-spiffe-id", spiffe(&other), vault.clone(), 502),
    ];
    let rules = cases.iter().map(|(path, identity, server_name, _)| {
        let mut endpoint = Endpoint::new(addr);
        endpoint.tls = Some(ServerTls { identity: identity.clone(), server_name: server_name.clone() });
        rule(path, endpoint)
    });
    let shop = shop(&mesh, rules.collect(), &stop).await;
    for (path, identity, _, status) in &cases {
        let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", path, "")).await.unwrap();
        assert_eq!(answer.status, *status, "{path}: {answer:?}");
        if *status == 502 {
            assert_eq!(answer.reason(), "wrong-identity", "{path}: {answer:?}");
            assert!(answer.header("l5d-proxy-error").contains(identity.as_str()), "{path}: {answer:?}");
        }
    }
    // A client may insist on somebody.
    for (path, required, status) in
        [("/asked-as-other", &vault, 200), ("/asked-as-other", &other, 502), ("/by-spiffe-id", &spiffe(&vault), 200)]
    {
        let mut request = get_request("web", path);
        request.headers_mut().insert("l5d-require-id", required.as_str().try_into().unwrap());
        let answer = H1::connect(shop.to(WEB)).await.send(request).await.unwrap();
        let reason = if status == 200 { "" } else { "required-identity" };
        assert_eq!((answer.status, answer.reason()), (status, reason), "{path} {required}: {answer:?}");
    }
}
