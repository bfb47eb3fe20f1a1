//! Gateway API routes in the mesh's words, read once when the object comes; backends are looked up when asked.
//!
//! What can't be obeyed is reported, and never applied half: a filter that is not supported makes its requests fail (it
//! may be somebody's lock), and a match that is not supported is left out with its traffic, because to match more than was
//! asked for would send requests astray.

use super::annotations;
use gossamer_api::defaults;
use gossamer_api::kubernetes::validate::REGEX_BYTES;
use gossamer_api::kubernetes::{
    BackendRef, GrpcRouteMatch, HeaderModifier, HttpRouteMatch, HttpRouteRule, Key, Kind, Name, NamedMatch, Object,
    ParentRef, PathRewrite, RequestMirror, RequestRedirect, RouteFilter, RouteRetry, UrlRewrite,
};
use gossamer_api::policy::{
    Backoff, Extension, Failure, Filter, HeaderEdit, HeaderMatch, HostMatch, Meta, PathMatch, PathModifier, QueryMatch,
    Redirect, RequestMatch, Retry, Rewrite, Timeouts, ValueMatch,
};
use gossamer_api::settings::parse_gep_duration;

/// A route, as far as it can be obeyed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    pub(super) key: Key,
    /// Older routes win; RFC 3339 in UTC sorts as text.
    pub(super) created: String,
    /// Services, and a port or all of them.
    pub(super) parents: Vec<(Name, Option<u16>)>,
    pub(super) hosts: Vec<HostMatch>,
    pub(super) rules: Vec<Rule>,
    /// No match was left out.
    pub(super) whole: bool,
}

/// One rule of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rule {
    pub(super) matches: Vec<RequestMatch>,
    pub(super) filters: Vec<RuleFilter>,
    /// `None`: the parent itself.
    pub(super) backends: Option<Vec<RuleBackend>>,
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<Retry>,
}

/// What a rule does to requests.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RuleFilter {
    /// As it is.
    Plain(Filter),
    /// A copy of this share of requests; the service is looked up when asked.
    Mirror(Box<RuleBackend>, (u32, u32)),
}

/// Where a rule sends requests.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RuleBackend {
    /// `None`: not a service.
    pub(super) service: Option<Name>,
    pub(super) name: String,
    pub(super) port: Option<u16>,
    pub(super) weight: u32,
    pub(super) filters: Vec<RuleFilter>,
}

impl Route {
    pub(super) fn read(object: &Object, problems: &mut Vec<String>) -> Self {
        let (metadata, key) = (object.metadata(), object.key());
        let namespace = &metadata.namespace;
        let (parents, hostnames, rules) = match object {
            Object::HttpRoute(route) => {
                let rules = route.spec.rules.iter().filter_map(|rule| http_rule(rule, namespace, problems)).collect();
                (&route.spec.parent_refs, &route.spec.hostnames, rules)
            }
            Object::GrpcRoute(route) => {
                let mut rules = Vec::new();
                for rule in &route.spec.rules {
                    let matches = matches(&rule.matches, problems, grpc_match);
                    let mut filters = filters(&rule.filters, namespace, problems);
                    filters.iter_mut().for_each(carry_response_headers);
                    let mut backends = backends(&rule.backend_refs, namespace, problems);
                    let of_backends = backends.iter_mut().flatten().flat_map(|backend| &mut backend.filters);
                    of_backends.for_each(carry_response_headers);
                    rules.extend(matches.map(|matches| Rule { matches, filters, backends, ..Rule::default() }));
                }
                (&route.spec.parent_refs, &route.spec.hostnames, rules)
            }
            Object::TcpRoute(route) | Object::TlsRoute(route) => {
                if route.spec.rules.len() > 1 {
                    problems.push("spec.rules: only the first is used".into());
                }
                let refs = route.spec.rules.iter().take(1);
                let rules =
                    refs.map(|r| Rule { backends: backends(&r.backend_refs, namespace, problems), ..Rule::default() });
                (&route.spec.parent_refs, &route.spec.hostnames, rules.collect())
            }
            _ => (&Vec::new(), &Vec::new(), Vec::new()),
        };
        let mut route = Route {
            created: metadata.creation_timestamp.clone().unwrap_or_default(),
            parents: parents.iter().filter_map(|parent| service_parent(parent, namespace)).collect(),
            hosts: hostnames.iter().map(|host| host_match(host)).collect(),
            whole: !problems.iter().any(|problem| problem.starts_with(LEFT_OUT)),
            rules,
            key,
        };
        route.annotate(object, problems);
        route
    }

