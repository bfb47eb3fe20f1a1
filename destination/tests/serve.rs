//! What proxies are told over gRPC, asked with Linkerd's own client.

#![allow(clippy::unwrap_used)]

use gossamer_api::kubernetes::{Key, Kind, Map, Name};
use gossamer_api::process::grpc;
use gossamer_api::process::stop::Stop;
use gossamer_destination::index::Cluster;
use gossamer_destination::pool::Pool;
use gossamer_destination::registry::{Change, Origin, Registry};
use gossamer_destination::serve::{Admit, State, services};
use gossamer_destination::standalone::{PortSpec, Registration, Standalone, WorkloadSpec};
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::destination::{GetDestination, Update, protocol_hint, update};
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::inbound::{PortSpec as InboundPort, proxy_protocol::Kind as InboundKind};
use linkerd2_proxy_api::net::TcpAddress;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use linkerd2_proxy_api::outbound::{TrafficSpec, proxy_protocol, traffic_spec};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

struct Mesh {
    registry: Registry,
    standalone: Standalone,
    channel: Channel,
    stop: Stop,
}

async fn mesh(admit: Option<Admit>) -> Mesh {
    let pool = Pool::new("10.96.0.0/16".parse().unwrap());
    let registry = Registry::new(Cluster::default(), Some(pool));
    let stop = Stop::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let routes = services(State { registry: registry.clone(), admit, stop: stop.clone() });
    tokio::spawn(grpc::serve(routes, listener, None, stop.clone()));
    let channel = Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
    Mesh { standalone: Standalone::new(registry.clone()), registry, channel, stop }
}

impl Mesh {
    fn register(&self, replica: &str, ip: &str) -> Registration {
        let spec = WorkloadSpec {
            namespace: "demo".into(),
            name: "web".into(),
            replica: replica.into(),
            ip: ip.parse().unwrap(),
            other_ips: Vec::new(),
            ports: vec![PortSpec { port: 8080, ..PortSpec::default() }],
            labels: Map::new(),
            annotations: Map::new(),
            meshed: true,
        };
        self.standalone.register(spec).unwrap()
    }

    fn apply(&self, yaml: &str) {
        let objects = gossamer_api::kubernetes::parse_yaml(yaml).unwrap();
        self.registry.change(&Origin::File("test".into()), objects.into_iter().map(|(_, o)| Change::Apply(o)));
    }

    async fn endpoints(&self, path: &str) -> Result<Streaming<Update>, Status> {
        let request = GetDestination { path: path.into(), context_token: CLIENT.into(), ..GetDestination::default() };
        Ok(DestinationClient::new(self.channel.clone()).get(request).await?.into_inner())
    }

    fn traffic(&self, addr: SocketAddr) -> TrafficSpec {
        let target =
            traffic_spec::Target::Addr(TcpAddress { ip: Some(addr.ip().into()), port: u32::from(addr.port()) });
        TrafficSpec { source_workload: CLIENT.into(), target: Some(target) }
    }
}

const CLIENT: &str = r#"{"ns":"demo","pod":"client-0"}"#;

async fn next<T>(stream: &mut Streaming<T>) -> T {
    let message = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.expect("a message in time");
    message.unwrap().expect("the stream goes on")
}

fn describe(update: Update) -> String {
    let addr = |a: &TcpAddress| SocketAddr::try_from(*a).unwrap().to_string();
    match update.update.unwrap() {
        update::Update::Add(set) => {
            let addrs: Vec<_> = set.addrs.iter().map(|a| addr(a.addr.as_ref().unwrap())).collect();
            format!("add {}", addrs.join(" "))
        }
        update::Update::Remove(set) => format!("remove {}", set.addrs.iter().map(addr).collect::<Vec<_>>().join(" ")),
        update::Update::NoEndpoints(none) => format!("none, exists {}", none.exists),
    }
}

#[tokio::test]
async fn endpoints_arrive_as_differences() {
    let mesh = mesh(None).await;
    let first = mesh.register("web-0", "10.1.0.1");
    let mut stream = mesh.endpoints("web.demo.svc.cluster.local:8080").await.unwrap();
    assert_eq!(describe(next(&mut stream).await), "add 10.1.0.1:8080");
    let second = mesh.register("web-1", "10.1.0.2");
    assert_eq!(describe(next(&mut stream).await), "add 10.1.0.2:8080");
    drop(first);
    assert_eq!(describe(next(&mut stream).await), "remove 10.1.0.1:8080");
    drop(second);
    assert_eq!(describe(next(&mut stream).await), "none, exists true");
    drop(stream);
}

