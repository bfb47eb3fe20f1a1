//! What happened to one request or connection: written once, when it is over, to metrics, access log and tap.
//!
//! **Invariant:** metric handles are found once per connection, endpoint or rule; a request only touches them.

mod about;
mod handles;

pub use handles::{ConnectionMetrics, EndpointMetrics};

use crate::balance::{Balancer, Pick};
use crate::error::Error;
use crate::metrics::{Direction, RequestMetrics, RouteLabels, RouteMetrics, TlsLabel};
use crate::policy::limit::Limited;
use crate::request::mirror::Verdict;
use crate::request::routes::Rule;
use crate::request::{Connection, Side, respond};
use crate::shard::PortPolicy;
use crate::tap::{End, Observed, Tapped};
use crate::tcp::Moved;
use about::About;
use gossamer_api::authorization::Authorization;
use gossamer_api::policy::Meta;
use gossamer_api::request_id::RequestId;
use gossamer_engine::{Headers, RequestHead, ResponseHead};
use handles::destination_tls;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// gRPC codes that are the server's fault. Source: linkerd2-proxy classify: UNKNOWN, DEADLINE_EXCEEDED,
/// PERMISSION_DENIED, INTERNAL, UNAVAILABLE, DATA_LOSS.
const GRPC_FAILURES: &[u16] = &[2, 4, 7, 13, 14, 15];

/// What happened to one request or connection.
pub struct Record<'a> {
    conn: &'a Connection,
    /// When it came.
    pub start: Instant,
    /// It came as HTTP/1 inside HTTP/2.
    pub was_upgraded: bool,
    http: bool,
    /// It is over, or nothing happened after all.
    over: bool,
    status: u16,
    grpc: Option<u16>,
    /// Why the proxy answered, or why the response broke off.
    reason: Option<&'static str>,
    /// That was an error: a redirect is none.
    failed: bool,
    retries: u32,
    received: u64,
    /// Until the response's head.
    latency: Duration,
    metrics: Option<Arc<RequestMetrics>>,
    endpoint: Option<SocketAddr>,
    /// In flight for as long as a connection lasts.
    pick: Option<Pick>,
    rule: Option<Rc<Rule>>,
    tapped: Option<Box<Tapped>>,
    about: Option<Box<About>>,
    /// Whoever sent a copy waits for how the real request ends.
    pub mirrored: Option<Rc<Verdict>>,
}

impl<'a> Record<'a> {
    /// Of a request, from now on.
    pub fn request(conn: &'a Connection, head: &RequestHead) -> Self {
        let mut record = Record::new(conn, true);
        if conn.shard.config.access_log.is_some() {
            record.about(head);
        }
        record
    }

    /// Of a connection whose bytes are not looked at.
    pub fn connection(conn: &'a Connection) -> Self {
        Record::new(conn, false)
    }

    fn new(conn: &'a Connection, http: bool) -> Self {
        Record {
            conn,
            start: Instant::now(),
            was_upgraded: false,
            http,
            over: false,
            status: 0,
            grpc: None,
            reason: None,
            failed: false,
            retries: 0,
            received: 0,
            latency: Duration::ZERO,
            metrics: None,
            endpoint: None,
            pick: None,
            rule: None,
            tapped: None,
            about: None,
            mirrored: None,
        }
    }

    fn direction(&self) -> Direction {
        self.conn.metrics.direction
    }

    /// Nothing happened after all.
    pub fn forget(mut self) {
        self.over = true;
    }

    /// A route was found.
    pub fn matched(&mut self, rule: &Rc<Rule>) {
        self.rule = Some(rule.clone());
    }

    /// Inbound: an authorization let it in.
    pub fn allowed(&mut self, policy: &PortPolicy, rule: &Rc<Rule>, by: &Authorization) {
        let handles = self.conn.metrics.handles(policy, rule, Some(by));
        handles.authz.http_allow.inc();
        handles.requests.request();
        self.metrics = Some(handles.requests);
    }

    /// Inbound: it was let in, and then was one too many.
    pub fn limited(&mut self, policy: &PortPolicy, rule: &Rc<Rule>, by: &Authorization, which: Limited) {
        let handles = self.conn.metrics.handles(policy, rule, Some(by));
        match which {
            Limited::Total(_) => handles.authz.http_limited_total.inc(),
            Limited::Identity(_) => handles.authz.http_limited_identity.inc(),
        }
    }

    /// Inbound: nothing let it in.
    pub fn denied(&mut self, policy: &PortPolicy, rule: &Rc<Rule>) {
        let handles = self.conn.metrics.handles(policy, rule, None);
        handles.authz.http_deny.inc();
        handles.requests.request();
        self.metrics = Some(handles.requests);
        self.matched(rule);
    }

    /// Inbound: whether an authorization let a connection in.
    pub fn connection_decided(&mut self, policy: &PortPolicy, by: Option<&Authorization>) {
        let authz = self.conn.metrics.connection_authz(policy, by);
        match by {
            Some(_) => authz.tcp_allow.inc(),
            None => authz.tcp_deny.inc(),
        }
    }

