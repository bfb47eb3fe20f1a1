//! Stories of the index: objects as people write them, and what proxies are told.

mod cluster;

use super::*;
use gossamer_api::authorization::{Authentication, InboundProtocol, Server};
use gossamer_api::endpoint::ProtocolHint;
use gossamer_api::kubernetes::parse_yaml;
use gossamer_api::policy::*;
use proptest::prelude::*;
use std::time::Duration;

fn index(text: &str) -> Index {
    let mut index = Index::new(Cluster::default());
    add(&mut index, text);
    index
}

fn add(index: &mut Index, text: &str) -> BTreeSet<Subject> {
    let objects = parse_yaml(text).unwrap_or_else(|errors| panic!("{errors:?}"));
    objects.into_iter().flat_map(|(_, object)| index.apply(object)).collect()
}

fn service(name: &str, ip: &str, ports: &str, annotations: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: demo, annotations: {{{annotations}}}}}\n\
         spec: {{clusterIP: {ip}, ports: [{ports}], selector: {{app: {name}}}}}\n"
    )
}

fn pod(name: &str, app: &str, ip: &str, meshed: bool) -> String {
    let mesh = if meshed { ", gossamer.io/control-plane-ns: gossamer" } else { "" };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: demo, labels: {{app: {app}{mesh}}}}}\n\
         spec:\n  serviceAccountName: {app}\n  containers:\n  - name: main\n    ports: [{{name: http, containerPort: 8080}}]\n    \
         livenessProbe: {{httpGet: {{path: /healthz, port: http}}}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
    )
}

fn demo() -> Index {
    index(
        &[
            service("web", "10.96.0.1", "{port: 80, targetPort: http}, {port: 5432}", ""),
            service("v2", "10.96.0.2", "{port: 80, targetPort: http}", ""),
            pod("web-0", "web", "10.1.0.1", true),
            pod("web-1", "web", "10.1.0.2", false),
            pod("v2-0", "v2", "10.1.0.3", true),
        ]
        .concat(),
    )
}

fn ask(index: &Index, addr: &str) -> OutboundPolicy {
    ask_from(index, addr, "demo")
}

fn ask_from(index: &Index, addr: &str, namespace: &str) -> OutboundPolicy {
    let source = Source { namespace: namespace.into(), ..Source::default() };
    let asked = index.resolve(&Target::Addr(addr.parse().unwrap()), namespace).unwrap();
    index.outbound(&asked, &source).unwrap()
}

fn http(policy: &OutboundPolicy) -> &HttpRoutes {
    match &policy.protocol {
        OutboundProtocol::Detect { http2, .. } => http2,
        OutboundProtocol::Http1(routes) | OutboundProtocol::Http2(routes) | OutboundProtocol::Grpc(routes) => routes,
        other => panic!("{other:?}"),
    }
}

fn targets(rule: &HttpRule) -> Vec<String> {
    let name = |backend: &RouteBackend| match &backend.backend.target {
        BackendTarget::Balance { authority, .. } => authority.clone(),
        BackendTarget::Forward(endpoint) => endpoint.addr.to_string(),
        BackendTarget::Invalid => format!("invalid {}", backend.backend.meta),
    };
    rule.backends.backends().map(name).collect()
}

// ---- outbound ------------------------------------------------------------------------------------------------------

#[test]
fn a_service_is_detected_and_balanced_with_a_breaker() {
    let policy = ask(&demo(), "10.96.0.1:80");
    assert_eq!(policy.meta, Meta::service("demo", "web", 80));
    let OutboundProtocol::Detect { http1, http2, opaque, .. } = &policy.protocol else { panic!("{policy:?}") };
    assert_eq!(http1, http2);
    assert_eq!(http1.breaker.unwrap().max_failures, 7);
    assert_eq!(http1.routes[0].meta, Meta::named("http"));
    assert_eq!(targets(&http1.routes[0].rules[0]), ["web.demo.svc.cluster.local:80"]);
    assert_eq!(http1.routes[0].rules[0].retry, None);
    assert_eq!(opaque[0].meta, Meta::named("opaque"));
}

#[test]
fn ports_speak_what_is_declared() {
    for (port, annotations, protocol) in [
        ("{port: 80}", "", "Detect"),
        ("{port: 80, appProtocol: http}", "", "Http1"),
        ("{port: 80, appProtocol: kubernetes.io/h2c}", "", "Http2"),
        ("{port: 80, name: grpc-api}", "", "Grpc"),
        ("{port: 80, name: http-web}", "", "Detect"),
        ("{port: 80, name: tcp}", "", "Opaque"),
        ("{port: 80, appProtocol: linkerd.io/opaque}", "", "Opaque"),
        ("{port: 3306}", "", "Opaque"),
        ("{port: 3306, appProtocol: http}", "", "Http1"),
        ("{port: 3306}", "config.linkerd.io/opaque-ports: '80'", "Detect"),
        ("{port: 80}", "config.linkerd.io/opaque-ports: '80-90'", "Opaque"),
        ("{port: 80, appProtocol: http}", "config.gossamer.io/opaque-ports: '80'", "Opaque"),
    ] {
        let index = index(&service("web", "10.96.0.1", port, annotations));
        let number = if port.contains("3306") { 3306 } else { 80 };
        let policy = ask(&index, &format!("10.96.0.1:{number}"));
        let debug = format!("{:?}", policy.protocol);
        assert!(debug.starts_with(protocol), "{port} {annotations}: {debug}");
    }
}

