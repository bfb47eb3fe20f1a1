//! What one data thread knows: destinations in use, their balancers, the workload's ports. No lock: nothing here is
//! shared between threads.

mod destination;
mod port;

pub use destination::{Declared, Destination, Policy};
pub use port::{Port, PortPolicy};

use crate::balance::connect::Connector;
use crate::balance::{Balancer, Rules};
use crate::config::Config;
use crate::control::{Control, Target};
use crate::drain::Drain;
use crate::metrics::{BackendLabels, Metrics};
use crate::request::routes;
use crate::tap::Taps;
use destination::follow;
use gossamer_api::endpoint::Endpoint;
use gossamer_api::policy::{Backend, BackendTarget, Breaker, Meta};
use gossamer_api::process::stop::Stop;
use gossamer_api::{defaults, process::tls::Credentials};
use gossamer_engine::ResponseHead;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// How often idle connections and unused destinations are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// What one data thread knows.
pub struct Shard {
    /// Settings.
    pub config: Arc<Config>,
    /// The control plane's word.
    pub control: Control,
    /// All metrics.
    pub metrics: Metrics,
    /// Live subscriptions.
    pub taps: Taps,
    /// Our certificate.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// Ends when the process does.
    pub stop: Stop,
    /// How this thread ends.
    pub drain: Drain,
    /// To endpoints of others.
    outbound: Rc<Connector>,
    /// To the workload.
    inbound: Rc<Connector>,
    destinations: RefCell<HashMap<Target, Rc<Destination>>>,
    balancers: RefCell<HashMap<(String, String), Weak<Balancer>>>,
    locals: RefCell<HashMap<SocketAddr, Rc<Balancer>>>,
    ports: RefCell<HashMap<u16, Rc<Port>>>,
    /// Targets whose server was seen to speak first.
    server_first: RefCell<HashSet<SocketAddr>>,
    /// Copies of requests in flight.
    pub(crate) mirrors: Cell<usize>,
    /// Heads that were used, for their memory.
    heads: RefCell<Vec<ResponseHead>>,
}

/// Used heads kept: as many as requests are commonly in flight, half a kilobyte each.
const HEADS_KEPT: usize = 256;

impl Shard {
    /// Knows nothing yet.
    pub fn new(
        config: Arc<Config>,
        control: Control,
        metrics: Metrics,
        taps: Taps,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        stop: Stop,
    ) -> Rc<Self> {
        let connector = |timeout| Rc::new(Connector { mark: config.mark, timeout, credentials: credentials.clone() });
        let (outbound, inbound) =
            (connector(config.outbound_connect_timeout), connector(config.inbound_connect_timeout));
        Rc::new(Shard {
            config,
            control,
            metrics,
            taps,
            credentials,
            stop,
            drain: Drain::default(),
            outbound,
            inbound,
            destinations: RefCell::default(),
            balancers: RefCell::default(),
            locals: RefCell::default(),
            ports: RefCell::default(),
            server_first: RefCell::default(),
            mirrors: Cell::new(0),
            heads: RefCell::default(),
        })
    }

