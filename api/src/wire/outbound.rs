//! How targets are treated: what `OutboundPolicies` asks and streams.

use super::extension::{extension_name, failure_or_name, marker};
use super::route::*;
use super::{
    Decoded, InvalidMessage, Within, address_from_proto, address_to_proto, duration_from_proto, duration_to_proto,
    each, endpoint_from_proto, endpoint_to_proto, meta_from_proto, meta_to_proto, narrow, required,
};
use crate::defaults;
use crate::policy::{
    Backend, BackendTarget, Backoff, Breaker, Distribution, Filter, HttpRoute, HttpRoutes, HttpRule, Load, LoadPenalty,
    Meta, OutboundPolicy, OutboundProtocol, Queue, Refuse, Retry, RouteBackend, SuccessRate, Target, TcpRoute, TcpRule,
    Timeouts,
};
use linkerd2_proxy_api::http_route::Timeouts as TimeoutsProto;
use linkerd2_proxy_api::outbound::{self as proto, backend, failure_accrual, proxy_protocol, traffic_spec};
use linkerd2_proxy_api::{meta, opaque_route};
use std::time::Duration;

// ---- the question --------------------------------------------------------------------------------------------------

/// Asks how a workload's traffic to a target is treated. The workload is JSON, as everywhere in the API.
pub fn traffic_spec_to_proto(workload: &str, target: &Target) -> proto::TrafficSpec {
    let target = match target {
        Target::Addr(addr) => traffic_spec::Target::Addr(address_to_proto(*addr)),
        Target::Authority(name) => traffic_spec::Target::Authority(name.clone()),
    };
    proto::TrafficSpec { source_workload: workload.to_string(), target: Some(target) }
}

/// The workload (JSON) and what it wants to reach.
pub fn traffic_spec_from_proto(from: proto::TrafficSpec) -> Decoded<(String, Target)> {
    let target = match required(from.target, "target")? {
        traffic_spec::Target::Addr(addr) => Target::Addr(address_from_proto(addr).within("target.addr")?),
        traffic_spec::Target::Authority(name) if name.is_empty() => {
            return Err(InvalidMessage::missing("target.authority"));
        }
        traffic_spec::Target::Authority(name) => Target::Authority(name),
    };
    Ok((from.source_workload, target))
}

// ---- the answer ----------------------------------------------------------------------------------------------------

/// How a target is treated.
///
/// linkerd2-proxy takes one opaque route and one rule of a TCP or TLS route; more of them are not sent.
pub fn outbound_policy_to_proto(from: &OutboundPolicy) -> proto::OutboundPolicy {
    use proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
    let http1 = |http: &HttpRoutes| Http1 {
        routes: http.routes.iter().map(http_route_to_proto).collect(),
        failure_accrual: http.breaker.as_ref().map(breaker_to_proto),
    };
    let http2 = |http: &HttpRoutes| Http2 {
        routes: http.routes.iter().map(http_route_to_proto).collect(),
        failure_accrual: http.breaker.as_ref().map(breaker_to_proto),
    };
    let opaque = |routes: &[TcpRoute]| Opaque { routes: routes.iter().take(1).map(opaque_route_to_proto).collect() };
    let kind = match &from.protocol {
        OutboundProtocol::Detect { timeout, http1: one, http2: two, opaque: tcp } => Kind::Detect(Detect {
            timeout: Some(duration_to_proto(*timeout)),
            opaque: Some(opaque(tcp)),
            http1: Some(http1(one)),
            http2: Some(http2(two)),
        }),
        OutboundProtocol::Http1(http) => Kind::Http1(http1(http)),
        OutboundProtocol::Http2(http) => Kind::Http2(http2(http)),
        OutboundProtocol::Grpc(http) => Kind::Grpc(Grpc {
            routes: http.routes.iter().map(grpc_route_to_proto).collect(),
            failure_accrual: http.breaker.as_ref().map(breaker_to_proto),
        }),
        OutboundProtocol::Opaque(routes) => Kind::Opaque(opaque(routes)),
        OutboundProtocol::Tls(routes) => Kind::Tls(Tls { routes: routes.iter().map(tls_route_to_proto).collect() }),
    };
    proto::OutboundPolicy {
        protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
        metadata: Some(meta_to_proto(&from.meta)),
    }
}