#[test]
fn a_port_that_the_service_does_not_have_is_forbidden() {
    let policy = ask(&demo(), "10.96.0.1:81");
    let OutboundProtocol::Opaque(routes) = &policy.protocol else { panic!("{policy:?}") };
    assert_eq!(routes[0].rules[0].refuse, Some(Refuse::Forbidden));
}

#[test]
fn a_pod_is_reached_directly_with_its_identity() {
    let index = demo();
    let policy = ask(&index, "10.1.0.1:8080");
    let backend = http(&policy).routes[0].rules[0].backends.backends().next().unwrap().clone();
    let BackendTarget::Forward(endpoint) = backend.backend.target else { panic!() };
    let identity = "web.demo.serviceaccount.identity.gossamer.cluster.local";
    assert_eq!(endpoint.tls.unwrap().identity.as_str(), identity);
    assert_eq!((endpoint.hint, endpoint.transport_port), (ProtocolHint::Http2, Some(4143)));
    // And by name.
    let asked = index.resolve(&Target::Authority("web-0.web.demo.svc.cluster.local:80".into()), "").unwrap();
    assert_eq!(
        targets(&http(&index.outbound(&asked, &Source::default()).unwrap()).routes[0].rules[0]),
        ["10.1.0.1:8080"]
    );
}

#[test]
fn an_unknown_address_is_forwarded() {
    let policy = ask(&demo(), "93.184.216.34:443");
    assert_eq!(policy.meta, Meta::named("egress-fallback"));
    assert_eq!(targets(&http(&policy).routes[0].rules[0]), ["93.184.216.34:443"]);
}

#[test]
fn a_name_that_is_no_service_is_nothing() {
    let index = demo();
    assert_eq!(index.resolve(&Target::Authority("example.com:80".into()), "demo"), None);
    let asked = index.resolve(&Target::Authority("later.demo.svc.cluster.local:80".into()), "demo").unwrap();
    assert_eq!(index.outbound(&asked, &Source::default()), None);
}

const ROUTE: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: split, namespace: NS}\nspec:\n  \
parentRefs: [{group: '', kind: Service, name: web, namespace: demo, port: 80}]\n  rules:\n  - matches: [{path: {value: /api}, \
headers: [{name: X-User, value: bob}]}]\n    filters: [{type: RequestMirror}, {type: RequestHeaderModifier, \
requestHeaderModifier: {set: [{name: a, value: b}]}}]\n    backendRefs: [{name: web, namespace: demo, port: 80, weight: 9}, \
{name: v2, namespace: demo, port: 80}, {name: gone, namespace: demo, port: 80}]\n    timeouts: {request: 10s, backendRequest: 2s}\n    \
retry: {codes: [503], attempts: 2, backoff: 100ms}\n  - {}\n";

#[test]
fn a_route_splits_and_an_empty_filter_is_reported() {
    let mut index = demo();
    add(&mut index, &ROUTE.replace("NS", "demo"));
    let policy = ask(&index, "10.96.0.1:80");
    let routes = &http(&policy).routes;
    assert_eq!(routes[0].meta.to_string(), "HTTPRoute/demo/split");
    let rule = &routes[0].rules[0];
    assert_eq!(
        targets(rule),
        ["web.demo.svc.cluster.local:80", "v2.demo.svc.cluster.local:80", "invalid Service/demo/gone:80"]
    );
    assert_eq!(rule.filters.len(), 1);
    assert_eq!(rule.matches[0].headers[0].name, "x-user");
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(10)));
    let retry = rule.retry.as_ref().unwrap();
    assert_eq!((retry.limit, retry.timeout), (2, Some(Duration::from_secs(2))));
    assert_eq!(targets(&routes[0].rules[1]), ["web.demo.svc.cluster.local:80"]);
    let key = index.routes.keys().next().unwrap();
    assert!(index.problems(key)[0].contains("RequestMirror"), "{:?}", index.problems(key));
    // Only this port.
    assert!(matches!(ask(&index, "10.96.0.1:5432").protocol, OutboundProtocol::Opaque(_)));
}

#[test]
fn a_backend_that_comes_later_is_used_then() {
    let mut index = demo();
    add(&mut index, &ROUTE.replace("NS", "demo"));
    let changed = add(&mut index, &service("gone", "10.96.0.9", "{port: 80}", ""));
    assert!(changed.contains(&Subject::Address("10.96.0.1".parse().unwrap())), "{changed:?}");
    assert_eq!(targets(&http(&ask(&index, "10.96.0.1:80")).routes[0].rules[0])[2], "gone.demo.svc.cluster.local:80");
}

