//! Every metric of the proxy: name, help, label keys, buckets ([`FAMILIES`]), and the structs of atomics behind them.
//!
//! A handle is found once, when a connection, endpoint, route or balancer is made ([`Metrics`]'s `*_scope`), and then
//! only counts. Names and labels are Linkerd's, so that dashboards carry over.
//!
//! **Invariant:** the number of series is bounded: by [`registry::MAX_SCOPES`] per kind of handle, whatever is asked.

pub mod handles;
pub mod labels;
pub mod process;
mod registry;

pub use handles::{
    AuthzMetrics, BalancerMetrics, Counter, ErrorMetrics, IdentityMetrics, MirrorMetrics, OpenConnection,
    RequestMetrics, RouteMetrics, TcpMetrics,
};
pub use labels::{
    AuthzLabels, BackendLabels, Direction, MirrorLabels, RequestLabels, RouteLabels, TcpLabels, TlsLabel,
};

use registry::{Exposition, Table};
use std::sync::Arc;
use tokio::time::Instant;

/// A metric family.
struct Declared {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
}

/// Declares [`Family`] and [`FAMILIES`] together, in the order in which they are shown.
macro_rules! families {
    ($($variant:ident $kind:ident $name:literal $help:literal;)*) => {
        /// The name of a family, see [`FAMILIES`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs)] // Each is documented by its help text.
        pub enum Family { $($variant),* }

        const FAMILIES: &[Declared] = &[$(Declared { name: $name, kind: stringify!($kind), help: $help }),*];
    };
}

