//! Which endpoint: power of two choices over peak-EWMA latency times requests in flight.
//!
//! A balancer lives on one data thread: no lock, no queue task. Endpoints come and go under it without a request
//! noticing. Requests wait here, in bounded number and time, only while discovery is pending, no endpoint accepts
//! connections, or all streams that endpoints allow are taken.
//!
//! Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001); Finagle's peak EWMA.

pub mod breaker;
pub mod connect;
mod endpoint;
pub mod ewma;
pub mod pool;
#[cfg(test)]
mod tests;
pub mod transport;

use endpoint::Waiting;
pub use endpoint::{Endpoint, Pick};

use crate::control::{Discovered, EndpointSet};
use crate::error::{Error, LastRefusal};
use crate::metrics::BalancerMetrics;
use connect::Connector;
use gossamer_api::defaults;
use gossamer_api::endpoint::Endpoint as Info;
use gossamer_api::policy::{self, Load, Meta, Queue};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Draws of two before all endpoints are looked at.
const DRAWS: usize = 3;

/// How a backend is balanced.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// How load is judged.
    pub load: Load,
    /// When an endpoint is ejected.
    pub breaker: Option<policy::Breaker>,
    /// How many may wait, how long.
    pub queue: Queue,
}

impl Default for Rules {
    fn default() -> Self {
        Rules {
            load: Load { default_rtt: defaults::EWMA_DEFAULT_RTT, decay: defaults::EWMA_DECAY, penalty: None },
            breaker: None,
            queue: Queue { capacity: defaults::QUEUE_CAPACITY, failfast: defaults::QUEUE_FAILFAST },
        }
    }
}

/// What an endpoint is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// A stream of a connection that others share, of which there is a bounded number.
    Stream,
    /// A connection of its own.
    Connection,
}

/// The endpoints of one backend.
pub struct Balancer {
    /// The object behind it.
    pub meta: Meta,
    /// `name:port`, or the address of a single endpoint.
    pub authority: String,
    rules: Rules,
    connector: Rc<Connector>,
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    state: RefCell<State>,
    waiting: Rc<Waiting>,
    shown: Shown,
    /// Since when nobody accepts connections, and when that was last seen.
    failing: Cell<Option<(Instant, Instant)>>,
    /// What the endpoint said that refused last.
    refusal: RefCell<LastRefusal>,
    /// When the last endpoint went.
    emptied: Cell<Option<Instant>>,
}

enum State {
    Pending,
    Ready,
    Empty,
    Failed(Arc<str>),
}

impl Balancer {
    /// A balancer that knows no endpoint yet: see [`Balancer::follow`].
    pub fn new(meta: Meta, authority: String, rules: Rules, connector: Rc<Connector>) -> Self {
        Balancer {
            shown: Shown { metrics: Arc::default(), endpoints: Cell::new(0) },
            meta,
            authority,
            rules,
            connector,
            endpoints: RefCell::default(),
            state: RefCell::new(State::Pending),
            waiting: Rc::default(),
            failing: Cell::new(None),
            refusal: RefCell::default(),
            emptied: Cell::new(None),
        }
    }

    /// Shows its endpoints and queue in these metrics.
    pub fn shown_as(mut self, metrics: Arc<BalancerMetrics>) -> Self {
        self.shown = Shown { metrics, endpoints: Cell::new(0) };
        self
    }

    /// A balancer over one endpoint that never changes.
    pub fn fixed(meta: Meta, info: Info, rules: Rules, connector: Rc<Connector>) -> Self {
        let balancer = Balancer::new(meta, info.addr.to_string(), rules, connector);
        balancer.set([Arc::new(info)].into_iter());
        balancer
    }

    /// A balancer that never has an endpoint: its share of requests fails.
    pub fn empty(meta: Meta, name: String, rules: Rules, connector: Rc<Connector>) -> Self {
        let balancer = Balancer::new(meta, name, rules, connector);
        balancer.set(std::iter::empty());
        balancer
    }

    /// Takes over what discovery says, until discovery forgets the backend or the balancer is dropped.
    pub async fn follow(self: Rc<Self>, mut discovered: watch::Receiver<Discovered<EndpointSet>>) {
        let weak = Rc::downgrade(&self);
        drop(self);
        loop {
            let now = discovered.borrow_and_update().clone();
            let Some(balancer) = weak.upgrade() else { return };
            balancer.update(now);
            drop(balancer);
            if discovered.changed().await.is_err() {
                return;
            }
        }
    }

    fn update(&self, discovered: Discovered<EndpointSet>) {
        match discovered {
            Discovered::Pending => return,
            Discovered::Known(set) => self.set(set.endpoints.values().cloned()),
            Discovered::Absent => {
                self.set(std::iter::empty());
            }
            Discovered::Failed(reason) => {
                // Last known good stays.
                if self.endpoints.borrow().is_empty() {
                    *self.state.borrow_mut() = State::Failed(reason);
                }
            }
        }
        self.waiting.changed.notify_waiters();
    }