#[test]
fn rewrites_and_mirrors_are_extensions_and_what_is_unknown_fails() {
    let mut index = demo();
    add(
        &mut index,
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: demo}\nspec:\n  \
         parentRefs: [{group: '', kind: Service, name: web, port: 80}]\n  rules:\n  - filters:\n    \
         - {type: URLRewrite, urlRewrite: {hostname: h, path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}\n    \
         - {type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}, percent: 20}}\n    \
         - {type: RequestMirror, requestMirror: {backendRef: {name: later, port: 80}, fraction: {numerator: 1, denominator: 3}}}\n    \
         - {type: ExternalAuth}\n",
    );
    let policy = ask(&index, "10.96.0.1:80");
    let filters = &http(&policy).routes[0].rules[0].filters;
    let [Filter::Extension(rewrite), Filter::Extension(mirror), Filter::Fail(failure)] = &filters[..] else {
        panic!("{filters:?}")
    };
    let path = Some(PathModifier::Prefix("/x".into()));
    assert_eq!(**rewrite, Extension::Rewrite(Rewrite { host: Some("h".into()), path }));
    let Extension::Mirror(mirror) = &**mirror else { panic!("{mirror:?}") };
    assert_eq!((mirror.backend.meta.to_string(), mirror.ratio), ("Service/demo/v2:80".into(), (20, 100)));
    assert_eq!((failure.status, failure.ratio), (500, (1, 1)));
    assert!(failure.message.contains("ExternalAuth"), "{failure:?}");
    // The other mirror's service comes later.
    let changed = add(&mut index, &service("later", "10.96.0.9", "{port: 80}", ""));
    assert!(changed.contains(&Subject::Address("10.96.0.1".parse().unwrap())), "{changed:?}");
    assert_eq!(http(&ask(&index, "10.96.0.1:80")).routes[0].rules[0].filters.len(), 4);
}

#[test]
fn a_consumer_route_counts_for_its_namespace_only() {
    let mut index = demo();
    add(&mut index, &ROUTE.replace("NS", "other"));
    assert_eq!(http(&ask_from(&index, "10.96.0.1:80", "demo")).routes[0].meta, Meta::named("http"));
    assert_eq!(http(&ask_from(&index, "10.96.0.1:80", "other")).routes[0].meta.to_string(), "HTTPRoute/other/split");
}

#[test]
fn grpc_routes_win_over_http_routes() {
    let mut index = demo();
    add(&mut index, &ROUTE.replace("NS", "demo"));
    add(
        &mut index,
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g, namespace: demo}\nspec:\n  \
         parentRefs: [{group: core, kind: Service, name: web}]\n  rules: [{matches: [{method: {service: a.B, method: C}}]}]\n",
    );
    let policy = ask(&index, "10.96.0.1:80");
    let OutboundProtocol::Grpc(routes) = &policy.protocol else { panic!("{policy:?}") };
    let path = PathMatch::Rpc { service: "a.B".into(), method: "C".into() };
    assert_eq!(routes.routes[0].rules[0].matches[0].path, Some(path));
}

#[test]
fn service_annotations_are_for_the_default_routes() {
    let notes =
        "retry.linkerd.io/http: 5xx, timeout.gossamer.io/request: 3s, balancer.linkerd.io/failure-accrual: none";
    let index = index(&service("web", "10.96.0.1", "{port: 80}", notes));
    let policy = ask(&index, "10.96.0.1:80");
    let rule = &http(&policy).routes[0].rules[0];
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(3)));
    assert_eq!(rule.retry.as_ref().unwrap().statuses, [(500, 599)]);
    assert_eq!(http(&policy).breaker, None);
}

// ---- endpoints -----------------------------------------------------------------------------------------------------

#[test]
fn endpoints_tell_meshed_from_unmeshed() {
    let set = demo().endpoints(&Name::new("demo", "web"), 80, None, &Source::default());
    let meshed: Vec<_> = set.endpoints.iter().map(|(addr, e)| (addr.to_string(), e.tls.is_some(), e.hint)).collect();
    assert_eq!(
        meshed,
        [
            ("10.1.0.1:8080".to_string(), true, ProtocolHint::Http2),
            ("10.1.0.2:8080".to_string(), false, ProtocolHint::Unknown)
        ]
    );
    assert_eq!(set.labels["service"], "web");
    let labels = &set.endpoints.values().next().unwrap().labels;
    assert_eq!((labels["pod"].as_str(), labels["serviceaccount"].as_str()), ("web-0", "web"));
}

