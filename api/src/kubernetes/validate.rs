//! Looks at an object before it is stored: what is broken is refused with field, reason and hint; what the mesh would
//! not obey is a warning. Pure.
//!
//! Objects that are not for us pass: routes of gateways, kinds that the mesh does not read, annotations of others.

mod annotations;

use self::annotations::{GRPC_FAULTS, HTTP_FAULTS, ROUTE_ANNOTATIONS, SERVICE_ANNOTATIONS, annotations};
use super::{
    Action, AuthorizationPolicySpec, BackendRef, Client, GrpcRouteSpec, HttpPathMatch, HttpRouteSpec, Kind,
    LabelOperator, LabelSelector, NamedMatch, ParentRef, Request, RouteFilter, RouteRetry, RouteTimeouts, TcpRouteSpec,
    kind_of,
};
use crate::settings::parse_gep_duration;
use crate::workload::Identity;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt;

/// What is to be said about an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// None: it may be stored.
    pub errors: Vec<Problem>,
    /// For whoever writes it.
    pub warnings: Vec<String>,
}

/// Something broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `spec.from[0].networks[0].cidr`.
    pub field: String,
    /// What is wrong.
    pub reason: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " (hint: {})", self.hint) }
    }
}

/// Looks at an object as it is sent to the API server.
pub fn validate(object: &Value) -> Verdict {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let Some(kind) = kind_of(&text(&object["apiVersion"]), &text(&object["kind"])) else { return Verdict::default() };
    let mut to = Verdict::default();
    match kind {
        Kind::AuthorizationPolicy => {
            if let Some(spec) = read::<AuthorizationPolicySpec>(object, &mut to) {
                policy(&spec, &mut to);
            }
        }
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute if !is_ours(object) => {}
        Kind::HttpRoute => {
            annotations(object, &[ROUTE_ANNOTATIONS, HTTP_FAULTS], &mut to);
            if let Some(spec) = read::<HttpRouteSpec>(object, &mut to) {
                http_route(&spec, &mut to);
            }
        }
        Kind::GrpcRoute => {
            annotations(object, &[ROUTE_ANNOTATIONS, GRPC_FAULTS], &mut to);
            if let Some(spec) = read::<GrpcRouteSpec>(object, &mut to) {
                grpc_route(&spec, &mut to);
            }
        }
        Kind::TcpRoute | Kind::TlsRoute => {
            if let Some(spec) = read::<TcpRouteSpec>(object, &mut to) {
                if spec.rules.len() > 1 {
                    to.warn("spec.rules: only the first rule is used");
                }
                parents(&spec.parent_refs, &mut to);
                for (at, rule) in spec.rules.iter().enumerate() {
                    backends(&rule.backend_refs, &format!("spec.rules[{at}]"), &mut to);
                }
            }
        }
        Kind::Service => annotations(object, &[ROUTE_ANNOTATIONS, SERVICE_ANNOTATIONS], &mut to),
        _ => {}
    }
    to
}

impl Verdict {
    fn error(&mut self, field: impl Into<String>, reason: impl Into<String>, hint: impl Into<String>) {
        self.errors.push(Problem { field: field.into(), reason: reason.into(), hint: hint.into() });
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }
}

/// The object's `spec`, with the place of what can't be read.
fn read<T: DeserializeOwned + Default>(object: &Value, to: &mut Verdict) -> Option<T> {
    let spec = &object["spec"];
    if spec.is_null() {
        to.error("spec", "is missing", "");
        return None;
    }
    match serde_path_to_error::deserialize::<_, T>(spec) {
        Ok(spec) => Some(spec),
        Err(error) => {
            let path = error.path().to_string();
            let field = if path == "." { "spec".to_string() } else { format!("spec.{path}") };
            let reason = error.inner().to_string();
            to.error(field, &reason, unknown_field(&reason));
            None
        }
    }
}

/// `did you mean`, out of serde's list of what it expected.
fn unknown_field(reason: &str) -> String {
    let mut words = reason.split('`').skip(1).step_by(2);
    let Some(word) = words.next().filter(|_| reason.starts_with("unknown ")) else { return String::new() };
    nearest(word, words).map(|one| format!("did you mean {one:?}?")).unwrap_or_default()
}

