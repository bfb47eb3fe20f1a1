//! How a request or connection is treated on its way out: what `OutboundPolicies` streams, in the field's words.
//!
//! HTTP and gRPC routes have one form: a gRPC method match is a path match, a gRPC retry condition sits beside the HTTP one.

use crate::defaults;
use crate::endpoint::Endpoint;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// The object that something comes from; shown in metrics, tap and errors.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Meta {
    /// Made up by the control plane or the proxy (`default`, `egress-fallback`...).
    Default(String),
    /// An object of the registry.
    Resource {
        /// API group, `core` for the core group.
        group: String,
        /// Kind (`Service`, `HTTPRoute`...).
        kind: String,
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Section (rule name), may be empty.
        section: String,
        /// Port, 0 for none.
        port: u16,
    },
}

impl Meta {
    /// A named default.
    pub fn named(name: &str) -> Self {
        Meta::Default(name.to_string())
    }

    /// A service, with its port.
    pub fn service(namespace: &str, name: &str, port: u16) -> Self {
        Meta::Resource {
            group: "core".into(),
            kind: "Service".into(),
            namespace: namespace.into(),
            name: name.into(),
            section: String::new(),
            port,
        }
    }

    /// The name alone.
    pub fn name(&self) -> &str {
        match self {
            Meta::Default(name) | Meta::Resource { name, .. } => name,
        }
    }
}

impl fmt::Display for Meta {
    /// `default/NAME`, `Service/NS/NAME:PORT`, `HTTPRoute/NS/NAME`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Meta::Default(name) => write!(f, "default/{name}"),
            Meta::Resource { kind, namespace, name, port: 0, .. } => write!(f, "{kind}/{namespace}/{name}"),
            Meta::Resource { kind, namespace, name, port, .. } => write!(f, "{kind}/{namespace}/{name}:{port}"),
        }
    }
}

/// What a workload wants to reach, as its proxy sees it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The address that it connected to.
    Addr(SocketAddr),
    /// A name, `host:port`.
    Authority(String),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Addr(addr) => addr.fmt(f),
            Target::Authority(name) => f.write_str(name),
        }
    }
}

/// How everything for one target is treated.
#[derive(Clone, Debug, PartialEq)]
pub struct OutboundPolicy {
    /// What the target is (a service, or a default).
    pub meta: Meta,
    /// What it speaks, with its routes.
    pub protocol: OutboundProtocol,
}

impl OutboundPolicy {
    /// The filters of all its HTTP and gRPC routes, those of backends among them.
    pub fn filters(&self) -> impl Iterator<Item = &Filter> {
        let (one, two) = match &self.protocol {
            OutboundProtocol::Detect { http1, http2, .. } => (Some(http1), Some(http2)),
            OutboundProtocol::Http1(http) | OutboundProtocol::Http2(http) | OutboundProtocol::Grpc(http) => {
                (Some(http), None)
            }
            OutboundProtocol::Opaque(_) | OutboundProtocol::Tls(_) => (None, None),
        };
        let rules = one.into_iter().chain(two).flat_map(|http| &http.routes).flat_map(|route| &route.rules);
        rules.flat_map(|rule| rule.filters.iter().chain(rule.backends.backends().flat_map(|backend| &backend.filters)))
    }

    /// Puts what `known` tells in the place of names. True: nothing is missing any more.
    pub fn resolve(&mut self, known: &Extensions) -> bool {
        let both = match &mut self.protocol {
            OutboundProtocol::Detect { http1, http2, .. } => [Some(http1), Some(http2)],
            OutboundProtocol::Http1(http) | OutboundProtocol::Http2(http) | OutboundProtocol::Grpc(http) => {
                [Some(http), None]
            }
            OutboundProtocol::Opaque(_) | OutboundProtocol::Tls(_) => [None, None],
        };
        let mut complete = true;
        let mut resolve = |filters: &mut Vec<Filter>| {
            for filter in filters {
                let Filter::Named(name) = filter else { continue };
                match known.get(&name.id) {
                    Some(extension) => *filter = Filter::Extension(Box::new(extension.clone())),
                    None => complete = false,
                }
            }
        };
        for rule in both.into_iter().flatten().flat_map(|http| &mut http.routes).flat_map(|route| &mut route.rules) {
            resolve(&mut rule.filters);
            match &mut rule.backends {
                Distribution::Empty => {}
                Distribution::First(all) => all.iter_mut().for_each(|backend| resolve(&mut backend.filters)),
                Distribution::Random(all) => all.iter_mut().for_each(|(backend, _)| resolve(&mut backend.filters)),
            }
        }
        complete
    }
}

