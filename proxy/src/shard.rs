//! What one data thread knows: destinations in use, their balancers, the workload's ports. No lock: nothing here is
//! shared between threads.

use crate::balance::connect::Connector;
use crate::balance::{Balancer, Rules};
use crate::config::{Config, DefaultPolicy};
use crate::control::{Control, Discovered, Target};
use crate::error::Error;
use crate::metrics::{BackendLabels, Metrics};
use crate::policy::authorize::{Peer, authorize};
use crate::policy::limit::RateLimiter;
use crate::request::routes::{self, Routes, TcpRoutes};
use crate::tap::Taps;
use gossamer_api::authorization::{self as authz, Authentication, Authorization, InboundHttp, InboundProtocol, Server};
use gossamer_api::endpoint::{Endpoint, Labels};
use gossamer_api::policy::{
    Backend, BackendTarget, Breaker, Distribution, HttpRoute, HttpRoutes, HttpRule, Meta, OutboundPolicy,
    OutboundProtocol, Queue, RouteBackend, TcpRoute, TcpRule,
};
use gossamer_api::process::stop::Stop;
use gossamer_api::{defaults, process::tls::Credentials};
use gossamer_engine::ResponseHead;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

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
            outbound,
            inbound,
            destinations: RefCell::default(),
            balancers: RefCell::default(),
            locals: RefCell::default(),
            ports: RefCell::default(),
            server_first: RefCell::default(),
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
            return known.clone();
        }
        let destination = Rc::new(Destination {
            target: target.clone(),
            policy: RefCell::default(),
            changed: Notify::new(),
            used: Cell::new(Instant::now()),
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

/// A target of the workload's connections and how they are treated now.
pub struct Destination {
    /// What the workload asked for.
    pub target: Target,
    policy: RefCell<Option<Result<Rc<Policy>, Arc<str>>>>,
    changed: Notify,
    used: Cell<Instant>,
}

/// Compiled outbound policy.
pub struct Policy {
    /// What the target is.
    pub meta: Meta,
    /// What is known of its protocol.
    pub protocol: Declared,
    /// Routes for HTTP/1.
    pub http1: Rc<Routes>,
    /// Routes for HTTP/2 and gRPC.
    pub http2: Rc<Routes>,
    /// Routes for bytes.
    pub tcp: Rc<TcpRoutes>,
}

impl Policy {
    /// True when no connection and no request can pass.
    pub fn refuses_all(&self) -> bool {
        self.protocol == Declared::Opaque && self.tcp.choose(None, "").is_err()
    }
}

/// What is known of a target's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declared {
    /// Nothing.
    Unknown,
    /// HTTP of some version: no need to suspect a server that speaks first.
    Http,
    /// Bytes.
    Opaque,
    /// TLS of the application.
    Tls,
}

impl Destination {
    /// How it is treated now; waits for the control plane's first word.
    pub async fn policy(&self) -> Result<Rc<Policy>, Error> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                match &*self.policy.borrow() {
                    Some(Ok(policy)) => return Ok(policy.clone()),
                    Some(Err(reason)) => return Err(Error::Discovery(self.target.to_string(), reason.clone())),
                    None => {}
                }
                changed.await;
            }
        };
        // The control plane's client gives up first, with a reason; this is the bound in any case.
        timeout(defaults::DISCOVERY_TIMEOUT + Duration::from_millis(80), wait).await.unwrap_or_else(|_| {
            Err(Error::Discovery(self.target.to_string(), "no answer from the control plane".into()))
        })
    }

    /// How it is treated now, if that is known.
    pub fn current(&self) -> Option<Rc<Policy>> {
        match &*self.policy.borrow() {
            Some(Ok(policy)) => Some(policy.clone()),
            _ => None,
        }
    }

    fn update(&self, shard: &Rc<Shard>, discovered: Discovered<OutboundPolicy>) {
        let next = match (discovered, &self.target) {
            (Discovered::Pending, _) => return,
            (Discovered::Known(policy), _) => Ok(Rc::new(compile(shard, &policy))),
            // Outside of the mesh, or of the cluster while the control plane is away: as without a mesh.
            (Discovered::Absent, Target::Addr(addr)) => Ok(Rc::new(compile(shard, &forward(*addr)))),
            (Discovered::Failed(_), Target::Addr(addr)) if !shard.config.in_cluster(addr.ip()) => {
                Ok(Rc::new(compile(shard, &forward(*addr))))
            }
            (Discovered::Absent, Target::Authority(_)) => Err("the control plane does not know that name".into()),
            (Discovered::Failed(reason), _) => Err(reason),
        };
        let mut policy = self.policy.borrow_mut();
        // Last known good stays in force.
        if next.is_ok() || !matches!(&*policy, Some(Ok(_))) {
            *policy = Some(next);
        }
        drop(policy);
        self.changed.notify_waiters();
    }
}