families! {
    RequestTotal counter "request_total" "Total count of HTTP requests.";
    ResponseTotal counter "response_total" "Total count of HTTP responses.";
    ResponseLatencyMs histogram "response_latency_ms" "Time from a request's head to the end of its response, in milliseconds.";
    TcpOpenTotal counter "tcp_open_total" "Total count of opened connections.";
    TcpOpenConnections gauge "tcp_open_connections" "Number of currently open connections.";
    TcpCloseTotal counter "tcp_close_total" "Total count of closed connections.";
    TcpReadBytesTotal counter "tcp_read_bytes_total" "Total count of bytes read from peers.";
    TcpWriteBytesTotal counter "tcp_write_bytes_total" "Total count of bytes written to peers.";
    InboundHttpAuthzAllow counter "inbound_http_authz_allow_total" "Total count of inbound HTTP requests that policy allowed.";
    InboundHttpAuthzDeny counter "inbound_http_authz_deny_total" "Total count of inbound HTTP requests that policy denied.";
    InboundHttpRouteNotFound counter "inbound_http_route_not_found_total" "Total count of inbound HTTP requests that no route matched.";
    InboundHttpRateLimit counter "inbound_http_local_ratelimit_total" "Total count of inbound HTTP requests that a rate limit refused.";
    InboundTcpAuthzAllow counter "inbound_tcp_authz_allow_total" "Total count of inbound connections that policy allowed.";
    InboundTcpAuthzDeny counter "inbound_tcp_authz_deny_total" "Total count of inbound connections that policy denied.";
    InboundTcpAuthzTerminate counter "inbound_tcp_authz_terminate_total" "Total count of inbound connections ended because policy changed.";
    InboundHttpErrors counter "inbound_http_errors_total" "Total count of inbound HTTP requests that the proxy answered with an error.";
    InboundTcpErrors counter "inbound_tcp_errors_total" "Total count of inbound connections that the proxy ended with an error.";
    OutboundHttpErrors counter "outbound_http_errors_total" "Total count of outbound HTTP requests that the proxy answered with an error.";
    OutboundTcpErrors counter "outbound_tcp_errors_total" "Total count of outbound connections that the proxy ended with an error.";
    HttpRetryRequests counter "outbound_http_route_retry_requests_total" "Total count of retries sent.";
    HttpRetrySuccesses counter "outbound_http_route_retry_successes_total" "Total count of requests that succeeded by a retry.";
    HttpRetryLimitExceeded counter "outbound_http_route_retry_limit_exceeded_total" "Total count of requests that failed after their last retry.";
    HttpRetryOverflow counter "outbound_http_route_retry_overflow_total" "Total count of retries not sent for want of budget.";
    GrpcRetryRequests counter "outbound_grpc_route_retry_requests_total" "Total count of retries sent.";
    GrpcRetrySuccesses counter "outbound_grpc_route_retry_successes_total" "Total count of requests that succeeded by a retry.";
    GrpcRetryLimitExceeded counter "outbound_grpc_route_retry_limit_exceeded_total" "Total count of requests that failed after their last retry.";
    GrpcRetryOverflow counter "outbound_grpc_route_retry_overflow_total" "Total count of retries not sent for want of budget.";
    RouteResponses counter "outbound_route_response_total" "Total count of answers to requests of a route, after its retries.";
    RouteLatencyMs histogram "outbound_route_response_latency_ms" "Time from the head of a route's request to the end of its response, in milliseconds.";
    MirrorRequests counter "outbound_http_route_mirror_requests_total" "Total count of copies of requests, by what became of them: same or different status, failed, or skipped for want of room.";
    HttpBalancerEndpoints gauge "outbound_http_balancer_endpoints" "Number of endpoints of a balancer, by state.";
    HttpBalancerEjections counter "outbound_http_balancer_ejections_total" "Total count of endpoints taken out by circuit breaking.";
    HttpBalancerQueueLength gauge "outbound_http_balancer_queue_length" "Number of requests waiting for an endpoint.";
    HttpBalancerQueueRequests counter "outbound_http_balancer_queue_requests_total" "Total count of requests that waited for an endpoint.";
    TcpBalancerEndpoints gauge "outbound_tcp_balancer_endpoints" "Number of endpoints of a balancer, by state.";
    TcpBalancerEjections counter "outbound_tcp_balancer_ejections_total" "Total count of endpoints taken out by circuit breaking.";
    TcpBalancerQueueLength gauge "outbound_tcp_balancer_queue_length" "Number of connections waiting for an endpoint.";
    TcpBalancerQueueRequests counter "outbound_tcp_balancer_queue_requests_total" "Total count of connections that waited for an endpoint.";
    CertExpiration gauge "control_identity_cert_expiration_timestamp_seconds" "Time when this proxy's certificate expires, in seconds since the epoch.";
    CertRefresh gauge "control_identity_cert_refresh_timestamp_seconds" "Time when this proxy's certificate was last issued, in seconds since the epoch.";
    CertRefreshes counter "control_identity_cert_refreshes_total" "Total count of certificates issued to this proxy.";
    CertIssuer gauge "control_identity_cert_issuer_info" "Who signed this proxy's certificate, by SHA-256 of the issuer's.";
    TrustAnchor gauge "control_identity_trust_anchor_info" "Roots that this proxy trusts, by SHA-256.";
    TapDropped counter "proxy_tap_events_dropped_total" "Total count of tap events dropped because a session's queue was full.";
    ScopesRefused counter "proxy_metrics_scopes_refused_total" "Total count of metric handles not shown because there are too many.";
    BuildInfo gauge "proxy_build_info" "Version of the proxy.";
    ProcessCpu counter "process_cpu_seconds_total" "Total user and system CPU time, in seconds.";
    ProcessRss gauge "process_resident_memory_bytes" "Resident memory, in bytes.";
    ProcessOpenFds gauge "process_open_fds" "Number of open file descriptors.";
    ProcessMaxFds gauge "process_max_fds" "Limit of open file descriptors.";
    ProcessStart gauge "process_start_time_seconds" "Time when the process started, in seconds since the epoch.";
}

/// Upper bounds of `response_latency_ms`, in microseconds. Source: Linkerd.
const LATENCY_BOUNDS_US: [u64; 25] = [
    1_000, 2_000, 3_000, 4_000, 5_000, 10_000, 20_000, 30_000, 40_000, 50_000, 100_000, 200_000, 300_000, 400_000,
    500_000, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 10_000_000, 20_000_000, 30_000_000, 40_000_000,
    50_000_000,
];

/// All metrics of a process. Cheap to clone; handles are `Send + Sync`.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Tables>);

#[derive(Debug, Default)]
struct Tables {
    requests: Table<RequestMetrics>,
    tcp: Table<TcpMetrics>,
    authz: Table<AuthzMetrics>,
    routes: Table<RouteMetrics>,
    mirrors: Table<MirrorMetrics>,
    balancers: Table<BalancerMetrics>,
    inbound_http_errors: Arc<ErrorMetrics>,
    inbound_tcp_errors: Arc<ErrorMetrics>,
    outbound_http_errors: Arc<ErrorMetrics>,
    outbound_tcp_errors: Arc<ErrorMetrics>,
    identity: Arc<IdentityMetrics>,
    tap_dropped: Arc<Counter>,
}

