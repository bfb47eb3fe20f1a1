//! Structs of atomics that requests and connections count into. No lock, no allocation, no hash.

use super::labels::Text;
use super::registry::{Collect, Exposition};
use super::{Family, LATENCY_BOUNDS_US};
use std::io;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// So many more.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// So many now.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// So many more, or less.
    pub fn add(&self, more: i64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters by a key of few values: a short list searched from its start, where the usual ones are.
#[derive(Debug)]
struct Few<K, const N: usize> {
    slots: [(OnceLock<K>, Counter); N],
}

impl<K, const N: usize> Default for Few<K, N> {
    fn default() -> Self {
        Few { slots: std::array::from_fn(|_| Default::default()) }
    }
}

impl<K: PartialEq + Copy, const N: usize> Few<K, N> {
    /// False when the list is full of others.
    #[inline]
    fn inc(&self, key: K) -> bool {
        for (slot, counter) in &self.slots {
            let taken = match slot.get() {
                Some(taken) => taken,
                None => slot.get_or_init(|| key),
            };
            if *taken == key {
                counter.inc();
                return true;
            }
        }
        false
    }

    fn iter(&self) -> impl Iterator<Item = (K, u64)> {
        self.slots.iter().map_while(|(slot, counter)| Some((*slot.get()?, counter.get())))
    }
}

/// `response_latency_ms`, of requests or of a route.
#[derive(Debug, Default)]
struct Latency {
    buckets: [Counter; LATENCY_BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Latency {
    #[inline]
    fn record(&self, latency: Duration) {
        // Not `as_micros`, which divides 128 bits.
        let us = latency.as_secs() * 1_000_000 + u64::from(latency.subsec_micros());
        self.buckets[LATENCY_BOUNDS_US.partition_point(|bound| *bound < us)].inc();
        self.sum_us.add(us);
    }

    fn collect(&self, family: Family, labels: &str, out: &mut Exposition) {
        // The sum first: a record that comes in between is then missing from it, not from the count alone.
        let sum = self.sum_us.get() as f64 / 1000.0;
        let counts: Vec<u64> = self.buckets.iter().map(Counter::get).collect();
        let total: u64 = counts.iter().sum();
        if total == 0 {
            return;
        }
        let mut below = 0;
        for (bound, count) in LATENCY_BOUNDS_US.iter().zip(&counts) {
            below += count;
            out.line(family, "_bucket", labels, &format!("le=\"{}\"", bound / 1000), below);
        }
        out.line(family, "_bucket", labels, "le=\"+Inf\"", total);
        out.line(family, "_sum", labels, "", sum);
        out.line(family, "_count", labels, "", total);
    }
}

/// Requests and their responses.
#[derive(Debug, Default)]
pub struct RequestMetrics {
    requests: Counter,
    responses: Few<Response, 24>,
    /// By class (1xx to 5xx, others) and success, when a peer answers with more than 24 kinds of responses.
    rest: [[Counter; 2]; 6],
    latency: Latency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Response {
    status: u16,
    grpc: Option<u16>,
    success: bool,
    error: Option<&'static str>,
}

impl RequestMetrics {
    /// A request came in.
    #[inline]
    pub fn request(&self) {
        self.requests.inc();
    }

    /// Its response ended.
    #[inline]
    pub fn response(&self, status: u16, grpc: Option<u16>, success: bool, latency: Duration) {
        self.record(Response { status, grpc, success, error: None }, latency);
    }

    /// The same where the proxy answered in its place, or where it broke off. `error` is the reason code.
    #[inline]
    pub fn answered(&self, status: u16, grpc: Option<u16>, success: bool, error: &'static str, latency: Duration) {
        self.record(Response { status, grpc, success, error: Some(error) }, latency);
    }

    #[inline]
    fn record(&self, response: Response, latency: Duration) {
        if !self.responses.inc(response) {
            let class = usize::from(response.status / 100).min(6).saturating_sub(1);
            self.rest[class.min(5)][usize::from(response.success)].inc();
        }
        self.latency.record(latency);
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.get()
    }
}

impl Collect for RequestMetrics {
    fn collect(&self, labels: &str, out: &mut Exposition) {
        out.value(Family::RequestTotal, labels, self.requests.get());
        let classification = |success| if success { "success" } else { "failure" };
        for (response, count) in self.responses.iter() {
            let mut text = Text::new();
            text.pair("status_code", itoa::Buffer::new().format(response.status));
            text.pair("classification", classification(response.success));
            if let Some(code) = response.grpc {
                text.pair("grpc_status", itoa::Buffer::new().format(code));
            }
            if let Some(error) = response.error {
                text.pair("error", error);
            }
            out.value_with(Family::ResponseTotal, labels, &text.take(), count);
        }
        for (class, counters) in self.rest.iter().enumerate() {
            for (success, counter) in [false, true].into_iter().zip(counters) {
                let text = format!("status_code=\"{}xx\",classification=\"{}\"", class + 1, classification(success));
                if counter.get() > 0 {
                    out.value_with(Family::ResponseTotal, labels, &text, counter.get());
                }
            }
        }
        self.latency.collect(Family::ResponseLatencyMs, labels, out);
    }
}

/// Connections with one kind of peer.
#[derive(Debug, Default)]
pub struct TcpMetrics {
    opened: Counter,
    open: Gauge,
    closed: Few<&'static str, 16>,
    read: Counter,
    written: Counter,
}

impl TcpMetrics {
    /// Counts a connection from here until the guard is dropped.
    pub fn open(self: &Arc<Self>) -> OpenConnection {
        self.opened.inc();
        self.open.add(1);
        OpenConnection { metrics: self.clone(), errno: "" }
    }

    /// Bytes came from the peer.
    #[inline]
    pub fn read(&self, bytes: u64) {
        self.read.add(bytes);
    }

    /// Bytes went to the peer.
    #[inline]
    pub fn wrote(&self, bytes: u64) {
        self.written.add(bytes);
    }
}

/// An open connection; closed when dropped.
#[derive(Debug)]
pub struct OpenConnection {
    metrics: Arc<TcpMetrics>,
    errno: &'static str,
}

impl OpenConnection {
    /// Where bytes are counted.
    pub fn metrics(&self) -> &TcpMetrics {
        &self.metrics
    }

    /// The connection ends because of this error; the first one counts.
    pub fn fail(&mut self, error: &io::Error) {
        if self.errno.is_empty() {
            self.errno = errno(error);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        // In this order: who no longer sees it open sees why it closed.
        self.metrics.closed.inc(self.errno);
        self.metrics.open.add(-1);
    }
}

/// The name of an error, as Linkerd's `errno` label.
fn errno(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "ECONNRESET",
        io::ErrorKind::ConnectionAborted => "ECONNABORTED",
        io::ErrorKind::ConnectionRefused => "ECONNREFUSED",
        io::ErrorKind::BrokenPipe => "EPIPE",
        io::ErrorKind::NotConnected => "ENOTCONN",
        io::ErrorKind::TimedOut => "ETIMEDOUT",
        io::ErrorKind::HostUnreachable => "EHOSTUNREACH",
        io::ErrorKind::NetworkUnreachable => "ENETUNREACH",
        io::ErrorKind::NetworkDown => "ENETDOWN",
        io::ErrorKind::UnexpectedEof => "UNEXPECTED_EOF",
        io::ErrorKind::InvalidData => "INVALID_DATA",
        _ => "UNKNOWN",
    }
}

impl Collect for TcpMetrics {
    fn collect(&self, labels: &str, out: &mut Exposition) {
        out.value(Family::TcpOpenTotal, labels, self.opened.get());
        out.value(Family::TcpOpenConnections, labels, self.open.get());
        for (errno, count) in self.closed.iter() {
            out.value_with(Family::TcpCloseTotal, labels, &format!("errno=\"{errno}\""), count);
        }
        out.value(Family::TcpReadBytesTotal, labels, self.read.get());
        out.value(Family::TcpWriteBytesTotal, labels, self.written.get());
    }
}

/// Decisions about inbound requests and connections. Only what happened is shown.
#[derive(Debug, Default)]
pub struct AuthzMetrics {
    /// Requests allowed.
    pub http_allow: Counter,
    /// Requests denied.
    pub http_deny: Counter,
    /// Requests that no route matched.
    pub http_route_not_found: Counter,
    /// Requests above the limit of all clients.
    pub http_limited_total: Counter,
    /// Requests above the limit of their client.
    pub http_limited_identity: Counter,
    /// Connections allowed.
    pub tcp_allow: Counter,
    /// Connections denied.
    pub tcp_deny: Counter,
    /// Connections ended because policy changed.
    pub tcp_terminate: Counter,
}

impl Collect for AuthzMetrics {
    fn collect(&self, labels: &str, out: &mut Exposition) {
        out.some(Family::InboundHttpAuthzAllow, labels, self.http_allow.get());
        out.some(Family::InboundHttpAuthzDeny, labels, self.http_deny.get());
        out.some(Family::InboundHttpRouteNotFound, labels, self.http_route_not_found.get());
        for (scope, counter) in [("total", &self.http_limited_total), ("identity", &self.http_limited_identity)] {
            if counter.get() > 0 {
                out.value_with(Family::InboundHttpRateLimit, labels, &format!("scope=\"{scope}\""), counter.get());
            }
        }
        out.some(Family::InboundTcpAuthzAllow, labels, self.tcp_allow.get());
        out.some(Family::InboundTcpAuthzDeny, labels, self.tcp_deny.get());
        out.some(Family::InboundTcpAuthzTerminate, labels, self.tcp_terminate.get());
    }
}

/// Requests of one outbound route, and their retries. Only what happened is shown.
#[derive(Debug, Default)]
pub struct RouteMetrics {
    grpc: bool,
    success: Counter,
    failure: Counter,
    latency: Latency,
    /// Retries sent.
    pub retries: Counter,
    /// Requests that succeeded by a retry.
    pub retry_successes: Counter,
    /// Requests that failed after their last retry.
    pub retry_limit_exceeded: Counter,
    /// Retries not sent for want of budget.
    pub retry_overflow: Counter,
}

impl RouteMetrics {
    pub(super) fn new(grpc: bool) -> Self {
        RouteMetrics { grpc, ..Default::default() }
    }

    /// A request has its answer, retries included.
    #[inline]
    pub fn response(&self, success: bool, latency: Duration) {
        let counter = if success { &self.success } else { &self.failure };
        counter.inc();
        self.latency.record(latency);
    }
}

impl Collect for RouteMetrics {
    fn collect(&self, labels: &str, out: &mut Exposition) {
        let mut show =
            |http, grpc, counter: &Counter| out.some(if self.grpc { grpc } else { http }, labels, counter.get());
        show(Family::HttpRetryRequests, Family::GrpcRetryRequests, &self.retries);
        show(Family::HttpRetrySuccesses, Family::GrpcRetrySuccesses, &self.retry_successes);
        show(Family::HttpRetryLimitExceeded, Family::GrpcRetryLimitExceeded, &self.retry_limit_exceeded);
        show(Family::HttpRetryOverflow, Family::GrpcRetryOverflow, &self.retry_overflow);
        for (classification, counter) in [("success", &self.success), ("failure", &self.failure)] {
            if counter.get() > 0 {
                let text = format!("classification=\"{classification}\"");
                out.value_with(Family::RouteResponses, labels, &text, counter.get());
            }
        }
        self.latency.collect(Family::RouteLatencyMs, labels, out);
    }
}

/// Copies of one route's requests. Only what happened is shown.
#[derive(Debug, Default)]
pub struct MirrorMetrics {
    /// Answered with the status of the real request.
    pub same: Counter,
    /// Answered with another.
    pub different: Counter,
    /// Not answered, or not in time.
    pub failed: Counter,
    /// Not sent: too many were in flight, or the body was too long or never complete.
    pub skipped: Counter,
}

impl Collect for MirrorMetrics {
    fn collect(&self, labels: &str, out: &mut Exposition) {
        let all = [
            ("same", &self.same),
            ("different", &self.different),
            ("failed", &self.failed),
            ("skipped", &self.skipped),
        ];
        for (result, counter) in all.into_iter().filter(|(_, counter)| counter.get() > 0) {
            out.value_with(Family::MirrorRequests, labels, &format!("result=\"{result}\""), counter.get());
        }
    }
}

/// Endpoints and queue of one balancer.
#[derive(Debug, Default)]
pub struct BalancerMetrics {
    tcp: bool,
    /// Endpoints that requests go to.
    pub ready: Gauge,
    /// Endpoints that are not connected, or taken out.
    pub pending: Gauge,
    /// Endpoints taken out by circuit breaking.
    pub ejections: Counter,
    /// Requests waiting for an endpoint.
    pub queue_length: Gauge,
    /// Requests that waited.
    pub queue_requests: Counter,
}

impl BalancerMetrics {
    pub(super) fn new(tcp: bool) -> Self {
        BalancerMetrics { tcp, ..Default::default() }
    }
}

impl Collect for BalancerMetrics {
    fn collect(&self, labels: &str, out: &mut Exposition) {
        let (endpoints, ejections, length, requests) = match self.tcp {
            false => (
                Family::HttpBalancerEndpoints,
                Family::HttpBalancerEjections,
                Family::HttpBalancerQueueLength,
                Family::HttpBalancerQueueRequests,
            ),
            true => (
                Family::TcpBalancerEndpoints,
                Family::TcpBalancerEjections,
                Family::TcpBalancerQueueLength,
                Family::TcpBalancerQueueRequests,
            ),
        };
        out.value_with(endpoints, labels, "endpoint_state=\"ready\"", self.ready.get());
        out.value_with(endpoints, labels, "endpoint_state=\"pending\"", self.pending.get());
        out.some(ejections, labels, self.ejections.get());
        out.value(length, labels, self.queue_length.get());
        out.some(requests, labels, self.queue_requests.get());
    }
}

/// Errors by reason code.
#[derive(Debug, Default)]
pub struct ErrorMetrics {
    reasons: Few<&'static str, 48>,
}

impl ErrorMetrics {
    /// One more, for this reason.
    pub fn count(&self, reason: &'static str) {
        // There are fewer reasons than places.
        self.reasons.inc(reason);
    }

    pub(super) fn collect(&self, family: Family, out: &mut Exposition) {
        for (reason, count) in self.reasons.iter() {
            out.value(family, &Text::new().pair("error", reason).take(), count);
        }
    }
}

/// The proxy's own certificate.
#[derive(Debug, Default)]
pub struct IdentityMetrics {
    expires: AtomicU64,
    refreshed: AtomicU64,
    refreshes: Counter,
    trust: Mutex<Trust>,
}

/// By SHA-256 in hex: what a rotation of the roots has to wait for.
#[derive(Debug, Default)]
struct Trust {
    anchors: Vec<String>,
    issuer: Option<String>,
}

impl IdentityMetrics {
    /// A certificate was issued.
    pub fn issued(&self, now: SystemTime, expires: SystemTime) {
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.refreshed.store(seconds(now), Ordering::Relaxed);
        self.expires.store(seconds(expires), Ordering::Relaxed);
        self.refreshes.inc();
    }

    /// Who signed the certificate, and whom the proxy trusts from now on.
    pub fn trusts(&self, anchors: Vec<String>, issuer: Option<String>) {
        *self.trust.lock().unwrap_or_else(PoisonError::into_inner) = Trust { anchors, issuer };
    }

    pub(super) fn collect(&self, out: &mut Exposition) {
        if self.refreshes.get() > 0 {
            out.value(Family::CertExpiration, "", self.expires.load(Ordering::Relaxed));
            out.value(Family::CertRefresh, "", self.refreshed.load(Ordering::Relaxed));
            out.value(Family::CertRefreshes, "", self.refreshes.get());
        }
        let trust = self.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let named = |fingerprint: &str| Text::new().pair("fingerprint", fingerprint).take();
        if let Some(issuer) = &trust.issuer {
            out.value(Family::CertIssuer, &named(issuer), 1);
        }
        for anchor in &trust.anchors {
            out.value(Family::TrustAnchor, &named(anchor), 1);
        }
    }
}