async fn follow(
    shard: Weak<Shard>,
    destination: Weak<Destination>,
    mut receiver: watch::Receiver<Discovered<OutboundPolicy>>,
) {
    loop {
        let now = receiver.borrow_and_update().clone();
        let (Some(shard), Some(destination)) = (shard.upgrade(), destination.upgrade()) else { return };
        destination.update(&shard, now);
        drop((shard, destination));
        if receiver.changed().await.is_err() {
            return;
        }
    }
}

fn compile(shard: &Rc<Shard>, policy: &OutboundPolicy) -> Policy {
    let none = HttpRoutes::default();
    let (protocol, http1, http2, tcp): (_, &HttpRoutes, &HttpRoutes, &[TcpRoute]) = match &policy.protocol {
        OutboundProtocol::Detect { http1, http2, opaque, .. } => (Declared::Unknown, http1, http2, opaque),
        OutboundProtocol::Http1(http) | OutboundProtocol::Http2(http) | OutboundProtocol::Grpc(http) => {
            (Declared::Http, http, http, &[])
        }
        OutboundProtocol::Opaque(tcp) => (Declared::Opaque, &none, &none, tcp),
        OutboundProtocol::Tls(tcp) => (Declared::Tls, &none, &none, tcp),
    };
    let compiled = Rc::new(Routes::outbound(shard, http1));
    for problem in compiled.problems() {
        tracing::warn!(target = %policy.meta, problem, "a route's match never matches");
    }
    let same = std::ptr::eq(http1, http2) || http1 == http2;
    Policy {
        meta: policy.meta.clone(),
        protocol,
        http2: if same { compiled.clone() } else { Rc::new(Routes::outbound(shard, http2)) },
        http1: compiled,
        tcp: Rc::new(TcpRoutes::new(shard, tcp)),
    }
}

/// Straight to the address, whatever is spoken.
fn forward(addr: SocketAddr) -> OutboundPolicy {
    let meta = Meta::named("egress-fallback");
    let backend = Backend {
        meta: meta.clone(),
        queue: Queue { capacity: defaults::QUEUE_CAPACITY, failfast: defaults::QUEUE_FAILFAST },
        target: BackendTarget::Forward(Box::new(Endpoint::new(addr))),
    };
    let http = HttpRoutes {
        routes: vec![HttpRoute {
            meta: meta.clone(),
            hosts: Vec::new(),
            rules: vec![HttpRule {
                backends: Distribution::First(vec![RouteBackend { backend: backend.clone(), filters: Vec::new() }]),
                ..HttpRule::default()
            }],
            grpc: false,
        }],
        breaker: None,
    };
    let opaque = vec![TcpRoute {
        meta: meta.clone(),
        snis: Vec::new(),
        rules: vec![TcpRule { backends: Distribution::First(vec![backend]), refuse: None }],
    }];
    OutboundPolicy {
        meta,
        protocol: OutboundProtocol::Detect {
            timeout: defaults::DETECT_PATIENCE,
            http1: http.clone(),
            http2: http,
            opaque,
        },
    }
}

/// One of the workload's ports and who may use it.
pub struct Port {
    /// Its number.
    pub port: u16,
    policy: RefCell<Option<Result<Rc<PortPolicy>, Arc<str>>>>,
    changed: Notify,
}

/// Compiled inbound policy.
pub struct PortPolicy {
    /// The server object.
    pub meta: Meta,
    /// For metrics.
    pub labels: Labels,
    /// What is known of its protocol.
    pub protocol: Declared,
    /// Who may connect.
    pub authorizations: Vec<Authorization>,
    /// Who may request what.
    pub http: Rc<Routes>,
    /// Requests per second.
    pub limit: Option<RateLimiter>,
}

