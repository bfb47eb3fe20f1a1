//! A real [linkerd2-proxy](https://github.com/linkerd/linkerd2-proxy), unmodified, against our control plane: alone, and
//! with our proxy at the other end of the hop.
//!
//! `MESH_LINKERD2_PROXY` names the program. CI does not have it: no registry ships it, and its build takes longer than
//! that of all of this project; so without it these tests say that they are skipped, under CI as well. They need root:
//! see `gossamer_tests::linkerd`.

use crate::tools;
use gossamer_destination::index::Cluster;
use gossamer_proxy::error::REASONS;
use gossamer_tests::app;
use gossamer_tests::client::{H1, H2, Raw, post_request};
use gossamer_tests::expect::eventually;
use gossamer_tests::linkerd::{self, Linkerd, privately};
use gossamer_tests::mesh::{Mesh, Proxy, config, identity_of};
use meshctl::sandbox::network::NODE;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;
use tokio::net::TcpStream;

/// The program, where these tests can run.
fn program() -> Option<PathBuf> {
    let Some(path) = std::env::var_os("MESH_LINKERD2_PROXY").map(PathBuf::from) else {
        tools::skipped("linkerd2-proxy", "MESH_LINKERD2_PROXY names none");
        return None;
    };
    assert!(path.is_file(), "{} is missing, and MESH_LINKERD2_PROXY says that it is there", path.display());
    if !nix::unistd::geteuid().is_root() {
        return tools::missing("linkerd2-proxy", "its own user and network namespace need root");
    }
    Some(path)
}

fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    if let Some(program) = program() {
        privately(move || test(program));
    }
}

const WEB: &str = "web:8080";
const HTTP: u16 = 8080;
/// Declared opaque.
const BYTES: u16 = 7000;
/// The application speaks first, and nothing is declared.
const GREETS: u16 = 2525;

/// Addresses of the bridge's network.
const OF_LINKERD: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 1);
const OF_ANOTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 1, 2);

async fn mesh() -> Mesh {
    Mesh::at(NODE, Cluster::default()).await
}

async fn linkerd_web(mesh: &Mesh, program: &std::path::Path, http: &app::Http) -> Linkerd {
    linkerd::workload(mesh, "web", OF_LINKERD)
        .serve(HTTP, http.handler())
        .serve(BYTES, app::echo())
        .serve(GREETS, app::speaks_first(b"220 hello\r\n"))
        .annotate(&config("opaque-ports"), &BYTES.to_string())
        .start(program)
        .await
}

async fn our_web(mesh: &Mesh, http: &app::Http) -> Proxy {
    let spec = mesh.workload("web").at(linkerd::address(1)).serve(HTTP, http.handler()).serve(BYTES, app::echo());
    let spec = spec.serve(GREETS, app::speaks_first(b"220 hello\r\n"));
    spec.annotate(&config("opaque-ports"), &BYTES.to_string()).impatient().start().await
}

async fn our_shop(mesh: &Mesh) -> Proxy {
    mesh.workload("shop")
        .at(linkerd::address(2))
        .calls(WEB)
        .calls("web:7000")
        .calls("web:2525")
        .impatient()
        .start()
        .await
}

/// How a workload reaches a port of `web`.
trait Caller {
    async fn call(&self, port: u16) -> TcpStream;
}

impl Caller for Proxy {
    async fn call(&self, port: u16) -> TcpStream {
        TcpStream::connect(self.to(&format!("web:{port}"))).await.unwrap()
    }
}

/// A workload beside linkerd2-proxy calls the service's address.
struct Redirected<'a>(&'a Linkerd, SocketAddr);

impl Caller for Redirected<'_> {
    async fn call(&self, port: u16) -> TcpStream {
        self.0.connect(SocketAddr::new(self.1.ip(), port)).await
    }
}

/// All that applications may do, with `shop` as what the workload sees its client to be.
async fn everything_works(from: &impl Caller, http: &app::Http) {
    let host = "web.test.svc.cluster.local:8080";
    let mut h1 = H1::over(from.call(HTTP).await).await.unwrap();
    let answer = h1.send(post_request(host, "/head", "x")).await.unwrap();
    let client = format!("l5d-client-id: {}", identity_of("shop"));
    assert!(answer.status == 200 && answer.text().contains(&client), "HTTP/1, {client}: {answer:?}\n{}", answer.text());
    let answer = h1.send(post_request(host, "/echo", vec![b'b'; 300_000])).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 300_000));
    // linkerd2-proxy keeps trailers of HTTP/1 for clients that ask for them; ours always does.
    let mut request = post_request(host, "/trailers", "x");
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let answer = h1.send(request).await.unwrap();
    assert_eq!((answer.text().as_str(), answer.trailers.get("x-checksum").is_some()), ("body", true), "{answer:?}");

    let h2 = H2::over(from.call(HTTP).await, |_| {}).await;
    let answer = h2.get(host, "/head").await;
    assert!(answer.status == 200 && answer.text().contains(&client), "HTTP/2: {answer:?}\n{}", answer.text());
    let answer = h2.grpc(host, "/echo", &[7; 100_000]).await;
    assert_eq!((answer.grpc(), answer.body.len()), (Some(0), 100_005), "gRPC: {:?}", answer.headers);
    assert!(http.seen().iter().all(|seen| !seen.headers.contains_key("l5d-orig-proto")), "it stays between proxies");

    let mut raw = Raw::from(from.call(BYTES).await);
    raw.send("GET / opaque, whatever it looks like\n\n").await;
    raw.finish().await;
    assert_eq!(raw.rest().await.unwrap(), "GET / opaque, whatever it looks like\n\n");
}

