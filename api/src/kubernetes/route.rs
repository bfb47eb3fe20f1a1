//! Gateway API routes, as far as a service mesh reads them (v1; GAMMA: the parent is a Service).

use super::{Metadata, RouteStatus};
use serde::{Deserialize, Serialize};

/// An HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct HttpRoute {
    /// Name and annotations.
    pub metadata: Metadata,
    /// What it does.
    pub spec: HttpRouteSpec,
    /// What controllers say of it.
    pub status: RouteStatus,
}

/// What an HTTPRoute does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteSpec {
    /// The services whose requests it treats.
    pub parent_refs: Vec<ParentRef>,
    /// Hosts; empty: all.
    pub hostnames: Vec<String>,
    /// Rules.
    pub rules: Vec<HttpRouteRule>,
}

/// A GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GrpcRoute {
    /// Name and annotations.
    pub metadata: Metadata,
    /// What it does.
    pub spec: GrpcRouteSpec,
    /// What controllers say of it.
    pub status: RouteStatus,
}

/// What a GRPCRoute does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteSpec {
    /// The services whose requests it treats.
    pub parent_refs: Vec<ParentRef>,
    /// Hosts; empty: all.
    pub hostnames: Vec<String>,
    /// Rules.
    pub rules: Vec<GrpcRouteRule>,
}

/// A TCPRoute or a TLSRoute (which alone has host names, compared with the SNI).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct TcpRoute {
    /// Name.
    pub metadata: Metadata,
    /// What it does.
    pub spec: TcpRouteSpec,
    /// What controllers say of it.
    pub status: RouteStatus,
}

/// What a TCPRoute or TLSRoute does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRouteSpec {
    /// The services whose connections it treats.
    pub parent_refs: Vec<ParentRef>,
    /// Server names; empty: all.
    pub hostnames: Vec<String>,
    /// One rule.
    pub rules: Vec<TcpRouteRule>,
}

/// The object that a route belongs to. Written back in statuses: what was not said is not said there either.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ParentRef {
    /// Missing: the Gateway API's own, `core` or empty: Service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Missing: Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Missing: the route's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// A listener of a Gateway; means nothing for a Service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Missing: all ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// Where requests go.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendRef {
    /// Missing or `core`: Service's.
    pub group: Option<String>,
    /// Missing: Service.
    pub kind: Option<String>,
    /// Missing: the route's.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Required for a Service.
    pub port: Option<u16>,
    /// Missing: 1.
    pub weight: Option<u32>,
    /// Applied to requests to this backend only.
    pub filters: Vec<RouteFilter>,
}

/// A rule of an HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteRule {
    /// Name, may be missing.
    pub name: Option<String>,
    /// Any of these; empty: everything.
    pub matches: Vec<HttpRouteMatch>,
    /// Applied in order.
    pub filters: Vec<RouteFilter>,
    /// Where to; empty: the parent.
    pub backend_refs: Vec<BackendRef>,
    /// How long.
    pub timeouts: Option<RouteTimeouts>,
    /// Whether again.
    pub retry: Option<RouteRetry>,
}

/// How long a request may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteTimeouts {
    /// All attempts together (GEP-2257 duration); `0s`: none.
    pub request: Option<String>,
    /// One attempt.
    pub backend_request: Option<String>,
}

/// Whether a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteRetry {
    /// Statuses.
    pub codes: Vec<u16>,
    /// Additional attempts.
    pub attempts: Option<u32>,
    /// The shortest wait between them.
    pub backoff: Option<String>,
}

/// What a request must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteMatch {
    /// Missing: `/` as prefix.
    pub path: Option<HttpPathMatch>,
    /// All of these.
    pub headers: Vec<NamedMatch>,
    /// All of these.
    pub query_params: Vec<NamedMatch>,
    /// Exactly this.
    pub method: Option<String>,
}

/// What a path must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpPathMatch {
    /// `Exact`, `PathPrefix` (also when missing), `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Missing: `/`.
    pub value: Option<String>,
}

/// What a header or query parameter must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct NamedMatch {
    /// `Exact` (also when missing), `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// A rule of a GRPCRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteRule {
    /// Name, may be missing.
    pub name: Option<String>,
    /// Any of these; empty: everything.
    pub matches: Vec<GrpcRouteMatch>,
    /// Applied in order.
    pub filters: Vec<RouteFilter>,
    /// Where to; empty: the parent.
    pub backend_refs: Vec<BackendRef>,
}

/// What a gRPC request must look like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcRouteMatch {
    /// Service and method.
    pub method: Option<GrpcMethodMatch>,
    /// All of these.
    pub headers: Vec<NamedMatch>,
}

/// A gRPC service and method.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcMethodMatch {
    /// `Exact` (also when missing), `RegularExpression`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// `package.Service`.
    pub service: Option<String>,
    /// `Method`.
    pub method: Option<String>,
}

/// A rule of a TCPRoute or TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRouteRule {
    /// Where to.
    pub backend_refs: Vec<BackendRef>,
}

/// A filter; `kind` says which of the others is there.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteFilter {
    /// `RequestHeaderModifier`, `ResponseHeaderModifier`, `RequestRedirect`, `URLRewrite`, `RequestMirror`; requests that
    /// others are for fail.
    #[serde(rename = "type")]
    pub kind: String,
    /// Changes of request headers.
    pub request_header_modifier: Option<HeaderModifier>,
    /// Changes of response headers.
    pub response_header_modifier: Option<HeaderModifier>,
    /// A redirect.
    pub request_redirect: Option<RequestRedirect>,
    /// A new host or path.
    pub url_rewrite: Option<UrlRewrite>,
    /// A copy.
    pub request_mirror: Option<RequestMirror>,
}

/// A new host or path for requests on their way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UrlRewrite {
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathRewrite>,
}

/// A copy of requests, whose answers nobody gets.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestMirror {
    /// Where to.
    pub backend_ref: BackendRef,
    /// Share of requests in percent; with [`Self::fraction`] missing as well: all.
    pub percent: Option<u32>,
    /// Share of requests.
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Fraction {
    /// So many...
    pub numerator: u32,
    /// ...of so many; missing: 100.
    pub denominator: Option<u32>,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HeaderModifier {
    /// Replaced.
    pub set: Vec<Header>,
    /// Appended.
    pub add: Vec<Header>,
    /// Deleted.
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Header {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// A redirect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// Port.
    pub port: Option<u16>,
    /// Missing: 302.
    pub status_code: Option<u16>,
}

/// A new path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathRewrite {
    /// All of it.
    pub replace_full_path: Option<String>,
    /// The matched prefix.
    pub replace_prefix_match: Option<String>,
}
