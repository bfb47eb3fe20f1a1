//! Everything known of the cluster, indexed by what proxies ask for. Pure: no I/O, no clock, no await.
//!
//! [`Index::apply`] and [`Index::delete`] say which [`Subject`]s may have changed; the questions
//! ([`Index::outbound`], [`Index::endpoints`], [`Index::server`]) answer from the present state.
//!
//! **Invariant:** the index depends only on the objects that are in it, not on the order in which they came.

mod annotations;
mod endpoints;
mod few;
mod inbound;
mod names;
mod outbound;
mod routes;
mod services;
mod status;
#[cfg(test)]
mod tests;
mod texts;
mod workloads;

pub use endpoints::EndpointSet;
pub use inbound::DefaultPolicy;
pub use names::Asked;
pub use status::Condition;

use endpoints::Slice;
use few::Few;
use gossamer_api::defaults;
use gossamer_api::kubernetes::{AuthorizationPolicy, Key, Kind, Map, Metadata, Name, Object};
use gossamer_api::settings::Ports;
use gossamer_api::workload::Identity;
use ipnet::IpNet;
use routes::Route;
use services::Service;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use texts::{Kept, Texts};
use workloads::{Template, Workload};

/// What is the same for the whole cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    /// The control plane's namespace, part of every identity.
    pub control_namespace: String,
    /// The last part of every identity.
    pub trust_domain: String,
    /// The DNS suffix of services.
    pub domain: String,
    /// Opaque where nothing else is said.
    pub opaque_ports: Ports,
    /// Who may reach a port where nothing else is said.
    pub inbound_policy: DefaultPolicy,
    /// Where clients need an identity, whatever the policy for everything says.
    pub require_identity: Ports,
    /// What `cluster-*` policies mean.
    pub networks: Vec<IpNet>,
    /// Where health checks come from; they always get in.
    pub probe_networks: Vec<IpNet>,
    /// Tell proxies that HTTP/1 may be carried over HTTP/2 between them.
    pub http2_hint: bool,
}

impl Default for Cluster {
    fn default() -> Self {
        let nets = |text: &str| text.split(',').filter_map(|net| net.parse().ok()).collect();
        let ports: Vec<_> = defaults::OPAQUE_PORTS.iter().map(u16::to_string).collect();
        Cluster {
            control_namespace: defaults::CONTROL_NAMESPACE.into(),
            trust_domain: defaults::TRUST_DOMAIN.into(),
            domain: defaults::CLUSTER_DOMAIN.into(),
            opaque_ports: ports.join(",").parse().unwrap_or_default(),
            inbound_policy: defaults::INBOUND_POLICY.parse().unwrap_or(DefaultPolicy::Deny),
            require_identity: Ports::default(),
            networks: nets(defaults::CLUSTER_NETWORKS),
            probe_networks: nets("0.0.0.0/0,::/0"),
            http2_hint: true,
        }
    }
}

impl Cluster {
    /// The identity of a service account, `None` when its name makes none.
    pub fn identity(&self, account: &str, namespace: &str) -> Option<Identity> {
        Identity::service_account(account, namespace, &self.control_namespace, &self.trust_domain).ok()
    }
}

/// What an answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// Whatever has this address.
    Address(IpAddr),
    /// The policy of this service.
    Service(Name),
    /// The endpoints of this service.
    Endpoints(Name),
    /// The inbound policy of this workload.
    Workload(Name),
}

/// Where a question comes from; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// Namespace of the asking workload.
    pub namespace: String,
    /// Its node.
    pub node: String,
    /// The zone of that node.
    pub zone: String,
}

/// Everything known of the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    cluster: Cluster,
    namespaces: BTreeMap<String, NamespaceConfig>,
    zones: BTreeMap<String, String>,
    services: BTreeMap<Name, Service>,
    service_ips: HashMap<IpAddr, Few<Name>>,
    workloads: BTreeMap<Name, Workload>,
    workload_ips: HashMap<IpAddr, Few<Name>>,
    /// Meshed workloads per identity.
    identities: BTreeMap<Identity, usize>,
    /// Pods that a service's selector selects, and the reverse.
    selected: Pairs,
    slices: BTreeMap<Name, Slice>,
    /// Slices of a service.
    slices_of: BTreeMap<Name, Few<Name>>,
    /// Slices that name a pod.
    slices_with: BTreeMap<Name, Few<Name>>,
    routes: BTreeMap<Key, Route>,
    /// Routes whose parent is a service.
    routes_of: BTreeMap<Name, Few<Key>>,
    /// Routes that send something to a service.
    routes_to: BTreeMap<Name, Few<Key>>,
    policies: BTreeMap<Name, AuthorizationPolicy>,
    problems: BTreeMap<Key, Vec<String>>,
    texts: Texts,
    templates: Kept<Template>,
}