/// The first byte of a server that speaks first; linkerd2-proxy waits ten seconds for its client.
async fn greeted(from: &impl Caller) -> std::time::Duration {
    let start = Instant::now();
    let mut raw = Raw::from(from.call(GREETS).await);
    assert_eq!(raw.line().await, "220 hello");
    start.elapsed()
}

#[test]
fn our_client_and_linkerds_server() {
    run(|program| async move {
        let (mesh, http) = (mesh().await, app::http("web"));
        let web = linkerd_web(&mesh, &program, &http).await;
        let shop = our_shop(&mesh).await;
        everything_works(&shop, &http).await;
        eprintln!("a greeting through linkerd2-proxy inbound: {:?}", greeted(&shop).await);
        let metrics = shop.metrics().await;
        let server = identity_of("web").to_string();
        let secured = [("direction", "outbound"), ("tls", "true"), ("server_id", server.as_str())];
        assert_eq!(metrics.sum("request_total", &secured), 5.0, "{}", metrics.text);
        let client = format!("client_id=\"{}\"", identity_of("shop"));
        let seen = web.metrics("request_total", &["direction=\"inbound\"", "tls=\"true\"", &client]).await;
        assert!(!seen.is_empty(), "linkerd2-proxy has seen who we are");
    });
}

#[test]
fn linkerds_client_and_our_server() {
    run(|program| async move {
        let (mesh, http) = (mesh().await, app::http("web"));
        let web = our_web(&mesh, &http).await;
        let shop = linkerd::workload(&mesh, "shop", OF_LINKERD).start(&program).await;
        let service = web.registration.as_ref().unwrap().service_address;
        let shop_to = Redirected(&shop, SocketAddr::new(service, HTTP));
        everything_works(&shop_to, &http).await;
        let metrics = web.metrics().await;
        let client = identity_of("shop").to_string();
        let secured = [("direction", "inbound"), ("tls", "true"), ("client_id", client.as_str())];
        assert_eq!(metrics.sum("request_total", &secured), 5.0, "{}", metrics.text);
        let server = format!("server_id=\"{}\"", identity_of("web"));
        let seen = shop.metrics("request_total", &["direction=\"outbound\"", "tls=\"true\"", &server]).await;
        assert!(!seen.is_empty(), "linkerd2-proxy has seen who we are");
    });
}

#[test]
fn linkerds_client_and_linkerds_server() {
    run(|program| async move {
        let (mesh, http) = (mesh().await, app::http("web"));
        let web = linkerd_web(&mesh, &program, &http).await;
        let shop = linkerd::workload(&mesh, "shop", OF_ANOTHER).start(&program).await;
        everything_works(&Redirected(&shop, SocketAddr::new(web.registration.service_address, HTTP)), &http).await;
    });
}

const ONLY_FRIENDS: &str = r#"
apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: web, namespace: test }
spec: { service: web, from: [{ serviceAccounts: [{ name: friend }] }] }
"#;

/// The same policy, whoever enforces it, and told to the client in the same way.
#[test]
fn policy_is_kept_on_both_sides() {
    run(|program| async move {
        let (mesh, http) = (mesh().await, app::http("web"));
        let web = linkerd_web(&mesh, &program, &http).await;
        let friend = mesh.workload("friend").at(linkerd::address(3)).calls(WEB).start().await;
        let shop = linkerd::workload(&mesh, "shop", OF_ANOTHER).start(&program).await;
        let to = SocketAddr::new(web.registration.service_address, HTTP);
        assert_eq!(H1::over(shop.connect(to).await).await.unwrap().get("web", "/bytes/1").await.status, 200);
        mesh.apply("only-friends.yaml", ONLY_FRIENDS);
        eventually("linkerd2-proxy refuses", || async {
            let answer = H1::over(shop.connect(to).await).await.unwrap().get("web", "/bytes/1").await;
            (answer.status == 403).then_some(())
        })
        .await;
        let answer = H1::connect(friend.to(WEB)).await.get("web", "/bytes/1").await;
        assert_eq!(answer.status, 200, "a friend is let in: {answer:?}");
        drop(web);

        let web = our_web(&mesh, &http).await;
        let to = SocketAddr::new(web.registration.as_ref().unwrap().service_address, HTTP);
        let before = http.count();
        eventually("our proxy refuses linkerd2-proxy's workload", || async {
            let answer = H1::over(shop.connect(to).await).await.unwrap().get("web", "/bytes/1").await;
            (answer.status == 403).then_some(answer)
        })
        .await;
        assert_eq!(http.count(), before);
        assert!(REASONS.iter().any(|(reason, ..)| *reason == "denied"));
    });
}