    /// Linkerd's one-liners on a route count where its own fields say nothing.
    fn annotate(&mut self, object: &Object, problems: &mut Vec<String>) {
        if !matches!(object.kind(), Kind::HttpRoute | Kind::GrpcRoute) {
            return;
        }
        let notes = &object.metadata().annotations;
        let (timeouts, retry) = (annotations::timeouts(notes, problems), annotations::retry(notes, problems));
        let faults = annotations::faults(notes, object.kind() == Kind::GrpcRoute, problems);
        for rule in &mut self.rules {
            rule.timeouts.request = rule.timeouts.request.or(timeouts.request);
            rule.timeouts.response = rule.timeouts.response.or(timeouts.response);
            rule.timeouts.idle = rule.timeouts.idle.or(timeouts.idle);
            rule.retry = rule.retry.take().or_else(|| retry.clone());
            rule.filters.splice(0..0, faults.iter().cloned().map(RuleFilter::Plain));
        }
    }

    /// The object, for metrics and errors.
    pub(super) fn meta(&self) -> Meta {
        let (group, kind) = self.key.kind.group_kind();
        Meta::Resource {
            group: group.into(),
            kind: kind.into(),
            namespace: self.key.name.namespace.to_string(),
            name: self.key.name.name.to_string(),
            section: String::new(),
            port: 0,
        }
    }

    /// The services that it sends something to, copies among it.
    pub(super) fn backends(&self) -> impl Iterator<Item = &Name> {
        let backends = || self.rules.iter().flat_map(|rule| rule.backends.iter().flatten());
        let filters = self.rules.iter().flat_map(|rule| &rule.filters);
        let mirrors =
            filters.chain(backends().flat_map(|backend| &backend.filters)).filter_map(|filter| match filter {
                RuleFilter::Mirror(backend, _) => Some(&**backend),
                RuleFilter::Plain(_) => None,
            });
        backends().chain(mirrors).filter_map(|backend| backend.service.as_ref())
    }

    /// True when it treats requests to this port of this service.
    pub(super) fn is_for(&self, service: &Name, port: u16) -> bool {
        self.parents.iter().any(|(parent, of)| parent == service && of.is_none_or(|of| of == port))
    }
}

fn http_rule(rule: &HttpRouteRule, namespace: &str, problems: &mut Vec<String>) -> Option<Rule> {
    let matches = matches(&rule.matches, problems, http_match)?;
    let mut duration = |value: &Option<String>| {
        let value = value.as_deref()?;
        let parsed = parse_gep_duration(value);
        if parsed.is_none() {
            problems.push(format!("timeout {value:?} is ignored: not a duration as 500ms or 1m30s"));
        }
        parsed.filter(|timeout| !timeout.is_zero())
    };
    let (mut request, mut attempt) = (None, None);
    if let Some(timeouts) = &rule.timeouts {
        (request, attempt) = (duration(&timeouts.request), duration(&timeouts.backend_request));
    }
    let mut retry = rule.retry.as_ref().map(|retry| route_retry(retry, problems));
    let mut timeouts = Timeouts { request, ..Timeouts::default() };
    // One attempt's time bounds the attempt where there can be several, else the only response.
    match &mut retry {
        Some(retry) => retry.timeout = attempt,
        None => timeouts.response = attempt,
    }
    let filters = filters(&rule.filters, namespace, problems);
    Some(Rule { matches, filters, backends: backends(&rule.backend_refs, namespace, problems), timeouts, retry })
}

fn route_retry(from: &RouteRetry, problems: &mut Vec<String>) -> Retry {
    let min = from.backoff.as_deref().and_then(|text| {
        let parsed = parse_gep_duration(text);
        if parsed.is_none() {
            problems.push(format!("retry.backoff {text:?} is ignored: not a duration as 500ms"));
        }
        parsed.filter(|min| !min.is_zero())
    });
    let default = annotations::retry_backoff();
    let backoff = min.map_or(default, |min| Backoff { min, max: default.max.max(min * 10), ..default });
    Retry {
        limit: from.attempts.unwrap_or(1),
        max_body: defaults::RETRY_MAX_BODY,
        statuses: from.codes.iter().map(|code| (*code, *code)).collect(),
        grpc_codes: Vec::new(),
        timeout: None,
        backoff: Some(backoff),
    }
}

