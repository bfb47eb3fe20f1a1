//! What the control plane told us; survives its death.
//!
//! [`Control`] lives on the control thread's runtime and is read from the threads that move data: each question (a
//! target, the replicas of a name, an inbound port) is one stream to the control plane however many ask it, and its
//! newest answer sits in a `watch`. A broken stream changes nothing but that it is opened again.
//!
//! **Invariant:** what was known stays in force until the control plane itself says otherwise. With an identity
//! configured nothing is asked in the clear.

mod cache;
mod discovery;
mod extensions;
mod follow;
pub mod identity;
mod link;
mod servers;

pub use discovery::EndpointSet;
pub use gossamer_api::policy::Target;
pub use link::Reachability;

use crate::config::Service;
use cache::Cache;
use discovery::{Endpoints, Policies};
use extensions::Extended;
use follow::{Question, follow};
use gossamer_api::authorization::Server;
use gossamer_api::defaults;
use gossamer_api::policy::{Extensions, OutboundPolicy};
use gossamer_api::process::grpc::CredentialsWatch;
use gossamer_api::process::stop::Stop;
use gossamer_api::workload::Workload;
use link::Link;
use servers::Ports;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use tokio::runtime::Handle;
use tokio::sync::watch;

/// The answer to a question; cheap to clone.
#[derive(Debug)]
pub enum Discovered<T> {
    /// Nothing yet. Lasts [`defaults::DISCOVERY_TIMEOUT`] at most.
    Pending,
    /// The newest answer.
    Known(Arc<T>),
    /// The control plane has no such thing, or there is none to ask. Asked again now and then.
    Absent,
    /// Nothing is known and the control plane does not answer; the reason is for people. `Known` follows when it does.
    Failed(Arc<str>),
}

impl<T> Clone for Discovered<T> {
    fn clone(&self) -> Self {
        match self {
            Discovered::Pending => Discovered::Pending,
            Discovered::Known(answer) => Discovered::Known(answer.clone()),
            Discovered::Absent => Discovered::Absent,
            Discovered::Failed(reason) => Discovered::Failed(reason.clone()),
        }
    }
}

/// Whom to ask, and as whom.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Answers for replicas; `None`: all are absent.
    pub destination: Option<Service>,
    /// Answers for targets and inbound ports; `None`: all are absent.
    pub policy: Option<Service>,
    /// The workload beside us.
    pub workload: Workload,
}

/// What the control plane told us. Cheap to clone; usable from any thread.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    policies: Watches<Policies>,
    extensions: Watches<Extended>,
    endpoints: Watches<Endpoints>,
    servers: Watches<Ports>,
    runtime: Option<Handle>,
}

/// One kind of question: its answers, whom to ask, and the answer when there is nobody.
struct Watches<Q: Question> {
    answers: Cache<Q::Key, Q::Answer>,
    ask: Option<(Q, Arc<Link>)>,
    absent: watch::Sender<Discovered<Q::Answer>>,
}

impl Control {
    /// Asks the services of `config`. To be called on the runtime that shall carry the streams.
    ///
    /// The streams are not waited for when the process stops, because connections that drain still need their answers;
    /// they end when it is killed, or with the last clone.
    pub fn new(config: ControlConfig, credentials: CredentialsWatch, stop: Stop) -> Control {
        let link = |name, service: &Service| Arc::new(Link::new(name, service, credentials.clone()));
        let destination = config.destination.as_ref().map(|service| link("destination", service));
        let policy = match (&config.destination, &config.policy) {
            (Some(one), Some(two)) if one == two => destination.clone(),
            (_, Some(service)) => Some(link("policy", service)),
            (_, None) => None,
        };
        let (workload, context) = (source_workload(&config.workload), context_token(&config.workload));
        let inner = Arc::new(Inner {
            policies: Watches::new(policy.clone().map(|link| (Policies { workload: workload.clone() }, link))),
            // Whoever names an extension in a policy tells it as well.
            extensions: Watches::new(policy.clone().map(|link| (Extended { workload: workload.clone() }, link))),
            endpoints: Watches::new(destination.map(|link| (Endpoints { context }, link))),
            servers: Watches::new(policy.map(|link| (Ports { workload }, link))),
            runtime: Some(Handle::current()),
        });
        tokio::spawn(sweep(Arc::downgrade(&inner), stop));
        Control(inner)
    }

    /// There is no control plane: everything is [`Discovered::Absent`].
    pub fn offline() -> Control {
        Control(Arc::new(Inner {
            policies: Watches::new(None),
            extensions: Watches::new(None),
            endpoints: Watches::new(None),
            servers: Watches::new(None),
            runtime: None,
        }))
    }