#[test]
fn opaque_ports_are_opaque_to_the_end() {
    let mut index = demo();
    add(&mut index, &service("web", "10.96.0.1", "{port: 80, targetPort: http, name: tcp-x}", ""));
    let set = index.endpoints(&Name::new("demo", "web"), 80, None, &Source::default());
    assert_eq!(set.endpoints.values().next().unwrap().hint, ProtocolHint::Opaque);
    let server = index.server(&Name::new("demo", "web-0"), 8080).unwrap();
    assert_eq!(server.protocol, InboundProtocol::Opaque);
}

#[test]
fn slices_are_believed_over_the_selector() {
    let mut index = demo();
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-a, namespace: demo, labels: \
                 {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: '', port: 8080}]\nendpoints:\n\
                 - {addresses: [10.1.0.1], zone: a, targetRef: {kind: Pod, name: web-0}, hints: {forZones: [{name: a}]}}\n\
                 - {addresses: [10.1.0.9], zone: b, conditions: {ready: true}, hints: {forZones: [{name: b}]}}\n\
                 - {addresses: [10.1.0.8], conditions: {ready: false}}\n";
    add(&mut index, &slice.replace("name: ''", "name: p"));
    add(&mut index, &service("web", "10.96.0.1", "{port: 80, name: p, targetPort: http}, {port: 81, name: q}", ""));
    let addrs = |zone: &str| {
        let source = Source { zone: zone.into(), ..Source::default() };
        let set = index.endpoints(&Name::new("demo", "web"), 80, None, &source);
        set.endpoints.iter().map(|(addr, e)| (addr.to_string(), e.labels["zone_locality"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(
        addrs(""),
        [("10.1.0.1:8080".into(), "unknown".into()), ("10.1.0.9:8080".into(), "unknown".to_string())]
    );
    assert_eq!(addrs("b"), [("10.1.0.9:8080".into(), "local".to_string())]);
    // Nobody is meant for this zone: all of them.
    assert_eq!(addrs("c").len(), 2);
}

#[test]
fn what_is_not_ready_is_no_endpoint() {
    let mut index = demo();
    let text = pod("web-0", "web", "10.1.0.1", true)
        .replace("podIP: 10.1.0.1", "podIP: 10.1.0.1, conditions: [{type: Ready, status: 'False'}]");
    let changed = add(&mut index, &text);
    assert!(changed.contains(&Subject::Endpoints(Name::new("demo", "web"))));
    assert_eq!(index.endpoints(&Name::new("demo", "web"), 80, None, &Source::default()).endpoints.len(), 1);
}

// ---- inbound -------------------------------------------------------------------------------------------------------

fn server(index: &Index) -> Server {
    index.server(&Name::new("demo", "web-0"), 8080).unwrap()
}

/// Who may send a request, as a proxy decides it: the most specific route, its permissions and the server's.
fn allowed(server: &Server, identity: Option<&str>, ip: &str, method: &str, path: &str) -> Option<String> {
    let InboundProtocol::Detect { http, .. } = &server.protocol else { panic!("{server:?}") };
    let score = |m: &RequestMatch| {
        let method_ok = m.method.as_deref().is_none_or(|m| m == method);
        let length = match m.path.as_ref()? {
            PathMatch::Exact(exact) => (exact == path).then_some(10_000)?,
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix).filter(|r| r.is_empty() || r.starts_with('/')).map(|_| prefix.len())?
            }
            PathMatch::Rpc { service, method } => {
                let (of, called) = path.strip_prefix('/')?.split_once('/')?;
                let fits = (service.is_empty() || service == of) && (method.is_empty() || method == called);
                fits.then_some(if service.is_empty() { 0 } else { 1 + service.len() + method.len() })?
            }
            PathMatch::Regex(_) => return None,
        };
        method_ok.then_some((length, m.method.is_some()))
    };
    let best = http.routes.iter().flat_map(|route| route.rules[0].matches.iter().map(move |m| (m, route)));
    // The first of equals wins.
    let (_, route) = best.filter_map(|(m, r)| Some((score(m)?, r))).rev().max_by_key(|(score, _)| *score)?;
    let allows = |a: &&gossamer_api::authorization::Authorization| {
        let from = a.networks.iter().any(|n| n.contains(ip.parse().unwrap()));
        from && match (&a.authentication, identity) {
            (Authentication::Unauthenticated, _) => true,
            (Authentication::Identities { names, suffixes }, Some(id)) => {
                names.iter().any(|n| n == id) || suffixes.iter().any(|s| id.ends_with(s.as_str()))
            }
            _ => false,
        }
    };
    route.authorizations.iter().chain(&server.authorizations).find(allows).map(|a| a.meta.to_string())
}

fn id(account: &str) -> String {
    format!("{account}.demo.serviceaccount.identity.gossamer.cluster.local")
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: demo}}\n\
         spec: {{selector: {{matchLabels: {{app: web}}}}, ports: [http], {spec}}}\n"
    )
}

