//! Every answer that the proxy makes itself says why, in one word that is the same for HTTP, gRPC and metrics.

use crate::WEB;
use gossamer_proxy::error::REASONS;
use gossamer_tests::app::{self, empty};
use gossamer_tests::client::{H1, H2, grpc_request, post_request};
use gossamer_tests::mesh::{Mesh, Proxy};

const ROUTES: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: nobody, namespace: test }
spec: { selector: { app: nobody }, ports: [{ port: 8080 }] }
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: web, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ path: { value: /nobody } }]
      backendRefs: [{ name: nobody, port: 8080 }]
    - matches: [{ path: { value: /refused } }]
      backendRefs: [{ name: refused, port: 8080 }]
    - matches: [{ path: { value: /refused-grpc } }]
      backendRefs: [{ name: refused-grpc, port: 8080 }]
    - matches: [{ path: { value: /missing } }]
      backendRefs: [{ name: no-such-service, port: 8080 }]
    - matches: [{ path: { value: /hang } }]
      timeouts: { request: 100ms }
    - matches: [{ path: { value: /drop } }]
---
apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: vault, namespace: test }
spec: { service: vault, from: [{ serviceAccounts: [{ name: nobody-we-know }] }] }
"#;

struct Broken {
    shop: Proxy,
    _services: [Proxy; 4],
    mesh: Mesh,
}

async fn broken() -> Broken {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let vault = mesh.workload("vault").serve(8080, app.handler()).start().await;
    let refused = mesh.workload("refused").port(8080).unmeshed().start().await;
    let refused_grpc = mesh.workload("refused-grpc").port(8080).unmeshed().start().await;
    mesh.apply_unchecked(ROUTES);
    let shop = mesh.workload("shop").calls(WEB).calls("vault:8080").calls("unheard-of:80").calls("web:9999");
    Broken { shop: shop.start().await, _services: [web, vault, refused, refused_grpc], mesh }
}

/// Target, path, reason, HTTP status, gRPC code.
const ANSWERS: &[(&str, &str, &str, u16, u16)] = &[
    (WEB, "/nobody", "no-endpoints", 503, 14),
    (WEB, "/refused", "connect", 502, 14),
    (WEB, "/hang", "timeout", 504, 4),
    (WEB, "/drop", "upstream", 502, 14),
    (WEB, "/elsewhere", "no-route", 404, 5),
    ("vault:8080", "/", "denied", 403, 7),
    ("web:9999", "/", "forbidden", 403, 7),
    ("unheard-of:80", "/", "discovery", 503, 14),
];

#[tokio::test]
async fn every_cause_has_its_word_its_status_and_its_grpc_code() {
    let mesh = broken().await;
    let mut wrong = Vec::new();
    for (target, path, reason, status, code) in ANSWERS {
        let entry = mesh.shop.to(target);
        let answer = H1::connect(entry).await.send(post_request("web", path, "x")).await.unwrap();
        if (answer.reason(), answer.status) != (*reason, *status) || !answer.text().starts_with(reason) {
            wrong.push(format!("{target}{path}: {answer:?}"));
        }
        // Once nobody could be reached for a while, requests fail at once, as `not-ready`; so another service.
        let path = path.replace("/refused", "/refused-grpc");
        let answer = H2::connect(entry).await.send(grpc_request("web", &path, empty())).await.unwrap();
        let got = (answer.reason(), answer.status, answer.grpc());
        if got != (*reason, 200, Some(*code)) || answer.header("grpc-message").is_empty() {
            wrong.push(format!("gRPC {target}{path}: {answer:?}"));
        }
        assert!(REASONS.iter().any(|(known, ..)| known == reason), "`meshctl why {reason}` explains it");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let metrics = mesh.shop.metrics().await;
    for reason in ["no-endpoints", "connect", "timeout", "no-route", "discovery"] {
        let counted = metrics.sum("outbound_http_errors_total", &[("error", reason)]);
        assert_eq!(counted, 2.0, "{reason}\n{}", metrics.text);
    }
}

/// An answer of the workload that looks like an error is not the mesh's.
#[tokio::test]
async fn errors_of_the_workload_are_its_own() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    for status in [400, 403, 404, 429, 500, 502, 503, 504] {
        let answer =
            H1::connect(shop.to(WEB)).await.send(post_request("web", &format!("/status/{status}"), "x")).await.unwrap();
        assert_eq!((answer.status, answer.header("x-app"), answer.reason()), (status, "web", ""));
    }
}

/// The Gateway API asks for 500 where a backend does not exist.
#[tokio::test]
async fn a_route_to_a_service_that_does_not_exist_says_so() {
    let mesh = broken().await;
    let answer = H1::connect(mesh.shop.to(WEB)).await.send(post_request("web", "/missing", "x")).await.unwrap();
    assert_eq!(answer.status, 500, "{answer:?}");
    assert!(answer.header("l5d-proxy-error").contains("no-such-service"), "{answer:?}");
    drop(mesh.mesh);
}