/// What a target speaks.
#[derive(Clone, Debug, PartialEq)]
pub enum OutboundProtocol {
    /// To be found out from the client's first bytes.
    Detect {
        /// How long the control plane would have a proxy wait; ours never waits that long.
        timeout: Duration,
        /// Routes for HTTP/1.
        http1: HttpRoutes,
        /// Routes for HTTP/2.
        http2: HttpRoutes,
        /// Routes for anything else.
        opaque: Vec<TcpRoute>,
    },
    /// Declared HTTP/1.
    Http1(HttpRoutes),
    /// Declared HTTP/2.
    Http2(HttpRoutes),
    /// Declared gRPC.
    Grpc(HttpRoutes),
    /// Bytes.
    Opaque(Vec<TcpRoute>),
    /// TLS of the application, routed by SNI, passed through.
    Tls(Vec<TcpRoute>),
}

/// Routes of one protocol.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRoutes {
    /// The most specific match wins (Gateway API's order).
    pub routes: Vec<HttpRoute>,
    /// When an endpoint is ejected; `None`: never.
    pub breaker: Option<Breaker>,
}

/// An HTTP or gRPC route.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    /// The object that decided.
    pub meta: Meta,
    /// Hosts it is for; empty: all.
    pub hosts: Vec<HostMatch>,
    /// Tried by specificity.
    pub rules: Vec<HttpRule>,
    /// True for a gRPC route: errors are answered as gRPC statuses, retries look at them.
    pub grpc: bool,
}

/// One rule of a route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRule {
    /// Any of these; empty: everything.
    pub matches: Vec<RequestMatch>,
    /// Applied in order.
    pub filters: Vec<Filter>,
    /// Where to.
    pub backends: Distribution<RouteBackend>,
    /// How long.
    pub timeouts: Timeouts,
    /// Whether again.
    pub retry: Option<Retry>,
    /// Clients may set `l5d-retry-*` and `l5d-*timeout`.
    pub allow_l5d_request_headers: bool,
}

/// A host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// This name.
    Exact(String),
    /// Any name below this one: `*.example.com` is `example.com` here.
    Suffix(String),
}

/// What a request must look like: all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestMatch {
    /// The path.
    pub path: Option<PathMatch>,
    /// All of these headers.
    pub headers: Vec<HeaderMatch>,
    /// All of these query parameters.
    pub query: Vec<QueryMatch>,
    /// The method.
    pub method: Option<String>,
}

/// What a path must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments from the start.
    Prefix(String),
    /// A regular expression for the whole path.
    Regex(String),
    /// A gRPC service and method; empty: any.
    Rpc {
        /// `package.Service`.
        service: String,
        /// `Method`.
        method: String,
    },
}

/// A header's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// Lower case.
    pub name: String,
    /// How.
    pub value: ValueMatch,
}

/// A query parameter's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// Case-sensitive.
    pub name: String,
    /// How.
    pub value: ValueMatch,
}

/// Equal, or a regular expression for the whole value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// These bytes.
    Exact(Vec<u8>),
    /// This expression.
    Regex(String),
}

/// What is done to a request or its response.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Change request headers.
    RequestHeaders(HeaderEdit),
    /// Change response headers.
    ResponseHeaders(HeaderEdit),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer with a failure, for a share of requests.
    Fail(Failure),
    /// Something that Linkerd's API cannot carry. There only [`Filter::Named`] stands for it.
    Extension(Box<Extension>),
    /// An extension whose content has not been told yet.
    Named(ExtensionName),
}

/// A treatment of requests that Linkerd's API cannot carry, told by our extension service.
#[derive(Clone, Debug, PartialEq)]
pub enum Extension {
    /// Change where a request says it goes.
    Rewrite(Rewrite),
    /// Send a copy elsewhere, whose answer nobody gets.
    Mirror(Mirror),
    /// Hold requests back.
    Delay(Delay),
    /// Change response headers: for gRPC routes, where Linkerd's API cannot say it.
    ResponseHeaders(HeaderEdit),
}

/// Which extension a route needs: a hash of its content, so that a route never meets another version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtensionName {
    /// Of the content.
    pub id: u64,
    /// True: without it a request must not be sent at all.
    pub required: bool,
}

/// Extensions of one target's routes, by [`ExtensionName::id`].
pub type Extensions = BTreeMap<u64, Extension>;

/// A new host or path; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The authority.
    pub host: Option<String>,
    /// The path; the query stays.
    pub path: Option<PathModifier>,
}

/// A copy of requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where to.
    pub backend: Backend,
    /// Share of requests: `numerator / denominator`.
    pub ratio: (u32, u32),
}

/// Requests that wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delay {
    /// How long.
    pub time: Duration,
    /// Share of requests: `numerator / denominator`.
    pub ratio: (u32, u32),
}

/// Changes to headers: set replaces, add appends, remove deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdit {
    /// Replaced.
    pub set: Vec<(String, Vec<u8>)>,
    /// Appended.
    pub add: Vec<(String, Vec<u8>)>,
    /// Deleted.
    pub remove: Vec<String>,
}

/// A redirect; what is `None` stays as it was in the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host without port.
    pub host: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathModifier>,
    /// 301, 302, 303, 307 or 308; 0: 302 (Gateway API's default; the wire's own is 301, so it is always written out).
    pub status: u16,
}

/// A new path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// All of it.
    Full(String),
    /// The matched prefix.
    Prefix(String),
}

