//! The endpoints of a service's port, as a client at some place should see them.

use super::services::{Port, Service};
use super::texts::{Text, Texts};
use super::workloads::Workload;
use super::{Index, Source};
use gossamer_api::defaults;
use gossamer_api::endpoint::{Endpoint, Http2Params, Labels, ProtocolHint, ServerTls};
use gossamer_api::kubernetes::{self, EndpointSlice, Name};
use gossamer_api::policy::Meta;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// The ready endpoints of a service's port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// The service, and this port of it, are known.
    pub exists: bool,
    /// By address.
    pub endpoints: BTreeMap<SocketAddr, Arc<Endpoint>>,
    /// Labels of all of them.
    pub labels: Labels,
}

/// A part of a service's endpoints, as far as it matters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) service: Name,
    /// TCP ports by name.
    ports: Vec<(Text, u16)>,
    endpoints: Box<[SliceEndpoint]>,
}

#[derive(Clone, Debug, PartialEq)]
struct SliceEndpoint {
    ip: IpAddr,
    state: State,
    pod: Option<Name>,
    /// Its name in the headless service's DNS.
    hostname: Option<Text>,
    node: Text,
    zone: Option<Text>,
    hints: Box<[Text]>,
}

/// Whether an endpoint may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// It is ending, and still answers: for want of any other.
    Ending,
    NotReady,
}

/// An endpoint before its details are looked up.
struct Candidate<'a> {
    addr: SocketAddr,
    state: State,
    pod: Option<&'a Name>,
    hostname: Option<&'a str>,
    node: &'a str,
    zone: Option<&'a str>,
    hints: &'a [Text],
}

impl Slice {
    /// `None`: it belongs to no service.
    pub(super) fn read(from: &EndpointSlice, keep: &mut Texts, problems: &mut Vec<String>) -> Option<Self> {
        let Some(service) = from.metadata.labels.get(SERVICE_LABEL) else {
            problems.push(format!("has no label {SERVICE_LABEL}: belongs to no service"));
            return None;
        };
        let namespace = &from.metadata.namespace;
        let tcp = from.ports.iter().filter(|port| matches!(port.protocol.as_deref(), None | Some("" | "TCP")));
        let ports = tcp.filter_map(|port| Some((keep.keep(port.name.as_deref().unwrap_or_default()), port.port?)));
        let ports = ports.collect();
        let mut read = |endpoint: &kubernetes::SliceEndpoint| {
            // The first of several stands for all of them, as for kube-proxy.
            let ip = endpoint.addresses.first()?.parse().ok()?;
            let target = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
            let pod = target.map(|pod| match pod.namespace.as_str() {
                "" => keep.name(namespace, &pod.name),
                namespace => keep.name(namespace, &pod.name),
            });
            let zones = endpoint.hints.iter().flat_map(|hints| &hints.for_zones);
            Some(SliceEndpoint {
                ip,
                state: State::of(&endpoint.conditions),
                pod,
                hostname: endpoint.hostname.as_deref().map(|name| keep.keep(name)),
                node: keep.keep(endpoint.node_name.as_deref().unwrap_or_default()),
                zone: endpoint.zone.as_deref().map(|zone| keep.keep(zone)),
                hints: zones.map(|zone| keep.keep(&zone.name)).collect(),
            })
        };
        let endpoints = from.endpoints.iter().filter_map(&mut read).collect();
        let slice = Slice { service: keep.name(namespace, service), ports, endpoints };
        if slice.endpoints.len() < from.endpoints.len() {
            problems.push("endpoints without an IP address are left out".into());
        }
        Some(slice)
    }

    /// The pods that it names.
    pub(super) fn pods(&self) -> impl Iterator<Item = &Name> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref())
    }

    /// The port of its endpoints for one of the service's.
    fn port(&self, service: &Service, port: &Port) -> Option<u16> {
        // A service's only port may have no name, and then its slices' has none either.
        let named = |name: &str| *name == *port.name || (service.ports.len() == 1 && name.is_empty());
        self.ports.iter().find(|(name, _)| named(name)).map(|(_, number)| *number)
    }
}