#[test]
fn by_default_everybody_gets_in_as_linkerd_says_it() {
    let index = demo();
    let server = server(&index);
    assert_eq!(server.meta, Meta::named("all-unauthenticated"));
    assert_eq!(server.labels["kind"], "default");
    assert_eq!(server.authorizations[0].networks.len(), 2);
    assert_eq!(allowed(&server, None, "1.2.3.4", "GET", "/x").unwrap(), "default/all-unauthenticated");
    assert_eq!(index.server(&Name::new("demo", "nobody"), 80), None);
}

#[test]
fn defaults_by_annotation() {
    let mut index = demo();
    let namespace = |policy: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, annotations: {{config.linkerd.io/default-inbound-policy: {policy}}}}}\n"
        )
    };
    let changed = add(&mut index, &namespace("deny"));
    assert!(changed.contains(&Subject::Workload(Name::new("demo", "web-0"))));
    assert_eq!(allowed(&server(&index), Some(&id("v2")), "10.0.0.1", "GET", "/"), None);
    // Health checks always.
    assert_eq!(allowed(&server(&index), None, "10.0.0.1", "GET", "/healthz").unwrap(), "default/probe");
    add(&mut index, &namespace("cluster-authenticated"));
    assert!(allowed(&server(&index), Some(&id("v2")), "10.0.0.1", "GET", "/").is_some());
    assert!(allowed(&server(&index), Some(&id("v2")), "8.8.8.8", "GET", "/").is_none());
    assert!(allowed(&server(&index), None, "10.0.0.1", "GET", "/").is_none());
}

#[test]
fn an_allow_policy_lets_in_whom_it_lists_and_nobody_else() {
    let mut index = demo();
    let changed =
        add(&mut index, &policy("a", "from: [{serviceAccounts: [{name: v2}], networks: [{cidr: 10.0.0.0/8}]}]"));
    assert_eq!(
        changed,
        [Subject::Workload(Name::new("demo", "web-0")), Subject::Workload(Name::new("demo", "web-1"))].into()
    );
    let server = server(&index);
    assert_eq!(server.labels["kind"], "authorizationpolicy");
    assert_eq!(allowed(&server, Some(&id("v2")), "10.0.0.1", "GET", "/").unwrap(), "authorizationpolicy/demo/a");
    assert_eq!(allowed(&server, Some(&id("v2")), "11.0.0.1", "GET", "/"), None);
    assert_eq!(allowed(&server, Some(&id("x")), "10.0.0.1", "GET", "/"), None);
    assert_eq!(allowed(&server, None, "10.0.0.1", "GET", "/"), None);
    // Another port of the same workload.
    let other = index.server(&Name::new("demo", "web-0"), 9090).unwrap();
    assert!(allowed(&other, None, "10.0.0.1", "GET", "/").is_some());
}

#[test]
fn an_allow_policy_for_nobody_lets_nobody_in() {
    let mut index = demo();
    add(&mut index, &policy("a", "from: []"));
    assert_eq!(allowed(&server(&index), Some(&id("v2")), "10.0.0.1", "GET", "/"), None);
    add(&mut index, &policy("a", "from: [{identities: ['*x']}]"));
    assert_eq!(allowed(&server(&index), Some(&id("v2")), "10.0.0.1", "GET", "/"), None);
    add(&mut index, &policy("a", "from: [{}]"));
    assert!(allowed(&server(&index), None, "10.0.0.1", "GET", "/").is_some());
}

#[test]
fn requests_are_allowed_in_part() {
    let mut index = demo();
    add(&mut index, &policy("all", "from: [{serviceAccounts: [{name: admin}]}]"));
    add(&mut index, &policy("part", "from: [{namespaces: [demo]}], to: [{methods: [GET], paths: ['/api/*']}]"));
    let server = server(&index);
    let may = |who: &str, method, path| allowed(&server, Some(&id(who)), "10.0.0.1", method, path).is_some();
    assert!(may("admin", "POST", "/api/x") && may("admin", "GET", "/api/x") && may("admin", "GET", "/"));
    assert!(may("v2", "GET", "/api/x") && may("v2", "GET", "/api"));
    assert!(!may("v2", "POST", "/api/x") && !may("v2", "GET", "/apis") && !may("v2", "GET", "/"));
}

#[test]
fn a_policy_may_name_a_service() {
    let mut index = demo();
    add(&mut index, &policy("a", "from: []").replace("selector: {matchLabels: {app: web}}", "service: v2"));
    assert!(allowed(&server(&index), None, "10.0.0.1", "GET", "/").is_some());
    add(&mut index, &policy("a", "from: []").replace("selector: {matchLabels: {app: web}}", "service: web"));
    assert!(allowed(&server(&index), None, "10.0.0.1", "GET", "/").is_none());
}