/// How a target is treated.
pub fn outbound_policy_from_proto(from: proto::OutboundPolicy) -> Decoded<OutboundPolicy> {
    use proxy_protocol::Kind;
    let meta = meta_required(from.metadata)?;
    let protocol = match required(from.protocol.and_then(|protocol| protocol.kind), "protocol")? {
        Kind::Detect(detect) => {
            let http1 = required(detect.http1, "protocol.detect.http1")?;
            let http2 = required(detect.http2, "protocol.detect.http2")?;
            let opaque = required(detect.opaque, "protocol.detect.opaque")?;
            OutboundProtocol::Detect {
                timeout: duration_from_proto(detect.timeout, "protocol.detect.timeout")?
                    .unwrap_or(defaults::DETECT_PATIENCE),
                http1: http_routes(http1.routes, http1.failure_accrual).within("protocol.detect.http1")?,
                http2: http_routes(http2.routes, http2.failure_accrual).within("protocol.detect.http2")?,
                opaque: each(opaque.routes, "protocol.detect.opaque.routes", opaque_route_from_proto)?,
            }
        }
        Kind::Http1(http) => {
            OutboundProtocol::Http1(http_routes(http.routes, http.failure_accrual).within("protocol.http1")?)
        }
        Kind::Http2(http) => {
            OutboundProtocol::Http2(http_routes(http.routes, http.failure_accrual).within("protocol.http2")?)
        }
        Kind::Grpc(grpc) => OutboundProtocol::Grpc(HttpRoutes {
            routes: each(grpc.routes, "protocol.grpc.routes", grpc_route_from_proto)?,
            breaker: grpc
                .failure_accrual
                .map(breaker_from_proto)
                .transpose()
                .within("protocol.grpc.failure_accrual")?,
        }),
        Kind::Opaque(opaque) => {
            OutboundProtocol::Opaque(each(opaque.routes, "protocol.opaque.routes", opaque_route_from_proto)?)
        }
        Kind::Tls(tls) => OutboundProtocol::Tls(each(tls.routes, "protocol.tls.routes", tls_route_from_proto)?),
    };
    Ok(OutboundPolicy { meta, protocol })
}

fn meta_required(from: Option<meta::Metadata>) -> Decoded<Meta> {
    meta_from_proto(required(from, "metadata")?).within("metadata")
}

fn http_routes(routes: Vec<proto::HttpRoute>, accrual: Option<proto::FailureAccrual>) -> Decoded<HttpRoutes> {
    Ok(HttpRoutes {
        routes: each(routes, "routes", http_route_from_proto)?,
        breaker: breaker_or_none(accrual).within("failure_accrual")?,
    })
}

// ---- distributions -------------------------------------------------------------------------------------------------

// The four kinds of routes have four types that differ in name only.
macro_rules! distribution {
    ($module:ident, $backend:ty, $to_proto:ident, $from_proto:ident, $one_to_proto:path, $one_from_proto:path) => {
        fn $to_proto(from: &Distribution<$backend>, context: bool) -> proto::$module::Distribution {
            use proto::$module::{WeightedRouteBackend, distribution::*};
            let kind = match from {
                Distribution::First(all) if !all.is_empty() => Kind::FirstAvailable(FirstAvailable {
                    backends: all.iter().map(|backend| $one_to_proto(backend, context)).collect(),
                }),
                // Without any weight nothing may be forwarded (Gateway API), and linkerd2-proxy could not choose.
                Distribution::Random(all) if all.iter().any(|(_, weight)| *weight > 0) => {
                    let weighted = |(backend, weight): &($backend, u32)| WeightedRouteBackend {
                        backend: Some($one_to_proto(backend, context)),
                        weight: *weight,
                    };
                    Kind::RandomAvailable(RandomAvailable { backends: all.iter().map(weighted).collect() })
                }
                Distribution::Empty | Distribution::First(_) | Distribution::Random(_) => Kind::Empty(Empty {}),
            };
            proto::$module::Distribution { kind: Some(kind) }
        }

        fn $from_proto(from: Option<proto::$module::Distribution>) -> Decoded<Distribution<$backend>> {
            use proto::$module::distribution::Kind;
            Ok(match required(from.and_then(|distribution| distribution.kind), "backends")? {
                Kind::Empty(_) => Distribution::Empty,
                Kind::FirstAvailable(first) => {
                    Distribution::First(each(first.backends, "backends.first_available", $one_from_proto)?)
                }
                Kind::RandomAvailable(random) => {
                    let decode = |weighted: proto::$module::WeightedRouteBackend| {
                        Ok(($one_from_proto(required(weighted.backend, "backend")?)?, weighted.weight))
                    };
                    Distribution::Random(each(random.backends, "backends.random_available", decode)?)
                }
            })
        }
    };
}

