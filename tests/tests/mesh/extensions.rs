//! What Linkerd's API cannot carry: rewrites, mirrors, delays; and that a route is never applied without its extension.

use crate::WEB;
use gossamer_api::policy::{
    Backend, BackendTarget, Distribution, Extension, Filter, HttpRoute, HttpRoutes, HttpRule, Load, Meta,
    OutboundPolicy, OutboundProtocol, PathMatch, PathModifier, Queue, RequestMatch, Rewrite, RouteBackend,
};
use gossamer_api::process::stop::Stop;
use gossamer_tests::app::{self, Http, empty};
use gossamer_tests::client::{Answer, H1, H2, post_request};
use gossamer_tests::expect::{DEADLINE, Metrics, becomes, eventually};
use gossamer_tests::mesh::{Mesh, Proxy};
use gossamer_tests::policy::Policy;
use http::Request;
use std::time::{Duration, Instant};

/// `shop` calls `web`; beside it there is `shadow`.
struct Shop {
    shop: Proxy,
    web: Http,
    shadow: Http,
    _services: [Proxy; 2],
    mesh: Mesh,
}

async fn shop(yaml: &str) -> Shop {
    let mesh = Mesh::start().await;
    let (web, shadow) = (app::http("web"), app::http("shadow"));
    let service = async |name, app: &Http| mesh.workload(name).serve(8080, app.handler()).start().await;
    let services = [service("web", &web).await, service("shadow", &shadow).await];
    mesh.apply("routes.yaml", yaml);
    let shop = mesh.workload("shop").calls(WEB).start().await;
    Shop { shop, web, shadow, _services: services, mesh }
}

impl Shop {
    async fn get(&self, path: &str) -> Answer {
        let request = Request::builder().uri(path).header("host", "web").body(empty()).unwrap();
        H1::connect(self.shop.to(WEB)).await.send(request).await.unwrap()
    }

    /// Copies by what became of them.
    async fn mirrored(&self, result: &str) -> f64 {
        let labels = [("result", result), ("route_name", "mirror"), ("backend_name", "shadow")];
        Metrics::of(self.shop.admin()).await.sum("outbound_http_route_mirror_requests_total", &labels)
    }
}

const REWRITES: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: rewrite, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /prefix/one } }]
      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /one } } }]
    - matches: [{ path: { type: PathPrefix, value: /strip } }]
      filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } } }]
    - matches: [{ path: { type: PathPrefix, value: /full } }]
      filters:
        - type: URLRewrite
          urlRewrite: { hostname: other.example, path: { type: ReplaceFullPath, replaceFullPath: /all } }
        - type: RequestHeaderModifier
          requestHeaderModifier: { set: [{ name: x-set, value: new }] }
    - matches: [{ path: { type: PathPrefix, value: /backend } }]
      backendRefs:
        - name: web
          port: 8080
          filters: [{ type: URLRewrite, urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /behind } } }]
    - {}
"#;

#[tokio::test]
async fn host_and_path_are_rewritten() {
    let shop = shop(REWRITES).await;
    for (path, expected) in [
        ("/prefix/one/two", "/one/two"),
        ("/prefix/onetwo", "/prefix/onetwo"),
        ("/strip/three?q=1", "/three?q=1"),
        ("/strip", "/"),
        ("/full/one?q=1", "/all?q=1"),
        ("/backend/x", "/behind/x"),
        ("/else", "/else"),
    ] {
        let answer = shop.get(path).await;
        let seen = shop.web.seen().pop().unwrap();
        assert_eq!(seen.uri, expected, "{path}: {answer:?}");
        let full = path.starts_with("/full");
        let (host, set) = (&seen.headers["host"], seen.headers.get("x-set"));
        assert_eq!(
            (host.to_str().unwrap(), set.is_some()),
            (if full { "other.example" } else { "web" }, full),
            "{path}"
        );
    }
    // The same on HTTP/2.
    let client = H2::connect(shop.shop.to(WEB)).await;
    client.get("web", "/full/x").await;
    let seen = shop.web.seen().pop().unwrap();
    assert!(seen.uri.ends_with("other.example/all"), "{seen:?}");
}

