//! The promises of this room, against a control plane on loopback that can be told what to say, and killed.

use super::*;
use gossamer_api::authorization::InboundProtocol;
use gossamer_api::endpoint::{Endpoint, EndpointUpdate, Labels};
use gossamer_api::policy::{Meta, OutboundProtocol};
use gossamer_api::process::grpc;
use gossamer_api::wire;
use linkerd2_proxy_api::destination::destination_server::{Destination, DestinationServer};
use linkerd2_proxy_api::destination::{self, GetDestination};
use linkerd2_proxy_api::inbound::inbound_server_policies_server::{InboundServerPolicies, InboundServerPoliciesServer};
use linkerd2_proxy_api::inbound::{self, PortSpec};
use linkerd2_proxy_api::outbound::outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer};
use linkerd2_proxy_api::outbound::{self, TrafficSpec};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

type Stream<T> = UnboundedReceiverStream<Result<T, Status>>;
type Opened<T> = (String, mpsc::UnboundedSender<Result<T, Status>>);

/// Every opened stream goes to the test, which says what comes over it.
struct Say<T> {
    opened: mpsc::UnboundedSender<Opened<T>>,
    /// Refuses instead.
    refuse: Mutex<Option<Status>>,
    refused: tokio::sync::Semaphore,
}

impl<T> Say<T> {
    fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Opened<T>>) {
        let (opened, receiver) = mpsc::unbounded_channel();
        (Arc::new(Say { opened, refuse: Mutex::default(), refused: tokio::sync::Semaphore::new(0) }), receiver)
    }

    fn open(&self, question: String) -> Result<Response<Stream<T>>, Status> {
        if let Some(status) = self.refuse.lock().unwrap().clone() {
            self.refused.add_permits(1);
            return Err(status);
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = self.opened.send((question, sender));
        Ok(Response::new(receiver.into()))
    }
}

struct Api<T>(Arc<Say<T>>);