impl State {
    /// What Kubernetes says of an endpoint; what it does not say is well.
    fn of(conditions: &kubernetes::SliceConditions) -> Self {
        let ready = conditions.ready.unwrap_or(true);
        match (ready, conditions.serving.unwrap_or(ready), conditions.terminating.unwrap_or(false)) {
            (true, ..) => State::Ready,
            (false, true, true) => State::Ending,
            (false, ..) => State::NotReady,
        }
    }
}

impl Index {
    /// The usable endpoints of a service's port; with `instance`, only the pod of that name.
    pub fn endpoints(&self, name: &Name, port: u16, instance: Option<&str>, source: &Source) -> EndpointSet {
        let Some((service, port)) = self.services.get(name).and_then(|s| Some((s, s.port(port)?))) else {
            return EndpointSet::default();
        };
        let mut found = self.candidates(name, service, port);
        if let Some(instance) = instance {
            found.retain(|c| c.is_called(instance));
        }
        if service.local && !source.node.is_empty() {
            found.retain(|c| c.node == source.node);
        }
        // A pod with addresses of both families is one endpoint.
        keep_if_any(&mut found, |c| c.addr.is_ipv6() == service.ipv6);
        let ready = found.iter().any(|c| c.state == State::Ready);
        found.retain(|c| c.state == if ready { State::Ready } else { State::Ending });
        // Hints count only when all endpoints have some and one of them is for here (Kubernetes' safeguard).
        if !source.zone.is_empty() && found.iter().all(|c| !c.hints.is_empty()) {
            keep_if_any(&mut found, |c| c.hints.iter().any(|zone| **zone == *source.zone));
        }
        let endpoints = found.into_iter().map(|c| (c.addr, Arc::new(self.endpoint(&c, source)))).collect();
        let labels = [("namespace", &name.namespace), ("service", &name.name)];
        let labels = labels.map(|(key, value)| (key.to_string(), value.to_string())).into();
        EndpointSet { exists: true, endpoints, labels }
    }

    /// The pod that `INSTANCE.SERVICE` names: by the host name that its service knows it by, or by its own.
    pub(super) fn instance(&self, service: &Name, instance: &str) -> Option<Name> {
        let mut endpoints = self.slices_of(service).flat_map(|slice| &slice.endpoints);
        let called = endpoints.find(|endpoint| endpoint.hostname.as_deref() == Some(instance));
        let pod = called.and_then(|endpoint| endpoint.pod.clone());
        pod.or_else(|| {
            let pod = Name::new(&service.namespace, instance);
            self.workloads_of(service).any(|workload| *workload == pod).then_some(pod)
        })
    }

    /// True when the answer for a service depends on the client's node.
    pub fn is_local(&self, service: &Name) -> bool {
        self.services.get(service).is_some_and(|service| service.local)
    }

    /// One address of a workload.
    pub(super) fn workload_endpoint(&self, name: &Name, addr: SocketAddr, source: &Source) -> Endpoint {
        let workload = self.workloads.get(name);
        let (node, zone) = workload.map_or(("", None), |w| (&*w.node, w.zone.as_deref()));
        let mut endpoint = self.endpoint(
            &Candidate { addr, state: State::Ready, pod: Some(name), hostname: None, node, zone, hints: &[] },
            source,
        );
        endpoint.labels.insert("namespace".into(), name.namespace.to_string());
        endpoint
    }

    /// From slices if the service has any, else from the pods that it selects.
    fn candidates<'a>(&'a self, name: &'a Name, service: &Service, port: &Port) -> Vec<Candidate<'a>> {
        let mut slices = self.slices_of(name).peekable();
        if slices.peek().is_some() {
            return slices.flat_map(|slice| self.slice_candidates(slice, service, port)).collect();
        }
        let pods = self.selected.of(name).filter_map(|pod| Some((pod, self.workloads.get(pod)?)));
        pods.filter_map(|(pod, workload)| {
            let preferred = workload.ips.iter().find(|ip| ip.is_ipv6() == service.ipv6);
            let (ip, port) = (preferred.or(workload.ips.first())?, workload.port(&port.target)?);
            Some(Candidate {
                addr: SocketAddr::new(*ip, port),
                state: if workload.ready { State::Ready } else { State::NotReady },
                pod: Some(pod),
                hostname: None,
                node: &workload.node,
                zone: workload.zone.as_deref(),
                hints: &[],
            })
        })
        .collect()
    }

