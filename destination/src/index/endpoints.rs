//! The endpoints of a service's port, as a client at some place should see them.

use super::services::{Port, Service};
use super::workloads::Workload;
use super::{Index, Source};
use gossamer_api::defaults;
use gossamer_api::endpoint::{Endpoint, Http2Params, Labels, ProtocolHint, ServerTls};
use gossamer_api::kubernetes::{EndpointSlice, Name, SliceEndpoint};
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

/// An endpoint before its details are looked up.
struct Candidate<'a> {
    addr: SocketAddr,
    pod: Option<Name>,
    node: &'a str,
    zone: Option<&'a str>,
    hints: Vec<&'a str>,
}

impl Index {
    /// The ready endpoints of a service's port; with `instance`, only the pod of that name.
    pub fn endpoints(&self, name: &Name, port: u16, instance: Option<&str>, source: &Source) -> EndpointSet {
        let Some((service, port)) = self.services.get(name).and_then(|s| Some((s, s.port(port)?))) else {
            return EndpointSet::default();
        };
        let mut found = self.candidates(name, service, port);
        if let Some(instance) = instance {
            found.retain(|c| c.pod.as_ref().is_some_and(|pod| *pod.name == *instance));
        }
        if service.local && !source.node.is_empty() {
            found.retain(|c| c.node == source.node);
        }
        // Hints count only when all endpoints have some and one of them is for here (Kubernetes' safeguard).
        let here = |c: &Candidate| c.hints.contains(&source.zone.as_str());
        if !source.zone.is_empty() && found.iter().all(|c| !c.hints.is_empty()) && found.iter().any(here) {
            found.retain(here);
        }
        let endpoints = found.into_iter().map(|c| (c.addr, Arc::new(self.endpoint(&c, source)))).collect();
        let labels = [("namespace", &name.namespace), ("service", &name.name)];
        let labels = labels.map(|(key, value)| (key.to_string(), value.to_string())).into();
        EndpointSet { exists: true, endpoints, labels }
    }

    /// True when the answer for a service depends on the client's node.
    pub fn is_local(&self, service: &Name) -> bool {
        self.services.get(service).is_some_and(|service| service.local)
    }

    /// One address of a workload.
    pub(super) fn workload_endpoint(&self, name: &Name, addr: SocketAddr, source: &Source) -> Endpoint {
        let workload = self.workloads.get(name);
        let (node, zone) = workload.map_or(("", None), |w| (w.node.as_str(), w.zone.as_deref()));
        let mut endpoint =
            self.endpoint(&Candidate { addr, pod: Some(name.clone()), node, zone, hints: Vec::new() }, source);
        endpoint.labels.insert("namespace".into(), name.namespace.to_string());
        endpoint
    }

    /// From slices if the service has any, else from the pods that it selects.
    fn candidates<'a>(&'a self, name: &'a Name, service: &Service, port: &Port) -> Vec<Candidate<'a>> {
        let mut slices = self.slices_of.of(name).peekable();
        if slices.peek().is_some() {
            let slices = slices.filter_map(|slice| Some((slice, &self.slices.get(slice)?.object)));
            return slices.flat_map(|(name, slice)| slice_candidates(name, slice, service, port)).collect();
        }
        let pods = self.selected.of(name).filter_map(|pod| Some((pod, self.workloads.get(pod)?)));
        pods.filter(|(_, workload)| workload.ready)
            .filter_map(|(pod, workload)| {
                let (ip, port) = (workload.ips.first()?, workload.port(&port.target)?);
                let (node, zone) = (workload.node.as_str(), workload.zone.as_deref());
                Some(Candidate {
                    addr: SocketAddr::new(*ip, port),
                    pod: Some(pod.clone()),
                    node,
                    zone,
                    hints: Vec::new(),
                })
            })
            .collect()
    }

    fn endpoint(&self, candidate: &Candidate, source: &Source) -> Endpoint {
        let (addr, port) = (candidate.addr, candidate.addr.port());
        let zone = candidate.zone.or_else(|| self.zones.get(candidate.node).map(String::as_str)).unwrap_or_default();
        let pod = candidate.pod.as_ref().and_then(|name| Some((name, self.workloads.get(name)?)));
        let mut endpoint = Endpoint::new(addr);
        if let Some((name, workload)) = pod {
            endpoint.meta = Some(pod_meta(name, port));
            endpoint.labels.clone_from(&workload.metric_labels);
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
        if self.is_skipped(name, workload, port) || port == defaults::ADMIN_PORT {
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
            keep_alive_while_idle: true,
            ..Http2Params::default()
        };
    }
}

fn slice_candidates<'a>(name: &Name, slice: &'a EndpointSlice, service: &Service, port: &Port) -> Vec<Candidate<'a>> {
    let named = |sliced: &&gossamer_api::kubernetes::SlicePort| {
        let tcp = matches!(sliced.protocol.as_deref(), None | Some("" | "TCP"));
        let sliced = sliced.name.as_deref().unwrap_or_default();
        // A service's only port may have no name, and then its slices' has none either.
        tcp && (sliced == port.name || (service.ports.len() == 1 && sliced.is_empty()))
    };
    let Some(number) = slice.ports.iter().find(named).and_then(|port| port.port) else { return Vec::new() };
    let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready != Some(false));
    ready
        .filter_map(|endpoint| {
            let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
            Some(Candidate {
                addr: SocketAddr::new(ip, number),
                pod: pod_of(name, endpoint),
                node: endpoint.node_name.as_deref().unwrap_or_default(),
                zone: endpoint.zone.as_deref(),
                hints: endpoint.hints.iter().flat_map(|h| &h.for_zones).map(|zone| zone.name.as_str()).collect(),
            })
        })
        .collect()
}

/// The pod behind an endpoint of a slice.
pub(super) fn pod_of(slice: &Name, endpoint: &SliceEndpoint) -> Option<Name> {
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod")?;
    let namespace = if pod.namespace.is_empty() { &*slice.namespace } else { pod.namespace.as_str() };
    Some(Name::new(namespace, &pod.name))
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