    /// How traffic to a target is treated.
    pub fn outbound(&self, target: &Target) -> watch::Receiver<Discovered<OutboundPolicy>> {
        self.0.policies.watch(target, self.0.runtime.as_ref())
    }

    /// What the routes of a target name and Linkerd's API cannot carry.
    pub fn extensions(&self, target: &Target) -> watch::Receiver<Discovered<Extensions>> {
        self.0.extensions.watch(target, self.0.runtime.as_ref())
    }

    /// The replicas of `name:port`.
    pub fn endpoints(&self, authority: &str) -> watch::Receiver<Discovered<EndpointSet>> {
        self.0.endpoints.watch(authority, self.0.runtime.as_ref())
    }

    /// Who may use a port of the workload.
    pub fn server(&self, port: u16) -> watch::Receiver<Discovered<Server>> {
        self.0.servers.watch(&port, self.0.runtime.as_ref())
    }

    /// Why nothing can be known yet: the service that says who may come in has not answered since the start. What comes
    /// before that fails.
    pub fn unheard(&self) -> Option<String> {
        let policy = self.reachability()[1].take().filter(|policy| !policy.heard)?;
        let why = policy.down.map_or_else(|| "it has not answered".to_string(), |down| down.to_string());
        Some(format!("no word from the control plane yet: {why}"))
    }

    /// What has been away for some time: what is known stays in force, and whatever is asked for the first time fails.
    pub fn missed(&self) -> Option<String> {
        let missed = self.reachability().into_iter().flatten().find(|service| service.missed)?;
        Some(format!("{}; what is known stays in force, new destinations fail", missed.down?))
    }

    /// Whether the services answer, for `/ready`: the destination service's, then the policy service's
    /// (the same one twice where they share an address).
    pub fn reachability(&self) -> [Option<Reachability>; 2] {
        let link = |link: Option<&Arc<Link>>| link.map(|link| link.reachability());
        [
            link(self.0.endpoints.ask.as_ref().map(|(_, link)| link)),
            link(self.0.policies.ask.as_ref().map(|(_, link)| link)),
        ]
    }
}

impl<Q: Question> Watches<Q> {
    fn new(ask: Option<(Q, Arc<Link>)>) -> Self {
        Watches { answers: Cache::new(defaults::DISCOVERY_CACHE), ask, absent: watch::channel(Discovered::Absent).0 }
    }

    fn watch<K>(&self, key: &K, runtime: Option<&Handle>) -> watch::Receiver<Discovered<Q::Answer>>
    where
        K: ?Sized + Hash + Eq + ToOwned<Owned = Q::Key>,
        Q::Key: std::borrow::Borrow<K>,
    {
        let (Some((question, link)), Some(runtime)) = (&self.ask, runtime) else { return self.absent.subscribe() };
        self.answers.subscribe(key, |entry| {
            runtime.spawn(follow(question.clone(), key.to_owned(), link.clone(), entry)).abort_handle()
        })
    }
}

/// Forgets what nobody used for long, and everything when the process is killed.
async fn sweep(inner: Weak<Inner>, stop: Stop) {
    loop {
        let killed = tokio::select! {
            () = tokio::time::sleep(defaults::DISCOVERY_IDLE / SWEEPS_PER_IDLE) => false,
            () = stop.killed() => true,
        };
        let Some(inner) = inner.upgrade() else { return };
        if killed {
            inner.policies.answers.end();
            inner.extensions.answers.end();
            inner.endpoints.answers.end();
            inner.servers.answers.end();
            return;
        }
        inner.policies.answers.sweep(defaults::DISCOVERY_IDLE);
        inner.extensions.answers.sweep(defaults::DISCOVERY_IDLE);
        inner.endpoints.answers.sweep(defaults::DISCOVERY_IDLE);
        inner.servers.answers.sweep(defaults::DISCOVERY_IDLE);
    }
}

/// What the policy service knows a workload by. Source: Linkerd's injector (`LINKERD2_PROXY_POLICY_WORKLOAD`).
fn source_workload(workload: &Workload) -> Arc<str> {
    serde_json::json!({ "ns": workload.ns, "pod": workload.pod }).to_string().into()
}

/// What the destination service wants to know in addition: the node, for zones. Source: Linkerd's injector
/// (`LINKERD2_PROXY_DESTINATION_CONTEXT`).
fn context_token(workload: &Workload) -> Arc<str> {
    serde_json::json!({ "ns": workload.ns, "nodeName": workload.node_name, "pod": workload.pod }).to_string().into()
}

/// An unused answer is forgotten at most a sixtieth too late.
const SWEEPS_PER_IDLE: u32 = 60;

#[cfg(test)]
mod tests;
