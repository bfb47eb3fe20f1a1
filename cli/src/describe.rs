//! What the control plane answers, as JSON with short sentences for leaves: the same for programs and, as YAML, for
//! people. Pure.

use gossamer_api::authorization::{Authentication, Authorization, InboundHttp, InboundProtocol, Server};
use gossamer_api::policy::{
    Backend, BackendTarget, Distribution, Filter, HeaderEdit, HostMatch, HttpRoutes, HttpRule, OutboundPolicy,
    OutboundProtocol, PathMatch, Redirect, RequestMatch, RouteBackend, TcpRoute, ValueMatch,
};
use gossamer_api::settings;
use serde_json::{Map, Value, json};
use std::fmt::Display;
use std::time::Duration;

/// How a proxy treats what goes to an address.
pub fn outbound(policy: &OutboundPolicy) -> Value {
    let (protocol, routes) = match &policy.protocol {
        OutboundProtocol::Detect { timeout, http1, opaque, .. } => {
            let mut both = http_routes(http1);
            both["ifNotHttp"] = tcp_routes(opaque);
            (format!("detected within {}", time(timeout)), both)
        }
        OutboundProtocol::Http1(routes) => ("HTTP/1".into(), http_routes(routes)),
        OutboundProtocol::Http2(routes) => ("HTTP/2".into(), http_routes(routes)),
        OutboundProtocol::Grpc(routes) => ("gRPC".into(), http_routes(routes)),
        OutboundProtocol::Opaque(routes) => ("opaque".into(), json!({ "routes": tcp_routes(routes) })),
        OutboundProtocol::Tls(routes) => ("TLS of the application".into(), json!({ "routes": tcp_routes(routes) })),
    };
    let mut value = json!({ "for": text(&policy.meta), "protocol": protocol });
    merge(&mut value, routes);
    value
}

fn http_routes(from: &HttpRoutes) -> Value {
    let routes: Vec<Value> = from
        .routes
        .iter()
        .map(|route| {
            let hosts: Vec<String> = route.hosts.iter().map(host).collect();
            let rules: Vec<Value> = route.rules.iter().map(http_rule).collect();
            without_empty(json!({ "route": text(&route.meta), "hosts": hosts, "rules": rules }))
        })
        .collect();
    let breaker = from.breaker.map(|breaker| {
        let mut kinds = Vec::new();
        if breaker.max_failures > 0 {
            kinds.push(format!("after {} failures in a row", breaker.max_failures));
        }
        if let Some(rate) = breaker.success_rate {
            kinds.push(format!("below {:.0}% success within {}", rate.threshold * 100.0, time(&rate.window)));
        }
        let (min, max) = (time(&breaker.backoff.min), time(&breaker.backoff.max));
        format!("{}, probed again after {min} to {max}", kinds.join(" or "))
    });
    without_empty(json!({ "circuitBreaker": breaker, "routes": routes }))
}

fn http_rule(rule: &HttpRule) -> Value {
    let retry = rule.retry.as_ref().map(|retry| {
        let mut on: Vec<String> = retry.statuses.iter().map(|(from, to)| range(*from, *to)).collect();
        on.extend(retry.grpc_codes.iter().map(|code| format!("gRPC {code}")));
        let within = retry.timeout.map_or(String::new(), |timeout| format!(", {} each", time(&timeout)));
        format!("up to {} times on {}{within}", retry.limit, on.join(", "))
    });
    let timeouts =
        [("request", rule.timeouts.request), ("response", rule.timeouts.response), ("idle", rule.timeouts.idle)];
    let timeouts: Map<String, Value> =
        timeouts.into_iter().filter_map(|(name, limit)| Some((name.to_string(), time(&limit?).into()))).collect();
    without_empty(json!({
        "matches": rule.matches.iter().map(request).collect::<Vec<_>>(),
        "filters": rule.filters.iter().map(filter).collect::<Vec<_>>(),
        "backends": distribution(&rule.backends, route_backend),
        "timeouts": timeouts,
        "retry": retry,
    }))
}

fn tcp_routes(routes: &[TcpRoute]) -> Value {
    let one = |route: &TcpRoute| {
        let rules = route.rules.iter().map(|rule| match &rule.refuse {
            Some(refuse) => json!({ "refused": format!("{refuse:?}") }),
            None => json!({ "backends": distribution(&rule.backends, backend) }),
        });
        let snis: Vec<String> = route.snis.iter().map(host).collect();
        without_empty(json!({ "route": text(&route.meta), "snis": snis, "rules": rules.collect::<Vec<_>>() }))
    };
    routes.iter().map(one).collect()
}