#[tokio::test]
async fn a_changed_rewrite_is_never_applied_half() {
    let route = |version: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: web, namespace: test }}\nspec:\n  \
             parentRefs: [{{ group: '', kind: Service, name: web }}]\n  rules:\n    \
             - filters: [{{ type: URLRewrite, urlRewrite: {{ path: {{ type: ReplaceFullPath, replaceFullPath: /{version} }} }} }}]\n"
        )
    };
    let shop = shop(&route("v0")).await;
    let mut client = H1::connect(shop.shop.to(WEB)).await;
    let mut asked = 0;
    for version in ["v1", "v2", "v3"] {
        shop.mesh.write("routes.yaml", &route(version));
        let start = Instant::now();
        loop {
            assert_eq!(client.get("web", "/unwritten").await.status, 200);
            asked += 1;
            if shop.web.seen().pop().unwrap().uri.ends_with(version) {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "{version} is never applied");
            tokio::task::yield_now().await;
        }
    }
    let seen = shop.web.seen();
    assert_eq!(seen.len(), asked);
    assert!(seen.iter().all(|seen| seen.uri.starts_with("/v")), "{seen:?}");
}

/// A control plane that names an extension and never tells it, as one that is older or Linkerd's would not.
#[tokio::test]
async fn a_rewrite_that_nobody_tells_lets_nothing_pass() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let queue = Queue { capacity: 100, failfast: Duration::from_secs(3) };
    let load = Load { default_rtt: Duration::from_millis(30), decay: Duration::from_secs(10), penalty: None };
    let target = BackendTarget::Balance { authority: "web.test.svc.cluster.local:8080".into(), load };
    let backend = Backend { meta: Meta::service("test", "web", 8080), queue, target };
    let rewrite = Extension::Rewrite(Rewrite { host: None, path: Some(PathModifier::Full("/x".into())) });
    let rule = |path: &str, filters| HttpRule {
        matches: vec![RequestMatch { path: Some(PathMatch::Prefix(path.into())), ..RequestMatch::default() }],
        filters,
        backends: Distribution::First(vec![RouteBackend { backend: backend.clone(), filters: Vec::new() }]),
        ..HttpRule::default()
    };
    let rules = vec![rule("/rewritten", vec![Filter::Extension(Box::new(rewrite))]), rule("/plain", Vec::new())];
    let route = HttpRoute { meta: Meta::named("r"), hosts: Vec::new(), rules, grpc: false };
    let protocol = OutboundProtocol::Http1(HttpRoutes { routes: vec![route], breaker: None });
    let outbound = Some(OutboundPolicy { meta: Meta::service("test", "web", 8080), protocol });
    let stop = Stop::new();
    let addr = Policy { server: None, outbound }.serve(&stop).await;
    let spec = mesh.workload("shop").calls(WEB).set("policy-addr", &addr.to_string()).set("policy-name", "");
    let shop = spec.start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    let answer = client.get("web", "/rewritten").await;
    assert_eq!((answer.status, answer.reason()), (503, "extension"), "{answer:?}");
    assert_eq!(client.get("web", "/plain").await.status, 200);
    assert_eq!(app.count(), 1);
}

const MIRROR: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: mirror, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ path: { type: PathPrefix, value: /status } }]
      filters: [{ type: RequestMirror, requestMirror: { backendRef: { name: shadow, port: 8080 }, percent: 0 } }]
    - matches: [{ path: { type: PathPrefix, value: /half } }]
      filters:
        - { type: RequestMirror, requestMirror: { backendRef: { name: shadow, port: 8080 }, fraction: { numerator: 1, denominator: 2 } } }
    - filters:
        - { type: RequestMirror, requestMirror: { backendRef: { name: shadow, port: 8080 } } }
        - { type: RequestMirror, requestMirror: { backendRef: { name: nobody, port: 8080 } } }
"#;

