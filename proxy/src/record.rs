//! What happened to one request or connection: written once, when it is over, to metrics, access log and tap.
//!
//! **Invariant:** nothing here allocates or looks anything up while a request is served, but for the first request of
//! a connection or endpoint, which finds the metric handles that later ones use.

use crate::balance::{Balancer, Pick};
use crate::error::Error;
use crate::metrics::{Labels, RequestMetrics, TcpMetrics};
use crate::policy::authorize::{Peer, PeerTls};
use crate::request::routes::Rule;
use crate::request::{Connection, Side};
use crate::shard::{Destination, PortPolicy, Shard};
use crate::tcp::{Moved, Watch};
use gossamer_api::authorization::Authorization;
use gossamer_api::policy::Meta;
use gossamer_engine::{Headers, RequestHead, ResponseHead};
use std::cell::{OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::time::Instant;

/// gRPC codes that are the server's fault. Source: linkerd2-proxy classify: DATA_LOSS, DEADLINE_EXCEEDED, INTERNAL,
/// PERMISSION_DENIED, UNAVAILABLE, UNKNOWN.
const GRPC_FAILURES: &[u16] = &[2, 4, 7, 13, 14, 15];

/// Metric handles of an endpoint, found at its first request.
pub struct EndpointMetrics {
    /// Requests to it.
    pub requests: Arc<RequestMetrics>,
    /// Connections to it.
    pub tcp: Arc<TcpMetrics>,
}

impl EndpointMetrics {
    fn new(shard: &Shard, balancer: &Balancer, pick: &Pick) -> Self {
        let mut labels = Labels::new("outbound");
        labels.add("authority", &balancer.authority);
        labels.add("target_addr", &pick.info.addr.to_string());
        match &pick.info.tls {
            Some(tls) => {
                labels.add("tls", "true");
                labels.add("server_id", tls.identity.as_str());
            }
            None => {
                labels.add("tls", "no_identity");
                labels.add("no_tls_reason", "not_provided_by_service_discovery");
            }
        }
        for (name, value) in &pick.info.labels {
            labels.add(&format!("dst_{name}"), value);
        }
        EndpointMetrics { requests: shard.metrics.requests(&labels), tcp: shard.metrics.tcp("dst", &labels) }
    }
}

/// Metric handles of a client's connection.
pub struct ConnectionMetrics {
    shard: Rc<Shard>,
    labels: Labels,
    tcp: OnceCell<Arc<TcpMetrics>>,
    /// By rule and authorization: nearly always one.
    requests: RefCell<Vec<((*const Rule, Meta), Arc<RequestMetrics>)>>,
}

impl ConnectionMetrics {
    /// Of a connection of our workload.
    pub fn outbound(shard: &Rc<Shard>, destination: &Destination) -> Self {
        let mut labels = Labels::new("outbound");
        labels.add("target_addr", &destination.target.to_string());
        labels.add("tls", "no_identity");
        labels.add("no_tls_reason", "loopback");
        ConnectionMetrics { shard: shard.clone(), labels, tcp: OnceCell::new(), requests: RefCell::default() }
    }

    /// Of a connection to our workload.
    pub fn inbound(shard: &Rc<Shard>, policy: Option<&PortPolicy>, peer: &Peer, target: SocketAddr) -> Self {
        let mut labels = Labels::new("inbound");
        labels.add("target_addr", &target.to_string());
        match &peer.tls {
            PeerTls::Identity(identity) => {
                labels.add("tls", "true");
                labels.add("client_id", identity.as_str());
            }
            PeerTls::Anonymous => labels.add("tls", "true"),
            PeerTls::None => {
                labels.add("tls", "no_identity");
                labels.add("no_tls_reason", "no_tls_from_remote");
            }
        }
        if let Some(policy) = policy {
            labels.object("srv", &policy.meta);
        }
        ConnectionMetrics { shard: shard.clone(), labels, tcp: OnceCell::new(), requests: RefCell::default() }
    }

    /// Counts the bytes of a connection.
    pub fn tcp(&self, conn: &Connection) -> Box<dyn Watch> {
        let dst = match &conn.side {
            Side::Outbound(_) => None,
            Side::Inbound(..) => None,
        };
        Box::new(Counts { src: self.source(), dst })
    }

    fn source(&self) -> Arc<TcpMetrics> {
        self.tcp.get_or_init(|| self.shard.metrics.tcp("src", &self.labels)).clone()
    }

    fn requests(&self, rule: &Rc<Rule>, by: Option<&Authorization>) -> Arc<RequestMetrics> {
        let meta = by.map_or_else(|| rule.meta.clone(), |authorization| authorization.meta.clone());
        let key = (Rc::as_ptr(rule), meta);
        let mut known = self.requests.borrow_mut();
        if let Some((_, metrics)) = known.iter().find(|(other, _)| *other == key) {
            return metrics.clone();
        }
        let mut labels = self.labels.clone();
        labels.object("route", &rule.meta);
        if let Some(by) = by {
            labels.object("authz", &by.meta);
        }
        let metrics = self.shard.metrics.requests(&labels);
        known.push((key, metrics.clone()));
        metrics
    }
}

struct Counts {
    src: Arc<TcpMetrics>,
    dst: Option<Arc<TcpMetrics>>,
}

impl Watch for Counts {
    fn sent(&self, bytes: u64) {
        self.src.read(bytes);
        if let Some(dst) = &self.dst {
            dst.write(bytes);
        }
    }

    fn received(&self, bytes: u64) {
        self.src.write(bytes);
        if let Some(dst) = &self.dst {
            dst.read(bytes);
        }
    }
}

/// What happened to one request or connection.
pub struct Record<'a> {
    conn: &'a Connection,
    /// When it came.
    pub start: Instant,
    /// It came as HTTP/1 inside HTTP/2.
    pub was_upgraded: bool,
    http: bool,
    status: u16,
    grpc: Option<u16>,
    failure: Option<&'static str>,
    received: u64,
    metrics: Option<Arc<RequestMetrics>>,
    endpoint: Option<Pick0>,
    over: bool,
}