fn distribution<B>(from: &Distribution<B>, show: impl Fn(&B) -> String) -> Vec<String> {
    match from {
        Distribution::Empty => Vec::new(),
        Distribution::First(all) => all.iter().map(show).collect(),
        Distribution::Random(all) => {
            let sum: u64 = all.iter().map(|(_, weight)| u64::from(*weight)).sum();
            let share = |weight: u32| f64::from(weight) * 100.0 / sum.max(1) as f64;
            all.iter().map(|(backend, weight)| format!("{:.1}% {}", share(*weight), show(backend))).collect()
        }
    }
}

fn route_backend(from: &RouteBackend) -> String {
    let filters: Vec<String> = from.filters.iter().map(filter).collect();
    let with = if filters.is_empty() { String::new() } else { format!(" with {}", filters.join(", ")) };
    backend(&from.backend) + &with
}

fn backend(from: &Backend) -> String {
    let name = text(&from.meta);
    match &from.target {
        BackendTarget::Invalid => format!("{name} (invalid: answered with 500)"),
        BackendTarget::Forward(endpoint) => {
            format!("{name} at {}{}", endpoint.addr, if endpoint.tls.is_some() { " with mTLS" } else { "" })
        }
        BackendTarget::Balance { authority, .. } => format!("{name}, balanced over {authority}"),
    }
}

fn host(from: &HostMatch) -> String {
    match from {
        HostMatch::Exact(host) => host.clone(),
        HostMatch::Suffix(suffix) => format!("*.{}", suffix.trim_start_matches('.')),
    }
}

fn request(from: &RequestMatch) -> String {
    let mut parts: Vec<String> = from.method.iter().cloned().collect();
    parts.extend(from.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(prefix) => format!("{}/*", prefix.trim_end_matches('/')),
        PathMatch::Regex(expression) => format!("~{expression}"),
        PathMatch::Rpc { service, method } => {
            let any = |text: &str| if text.is_empty() { "*".to_string() } else { text.to_string() };
            format!("/{}/{}", any(service), any(method))
        }
    }));
    let value = |from: &ValueMatch| match from {
        ValueMatch::Exact(value) => format!("={}", String::from_utf8_lossy(value)),
        ValueMatch::Regex(expression) => format!("~{expression}"),
    };
    parts.extend(from.headers.iter().map(|header| format!("{}{}", header.name, value(&header.value))));
    parts.extend(from.query.iter().map(|query| format!("?{}{}", query.name, value(&query.value))));
    parts.join(" ")
}

fn filter(from: &Filter) -> String {
    let edit = |edit: &HeaderEdit| {
        let value = |(name, value): &(String, Vec<u8>)| format!("{name}={}", String::from_utf8_lossy(value));
        let set = edit.set.iter().map(|header| format!("set {}", value(header)));
        let add = edit.add.iter().map(|header| format!("add {}", value(header)));
        let remove = edit.remove.iter().map(|name| format!("remove {name}"));
        set.chain(add).chain(remove).collect::<Vec<_>>().join(", ")
    };
    match from {
        Filter::RequestHeaders(headers) => format!("request headers: {}", edit(headers)),
        Filter::ResponseHeaders(headers) => format!("response headers: {}", edit(headers)),
        Filter::Redirect(Redirect { scheme, host, port, path, status }) => {
            format!("redirect {status} to scheme {scheme:?} host {host:?} port {port:?} path {path:?}")
        }
        Filter::Fail(fail) => {
            format!("fail with {} {:?}, {} of {}", fail.status, fail.message, fail.ratio.0, fail.ratio.1)
        }
        Filter::Extension(extension) => format!("{extension:?}"),
        Filter::Named(name) => format!("extension {:016x} (told by the control plane's own service)", name.id),
    }
}