impl Port {
    /// Who may use it; waits for the control plane's first word. Without one nobody may: fails closed.
    pub async fn policy(&self) -> Result<Rc<PortPolicy>, Error> {
        let name = || format!("port {}", self.port);
        let wait = async {
            loop {
                let changed = self.changed.notified();
                match &*self.policy.borrow() {
                    Some(Ok(policy)) => return Ok(policy.clone()),
                    Some(Err(reason)) => return Err(Error::Discovery(name(), reason.clone())),
                    None => {}
                }
                changed.await;
            }
        };
        timeout(defaults::DISCOVERY_TIMEOUT + Duration::from_millis(80), wait)
            .await
            .unwrap_or_else(|_| Err(Error::Discovery(name(), "no answer from the control plane".into())))
    }

    /// Who may use it, if that is known.
    pub fn current(&self) -> Option<Rc<PortPolicy>> {
        match &*self.policy.borrow() {
            Some(Ok(policy)) => Some(policy.clone()),
            _ => None,
        }
    }

    /// Ends when the policy no longer lets this client connect.
    pub async fn revoked(&self, peer: &Peer) {
        loop {
            let changed = self.changed.notified();
            if let Some(policy) = self.current()
                && authorize(&policy.authorizations, peer).is_none()
            {
                return;
            }
            changed.await;
        }
    }

    fn update(&self, config: &Config, discovered: Discovered<Server>) {
        let next = match discovered {
            Discovered::Pending => return,
            Discovered::Known(server) => Ok(Rc::new(PortPolicy::compile(&server))),
            Discovered::Absent => {
                let opaque = config.opaque_ports.contains(self.port);
                Ok(Rc::new(PortPolicy::compile(&default_server(config, opaque))))
            }
            Discovered::Failed(reason) => Err(reason),
        };
        let mut policy = self.policy.borrow_mut();
        if next.is_ok() || !matches!(&*policy, Some(Ok(_))) {
            *policy = Some(next);
        }
        drop(policy);
        self.changed.notify_waiters();
    }
}

impl PortPolicy {
    fn compile(server: &Server) -> Self {
        let none = InboundHttp::default();
        let (protocol, http, grpc) = match &server.protocol {
            InboundProtocol::Detect { http, .. } => (Declared::Unknown, http, false),
            InboundProtocol::Http1(http) | InboundProtocol::Http2(http) => (Declared::Http, http, false),
            InboundProtocol::Grpc(http) => (Declared::Http, http, true),
            InboundProtocol::Opaque => (Declared::Opaque, &none, false),
            InboundProtocol::Tls => (Declared::Tls, &none, false),
        };
        PortPolicy {
            meta: server.meta.clone(),
            labels: server.labels.clone(),
            protocol,
            authorizations: server.authorizations.clone(),
            http: Rc::new(Routes::inbound(http, &server.meta, &server.authorizations, grpc)),
            limit: http.rate_limit.as_ref().map(|limit| RateLimiter::new(limit, Instant::now())),
        }
    }
}

/// What `default-inbound-policy` says, for a proxy without a control plane or a port that it does not know.
fn default_server(config: &Config, opaque: bool) -> Server {
    let everywhere =
        || [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|ip| ipnet::IpNet::new(ip, 0)).into_iter().flatten();
    let anybody = Authentication::Unauthenticated;
    let members = Authentication::Identities { names: Vec::new(), suffixes: vec![String::new()] };
    let cluster = || config.cluster_networks.clone();
    let (name, networks, authentication): (_, Vec<ipnet::IpNet>, _) = match config.default_policy {
        DefaultPolicy::AllUnauthenticated => ("all-unauthenticated", everywhere().collect(), anybody),
        DefaultPolicy::AllAuthenticated => ("all-authenticated", everywhere().collect(), members),
        DefaultPolicy::ClusterUnauthenticated => ("cluster-unauthenticated", cluster(), anybody),
        DefaultPolicy::ClusterAuthenticated => ("cluster-authenticated", cluster(), members),
        DefaultPolicy::Deny => ("deny", Vec::new(), anybody),
        DefaultPolicy::Audit => ("audit", everywhere().collect(), anybody),
    };
    let meta = Meta::named(name);
    let authorization = Authorization {
        meta: meta.clone(),
        networks: networks.into_iter().map(|net| authz::Network { net, except: Vec::new() }).collect(),
        authentication,
        labels: Labels::new(),
    };
    Server {
        meta,
        protocol: match opaque {
            true => InboundProtocol::Opaque,
            false => InboundProtocol::Detect { timeout: defaults::DETECT_PATIENCE, http: InboundHttp::default() },
        },
        ips: Vec::new(),
        authorizations: if config.default_policy == DefaultPolicy::Deny { Vec::new() } else { vec![authorization] },
        labels: Labels::new(),
    }
}
