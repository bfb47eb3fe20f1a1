//! Why a request or connection was not served: the cause, whose fault it is, and whether another attempt is safe.
//!
//! Each variant is one word for people ([`Error::reason`]): the same in the `l5d-proxy-error` header, the metric
//! label, the access log and tap. What a client gets for it is decided in `request/respond.rs` alone.

use gossamer_engine as engine;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Whether another attempt may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The endpoint certainly saw nothing of the request.
    Safe,
    /// It may have: only an idempotent request may be repeated.
    IfIdempotent,
    /// Another attempt would end the same way.
    Never,
}

/// Why a request or a connection was not served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The client's bytes are no valid HTTP.
    #[error("malformed request: {0}")]
    BadRequest(&'static str),
    /// The head of the client's request is too large.
    #[error("request head too large")]
    HeadTooLarge,
    /// The client sends more than any use needs.
    #[error("{0}")]
    Flood(&'static str),
    /// No route of the target matches.
    #[error("no route of {0} matches the request")]
    NoRoute(String),
    /// No authorization of the server lets this client in.
    #[error("client {client} is not authorized on {server}")]
    Denied {
        /// The client's identity or address.
        client: String,
        /// The server object.
        server: String,
    },
    /// Outbound policy forbids the target.
    #[error("policy of {0} forbids it")]
    Forbidden(String),
    /// The route is broken; says how.
    #[error("invalid policy on {0}: {1}")]
    InvalidPolicy(String, String),
    /// The route names something that the control plane has not told.
    #[error("{0} needs extension {1:016x}, which the control plane has not told")]
    Extension(String, u64),
    /// A rate limit is exhausted.
    #[error("rate limit of {0} exceeded")]
    RateLimited(String),
    /// Too many requests wait for an endpoint already.
    #[error("too many requests wait for {0}")]
    Overloaded(String),
    /// The service has no endpoint.
    #[error("{0} has no endpoints")]
    NoEndpoints(String),
    /// Endpoints exist, but none became usable in time.
    #[error("no endpoint of {0} became ready within {1:?}{2}")]
    NotReady(String, Duration, LastRefusal),
    /// The control plane did not say what the target is.
    #[error("discovery of {0} failed: {1}")]
    Discovery(String, Arc<str>),
    /// TCP connect failed.
    #[error("connect to {0} failed: {1}")]
    Connect(SocketAddr, std::io::ErrorKind),
    /// TLS with the endpoint failed.
    #[error("TLS handshake with {0} failed: {1}")]
    Handshake(SocketAddr, Arc<str>),
    /// The endpoint's certificate is for somebody else.
    #[error("{0} did not prove to be {1}")]
    WrongIdentity(SocketAddr, String),
    /// This proxy has no valid certificate.
    #[error("this proxy has no certificate yet")]
    NoIdentity,
    /// The client demanded a server identity that the endpoint does not have.
    #[error("the endpoint is not {0}, which the client requires")]
    RequiredIdentity(String),
    /// Something took too long.
    #[error("{0} timeout of {1:?}")]
    Timeout(&'static str, Duration),
    /// The endpoint's connection broke or it broke the protocol.
    #[error("endpoint {0}: {1}")]
    Upstream(SocketAddr, engine::Error),
    /// The connection leads back to this proxy.
    #[error("connection loops back to the proxy")]
    Loop,
    /// A failure injected by policy.
    #[error("{message}")]
    Injected {
        /// HTTP status, or gRPC code on gRPC routes.
        status: u16,
        /// For the client.
        message: String,
    },
    /// A redirect by policy. Not a failure.
    #[error("redirect to {location}")]
    Redirect {
        /// 3xx.
        status: u16,
        /// The new target.
        location: String,
    },
    /// The client is gone: nobody to answer.
    #[error("client closed the connection")]
    ClientGone,
    /// The grace period ended first.
    #[error("the proxy is shutting down, and its grace period is over")]
    ShuttingDown,
}

/// What the last endpoint that was tried said, if any was; printed after what it explains.
#[derive(Clone, Debug, Default)]
pub struct LastRefusal(pub Option<Arc<str>>);

impl std::fmt::Display for LastRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.as_ref().map_or(Ok(()), |why| write!(f, "; {why}"))
    }
}