#[test]
fn deny_wins_over_everything() {
    let mut index = demo();
    add(&mut index, &pod("evil-0", "evil", "10.1.0.66", true));
    add(
        &mut index,
        &policy("d", "action: Deny, from: [{serviceAccounts: [{name: evil}]}, {networks: [{cidr: 192.168.0.0/16}]}]"),
    );
    let denied = server(&index);
    assert!(allowed(&denied, Some(&id("evil")), "10.0.0.1", "GET", "/").is_none());
    assert!(allowed(&denied, Some(&id("v2")), "10.0.0.1", "GET", "/").is_some());
    assert!(allowed(&denied, Some(&id("v2")), "192.168.1.1", "GET", "/").is_none());
    // Who can't be told from the denied one stays out.
    assert!(allowed(&denied, None, "10.0.0.1", "GET", "/").is_none());
    // Who joins later is let in.
    let changed = add(&mut index, &pod("new-0", "new", "10.1.0.67", true));
    assert!(changed.contains(&Subject::Workload(Name::new("demo", "web-0"))));
    assert!(allowed(&server(&index), Some(&id("new")), "10.0.0.1", "GET", "/").is_some());
    add(&mut index, &policy("everybody", "action: Deny, from: [{}]"));
    assert!(allowed(&server(&index), Some(&id("v2")), "10.0.0.1", "GET", "/").is_none());
}

#[test]
fn requests_are_denied_in_part() {
    let mut index = demo();
    add(&mut index, &policy("d", "action: Deny, from: [{serviceAccounts: [{name: v2}]}], to: [{paths: [/admin/*]}]"));
    add(&mut index, &policy("a", "from: [{namespaces: [demo]}]"));
    let server = server(&index);
    let may = |who: &str, path| allowed(&server, Some(&id(who)), "10.0.0.1", "GET", path).is_some();
    assert!(may("web", "/admin/x") && may("web", "/") && may("v2", "/") && may("v2", "/administrator"));
    assert!(!may("v2", "/admin") && !may("v2", "/admin/x"));
    assert!(server.authorizations.is_empty(), "nothing for what is not HTTP");
}

#[test]
fn a_policy_may_speak_of_a_routes_requests() {
    let mut index = demo();
    add(&mut index, &policy("all", "from: [{serviceAccounts: [{name: admin}]}]"));
    add(&mut index, &policy("part", "from: [{namespaces: [demo]}], to: [{route: {name: items}}]"));
    let may = |index: &Index, who: &str, method: &str, path: &str| {
        allowed(&server(index), Some(&id(who)), "10.0.0.1", method, path).is_some()
    };
    // Nobody gets in by a route that is not there, but those who did not need it.
    assert!(may(&index, "admin", "GET", "/items") && !may(&index, "v2", "GET", "/items"));
    let dangling = |index: &Index| index.dangling().into_iter().map(|(_, text)| text).collect::<Vec<_>>();
    let said = "spec.to[0].route: there is no HTTPRoute demo/items, so it lets nobody in";
    assert!(dangling(&index).iter().any(|text| text == said), "{:?}", dangling(&index));
    let changed =
        add(&mut index, &items("matches: [{path: {value: /items}, method: GET}, {path: {type: Exact, value: /}}]", ""));
    assert!(changed.contains(&Subject::Workload(Name::new("demo", "web-0"))));
    assert!(may(&index, "v2", "GET", "/items/7") && may(&index, "v2", "POST", "/"));
    assert!(!may(&index, "v2", "POST", "/items") && !may(&index, "v2", "GET", "/itemsx"));
    assert!(!dangling(&index).iter().any(|text| text.contains("route")));
    // A permission for requests to one host can't be told from one for all.
    add(&mut index, &items("matches: [{path: {value: /items}}]", "hostnames: [a.example], "));
    assert!(!may(&index, "v2", "GET", "/items"));
    assert!(dangling(&index)[0].contains("has hostnames"), "{:?}", dangling(&index));
    // Who is let in to some requests is not let in to all because those can't be told.
    add(&mut index, &policy("part", "from: [{namespaces: [demo]}], to: [{paths: [items]}]"));
    assert!(!may(&index, "v2", "GET", "/items") && !may(&index, "v2", "GET", "/"));
}

#[test]
fn what_a_route_matches_may_be_denied() {
    let mut index = demo();
    let deny = "action: Deny, from: [{serviceAccounts: [{name: v2}]}], to: [{route: {kind: GRPCRoute, name: prices}}]";
    add(&mut index, &policy("d", deny));
    add(&mut index, &policy("a", "from: [{namespaces: [demo]}], to: [{paths: ['/demo.Prices/*', '/other.Prices/*']}]"));
    let may = |index: &Index, who: &str, path: &str| {
        allowed(&server(index), Some(&id(who)), "10.0.0.1", "POST", path).is_some()
    };
    // Until the route is there, nothing is known not to be meant.
    assert!(!may(&index, "v2", "/demo.Prices/Get") && may(&index, "web", "/demo.Prices/Get"));
    let route = |matches: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: prices, namespace: demo}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{matches: [{matches}]}}]}}\n"
        )
    };
    add(&mut index, &route("{method: {service: demo.Prices, method: Set}}"));
    assert!(!may(&index, "v2", "/demo.Prices/Set") && may(&index, "web", "/demo.Prices/Set"));
    assert!(may(&index, "v2", "/other.Prices/Set"));
    // An expression may be any of those that are allowed.
    add(&mut index, &route("{method: {method: Set}}"));
    assert!(!may(&index, "v2", "/other.Prices/Set") && !may(&index, "v2", "/demo.Prices/Get"));
    // What is not understood is not let through.
    add(&mut index, &route("{method: {type: RegularExpression, service: x}}, {method: {service: demo.Prices}}"));
    assert!(!may(&index, "v2", "/other.Prices/Set") && may(&index, "web", "/other.Prices/Set"));
}

