//! The seam between what is known and who asks: sources put objects in, streams hold subscriptions.
//!
//! One answer is worked out and encoded per question, however many proxies ask it, and only when something that it
//! depends on has changed. A subscription holds the newest answer only: a slow stream skips what it missed.
//!
//! **Invariant:** a question is remembered exactly as long as somebody holds a subscription to it.

use crate::index::{Asked, Cluster, EndpointSet, Index, Source, Subject};
use crate::pool::Pool;
use bytes::Bytes;
use gossamer_api::authorization::Server;
use gossamer_api::endpoint::{Endpoint, EndpointUpdate};
use gossamer_api::kubernetes::{Key, Name, Object};
use gossamer_api::policy::{OutboundPolicy, Target};
use gossamer_api::wire;
use gossamer_api::wire::mesh::ExtensionSet;
use linkerd2_proxy_api::destination as proto;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Where an object comes from. Of the same object from several sources, the first in this order counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The Kubernetes API.
    Kubernetes,
    /// A file.
    File(PathBuf),
    /// Registered by this process.
    Process,
}

/// A change of the registry. Lives for a moment, so a box would only cost.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Change {
    /// A new or changed object.
    Apply(Object),
    /// It is gone.
    Delete(Key),
}

impl Change {
    /// What it is about.
    pub fn key(&self) -> Key {
        match self {
            Change::Apply(object) => object.key(),
            Change::Delete(key) => key.clone(),
        }
    }
}

/// A question that many may ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// How requests to a target are treated.
    Outbound(Target, Source),
    /// What of that Linkerd's API cannot carry.
    Extensions(Target, Source),
    /// The endpoints of a service's port, or one pod of them.
    Endpoints(Name, u16, Option<String>, Source),
    /// What older proxies want to know of a target.
    Profile(Target, Source),
    /// Who may use a port of a workload.
    Server(Name, u16),
}

/// An answer, ready to be sent.
#[derive(Clone, Debug, Default)]
pub enum Answer {
    /// What was asked for does not exist.
    #[default]
    Missing,
    /// The whole message.
    Message(Bytes),
    /// Endpoints, whole and as a difference.
    Endpoints(Arc<Snapshot>),
}

/// The endpoints at some moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the changes.
    pub version: u64,
    /// The endpoints.
    pub set: EndpointSet,
    /// What leads here from the version before.
    pub diff: Vec<Bytes>,
}

/// Everything known, and everybody who asks. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Registry(Arc<Mutex<State>>);

struct State {
    index: Index,
    /// Objects of sources that may overlap; those of Kubernetes are only in the index.
    layers: BTreeMap<Key, BTreeMap<Origin, Object>>,
    pool: Option<Pool>,
    watched: HashMap<Query, Watched>,
    subjects: HashMap<Subject, BTreeSet<u64>>,
    queries: HashMap<u64, Query>,
    next: u64,
    changes: u64,
    answers: u64,
    updates: u64,
}

struct Watched {
    id: u64,
    subject: Subject,
    value: Value,
    answer: watch::Sender<Answer>,
}

/// An answer in the mesh's words, to see whether it has changed.
#[derive(Clone, PartialEq)]
enum Value {
    Missing,
    Outbound(Box<OutboundPolicy>),
    Extensions(ExtensionSet),
    Server(Box<Server>),
    Profile(Box<Profile>),
    Endpoints(EndpointSet),
}

#[derive(Clone, PartialEq)]
struct Profile {
    name: String,
    opaque: bool,
    endpoint: Option<Endpoint>,
}

impl Registry {
    /// An empty registry. With a pool, services without an address get one.
    pub fn new(cluster: Cluster, pool: Option<Pool>) -> Self {
        Registry(Arc::new(Mutex::new(State {
            index: Index::new(cluster),
            layers: BTreeMap::new(),
            pool,
            watched: HashMap::new(),
            subjects: HashMap::new(),
            queries: HashMap::new(),
            next: 0,
            changes: 0,
            answers: 0,
            updates: 0,
        })))
    }

