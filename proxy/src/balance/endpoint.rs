//! One replica as this thread sees it: how loaded, how healthy, and the connections to it.

use super::breaker::Breaker;
use super::connect::Connector;
use super::ewma::Ewma;
use super::pool::Pool;
use crate::metrics::EndpointMetrics;
use gossamer_api::defaults;
use gossamer_api::endpoint::Endpoint as Info;
use gossamer_api::policy;
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// One replica.
pub struct Endpoint {
    /// What discovery says about it.
    pub info: Arc<Info>,
    /// Connections to it.
    pub pool: Pool,
    /// Its metrics, made at the first request.
    pub metrics: OnceCell<EndpointMetrics>,
    ewma: RefCell<Ewma>,
    breaker: RefCell<Option<Breaker>>,
    in_flight: Cell<u32>,
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
        now: Instant,
    ) -> Self {
        Endpoint {
            pool: Pool::new(info.clone(), connector),
            info,
            metrics: OnceCell::new(),
            ewma: RefCell::new(Ewma::new(load, now)),
            breaker: RefCell::new(breaker.map(Breaker::new)),
            in_flight: Cell::new(0),
            refusals: Cell::new(0),
            refused_until: Cell::new(None),
        }
    }

    /// What choosing it would cost: latency times what is in flight, by weight.
    pub fn cost(&self, now: Instant) -> f64 {
        let weight = f64::from(self.info.weight.max(1)) / f64::from(gossamer_api::endpoint::WEIGHT_ONE);
        self.ewma.borrow_mut().cost(self.in_flight.get(), now) / weight
    }

    /// When a connection may be tried again; `None`: now.
    pub fn refused_until(&self, now: Instant) -> Option<Instant> {
        self.refused_until.get().filter(|until| *until > now)
    }

    /// The breaker lets a request through.
    pub fn is_closed(&self, now: Instant) -> bool {
        self.breaker.borrow().as_ref().is_none_or(|breaker| breaker.allows(now))
    }

    /// A connection could not be made: leave it alone for a while.
    pub fn refused(&self, now: Instant) {
        let count = self.refusals.get().min(16);
        self.refusals.set(count + 1);
        let wait = defaults::CONNECT_BACKOFF_MIN.saturating_mul(1 << count).min(defaults::CONNECT_BACKOFF_MAX);
        self.refused_until.set(Some(now + wait.mul_f32(1.0 + fastrand::f32() / 2.0)));
    }

    /// A connection was made.
    pub fn connected(&self) {
        self.refusals.set(0);
        self.refused_until.set(None);
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }
}

/// A choice: counts as in flight until dropped.
pub struct Pick {
    endpoint: Rc<Endpoint>,
    /// Others may carry the load if this one is ejected.
    may_eject: bool,
    started: Instant,
}

impl std::ops::Deref for Pick {
    type Target = Endpoint;
    fn deref(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Pick {
    pub(super) fn new(endpoint: Rc<Endpoint>, may_eject: bool, now: Instant) -> Self {
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        if let Some(breaker) = endpoint.breaker.borrow_mut().as_mut() {
            breaker.admitted(now);
        }
        Pick { endpoint, may_eject, started: now }
    }

    /// The first byte of an answer came, a success or a failure of the endpoint.
    pub fn observe(&self, success: bool, retry_after: Option<Duration>, now: Instant) {
        let rtt = now.saturating_duration_since(self.started);
        let mut ewma = self.endpoint.ewma.borrow_mut();
        if success { ewma.observe(rtt, now) } else { ewma.observe_failure(rtt, retry_after, now) }
        self.judge(success, now);
    }

    /// The answer's end changed the verdict (a gRPC status in the trailers), or no answer came.
    pub fn judge(&self, success: bool, now: Instant) {
        let mut breaker = self.endpoint.breaker.borrow_mut();
        let Some(breaker) = breaker.as_mut() else { return };
        if success {
            breaker.success(now);
        } else if self.may_eject || !breaker.is_closed() {
            breaker.failure(now, fastrand::f32());
        }
    }
}

impl Drop for Pick {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
    }
}