    fn set(&self, infos: impl Iterator<Item = Arc<Info>>) {
        let now = Instant::now();
        let mut known: std::collections::HashMap<SocketAddr, Rc<Endpoint>> =
            self.endpoints.borrow_mut().drain(..).map(|endpoint| (endpoint.info.addr, endpoint)).collect();
        let mut endpoints: Vec<_> = infos
            .map(|info| match known.remove(&info.addr) {
                Some(endpoint) if endpoint.info == info => endpoint,
                former => {
                    former.inspect(|endpoint| endpoint.pool.close());
                    let ejections = self.shown.metrics.clone();
                    let (load, breaker) = (self.rules.load, self.rules.breaker);
                    let (connector, waiting) = (self.connector.clone(), self.waiting.clone());
                    Rc::new(Endpoint::new(info, connector, load, breaker, ejections, waiting, now))
                }
            })
            .collect();
        endpoints.shrink_to_fit();
        // What is gone finishes what it has in flight.
        known.values().for_each(|endpoint| endpoint.pool.close());
        if endpoints.is_empty() && matches!(*self.state.borrow(), State::Ready) {
            self.emptied.set(Some(now));
        }
        *self.state.borrow_mut() = if endpoints.is_empty() { State::Empty } else { State::Ready };
        self.shown.endpoints(endpoints.len());
        *self.endpoints.borrow_mut() = endpoints;
        self.failing.set(None);
    }

    /// Endpoints known.
    pub fn len(&self) -> usize {
        self.endpoints.borrow().len()
    }

    /// True when there is no endpoint.
    pub fn is_empty(&self) -> bool {
        self.endpoints.borrow().is_empty()
    }

    /// True unless it is certain that nobody can be reached: what `FirstAvailable` asks.
    pub fn is_available(&self, now: Instant) -> bool {
        match &*self.state.borrow() {
            State::Pending => true,
            State::Empty | State::Failed(_) => false,
            State::Ready => self
                .endpoints
                .borrow()
                .iter()
                .any(|endpoint| endpoint.refused_until(now).is_none() && endpoint.is_closed(now)),
        }
    }

    /// An endpoint to use now, or `None` when none accepts connections, or no more streams. Those in `tried` only if there
    /// is no other.
    pub fn pick(&self, now: Instant, tried: &[SocketAddr]) -> Option<Pick> {
        self.pick_for(Wants::Stream, now, tried)
    }

    /// The same for what may not need a stream.
    pub fn pick_for(&self, wants: Wants, now: Instant, tried: &[SocketAddr]) -> Option<Pick> {
        let endpoints = self.endpoints.borrow();
        let open = |endpoint: &Endpoint| {
            endpoint.refused_until(now).is_none() && !(wants == Wants::Stream && endpoint.pool.is_full())
        };
        let usable =
            |endpoint: &Endpoint| open(endpoint) && endpoint.is_closed(now) && !tried.contains(&endpoint.info.addr);
        let chosen = match endpoints.len() {
            0 => return None,
            1 => open(&endpoints[0]).then(|| &endpoints[0]),
            count => two_choices(&endpoints, count, now, &usable)
                .or_else(|| least(&endpoints, now, &usable))
                // Ejected or tried ones are better than nobody.
                .or_else(|| {
                    let start = fastrand::usize(..count);
                    (0..count).map(|i| &endpoints[(start + i) % count]).find(|e| open(e))
                }),
        }?;
        Some(Pick::new(chosen.clone(), now))
    }

    /// An endpoint to use; waits while discovery is pending, no endpoint accepts connections or no more streams.
    ///
    /// Errors: the service has none, discovery failed, too many wait, or none became usable in time.
    /// Dropping the future leaves the queue.
    pub async fn ready(&self, wants: Wants, tried: &[SocketAddr]) -> Result<Pick, Error> {
        let started = Instant::now();
        if let Some(pick) = self.pick_for(wants, started, tried) {
            return Ok(pick);
        }
        if self.waiting.count.get() >= self.rules.queue.capacity {
            return Err(Error::Overloaded(self.authority.clone()));
        }
        let _place = Place::take(&self.waiting.count, &self.shown.metrics);
        let refused_failfast = self.rules.queue.refused_failfast();
        loop {
            let now = Instant::now();
            let changed = self.waiting.changed.notified();
            if let Some(pick) = self.pick_for(wants, now, tried) {
                return Ok(pick);
            }
            let name = || self.authority.clone();
            let (until, next) = match &*self.state.borrow() {
                State::Empty => match self.emptied.get().map(|at| at + defaults::EMPTIED_FAILFAST) {
                    Some(until) if now < until => (until, None),
                    _ => return Err(Error::NoEndpoints(name())),
                },
                State::Failed(reason) => return Err(Error::Discovery(name(), reason.clone())),
                State::Pending => {
                    let until = started + defaults::DISCOVERY_TIMEOUT + Duration::from_millis(50);
                    if now >= until {
                        return Err(Error::Discovery(name(), "no answer from the control plane".into()));
                    }
                    (until, None)
                }
                State::Ready => {
                    let endpoints = self.endpoints.borrow();
                    let next = endpoints.iter().filter_map(|endpoint| endpoint.refused_until(now)).min();
                    if endpoints.iter().any(|endpoint| endpoint.refused_until(now).is_none()) {
                        // Somebody accepts connections and has no stream left. Every request that is over makes room.
                        let until = started + self.rules.queue.failfast;
                        if now >= until {
                            return Err(Error::Overloaded(name()));
                        }
                        (until, next)
                    } else {
                        let until = self.failing(now) + refused_failfast;
                        if now >= until {
                            let refusal = self.refusal.borrow().clone();
                            return Err(Error::NotReady(name(), refused_failfast, refusal));
                        }
                        (until, next)
                    }
                }
            };
            let _ = timeout_at(next.unwrap_or(until).min(until), changed).await;
        }
    }

