//! What outbound and inbound routes have in common: hosts, matches, filters.
//!
//! Our routes have one form, the wire has an HTTP and a gRPC one. What the other form cannot say is translated to what
//! comes nearest without letting more through: a match that cannot be said is left out, and with its last match a rule;
//! a filter that cannot be said or is not known makes its requests fail.

use super::{Decoded, InvalidMessage, each, narrow, required};
use crate::policy::{
    Failure, HeaderEdit, HeaderMatch, HostMatch, PathMatch, PathModifier, QueryMatch, Redirect, RequestMatch,
    ValueMatch,
};
use http::{HeaderName, HeaderValue, Method};
use linkerd2_proxy_api::http_types::{self, headers, http_method, scheme};
use linkerd2_proxy_api::{grpc_route, http_route as proto, tls_route};

// ---- hosts ---------------------------------------------------------------------------------------------------------

pub(super) fn host_to_proto(from: &HostMatch) -> proto::HostMatch {
    let host = match from {
        HostMatch::Exact(name) => proto::host_match::Match::Exact(name.clone()),
        HostMatch::Suffix(suffix) => {
            proto::host_match::Match::Suffix(proto::host_match::Suffix { reverse_labels: reverse_labels(suffix) })
        }
    };
    proto::HostMatch { r#match: Some(host) }
}

pub(super) fn host_from_proto(from: proto::HostMatch) -> Decoded<HostMatch> {
    Ok(match required(from.r#match, "match")? {
        proto::host_match::Match::Exact(name) => HostMatch::Exact(name),
        proto::host_match::Match::Suffix(suffix) => HostMatch::Suffix(suffix_of(suffix.reverse_labels)),
    })
}

pub(super) fn sni_to_proto(from: &HostMatch) -> tls_route::SniMatch {
    let sni = match from {
        HostMatch::Exact(name) => tls_route::sni_match::Match::Exact(name.clone()),
        HostMatch::Suffix(suffix) => {
            tls_route::sni_match::Match::Suffix(tls_route::sni_match::Suffix { reverse_labels: reverse_labels(suffix) })
        }
    };
    tls_route::SniMatch { r#match: Some(sni) }
}

pub(super) fn sni_from_proto(from: tls_route::SniMatch) -> Decoded<HostMatch> {
    Ok(match required(from.r#match, "match")? {
        tls_route::sni_match::Match::Exact(name) => HostMatch::Exact(name),
        tls_route::sni_match::Match::Suffix(suffix) => HostMatch::Suffix(suffix_of(suffix.reverse_labels)),
    })
}

fn reverse_labels(suffix: &str) -> Vec<String> {
    if suffix.is_empty() { Vec::new() } else { suffix.rsplit('.').map(str::to_string).collect() }
}

fn suffix_of(mut labels: Vec<String>) -> String {
    labels.reverse();
    labels.join(".")
}

// ---- matches -------------------------------------------------------------------------------------------------------

/// The matches of a rule; `None` when none of its matches can be said, so that the rule matches nothing.
pub(super) fn matches_to_proto<P>(
    from: &[RequestMatch],
    encode: impl Fn(&RequestMatch) -> Option<P>,
) -> Option<Vec<P>> {
    let matches: Vec<P> = from.iter().filter_map(encode).collect();
    (from.is_empty() || !matches.is_empty()).then_some(matches)
}

pub(super) fn http_match_to_proto(from: &RequestMatch) -> Option<proto::HttpRouteMatch> {
    Some(proto::HttpRouteMatch {
        path: from.path.as_ref().and_then(path_to_proto),
        headers: from.headers.iter().map(header_match_to_proto).collect::<Option<_>>()?,
        query_params: from.query.iter().map(query_match_to_proto).collect::<Option<_>>()?,
        method: match &from.method {
            Some(method) => Some(Method::from_bytes(method.as_bytes()).ok()?.into()),
            None => None,
        },
    })
}

pub(super) fn http_match_from_proto(from: proto::HttpRouteMatch) -> Decoded<RequestMatch> {
    let path = match from.path {
        None => None,
        Some(path) => Some(match required(path.kind, "path")? {
            proto::path_match::Kind::Exact(path) => PathMatch::Exact(path),
            proto::path_match::Kind::Prefix(path) => PathMatch::Prefix(path),
            proto::path_match::Kind::Regex(path) => PathMatch::Regex(path),
        }),
    };
    Ok(RequestMatch {
        path,
        headers: each(from.headers, "headers", header_match_from_proto)?,
        query: each(from.query_params, "query_params", query_match_from_proto)?,
        method: from.method.map(method_from_proto).transpose()?,
    })
}

pub(super) fn grpc_match_to_proto(from: &RequestMatch) -> Option<grpc_route::GrpcRouteMatch> {
    // Every gRPC request is a POST without a query.
    if !from.query.is_empty() || from.method.as_ref().is_some_and(|method| method != "POST") {
        return None;
    }
    let (service, method) = match &from.path {
        None => ("", ""),
        Some(PathMatch::Rpc { service, method }) => (service.as_str(), method.as_str()),
        Some(PathMatch::Exact(path)) => path.strip_prefix('/')?.split_once('/')?,
        Some(PathMatch::Prefix(path)) => (path.strip_prefix('/')?.trim_end_matches('/'), ""),
        Some(PathMatch::Regex(_)) => return None,
    };
    if service.contains('/') || method.contains('/') {
        return None;
    }
    Some(grpc_route::GrpcRouteMatch {
        rpc: Some(grpc_route::GrpcRpcMatch { service: service.to_string(), method: method.to_string() }),
        headers: from.headers.iter().map(header_match_to_proto).collect::<Option<_>>()?,
    })
}

pub(super) fn grpc_match_from_proto(from: grpc_route::GrpcRouteMatch) -> Decoded<RequestMatch> {
    let grpc_route::GrpcRpcMatch { service, method } = required(from.rpc, "rpc")?;
    Ok(RequestMatch {
        path: (!service.is_empty() || !method.is_empty()).then_some(PathMatch::Rpc { service, method }),
        headers: each(from.headers, "headers", header_match_from_proto)?,
        query: Vec::new(),
        method: None,
    })
}

fn path_to_proto(from: &PathMatch) -> Option<proto::PathMatch> {
    use proto::path_match::Kind;
    let kind = match from {
        PathMatch::Exact(path) => Kind::Exact(path.clone()),
        PathMatch::Prefix(path) => Kind::Prefix(path.clone()),
        PathMatch::Regex(path) => Kind::Regex(path.clone()),
        PathMatch::Rpc { service, method } => match (service.is_empty(), method.is_empty()) {
            (true, true) => return None,
            (false, true) => Kind::Prefix(format!("/{service}")),
            (true, false) => Kind::Regex(format!("/[^/]+/{}", regex::escape(method))),
            (false, false) => Kind::Exact(format!("/{service}/{method}")),
        },
    };
    Some(proto::PathMatch { kind: Some(kind) })
}

fn header_match_to_proto(from: &HeaderMatch) -> Option<proto::HeaderMatch> {
    use proto::header_match::Value;
    let name = HeaderName::from_bytes(from.name.as_bytes()).ok()?.as_str().to_string();
    let value = match &from.value {
        ValueMatch::Exact(bytes) => Value::Exact(HeaderValue::from_bytes(bytes).ok()?.as_bytes().to_vec()),
        ValueMatch::Regex(regex) => Value::Regex(regex.clone()),
    };
    Some(proto::HeaderMatch { name, value: Some(value) })
}

fn header_match_from_proto(from: proto::HeaderMatch) -> Decoded<HeaderMatch> {
    use proto::header_match::Value;
    let value = match required(from.value, "value")? {
        Value::Exact(bytes) => ValueMatch::Exact(bytes),
        Value::Regex(regex) => ValueMatch::Regex(regex),
    };
    Ok(HeaderMatch { name: header_name(&from.name)?, value })
}

fn query_match_to_proto(from: &QueryMatch) -> Option<proto::QueryParamMatch> {
    use proto::query_param_match::Value;
    let value = match &from.value {
        ValueMatch::Exact(bytes) => Value::Exact(String::from_utf8(bytes.clone()).ok()?),
        ValueMatch::Regex(regex) => Value::Regex(regex.clone()),
    };
    (!from.name.is_empty()).then(|| proto::QueryParamMatch { name: from.name.clone(), value: Some(value) })
}

fn query_match_from_proto(from: proto::QueryParamMatch) -> Decoded<QueryMatch> {
    use proto::query_param_match::Value;
    if from.name.is_empty() {
        return Err(InvalidMessage::missing("name"));
    }
    let value = match required(from.value, "value")? {
        Value::Exact(text) => ValueMatch::Exact(text.into_bytes()),
        Value::Regex(regex) => ValueMatch::Regex(regex),
    };
    Ok(QueryMatch { name: from.name, value })
}

fn method_from_proto(from: http_types::HttpMethod) -> Decoded<String> {
    let kind: http_method::Type = required(from.r#type, "method")?;
    let method = Method::try_from(kind).map_err(|error| InvalidMessage::new("method", error))?;
    Ok(method.as_str().to_string())
}

// ---- filters -------------------------------------------------------------------------------------------------------

pub(super) fn request_edit_to_proto(from: &HeaderEdit) -> proto::RequestHeaderModifier {
    proto::RequestHeaderModifier {
        add: headers_to_proto(&from.add),
        set: headers_to_proto(&from.set),
        remove: names_to_proto(&from.remove),
    }
}

pub(super) fn response_edit_to_proto(from: &HeaderEdit) -> proto::ResponseHeaderModifier {
    proto::ResponseHeaderModifier {
        add: headers_to_proto(&from.add),
        set: headers_to_proto(&from.set),
        remove: names_to_proto(&from.remove),
    }
}

pub(super) fn edit_from_proto(
    add: Option<http_types::Headers>,
    set: Option<http_types::Headers>,
    remove: Vec<String>,
) -> Decoded<HeaderEdit> {
    Ok(HeaderEdit {
        set: headers_from_proto(set, "set")?,
        add: headers_from_proto(add, "add")?,
        remove: each(remove, "remove", |name| header_name(&name))?,
    })
}

/// A header that HTTP cannot carry is left out: no message could have it, and linkerd2-proxy would refuse the policy.
fn headers_to_proto(from: &[(String, Vec<u8>)]) -> Option<http_types::Headers> {
    let header = |(name, value): &(String, Vec<u8>)| {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?.as_str().to_string();
        let value = HeaderValue::from_bytes(value).ok()?.as_bytes().to_vec();
        Some(headers::Header { name, value })
    };
    let headers: Vec<_> = from.iter().filter_map(header).collect();
    (!headers.is_empty()).then_some(http_types::Headers { headers })
}

fn names_to_proto(from: &[String]) -> Vec<String> {
    let name = |name: &String| Some(HeaderName::from_bytes(name.as_bytes()).ok()?.as_str().to_string());
    from.iter().filter_map(name).collect()
}

/// Names and values are checked here so that whoever writes them to a connection need not: a value with a line break
/// would be a second message.
fn headers_from_proto(from: Option<http_types::Headers>, field: &str) -> Decoded<Vec<(String, Vec<u8>)>> {
    each(from.map(|headers| headers.headers).unwrap_or_default(), field, |header| {
        let name = header_name(&header.name)?;
        HeaderValue::from_bytes(&header.value).map_err(|error| InvalidMessage::new("value", error))?;
        Ok((name, header.value))
    })
}

pub(super) fn header_name(name: &str) -> Decoded<String> {
    let checked = HeaderName::from_bytes(name.as_bytes()).map_err(|error| InvalidMessage::new("name", error))?;
    Ok(checked.as_str().to_string())
}

pub(super) fn redirect_to_proto(from: &Redirect) -> proto::RequestRedirect {
    use proto::path_modifier::Replace;
    let absolute = |path: &str| if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
    let path = from.path.as_ref().map(|path| match path {
        PathModifier::Full(path) => Replace::Full(absolute(path)),
        PathModifier::Prefix(path) => Replace::Prefix(absolute(path)),
    });
    proto::RequestRedirect {
        scheme: from.scheme.as_deref().map(http_types::Scheme::from),
        host: from.host.clone().unwrap_or_default(),
        path: path.map(|replace| proto::PathModifier { replace: Some(replace) }),
        port: from.port.map(u32::from).unwrap_or(0),
        // The wire's default is 301, ours and Gateway API's is 302.
        status: if (100..1000).contains(&from.status) { u32::from(from.status) } else { 302 },
    }
}

pub(super) fn redirect_from_proto(from: proto::RequestRedirect) -> Decoded<Redirect> {
    use proto::path_modifier::Replace;
    let scheme = from.scheme.map(|from| match required(from.r#type, "scheme")? {
        scheme::Type::Registered(known) => match scheme::Registered::try_from(known) {
            Ok(scheme::Registered::Http) => Ok("http".to_string()),
            Ok(scheme::Registered::Https) => Ok("https".to_string()),
            Err(_) => Err(InvalidMessage::missing("scheme")),
        },
        scheme::Type::Unregistered(name) => match name.parse::<http::uri::Scheme>() {
            Ok(scheme) => Ok(scheme.as_str().to_string()),
            Err(error) => Err(InvalidMessage::new("scheme", error)),
        },
    });
    let host = Some(from.host).filter(|host| !host.is_empty());
    if let Some(host) = &host {
        host.parse::<http::uri::Authority>().map_err(|error| InvalidMessage::new("host", error))?;
    }
    let absolute = |path: String| match path.starts_with('/') && HeaderValue::from_str(&path).is_ok() {
        true => Ok(path),
        false => Err(InvalidMessage::new("path", "is no absolute path")),
    };
    let path = match from.path.and_then(|path| path.replace) {
        None => None,
        Some(Replace::Full(path)) => Some(PathModifier::Full(absolute(path)?)),
        Some(Replace::Prefix(path)) => Some(PathModifier::Prefix(absolute(path)?)),
    };
    let status = match narrow(from.status, "status")? {
        0 => 301,
        status @ 100..1000 => status,
        status => return Err(InvalidMessage::new("status", format_args!("{status} is no HTTP status"))),
    };
    let port: u16 = narrow(from.port, "port")?;
    Ok(Redirect { scheme: scheme.transpose()?, host, port: Some(port).filter(|port| *port != 0), path, status })
}

/// An injected failure in an HTTP route; `grpc` says what its status is a status of.
pub(super) fn failure_to_http(from: &Failure, grpc: bool) -> proto::HttpFailureInjector {
    let status = if grpc { http_of_grpc(from.status) } else { from.status };
    proto::HttpFailureInjector {
        status: if (100..1000).contains(&status) { u32::from(status) } else { 500 },
        message: from.message.clone(),
        ratio: Some(ratio_to_proto(from.ratio)),
    }
}

/// An injected failure in a gRPC route.
pub(super) fn failure_to_grpc(from: &Failure, grpc: bool) -> grpc_route::GrpcFailureInjector {
    grpc_route::GrpcFailureInjector {
        code: u32::from(if grpc { from.status } else { grpc_of_http(from.status) }),
        message: from.message.clone(),
        ratio: Some(ratio_to_proto(from.ratio)),
    }
}

pub(super) fn failure_from_http(from: proto::HttpFailureInjector) -> Decoded<Failure> {
    let status = match narrow(from.status, "status")? {
        status @ 100..1000 => status,
        status => return Err(InvalidMessage::new("status", format_args!("{status} is no HTTP status"))),
    };
    Ok(Failure { status, message: from.message, ratio: ratio_from_proto(from.ratio)? })
}

pub(super) fn failure_from_grpc(from: grpc_route::GrpcFailureInjector) -> Decoded<Failure> {
    Ok(Failure { status: narrow(from.code, "code")?, message: from.message, ratio: ratio_from_proto(from.ratio)? })
}

/// What stands in for a filter that the other side would not understand, or that we do not.
pub(super) fn unsupported_filter(grpc: bool) -> Failure {
    Failure {
        status: if grpc { 13 } else { 500 },
        message: "the route has a filter that is not supported".into(),
        ratio: (1, 1),
    }
}

fn ratio_to_proto((numerator, denominator): (u32, u32)) -> proto::Ratio {
    // A share above one, or of nothing, is all: linkerd2-proxy would refuse it.
    match numerator > denominator || denominator == 0 {
        true => proto::Ratio { numerator: 1, denominator: 1 },
        false => proto::Ratio { numerator, denominator },
    }
}

fn ratio_from_proto(from: Option<proto::Ratio>) -> Decoded<(u32, u32)> {
    match from {
        None => Ok((1, 1)),
        Some(proto::Ratio { numerator, denominator }) if denominator > 0 && numerator <= denominator => {
            Ok((numerator, denominator))
        }
        Some(proto::Ratio { numerator, denominator }) => {
            Err(InvalidMessage::new("ratio", format_args!("{numerator}/{denominator} is no share")))
        }
    }
}

/// Source: google/rpc/code.proto.
fn http_of_grpc(code: u16) -> u16 {
    match code {
        3 | 9 | 11 => 400,
        16 => 401,
        7 => 403,
        5 => 404,
        6 | 10 => 409,
        8 => 429,
        12 => 501,
        14 => 503,
        4 => 504,
        _ => 500,
    }
}

/// Source: grpc/doc/http-grpc-status-mapping.md.
fn grpc_of_http(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}