distribution!(
    http_route,
    RouteBackend,
    http_backends_to_proto,
    http_backends_from_proto,
    http_backend_to_proto,
    http_backend_from_proto
);
distribution!(
    grpc_route,
    RouteBackend,
    grpc_backends_to_proto,
    grpc_backends_from_proto,
    grpc_backend_to_proto,
    grpc_backend_from_proto
);
distribution!(
    opaque_route,
    Backend,
    opaque_backends_to_proto,
    opaque_backends_from_proto,
    opaque_backend_to_proto,
    opaque_backend_from_proto
);
distribution!(
    tls_route,
    Backend,
    tls_backends_to_proto,
    tls_backends_from_proto,
    tls_backend_to_proto,
    tls_backend_from_proto
);

// ---- HTTP routes ---------------------------------------------------------------------------------------------------

#[allow(deprecated)] // request_timeout is what older proxies read.
fn http_route_to_proto(from: &HttpRoute) -> proto::HttpRoute {
    let rule = |rule: &HttpRule| {
        Some(proto::http_route::Rule {
            matches: matches_to_proto(&rule.matches, http_match_to_proto)?,
            filters: rule.filters.iter().map(|filter| http_filter_to_proto(filter, from.grpc)).collect(),
            backends: Some(http_backends_to_proto(&rule.backends, from.grpc)),
            request_timeout: rule.timeouts.request.map(duration_to_proto),
            timeouts: Some(timeouts_to_proto(&rule.timeouts)),
            retry: rule.retry.as_ref().map(http_retry_to_proto),
            allow_l5d_request_headers: rule.allow_l5d_request_headers,
        })
    };
    proto::HttpRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        hosts: from.hosts.iter().map(host_to_proto).collect(),
        rules: from.rules.iter().filter_map(rule).collect(),
    }
}

#[allow(deprecated)]
fn http_route_from_proto(from: proto::HttpRoute) -> Decoded<HttpRoute> {
    let rule = |rule: proto::http_route::Rule| {
        Ok(HttpRule {
            matches: each(rule.matches, "matches", http_match_from_proto)?,
            filters: each(rule.filters, "filters", http_filter_from_proto)?,
            backends: http_backends_from_proto(rule.backends)?,
            timeouts: timeouts_from_proto(rule.timeouts, rule.request_timeout)?,
            retry: rule.retry.map(http_retry_from_proto).transpose().within("retry")?,
            allow_l5d_request_headers: rule.allow_l5d_request_headers,
        })
    };
    Ok(HttpRoute {
        meta: meta_required(from.metadata)?,
        hosts: each(from.hosts, "hosts", host_from_proto)?,
        rules: each(from.rules, "rules", rule)?,
        grpc: false,
    })
}

#[allow(deprecated)]
fn http_backend_to_proto(from: &RouteBackend, grpc: bool) -> proto::http_route::RouteBackend {
    proto::http_route::RouteBackend {
        backend: Some(backend_to_proto(&from.backend)),
        filters: from.filters.iter().map(|filter| http_filter_to_proto(filter, grpc)).collect(),
        request_timeout: None,
    }
}

fn http_backend_from_proto(from: proto::http_route::RouteBackend) -> Decoded<RouteBackend> {
    Ok(RouteBackend {
        backend: backend_from_proto(required(from.backend, "backend")?).within("backend")?,
        filters: each(from.filters, "filters", http_filter_from_proto)?,
    })
}

fn http_filter_to_proto(from: &Filter, grpc: bool) -> proto::http_route::Filter {
    use proto::http_route::filter::Kind;
    let kind = match from {
        Filter::RequestHeaders(edit) => Kind::RequestHeaderModifier(request_edit_to_proto(edit)),
        Filter::ResponseHeaders(edit) => Kind::ResponseHeaderModifier(response_edit_to_proto(edit)),
        Filter::Redirect(redirect) => Kind::Redirect(redirect_to_proto(redirect)),
        Filter::Fail(failure) => Kind::FailureInjector(failure_to_http(failure, grpc)),
        Filter::Extension(of) => Kind::FailureInjector(failure_to_http(&marker(extension_name(of), grpc), grpc)),
        Filter::Named(name) => Kind::FailureInjector(failure_to_http(&marker(*name, grpc), grpc)),
    };
    proto::http_route::Filter { kind: Some(kind) }
}

