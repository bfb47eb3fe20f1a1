//! Routes from a watched folder of the YAML that Kubernetes takes.

use crate::WEB;
use gossamer_api::policy::{
    Backend, BackendTarget, Distribution, Failure, Filter, HttpRoute, HttpRoutes, HttpRule, Load, Meta, OutboundPolicy,
    OutboundProtocol, PathMatch, Queue, RequestMatch, RouteBackend,
};
use gossamer_api::process::stop::Stop;
use gossamer_tests::app::{self, Http, empty};
use gossamer_tests::client::{Answer, H1, H2, grpc_request};
use gossamer_tests::expect::{becomes, eventually};
use gossamer_tests::mesh::{Mesh, Proxy};
use gossamer_tests::policy::Policy;
use http::Request;
use std::net::SocketAddr;
use std::time::Duration;

/// `shop` calls `web`, of which there are a first and a second version, and `admin`.
struct Shop {
    shop: Proxy,
    apps: [Http; 3],
    _services: [Proxy; 3],
    mesh: Mesh,
}

async fn shop(yaml: &str) -> Shop {
    let mesh = Mesh::start().await;
    if !yaml.is_empty() {
        mesh.apply("routes.yaml", yaml);
    }
    let apps = [app::http("web"), app::http("web-v2"), app::http("admin")];
    let service = async |name, app: &Http| mesh.workload(name).serve(8080, app.handler()).start().await;
    let services =
        [service("web", &apps[0]).await, service("web-v2", &apps[1]).await, service("admin", &apps[2]).await];
    let shop = mesh.workload("shop").calls(WEB).start().await;
    Shop { shop, apps, _services: services, mesh }
}

async fn ask(entry: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "web");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    H1::connect(entry).await.send(request.body(empty()).unwrap()).await.unwrap()
}

const MATCHES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: matches, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ path: { type: Exact, value: /exact } }]
      backendRefs: [{ name: web-v2, port: 8080 }]
    - matches: [{ path: { type: PathPrefix, value: /admin } }]
      backendRefs: [{ name: admin, port: 8080 }]
    - matches: [{ path: { type: RegularExpression, value: "/v[0-9]+/.*" } }]
      backendRefs: [{ name: web-v2, port: 8080 }]
    - matches: [{ method: DELETE }]
      backendRefs: [{ name: admin, port: 8080 }]
    - matches: [{ headers: [{ name: x-canary, value: "yes" }] }]
      backendRefs: [{ name: web-v2, port: 8080 }]
    - matches: [{ queryParams: [{ name: version, value: "2" }] }]
      backendRefs: [{ name: web-v2, port: 8080 }]
    - backendRefs: [{ name: web, port: 8080 }]
"#;

#[tokio::test]
async fn path_method_header_and_query_decide() {
    let shop = shop(MATCHES).await;
    let entry = shop.shop.to(WEB);
    for (method, path, headers, expected) in [
        ("GET", "/", &[][..], "web"),
        ("GET", "/exact", &[], "web-v2"),
        ("GET", "/exact/not", &[], "web"),
        ("GET", "/admin", &[], "admin"),
        ("GET", "/admin/users?x=1", &[], "admin"),
        ("GET", "/administrator", &[], "web"),
        ("GET", "/v12/x", &[], "web-v2"),
        ("GET", "/va/x", &[], "web"),
        ("DELETE", "/", &[], "admin"),
        ("GET", "/", &[("x-canary", "yes")], "web-v2"),
        ("GET", "/", &[("x-canary", "no")], "web"),
        ("GET", "/?version=2", &[], "web-v2"),
        ("GET", "/?version=22", &[], "web"),
    ] {
        let answer = ask(entry, method, path, headers).await;
        assert_eq!(answer.header("x-app"), expected, "{method} {path} {headers:?}: {answer:?}");
    }
}