    /// Since when nobody accepts connections. What was seen long ago was another outage: this one gets its own wait.
    fn failing(&self, now: Instant) -> Instant {
        let since = match self.failing.get() {
            Some((since, seen)) if now.duration_since(seen) <= 2 * defaults::CONNECT_BACKOFF_MAX => since,
            _ => now,
        };
        self.failing.set(Some((since, now)));
        since
    }

    /// No connection to this endpoint could be made: it is left alone for a while, and who finds nobody is told why.
    pub fn refused(&self, pick: &Pick, error: &Error, now: Instant) {
        pick.refused(now);
        *self.refusal.borrow_mut() = LastRefusal(Some(error.to_string().into()));
    }

    /// A connection to some endpoint was made: the backend is alive.
    pub fn alive(&self) {
        self.failing.set(None);
    }

    /// Closes connections that lay idle for too long.
    pub fn sweep(&self, now: Instant) {
        self.endpoints.borrow().iter().for_each(|endpoint| endpoint.pool.sweep(now));
    }

    /// Ends all connections after what is in flight.
    pub fn close(&self) {
        self.endpoints.borrow().iter().for_each(|endpoint| endpoint.pool.close());
    }
}

fn two_choices<'a>(
    endpoints: &'a [Rc<Endpoint>],
    count: usize,
    now: Instant,
    usable: &impl Fn(&Endpoint) -> bool,
) -> Option<&'a Rc<Endpoint>> {
    for _ in 0..DRAWS {
        let first = fastrand::usize(..count);
        let second = (first + 1 + fastrand::usize(..count - 1)) % count;
        let (a, b) = (&endpoints[first], &endpoints[second]);
        match (usable(a), usable(b)) {
            (true, true) => return Some(cheaper(a, b, now)),
            (true, false) if count == 2 => return Some(a),
            (false, true) if count == 2 => return Some(b),
            _ => {}
        }
    }
    None
}

/// One that was never measured is taken to be as fast as the other, so that what is in flight decides; if that is
/// equal as well it is tried, or it would never be measured beside others that are fast.
fn cheaper<'a>(a: &'a Rc<Endpoint>, b: &'a Rc<Endpoint>, now: Instant) -> &'a Rc<Endpoint> {
    let (of_a, of_b) = (a.latency(now), b.latency(now));
    match (a.cost(of_b, now), b.cost(of_a, now)) {
        (cost_a, cost_b) if cost_a < cost_b => a,
        (cost_a, cost_b) if cost_b < cost_a => b,
        _ if of_b.is_none() && of_a.is_some() => b,
        _ => a,
    }
}

/// The cheapest of all that are usable. One that was never measured counts as the mean of those that were.
fn least<'a>(
    endpoints: &'a [Rc<Endpoint>],
    now: Instant,
    usable: &impl Fn(&Endpoint) -> bool,
) -> Option<&'a Rc<Endpoint>> {
    let (sum, count) = endpoints.iter().filter_map(|e| e.latency(now)).fold((0.0, 0.0), |(s, n), l| (s + l, n + 1.0));
    let mean = (count > 0.0).then(|| sum / count);
    endpoints.iter().filter(|e| usable(e)).min_by(|a, b| a.cost(mean, now).total_cmp(&b.cost(mean, now)))
}

/// What metrics show of a balancer: several data threads add up.
struct Shown {
    metrics: Arc<BalancerMetrics>,
    endpoints: Cell<i64>,
}

impl Shown {
    fn endpoints(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.ready.add(count - self.endpoints.replace(count));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.endpoints(0);
    }
}

/// A place in the queue, given up on drop.
struct Place<'a>(&'a Cell<u32>, &'a BalancerMetrics);

impl<'a> Place<'a> {
    fn take(waiting: &'a Cell<u32>, metrics: &'a BalancerMetrics) -> Self {
        waiting.set(waiting.get() + 1);
        metrics.queue_length.add(1);
        metrics.queue_requests.inc();
        Place(waiting, metrics)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
        self.1.queue_length.add(-1);
    }
}