#[tokio::test]
async fn an_endpoint_has_what_a_proxy_needs_for_mutual_tls() {
    let mesh = mesh(None).await;
    let _web = mesh.register("web-0", "10.1.0.1");
    let mut stream = mesh.endpoints("web.demo.svc.cluster.local:8080").await.unwrap();
    let Some(update::Update::Add(set)) = next(&mut stream).await.update else { panic!("no endpoints") };
    let endpoint = &set.addrs[0];
    let name = endpoint.tls_identity.as_ref().unwrap().server_name.as_ref().unwrap().name.as_str();
    assert_eq!(name, "web.demo.serviceaccount.identity.gossamer.cluster.local");
    let hint = endpoint.protocol_hint.as_ref().unwrap();
    assert!(matches!(hint.protocol, Some(protocol_hint::Protocol::H2(_))));
    assert_eq!(hint.opaque_transport.as_ref().unwrap().inbound_port, 4143);
    assert_eq!(endpoint.weight, 10_000);
    assert_eq!(set.metric_labels["service"], "web");
}

#[tokio::test]
async fn a_service_that_comes_later_is_seen() {
    let mesh = mesh(None).await;
    let mut stream = mesh.endpoints("web.demo.svc.cluster.local:8080").await.unwrap();
    assert_eq!(describe(next(&mut stream).await), "none, exists false");
    let _web = mesh.register("web-0", "10.1.0.1");
    assert_eq!(describe(next(&mut stream).await), "add 10.1.0.1:8080");
}

#[tokio::test]
async fn an_address_is_no_destination() {
    let mesh = mesh(None).await;
    for path in ["10.1.0.1:80", "example.com:80", ""] {
        let error = match mesh.endpoints(path).await {
            Ok(mut stream) => stream.message().await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!(error.code(), Code::InvalidArgument, "{path}");
    }
}

#[tokio::test]
async fn a_policy_is_streamed_and_follows_its_routes() {
    let mesh = mesh(None).await;
    let web = mesh.register("web-0", "10.1.0.1");
    let traffic = mesh.traffic(SocketAddr::new(web.service_address, 8080));
    let mut client = OutboundPoliciesClient::new(mesh.channel.clone());
    let mut stream = client.watch(traffic.clone()).await.unwrap().into_inner();
    let route = |policy: linkerd2_proxy_api::outbound::OutboundPolicy| {
        let Some(proxy_protocol::Kind::Detect(detect)) = policy.protocol.unwrap().kind else { panic!("not detected") };
        format!("{:?}", detect.http1.unwrap().routes[0].metadata)
    };
    assert!(route(next(&mut stream).await).contains("http"));
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: slow, namespace: demo}\nspec:\n  \
         parentRefs: [{group: core, kind: Service, name: web}]\n  rules: [{timeouts: {request: 1s}}]\n",
    );
    assert!(route(next(&mut stream).await).contains("slow"));
    // And alone.
    assert!(route(client.get(traffic).await.unwrap().into_inner()).contains("slow"));
    let key = Key { kind: Kind::HttpRoute, name: Name::new("demo", "slow") };
    mesh.registry.change(&Origin::File("test".into()), [Change::Delete(key)]);
    assert!(!route(next(&mut stream).await).contains("slow"));
}

#[tokio::test]
async fn a_profile_tells_older_proxies_what_an_address_is() {
    let mesh = mesh(None).await;
    let web = mesh.register("web-0", "10.1.0.1");
    let mut client = DestinationClient::new(mesh.channel.clone());
    for (path, name, endpoint) in [
        (format!("{}:8080", web.service_address), "web.demo.svc.cluster.local", false),
        ("10.1.0.1:8080".to_string(), "", true),
        ("192.0.2.1:80".to_string(), "", false),
    ] {
        let request = GetDestination { path: path.clone(), ..GetDestination::default() };
        let profile = next(&mut client.get_profile(request).await.unwrap().into_inner()).await;
        assert_eq!((profile.fully_qualified_name.as_str(), profile.endpoint.is_some()), (name, endpoint), "{path}");
    }
}