    /// Forgets what nobody uses, until the process stops.
    pub async fn sweep(self: Rc<Self>) {
        let mut tick = tokio::time::interval(SWEEP);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.stop.stopping() => return,
            }
            gossamer_engine::buffer::sweep();
            let mut heads = self.heads.borrow_mut();
            let kept = heads.len() / 2;
            heads.truncate(kept);
            heads.shrink_to(2 * kept);
            drop(heads);
            let now = Instant::now();
            self.destinations.borrow_mut().retain(|_, destination| {
                let used = Rc::strong_count(destination) > 1;
                if used {
                    destination.used.set(now);
                }
                used || now.duration_since(destination.used.get()) < defaults::DISCOVERY_IDLE
            });
            let mut balancers = self.balancers.borrow_mut();
            balancers.retain(|_, balancer| balancer.upgrade().inspect(|balancer| balancer.sweep(now)).is_some());
            self.locals.borrow().values().for_each(|balancer| balancer.sweep(now));
        }
    }

    /// Ends all connections to endpoints after what is in flight.
    pub fn close(&self) {
        self.balancers.borrow().values().filter_map(Weak::upgrade).for_each(|balancer| balancer.close());
        self.locals.borrow().values().for_each(|balancer| balancer.close());
    }

    /// The destination for a target: made, and followed, at its first use.
    pub fn destination(self: &Rc<Self>, target: &Target) -> Rc<Destination> {
        if let Some(known) = self.destinations.borrow().get(target) {
            known.used.set(Instant::now());
            if known.current().is_none() {
                // It may exist by now, and asking makes the control plane be asked soon.
                drop(self.control.outbound(target));
            }
            return known.clone();
        }
        let destination = Rc::new(Destination {
            target: target.clone(),
            policy: RefCell::default(),
            changed: Notify::new(),
            used: Cell::new(Instant::now()),
            clients: OnceCell::new(),
        });
        let mut all = self.destinations.borrow_mut();
        if all.len() >= defaults::DISCOVERY_CACHE {
            let oldest = all.iter().filter(|(_, d)| Rc::strong_count(d) == 1).min_by_key(|(_, d)| d.used.get());
            if let Some(oldest) = oldest.map(|(target, _)| target.clone()) {
                all.remove(&oldest);
            }
        }
        all.insert(target.clone(), destination.clone());
        tokio::task::spawn_local(follow(
            Rc::downgrade(self),
            Rc::downgrade(&destination),
            self.control.outbound(target),
        ));
        destination
    }

    /// The balancer of a backend: shared by all routes that name it with the same rules.
    pub fn balancer(self: &Rc<Self>, backend: &Backend, breaker: Option<Breaker>) -> Rc<Balancer> {
        let rules = routes::rules(backend, breaker);
        let name = match &backend.target {
            BackendTarget::Forward(endpoint) => format!("{endpoint:?}"),
            BackendTarget::Balance { authority, .. } => authority.clone(),
            BackendTarget::Invalid => format!("invalid {}", backend.meta),
        };
        let key = (name, format!("{rules:?}"));
        if let Some(balancer) = self.balancers.borrow().get(&key).and_then(Weak::upgrade) {
            return balancer;
        }
        let balancer = match &backend.target {
            BackendTarget::Forward(endpoint) => {
                Rc::new(Balancer::fixed(backend.meta.clone(), (**endpoint).clone(), rules, self.outbound.clone()))
            }
            BackendTarget::Invalid => {
                let name = backend.meta.to_string();
                Rc::new(Balancer::empty(backend.meta.clone(), name, rules, self.outbound.clone()))
            }
            BackendTarget::Balance { authority, .. } => {
                let labels = BackendLabels { parent: None, backend: &backend.meta, tcp: breaker.is_none() };
                let balancer = Balancer::new(backend.meta.clone(), authority.clone(), rules, self.outbound.clone());
                let balancer = Rc::new(balancer.shown_as(self.metrics.balancer_scope(labels)));
                tokio::task::spawn_local(balancer.clone().follow(self.control.endpoints(authority)));
                balancer
            }
        };
        self.balancers.borrow_mut().insert(key, Rc::downgrade(&balancer));
        balancer
    }

    /// The workload's own port as a backend.
    pub fn local(&self, addr: SocketAddr) -> Rc<Balancer> {
        let mut locals = self.locals.borrow_mut();
        let make = || {
            let meta = Meta::named("local");
            Rc::new(Balancer::fixed(meta, Endpoint::new(addr), Rules::default(), self.inbound.clone()))
        };
        locals.entry(addr).or_insert_with(make).clone()
    }

    /// The policy of one of the workload's ports: asked for, and followed, at its first use.
    pub fn port(self: &Rc<Self>, port: u16) -> Rc<Port> {
        if let Some(known) = self.ports.borrow().get(&port) {
            return known.clone();
        }
        let known = Rc::new(Port { port, policy: RefCell::default(), changed: Notify::new() });
        self.ports.borrow_mut().insert(port, known.clone());
        let (shard, weak, mut receiver) = (Rc::downgrade(self), Rc::downgrade(&known), self.control.server(port));
        tokio::task::spawn_local(async move {
            loop {
                let now = receiver.borrow_and_update().clone();
                let (Some(shard), Some(port)) = (shard.upgrade(), weak.upgrade()) else { return };
                port.update(&shard.config, now);
                drop((shard, port));
                if receiver.changed().await.is_err() {
                    return;
                }
            }
        });
        known
    }

    /// An empty head, mostly with the memory of a used one.
    pub fn head(&self) -> ResponseHead {
        self.heads.borrow_mut().pop().unwrap_or_default()
    }

    /// Keeps the memory of a head that is not needed any more.
    pub fn give_head(&self, mut head: ResponseHead) {
        let mut heads = self.heads.borrow_mut();
        // One that grew large is let go: its memory would stay for ever.
        if heads.len() < HEADS_KEPT && head.headers.byte_len() < 4096 {
            head.clear();
            heads.push(head);
        }
    }

    /// True when this target's server was seen to speak first.
    pub fn speaks_first(&self, target: SocketAddr) -> bool {
        self.server_first.borrow().contains(&target)
    }

    /// Remembers that this target's server speaks first.
    pub fn learn_speaks_first(&self, target: SocketAddr) {
        let mut known = self.server_first.borrow_mut();
        if known.len() < defaults::DISCOVERY_CACHE {
            known.insert(target);
        }
    }
}