/// Who may use a port.
pub fn server(server: &Server) -> Value {
    let (protocol, http) = match &server.protocol {
        InboundProtocol::Detect { timeout, http } => (format!("detected within {}", time(timeout)), Some(http)),
        InboundProtocol::Http1(http) => ("HTTP/1".into(), Some(http)),
        InboundProtocol::Http2(http) => ("HTTP/2".into(), Some(http)),
        InboundProtocol::Grpc(http) => ("gRPC".into(), Some(http)),
        InboundProtocol::Opaque => ("opaque".into(), None),
        InboundProtocol::Tls => ("TLS of the application".into(), None),
    };
    let mut value = without_empty(json!({
        "server": text(&server.meta),
        "protocol": protocol,
        "addresses": server.ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "authorizations": server.authorizations.iter().map(authorization).collect::<Vec<_>>(),
    }));
    if let Some(http) = http {
        merge(&mut value, inbound_http(http));
    }
    value
}

fn inbound_http(http: &InboundHttp) -> Value {
    let limit = http.rate_limit.as_ref().map(|limit| {
        let part = |name: &str, rate: Option<u32>| rate.map(|rate| format!("{rate} requests/s {name}"));
        let parts = [part("in all", limit.total), part("for each identity", limit.identity)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    });
    let routes: Vec<Value> = http
        .routes
        .iter()
        .map(|route| {
            let matches = route.rules.iter().flat_map(|rule| &rule.matches).map(request);
            without_empty(json!({
                "route": text(&route.meta),
                "hosts": route.hosts.iter().map(host).collect::<Vec<_>>(),
                "matches": matches.collect::<Vec<_>>(),
                "authorizations": route.authorizations.iter().map(authorization).collect::<Vec<_>>(),
            }))
        })
        .collect();
    without_empty(json!({ "rateLimit": limit, "routes": routes }))
}

fn authorization(from: &Authorization) -> Value {
    let clients = match &from.authentication {
        Authentication::Unauthenticated => vec!["everybody".to_string()],
        Authentication::Tls => vec!["everybody with mesh TLS".into()],
        Authentication::Identities { names, suffixes } => {
            let suffixes = suffixes.iter().map(|suffix| match suffix.as_str() {
                "" => "everybody with a certificate".to_string(),
                suffix => format!("*.{}", suffix.trim_start_matches('.')),
            });
            names.iter().cloned().chain(suffixes).collect()
        }
    };
    let networks = from.networks.iter().map(|network| match network.except.as_slice() {
        [] => network.net.to_string(),
        except => {
            format!("{} except {}", network.net, except.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        }
    });
    json!({ "by": text(&from.meta), "clients": clients, "networks": networks.collect::<Vec<_>>() })
}

fn text(from: &impl Display) -> String {
    from.to_string()
}

fn time(from: &Duration) -> String {
    settings::text(*from)
}

fn range(from: u16, to: u16) -> String {
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}

/// Fields that say nothing are left out.
fn without_empty(mut value: Value) -> Value {
    if let Value::Object(map) = &mut value {
        map.retain(|_, value| match value {
            Value::Null => false,
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        });
    }
    value
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_api::kubernetes::{Name, parse_yaml};
    use gossamer_api::policy::Target;
    use gossamer_destination::index::{Index, Source};

    #[test]
    fn answers_are_told_in_short() {
        let objects = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, gossamer.io/control-plane-ns: gossamer}}
spec: {serviceAccountName: web, containers: [{ports: [{containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.0.0.9}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: '', name: web, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}, method: GET}]
    timeouts: {request: 10s}
    backendRefs: [{name: web, port: 80, weight: 9}, {name: gone, port: 80, weight: 1}]
";
        let mut index = Index::default();
        for (_, object) in parse_yaml(objects).unwrap() {
            index.apply(object);
        }
        let source = Source { namespace: "shop".into(), ..Source::default() };
        let target = Target::Authority("web.shop.svc.cluster.local:80".into());
        let told = outbound(&index.outbound(&target, &source).unwrap());
        assert_eq!(told["for"], "Service/shop/web:80");
        let rule = &told["routes"][0]["rules"][0];
        assert_eq!(rule["matches"][0], "GET /a/*");
        assert_eq!(rule["timeouts"]["request"], "10s");
        assert!(
            rule["backends"][0].as_str().unwrap().starts_with("90.0% Service/shop/web:80, balanced over"),
            "{told:#}"
        );
        let told = server(&index.server(&Name::new("shop", "web-1"), 8080).unwrap());
        assert_eq!(told["server"], "default/all-unauthenticated");
        assert_eq!(told["authorizations"][0]["clients"][0], "everybody");
    }
}