#[tokio::test]
async fn hosts_decide() {
    let shop = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: hosts, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  hostnames: [admin.example, "*.admin.example"]
  rules: [{ backendRefs: [{ name: admin, port: 8080 }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: rest, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules: [{ backendRefs: [{ name: web, port: 8080 }] }]
"#,
    )
    .await;
    let entry = shop.shop.to(WEB);
    for (host, expected) in [
        ("admin.example", "admin"),
        ("ADMIN.example:8080", "admin"),
        ("a.admin.example", "admin"),
        ("web", "web"),
        ("xadmin.example", "web"),
    ] {
        assert_eq!(ask(entry, "GET", "/", &[("host", host)]).await.header("x-app"), expected, "{host}");
    }
}

#[tokio::test]
async fn weights_split_requests() {
    let shop = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: canary, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - backendRefs: [{ name: web, port: 8080, weight: 80 }, { name: web-v2, port: 8080, weight: 20 }, { name: admin, port: 8080, weight: 0 }]
"#,
    )
    .await;
    let mut client = H1::connect(shop.shop.to(WEB)).await;
    for _ in 0..500 {
        assert_eq!(client.get("web", "/").await.status, 200);
    }
    let [first, second, none] = [0, 1, 2].map(|n: usize| shop.apps[n].count());
    // A hundred are expected; six standard deviations (9) to both sides.
    assert!((46..=154).contains(&second) && first + second == 500, "{first} {second} {none}");
}

#[tokio::test]
async fn headers_are_changed_on_the_way() {
    let shop = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: headers, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - filters:
        - type: RequestHeaderModifier
          requestHeaderModifier: { set: [{ name: x-set, value: new }], add: [{ name: x-add, value: more }], remove: [x-secret] }
        - type: ResponseHeaderModifier
          responseHeaderModifier: { set: [{ name: x-app, value: changed }], add: [{ name: x-served, value: mesh }] }
"#,
    )
    .await;
    let headers = [("x-set", "old"), ("x-add", "first"), ("x-secret", "1")];
    let answer = ask(shop.shop.to(WEB), "GET", "/head", &headers).await;
    let head = answer.text();
    assert!(head.contains("\nx-set: new\n") && !head.contains("old") && !head.contains("x-secret"), "{head}");
    assert!(head.contains("\nx-add: first\n") && head.contains("\nx-add: more\n"), "{head}");
    assert_eq!((answer.header("x-app"), answer.header("x-served")), ("changed", "mesh"));
}

#[tokio::test]
async fn a_redirect_is_answered_by_the_proxy() {
    let shop = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: moved, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /old } }]
      filters:
        - type: RequestRedirect
          requestRedirect: { scheme: https, hostname: new.example, port: 8443, path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }, statusCode: 301 }
    - {}
"#,
    )
    .await;
    let answer = ask(shop.shop.to(WEB), "GET", "/old/a?b=c", &[]).await;
    assert_eq!((answer.status, answer.header("location")), (301, "https://new.example:8443/new/a?b=c"), "{answer:?}");
    assert_eq!(answer.reason(), "redirect", "{answer:?}");
    assert_eq!(shop.apps[0].count(), 0);
    // The same word in metrics, and no failure.
    let metrics = shop.shop.metrics().await;
    let redirects = [("direction", "outbound"), ("error", "redirect"), ("classification", "success")];
    assert_eq!(metrics.sum("response_total", &redirects), 1.0, "{}", metrics.text);
    assert_eq!(metrics.sum("outbound_http_errors_total", &[]), 0.0, "{}", metrics.text);
    assert_eq!(ask(shop.shop.to(WEB), "GET", "/older", &[]).await.header("x-app"), "web");
}

#[tokio::test]
async fn grpc_routes_match_service_and_method() {
    let shop = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: calls, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ method: { service: shop.Orders, method: Place } }]
      backendRefs: [{ name: web-v2, port: 8080 }]
    - matches: [{ method: { service: shop.Orders } }]
      backendRefs: [{ name: web, port: 8080 }]
"#,
    )
    .await;
    let client = H2::connect(shop.shop.to(WEB)).await;
    for (path, expected) in [("/shop.Orders/Place", "web-v2"), ("/shop.Orders/Cancel", "web")] {
        let answer = client.grpc("web", path, b"x").await;
        assert_eq!((answer.header("x-app"), answer.grpc()), (expected, Some(0)), "{path}");
    }
    let answer = client.grpc("web", "/shop.Stock/Count", b"x").await;
    assert_eq!((answer.grpc(), answer.reason()), (Some(5), "no-route"), "{answer:?}");
}