    fn slice_candidates<'a>(&'a self, slice: &'a Slice, service: &Service, port: &Port) -> Vec<Candidate<'a>> {
        let Some(number) = slice.port(service, port) else { return Vec::new() };
        let known = slice.endpoints.iter().filter(|endpoint| self.is_known(endpoint));
        let candidate = |endpoint: &'a SliceEndpoint| Candidate {
            addr: SocketAddr::new(endpoint.ip, number),
            state: endpoint.state,
            pod: endpoint.pod.as_ref(),
            hostname: endpoint.hostname.as_deref(),
            node: &endpoint.node,
            zone: endpoint.zone.as_deref(),
            hints: &endpoint.hints,
        };
        known.map(candidate).collect()
    }

    /// False for an endpoint whose pod has not been heard of yet, or was another by the same name: slices and pods come
    /// by different watches, and without the pod we would not know that it is meshed, and would speak plain text to it.
    fn is_known(&self, endpoint: &SliceEndpoint) -> bool {
        let Some(pod) = &endpoint.pod else { return true };
        self.workloads.get(pod).is_some_and(|pod| pod.host_network || pod.ips.contains(&endpoint.ip))
    }

    fn endpoint(&self, candidate: &Candidate, source: &Source) -> Endpoint {
        let (addr, port) = (candidate.addr, candidate.addr.port());
        let zone = candidate.zone.or_else(|| self.zones.get(candidate.node).map(String::as_str)).unwrap_or_default();
        let pod = candidate.pod.and_then(|name| Some((name, self.workloads.get(name)?)));
        let mut endpoint = Endpoint::new(addr);
        if let Some((name, workload)) = pod {
            endpoint.meta = Some(pod_meta(name, port));
            endpoint.labels = workload.metric_labels(name, &self.cluster.control_namespace);
            self.mesh(&mut endpoint, name, workload);
        }
        let locality = match (zone, source.zone.as_str()) {
            ("", _) | (_, "") => "unknown",
            (there, here) if there == here => "local",
            _ => "remote",
        };
        if !zone.is_empty() {
            endpoint.labels.insert("zone".into(), zone.to_string());
        }
        endpoint.labels.insert("zone_locality".into(), locality.into());
        endpoint
    }

    /// How to speak to the proxy of an endpoint, if it has one.
    fn mesh(&self, endpoint: &mut Endpoint, name: &Name, workload: &Workload) {
        let port = endpoint.addr.port();
        let Some(identity) = &workload.identity else { return };
        // The proxy's own ports are not behind it: only the inbound one terminates the mesh's TLS, tap does it itself.
        if workload.is_skipped(port) || port == defaults::ADMIN_PORT {
            return;
        }
        endpoint.tls = Some(ServerTls { identity: identity.clone(), server_name: identity.clone() });
        if port == defaults::TAP_PORT {
            return;
        }
        endpoint.transport_port = Some(defaults::INBOUND_PORT);
        endpoint.hint = match self.is_opaque(name, workload, port) {
            true => ProtocolHint::Opaque,
            false if self.cluster.http2_hint => ProtocolHint::Http2,
            false => ProtocolHint::Unknown,
        };
        endpoint.http2 = Http2Params {
            keep_alive: Some((defaults::H2_PING_INTERVAL, defaults::H2_PING_TIMEOUT)),
            // While nothing is asked the kernel watches the peer, and wakes nobody for it.
            keep_alive_while_idle: false,
            ..Http2Params::default()
        };
    }
}

impl Candidate<'_> {
    fn is_called(&self, name: &str) -> bool {
        self.hostname == Some(name) || self.pod.is_some_and(|pod| *pod.name == *name)
    }
}

/// Drops what is not wanted, unless that is everything.
fn keep_if_any<T>(all: &mut Vec<T>, wanted: impl Fn(&T) -> bool) {
    if all.iter().any(&wanted) {
        all.retain(wanted);
    }
}

fn pod_meta(name: &Name, port: u16) -> Meta {
    Meta::Resource {
        group: "core".into(),
        kind: "Pod".into(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        section: String::new(),
        port,
    }
}

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