/// A relation between two names, readable from both sides.
#[derive(Clone, Debug, Default, PartialEq)]
struct Pairs {
    right: BTreeMap<Name, Few<Name>>,
    left: BTreeMap<Name, Few<Name>>,
}

impl Pairs {
    fn insert(&mut self, left: &Name, right: &Name) {
        self.right.entry(left.clone()).or_default().insert(right.clone());
        self.left.entry(right.clone()).or_default().insert(left.clone());
    }

    fn of(&self, left: &Name) -> impl Iterator<Item = &Name> + Clone {
        self.right.get(left).into_iter().flatten()
    }

    fn with(&self, right: &Name) -> impl Iterator<Item = &Name> + Clone {
        self.left.get(right).into_iter().flatten()
    }

    fn remove_left(&mut self, left: &Name) {
        for right in self.right.remove(left).into_iter().flatten() {
            drop_from(&mut self.left, &right, left);
        }
    }

    fn remove_right(&mut self, right: &Name) {
        for left in self.left.remove(right).into_iter().flatten() {
            drop_from(&mut self.right, &left, right);
        }
    }
}

fn drop_from<K: Ord, V: Ord>(map: &mut BTreeMap<K, Few<V>>, key: &K, value: &V) {
    if let Some(set) = map.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

fn drop_ip(map: &mut HashMap<IpAddr, Few<Name>>, ip: IpAddr, name: &Name) {
    if let Some(set) = map.get_mut(&ip) {
        set.remove(name);
        if set.is_empty() {
            map.remove(&ip);
        }
    }
}

/// An object, as far as it matters.
#[derive(PartialEq)]
#[allow(clippy::large_enum_variant, reason = "lives for a moment")]
enum Entry {
    Namespace(NamespaceConfig),
    /// A zone, if it says one.
    Node(Option<String>),
    Service(Service),
    Workload(Workload),
    Slice(Option<Slice>),
    Route(Route),
    Policy(AuthorizationPolicy),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct NamespaceConfig {
    opaque_ports: Option<Ports>,
    require_identity: Option<Ports>,
    inbound_policy: Option<DefaultPolicy>,
}

impl Index {
    /// An empty cluster.
    pub fn new(cluster: Cluster) -> Self {
        Index { cluster, ..Index::default() }
    }

    /// What is the same for the whole cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Takes a new or changed object; gives what may have changed by it.
    pub fn apply(&mut self, object: Object) -> BTreeSet<Subject> {
        let (kind, metadata) = (object.kind(), object.metadata());
        let key = Key { kind, name: self.texts.name(&metadata.namespace, &metadata.name) };
        let mut changed = BTreeSet::new();
        let (entry, problems) = self.read(object);
        // Most changes in a cluster are of no concern: heartbeats, conditions, a list that is repeated.
        if self.has(&key, &entry) {
            self.report(key, problems);
            return changed;
        }
        self.touch(&key, &mut changed);
        let before = self.members(&key);
        self.remove(&key);
        self.insert(&key, entry);
        self.report(key.clone(), problems);
        self.touch(&key, &mut changed);
        self.touch_moved(&key, &before, &mut changed);
        changed
    }

    /// Forgets an object; gives what may have changed by it.
    pub fn delete(&mut self, key: &Key) -> BTreeSet<Subject> {
        let mut changed = BTreeSet::new();
        self.touch(key, &mut changed);
        let before = self.members(key);
        self.remove(key);
        self.touch_moved(key, &before, &mut changed);
        changed
    }

    /// What is wrong with an object although it was taken: parts that are ignored.
    pub fn problems(&self, key: &Key) -> &[String] {
        self.problems.get(key).map_or(&[], Vec::as_slice)
    }

    /// The UID of a policy.
    pub fn uid(&self, key: &Key) -> Option<&str> {
        let policy = (key.kind == Kind::AuthorizationPolicy).then(|| self.policies.get(&key.name)).flatten();
        policy.map(|policy| policy.metadata.uid.as_str())
    }

    /// How many services and workloads there are.
    pub fn len(&self) -> (usize, usize) {
        (self.services.len(), self.workloads.len())
    }

    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    /// The names of all objects of a kind.
    pub fn names(&self, kind: Kind) -> Vec<Name> {
        let cluster_wide = |name: &String| Name::new("", name);
        match kind {
            Kind::Namespace => self.namespaces.keys().map(cluster_wide).collect(),
            Kind::Node => self.zones.keys().map(cluster_wide).collect(),
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::Pod => self.workloads.keys().cloned().collect(),
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                self.routes.keys().filter(|key| key.kind == kind).map(|key| key.name.clone()).collect()
            }
            Kind::AuthorizationPolicy => self.policies.keys().cloned().collect(),
        }
    }

    /// Where a workload asks from.
    pub fn source(&self, namespace: &str, pod: &str, node: &str) -> Source {
        let workload = self.workloads.get(&Name::new(namespace, pod));
        let node = if node.is_empty() { workload.map_or("", |w| &*w.node) } else { node };
        let zone = workload.and_then(|w| w.zone.as_deref()).or_else(|| self.zones.get(node).map(String::as_str));
        Source { namespace: namespace.to_string(), node: node.to_string(), zone: zone.unwrap_or_default().to_string() }
    }

    /// Adds what depends on an object as it is now.
    fn touch(&self, key: &Key, changed: &mut BTreeSet<Subject>) {
        let name = &key.name;
        match key.kind {
            Kind::Namespace => {
                for service in in_namespace(&self.services, &name.name) {
                    self.touch_service(service, changed);
                }
                for workload in in_namespace(&self.workloads, &name.name) {
                    self.touch_workload(workload, changed);
                }
            }
            Kind::Node => {
                for (workload, _) in self.workloads.iter().filter(|(_, w)| *w.node == *name.name) {
                    self.touch_endpoint(workload, changed);
                }
            }
            Kind::Service => {
                self.touch_service(name, changed);
                // Whether a pod's port is opaque depends on all services that send to it.
                for workload in self.workloads_of(name) {
                    self.touch_workload(workload, changed);
                }
                for route in self.routes_to.get(name).into_iter().flatten() {
                    self.touch(route, changed);
                }
            }
            Kind::Pod => {
                self.touch_workload(name, changed);
                // A policy that denies an identity lists all others.
                if self.policies.values().any(inbound::denies_identities) {
                    for (name, policy) in self.policies.iter().filter(|(_, p)| inbound::denies_identities(p)) {
                        self.touch_policy(name, policy, changed);
                    }
                }
            }
            Kind::EndpointSlice => {
                // Its pods are touched where they come or go: in a large slice that is one of a hundred.
                if let Some(slice) = self.slices.get(name) {
                    changed.insert(Subject::Endpoints(slice.service.clone()));
                    // `POD.SERVICE` names one of them.
                    changed.insert(Subject::Service(slice.service.clone()));
                }
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                for (parent, _) in self.routes.get(key).iter().flat_map(|route| &route.parents) {
                    self.touch_policy_of(parent, changed);
                }
                for policy in in_namespace(&self.policies, &name.namespace) {
                    if let Some(spec) = self.policies.get(policy).filter(|policy| inbound::names(policy, key)) {
                        self.touch_policy(policy, spec, changed);
                    }
                }
            }
            Kind::AuthorizationPolicy => {
                if let Some(policy) = self.policies.get(name) {
                    self.touch_policy(name, policy, changed);
                }
            }
        }
    }

    /// The service of a slice with each of its pods; nothing for other objects.
    fn members(&self, key: &Key) -> BTreeSet<(Name, Name)> {
        let slice = (key.kind == Kind::EndpointSlice).then(|| self.slices.get(&key.name)).flatten();
        let pods = |slice: &Slice| slice.pods().map(|pod| (slice.service.clone(), pod.clone())).collect();
        slice.map(pods).unwrap_or_default()
    }

    /// Adds what depends on pods that came to a slice or left it.
    fn touch_moved(&self, key: &Key, before: &BTreeSet<(Name, Name)>, changed: &mut BTreeSet<Subject>) {
        for (_, pod) in before.symmetric_difference(&self.members(key)) {
            self.touch_workload(pod, changed);
        }
    }

    fn touch_service(&self, name: &Name, changed: &mut BTreeSet<Subject>) {
        self.touch_policy_of(name, changed);
        changed.insert(Subject::Endpoints(name.clone()));
    }

    fn touch_policy_of(&self, name: &Name, changed: &mut BTreeSet<Subject>) {
        changed.insert(Subject::Service(name.clone()));
        for ip in self.services.get(name).iter().flat_map(|service| &service.ips) {
            changed.insert(Subject::Address(*ip));
        }
    }

    fn touch_workload(&self, name: &Name, changed: &mut BTreeSet<Subject>) {
        changed.insert(Subject::Workload(name.clone()));
        self.touch_endpoint(name, changed);
    }

    fn touch_endpoint(&self, name: &Name, changed: &mut BTreeSet<Subject>) {
        self.touch_addresses(name, changed);
        for service in self.services_with(name) {
            changed.insert(Subject::Endpoints(service.clone()));
            // `POD.SERVICE` names one pod.
            changed.insert(Subject::Service(service.clone()));
        }
    }

    fn touch_addresses(&self, name: &Name, changed: &mut BTreeSet<Subject>) {
        for ip in self.workloads.get(name).iter().flat_map(|workload| &workload.ips) {
            changed.insert(Subject::Address(*ip));
        }
    }

    fn touch_policy(&self, name: &Name, policy: &AuthorizationPolicy, changed: &mut BTreeSet<Subject>) {
        for workload in in_namespace(&self.workloads, &name.namespace) {
            if self.workloads.get(workload).is_some_and(|w| self.selects(policy, workload, w)) {
                changed.insert(Subject::Workload(workload.clone()));
            }
        }
    }

    /// What of an object matters, and what in it has no effect.
    fn read(&mut self, object: Object) -> (Entry, Vec<String>) {
        let (mut problems, keep) = (Vec::new(), &mut self.texts);
        let entry = match object {
            Object::Namespace(namespace) => {
                Entry::Namespace(NamespaceConfig::read(&namespace.metadata.annotations, &mut problems))
            }
            Object::Node(node) => Entry::Node(node.metadata.labels.get(ZONE_LABEL).cloned()),
            Object::Service(service) => Entry::Service(Service::read(&service, keep, &mut problems)),
            Object::Pod(pod) => {
                let kept = (keep, &mut self.templates);
                Entry::Workload(Workload::read(&pod, &self.cluster, kept, &mut problems))
            }
            Object::EndpointSlice(slice) => Entry::Slice(Slice::read(&slice, keep, &mut problems)),
            Object::HttpRoute(_) | Object::GrpcRoute(_) | Object::TcpRoute(_) | Object::TlsRoute(_) => {
                Entry::Route(Route::read(&object, &mut problems))
            }
            Object::AuthorizationPolicy(mut policy) => {
                inbound::check(&policy, &mut problems);
                // What it says is in `spec`; the rest changes without meaning.
                let uid = std::mem::take(&mut policy.metadata.uid);
                let namespace = std::mem::take(&mut policy.metadata.namespace);
                policy.metadata = Metadata { uid, namespace, ..Metadata::default() };
                Entry::Policy(policy)
            }
        };
        (entry, problems)
    }

    /// True when it is known exactly so.
    fn has(&self, key: &Key, entry: &Entry) -> bool {
        let name = &key.name;
        match entry {
            Entry::Namespace(config) => self.namespaces.get(&*name.name) == Some(config),
            Entry::Node(zone) => self.zones.get(&*name.name) == zone.as_ref(),
            Entry::Service(service) => self.services.get(name) == Some(service),
            Entry::Workload(workload) => self.workloads.get(name) == Some(workload),
            Entry::Slice(slice) => self.slices.get(name) == slice.as_ref(),
            Entry::Route(route) => self.routes.get(key) == Some(route),
            Entry::Policy(policy) => self.policies.get(name) == Some(policy),
        }
    }

    fn report(&mut self, key: Key, problems: Vec<String>) {
        match problems.is_empty() {
            true => drop(self.problems.remove(&key)),
            false => drop(self.problems.insert(key, problems)),
        }
    }

    fn insert(&mut self, key: &Key, entry: Entry) {
        let name = key.name.clone();
        match entry {
            Entry::Namespace(config) => drop(self.namespaces.insert(name.name.to_string(), config)),
            Entry::Node(Some(zone)) => drop(self.zones.insert(name.name.to_string(), zone)),
            Entry::Node(None) | Entry::Slice(None) => {}
            Entry::Service(service) => {
                for ip in &service.ips {
                    self.service_ips.entry(*ip).or_default().insert(name.clone());
                }
                for workload in in_namespace(&self.workloads, &name.namespace) {
                    if self.workloads.get(workload).is_some_and(|w| service.selects(&w.labels)) {
                        self.selected.insert(&name, workload);
                    }
                }
                self.services.insert(name, service);
            }
            Entry::Workload(workload) => {
                for ip in &workload.ips {
                    self.workload_ips.entry(*ip).or_default().insert(name.clone());
                }
                for service in in_namespace(&self.services, &name.namespace) {
                    if self.services.get(service).is_some_and(|s| s.selects(&workload.labels)) {
                        self.selected.insert(service, &name);
                    }
                }
                if let Some(identity) = &workload.identity {
                    *self.identities.entry(identity.clone()).or_default() += 1;
                }
                self.workloads.insert(name, workload);
            }
            Entry::Slice(Some(slice)) => {
                self.slices_of.entry(slice.service.clone()).or_default().insert(name.clone());
                for pod in slice.pods() {
                    self.slices_with.entry(pod.clone()).or_default().insert(name.clone());
                }
                self.slices.insert(name, slice);
            }
            Entry::Route(route) => {
                for (parent, _) in &route.parents {
                    self.routes_of.entry(parent.clone()).or_default().insert(key.clone());
                }
                for service in route.backends() {
                    self.routes_to.entry(service.clone()).or_default().insert(key.clone());
                }
                self.routes.insert(key.clone(), route);
            }
            Entry::Policy(policy) => drop(self.policies.insert(name, policy)),
        }
    }

    fn remove(&mut self, key: &Key) {
        let name = &key.name;
        self.problems.remove(key);
        match key.kind {
            Kind::Namespace => drop(self.namespaces.remove(&*name.name)),
            Kind::Node => drop(self.zones.remove(&*name.name)),
            Kind::Service => {
                for ip in self.services.remove(name).iter().flat_map(|service| &service.ips) {
                    drop_ip(&mut self.service_ips, *ip, name);
                }
                self.selected.remove_left(name);
            }
            Kind::Pod => {
                let Some(workload) = self.workloads.remove(name) else { return };
                for ip in &workload.ips {
                    drop_ip(&mut self.workload_ips, *ip, name);
                }
                self.selected.remove_right(name);
                if let Some(identity) = &workload.identity {
                    match self.identities.get_mut(identity) {
                        Some(count) if *count > 1 => *count -= 1,
                        _ => drop(self.identities.remove(identity)),
                    }
                }
            }
            Kind::EndpointSlice => {
                if let Some(slice) = self.slices.remove(name) {
                    drop_from(&mut self.slices_of, &slice.service, name);
                    for pod in slice.pods() {
                        drop_from(&mut self.slices_with, pod, name);
                    }
                }
            }
            Kind::HttpRoute | Kind::GrpcRoute | Kind::TcpRoute | Kind::TlsRoute => {
                let Some(route) = self.routes.remove(key) else { return };
                for (parent, _) in &route.parents {
                    drop_from(&mut self.routes_of, parent, key);
                }
                for service in route.backends() {
                    drop_from(&mut self.routes_to, service, key);
                }
            }
            Kind::AuthorizationPolicy => drop(self.policies.remove(name)),
        }
    }

    /// Pods of a service: those of its slices if it has any, else those that its selector selects.
    fn workloads_of<'a>(&'a self, service: &'a Name) -> impl Iterator<Item = &'a Name> {
        self.selected.of(service).chain(self.slices_of(service).flat_map(Slice::pods))
    }

    fn slices_of<'a>(&'a self, service: &Name) -> impl Iterator<Item = &'a Slice> + use<'a> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|slice| self.slices.get(slice))
    }

    /// Services that a pod belongs to.
    fn services_with<'a>(&'a self, workload: &'a Name) -> impl Iterator<Item = &'a Name> {
        let slices = self.slices_with.get(workload).into_iter().flatten();
        let sliced = slices.filter_map(|slice| Some(&self.slices.get(slice)?.service));
        self.selected.with(workload).chain(sliced)
    }

    fn namespace(&self, name: &str) -> Option<&NamespaceConfig> {
        self.namespaces.get(name)
    }
}

impl NamespaceConfig {
    fn read(annotations: &Map, problems: &mut Vec<String>) -> Self {
        NamespaceConfig {
            opaque_ports: annotations::config(annotations, "opaque-ports", problems),
            require_identity: annotations::require_identity(annotations, problems),
            inbound_policy: annotations::config(annotations, "default-inbound-policy", problems),
        }
    }
}

/// The names of a namespace's objects, in order.
fn in_namespace<'a, T>(map: &'a BTreeMap<Name, T>, namespace: &str) -> impl Iterator<Item = &'a Name> + use<'a, T> {
    let first = Name::new(namespace, "");
    let namespace = first.namespace.clone();
    map.range(first..).map(|(name, _)| name).take_while(move |name| name.namespace == namespace)
}

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