#[tonic::async_trait]
impl Destination for Api<destination::Update> {
    type GetStream = Stream<destination::Update>;
    type GetProfileStream = Stream<destination::DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        let request = request.into_inner();
        self.0.open(format!("{} {}", request.path, request.context_token))
    }

    async fn get_profile(&self, _: Request<GetDestination>) -> Result<Response<Self::GetProfileStream>, Status> {
        Err(Status::unimplemented("profiles"))
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Api<outbound::OutboundPolicy> {
    type WatchStream = Stream<outbound::OutboundPolicy>;

    async fn get(&self, _: Request<TrafficSpec>) -> Result<Response<outbound::OutboundPolicy>, Status> {
        Err(Status::unimplemented("get"))
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        let (workload, target) = wire::traffic_spec_from_proto(request.into_inner()).unwrap();
        self.0.open(format!("{target} {workload}"))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Api<inbound::Server> {
    type WatchPortStream = Stream<inbound::Server>;

    async fn get_port(&self, _: Request<PortSpec>) -> Result<Response<inbound::Server>, Status> {
        Err(Status::unimplemented("get_port"))
    }

    async fn watch_port(&self, request: Request<PortSpec>) -> Result<Response<Self::WatchPortStream>, Status> {
        let (workload, port) = wire::port_spec_from_proto(request.into_inner()).unwrap();
        self.0.open(format!("{port} {workload}"))
    }
}

struct ControlPlane {
    addr: SocketAddr,
    stop: Stop,
    tls: Option<grpc::ServerTls>,
    get: (Arc<Say<destination::Update>>, mpsc::UnboundedReceiver<Opened<destination::Update>>),
    watch: (Arc<Say<outbound::OutboundPolicy>>, mpsc::UnboundedReceiver<Opened<outbound::OutboundPolicy>>),
    watch_port: (Arc<Say<inbound::Server>>, mpsc::UnboundedReceiver<Opened<inbound::Server>>),
}

impl ControlPlane {
    async fn start() -> Self {
        ControlPlane::start_with(None).await
    }

    async fn start_with(tls: Option<grpc::ServerTls>) -> Self {
        let addr = free().await;
        let mut this =
            ControlPlane { addr, tls, stop: Stop::new(), get: Say::new(), watch: Say::new(), watch_port: Say::new() };
        this.restart().await;
        this
    }

    async fn restart(&mut self) {
        let mut routes = Routes::new(DestinationServer::new(Api(self.get.0.clone())));
        routes = routes.add_service(OutboundPoliciesServer::new(Api(self.watch.0.clone())));
        routes = routes.add_service(InboundServerPoliciesServer::new(Api(self.watch_port.0.clone())));
        let listener = TcpListener::bind(self.addr).await.unwrap();
        self.stop = Stop::new();
        self.stop.spawn(grpc::serve(routes, listener, self.tls.clone(), self.stop.clone()));
    }

    /// As by SIGKILL: connections break.
    async fn kill(&self) {
        self.stop.stop();
        self.stop.wait(Duration::ZERO).await;
    }

    fn control(&self) -> Control {
        control_of(self.addr)
    }
}

/// Where nobody listens, and nobody will but the test: not at 127.0.0.1, from whose ports all connections come.
async fn free() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = [127, high | 128, low, NEXT.fetch_add(1, Ordering::Relaxed)];
    TcpListener::bind(SocketAddr::from((ip, 0))).await.unwrap().local_addr().unwrap()
}

fn control_of(addr: SocketAddr) -> Control {
    let service = Some(Service { addr: addr.to_string(), identity: None });
    let workload = Workload { ns: "demo".into(), pod: "web-1".into(), node_name: "n1".into() };
    let config = ControlConfig { destination: service.clone(), policy: service, workload };
    Control::new(config, watch::channel(None).1, Stop::new())
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("within 10 s")
}

async fn known<T: Clone>(receiver: &mut watch::Receiver<Discovered<T>>, is: impl Fn(&T) -> bool) -> Arc<T> {
    let found = soon(receiver.wait_for(|state| matches!(state, Discovered::Known(answer) if is(answer)))).await;
    match &*found.expect("still watched") {
        Discovered::Known(answer) => answer.clone(),
        _ => unreachable!("waited for it"),
    }
}

async fn reason<T>(receiver: &mut watch::Receiver<Discovered<T>>) -> String {
    let found = soon(receiver.wait_for(|state| matches!(state, Discovered::Failed(_)))).await;
    match &*found.expect("still watched") {
        Discovered::Failed(reason) => reason.to_string(),
        _ => unreachable!("waited for it"),
    }
}

fn policy(name: &str) -> outbound::OutboundPolicy {
    let meta = Meta::service("demo", name, 80);
    let protocol = OutboundProtocol::Opaque(vec![]);
    wire::outbound_policy_to_proto(&OutboundPolicy { meta, protocol })
}

fn server(authorizations: Vec<gossamer_api::authorization::Authorization>) -> inbound::Server {
    let server = Server {
        meta: Meta::named("all"),
        protocol: InboundProtocol::Opaque,
        ips: vec![],
        authorizations,
        labels: Labels::new(),
    };
    wire::server_to_proto(&server)
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint::new(SocketAddr::from(([10, 0, 0, 1], port)))
}

fn add(ports: &[u16]) -> destination::Update {
    let labels = Labels::from([("service".to_string(), "web".to_string())]);
    let endpoints = ports.iter().map(|port| endpoint(*port)).collect();
    wire::endpoint_update_to_proto(&EndpointUpdate::Add(endpoints, labels))
}

fn remove(port: u16) -> destination::Update {
    wire::endpoint_update_to_proto(&EndpointUpdate::Remove(vec![endpoint(port).addr]))
}

fn ports(set: &EndpointSet) -> Vec<u16> {
    set.endpoints.keys().map(SocketAddr::port).collect()
}

fn target() -> Target {
    Target::Authority("web.demo:80".into())
}

#[tokio::test]
async fn many_callers_share_one_stream_and_see_each_update() {
    let mut plane = ControlPlane::start().await;
    let control = plane.control();
    let mut receivers: Vec<_> = (0..20).map(|_| control.outbound(&target())).collect();
    assert!(matches!(&*receivers[0].borrow(), Discovered::Pending));
    let (question, stream) = soon(plane.watch.1.recv()).await.unwrap();
    assert_eq!(question, r#"web.demo:80 {"ns":"demo","pod":"web-1"}"#);
    for name in ["one", "two"] {
        stream.send(Ok(policy(name))).unwrap();
        for receiver in &mut receivers {
            known(receiver, |policy| policy.meta.name() == name).await;
        }
    }
    assert!(plane.watch.1.try_recv().is_err(), "one stream");
}

#[tokio::test]
async fn what_is_known_stays_while_the_control_plane_is_dead_and_is_replaced_when_it_is_back() {
    let mut plane = ControlPlane::start().await;
    let control = plane.control();
    let mut endpoints = control.endpoints("web.demo:80");
    let mut outbound = control.outbound(&target());
    let (question, stream) = soon(plane.get.1.recv()).await.unwrap();
    assert_eq!(question, r#"web.demo:80 {"nodeName":"n1","ns":"demo","pod":"web-1"}"#);
    stream.send(Ok(add(&[1, 2]))).unwrap();
    let (_, policies) = soon(plane.watch.1.recv()).await.unwrap();
    policies.send(Ok(policy("web"))).unwrap();
    let before = known(&mut endpoints, |set| ports(set) == [1, 2]).await;
    known(&mut outbound, |_| true).await;
    assert_eq!(before.endpoints[&endpoint(1).addr].labels["service"], "web", "labels of the set");

    assert_eq!((control.unheard(), control.missed()), (None, None));
    endpoints.mark_unchanged();
    plane.kill().await;
    // Both services are seen to be down, and nothing that was known has changed.
    while control.reachability().iter().flatten().any(|service| service.down.is_none()) {
        soon(tokio::task::yield_now()).await;
    }
    assert!(!endpoints.has_changed().unwrap());
    known(&mut outbound, |_| true).await;
    let failed = reason(&mut control.outbound(&Target::Authority("new.demo:80".into()))).await;
    assert!(failed.starts_with(&format!("destination service {} unreachable: ", plane.addr)), "{failed}");
    assert!(failed.contains("refused"), "{failed}");
    assert_eq!(control.unheard(), None, "it was heard once");

    plane.restart().await;
    let (_, stream) = soon(plane.get.1.recv()).await.unwrap();
    // A removal says nothing about what there is; the first full set replaces, it does not add.
    stream.send(Ok(remove(2))).unwrap();
    stream.send(Ok(add(&[2, 3]))).unwrap();
    let after = known(&mut endpoints, |set| ports(set) != [1, 2]).await;
    assert_eq!(ports(&after), [2, 3]);
    let two = endpoint(2).addr;
    assert!(Arc::ptr_eq(&before.endpoints[&two], &after.endpoints[&two]), "an unchanged replica stays the same one");
    assert_eq!(control.reachability()[0].as_ref().unwrap().down, None);
}

#[tokio::test]
async fn changes_of_a_set_are_applied_one_by_one() {
    let mut plane = ControlPlane::start().await;
    let control = plane.control();
    let mut endpoints = control.endpoints("web.demo:80");
    let (_, stream) = soon(plane.get.1.recv()).await.unwrap();
    stream.send(Ok(add(&[1]))).unwrap();
    stream.send(Ok(add(&[2]))).unwrap();
    known(&mut endpoints, |set| ports(set) == [1, 2]).await;
    stream.send(Ok(remove(1))).unwrap();
    known(&mut endpoints, |set| ports(set) == [2]).await;
    endpoints.mark_unchanged();
    stream.send(Ok(add(&[2]))).unwrap();
    stream.send(Ok(wire::endpoint_update_to_proto(&EndpointUpdate::Empty { exists: true }))).unwrap();
    let empty = known(&mut endpoints, |set| set.endpoints.is_empty()).await;
    assert!(empty.exists);
    stream.send(Ok(wire::endpoint_update_to_proto(&EndpointUpdate::Empty { exists: false }))).unwrap();
    known(&mut endpoints, |set| !set.exists).await;
}

#[tokio::test]
async fn what_the_control_plane_does_not_know_is_absent_until_it_does() {
    let mut plane = ControlPlane::start().await;
    *plane.watch.0.refuse.lock().unwrap() = Some(Status::not_found("no such service"));
    let control = plane.control();
    let mut outbound = control.outbound(&target());
    soon(outbound.wait_for(|state| matches!(state, Discovered::Absent))).await.unwrap();
    *plane.watch.0.refuse.lock().unwrap() = None;
    // Asking anew makes it ask anew.
    let _again = control.outbound(&target());
    let (_, stream) = soon(plane.watch.1.recv()).await.unwrap();
    stream.send(Ok(policy("web"))).unwrap();
    known(&mut outbound, |_| true).await;
    // A question that is no longer understood takes nothing back, NOT_FOUND does.
    stream.send(Err(Status::not_found("deleted"))).unwrap();
    soon(outbound.wait_for(|state| matches!(state, Discovered::Absent))).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_control_plane_fails_new_targets_within_a_second() {
    let addr = free().await;
    let control = control_of(addr);
    let began = std::time::Instant::now();
    let failed = reason(&mut control.endpoints("web.demo:80")).await;
    assert!(failed.contains("refused") && failed.contains(&addr.to_string()), "{failed}");
    // A second, and what a busy machine adds; whoever waits for longer waits for something else.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(control);
    // No plaintext and no attempt where a certificate is needed and there is none.
    let identity = Some("dst.mesh.serviceaccount.identity.mesh.cluster.local".parse().unwrap());
    let service = Some(Service { addr: addr.to_string(), identity });
    let config = ControlConfig { destination: service.clone(), policy: service, workload: Workload::default() };
    let listener = TcpListener::bind(addr).await.unwrap();
    let control = Control::new(config, watch::channel(None).1, Stop::new());
    let failed = reason(&mut control.server(80)).await;
    assert!(failed.ends_with("no valid certificate of our own"), "{failed}");
    assert!(futures_util::FutureExt::now_or_never(listener.accept()).is_none(), "nobody connected");
}

#[tokio::test]
async fn a_policy_that_is_not_understood_closes_a_port_and_keeps_a_target() {
    let mut plane = ControlPlane::start().await;
    let control = plane.control();
    let (mut port, mut outbound) = (control.server(80), control.outbound(&target()));
    let (question, servers) = soon(plane.watch_port.1.recv()).await.unwrap();
    assert_eq!(question, r#"80 {"ns":"demo","pod":"web-1"}"#);
    let (_, policies) = soon(plane.watch.1.recv()).await.unwrap();
    servers.send(Ok(server(vec![]))).unwrap();
    known(&mut port, |server| server.meta.name() == "all").await;
    policies.send(Ok(policy("web"))).unwrap();
    policies.send(Ok(outbound::OutboundPolicy::default())).unwrap();
    policies.send(Ok(policy("next"))).unwrap();
    known(&mut outbound, |policy| policy.meta.name() == "next").await;
    servers.send(Ok(inbound::Server::default())).unwrap();
    let closed = known(&mut port, |server| server.meta.name() == "invalid").await;
    assert!(closed.authorizations.is_empty());
    // A control plane that forgot the workload does not open the port again.
    *plane.watch_port.0.refuse.lock().unwrap() = Some(Status::not_found("no such pod"));
    servers.send(Err(Status::not_found("no such pod"))).unwrap();
    // It asks again, so it has seen the first answer.
    let _again = control.server(80);
    let _ = soon(plane.watch_port.0.refused.acquire()).await.unwrap();
    known(&mut port, |server| server.meta.name() == "invalid").await;
}

#[tokio::test]
async fn more_streams_than_a_connection_carries_are_all_answered() {
    let mut plane = ControlPlane::start().await;
    let control = plane.control();
    let mut receivers: Vec<_> = (0..2500).map(|n| control.endpoints(&format!("s{n}.demo:80"))).collect();
    let mut streams = Vec::new();
    for _ in &receivers {
        let (_, stream) = soon(plane.get.1.recv()).await.unwrap();
        stream.send(Ok(add(&[1]))).unwrap();
        streams.push(stream);
    }
    for receiver in &mut receivers {
        known(receiver, |set| ports(set) == [1]).await;
    }
}

#[tokio::test]
async fn streams_wait_for_a_certificate_and_then_go_to_the_named_service_alone() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = gossamer_identity::token::TokenCheck::JoinTokens(gossamer_identity::token::JoinTokens::new());
    let config = gossamer_identity::Config::new(folder.path().join("state"), tokens);
    let stop = Stop::new();
    let authority = gossamer_identity::Authority::start(&config, &stop).unwrap();
    let issue = |name: &str| {
        let identity = format!("{name}.mesh.serviceaccount.identity.gossamer.cluster.local").parse().unwrap();
        Arc::new(authority.service.self_issue(&identity).unwrap())
    };
    let (_keep, credentials) = watch::channel(Some(issue("dst")));
    let tls = grpc::ServerTls { credentials, auth: gossamer_api::process::tls::ClientAuth::Required };
    let mut plane = ControlPlane::start_with(Some(tls)).await;

    let (certificate, credentials) = watch::channel(None);
    let ask = |name: &str| {
        let service = Service { addr: plane.addr.to_string(), identity: Some(issue(name).identity.clone()) };
        let config =
            ControlConfig { destination: Some(service.clone()), policy: Some(service), workload: Workload::default() };
        Control::new(config, credentials.clone(), Stop::new())
    };
    let (right, wrong) = (ask("dst"), ask("other"));
    let mut outbound = right.outbound(&target());
    let failed = reason(&mut outbound).await;
    assert!(failed.ends_with("no valid certificate of our own"), "{failed}");
    assert_eq!(right.reachability()[1].as_ref().unwrap().outages, 0);

    certificate.send_replace(Some(issue("web")));
    let (_, stream) = soon(plane.watch.1.recv()).await.unwrap();
    stream.send(Ok(policy("web"))).unwrap();
    known(&mut outbound, |_| true).await;
    let failed = reason(&mut wrong.outbound(&target())).await;
    assert!(failed.contains("unreachable") && failed.contains("not valid for name"), "{failed}");
    assert!(plane.watch.1.try_recv().is_err(), "the wrong service was not asked");
}

#[tokio::test]
async fn without_a_control_plane_everything_is_absent() {
    let control = Control::offline();
    assert!(matches!(&*control.outbound(&target()).borrow(), Discovered::Absent));
    assert!(matches!(&*control.endpoints("web.demo:80").borrow(), Discovered::Absent));
    let mut server = control.server(80);
    assert!(matches!(&*server.borrow(), Discovered::Absent));
    assert!(futures_util::FutureExt::now_or_never(server.changed()).is_none(), "and will not end");
}

#[test]
fn other_threads_may_ask() {
    fn check<T: Send + Sync + Clone + 'static>() {}
    check::<Control>();
}