/// Each reason code, what it means and what to do about it; `meshctl why CODE` prints it.
pub const REASONS: &[(&str, &str, &str)] = &[
    (
        "bad-request",
        "The client's bytes are not valid HTTP, or ambiguous about where a message ends.",
        "Look at the client; the proxy never forwards a message that two parsers could read differently.",
    ),
    (
        "flood",
        "The client's HTTP/2 connection reset, pinged or split more than any use needs, and was closed.",
        "Look at the client: it is broken, or an attack (rapid reset, CONTINUATION flood).",
    ),
    ("head-too-large", "The request's head is larger than 64 KiB.", "Shorten cookies or headers."),
    (
        "no-route",
        "Routes are attached to the target, and none matches this request.",
        "Compare the request with the routes' matches; add a rule without matches as a default.",
    ),
    (
        "denied",
        "No authorization lets this client reach this port.",
        "Check the client's identity with `meshctl identity`, then allow it in an AuthorizationPolicy.",
    ),
    (
        "forbidden",
        "Outbound policy forbids this target, or the service does not have that port.",
        "Check the port of the service, and egress policy.",
    ),
    ("invalid-policy", "A route or policy of the target is broken.", "Mend the object that the message names."),
    (
        "extension",
        "The route rewrites requests, and the control plane has not told how, so they may not pass.",
        "Check that the destination service is Gossamer's, answers, and is not older than this proxy.",
    ),
    ("rate-limited", "The rate limit of the server is exhausted.", "Slow down, or raise the limit."),
    (
        "overloaded",
        "Too many requests already wait for an endpoint of this service.",
        "Add replicas, or find out why the present ones are slow.",
    ),
    ("no-endpoints", "The service exists, but has no ready endpoint.", "Start a replica; check its readiness."),
    (
        "not-ready",
        "Endpoints exist, but none became usable in time.",
        "Check whether the replicas accept connections; `meshctl edges` shows whom they talk to.",
    ),
    (
        "discovery",
        "The control plane did not answer, and this target was not known before.",
        "Check the control plane with `meshctl check`; known targets keep working meanwhile.",
    ),
    ("connect", "No TCP connection to the endpoint.", "Is the process listening on that port? Is the replica gone?"),
    (
        "handshake",
        "TLS with the endpoint's proxy failed.",
        "Check both certificates with `meshctl identity`, and the clocks.",
    ),
    (
        "wrong-identity",
        "The endpoint's certificate carries another name than discovery promised.",
        "The address may have been taken over by another workload; it will pass when discovery catches up.",
    ),
    (
        "no-identity",
        "This proxy has no valid certificate, so it talks to nobody of the mesh.",
        "Check the identity service with `meshctl check`; the proxy's log says why it was refused.",
    ),
    (
        "required-identity",
        "The client demanded a server identity (l5d-require-id) that the endpoint does not have.",
        "Mend the header, or mesh the server.",
    ),
    ("timeout", "A timeout of the route was reached.", "Raise it, or make the service faster."),
    (
        "upstream",
        "The endpoint's connection broke before its answer was complete.",
        "Look at the endpoint's log: it may have crashed or closed early.",
    ),
    (
        "loop",
        "The connection leads back to the proxy's own listener.",
        "Check what address the application uses; it must not be the proxy's.",
    ),
    ("injected", "A fault that policy injects on purpose.", "Remove the failure injector from the route."),
    ("redirect", "A redirect by policy.", "Nothing to do."),
    ("client-gone", "The client closed before the answer.", "Look at the client's timeout."),
    (
        "shutting-down",
        "The proxy was told to end, waited for its grace period, and there was still no answer.",
        "Repeat the request; where such long ones are usual, raise config.gossamer.io/shutdown-grace-period.",
    ),
];

