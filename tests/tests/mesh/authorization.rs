//! Who may reach what, and that nobody can pretend to be somebody else.

use crate::WEB;
use gossamer_tests::app::{self, Http};
use gossamer_tests::client::{self, H1, H2, Raw, get_request, post_request};
use gossamer_tests::expect::becomes;
use gossamer_tests::mesh::{Mesh, Proxy};

/// `shop` and `guest` call `web`.
struct Three {
    shop: Proxy,
    guest: Proxy,
    web: Proxy,
    app: Http,
    mesh: Mesh,
}

async fn three(yaml: &str) -> Three {
    let mesh = Mesh::start().await;
    if !yaml.is_empty() {
        mesh.apply("policy.yaml", yaml);
    }
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let caller = async |name| mesh.workload(name).calls(WEB).start().await;
    Three { shop: caller("shop").await, guest: caller("guest").await, web, app, mesh }
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: test }}\nspec: {spec}\n"
    )
}

async fn status(from: &Proxy, path: &str) -> u16 {
    client::get(from.to(WEB), "web", path).await.status
}

#[tokio::test]
async fn a_service_account_is_allowed_and_others_are_not() {
    let mesh = three(&policy("web", "{ service: web, from: [{ serviceAccounts: [{ name: shop }] }] }")).await;
    assert_eq!(status(&mesh.shop, "/").await, 200);
    let answer = client::get(mesh.guest.to(WEB), "web", "/").await;
    assert_eq!((answer.status, answer.reason()), (403, "denied"), "{answer:?}");
    assert!(answer.header("l5d-proxy-error").contains("guest.test."), "it says who: {answer:?}");
    assert_eq!(mesh.app.count(), 1);
    let metrics = mesh.web.metrics().await;
    assert_eq!(metrics.sum("inbound_http_authz_allow_total", &[]), 1.0);
    assert_eq!(metrics.sum("inbound_http_authz_deny_total", &[]), 1.0);
    let answer = H2::connect(mesh.guest.to(WEB)).await.grpc("web", "/echo", b"x").await;
    assert_eq!((answer.status, answer.grpc(), answer.reason()), (200, Some(7), "denied"), "{answer:?}");
}

#[tokio::test]
async fn a_network_is_allowed() {
    let mesh = three(&policy("web", "{ service: web, from: [{ networks: [{ cidr: 127.0.0.0/8 }] }] }")).await;
    assert_eq!((status(&mesh.shop, "/").await, status(&mesh.guest, "/").await), (200, 200));
    mesh.mesh.apply("policy.yaml", &policy("web", "{ service: web, from: [{ networks: [{ cidr: 10.0.0.0/8 }] }] }"));
    becomes((403, 403), || async { (status(&mesh.shop, "/").await, status(&mesh.guest, "/").await) }).await;
}

#[tokio::test]
async fn deny_wins() {
    let all = policy("all", "{ service: web, from: [{ namespaces: [test] }] }");
    let not = policy("not", "{ service: web, action: Deny, from: [{ serviceAccounts: [{ name: guest }] }] }");
    let mesh = three(&format!("{all}---\n{not}")).await;
    assert_eq!((status(&mesh.shop, "/").await, status(&mesh.guest, "/").await), (200, 403));
}

#[tokio::test]
async fn only_some_requests_are_allowed() {
    let spec = "{ service: web, from: [{ namespaces: [test] }], to: [{ methods: [GET], paths: [/status/*, /head] }] }";
    let mesh = three(&policy("readers", spec)).await;
    assert_eq!((status(&mesh.shop, "/status/200").await, status(&mesh.shop, "/head").await), (200, 200));
    // What a server may resolve to another path is refused, not guessed.
    for path in ["/status/../headers", "/status/%2e%2e/headers", "/status/..%2fheaders", "/status/./200"] {
        let answer = client::get(mesh.shop.to(WEB), "web", path).await;
        assert_eq!((answer.status, answer.reason()), (400, "bad-request"), "{path}: {answer:?}");
    }
    for path in ["/", "/statuses", "/headers", "/bytes/1", "//status/200"] {
        let answer = client::get(mesh.shop.to(WEB), "web", path).await;
        assert!([403, 404].contains(&answer.status), "{path}: {answer:?}");
    }
    let answer = H1::connect(mesh.shop.to(WEB)).await.send(post_request("web", "/head", "x")).await.unwrap();
    assert!([403, 404].contains(&answer.status), "{answer:?}");
    assert_eq!(mesh.app.count(), 2);
}