#[test]
fn headers_make_a_denial_wider_and_a_permission_narrower() {
    let mut index = demo();
    add(&mut index, &items("matches: [{path: {value: /items}, headers: [{name: x-who, value: me}]}]", ""));
    add(&mut index, &policy("a", "from: [{serviceAccounts: [{name: v2}]}], to: [{route: {name: items}}]"));
    add(&mut index, &policy("b", "from: [{serviceAccounts: [{name: web}]}], to: [{paths: ['/items/*']}]"));
    let InboundProtocol::Detect { http, .. } = server(&index).protocol else { panic!() };
    let part = |headers: usize| {
        http.routes
            .iter()
            .find(|route| route.meta == Meta::named("restricted") && route.rules[0].matches[0].headers.len() == headers)
    };
    let by =
        |headers: usize| part(headers).unwrap().authorizations.iter().map(|one| one.meta.name()).collect::<Vec<_>>();
    // The wider permission covers the narrower requests, not the other way round.
    assert_eq!((by(1), by(0)), (vec!["a", "b"], vec!["b"]));
}

#[test]
fn ports_may_require_an_identity_of_clients_that_no_policy_speaks_of() {
    for (key, prefix) in
        [("require-identity-inbound-ports", "gossamer"), ("proxy-require-identity-inbound-ports", "linkerd")]
    {
        let mut index = demo();
        let annotated = format!("name: web-0, namespace: demo, annotations: {{config.{prefix}.io/{key}: '8000-8080'}}");
        let pod = pod("web-0", "web", "10.1.0.1", true).replace("name: web-0, namespace: demo", &annotated);
        add(&mut index, &pod);
        assert!(allowed(&server(&index), None, "10.0.0.1", "GET", "/").is_none());
        assert!(allowed(&server(&index), Some(&id("v2")), "10.0.0.1", "GET", "/").is_some());
        let other = index.server(&Name::new("demo", "web-0"), 9090).unwrap();
        assert!(allowed(&other, None, "10.0.0.1", "GET", "/").is_some());
        // A policy says itself whom it lets in.
        add(&mut index, &policy("a", "from: [{}]"));
        assert!(allowed(&server(&index), None, "10.0.0.1", "GET", "/").is_some());
    }
    let mesh = Cluster { require_identity: "8080".parse().unwrap(), ..Cluster::default() };
    let mut all = Index::new(mesh);
    add(&mut all, &pod("web-0", "web", "10.1.0.1", true));
    assert!(allowed(&server(&all), None, "10.0.0.1", "GET", "/").is_none());
}

#[test]
fn a_port_is_skipped_as_the_pods_proxy_was_told() {
    // Annotations may have been changed since the pod was made; clients would speak plain text to its proxy.
    let pod = |env: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: web-0, namespace: demo, labels: {{app: web, gossamer.io/control-plane-ns: gossamer}},\n\
             \x20 annotations: {{config.linkerd.io/skip-inbound-ports: '9090'}}}}\n\
             spec: {{serviceAccountName: web, initContainers: [{{name: gossamer-proxy, {env}}}], containers: [{{name: main}}]}}\n\
             status: {{phase: Running, podIP: 10.1.0.1}}\n"
        )
    };
    let meshed = |index: &Index, port: u16| {
        let policy = ask(index, &format!("10.1.0.1:{port}"));
        let backend = http(&policy).routes[0].rules[0].backends.backends().next().unwrap().clone();
        let BackendTarget::Forward(endpoint) = backend.backend.target else { panic!() };
        endpoint.tls.is_some()
    };
    let namespace = "---\napiVersion: v1\nkind: Namespace\n\
        metadata: {name: demo, annotations: {config.gossamer.io/skip-inbound-ports: '9090'}}\n";
    let index = index(&[namespace.to_string(), pod("env: [{name: MESH_POD, valueFrom: {}}]")].concat());
    assert!(meshed(&index, 9090) && meshed(&index, 8080));
    let mut index = index;
    add(&mut index, &pod("env: [{name: MESH_SKIP_INBOUND_PORTS, value: '8080'}]"));
    assert!(meshed(&index, 9090) && !meshed(&index, 8080));
    // Where nobody sees what the proxy was told, its annotation says it.
    add(&mut index, &pod("image: x").replace("gossamer-proxy", "other-proxy"));
    assert!(!meshed(&index, 9090) && meshed(&index, 8080));
}

