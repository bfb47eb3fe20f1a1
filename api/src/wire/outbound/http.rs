//! HTTP routes of outbound policies.

use super::*;

#[allow(deprecated)] // request_timeout is what older proxies read.
pub(super) fn http_route_to_proto(from: &HttpRoute) -> proto::HttpRoute {
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
pub(super) fn http_route_from_proto(from: proto::HttpRoute) -> Decoded<HttpRoute> {
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
pub(super) fn http_backend_to_proto(from: &RouteBackend, grpc: bool) -> proto::http_route::RouteBackend {
    proto::http_route::RouteBackend {
        backend: Some(backend_to_proto(&from.backend)),
        filters: from.filters.iter().map(|filter| http_filter_to_proto(filter, grpc)).collect(),
        request_timeout: None,
    }
}

pub(super) fn http_backend_from_proto(from: proto::http_route::RouteBackend) -> Decoded<RouteBackend> {
    Ok(RouteBackend {
        backend: backend_from_proto(required(from.backend, "backend")?).within("backend")?,
        filters: each(from.filters, "filters", http_filter_from_proto)?,
    })
}

pub(super) fn http_filter_to_proto(from: &Filter, grpc: bool) -> proto::http_route::Filter {
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

pub(super) fn http_filter_from_proto(from: proto::http_route::Filter) -> Decoded<Filter> {
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

pub(super) fn http_retry_to_proto(from: &Retry) -> proto::http_route::Retry {
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

pub(super) fn http_retry_from_proto(from: proto::http_route::Retry) -> Decoded<Retry> {
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