#[tokio::test]
async fn a_policy_takes_effect_on_open_connections() {
    let mesh = three("").await;
    let open = tokio::sync::Mutex::new(H1::connect(mesh.guest.to(WEB)).await);
    let ask = async || open.lock().await.get("web", "/").await.status;
    assert_eq!(ask().await, 200);
    mesh.mesh.apply("policy.yaml", &policy("web", "{ service: web, from: [{ serviceAccounts: [{ name: shop }] }] }"));
    becomes(403, ask).await;
    assert_eq!(status(&mesh.shop, "/").await, 200);
}

#[tokio::test]
async fn bytes_of_a_client_that_is_not_allowed_never_arrive() {
    let mesh = Mesh::start().await;
    mesh.apply("policy.yaml", &policy("db", "{ service: db, from: [{ serviceAccounts: [{ name: shop }] }] }"));
    let db = mesh.workload("db").serve(5432, app::echo()).start().await;
    let shop = mesh.workload("shop").calls("db:5432").start().await;
    let guest = mesh.workload("guest").calls("db:5432").start().await;
    let mut allowed = Raw::connect(shop.to("db:5432")).await;
    allowed.send(b"\x00query").await;
    assert_eq!(&allowed.exactly(6).await[..], b"\x00query");
    let mut denied = Raw::connect(guest.to("db:5432")).await;
    denied.send(b"\x00query").await;
    assert!(denied.ends().await);
    assert_eq!(db.apps[0].accepted(), 1);
    assert_eq!(db.metrics().await.sum("inbound_tcp_authz_deny_total", &[]), 1.0);
}

#[tokio::test]
async fn the_client_s_identity_cannot_be_forged() {
    let mesh = three("").await;
    let forged = "web.test.serviceaccount.identity.gossamer.cluster.local";
    let mut request = get_request("web", "/head");
    request.headers_mut().append("l5d-client-id", forged.parse().unwrap());
    request.headers_mut().append("L5D-Client-Id", forged.parse().unwrap());
    let answer = H1::connect(mesh.guest.to(WEB)).await.send(request).await.unwrap();
    let head = answer.text();
    let ids: Vec<_> = head.lines().filter(|line| line.starts_with("l5d-client-id:")).collect();
    assert_eq!(ids, ["l5d-client-id: guest.test.serviceaccount.identity.gossamer.cluster.local"]);
    // Not even by a workload that speaks the mesh's own protocol.
    let config = mesh.mesh.credentials("guest").client_config(&[gossamer_api::keys::ALPN_TRANSPORT]);
    let session = Some(gossamer_proxy::balance::transport::Session::Http1);
    let name = gossamer_tests::mesh::identity_of("web");
    let mut io = client::meshed(mesh.web.inbound(), config, &name, 8080, session).await.unwrap();
    let request = format!(
        "GET /head HTTP/1.1\r\nhost: web\r\nl5d-client-id: {forged}\r\nconnection: close, l5d-client-id\r\n\r\n"
    );
    tokio::io::AsyncWriteExt::write_all(&mut io, request.as_bytes()).await.unwrap();
    let got = String::from_utf8_lossy(&client::rest(&mut io).await.unwrap()).into_owned();
    assert!(got.contains("l5d-client-id: guest.test.") && !got.contains("l5d-client-id: web.test."), "{got}");
}

#[tokio::test]
async fn deny_by_default_keeps_everybody_out_until_a_policy_says_otherwise() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let spec = mesh.workload("web").serve(8080, app.handler());
    let _web = spec.annotate(&gossamer_tests::mesh::config("default-inbound-policy"), "deny").start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    assert_eq!(status(&shop, "/").await, 403);
    mesh.apply("policy.yaml", &policy("web", "{ service: web, from: [{ serviceAccounts: [{ name: shop }] }] }"));
    becomes(200, || status(&shop, "/")).await;
}