fn http_filter_from_proto(from: proto::http_route::Filter) -> Decoded<Filter> {
    use proto::http_route::filter::Kind;
    Ok(match from.kind {
        Some(Kind::RequestHeaderModifier(edit)) => {
            Filter::RequestHeaders(edit_from_proto(edit.add, edit.set, edit.remove)?)
        }
        Some(Kind::ResponseHeaderModifier(edit)) => {
            Filter::ResponseHeaders(edit_from_proto(edit.add, edit.set, edit.remove)?)
        }
        Some(Kind::Redirect(redirect)) => Filter::Redirect(redirect_from_proto(redirect)?),
        Some(Kind::FailureInjector(failure)) => failure_or_name(failure_from_http(failure)?),
        None => Filter::Fail(unsupported_filter(false)),
    })
}

fn http_retry_to_proto(from: &Retry) -> proto::http_route::Retry {
    use proto::http_route::retry::{Conditions, conditions::StatusRange};
    // gRPC codes travel as ranges below every HTTP status: the message has no field for them, and linkerd2-proxy takes
    // them for statuses that no response has. It refuses ranges outside of 1 to 599 and more than 65535 attempts.
    let codes = from.grpc_codes.iter().map(|code| (*code, *code));
    let range = |(start, end): (u16, u16)| {
        let (start, end) = (start.max(1), end.min(599));
        (start <= end).then_some(StatusRange { start: u32::from(start), end: u32::from(end) })
    };
    let statuses = from.statuses.iter().copied().chain(codes).filter_map(range);
    proto::http_route::Retry {
        max_retries: from.limit.min(u32::from(u16::MAX)),
        max_request_bytes: u32::try_from(from.max_body).unwrap_or(u32::MAX),
        conditions: Some(Conditions { status_ranges: statuses.collect() }),
        timeout: from.timeout.map(duration_to_proto),
        backoff: from.backoff.as_ref().map(backoff_to_proto),
    }
}

/// HTTP has no status below; gRPC no code above.
const LEAST_STATUS: u16 = 100;

fn http_retry_from_proto(from: proto::http_route::Retry) -> Decoded<Retry> {
    use proto::http_route::retry::conditions::StatusRange;
    let conditions = required(from.conditions, "conditions")?;
    let statuses = each(conditions.status_ranges, "conditions.status_ranges", |range: StatusRange| {
        let (start, end) = (narrow(range.start, "start")?, narrow(range.end, "end")?);
        match 1 <= start && start <= end && end <= 599 {
            true => Ok((start, end)),
            false => Err(InvalidMessage::new("", format_args!("{start}-{end} is no range of HTTP statuses"))),
        }
    })?;
    let (codes, statuses): (Vec<_>, Vec<_>) = statuses.into_iter().partition(|(_, end)| *end < LEAST_STATUS);
    Ok(Retry {
        limit: from.max_retries,
        max_body: from.max_request_bytes as usize,
        statuses,
        grpc_codes: codes.into_iter().flat_map(|(start, end)| start..=end).collect(),
        timeout: duration_from_proto(from.timeout, "timeout")?,
        backoff: from.backoff.map(backoff_from_proto).transpose().within("backoff")?,
    })
}

// ---- gRPC routes ---------------------------------------------------------------------------------------------------

#[allow(deprecated)]
fn grpc_route_to_proto(from: &HttpRoute) -> proto::GrpcRoute {
    let rule = |rule: &HttpRule| {
        Some(proto::grpc_route::Rule {
            matches: matches_to_proto(&rule.matches, grpc_match_to_proto)?,
            filters: rule.filters.iter().map(|filter| grpc_filter_to_proto(filter, from.grpc)).collect(),
            backends: Some(grpc_backends_to_proto(&rule.backends, from.grpc)),
            request_timeout: rule.timeouts.request.map(duration_to_proto),
            timeouts: Some(timeouts_to_proto(&rule.timeouts)),
            retry: rule.retry.as_ref().map(grpc_retry_to_proto),
            allow_l5d_request_headers: rule.allow_l5d_request_headers,
        })
    };
    proto::GrpcRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        hosts: from.hosts.iter().map(host_to_proto).collect(),
        rules: from.rules.iter().filter_map(rule).collect(),
    }
}

