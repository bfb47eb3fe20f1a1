//! One replica as this thread sees it: how loaded, how healthy, and the connections to it.

use super::breaker::{Admission, Breaker, Change, Outcome};
use super::connect::Connector;
use super::ewma::PeakEwma;
use super::pool::Pool;
use crate::metrics::BalancerMetrics;
use crate::record::EndpointMetrics;
use gossamer_api::defaults;
use gossamer_api::endpoint::Endpoint as Info;
use gossamer_api::policy;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Who waits until an endpoint of a balancer is usable.
#[derive(Default)]
pub struct Waiting {
    /// How many.
    pub count: Cell<u32>,
    /// All hear of it when endpoints change, the first of them when a request is over.
    pub changed: Notify,
}

/// One replica.
pub struct Endpoint {
    /// What discovery says about it.
    pub info: Arc<Info>,
    /// Connections to it.
    pub pool: Pool,
    /// Its metrics, made at the first request.
    pub metrics: OnceCell<EndpointMetrics>,
    ewma: PeakEwma,
    breaker: RefCell<Option<Breaker>>,
    shown: Arc<BalancerMetrics>,
    waiting: Rc<Waiting>,
    refusals: Cell<u32>,
    refused_until: Cell<Option<Instant>>,
}

impl Endpoint {
    /// Not yet measured, presumed healthy.
    pub fn new(
        info: Arc<Info>,
        connector: Rc<Connector>,
        load: policy::Load,
        breaker: Option<policy::Breaker>,
        shown: Arc<BalancerMetrics>,
        waiting: Rc<Waiting>,
        now: Instant,
    ) -> Self {
        Endpoint {
            pool: Pool::new(info.clone(), connector, waiting.clone()),
            info,
            metrics: OnceCell::new(),
            ewma: PeakEwma::new(&load, now),
            breaker: RefCell::new(breaker.map(|breaker| Breaker::new(breaker, now))),
            shown,
            waiting,
            refusals: Cell::new(0),
            refused_until: Cell::new(None),
        }
    }

    /// The latency to expect of it, in seconds; `None` when no answer came yet.
    pub fn latency(&self, now: Instant) -> Option<f64> {
        self.ewma.latency(now)
    }

    /// What choosing it would cost: latency times what is in flight, by weight. `assumed` is the latency of one that
    /// was never measured.
    pub fn cost(&self, assumed: Option<f64>, now: Instant) -> f64 {
        let weight = f64::from(self.info.weight.max(1)) / f64::from(gossamer_api::endpoint::WEIGHT_ONE);
        self.ewma.load(assumed, now) / weight
    }

    /// When a connection may be tried again; `None`: now.
    pub fn refused_until(&self, now: Instant) -> Option<Instant> {
        self.refused_until.get().filter(|until| *until > now)
    }

    /// The breaker lets a request through.
    pub fn is_closed(&self, now: Instant) -> bool {
        self.breaker.borrow().as_ref().is_none_or(|breaker| breaker.is_ready(now))
    }

    /// A connection could not be made: leave it alone for a while.
    pub fn refused(&self, now: Instant) {
        let count = self.refusals.get().min(16);
        self.refusals.set(count + 1);
        let wait = defaults::CONNECT_BACKOFF_MIN.saturating_mul(1 << count).min(defaults::CONNECT_BACKOFF_MAX);
        self.refused_until.set(Some(now + wait.mul_f32(1.0 + fastrand::f32() / 2.0)));
    }

    #[cfg(test)]
    pub(super) fn refuse_until(&self, until: Instant) {
        self.refused_until.set(Some(until));
    }

    /// A connection was made.
    pub fn connected(&self) {
        self.refusals.set(0);
        self.refused_until.set(None);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.ewma.pending()
    }
}

/// A choice: counts as in flight until dropped. Its stream is dropped first, since another request may wait for that.
pub struct Pick {
    endpoint: Rc<Endpoint>,
    admission: Cell<Option<Admission>>,
    started: Cell<Instant>,
}

impl std::ops::Deref for Pick {
    type Target = Endpoint;
    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Pick {
    pub(super) fn new(endpoint: Rc<Endpoint>, now: Instant) -> Self {
        endpoint.ewma.begin();
        let admission =
            endpoint.breaker.borrow_mut().as_mut().map(|breaker| breaker.admit(now).unwrap_or(Admission::Anyway));
        Pick { endpoint, admission: Cell::new(admission), started: Cell::new(now) }
    }

    /// The request goes out now: making the connection says nothing about the endpoint's latency.
    pub fn sent(&self, now: Instant) {
        self.started.set(now);
    }

    /// The head of an answer came: how long it took, and whether the endpoint did well.
    pub fn observe(&self, status: u16, retry_after: Option<Duration>, now: Instant) {
        self.ewma.observe(now.saturating_duration_since(self.started.get()), now);
        let outcome = match status {
            429 => Outcome::RateLimited,
            500.. => Outcome::Failure,
            _ => return,
        };
        self.ewma.penalize(retry_after, now);
        self.judge(outcome, retry_after, now);
    }

    /// No answer came, or none that was whole.
    pub fn fail(&self, now: Instant) {
        self.ewma.penalize(None, now);
        self.judge(Outcome::Failure, None, now);
    }

    /// The answer is complete and good, as far as its status and trailers tell.
    pub fn succeed(&self, now: Instant) {
        self.judge(Outcome::Success, None, now);
    }

    /// Counts once; what is said later is ignored.
    fn judge(&self, outcome: Outcome, retry_after: Option<Duration>, now: Instant) {
        let (Some(admission), Some(breaker)) = (self.admission.take(), &mut *self.endpoint.breaker.borrow_mut()) else {
            return;
        };
        if let Some(change) = breaker.record(admission, outcome, retry_after, now, fastrand::f32()) {
            if matches!(change, Change::Ejected { .. }) {
                self.shown.ejections.inc();
            }
            tracing::info!(addr = %self.info.addr, ?change, "circuit breaker");
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.endpoint.ewma.end();
        if self.endpoint.waiting.count.get() > 0 {
            self.endpoint.waiting.changed.notify_one();
        }
        if let (Some(admission), Some(breaker)) = (self.admission.take(), &mut *self.endpoint.breaker.borrow_mut()) {
            breaker.abandon(admission, Instant::now());
        }
    }
}