impl Metrics {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Metrics::default()
    }

    /// Requests and responses of one client or to one endpoint.
    pub fn request_scope(&self, labels: RequestLabels<'_>) -> Arc<RequestMetrics> {
        self.0.requests.scope(labels.text(), RequestMetrics::default)
    }

    /// Connections with one kind of peer.
    pub fn tcp_scope(&self, labels: TcpLabels<'_>) -> Arc<TcpMetrics> {
        self.0.tcp.scope(labels.text(), TcpMetrics::default)
    }

    /// Decisions of one authorization, or of a server's or route's lack of one.
    pub fn authz_scope(&self, labels: AuthzLabels<'_>) -> Arc<AuthzMetrics> {
        self.0.authz.scope(labels.text(), AuthzMetrics::default)
    }

    /// Requests of one outbound route, and their retries.
    pub fn route_scope(&self, labels: RouteLabels<'_>) -> Arc<RouteMetrics> {
        let grpc = labels.grpc;
        let text = labels.text();
        self.0.routes.scope_of(if grpc { "grpc" } else { "http" }, text, || RouteMetrics::new(grpc))
    }

    /// Copies of one route's requests.
    pub fn mirror_scope(&self, labels: MirrorLabels<'_>) -> Arc<MirrorMetrics> {
        self.0.mirrors.scope(labels.text(), MirrorMetrics::default)
    }

    /// Endpoints and queue of one balancer.
    pub fn balancer_scope(&self, labels: BackendLabels<'_>) -> Arc<BalancerMetrics> {
        let tcp = labels.tcp;
        let text = labels.text();
        self.0.balancers.scope_of(if tcp { "tcp" } else { "http" }, text, || BalancerMetrics::new(tcp))
    }

    /// Errors that the proxy answered HTTP requests with.
    pub fn http_errors(&self, direction: Direction) -> Arc<ErrorMetrics> {
        match direction {
            Direction::Inbound => self.0.inbound_http_errors.clone(),
            Direction::Outbound => self.0.outbound_http_errors.clone(),
        }
    }

    /// Errors that the proxy ended connections with.
    pub fn tcp_errors(&self, direction: Direction) -> Arc<ErrorMetrics> {
        match direction {
            Direction::Inbound => self.0.inbound_tcp_errors.clone(),
            Direction::Outbound => self.0.outbound_tcp_errors.clone(),
        }
    }

    /// The proxy's own certificate.
    pub fn identity(&self) -> Arc<IdentityMetrics> {
        self.0.identity.clone()
    }

    /// Tap events that were dropped.
    pub fn tap_dropped(&self) -> Arc<Counter> {
        self.0.tap_dropped.clone()
    }

    /// Everything, in Prometheus' text format. For the admin thread.
    pub fn render(&self) -> String {
        let mut out = self.collect(Instant::now());
        let version = labels::Text::new().pair("version", env!("CARGO_PKG_VERSION")).take();
        out.value(Family::BuildInfo, &version, 1);
        process::collect(&mut out);
        out.finish()
    }

    fn collect(&self, now: Instant) -> Exposition {
        let tables = &*self.0;
        let mut out = Exposition::new();
        let refused = tables.requests.collect(now, &mut out)
            + tables.tcp.collect(now, &mut out)
            + tables.authz.collect(now, &mut out)
            + tables.routes.collect(now, &mut out)
            + tables.mirrors.collect(now, &mut out)
            + tables.balancers.collect(now, &mut out);
        tables.inbound_http_errors.collect(Family::InboundHttpErrors, &mut out);
        tables.inbound_tcp_errors.collect(Family::InboundTcpErrors, &mut out);
        tables.outbound_http_errors.collect(Family::OutboundHttpErrors, &mut out);
        tables.outbound_tcp_errors.collect(Family::OutboundTcpErrors, &mut out);
        tables.identity.collect(&mut out);
        out.some(Family::TapDropped, "", tables.tap_dropped.get());
        out.some(Family::ScopesRefused, "", refused);
        out
    }
}

#[cfg(test)]
mod tests;