#[allow(deprecated)]
fn grpc_route_from_proto(from: proto::GrpcRoute) -> Decoded<HttpRoute> {
    let rule = |rule: proto::grpc_route::Rule| {
        Ok(HttpRule {
            matches: each(rule.matches, "matches", grpc_match_from_proto)?,
            filters: each(rule.filters, "filters", grpc_filter_from_proto)?,
            backends: grpc_backends_from_proto(rule.backends)?,
            timeouts: timeouts_from_proto(rule.timeouts, rule.request_timeout)?,
            retry: rule.retry.map(grpc_retry_from_proto).transpose().within("retry")?,
            allow_l5d_request_headers: rule.allow_l5d_request_headers,
        })
    };
    Ok(HttpRoute {
        meta: meta_required(from.metadata)?,
        hosts: each(from.hosts, "hosts", host_from_proto)?,
        rules: each(from.rules, "rules", rule)?,
        grpc: true,
    })
}

#[allow(deprecated)]
fn grpc_backend_to_proto(from: &RouteBackend, grpc: bool) -> proto::grpc_route::RouteBackend {
    proto::grpc_route::RouteBackend {
        backend: Some(backend_to_proto(&from.backend)),
        filters: from.filters.iter().map(|filter| grpc_filter_to_proto(filter, grpc)).collect(),
        request_timeout: None,
    }
}

fn grpc_backend_from_proto(from: proto::grpc_route::RouteBackend) -> Decoded<RouteBackend> {
    Ok(RouteBackend {
        backend: backend_from_proto(required(from.backend, "backend")?).within("backend")?,
        filters: each(from.filters, "filters", grpc_filter_from_proto)?,
    })
}

fn grpc_filter_to_proto(from: &Filter, grpc: bool) -> proto::grpc_route::Filter {
    use proto::grpc_route::filter::Kind;
    let kind = match from {
        Filter::RequestHeaders(edit) => Kind::RequestHeaderModifier(request_edit_to_proto(edit)),
        Filter::Fail(failure) => Kind::FailureInjector(failure_to_grpc(failure, grpc)),
        Filter::Extension(of) => Kind::FailureInjector(failure_to_grpc(&marker(extension_name(of), grpc), grpc)),
        Filter::Named(name) => Kind::FailureInjector(failure_to_grpc(&marker(*name, grpc), grpc)),
        Filter::ResponseHeaders(_) | Filter::Redirect(_) => {
            Kind::FailureInjector(failure_to_grpc(&unsupported_filter(true), true))
        }
    };
    proto::grpc_route::Filter { kind: Some(kind) }
}

fn grpc_filter_from_proto(from: proto::grpc_route::Filter) -> Decoded<Filter> {
    use proto::grpc_route::filter::Kind;
    Ok(match from.kind {
        Some(Kind::RequestHeaderModifier(edit)) => {
            Filter::RequestHeaders(edit_from_proto(edit.add, edit.set, edit.remove)?)
        }
        Some(Kind::FailureInjector(failure)) => failure_or_name(failure_from_grpc(failure)?),
        None => Filter::Fail(unsupported_filter(true)),
    })
}

fn grpc_retry_to_proto(from: &Retry) -> proto::grpc_route::Retry {
    let has = |code| from.grpc_codes.contains(&code);
    proto::grpc_route::Retry {
        max_retries: from.limit,
        max_request_bytes: u32::try_from(from.max_body).unwrap_or(u32::MAX),
        // The wire has these five codes and no others.
        conditions: Some(proto::grpc_route::retry::Conditions {
            cancelled: has(1),
            deadine_exceeded: has(4),
            resource_exhausted: has(8),
            internal: has(13),
            unavailable: has(14),
        }),
        timeout: from.timeout.map(duration_to_proto),
        backoff: from.backoff.as_ref().map(backoff_to_proto),
    }
}

fn grpc_retry_from_proto(from: proto::grpc_route::Retry) -> Decoded<Retry> {
    let on = required(from.conditions, "conditions")?;
    let codes = [
        (on.cancelled, 1),
        (on.deadine_exceeded, 4),
        (on.resource_exhausted, 8),
        (on.internal, 13),
        (on.unavailable, 14),
    ];
    Ok(Retry {
        limit: from.max_retries,
        max_body: from.max_request_bytes as usize,
        statuses: Vec::new(),
        grpc_codes: codes.into_iter().filter_map(|(set, code)| set.then_some(code)).collect(),
        timeout: duration_from_proto(from.timeout, "timeout")?,
        backoff: from.backoff.map(backoff_from_proto).transpose().within("backoff")?,
    })
}

// ---- TCP and TLS routes --------------------------------------------------------------------------------------------

/// The one rule; a route without rules goes nowhere.
fn first_rule(from: &TcpRoute) -> TcpRule {
    from.rules.first().cloned().unwrap_or_default()
}