/// `None` when there were matches but none can be obeyed: then the rule is left out.
fn matches<T>(
    from: &[T],
    problems: &mut Vec<String>,
    read: impl Fn(&T) -> Result<RequestMatch, String>,
) -> Option<Vec<RequestMatch>> {
    let mut found = Vec::with_capacity(from.len());
    for each in from {
        match read(each) {
            Ok(one) => found.push(one),
            Err(reason) => problems.push(format!("{LEFT_OUT}: {reason}")),
        }
    }
    (from.is_empty() || !found.is_empty()).then_some(found)
}

const LEFT_OUT: &str = "a match is left out";

fn http_match(from: &HttpRouteMatch) -> Result<RequestMatch, String> {
    let path = from.path.as_ref().map(|path| {
        let value = path.value.clone().unwrap_or_else(|| "/".into());
        match path.kind.as_deref() {
            Some("Exact") => Ok(PathMatch::Exact(value)),
            None | Some("PathPrefix") => Ok(PathMatch::Prefix(value)),
            Some("RegularExpression") => Ok(PathMatch::Regex(checked(&value)?)),
            Some(other) => Err(format!("path.type {other:?} is unknown")),
        }
    });
    let query = |m: &NamedMatch| Ok::<_, String>(QueryMatch { name: m.name.clone(), value: value_match(m)? });
    Ok(RequestMatch {
        path: path.transpose()?,
        headers: headers(&from.headers)?,
        query: from.query_params.iter().map(query).collect::<Result<_, _>>()?,
        method: from.method.clone(),
    })
}

fn grpc_match(from: &GrpcRouteMatch) -> Result<RequestMatch, String> {
    let path = match &from.method {
        None => None,
        Some(method) if matches!(method.kind.as_deref(), None | Some("Exact")) => Some(PathMatch::Rpc {
            service: method.service.clone().unwrap_or_default(),
            method: method.method.clone().unwrap_or_default(),
        }),
        Some(method) => return Err(format!("method.type {:?} is not supported", method.kind.as_deref().unwrap_or(""))),
    };
    Ok(RequestMatch { path, headers: headers(&from.headers)?, ..RequestMatch::default() })
}

fn headers(from: &[NamedMatch]) -> Result<Vec<HeaderMatch>, String> {
    from.iter().map(|m| Ok(HeaderMatch { name: m.name.to_ascii_lowercase(), value: value_match(m)? })).collect()
}

fn value_match(from: &NamedMatch) -> Result<ValueMatch, String> {
    match from.kind.as_deref() {
        None | Some("Exact") => Ok(ValueMatch::Exact(from.value.clone().into_bytes())),
        Some("RegularExpression") => Ok(ValueMatch::Regex(checked(&from.value)?)),
        Some(other) => Err(format!("type {other:?} of {:?} is unknown", from.name)),
    }
}

/// A proxy refuses a whole policy for an expression that it can't read.
fn checked(expression: &str) -> Result<String, String> {
    match regex::RegexBuilder::new(expression).size_limit(REGEX_BYTES).build() {
        Ok(_) => Ok(expression.to_string()),
        Err(error) => Err(format!("{expression:?} is no regular expression: {error}")),
    }
}

/// All filters; what stands for one that is not supported fails the rule's requests.
fn filters(from: &[RouteFilter], namespace: &str, problems: &mut Vec<String>) -> Vec<RuleFilter> {
    let mut found = Vec::new();
    for filter in from {
        let read = match filter.kind.as_str() {
            "RequestHeaderModifier" => filter.request_header_modifier.as_ref().map(|h| Filter::RequestHeaders(edit(h))),
            "ResponseHeaderModifier" => {
                filter.response_header_modifier.as_ref().map(|h| Filter::ResponseHeaders(edit(h)))
            }
            "RequestRedirect" => filter.request_redirect.as_ref().map(|r| Filter::Redirect(redirect(r))),
            "URLRewrite" => filter.url_rewrite.as_ref().map(|r| Filter::Extension(Box::new(rewrite(r)))),
            "RequestMirror" => {
                match &filter.request_mirror {
                    Some(of) => found.push(mirror(of, namespace, problems)),
                    // A copy that goes nowhere changes nothing for the request.
                    None => problems.push("filter \"RequestMirror\" is ignored: it is empty".into()),
                }
                continue;
            }
            _ => None,
        };
        found.push(RuleFilter::Plain(read.unwrap_or_else(|| {
            let problem = format!("filter {:?} is not supported, or empty: its requests fail", filter.kind);
            problems.push(problem.clone());
            failure(problem)
        })));
    }
    found
}