// ---- AuthorizationPolicy -------------------------------------------------------------------------------------------

fn policy(spec: &AuthorizationPolicySpec, to: &mut Verdict) {
    selector(&spec.selector, to);
    if let Some(service) = &spec.service
        && !is_label(service)
    {
        to.error("spec.service", format!("{service:?} is no name of a Service"), "a Service of the policy's namespace");
    }
    for (at, port) in spec.ports.iter().enumerate() {
        let (field, hint) =
            (format!("spec.ports[{at}]"), "a number from 1 to 65535, or the name of a container's port");
        match port {
            super::IntOrString::Int(0) => to.error(field, "0 is no port", hint),
            super::IntOrString::Int(_) => {}
            super::IntOrString::String(name) if name.parse::<u16>().is_ok_and(|port| port > 0) => {}
            super::IntOrString::String(name) if is_label(name) && name.len() <= 15 => {}
            super::IntOrString::String(name) => to.error(field, format!("{name:?} is no port"), hint),
        }
    }
    if spec.from.is_empty() {
        match spec.action {
            Action::Deny => to.warn("spec.from is empty: this policy denies nobody; [{}] is everybody"),
            Action::Allow | Action::Audit => to.warn("spec.from is empty: nobody is let in; [{}] is everybody"),
        }
    }
    spec.from.iter().enumerate().for_each(|(at, from)| client(from, &format!("spec.from[{at}]"), to));
    spec.to.iter().enumerate().for_each(|(at, one)| request(one, &format!("spec.to[{at}]"), to));
}

fn selector(selector: &LabelSelector, to: &mut Verdict) {
    for (at, one) in selector.match_expressions.iter().enumerate() {
        let field = format!("spec.selector.matchExpressions[{at}].values");
        let takes = matches!(one.operator, LabelOperator::In | LabelOperator::NotIn);
        if takes && one.values.is_empty() {
            to.error(field, format!("{:?} compares with values, and there are none", one.operator), "");
        } else if !takes && !one.values.is_empty() {
            to.error(field, format!("{:?} takes no values", one.operator), "use In or NotIn");
        }
    }
}

fn client(client: &Client, at: &str, to: &mut Verdict) {
    for (n, account) in client.service_accounts.iter().enumerate() {
        if !is_dns(&account.name) {
            let hint = "the name alone; its namespace goes into namespace";
            to.error(
                format!("{at}.serviceAccounts[{n}].name"),
                format!("{:?} is no service account", account.name),
                hint,
            );
        }
        if let Some(namespace) = account.namespace.as_ref().filter(|namespace| !is_label(namespace)) {
            to.error(format!("{at}.serviceAccounts[{n}].namespace"), format!("{namespace:?} is no namespace"), "");
        }
    }
    for (n, namespace) in client.namespaces.iter().enumerate().filter(|(_, namespace)| !is_label(namespace)) {
        let hint =
            if namespace.contains('*') { "patterns go into identities, as *.demo.serviceaccount..." } else { "" };
        to.error(format!("{at}.namespaces[{n}]"), format!("{namespace:?} is no namespace"), hint);
    }
    for (n, identity) in client.identities.iter().enumerate() {
        let name = identity.strip_prefix("*.").unwrap_or(identity);
        if identity != "*" && (name.contains('*') || name.parse::<Identity>().is_err()) {
            let hint = match identity.starts_with("spiffe://") {
                true => "the other spelling: web.demo.serviceaccount.identity.gossamer.cluster.local",
                false => "a whole name, * for everybody with a certificate, or *.suffix",
            };
            to.error(format!("{at}.identities[{n}]"), format!("{identity:?} is no identity"), hint);
        }
    }
    for (n, network) in client.networks.iter().enumerate() {
        for (m, except) in network.except.iter().enumerate().filter(|(_, except)| !network.cidr.contains(*except)) {
            let reason = format!("{except} is not in {}", network.cidr);
            to.error(format!("{at}.networks[{n}].except[{m}]"), reason, "it takes a part away from cidr");
        }
    }
}