/// An injected failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status, or gRPC code in a gRPC route.
    pub status: u16,
    /// Shown to the client.
    pub message: String,
    /// Share of requests: `numerator / denominator`.
    pub ratio: (u32, u32),
}

/// Where requests go.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Distribution<B> {
    /// Nowhere: the route has no usable backend.
    #[default]
    Empty,
    /// The first that has endpoints.
    First(Vec<B>),
    /// By weight.
    Random(Vec<(B, u32)>),
}

impl<B> Distribution<B> {
    /// All of them.
    pub fn backends(&self) -> Box<dyn Iterator<Item = &B> + '_> {
        match self {
            Distribution::Empty => Box::new(std::iter::empty()),
            Distribution::First(all) => Box::new(all.iter()),
            Distribution::Random(all) => Box::new(all.iter().map(|(backend, _)| backend)),
        }
    }
}

/// A backend of a route.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteBackend {
    /// Where.
    pub backend: Backend,
    /// Applied after the rule's.
    pub filters: Vec<Filter>,
}

/// Something that requests or connections can go to.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// The object.
    pub meta: Meta,
    /// How many may wait, and how long.
    pub queue: Queue,
    /// One address, or a balanced set.
    pub target: BackendTarget,
}

/// One address, or a balanced set.
#[derive(Clone, Debug, PartialEq)]
pub enum BackendTarget {
    /// Nothing: the object does not exist or may not be used. Its share of requests and connections fails.
    Invalid,
    /// This endpoint.
    Forward(Box<Endpoint>),
    /// The endpoints of `authority` (`name:port`, the path of `Destination.Get`).
    Balance {
        /// `name:port`.
        authority: String,
        /// How load is judged.
        load: Load,
    },
}

/// Peak-EWMA parameters (Finagle's).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Of an endpoint not yet measured.
    pub default_rtt: Duration,
    /// Window.
    pub decay: Duration,
    /// Added on failures, and how long a `Retry-After` may push it.
    pub penalty: Option<LoadPenalty>,
}

/// Extra load of failing endpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadPenalty {
    /// Latency that a failure counts as.
    pub penalty: Duration,
    /// Longest `Retry-After` honoured.
    pub max_retry_after: Duration,
    /// How fast it is forgotten.
    pub decay: Duration,
}

/// Waiting for an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests.
    pub capacity: u32,
    /// How long before they fail.
    pub failfast: Duration,
}

impl Queue {
    /// The same where every endpoint has just refused. The default, which control planes send without anybody having
    /// asked for it, is more than it takes to know that; what somebody asked for counts.
    pub fn refused_failfast(&self) -> Duration {
        if self.failfast == defaults::QUEUE_FAILFAST { defaults::REFUSED_FAILFAST } else { self.failfast }
    }
}

/// Ejection of failing endpoints.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breaker {
    /// Failures in a row; 0: not for these.
    pub max_failures: u32,
    /// Probation.
    pub backoff: Backoff,
    /// Also by success rate.
    pub success_rate: Option<SuccessRate>,
    /// Never eject below this many; at least 1.
    pub min_ready: u32,
}

/// Ejection by success rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Below this share (0 to 1).
    pub threshold: f64,
    /// Window.
    pub window: Duration,
    /// Only with at least this many requests in it.
    pub min_requests: u32,
}

/// Exponential wait with jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// First.
    pub min: Duration,
    /// Longest.
    pub max: Duration,
    /// Up to this share is added at random.
    pub jitter: f32,
    /// A `Retry-After` (or gRPC push-back) of the server counts instead.
    pub respect_retry_after: bool,
}

/// How long things may take; `None`: as long as they like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Request received until the response is complete, all attempts together.
    pub request: Option<Duration>,
    /// Request sent until the response is complete.
    pub response: Option<Duration>,
    /// Without a byte in either direction.
    pub idle: Option<Duration>,
}

/// When and how often a request is tried again.
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Additional attempts.
    pub limit: u32,
    /// Longest body that can be sent again, in bytes.
    pub max_body: usize,
    /// HTTP statuses, inclusive ranges.
    pub statuses: Vec<(u16, u16)>,
    /// gRPC codes.
    pub grpc_codes: Vec<u16>,
    /// One attempt until response headers.
    pub timeout: Option<Duration>,
    /// Between attempts; `None`: at once.
    pub backoff: Option<Backoff>,
}

/// A TCP or TLS route.
#[derive(Clone, Debug, PartialEq)]
pub struct TcpRoute {
    /// The object that decided.
    pub meta: Meta,
    /// Server names it is for; empty: all. Only for TLS.
    pub snis: Vec<HostMatch>,
    /// The first is used (Gateway API allows one).
    pub rules: Vec<TcpRule>,
}

/// One rule of a TCP or TLS route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TcpRule {
    /// Where to.
    pub backends: Distribution<Backend>,
    /// Set: connections are refused.
    pub refuse: Option<Refuse>,
}

/// Why a connection is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refuse {
    /// Policy says no.
    Forbidden,
    /// The configuration is broken; says how.
    Invalid(String),
}