fn opaque_route_to_proto(from: &TcpRoute) -> proto::OpaqueRoute {
    use proto::opaque_route::{Filter, Rule, filter::Kind};
    let rule = first_rule(from);
    let filter = rule.refuse.as_ref().map(|refuse| match refuse {
        Refuse::Forbidden => Kind::Forbidden(opaque_route::Forbidden {}),
        Refuse::Invalid(message) => Kind::Invalid(opaque_route::Invalid { message: message.clone() }),
    });
    proto::OpaqueRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        rules: vec![Rule {
            backends: Some(opaque_backends_to_proto(&rule.backends, false)),
            filters: filter.map(|kind| Filter { kind: Some(kind) }).into_iter().collect(),
        }],
    }
}

fn opaque_route_from_proto(from: proto::OpaqueRoute) -> Decoded<TcpRoute> {
    use proto::opaque_route::{Filter, Rule, filter::Kind};
    let refuse = |filter: Filter| match filter.kind {
        Some(Kind::Forbidden(_)) => Refuse::Forbidden,
        Some(Kind::Invalid(invalid)) => Refuse::Invalid(invalid.message),
        None => Refuse::Invalid("the route has a filter that is not supported".into()),
    };
    let rule = |rule: Rule| {
        Ok(TcpRule {
            backends: opaque_backends_from_proto(rule.backends)?,
            refuse: rule.filters.into_iter().next().map(refuse),
        })
    };
    let rules = each(from.rules, "rules", rule)?;
    Ok(TcpRoute { meta: meta_required(from.metadata)?, snis: Vec::new(), rules })
}

fn tls_route_to_proto(from: &TcpRoute) -> proto::TlsRoute {
    use proto::tls_route::{Filter, Rule, filter::Kind};
    let rule = first_rule(from);
    let filter = rule.refuse.as_ref().map(|refuse| match refuse {
        Refuse::Forbidden => Kind::Forbidden(opaque_route::Forbidden {}),
        Refuse::Invalid(message) => Kind::Invalid(opaque_route::Invalid { message: message.clone() }),
    });
    proto::TlsRoute {
        metadata: Some(meta_to_proto(&from.meta)),
        snis: from.snis.iter().map(sni_to_proto).collect(),
        rules: vec![Rule {
            backends: Some(tls_backends_to_proto(&rule.backends, false)),
            filters: filter.map(|kind| Filter { kind: Some(kind) }).into_iter().collect(),
        }],
    }
}

fn tls_route_from_proto(from: proto::TlsRoute) -> Decoded<TcpRoute> {
    use proto::tls_route::{Filter, Rule, filter::Kind};
    let refuse = |filter: Filter| match filter.kind {
        Some(Kind::Forbidden(_)) => Refuse::Forbidden,
        Some(Kind::Invalid(invalid)) => Refuse::Invalid(invalid.message),
        None => Refuse::Invalid("the route has a filter that is not supported".into()),
    };
    let rule = |rule: Rule| {
        Ok(TcpRule {
            backends: tls_backends_from_proto(rule.backends)?,
            refuse: rule.filters.into_iter().next().map(refuse),
        })
    };
    Ok(TcpRoute {
        snis: each(from.snis, "snis", sni_from_proto)?,
        rules: each(from.rules, "rules", rule)?,
        meta: meta_required(from.metadata)?,
    })
}

fn opaque_backend_to_proto(from: &Backend, _: bool) -> proto::opaque_route::RouteBackend {
    proto::opaque_route::RouteBackend { backend: Some(backend_to_proto(from)), filters: Vec::new() }
}

/// A filter of a backend can only refuse, and so does a backend that is invalid.
fn opaque_backend_from_proto(from: proto::opaque_route::RouteBackend) -> Decoded<Backend> {
    let mut backend = backend_from_proto(required(from.backend, "backend")?).within("backend")?;
    if !from.filters.is_empty() {
        backend.target = BackendTarget::Invalid;
    }
    Ok(backend)
}

fn tls_backend_to_proto(from: &Backend, _: bool) -> proto::tls_route::RouteBackend {
    proto::tls_route::RouteBackend { backend: Some(backend_to_proto(from)), filters: Vec::new() }
}

fn tls_backend_from_proto(from: proto::tls_route::RouteBackend) -> Decoded<Backend> {
    let mut backend = backend_from_proto(required(from.backend, "backend")?).within("backend")?;
    if !from.filters.is_empty() {
        backend.target = BackendTarget::Invalid;
    }
    Ok(backend)
}