#[tokio::test]
async fn a_changed_file_takes_effect_on_open_connections() {
    let shop = shop("").await;
    let route = |backend: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: web, namespace: test }}\nspec:\n  \
             parentRefs: [{{ group: '', kind: Service, name: web }}]\n  \
             rules: [{{ backendRefs: [{{ name: {backend}, port: 8080 }}] }}]\n"
        )
    };
    let client = tokio::sync::Mutex::new(H1::connect(shop.shop.to(WEB)).await);
    let served_by = async || client.lock().await.get("web", "/").await.header("x-app").to_string();
    assert_eq!(served_by().await, "web");
    for backend in ["admin", "web-v2"] {
        shop.mesh.write("route.yaml", &route(backend));
        becomes(backend.to_string(), &served_by).await;
    }
    // A wrong file keeps the last good state in force; a right one after it is taken.
    shop.mesh.write("route.yaml", "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nspec: [");
    shop.mesh.write(
        "sorted-after-it.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: { name: marker, namespace: test }\nspec: { ports: [{ port: 1 }] }\n",
    );
    eventually("the folder was looked at again", || async { shop.mesh.standalone.resolve("marker", "test") }).await;
    assert_eq!(served_by().await, "web-v2");
    std::fs::remove_file(shop.mesh.objects().join("route.yaml")).unwrap();
    becomes("web".to_string(), served_by).await;
}

/// Failures are part of Linkerd's API, though of none of our objects yet.
#[tokio::test]
async fn failures_are_injected() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let queue = Queue { capacity: 100, failfast: Duration::from_secs(3) };
    let load = Load { default_rtt: Duration::from_millis(30), decay: Duration::from_secs(10), penalty: None };
    let target = BackendTarget::Balance { authority: "web.test.svc.cluster.local:8080".into(), load };
    let backend = Backend { meta: Meta::service("test", "web", 8080), queue, target };
    let rule = |path: &str, ratio| HttpRule {
        matches: vec![RequestMatch { path: Some(PathMatch::Prefix(path.into())), ..RequestMatch::default() }],
        filters: vec![Filter::Fail(Failure { status: 418, message: "by the test".into(), ratio })],
        backends: Distribution::First(vec![RouteBackend { backend: backend.clone(), filters: Vec::new() }]),
        ..HttpRule::default()
    };
    let route = HttpRoute {
        meta: Meta::named("faults"),
        hosts: Vec::new(),
        rules: vec![rule("/always", (1, 1)), rule("/half", (1, 2)), rule("/never", (0, 1))],
        grpc: false,
    };
    let http = HttpRoutes { routes: vec![route], breaker: None };
    let protocol = OutboundProtocol::Detect {
        timeout: Duration::from_secs(1),
        http1: http.clone(),
        http2: http,
        opaque: Vec::new(),
    };
    let stop = Stop::new();
    let policy =
        Policy { server: None, outbound: Some(OutboundPolicy { meta: Meta::service("test", "web", 8080), protocol }) };
    let addr = policy.serve(&stop).await;
    let spec = mesh.workload("shop").calls(WEB).set("policy-addr", &addr.to_string()).set("policy-name", "");
    let shop = spec.start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    let answer = client.get("web", "/always").await;
    assert_eq!((answer.status, answer.header("l5d-proxy-error")), (418, "injected: by the test"), "{answer:?}");
    assert_eq!(client.get("web", "/never").await.status, 200);
    let mut failed = 0;
    for _ in 0..200 {
        failed += usize::from(client.get("web", "/half").await.status == 418);
    }
    assert!((58..=142).contains(&failed), "{failed} of 200, six standard deviations (7) around 100");
    let answer = H2::connect(shop.to(WEB)).await.send(grpc_request("web", "/always", empty())).await.unwrap();
    assert_eq!((answer.status, answer.grpc(), answer.reason()), (200, Some(2), "injected"), "{answer:?}");
    assert_eq!(app.count(), 1 + 200 - failed);
}