/// Linkerd's gRPC routes cannot carry changes of response headers.
fn carry_response_headers(filter: &mut RuleFilter) {
    if let RuleFilter::Plain(Filter::ResponseHeaders(edit)) = filter {
        *filter = RuleFilter::Plain(Filter::Extension(Box::new(Extension::ResponseHeaders(std::mem::take(edit)))));
    }
}

fn rewrite(from: &UrlRewrite) -> Extension {
    Extension::Rewrite(Rewrite { host: from.hostname.clone(), path: from.path.as_ref().and_then(path_modifier) })
}

fn mirror(from: &RequestMirror, namespace: &str, problems: &mut Vec<String>) -> RuleFilter {
    let ratio = match (&from.fraction, from.percent) {
        (Some(fraction), _) => (fraction.numerator, fraction.denominator.unwrap_or(100).max(1)),
        (None, Some(percent)) => (percent, 100),
        (None, None) => (1, 1),
    };
    let ratio = (ratio.0.min(ratio.1), ratio.1);
    RuleFilter::Mirror(Box::new(backend(&from.backend_ref, namespace, problems)), ratio)
}

fn path_modifier(from: &PathRewrite) -> Option<PathModifier> {
    let full = from.replace_full_path.clone().map(PathModifier::Full);
    full.or_else(|| from.replace_prefix_match.clone().map(PathModifier::Prefix))
}

fn edit(from: &HeaderModifier) -> HeaderEdit {
    let all = |headers: &[gossamer_api::kubernetes::Header]| {
        headers.iter().map(|header| (header.name.clone(), header.value.clone().into_bytes())).collect()
    };
    HeaderEdit { set: all(&from.set), add: all(&from.add), remove: from.remove.clone() }
}

fn redirect(from: &RequestRedirect) -> Redirect {
    Redirect {
        scheme: from.scheme.clone(),
        host: from.hostname.clone(),
        port: from.port,
        path: from.path.as_ref().and_then(path_modifier),
        status: from.status_code.unwrap_or(302),
    }
}

fn backends(from: &[BackendRef], namespace: &str, problems: &mut Vec<String>) -> Option<Vec<RuleBackend>> {
    if from.is_empty() {
        return None;
    }
    Some(from.iter().map(|from| backend(from, namespace, problems)).collect())
}

fn backend(from: &BackendRef, namespace: &str, problems: &mut Vec<String>) -> RuleBackend {
    let core = matches!(from.group.as_deref(), None | Some("" | "core"));
    let service = core && matches!(from.kind.as_deref(), None | Some("Service"));
    if !service {
        let kind = from.kind.as_deref().unwrap_or("Service");
        problems.push(format!("backend {:?} of kind {kind:?} is not supported: its share fails", from.name));
    }
    let filters = filters(&from.filters, namespace, problems);
    let namespace = from.namespace.as_deref().unwrap_or(namespace);
    RuleBackend {
        service: service.then(|| Name::new(namespace, &from.name)),
        name: from.name.clone(),
        port: from.port,
        weight: from.weight.unwrap_or(1),
        filters,
    }
}

pub(super) fn service_parent(parent: &ParentRef, namespace: &str) -> Option<(Name, Option<u16>)> {
    let core = matches!(parent.group.as_deref(), Some("" | "core"));
    let service = core && parent.kind.as_deref() == Some("Service");
    service.then(|| (Name::new(parent.namespace.as_deref().unwrap_or(namespace), &parent.name), parent.port))
}

fn host_match(host: &str) -> HostMatch {
    let host = host.to_ascii_lowercase();
    match host.strip_prefix("*.") {
        Some(suffix) => HostMatch::Suffix(suffix.to_string()),
        None => HostMatch::Exact(host),
    }
}

/// Fails everything: what the Gateway API asks for where nothing is left to send requests to.
pub(super) fn failure(message: String) -> Filter {
    Filter::Fail(Failure { status: 500, message, ratio: (1, 1) })
}