    /// Inbound: a connection that policy ends while it lasts.
    pub fn terminated(&mut self) {
        if let Side::Inbound(port, _) = &self.conn.side
            && let Some(policy) = port.current()
        {
            self.conn.metrics.connection_authz(&policy, None).tcp_terminate.inc();
        }
    }

    /// It is sent to this endpoint.
    pub fn attempt(&mut self, balancer: &Balancer, pick: &Pick, head: &RequestHead) {
        let metrics = self.measure(balancer, pick);
        if self.direction() == Direction::Outbound {
            metrics.requests.request();
            self.metrics = Some(metrics.requests.clone());
        }
        self.endpoint = Some(pick.info.addr);
        self.tap(Some(pick), head);
    }

    /// A connection is tried to this endpoint.
    pub fn connecting(&mut self, balancer: &Balancer, pick: &Pick) {
        self.measure(balancer, pick);
        self.endpoint = Some(pick.info.addr);
    }

    fn measure<'p>(&self, balancer: &Balancer, pick: &'p Pick) -> &'p EndpointMetrics {
        pick.metrics.get_or_init(|| EndpointMetrics::new(&self.conn.shard, self.direction(), balancer, pick))
    }

    /// Tells whoever watches, unless they know already. Without an endpoint it is the proxy that answers.
    fn tap(&mut self, pick: Option<&Pick>, head: &RequestHead) {
        if !self.conn.shard.taps.is_active() || self.tapped.is_some() {
            return;
        }
        let tls = self.conn.metrics.tls();
        let observed = Observed {
            head,
            direction: self.direction(),
            source: self.conn.client,
            source_tls: tls,
            destination: Some(pick.map_or(self.conn.target, |pick| pick.info.addr)),
            destination_tls: match (self.direction(), pick) {
                (Direction::Outbound, Some(pick)) => destination_tls(pick),
                (Direction::Outbound, None) => TlsLabel::None("no_endpoint"),
                (Direction::Inbound, _) => tls,
            },
            destination_labels: pick.map(|pick| &pick.info.labels),
            route_labels: None,
        };
        self.tapped = self.conn.shard.taps.request(&observed, self.start).map(Box::new);
        if let Some(id) = self.tapped.as_ref().map(|tapped| tapped.id) {
            let about = self.about(head);
            about.id = Some(id);
            if let Some(pick) = pick {
                about.sent_to(&pick.info);
            }
        }
    }

    /// What people may want to know of the request: kept from here on.
    fn about(&mut self, head: &RequestHead) -> &mut About {
        self.about.get_or_insert_with(|| Box::new(About::new(head)))
    }

    /// An attempt came to nothing, and perhaps another one follows.
    pub fn attempt_failed(&mut self, head: &RequestHead, endpoint: SocketAddr, why: impl std::fmt::Display) {
        self.about(head).attempt_failed(endpoint, why);
    }

    /// It stands: the endpoint has one connection more in flight until this record ends.
    pub fn connected(&mut self, pick: Pick) {
        self.pick = Some(pick);
    }

    /// Another attempt is made.
    pub fn retried(&mut self) {
        self.retries += 1;
        self.count_retry(|metrics| metrics.retries.inc());
    }

    /// The budget did not allow another attempt.
    pub fn retry_refused(&mut self) {
        self.count_retry(|metrics| metrics.retry_overflow.inc());
    }

    fn count_retry(&self, count: impl Fn(&RouteMetrics)) {
        if let Some(metrics) = self.route() {
            count(metrics);
        }
    }

    /// Where the route's requests are counted: looked up once for each rule.
    fn route(&self) -> Option<&Arc<RouteMetrics>> {
        let (Some(rule), Side::Outbound(destination)) = (&self.rule, &self.conn.side) else { return None };
        if rule.metrics.get().is_none() {
            let policy = destination.current()?;
            let labels = RouteLabels { parent: &policy.meta, route: &rule.meta, grpc: rule.grpc };
            return Some(rule.metrics.get_or_init(|| self.conn.shard.metrics.route_scope(labels)));
        }
        rule.metrics.get()
    }

    /// The response's head is on its way to the client.
    pub fn responded(&mut self, head: &ResponseHead) {
        self.status = head.status;
        self.grpc = grpc_status(&head.headers);
        let now = Instant::now();
        self.latency = now - self.start;
        if self.retries > 0 && self.is_success() {
            self.count_retry(|metrics| metrics.retry_successes.inc());
        }
        if let Some(tapped) = &mut self.tapped {
            tapped.response(head, now);
            if let Some(about) = &mut self.about {
                about.answered(head);
            }
        }
    }

    /// Bytes of the response.
    #[inline]
    pub fn received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// The response's trailers.
    pub fn trailers(&mut self, trailers: &Headers) {
        self.grpc = grpc_status(trailers).or(self.grpc);
    }

    /// The endpoint's side broke in the middle of the response.
    pub fn upstream(&self, error: gossamer_engine::Error) -> Error {
        Error::Upstream(self.endpoint.unwrap_or(self.conn.target), error)
    }

    /// The exchange is over: its verdict goes to the endpoint's estimators.
    pub fn finish(&mut self, pick: &Pick, head: &RequestHead, streamed: Result<(), Error>) {
        match streamed {
            Ok(()) if self.is_success() => pick.succeed(Instant::now()),
            Ok(()) => pick.fail(Instant::now()),
            Err(error) => {
                // The client's going away says nothing about the endpoint.
                if !matches!(error, Error::ClientGone) {
                    pick.fail(Instant::now());
                    self.about(head).sent_to(&pick.info);
                    self.name(head, &error);
                }
                self.reason = Some(error.reason());
                self.failed = true;
                self.count_error(&error);
            }
        }
    }

    /// The client has the head of an answer already.
    pub fn is_answered(&self) -> bool {
        self.status != 0
    }

    /// The rest of the answer will not come, and that is ours to say.
    pub fn cut_short(&mut self, head: &RequestHead, error: &Error) {
        self.name(head, error);
        self.reason = Some(error.reason());
        self.failed = true;
        self.count_error(error);
    }

    /// The proxy answers a request itself. Gives the name under which it will be remembered.
    pub fn refused(&mut self, head: &RequestHead, error: &Error) -> RequestId {
        self.tap(None, head);
        let id = self.name(head, error);
        self.failed(error);
        id
    }

    /// Notes why it failed, and its name.
    fn name(&mut self, head: &RequestHead, error: &Error) -> RequestId {
        let journal = self.conn.shard.taps.journal();
        let about = self.about.get_or_insert_with(|| Box::new(About::new(head)));
        about.because(error);
        *about.id.get_or_insert_with(|| journal.name())
    }

    /// It was not served.
    pub fn failed(&mut self, error: &Error) {
        self.status = respond::answer(error).status;
        self.latency = self.start.elapsed();
        let id = self.id();
        if let Some(tapped) = &mut self.tapped {
            tapped.response(&respond::compose(error, false, id).0, Instant::now());
        }
        if self.http && self.metrics.is_none() {
            // Not one endpoint saw it, and it counts all the same.
            let metrics = self.conn.metrics.unserved(error);
            metrics.request();
            self.metrics = Some(metrics);
        }
        self.reason = Some(error.reason());
        if !matches!(error, Error::Redirect { .. }) {
            self.failed = true;
            self.count_error(error);
        }
    }

    fn id(&self) -> Option<RequestId> {
        self.about.as_ref().and_then(|about| about.id)
    }

    fn count_error(&self, error: &Error) {
        let (metrics, reason) = (&self.conn.shard.metrics, error.reason());
        match self.http {
            true => metrics.http_errors(self.direction()).count(reason),
            false => metrics.tcp_errors(self.direction()).count(reason),
        }
        let id = self.id().map(tracing::field::display);
        tracing::debug!(client = %self.conn.client, target = %self.conn.target, reason, id, "{error}");
    }

    /// A connection of bytes ended.
    pub fn closed(self, moved: std::io::Result<Moved>) {
        match moved {
            Ok(moved) => tracing::debug!(target = %self.conn.target, ?moved, "connection ended"),
            Err(error) => tracing::debug!(target = %self.conn.target, %error, "connection broke"),
        }
    }

    fn is_success(&self) -> bool {
        !self.failed
            && match self.grpc {
                Some(code) => !GRPC_FAILURES.contains(&code),
                None => self.status < 500,
            }
    }

    fn end_request(&mut self) {
        if self.status == 0 {
            // Cancelled before an answer.
            self.reason = Some("client-gone");
            self.failed = true;
            self.status = 499;
            self.latency = self.start.elapsed();
        }
        if let Some(metrics) = &self.metrics {
            match self.reason {
                Some(reason) => metrics.answered(self.status, self.grpc, self.is_success(), reason, self.latency),
                None => metrics.response(self.status, self.grpc, self.is_success(), self.latency),
            }
        }
        // Requests that no route of anybody's is about are counted by endpoint alone.
        if let Some(Meta::Resource { .. }) = self.rule.as_ref().map(|rule| &rule.meta)
            && let Some(route) = self.route()
        {
            route.response(self.is_success(), self.latency);
        }
        if let Some(verdict) = self.mirrored.take() {
            verdict.reached(self.status, self.grpc);
        }
        let watched = self.tapped.is_some();
        if let Some(mut tapped) = self.tapped.take() {
            if let Some(reason) = self.reason {
                tapped.failed(reason);
            }
            let end = match (self.failed, self.grpc) {
                (true, _) if self.received > 0 => End::Reset(2),
                (_, Some(code)) => End::Grpc(code.into()),
                _ => End::Complete,
            };
            tapped.end(end, self.received, None, Instant::now());
        }
        if let Some(about) = self.about.take() {
            about.over(self, watched);
        }
    }
}

/// The gRPC code that a head or trailers carry.
pub fn grpc_status(headers: &Headers) -> Option<u16> {
    headers.get_str("grpc-status")?.parse().ok()
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.http && !self.over {
            self.end_request();
        }
    }
}