#[tokio::test]
async fn a_profile_of_a_foreign_name_is_refused_for_good() {
    let mesh = mesh(None).await;
    let request = GetDestination { path: "example.com:80".into(), ..GetDestination::default() };
    let Err(error) = DestinationClient::new(mesh.channel.clone()).get_profile(request).await else { panic!("known") };
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_inbound_policy_follows_its_objects() {
    let mesh = mesh(None).await;
    let _web = mesh.register("web-0", "10.1.0.1");
    let spec = InboundPort { workload: r#"{"ns":"demo","pod":"web-0"}"#.into(), port: 8080 };
    let mut client = InboundServerPoliciesClient::new(mesh.channel.clone());
    let mut stream = client.watch_port(spec).await.unwrap().into_inner();
    let server = next(&mut stream).await;
    assert_eq!(server.labels["name"], "all-unauthenticated");
    assert!(matches!(server.protocol.unwrap().kind, Some(InboundKind::Detect(_))));
    mesh.apply(
        "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: only, namespace: demo}\n\
         spec: {from: [{serviceAccounts: [{name: shop}]}]}\n",
    );
    let server = next(&mut stream).await;
    assert_eq!((server.labels["name"].as_str(), server.authorizations.len()), ("only", 1));
    let unknown = InboundPort { workload: "demo:nobody".into(), port: 80 };
    assert_eq!(client.get_port(unknown.clone()).await.unwrap_err().code(), Code::NotFound);
    let Err(error) = client.watch_port(unknown).await else { panic!("nobody is known") };
    assert_eq!(error.code(), Code::NotFound);
}

#[tokio::test]
async fn a_slow_stream_is_brought_up_to_date_in_one_step() {
    let mesh = mesh(None).await;
    let _web = mesh.register("web-0", "10.1.0.1");
    let mut stream = mesh.endpoints("web.demo.svc.cluster.local:8080").await.unwrap();
    next(&mut stream).await;
    // Thousands of changes that nobody reads: what is held for the stream does not grow, and the end is right.
    for round in 0..2000 {
        drop(mesh.register("web-x", &format!("10.2.{}.{}", round / 250, round % 250)));
    }
    let _last = mesh.register("web-y", "10.3.0.1");
    let mut now = std::collections::BTreeSet::from(["10.1.0.1:8080".to_string()]);
    let mut messages = 0;
    while now != ["10.1.0.1:8080".to_string(), "10.3.0.1:8080".to_string()].into() {
        messages += 1;
        let update = describe(next(&mut stream).await);
        match update.split_once(' ') {
            Some(("add", addrs)) => now.extend(addrs.split(' ').map(str::to_string)),
            Some(("remove", addrs)) => addrs.split(' ').for_each(|a| {
                now.remove(a);
            }),
            _ => panic!("{update}"),
        }
    }
    assert!(messages < 2000, "{messages} messages");
}

#[tokio::test]
async fn streams_share_one_answer_and_nothing_stays_behind() {
    let mesh = mesh(None).await;
    let _web = mesh.register("web-0", "10.1.0.1");
    let mut streams = Vec::new();
    for _ in 0..10 {
        let mut stream = mesh.endpoints("web.demo.svc.cluster.local:8080").await.unwrap();
        next(&mut stream).await;
        streams.push(stream);
    }
    assert_eq!(mesh.registry.watched(), 1);
    drop(streams);
    let gone = async {
        while mesh.registry.watched() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("forgotten with its last stream");
}

#[tokio::test]
async fn streams_end_when_the_process_stops() {
    let mesh = mesh(None).await;
    let _web = mesh.register("web-0", "10.1.0.1");
    let mut stream = mesh.endpoints("web.demo.svc.cluster.local:8080").await.unwrap();
    next(&mut stream).await;
    mesh.stop.stop();
    let end = tokio::time::timeout(Duration::from_secs(5), stream.message()).await.expect("an end in time");
    assert!(end.unwrap().is_none());
    assert!(mesh.stop.wait(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn who_may_not_ask_is_told_so() {
    let admit: Admit = Arc::new(|_, workload| match workload.pod.as_str() {
        "client-0" => Err(Status::permission_denied("not this one")),
        _ => Ok(()),
    });
    let mesh = mesh(Some(admit)).await;
    let Err(error) = mesh.endpoints("web.demo.svc.cluster.local:80").await else { panic!("admitted") };
    assert_eq!(error.code(), Code::PermissionDenied);
}