impl Error {
    /// One word for header, metric label, access log and tap.
    pub fn reason(&self) -> &'static str {
        match self {
            Error::BadRequest(_) => "bad-request",
            Error::HeadTooLarge => "head-too-large",
            Error::Flood(_) => "flood",
            Error::NoRoute(_) => "no-route",
            Error::Denied { .. } => "denied",
            Error::Forbidden(_) => "forbidden",
            Error::InvalidPolicy(..) => "invalid-policy",
            Error::Extension(..) => "extension",
            Error::RateLimited(_) => "rate-limited",
            Error::Overloaded(_) => "overloaded",
            Error::NoEndpoints(_) => "no-endpoints",
            Error::NotReady(..) => "not-ready",
            Error::Discovery(..) => "discovery",
            Error::Connect(..) => "connect",
            Error::Handshake(..) => "handshake",
            Error::WrongIdentity(..) => "wrong-identity",
            Error::NoIdentity => "no-identity",
            Error::RequiredIdentity(_) => "required-identity",
            Error::Timeout(..) => "timeout",
            Error::Upstream(..) => "upstream",
            Error::Loop => "loop",
            Error::Injected { .. } => "injected",
            Error::Redirect { .. } => "redirect",
            Error::ClientGone => "client-gone",
            Error::ShuttingDown => "shutting-down",
        }
    }

    /// The service that could not be reached, where the error knows it.
    pub fn target(&self) -> Option<&str> {
        match self {
            Error::Overloaded(name)
            | Error::NoEndpoints(name)
            | Error::NotReady(name, ..)
            | Error::Discovery(name, _) => Some(name),
            _ => None,
        }
    }

    /// The object, the service or the endpoint that decided, where the error knows one.
    pub fn decided_by(&self) -> Option<String> {
        Some(match self {
            Error::NoRoute(name)
            | Error::Forbidden(name)
            | Error::InvalidPolicy(name, _)
            | Error::Extension(name, _)
            | Error::RateLimited(name)
            | Error::Overloaded(name)
            | Error::NoEndpoints(name)
            | Error::NotReady(name, ..)
            | Error::Discovery(name, _) => name.clone(),
            Error::Denied { server, .. } => server.clone(),
            Error::Connect(addr, _)
            | Error::Handshake(addr, _)
            | Error::WrongIdentity(addr, _)
            | Error::Upstream(addr, _) => addr.to_string(),
            _ => return None,
        })
    }

    /// May the request be sent to another endpoint?
    pub fn again(&self) -> Again {
        match self {
            Error::Connect(..) | Error::Handshake(..) | Error::WrongIdentity(..) => Again::Safe,
            Error::Upstream(_, engine::Error::Refused) => Again::Safe,
            Error::Upstream(..) => Again::IfIdempotent,
            _ => Again::Never,
        }
    }

    /// The error of passing an endpoint's answer on: what HTTP cannot express is the endpoint's fault.
    pub fn of_answer(endpoint: SocketAddr, error: engine::Error) -> Self {
        match error {
            engine::Error::Malformed(_) | engine::Error::HeadTooLarge => Error::Upstream(endpoint, error),
            _ => Error::ClientGone,
        }
    }

    /// The error of a client's connection or stream.
    pub fn of_client(error: engine::Error) -> Self {
        match error {
            engine::Error::Malformed(rule) => Error::BadRequest(rule),
            engine::Error::HeadTooLarge => Error::HeadTooLarge,
            engine::Error::Flood(what) => Error::Flood(what),
            _ => Error::ClientGone,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_answer_is_not_the_clients_fault() {
        let endpoint = "10.0.0.1:80".parse().unwrap();
        let of = |error| Error::of_answer(endpoint, error).reason();
        assert_eq!(of(engine::Error::Malformed("invalid status")), "upstream");
        assert_eq!(of(engine::Error::Cancelled), "client-gone");
        assert_eq!(Error::of_client(engine::Error::Malformed("x")).reason(), "bad-request");
    }

    #[test]
    fn every_reason_is_explained_once() {
        let mut names: Vec<_> = REASONS.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REASONS.len());
        for error in [Error::Loop, Error::NoIdentity, Error::NoEndpoints("x".into()), Error::HeadTooLarge] {
            assert!(names.contains(&error.reason()));
        }
    }
}
