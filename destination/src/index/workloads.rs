//! Workloads: pods, and what their annotations say.

use super::texts::{Kept, LabelSet, Text, Texts};
use super::{Cluster, DefaultPolicy, Index, ZONE_LABEL, annotations};
use gossamer_api::endpoint::Labels;
use gossamer_api::keys::PROXY_CONTAINER;
use gossamer_api::kubernetes::{Container, IntOrString, Name, Owner, Pod};
use gossamer_api::settings::Ports;
use gossamer_api::workload::Identity;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use super::services::Speaks;

/// A pod, as far as it matters: what is its own, and what it has in common with all that were made from one template.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Workload {
    pub(super) ips: Box<[IpAddr]>,
    pub(super) node: Text,
    pub(super) ready: bool,
    template: Arc<Template>,
}

impl Deref for Workload {
    type Target = Template;

    fn deref(&self) -> &Template {
        &self.template
    }
}

/// What replicas have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Template {
    pub(super) account: Text,
    /// Present when it has a proxy of this mesh.
    pub(super) identity: Option<Identity>,
    /// It says that it has a proxy of this mesh.
    meshed: bool,
    pub(super) labels: LabelSet,
    /// Its address is its node's.
    pub(super) host_network: bool,
    pub(super) zone: Option<Text>,
    /// Named ports.
    ports: Box<[(Text, u16)]>,
    /// Health checks: what the kubelet asks, by port.
    probes: Box<[(u16, Probe)]>,
    pub(super) opaque_ports: Option<Ports>,
    skip_inbound_ports: Option<Ports>,
    pub(super) require_identity: Option<Ports>,
    pub(super) inbound_policy: Option<DefaultPolicy>,
    /// What made it: kind in lower case, and name.
    owner: Option<(Text, Text)>,
}

/// A request of the kubelet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Probe {
    /// A GET of this path.
    Get(Text),
    /// A call of gRPC's health service.
    Grpc,
}

impl Workload {
    pub(super) fn read(
        pod: &Pod,
        cluster: &Cluster,
        (keep, templates): (&mut Texts, &mut Kept<Template>),
        problems: &mut Vec<String>,
    ) -> Self {
        let (metadata, spec, status) = (&pod.metadata, &pod.spec, &pod.status);
        let finished = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        let texts = std::iter::once(&status.pod_ip).chain(status.pod_ips.iter().map(|ip| &ip.ip));
        let mut ips: Vec<IpAddr> = texts.filter_map(|ip| ip.parse().ok()).collect();
        ips.dedup();
        if finished || spec.host_network {
            // Its address is, or soon will be, somebody else's.
            ips.clear();
        }
        let account = if spec.service_account_name.is_empty() { "default" } else { &spec.service_account_name };
        let meshed = MESHED_LABELS.iter().any(|label| metadata.labels.get(*label) == Some(&cluster.control_namespace));
        let identity = (meshed && !spec.host_network).then(|| cluster.identity(account, &metadata.namespace)).flatten();
        let containers = || spec.containers.iter().chain(&spec.init_containers);
        let tcp = |protocol: &str| matches!(protocol, "" | "TCP");
        let ports: Box<[_]> = containers()
            .flat_map(|container| &container.ports)
            .filter(|port| tcp(&port.protocol) && port.container_port > 0)
            .map(|port| (keep.keep(&port.name), port.container_port))
            .collect();
        let ready = status.conditions.iter().find(|c| c.kind == "Ready").is_none_or(|c| c.status == "True");
        let template = Template {
            account: keep.keep(account),
            identity,
            meshed,
            host_network: spec.host_network,
            zone: metadata.labels.get(ZONE_LABEL).map(|zone| keep.keep(zone)),
            probes: probes(containers(), &ports, keep),
            ports,
            opaque_ports: annotations::config(&metadata.annotations, "opaque-ports", problems),
            skip_inbound_ports: skipped(pod, problems),
            require_identity: annotations::require_identity(&metadata.annotations, problems),
            inbound_policy: annotations::config(&metadata.annotations, "default-inbound-policy", problems),
            owner: metadata.owner_references.first().map(|owner| owner_label(owner, pod, keep)),
            labels: keep.labels(&metadata.labels),
        };
        Workload {
            ips: ips.into(),
            node: keep.keep(&spec.node_name),
            ready: ready
                && !finished
                && metadata.deletion_timestamp.is_none()
                && matches!(status.phase.as_str(), "" | "Running"),
            template: templates.share(template),
        }
    }

    /// True when connections to this port do not pass through the workload's proxy.
    pub(super) fn is_skipped(&self, port: u16) -> bool {
        self.skip_inbound_ports.as_ref().is_some_and(|ports| ports.contains(port))
    }

    /// The number of a port that may be given by name.
    pub(super) fn port(&self, port: &IntOrString) -> Option<u16> {
        port_number(port, &self.ports)
    }

    /// What the kubelet asks this port.
    pub(super) fn probes(&self, port: u16) -> impl Iterator<Item = &Probe> {
        self.probes.iter().filter(move |(of, _)| *of == port).map(|(_, probe)| probe)
    }