fn request(request: &Request, at: &str, to: &mut Verdict) {
    if let Some(route) = &request.route {
        if !is_dns(&route.name) {
            to.error(format!("{at}.route.name"), format!("{:?} is no name of a route", route.name), "");
        }
        if !(request.methods.is_empty() && request.paths.is_empty()) {
            let hint = "a route says them itself; put them into an entry of their own";
            to.error(format!("{at}.route"), "methods or paths stand beside it", hint);
        }
    }
    for (n, method) in request.methods.iter().enumerate() {
        let upper = method.to_ascii_uppercase();
        if !is_token(method) {
            to.error(format!("{at}.methods[{n}]"), format!("{method:?} is no HTTP method"), "");
        } else if *method != upper && STANDARD_METHODS.contains(&upper.as_str()) {
            let hint = format!("methods are compared letter by letter: {upper}");
            to.error(format!("{at}.methods[{n}]"), format!("no request has the method {method:?}"), hint);
        }
    }
    for (n, path) in request.paths.iter().enumerate() {
        let hint = "a whole path, or /prefix/*";
        let star = path.find('*').is_some_and(|star| star + 1 != path.len() || !path.ends_with("/*"));
        if !path.starts_with('/') || star || path.contains(['?', '#']) {
            to.error(format!("{at}.paths[{n}]"), format!("{path:?} is no path that is understood"), hint);
        }
    }
}

// ---- routes --------------------------------------------------------------------------------------------------------

/// True for a route with a Service as parent; others are a gateway's.
fn is_ours(object: &Value) -> bool {
    let parents = object["spec"]["parentRefs"].as_array().into_iter().flatten();
    parents.into_iter().any(|one| one["kind"] == "Service" && matches!(one["group"].as_str(), Some("" | "core")))
}

fn http_route(spec: &HttpRouteSpec, to: &mut Verdict) {
    parents(&spec.parent_refs, to);
    hostnames(&spec.hostnames, to);
    for (at, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{at}]");
        for (n, one) in rule.matches.iter().enumerate() {
            let at = format!("{at}.matches[{n}]");
            if let Some(wanted) = &one.path {
                path(wanted, &format!("{at}.path"), to);
            }
            named(&one.headers, &format!("{at}.headers"), true, to);
            named(&one.query_params, &format!("{at}.queryParams"), false, to);
            if let Some(method) = one.method.as_ref().filter(|method| !is_token(method)) {
                to.error(format!("{at}.method"), format!("{method:?} is no HTTP method"), "");
            }
        }
        filters(&rule.filters, &at, to);
        backends(&rule.backend_refs, &at, to);
        if let Some(times) = &rule.timeouts {
            timeouts(times, &format!("{at}.timeouts"), to);
        }
        if let Some(again) = &rule.retry {
            retry(again, &format!("{at}.retry"), to);
        }
    }
}

fn grpc_route(spec: &GrpcRouteSpec, to: &mut Verdict) {
    parents(&spec.parent_refs, to);
    hostnames(&spec.hostnames, to);
    for (at, rule) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{at}]");
        for (n, one) in rule.matches.iter().enumerate() {
            let at = format!("{at}.matches[{n}]");
            named(&one.headers, &format!("{at}.headers"), true, to);
            let Some(method) = &one.method else { continue };
            if method.kind.as_deref() == Some("RegularExpression") {
                to.warn(format!("{at}.method.type: RegularExpression is not supported; the match is left out"));
            }
            for (name, value) in [("service", &method.service), ("method", &method.method)] {
                if value.as_ref().is_some_and(|value| value.is_empty() || value.contains('/')) {
                    let value = value.as_deref().unwrap_or_default();
                    to.error(format!("{at}.method.{name}"), format!("{value:?} is no gRPC {name}"), "without slashes");
                }
            }
        }
        filters(&rule.filters, &at, to);
        backends(&rule.backend_refs, &at, to);
    }
}