// ---- backends and numbers ------------------------------------------------------------------------------------------

fn backend_to_proto(from: &Backend) -> proto::Backend {
    use backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery};
    let kind = match &from.target {
        BackendTarget::Invalid => None,
        BackendTarget::Forward(endpoint) => Some(Kind::Forward(endpoint_to_proto(endpoint))),
        BackendTarget::Balance { authority, load } => Some(Kind::Balancer(BalanceP2c {
            discovery: Some(EndpointDiscovery {
                kind: Some(endpoint_discovery::Kind::Dst(backend::endpoint_discovery::DestinationGet {
                    path: authority.clone(),
                })),
            }),
            load: Some(match load.penalty {
                None => balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma {
                    default_rtt: Some(duration_to_proto(load.default_rtt)),
                    decay: Some(duration_to_proto(load.decay)),
                }),
                Some(penalty) => balance_p2c::Load::PenaltyPeakEwma(balance_p2c::PenaltyPeakEwma {
                    default_rtt: Some(duration_to_proto(load.default_rtt)),
                    decay: Some(duration_to_proto(load.decay)),
                    penalty: Some(duration_to_proto(penalty.penalty)),
                    max_retry_after: Some(duration_to_proto(penalty.max_retry_after)),
                    penalty_decay: Some(duration_to_proto(penalty.decay)),
                }),
            }),
        })),
    };
    proto::Backend {
        metadata: Some(meta_to_proto(&from.meta)),
        kind,
        queue: Some(proto::Queue {
            capacity: from.queue.capacity,
            failfast_timeout: Some(duration_to_proto(from.queue.failfast)),
        }),
    }
}

fn backend_from_proto(from: proto::Backend) -> Decoded<Backend> {
    use backend::{Kind, endpoint_discovery};
    let target = match from.kind {
        None => BackendTarget::Invalid,
        Some(Kind::Forward(addr)) => BackendTarget::Forward(Box::new(endpoint_from_proto(addr).within("forward")?)),
        Some(Kind::Balancer(balancer)) => {
            let endpoint_discovery::Kind::Dst(discovery) =
                required(balancer.discovery.and_then(|discovery| discovery.kind), "balancer.discovery")?;
            BackendTarget::Balance {
                authority: discovery.path,
                load: load_from_proto(balancer.load).within("balancer")?,
            }
        }
    };
    let queue = from.queue.unwrap_or(proto::Queue { capacity: defaults::QUEUE_CAPACITY, failfast_timeout: None });
    Ok(Backend {
        meta: meta_required(from.metadata)?,
        queue: Queue {
            capacity: queue.capacity,
            failfast: duration_from_proto(queue.failfast_timeout, "queue.failfast_timeout")?
                .unwrap_or(defaults::QUEUE_FAILFAST),
        },
        target,
    })
}

fn load_from_proto(from: Option<backend::balance_p2c::Load>) -> Decoded<Load> {
    use backend::balance_p2c::Load as Kind;
    let or = |duration, field, default| Ok(duration_from_proto(duration, field)?.unwrap_or(default));
    let (default_rtt, decay, penalty) = match from {
        None => (None, None, None),
        Some(Kind::PeakEwma(peak)) => (peak.default_rtt, peak.decay, None),
        Some(Kind::PenaltyPeakEwma(peak)) => {
            // The defaults are linkerd2-proxy's (client-policy lib.rs).
            let penalty = LoadPenalty {
                penalty: or(peak.penalty, "penalty", Duration::from_secs(5))?,
                max_retry_after: or(peak.max_retry_after, "max_retry_after", Duration::from_secs(300))?,
                decay: or(peak.penalty_decay, "penalty_decay", Duration::from_secs(10))?,
            };
            (peak.default_rtt, peak.decay, Some(penalty))
        }
    };
    Ok(Load {
        default_rtt: or(default_rtt, "default_rtt", defaults::EWMA_DEFAULT_RTT)?,
        decay: or(decay, "decay", defaults::EWMA_DECAY)?,
        penalty,
    })
}

