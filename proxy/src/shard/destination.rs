//! Where the workload's connections go, and how: outbound policy, compiled when it changes.
//!
//! **Invariant:** a target inside the cluster's networks is never passed on while nobody knows what it is.

use super::Shard;
use crate::control::{Discovered, Target};
use crate::error::Error;
use crate::record::ConnectionMetrics;
use crate::request::routes::{Routes, TcpRoutes};
use gossamer_api::defaults;
use gossamer_api::endpoint::Endpoint;
use gossamer_api::policy::{
    Backend, BackendTarget, Distribution, Extensions, Filter, HttpRoute, HttpRoutes, HttpRule, Meta, OutboundPolicy,
    OutboundProtocol, Queue, RouteBackend, TcpRoute, TcpRule,
};
use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

/// A target of the workload's connections and how they are treated now.
pub struct Destination {
    /// What the workload asked for.
    pub target: Target,
    pub(super) policy: RefCell<Option<Result<Rc<Policy>, Arc<str>>>>,
    pub(super) changed: Notify,
    pub(super) used: Cell<Instant>,
    /// Metrics of the workload's connections here, found at the first one that goes to this address.
    pub clients: OnceCell<Rc<ConnectionMetrics>>,
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

/// Takes over what discovery says, until the shard or the destination is gone.
pub(super) async fn follow(
    shard: Weak<Shard>,
    destination: Weak<Destination>,
    mut receiver: watch::Receiver<Discovered<OutboundPolicy>>,
) {
    // Asked for while the routes name extensions: hardly ever.
    let mut told = None;
    loop {
        let now = receiver.borrow_and_update().clone();
        let (Some(shard_now), Some(known)) = (shard.upgrade(), destination.upgrade()) else { return };
        let changed = match now {
            Discovered::Known(policy) if policy.filters().any(|filter| matches!(filter, Filter::Named(_))) => {
                let told = told.get_or_insert_with(|| shard_now.control.extensions(&known.target));
                drop((shard_now, known));
                tokio::select! {
                    changed = receiver.changed() => changed,
                    () = extend(&shard, &destination, &policy, told) => receiver.changed().await,
                }
            }
            now => {
                told = None;
                known.update(&shard_now, now);
                drop((shard_now, known));
                receiver.changed().await
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Takes a policy over as soon as its extensions are there; until then the one before stays in force. When they do not
/// come, it is taken over without them: requests that must not pass without fail, with the reason.
async fn extend(
    shard: &Weak<Shard>,
    destination: &Weak<Destination>,
    policy: &Arc<OutboundPolicy>,
    told: &mut watch::Receiver<Discovered<Extensions>>,
) {
    let mut patience = pin!(sleep(EXTENSION_PATIENCE));
    let mut waiting = true;
    loop {
        let known = told.borrow_and_update().clone();
        let mut extended = (**policy).clone();
        let complete = match &known {
            Discovered::Known(known) => extended.resolve(known),
            Discovered::Pending => false,
            // There is nothing to wait for.
            Discovered::Absent | Discovered::Failed(_) => {
                waiting = false;
                false
            }
        };
        if complete || !waiting {
            let (Some(shard), Some(destination)) = (shard.upgrade(), destination.upgrade()) else { return };
            destination.update(&shard, Discovered::Known(Arc::new(extended)));
        }
        if complete {
            return;
        }
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            () = &mut patience, if waiting => waiting = false,
        }
    }
}

/// The second stream usually answers within a millisecond. Shorter than what a first request waits for its policy.
const EXTENSION_PATIENCE: Duration = Duration::from_millis(500);

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