fn parents(parents: &[ParentRef], to: &mut Verdict) {
    for (at, parent) in parents.iter().enumerate() {
        let field = format!("spec.parentRefs[{at}]");
        if parent.name.is_empty() {
            to.error(format!("{field}.name"), "is missing", "");
        }
        if parent.kind.as_deref() == Some("Service") && parent.group.is_none() {
            to.warn(format!("{field}.group is missing, which means the Gateway API's; a Service has group: \"\""));
        }
        if parent.port == Some(0) {
            to.error(format!("{field}.port"), "0 is no port", "leave it out for all ports of the Service");
        }
    }
}

fn hostnames(hosts: &[String], to: &mut Verdict) {
    for (at, host) in hosts.iter().enumerate() {
        let name = host.strip_prefix("*.").unwrap_or(host);
        if host.parse::<std::net::IpAddr>().is_ok() || !is_dns(&name.to_ascii_lowercase()) {
            let hint = "a host name, or *.suffix, without port";
            to.error(format!("spec.hostnames[{at}]"), format!("{host:?} is no host name"), hint);
        }
    }
}

fn path(path: &HttpPathMatch, at: &str, to: &mut Verdict) {
    let value = path.value.as_deref().unwrap_or("/");
    match path.kind.as_deref() {
        None | Some("Exact" | "PathPrefix") if !value.starts_with('/') => {
            to.error(format!("{at}.value"), format!("{value:?} does not begin with /"), "");
        }
        None | Some("Exact" | "PathPrefix") => {}
        Some("RegularExpression") => expression(value, &format!("{at}.value"), to),
        Some(kind) => to.warn(format!("{at}.type: {kind:?} is not known to the mesh; the match is left out")),
    }
}

fn named(wanted: &[NamedMatch], at: &str, header: bool, to: &mut Verdict) {
    for (n, one) in wanted.iter().enumerate() {
        let at = format!("{at}[{n}]");
        if one.name.is_empty() || header && !is_token(&one.name) {
            to.error(format!("{at}.name"), format!("{:?} is no name", one.name), "");
        }
        match one.kind.as_deref() {
            None | Some("Exact") => {}
            Some("RegularExpression") => expression(&one.value, &format!("{at}.value"), to),
            Some(kind) => to.warn(format!("{at}.type: {kind:?} is not known to the mesh; the match is left out")),
        }
    }
}

fn expression(text: &str, field: &str, to: &mut Verdict) {
    if let Err(error) = regex::RegexBuilder::new(text).size_limit(REGEX_BYTES).build() {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or("invalid").trim_start_matches("error: ");
        to.error(field, format!("{text:?} is no regular expression: {reason}"), "the syntax is RE2's");
    }
}

fn filters(filters: &[RouteFilter], at: &str, to: &mut Verdict) {
    for (n, filter) in filters.iter().enumerate() {
        let at = format!("{at}.filters[{n}]");
        let (field, present) = match filter.kind.as_str() {
            "RequestHeaderModifier" => ("requestHeaderModifier", filter.request_header_modifier.is_some()),
            "ResponseHeaderModifier" => ("responseHeaderModifier", filter.response_header_modifier.is_some()),
            "RequestRedirect" => ("requestRedirect", filter.request_redirect.is_some()),
            "URLRewrite" => ("urlRewrite", filter.url_rewrite.is_some()),
            "RequestMirror" => ("requestMirror", filter.request_mirror.is_some()),
            kind => {
                to.warn(format!("{at}: the mesh does not know the filter {kind:?}; requests of this rule will fail"));
                continue;
            }
        };
        if !present {
            to.error(format!("{at}.{field}"), format!("is missing, and the filter is of type {}", filter.kind), "");
        }
        let modifiers = [&filter.request_header_modifier, &filter.response_header_modifier];
        for modifier in modifiers.into_iter().flatten() {
            let names = modifier.set.iter().chain(&modifier.add).map(|header| &header.name).chain(&modifier.remove);
            for name in names.filter(|name| !is_token(name)) {
                to.error(&at, format!("{name:?} is no name of a header"), "");
            }
        }
        let status = filter.request_redirect.as_ref().and_then(|redirect| redirect.status_code);
        if let Some(status) = status.filter(|status| ![301, 302, 303, 307, 308].contains(status)) {
            let field = format!("{at}.requestRedirect.statusCode");
            to.error(field, format!("{status} is no redirect"), "301, 302, 303, 307 or 308");
        }
    }
}