    /// Takes changes of one source; who asked for what they change is told once.
    pub fn change(&self, origin: &Origin, changes: impl IntoIterator<Item = Change>) {
        let mut state = self.lock();
        let mut changed = BTreeSet::new();
        for change in changes {
            state.changes += 1;
            match change {
                Change::Apply(object) => state.apply(origin, object, &mut changed),
                Change::Delete(key) => state.delete(origin, &key, &mut changed),
            }
        }
        state.publish(&changed);
    }

    /// Looks at the index.
    pub fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.lock().index)
    }

    /// The address of a service in the pool, new or as before. `None` without a pool, or when that is exhausted.
    pub fn service_address(&self, service: &Name) -> Option<IpAddr> {
        self.lock().pool.as_mut()?.take(service)
    }

    /// Now and from now on.
    pub fn subscribe(&self, query: Query) -> Subscription {
        let mut state = self.lock();
        let answer = match state.watched.get(&query) {
            Some(watched) => watched.answer.subscribe(),
            None => state.watch(query.clone()),
        };
        Subscription { answer: Some(answer), query, registry: self.clone() }
    }

    /// How many questions are remembered.
    pub fn watched(&self) -> usize {
        self.lock().watched.len()
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let state = self.lock();
        let (services, workloads) = state.index.len();
        let mut text = String::new();
        for (name, kind, help, value) in [
            ("services", "gauge", "Services that are known", services as u64),
            ("workloads", "gauge", "Workloads that are known", workloads as u64),
            ("queries", "gauge", "Questions that at least one proxy asks", state.watched.len() as u64),
            ("changes_total", "counter", "Changes of objects taken", state.changes),
            ("answers_total", "counter", "Answers worked out anew because of a change", state.answers),
            ("updates_total", "counter", "Answers that changed and were sent to all who ask", state.updates),
        ] {
            let name = format!("destination_{name}");
            text.push_str(&format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n{name} {value}\n"));
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug; the index stays usable, and every answer is worked out anew.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply(&mut self, origin: &Origin, mut object: Object, changed: &mut BTreeSet<Subject>) {
        let key = object.key();
        if let (Object::Service(service), Some(pool)) = (&mut object, &mut self.pool) {
            let plain = matches!(service.spec.kind.as_str(), "" | "ClusterIP" | "NodePort" | "LoadBalancer");
            if plain && service.spec.cluster_ip.is_empty() {
                match pool.take(&key.name) {
                    Some(ip) => service.spec.cluster_ip = ip.to_string(),
                    None => tracing::warn!(object = %key, "no address left for this service"),
                }
            }
        }
        if *origin != Origin::Kubernetes {
            let layers = self.layers.entry(key.clone()).or_default();
            layers.insert(origin.clone(), object.clone());
            let first = layers.keys().next();
            if first.is_some_and(|first| first != origin) {
                tracing::debug!(object = %key, ?origin, ?first, "another source has the same object; that one counts");
                return;
            }
        }
        let before = self.index.problems(&key).to_vec();
        changed.extend(self.index.apply(object));
        for problem in self.index.problems(&key).iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(object = %key, "{problem}");
        }
    }

    fn delete(&mut self, origin: &Origin, key: &Key, changed: &mut BTreeSet<Subject>) {
        if let Some(layers) = self.layers.get_mut(key) {
            let was_first = layers.keys().next() == Some(origin);
            layers.remove(origin);
            match layers.values().next() {
                Some(next) if was_first => {
                    let next = next.clone();
                    changed.extend(self.index.apply(next));
                    return;
                }
                Some(_) => return,
                None => drop(self.layers.remove(key)),
            }
        }
        changed.extend(self.index.delete(key));
    }

    fn publish(&mut self, changed: &BTreeSet<Subject>) {
        let affected: BTreeSet<u64> = changed.iter().filter_map(|s| self.subjects.get(s)).flatten().copied().collect();
        for id in affected {
            let Some((query, watched)) =
                self.queries.get(&id).and_then(|query| Some((query, self.watched.get_mut(query)?)))
            else {
                continue;
            };
            let value = query.ask(&self.index);
            self.answers += 1;
            if value == watched.value {
                continue;
            }
            // A proxy that is still there may finish under the policy that it had.
            if value == Value::Missing && matches!(query, Query::Server(..)) {
                continue;
            }
            let answer = encode(&value, &watched.answer.borrow());
            watched.value = value;
            watched.answer.send_replace(answer);
            self.updates += 1;
        }
    }

    fn watch(&mut self, query: Query) -> watch::Receiver<Answer> {
        let value = query.ask(&self.index);
        let (answer, receiver) = watch::channel(encode(&value, &Answer::Missing));
        let (id, subject) = (self.next, query.subject(&self.index));
        self.next += 1;
        self.subjects.entry(subject.clone()).or_default().insert(id);
        self.queries.insert(id, query.clone());
        self.watched.insert(query, Watched { id, subject, value, answer });
        receiver
    }

    fn release(&mut self, query: &Query) {
        if self.watched.get(query).is_none_or(|watched| watched.answer.receiver_count() > 0) {
            return;
        }
        let Some(watched) = self.watched.remove(query) else { return };
        self.queries.remove(&watched.id);
        if let Some(ids) = self.subjects.get_mut(&watched.subject) {
            ids.remove(&watched.id);
            if ids.is_empty() {
                self.subjects.remove(&watched.subject);
            }
        }
    }
}

impl Query {
    fn ask(&self, index: &Index) -> Value {
        match self {
            Query::Outbound(target, source) => {
                outbound(index, target, source).map_or(Value::Missing, |policy| Value::Outbound(Box::new(policy)))
            }
            Query::Extensions(target, source) => outbound(index, target, source)
                .map_or(Value::Missing, |policy| Value::Extensions(wire::extensions_to_proto(&policy))),
            Query::Endpoints(service, port, instance, source) => {
                Value::Endpoints(index.endpoints(service, *port, instance.as_deref(), source))
            }
            Query::Profile(target, source) => {
                let Some(asked) = index.resolve(target, &source.namespace) else { return Value::Missing };
                let (opaque, endpoint) = index.profile(&asked, source);
                let name = match &asked {
                    Asked::Service(service, _) => index.service_host(service),
                    _ => String::new(),
                };
                Value::Profile(Box::new(Profile { name, opaque, endpoint }))
            }
            Query::Server(workload, port) => {
                index.server(workload, *port).map_or(Value::Missing, |server| Value::Server(Box::new(server)))
            }
        }
    }

    /// The one thing whose change may change the answer.
    fn subject(&self, index: &Index) -> Subject {
        match self {
            Query::Endpoints(service, ..) => Subject::Endpoints(service.clone()),
            Query::Server(workload, _) => Subject::Workload(workload.clone()),
            Query::Outbound(target, source) | Query::Extensions(target, source) | Query::Profile(target, source) => {
                match (target, index.resolve(target, &source.namespace)) {
                    (Target::Addr(addr), _) => Subject::Address(addr.ip()),
                    (_, Some(Asked::Service(service, _) | Asked::Instance(service, ..))) => Subject::Service(service),
                    (_, Some(Asked::Workload(_, addr) | Asked::Address(addr))) => Subject::Address(addr.ip()),
                    // A short name that is nothing yet.
                    (Target::Authority(name), None) => {
                        let name = name.split([':', '.']).next().unwrap_or_default();
                        Subject::Service(Name::new(&source.namespace, name))
                    }
                }
            }
        }
    }
}

fn outbound(index: &Index, target: &Target, source: &Source) -> Option<OutboundPolicy> {
    index.outbound(&index.resolve(target, &source.namespace)?, source)
}

fn encode(value: &Value, before: &Answer) -> Answer {
    match value {
        Value::Missing => Answer::Missing,
        Value::Outbound(policy) => Answer::Message(bytes(&wire::outbound_policy_to_proto(policy))),
        Value::Extensions(set) => Answer::Message(bytes(set)),
        Value::Server(server) => Answer::Message(bytes(&wire::server_to_proto(server))),
        Value::Profile(profile) => Answer::Message(bytes(&profile_to_proto(profile))),
        Value::Endpoints(set) => {
            let (version, diff) = match before {
                Answer::Endpoints(before) => (before.version + 1, difference(&before.set, set)),
                _ => (1, Vec::new()),
            };
            Answer::Endpoints(Arc::new(Snapshot { version, set: set.clone(), diff }))
        }
    }
}

/// What leads from one set to another, as messages of bounded size.
pub(crate) fn difference(from: &EndpointSet, to: &EndpointSet) -> Vec<Bytes> {
    let mut updates = Vec::new();
    if to.endpoints.is_empty() {
        if from.exists != to.exists || !from.endpoints.is_empty() {
            updates.push(EndpointUpdate::Empty { exists: to.exists });
        }
        return updates.iter().map(|update| bytes(&wire::endpoint_update_to_proto(update))).collect();
    }
    // New ones first, so that a set that is replaced is never empty in between.
    let new: Vec<&Endpoint> = to
        .endpoints
        .iter()
        .filter(|(addr, endpoint)| from.endpoints.get(addr) != Some(*endpoint))
        .map(|(_, endpoint)| &**endpoint)
        .collect();
    for part in new.chunks(ENDPOINTS_PER_MESSAGE) {
        updates.push(EndpointUpdate::Add(part.iter().map(|e| (*e).clone()).collect(), to.labels.clone()));
    }
    let gone: Vec<_> = from.endpoints.keys().filter(|addr| !to.endpoints.contains_key(addr)).copied().collect();
    if !gone.is_empty() {
        updates.push(EndpointUpdate::Remove(gone));
    }
    updates.iter().map(|update| bytes(&wire::endpoint_update_to_proto(update))).collect()
}

/// All of a set, as messages of bounded size.
pub(crate) fn whole(set: &EndpointSet) -> Vec<Bytes> {
    difference(&EndpointSet { exists: !set.exists, ..EndpointSet::default() }, set)
}

fn profile_to_proto(from: &Profile) -> proto::DestinationProfile {
    use gossamer_api::defaults;
    let ttl = defaults::RETRY_BUDGET_WINDOW;
    proto::DestinationProfile {
        fully_qualified_name: from.name.clone(),
        opaque_protocol: from.opaque,
        endpoint: from.endpoint.as_ref().map(wire::endpoint_to_proto),
        retry_budget: Some(proto::RetryBudget {
            retry_ratio: defaults::RETRY_BUDGET_RATIO,
            min_retries_per_second: defaults::RETRY_BUDGET_MIN_PER_SECOND,
            ttl: prost_types::Duration::try_from(ttl).ok(),
        }),
        ..proto::DestinationProfile::default()
    }
}

fn bytes(message: &impl Message) -> Bytes {
    message.encode_to_vec().into()
}

/// Holds a question; forgets it with the last one.
pub struct Subscription {
    answer: Option<watch::Receiver<Answer>>,
    query: Query,
    registry: Registry,
}

impl Subscription {
    /// The newest answer, from now on seen.
    pub fn answer(&mut self) -> Answer {
        self.answer.as_mut().map(|answer| answer.borrow_and_update().clone()).unwrap_or_default()
    }

    /// Returns when there is a newer answer than the last one seen. Cancel safe.
    pub async fn changed(&mut self) {
        if let Some(answer) = &mut self.answer
            && answer.changed().await.is_ok()
        {
            return;
        }
        // The sender lives as long as there is a subscription.
        std::future::pending().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        drop(self.answer.take());
        self.registry.lock().release(&self.query);
    }
}

/// An endpoint takes some 400 bytes, and gRPC clients refuse messages above 4 MiB.
const ENDPOINTS_PER_MESSAGE: usize = 1000;
