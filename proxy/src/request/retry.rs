//! Should a request be sent again, may it (budget), and when (backoff). Pure.
//!
//! By default only where it is safe: the endpoint saw nothing of the request, or the method is idempotent and the
//! answer says that a proxy or the service was unable to process it. What a route asks for comes on top.

use crate::error::{Again, Error};
use gossamer_api::defaults;
use gossamer_api::policy::{Backoff, Retry};
use gossamer_engine::message::Method;
use std::time::Duration;

/// What an attempt ended with.
pub enum Outcome<'a> {
    /// A response's head.
    Response {
        /// HTTP status.
        status: u16,
        /// gRPC status, if the head has it (trailers-only).
        grpc: Option<u16>,
    },
    /// No response.
    Error(&'a Error),
}

/// The rule for one request.
pub struct Decider<'a> {
    /// What the route asks for.
    pub route: Option<&'a Retry>,
    /// The request's method.
    pub method: &'a Method,
    /// The request is gRPC.
    pub grpc: bool,
}

/// RFC 9110 section 9.2.2.
pub fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE)
}

/// Source: linkerd2-proxy, exp-backoff.
const MAX_JITTER: f32 = 100.0;

impl Decider<'_> {
    /// Attempts in addition to the first.
    pub fn limit(&self) -> u32 {
        self.route.map_or(defaults::RETRY_LIMIT, |retry| retry.limit)
    }

    /// Bytes of the body to keep.
    pub fn max_body(&self) -> usize {
        self.route.map_or(defaults::RETRY_MAX_BODY, |retry| retry.max_body)
    }

    /// True when a gRPC status calls for another attempt, which may come in trailers.
    pub fn wants_status(&self) -> bool {
        self.grpc && self.route.is_some_and(|retry| !retry.grpc_codes.is_empty())
    }

    /// True when the outcome calls for another attempt.
    pub fn wants(&self, outcome: &Outcome<'_>) -> bool {
        match outcome {
            Outcome::Error(error) => match error.again() {
                Again::Safe => true,
                Again::IfIdempotent => is_idempotent(self.method) && !self.grpc,
                // The route's per-attempt timeout.
                Again::Never => matches!(error, Error::Timeout("attempt", _)) && self.route.is_some(),
            },
            Outcome::Response { status, grpc } => {
                let asked = self.route.is_some_and(|retry| match grpc {
                    Some(code) => retry.grpc_codes.contains(code),
                    None => retry.statuses.iter().any(|(first, last)| (*first..=*last).contains(status)),
                });
                asked || (!self.grpc && is_idempotent(self.method) && (502..=504).contains(status))
            }
        }
    }

    /// How long to wait before attempt number `attempt` (1 is the first retry); `hint` is the answer's `Retry-After`, `roll`
    /// is uniform in 0..1.
    pub fn wait(&self, attempt: u32, hint: Option<Duration>, roll: f32) -> Duration {
        let fallback = Backoff {
            min: defaults::RETRY_BACKOFF_MIN,
            max: defaults::RETRY_BACKOFF_MAX,
            jitter: 1.0,
            respect_retry_after: false,
        };
        let backoff = match self.route {
            None => fallback,
            Some(Retry { backoff: Some(backoff), .. }) => *backoff,
            Some(_) => return Duration::ZERO,
        };
        // Without a route's word the first retry goes to another endpoint at once.
        if self.route.is_none() && attempt == 1 {
            return Duration::ZERO;
        }
        if let Some(hint) = hint.filter(|_| backoff.respect_retry_after) {
            return hint.max(backoff.min).min(backoff.max);
        }
        let base = backoff.min.saturating_mul(1 << (attempt - 1).min(16)).min(backoff.max);
        base.mul_f32(1.0 + backoff.jitter.clamp(0.0, MAX_JITTER) * roll).min(backoff.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decider<'a>(method: &'a Method, route: Option<&'a Retry>) -> Decider<'a> {
        Decider { route, method, grpc: false }
    }

    #[test]
    fn by_default_only_what_is_safe() {
        let (get, post) = (Method::GET, Method::POST);
        let addr = "10.0.0.1:80".parse().unwrap();
        let refused = Error::Connect(addr, std::io::ErrorKind::ConnectionRefused);
        let cut = Error::Upstream(addr, gossamer_engine::Error::Io(std::io::ErrorKind::ConnectionReset));
        let unavailable = Outcome::Response { status: 503, grpc: None };
        assert!(decider(&post, None).wants(&Outcome::Error(&refused)));
        assert!(decider(&get, None).wants(&Outcome::Error(&cut)));
        assert!(!decider(&post, None).wants(&Outcome::Error(&cut)));
        assert!(decider(&get, None).wants(&unavailable));
        assert!(!decider(&post, None).wants(&unavailable));
        assert!(!decider(&get, None).wants(&Outcome::Response { status: 500, grpc: None }));
        assert!(!decider(&get, None).wants(&Outcome::Error(&Error::NoRoute("x".into()))));
    }

    #[test]
    fn a_route_adds_statuses_and_codes() {
        let retry = Retry {
            limit: 1,
            max_body: 10,
            statuses: vec![(500, 500)],
            grpc_codes: vec![14],
            timeout: None,
            backoff: None,
        };
        let post = Method::POST;
        let decider = decider(&post, Some(&retry));
        assert!(decider.wants(&Outcome::Response { status: 500, grpc: None }));
        assert!(decider.wants(&Outcome::Response { status: 200, grpc: Some(14) }));
        assert!(!decider.wants(&Outcome::Response { status: 200, grpc: Some(13) }));
        assert_eq!((decider.limit(), decider.max_body(), decider.wait(3, None, 0.5)), (1, 10, Duration::ZERO));
    }

    #[test]
    fn waits_grow_up_to_their_bound() {
        let get = Method::GET;
        let decider = decider(&get, None);
        assert_eq!(decider.wait(1, None, 1.0), Duration::ZERO);
        assert_eq!(decider.wait(2, None, 0.0).as_millis(), 50);
        assert!(decider.wait(30, None, 1.0) <= defaults::RETRY_BACKOFF_MAX);
    }

    #[test]
    fn retry_after_counts_within_the_bounds_of_a_backoff_that_respects_it() {
        let secs = Duration::from_secs;
        let backoff = Backoff { min: secs(1), max: secs(8), jitter: 3.0, respect_retry_after: true };
        let retry = Retry {
            limit: 9,
            max_body: 0,
            statuses: Vec::new(),
            grpc_codes: Vec::new(),
            timeout: None,
            backoff: Some(backoff),
        };
        let get = Method::GET;
        for (hint, expect) in [(0, 1), (5, 5), (60, 8)] {
            assert_eq!(decider(&get, Some(&retry)).wait(1, Some(secs(hint)), 0.5), secs(expect));
        }
        assert_eq!(decider(&get, Some(&retry)).wait(1, None, 0.5), secs(1).mul_f32(2.5));
        let backoff = Backoff { respect_retry_after: false, ..backoff };
        let retry = Retry { backoff: Some(backoff), ..retry };
        assert_eq!(decider(&get, Some(&retry)).wait(1, Some(secs(5)), 0.0), secs(1));
    }
}
