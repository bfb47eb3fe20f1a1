//! gRPC routes of outbound policies: in the domain they are HTTP routes with other failures and retries.

use super::*;

#[allow(deprecated)]
pub(super) fn grpc_route_to_proto(from: &HttpRoute) -> proto::GrpcRoute {
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
pub(super) fn grpc_route_from_proto(from: proto::GrpcRoute) -> Decoded<HttpRoute> {
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
pub(super) fn grpc_backend_to_proto(from: &RouteBackend, grpc: bool) -> proto::grpc_route::RouteBackend {
    proto::grpc_route::RouteBackend {
        backend: Some(backend_to_proto(&from.backend)),
        filters: from.filters.iter().map(|filter| grpc_filter_to_proto(filter, grpc)).collect(),
        request_timeout: None,
    }
}

pub(super) fn grpc_backend_from_proto(from: proto::grpc_route::RouteBackend) -> Decoded<RouteBackend> {
    Ok(RouteBackend {
        backend: backend_from_proto(required(from.backend, "backend")?).within("backend")?,
        filters: each(from.filters, "filters", grpc_filter_from_proto)?,
    })
}

pub(super) fn grpc_filter_to_proto(from: &Filter, grpc: bool) -> proto::grpc_route::Filter {
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

pub(super) fn grpc_filter_from_proto(from: proto::grpc_route::Filter) -> Decoded<Filter> {
    use proto::grpc_route::filter::Kind;
    Ok(match from.kind {
        Some(Kind::RequestHeaderModifier(edit)) => {
            Filter::RequestHeaders(edit_from_proto(edit.add, edit.set, edit.remove)?)
        }
        Some(Kind::FailureInjector(failure)) => failure_or_name(failure_from_grpc(failure)?),
        None => Filter::Fail(unsupported_filter(true)),
    })
}

pub(super) fn grpc_retry_to_proto(from: &Retry) -> proto::grpc_route::Retry {
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

pub(super) fn grpc_retry_from_proto(from: proto::grpc_route::Retry) -> Decoded<Retry> {
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