    /// Labels of its endpoints in metrics. Linkerd's names: pod, its owner by kind, service account, control-plane
    /// namespace, pod template.
    pub(super) fn metric_labels(&self, name: &Name, control_namespace: &str) -> Labels {
        let mut labels = Labels::new();
        let mut set = |key: &str, value: &str| drop(labels.insert(key.to_string(), value.to_string()));
        set("pod", &name.name);
        set("serviceaccount", &self.account);
        if self.meshed {
            set("control_plane_ns", control_namespace);
        }
        if let Some(hash) = self.labels.get(TEMPLATE_LABEL) {
            set("pod_template_hash", hash);
        }
        if let Some((kind, owner)) = &self.owner {
            set(kind, owner);
        }
        labels
    }
}

/// The ports that bypass a pod's proxy, as its redirection was set when the pod was made: what its proxy was told. An
/// annotation, of the pod or its namespace, may have been changed since; clients that believed it would send plain text to
/// a proxy. It counts where nobody can see what the proxy was told.
fn skipped(pod: &Pod, problems: &mut Vec<String>) -> Option<Ports> {
    let mut containers = pod.spec.init_containers.iter().chain(&pod.spec.containers);
    match containers.find(|container| container.name == PROXY_CONTAINER) {
        Some(proxy) => proxy.skip_inbound_ports.as_ref().and_then(|ports| ports.parse().ok()),
        None => annotations::config(&pod.metadata.annotations, "skip-inbound-ports", problems),
    }
}

fn port_number(port: &IntOrString, named: &[(Text, u16)]) -> Option<u16> {
    match port {
        IntOrString::Int(number) => Some(*number).filter(|number| *number > 0),
        IntOrString::String(name) => {
            let found = named.iter().find(|(port, _)| **port == **name).map(|(_, number)| *number);
            found.or_else(|| name.parse().ok().filter(|number| *number > 0))
        }
    }
}

fn probes<'a>(
    containers: impl Iterator<Item = &'a Container>,
    ports: &[(Text, u16)],
    keep: &mut Texts,
) -> Box<[(u16, Probe)]> {
    let mut found = Vec::new();
    for container in containers {
        let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for probe in probes.into_iter().chain(hooks).flatten() {
            if let Some(get) = &probe.http_get
                && let Some(port) = port_number(&get.port, ports)
            {
                let path = get.path.split(['?', '#']).next().unwrap_or_default();
                let path = if path.starts_with('/') { keep.keep(path) } else { keep.keep(&format!("/{path}")) };
                found.push((port, Probe::Get(path)));
            }
            if let Some(grpc) = probe.grpc.as_ref().filter(|grpc| grpc.port > 0) {
                found.push((grpc.port, Probe::Grpc));
            }
        }
    }
    found.sort();
    found.dedup();
    found.into()
}

/// A ReplicaSet is named after its Deployment and the template's hash, and stands for it.
fn owner_label(owner: &Owner, pod: &Pod, keep: &mut Texts) -> (Text, Text) {
    let template = pod.metadata.labels.get(TEMPLATE_LABEL);
    let deployment = template.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match (owner.kind.as_str(), deployment) {
        ("ReplicaSet", Some(deployment)) => (keep.keep("deployment"), keep.keep(deployment)),
        (kind, _) => (keep.keep(&kind.to_ascii_lowercase()), keep.keep(&owner.name)),
    }
}

impl Index {
    /// True when a workload's port is opaque for the proxy beside it.
    pub(super) fn is_opaque(&self, name: &Name, workload: &Workload, port: u16) -> bool {
        self.workload_speaks(name, workload, port) == Speaks::Opaque
    }

    /// What a workload's port speaks: by annotation of the workload or its namespace, by the services that send to it
    /// where they agree, else by the cluster's opaque ports.
    pub(super) fn workload_speaks(&self, name: &Name, workload: &Workload, port: u16) -> Speaks {
        let namespace = self.namespace(&name.namespace).and_then(|namespace| namespace.opaque_ports.as_ref());
        let annotated = workload.opaque_ports.as_ref().or(namespace);
        if annotated.is_some_and(|ports| ports.contains(port)) {
            return Speaks::Opaque;
        }
        let mut said = None;
        for (name, service) in self.services_with(name).filter_map(|s| Some((s, self.services.get(s)?))) {
            for sends in service.ports.iter().filter(|sends| workload.port(&sends.target) == Some(port)) {
                let speaks = self.speaks(name, service, sends);
                if said.is_some_and(|said| said != speaks) {
                    // One service says bytes, another does not: looking at them suits both.
                    return Speaks::Unknown;
                }
                said = Some(speaks);
            }
        }
        let opaque = annotated.is_none() && self.cluster.opaque_ports.contains(port);
        said.unwrap_or(if opaque { Speaks::Opaque } else { Speaks::Unknown })
    }

    /// The service account of a workload.
    pub fn account(&self, name: &Name) -> Option<&str> {
        self.workloads.get(name).map(|workload| &*workload.account)
    }

    /// The addresses, readiness and identity of a workload.
    pub fn workload(&self, name: &Name) -> Option<(&[IpAddr], bool, Option<&Identity>)> {
        let workload = self.workloads.get(name)?;
        Some((&workload.ips, workload.ready, workload.identity.as_ref()))
    }
}

const TEMPLATE_LABEL: &str = "pod-template-hash";
/// Written by the injector; the value is the namespace of the control plane.
const MESHED_LABELS: &[&str] = &["gossamer.io/control-plane-ns", "linkerd.io/control-plane-ns"];
