//! What people may want to know of one request: kept from the moment that it is logged, watched, or fails; told to the
//! access log and the journal when it is over.
//!
//! **Invariant:** a request that is neither has none of this.

use super::Record;
use crate::access::{self, Apache};
use crate::config::AccessLog;
use crate::error::Error;
use crate::metrics::Direction;
use crate::policy::authorize;
use crate::request::Side;
use crate::tap::journal::cut;
use gossamer_api::endpoint::Endpoint;
use gossamer_api::keys::{HEADER_PROXY_ERROR, HEADER_REQUEST};
use gossamer_api::request_id::RequestId;
use gossamer_api::wire::mesh::{FailedAttempt, RequestStory};
use gossamer_engine::{RequestHead, ResponseHead, Version};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Failed attempts that are told; there may be as many as there are endpoints.
const ATTEMPTS: usize = 8;

#[derive(Default)]
pub(super) struct About {
    /// Under which it will be remembered.
    pub(super) id: Option<RequestId>,
    method: String,
    authority: String,
    path: String,
    trace: Option<String>,
    version: Version,
    /// Why it failed, in a sentence, and whose decision that was.
    message: String,
    decided_by: Option<String>,
    failed: Vec<FailedAttempt>,
    pod: String,
    server_id: String,
    answered_as: String,
}

impl About {
    /// Without the query, which may hold what nobody should see.
    pub(super) fn new(head: &RequestHead) -> Self {
        About {
            method: head.method.to_string(),
            authority: head.authority().unwrap_or_default().to_string(),
            path: head.path_only().to_string(),
            trace: ["traceparent", "x-b3-traceid", "x-request-id"]
                .iter()
                .find_map(|name| head.headers.get_str(name))
                .map(str::to_string),
            version: head.version,
            ..About::default()
        }
    }

    pub(super) fn because(&mut self, error: &Error) {
        self.message = cut(&error.to_string());
        self.decided_by = error.decided_by();
    }

    pub(super) fn sent_to(&mut self, endpoint: &Endpoint) {
        self.pod = endpoint.labels.get("pod").cloned().unwrap_or_default();
        self.server_id = endpoint.tls.as_ref().map(|tls| tls.identity.to_string()).unwrap_or_default();
    }

    pub(super) fn attempt_failed(&mut self, endpoint: SocketAddr, why: impl std::fmt::Display) {
        if self.failed.len() < ATTEMPTS {
            self.failed.push(FailedAttempt { endpoint: endpoint.to_string(), message: cut(&why.to_string()) });
        }
    }

    /// Another proxy may have answered, and says so.
    pub(super) fn answered(&mut self, head: &ResponseHead) {
        if let Some(said) = head.headers.get_str(HEADER_PROXY_ERROR) {
            self.message = cut(said);
            self.answered_as = head.headers.get_str(HEADER_REQUEST).map(cut).unwrap_or_default();
        }
    }

    /// It is over: tells the log, and the journal where somebody may ask.
    pub(super) fn over(self: Box<Self>, record: &Record<'_>, watched: bool) {
        let shard = &record.conn.shard;
        match shard.config.access_log {
            Some(AccessLog::Json) => self.log(record),
            Some(AccessLog::Apache) => access::log(self.apache(record).to_string()),
            None => {}
        }
        if let Some(id) = self.id.filter(|_| watched || record.failed) {
            shard.taps.journal().remember(id, Box::new(self.story(record)));
        }
    }

    fn apache<'a>(&'a self, record: &'a Record<'_>) -> Apache<'a> {
        Apache {
            client: record.conn.client,
            identity: record.conn.peer.tls.identity().map(|identity| identity.as_str()),
            at: time::OffsetDateTime::now_utc(),
            method: &self.method,
            path: &self.path,
            version: self.version,
            status: record.status,
            bytes: record.received,
        }
    }

    /// A line of the access log, as JSON on standard output.
    fn log(&self, record: &Record<'_>) {
        let line = serde_json::json!({
            "timestamp": time::OffsetDateTime::now_utc().format(&time::format_description::well_known::Rfc3339).ok(),
            "direction": record.direction().as_str(),
            "client.addr": record.conn.client.to_string(),
            "client.id": record.conn.peer.tls.identity().map(|identity| identity.as_str()),
            "server.addr": record.endpoint.map(|addr| addr.to_string()),
            "method": self.method,
            "host": self.authority,
            "path": self.path,
            "trace_id": self.trace,
            "status": record.status,
            "grpc_status": record.grpc,
            "reason": record.reason,
            "request": self.id.map(|id| id.to_string()),
            "route": record.rule.as_ref().map(|rule| rule.meta.to_string()),
            "retries": record.retries,
            "response_bytes": record.received,
            "head_ns": record.latency.as_nanos() as u64,
            "total_ns": record.start.elapsed().as_nanos() as u64,
        });
        access::log(line.to_string());
    }

    fn story(self, record: &Record<'_>) -> RequestStory {
        let (conn, rule) = (record.conn, record.rule.as_deref());
        let policy = match &conn.side {
            Side::Outbound(destination) => destination.current().map(|policy| policy.meta.to_string()),
            Side::Inbound(port, _) => port.current().map(|policy| policy.meta.to_string()),
        };
        let allowed = rule.and_then(|rule| {
            authorize::authorize(&rule.authorizations, &conn.peer).map(|by| rule.authorizations[by].meta.to_string())
        });
        let (total, now) = (record.start.elapsed(), SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let limit = |of: Option<Duration>| of.map_or(0, micros);
        let timeouts = rule.map(|rule| rule.timeouts).unwrap_or_default();
        RequestStory {
            unix_ms: now.saturating_sub(total).as_millis() as u64,
            outbound: record.direction() == Direction::Outbound,
            client: conn.client.to_string(),
            client_id: conn.peer.tls.identity().map(ToString::to_string).unwrap_or_default(),
            target: conn.target.to_string(),
            method: cut(&self.method),
            authority: cut(&self.authority),
            path: cut(&self.path),
            trace: cut(&self.trace.unwrap_or_default()),
            status: record.status.into(),
            grpc_status: record.grpc.map(u32::from),
            reason: record.reason.unwrap_or_default().to_string(),
            message: self.message,
            decided_by: self.decided_by.unwrap_or_default(),
            policy: policy.unwrap_or_default(),
            route: rule.map(|rule| rule.meta.to_string()).unwrap_or_default(),
            authorization: allowed.unwrap_or_default(),
            endpoint: record.endpoint.map(|addr| addr.to_string()).unwrap_or_default(),
            endpoint_pod: self.pod,
            endpoint_id: self.server_id,
            retries: record.retries,
            failed: self.failed,
            response_bytes: record.received,
            head_us: micros(record.latency),
            total_us: micros(total),
            request_timeout_us: limit(timeouts.request),
            response_timeout_us: limit(timeouts.response),
            idle_timeout_us: limit(timeouts.idle),
            answered_as: self.answered_as,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}