fn backends(backends: &[BackendRef], at: &str, to: &mut Verdict) {
    for (n, backend) in backends.iter().enumerate() {
        let at = format!("{at}.backendRefs[{n}]");
        let core = matches!(backend.group.as_deref(), None | Some("" | "core"));
        if !core || !matches!(backend.kind.as_deref(), None | Some("Service")) {
            let kind = backend.kind.as_deref().unwrap_or("Service");
            to.warn(format!("{at}: the mesh sends nothing to a {kind}; its share of the requests fails"));
            continue;
        }
        match backend.port {
            None => to.error(format!("{at}.port"), "is missing", "the port of the Service"),
            Some(0) => to.error(format!("{at}.port"), "0 is no port", ""),
            Some(_) => {}
        }
        if let Some(weight) = backend.weight.filter(|weight| *weight > MAX_WEIGHT) {
            to.error(
                format!("{at}.weight"),
                format!("{weight} is more than {MAX_WEIGHT}"),
                "weights are compared with each other",
            );
        }
        filters(&backend.filters, &at, to);
    }
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == Some(0)) {
        to.warn(format!("{at}.backendRefs: all weights are 0, so all requests fail"));
    }
}

fn timeouts(times: &RouteTimeouts, at: &str, to: &mut Verdict) {
    let mut read = |name: &str, value: &Option<String>| {
        let value = value.as_deref()?;
        let parsed = parse_gep_duration(value);
        if parsed.is_none() {
            to.error(format!("{at}.{name}"), format!("{value:?} is no duration"), "for example 500ms, 10s, 1m30s");
        }
        parsed.filter(|time| !time.is_zero())
    };
    let (request, attempt) = (read("request", &times.request), read("backendRequest", &times.backend_request));
    if let (Some(request), Some(attempt)) = (request, attempt)
        && attempt > request
    {
        let reason = format!("one attempt ({attempt:?}) may take longer than all together ({request:?})");
        to.error(format!("{at}.backendRequest"), reason, "make it shorter than request");
    }
}

fn retry(retry: &RouteRetry, at: &str, to: &mut Verdict) {
    for (n, code) in retry.codes.iter().enumerate().filter(|(_, code)| !(400..600).contains(*code)) {
        to.error(format!("{at}.codes[{n}]"), format!("{code} is no status of a failed request"), "400 to 599");
    }
    if let Some(backoff) = retry.backoff.as_ref().filter(|text| parse_gep_duration(text).is_none()) {
        to.error(format!("{at}.backoff"), format!("{backoff:?} is no duration"), "for example 100ms");
    }
}

// ---- words ---------------------------------------------------------------------------------------------------------

/// A label of RFC 1123: namespaces, Services, names of ports.
fn is_label(text: &str) -> bool {
    let inner = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    inner && (1..=63).contains(&text.len()) && !text.starts_with('-') && !text.ends_with('-')
}

/// Labels with dots between: service accounts, hosts.
fn is_dns(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// A token of RFC 9110: methods, names of headers.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// The nearest of several words, if it is near. Letters that were swapped, forgotten, added or mistaken.
pub fn nearest<'a>(word: &str, of: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (far, one) = of.into_iter().map(|one| (distance(word, one), one)).min()?;
    (far <= 1 + word.len() / 4).then_some(one)
}

/// Insertions, deletions, replacements and swaps of neighbours from one word to the other (optimal string alignment).
pub fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(LONGEST).collect(), b.chars().take(LONGEST).collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// Characters of a word that are compared; none that is known is longer.
const LONGEST: usize = 80;
const STANDARD_METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// The Gateway API's.
const MAX_WEIGHT: u32 = 1_000_000;
/// What an expression may cost, for whoever compiles one. Source: linkerd2-proxy's own engine.
pub const REGEX_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests;