/// The endpoint of the last attempt.
struct Pick0 {
    addr: SocketAddr,
    tcp: Option<Arc<TcpMetrics>>,
    /// Kept in flight for as long as a connection lasts.
    #[allow(dead_code)]
    pick: Option<Pick>,
}

impl<'a> Record<'a> {
    /// Of a request, from now on.
    pub fn request(conn: &'a Connection, _head: &RequestHead) -> Self {
        Record::new(conn, true)
    }

    /// Of a connection whose bytes are not looked at.
    pub fn connection(conn: &'a Connection) -> Self {
        conn.metrics.source().open();
        Record::new(conn, false)
    }

    fn new(conn: &'a Connection, http: bool) -> Self {
        Record {
            conn,
            start: Instant::now(),
            was_upgraded: false,
            http,
            status: 0,
            grpc: None,
            failure: None,
            received: 0,
            metrics: None,
            endpoint: None,
            over: false,
        }
    }

    fn direction(&self) -> &'static str {
        match self.conn.side {
            Side::Outbound(_) => "outbound",
            Side::Inbound(..) => "inbound",
        }
    }

    /// Nothing happened after all.
    pub fn forget(&mut self) {
        self.over = true;
        self.conn.metrics.source().close(None);
    }

    /// A route was found.
    pub fn matched(&mut self, _rule: &Rc<Rule>) {}

    /// It will be sent on, with this head.
    pub fn admitted(&mut self, _head: &RequestHead) {}

    /// Inbound: an authorization let it in.
    pub fn allowed(&mut self, _policy: &PortPolicy, rule: &Rc<Rule>, by: &Authorization) {
        let metrics = self.conn.metrics.requests(rule, Some(by));
        metrics.allow();
        metrics.request();
        self.metrics = Some(metrics);
    }

    /// Inbound: nothing let it in.
    pub fn denied(&mut self, _policy: &PortPolicy, rule: &Rc<Rule>) {
        let metrics = self.conn.metrics.requests(rule, None);
        metrics.deny();
        metrics.request();
        self.metrics = Some(metrics);
    }

    /// Inbound: a connection that nothing let in.
    pub fn refused(&mut self, _policy: &PortPolicy) {
        self.conn.metrics.source().deny();
    }

    /// It is sent to this endpoint.
    pub fn attempt(&mut self, conn: &Connection, balancer: &Balancer, pick: &Pick) {
        if matches!(conn.side, Side::Outbound(_)) {
            let metrics = pick.metrics.get_or_init(|| EndpointMetrics::new(&conn.shard, balancer, pick));
            metrics.requests.request();
            self.metrics = Some(metrics.requests.clone());
        }
        self.endpoint = Some(Pick0 { addr: pick.info.addr, tcp: None, pick: None });
    }

    /// A connection is tried to this endpoint.
    pub fn connecting(&mut self, conn: &Connection, balancer: &Balancer, pick: &Pick) {
        let metrics = pick.metrics.get_or_init(|| EndpointMetrics::new(&conn.shard, balancer, pick));
        self.endpoint = Some(Pick0 { addr: pick.info.addr, tcp: Some(metrics.tcp.clone()), pick: None });
    }

    /// It stands.
    pub fn connected(&mut self, pick: Pick) {
        if let Some(endpoint) = &mut self.endpoint {
            if let Some(tcp) = &endpoint.tcp {
                tcp.open();
            }
            endpoint.pick = Some(pick);
        }
    }

    /// Another attempt is made.
    pub fn retried(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.retry();
        }
    }

    /// The budget did not allow another attempt.
    pub fn retry_refused(&mut self) {
        if let Some(metrics) = &self.metrics {
            metrics.retry_overflow();
        }
    }

    /// The response's head is on its way to the client.
    pub fn responded(&mut self, _conn: &Connection, head: &ResponseHead) {
        self.status = head.status;
        self.grpc = grpc_status(&head.headers);
        self.latency();
    }

    /// Bytes of the response.
    pub fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// The response's trailers.
    pub fn trailers(&mut self, trailers: &Headers) {
        self.grpc = grpc_status(trailers).or(self.grpc);
    }

    /// The endpoint's side broke in the middle of the response.
    pub fn upstream(&mut self, error: gossamer_engine::Error) -> Error {
        let addr = self.endpoint.as_ref().map_or(self.conn.target, |endpoint| endpoint.addr);
        Error::Upstream(addr, error)
    }

    /// The exchange is over: its verdict goes to the endpoint's estimators.
    pub fn finish(&mut self, pick: &Pick, streamed: Result<(), Error>, _sent: u64) {
        match &streamed {
            Ok(()) if self.is_success() => pick.succeed(Instant::now()),
            // The client's going away says nothing about the endpoint.
            Err(Error::ClientGone) => {}
            _ => pick.fail(Instant::now()),
        }
        if let Err(error) = streamed {
            self.failure = Some(error.reason());
            self.count_error(&error);
        }
    }

    /// It was not served.
    pub fn failed(&mut self, error: &Error) {
        self.failure = Some(error.reason());
        let answer = crate::request::respond::answer(error);
        self.status = answer.status;
        if matches!(error, Error::Redirect { .. }) {
            self.failure = None;
        } else {
            self.count_error(error);
        }
        if self.http {
            self.latency();
        }
    }

    fn count_error(&self, error: &Error) {
        let (metrics, reason) = (&self.conn.shard.metrics, error.reason());
        match self.http {
            true => metrics.http_error(self.direction(), reason),
            false => metrics.tcp_error(self.direction(), reason),
        }
        tracing::debug!(client = %self.conn.client, target = %self.conn.target, reason, "{error}");
    }

    /// A connection of bytes ended.
    pub fn closed(&mut self, moved: std::io::Result<Moved>) {
        let errno = moved.err().map(|error| error.kind());
        self.conn.metrics.source().close(errno);
        if let Some(tcp) = self.endpoint.take().and_then(|endpoint| endpoint.tcp) {
            tcp.close(errno);
        }
        self.over = true;
    }

    fn latency(&mut self) {
        // The time to the response's head, as Linkerd's response_latency_ms.
        if let Some(metrics) = &self.metrics {
            metrics.latency(self.start.elapsed());
        }
    }

    fn is_success(&self) -> bool {
        self.failure.is_none()
            && match self.grpc {
                Some(code) => !GRPC_FAILURES.contains(&code),
                None => self.status < 500,
            }
    }
}

fn grpc_status(headers: &Headers) -> Option<u16> {
    headers.get_str("grpc-status")?.parse().ok()
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        if self.http {
            if self.status == 0 {
                // Cancelled before an answer.
                self.failure = Some("client-gone");
                self.status = 499;
            }
            if let Some(metrics) = &self.metrics {
                metrics.response(self.status, self.grpc, self.is_success(), self.failure);
            }
        } else {
            self.conn.metrics.source().close(None);
        }
    }
}