fn breaker_to_proto(from: &Breaker) -> proto::FailureAccrual {
    let backoff = Some(backoff_to_proto(&from.backoff));
    let kind = match from.success_rate {
        None => failure_accrual::Kind::ConsecutiveFailures(failure_accrual::ConsecutiveFailures {
            max_failures: from.max_failures,
            backoff,
        }),
        // The bounds are linkerd2-proxy's.
        Some(rate) => failure_accrual::Kind::Unified(failure_accrual::Unified {
            success_rate_threshold: if rate.threshold.is_nan() { 0.0 } else { rate.threshold.clamp(0.0, 1.0) },
            decay: Some(duration_to_proto(rate.window.max(Duration::from_millis(10)))),
            min_requests: rate.min_requests.min(1_000_000),
            max_consecutive_failures: from.max_failures,
            backoff,
        }),
    };
    proto::FailureAccrual {
        ejection: Some(proto::EjectionConfig { min_ready_endpoints: from.min_ready }),
        kind: Some(kind),
    }
}

/// A kind of breaker that this version does not know ejects nothing: the traffic goes on.
fn breaker_or_none(from: Option<proto::FailureAccrual>) -> Decoded<Option<Breaker>> {
    from.filter(|accrual| accrual.kind.is_some()).map(breaker_from_proto).transpose()
}

fn breaker_from_proto(from: proto::FailureAccrual) -> Decoded<Breaker> {
    let backoff = |backoff| backoff_from_proto(required(backoff, "")?).within("backoff");
    // Never the last one, whatever the wire says: a failing answer tells more than none.
    let min_ready = from.ejection.map_or(1, |ejection| ejection.min_ready_endpoints).max(1);
    Ok(match required(from.kind, "kind")? {
        failure_accrual::Kind::ConsecutiveFailures(failures) => Breaker {
            max_failures: failures.max_failures,
            backoff: backoff(failures.backoff)?,
            success_rate: None,
            min_ready,
        },
        failure_accrual::Kind::Unified(unified) => {
            let threshold = unified.success_rate_threshold;
            if !(0.0..=1.0).contains(&threshold) {
                return Err(InvalidMessage::new(
                    "unified.success_rate_threshold",
                    format_args!("{threshold} is not between 0 and 1"),
                ));
            }
            let rate = SuccessRate {
                threshold,
                window: duration_from_proto(unified.decay, "unified.decay")?.unwrap_or(Duration::from_secs(10)),
                min_requests: unified.min_requests,
            };
            Breaker {
                max_failures: unified.max_consecutive_failures,
                backoff: backoff(unified.backoff)?,
                success_rate: (threshold > 0.0).then_some(rate),
                min_ready,
            }
        }
    })
}

fn backoff_to_proto(from: &Backoff) -> proto::ExponentialBackoff {
    // linkerd2-proxy: 0 < max, min <= max, 0 <= jitter <= 100.
    let max = from.max.max(from.min).max(Duration::from_millis(1));
    proto::ExponentialBackoff {
        min_backoff: Some(duration_to_proto(from.min)),
        max_backoff: Some(duration_to_proto(max)),
        jitter_ratio: if from.jitter.is_nan() { 0.0 } else { from.jitter.clamp(0.0, 100.0) },
        respect_retry_after_hint: from.respect_retry_after,
    }
}

fn backoff_from_proto(from: proto::ExponentialBackoff) -> Decoded<Backoff> {
    let min = required(duration_from_proto(from.min_backoff, "min_backoff")?, "min_backoff")?;
    let max = required(duration_from_proto(from.max_backoff, "max_backoff")?, "max_backoff")?;
    if max < min || max.is_zero() {
        return Err(InvalidMessage::new("max_backoff", "is less than min_backoff, or nothing"));
    }
    if !(0.0..=100.0).contains(&from.jitter_ratio) {
        return Err(InvalidMessage::new("jitter_ratio", format_args!("{} is not 0 to 100", from.jitter_ratio)));
    }
    Ok(Backoff { min, max, jitter: from.jitter_ratio, respect_retry_after: from.respect_retry_after_hint })
}

fn timeouts_to_proto(from: &Timeouts) -> TimeoutsProto {
    TimeoutsProto {
        response: from.response.map(duration_to_proto),
        request: from.request.map(duration_to_proto),
        idle: from.idle.map(duration_to_proto),
    }
}

/// As in linkerd2-proxy, the field of older control planes counts where the newer one is not set.
fn timeouts_from_proto(from: Option<TimeoutsProto>, legacy: Option<prost_types::Duration>) -> Decoded<Timeouts> {
    let from = from.unwrap_or_default();
    Ok(Timeouts {
        request: duration_from_proto(from.request.or(legacy), "timeouts.request")?,
        response: duration_from_proto(from.response, "timeouts.response")?,
        idle: duration_from_proto(from.idle, "timeouts.idle")?,
    })
}