#[tokio::test]
async fn a_mirror_gets_a_copy_and_nobody_its_answer() {
    let shop = shop(MIRROR).await;
    let mut client = H1::connect(shop.shop.to(WEB)).await;
    let answer = client.send(post_request("web", "/echo?q=1", "hello")).await.unwrap();
    assert_eq!((answer.status, answer.header("x-app"), answer.text().as_str()), (200, "web", "hello"), "{answer:?}");
    becomes(1, || async { shop.shadow.count() }).await;
    let (real, copy) = (shop.web.seen().pop().unwrap(), shop.shadow.seen().pop().unwrap());
    assert_eq!((&real.method, &real.uri, &real.headers["host"]), (&copy.method, &copy.uri, &copy.headers["host"]));
    assert_eq!(copy.headers["content-length"], "5");
    becomes(1.0, || shop.mirrored("same")).await;

    // Not a share of nothing, and about half of a half.
    for _ in 0..100 {
        assert_eq!(client.get("web", "/status/200").await.status, 200);
        assert_eq!(client.get("web", "/half").await.status, 200);
    }
    // Six standard deviations (5) around 50.
    eventually("copies are all counted", || async { (shop.mirrored("same").await >= 21.0).then_some(()) }).await;
    let copies = shop.shadow.seen();
    let half = copies.iter().filter(|seen| seen.uri == "/half").count();
    assert!(half <= 80 && copies.iter().all(|seen| !seen.uri.starts_with("/status")), "{half} of {}", copies.len());

    let client = H2::connect(shop.shop.to(WEB)).await;
    let answer = client.grpc("web", "/a.B/echo", b"x").await;
    assert_eq!((answer.header("x-app"), answer.grpc()), ("web", Some(0)));
    eventually("the call is copied", || async {
        shop.shadow.seen().iter().any(|seen| seen.uri.ends_with("/a.B/echo")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_mirror_that_is_slow_large_or_gone_harms_nobody() {
    let mut shop = shop(MIRROR).await;
    // A body that is too long is not kept.
    let long = vec![b'x'; 200_000];
    let mut client = H1::connect(shop.shop.to(WEB)).await;
    let answer = client.send(post_request("web", "/echo", long.clone())).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, long.len()));
    becomes(1.0, || shop.mirrored("skipped")).await;
    assert_eq!(shop.shadow.count(), 0);
    // One that never answers holds a place for a while; more than there are places are not copied.
    let client = H2::connect(shop.shop.to(WEB)).await;
    shop._services[1].kill().await;
    for _ in 0..20 {
        assert_eq!(client.get("web", "/").await.status, 200);
    }
    eventually("copies fail", || async { (shop.mirrored("failed").await >= 1.0).then_some(()) }).await;
}

#[tokio::test]
async fn a_grpc_route_mirrors_and_changes_response_headers() {
    let shop = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: { name: mirror, namespace: test }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules:
    - matches: [{ method: { service: shop.Orders } }]
      filters:
        - { type: RequestMirror, requestMirror: { backendRef: { name: shadow, port: 8080 } } }
        - { type: ResponseHeaderModifier, responseHeaderModifier: { set: [{ name: x-served, value: mesh }] } }
"#,
    )
    .await;
    let client = H2::connect(shop.shop.to(WEB)).await;
    let answer = client.grpc("web", "/shop.Orders/Place", b"x").await;
    assert_eq!((answer.header("x-app"), answer.grpc()), ("web", Some(0)), "{answer:?}");
    assert_eq!(answer.header("x-served"), "mesh");
    becomes(1, || async { shop.shadow.count() }).await;
    becomes(1.0, || shop.mirrored("same")).await;
}

#[tokio::test]
async fn faults_are_injected_by_annotation() {
    let shop = shop(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: faults
  namespace: test
  annotations:
    fault.gossamer.io/delay: 300ms
    fault.gossamer.io/abort: "503"
    fault.gossamer.io/abort-percent: "0"
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules: [{ matches: [{ path: { type: PathPrefix, value: /slow } }] }]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { name: none, namespace: test, annotations: { fault.gossamer.io/abort: "418" } }
spec:
  parentRefs: [{ group: "", kind: Service, name: web, port: 8080 }]
  rules: [{}]
"#,
    )
    .await;
    let start = Instant::now();
    assert_eq!(shop.get("/slow/0").await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    let answer = shop.get("/").await;
    assert_eq!((answer.status, answer.reason()), (418, "injected"), "{answer:?}");
}

#[tokio::test]
async fn a_backend_of_a_route_has_filters_of_its_own() {
    let route = |kind: &str, part: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{ name: mirror, namespace: test }}\n\
             spec:\n  parentRefs: [{{ group: '', kind: Service, name: web, port: 8080 }}]\n  rules:\n    \
             - matches: [{part}]\n      backendRefs:\n        - name: web\n          port: 8080\n          filters:\n            \
             - {{ type: RequestMirror, requestMirror: {{ backendRef: {{ name: shadow, port: 8080 }} }} }}\n            \
             - {{ type: ResponseHeaderModifier, responseHeaderModifier: {{ set: [{{ name: x-served, value: mesh }}] }} }}\n"
        )
    };
    let http = shop(&route("HTTPRoute", "{ path: { type: PathPrefix, value: / } }")).await;
    let answer = http.get("/one").await;
    assert_eq!((answer.header("x-app"), answer.header("x-served")), ("web", "mesh"), "{answer:?}");
    becomes(1, || async { http.shadow.count() }).await;
    becomes(1.0, || http.mirrored("same")).await;

    let grpc = shop(&route("GRPCRoute", "{ method: { service: shop.Orders } }")).await;
    let answer = H2::connect(grpc.shop.to(WEB)).await.grpc("web", "/shop.Orders/echo", b"x").await;
    assert_eq!((answer.header("x-served"), answer.grpc()), ("mesh", Some(0)), "{answer:?}");
    becomes(1, || async { grpc.shadow.count() }).await;
}