#[test]
fn audit_lets_everybody_in_and_says_so() {
    let mut index = demo();
    add(&mut index, &policy("a", "action: Audit, from: [{serviceAccounts: [{name: v2}]}]"));
    let server = server(&index);
    assert_eq!(allowed(&server, Some(&id("v2")), "10.0.0.1", "GET", "/").unwrap(), "authorizationpolicy/demo/a");
    assert_eq!(allowed(&server, None, "10.0.0.1", "GET", "/").unwrap(), "default/audit");
}

fn items(rule: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: items, namespace: demo}}\n\
         spec: {{{spec}parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{{rule}}}]}}\n"
    )
}

// ---- any order -----------------------------------------------------------------------------------------------------

fn object(kind: u8, name: u8, variant: u8) -> Object {
    let (name, ip) = (format!("o{name}"), 1 + name);
    let text = match kind {
        0 => service(
            &name,
            &format!("10.96.0.{}", variant % 3),
            ["{port: 80, targetPort: http}", "{port: 80, name: tcp, targetPort: http}"][variant as usize / 3],
            "",
        ),
        1 => {
            pod(&name, &format!("o{}", variant % 3), &format!("10.1.0.{}", ip + variant % 2), variant.is_multiple_of(2))
                .replace(
                    "name: http, containerPort: 8080",
                    ["name: http, containerPort: 8080", "name: http, containerPort: 80"][variant as usize / 3],
                )
        }
        2 => format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, namespace: demo, labels: {{kubernetes.io/service-name: o{}}}}}\n\
             ports: [{{port: 80}}]\nendpoints: [{{addresses: [10.1.0.{ip}], targetRef: {{kind: Pod, name: o{}}}}}]\n",
            variant % 3,
            variant % 2
        ),
        3 => ROUTE
            .replace("NS", "demo")
            .replace("name: split", &format!("name: {name}"))
            .replace("name: v2", &format!("name: o{}", (variant + 1) % 3))
            .replace("name: web", &format!("name: o{}", variant % 3)),
        4 => policy(
            &name,
            [
                "from: [{namespaces: [demo]}]",
                "action: Deny, from: [{serviceAccounts: [{name: o1}]}]",
                "from: [{}], to: [{route: {name: o1}}]",
                "action: Deny, from: [{}], to: [{route: {name: o2}}]",
            ][variant as usize % 4],
        )
        .replace("selector: {matchLabels: {app: web}}", &format!("service: o{}", variant % 3)),
        _ => format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: demo, annotations: {{config.linkerd.io/opaque-ports: '{}'}}}}\n",
            80 + u16::from(variant)
        ),
    };
    parse_yaml(&text).unwrap().remove(0).1
}

/// Everything that can be asked.
fn answers(index: &Index) -> Vec<(Subject, String)> {
    let mut all = Vec::new();
    let source = Source { namespace: "demo".into(), ..Source::default() };
    for n in 0..4 {
        let name = Name::new("demo", &format!("o{n}"));
        all.push((Subject::Endpoints(name.clone()), format!("{:?}", index.endpoints(&name, 80, None, &source))));
        all.push((
            Subject::Workload(name.clone()),
            format!("{:?} {:?}", index.server(&name, 8080), index.server(&name, 80)),
        ));
        let service = index.outbound(&Asked::Service(name.clone(), 80), &source);
        all.push((Subject::Service(name), format!("{service:?}")));
    }
    for ip in ["10.96.0.0", "10.96.0.1", "10.96.0.2", "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4"] {
        let asked = index.resolve(&Target::Addr(format!("{ip}:80").parse().unwrap()), "demo").unwrap();
        let answer = format!("{:?} {:?}", index.outbound(&asked, &source), index.profile(&asked, &source));
        all.push((Subject::Address(ip.parse().unwrap()), answer));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The order of changes leaves no trace, and no change goes untold.
    #[test]
    fn equals_a_rebuild(steps in prop::collection::vec((0u8..6, 0u8..3, 0u8..6, any::<bool>()), 1..40)) {
        let mut index = Index::new(Cluster::default());
        let mut objects = BTreeMap::new();
        for (kind, name, variant, delete) in steps {
            let object = object(kind, name, variant);
            let before = answers(&index);
            let changed = if delete {
                objects.remove(&object.key());
                index.delete(&object.key())
            } else {
                objects.insert(object.key(), object.clone());
                index.apply(object)
            };
            for ((subject, before), (_, after)) in before.into_iter().zip(answers(&index)) {
                prop_assert!(before == after || changed.contains(&subject), "{subject:?} changed untold\n{before}\n{after}");
            }
        }
        let mut rebuilt = Index::new(Cluster::default());
        for (_, object) in objects {
            rebuilt.apply(object);
        }
        prop_assert_eq!(&index, &rebuilt);
        prop_assert_eq!(answers(&index), answers(&rebuilt));
    }
}
