//! Workloads: pods, and what their annotations say.

use super::{Cluster, DefaultPolicy, Index, ZONE_LABEL, annotations};
use gossamer_api::endpoint::Labels;
use gossamer_api::kubernetes::{Container, IntOrString, Map, Name, Pod};
use gossamer_api::settings::Ports;
use gossamer_api::workload::Identity;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::services::Speaks;

/// A pod, as far as it matters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Workload {
    pub(super) ips: Vec<IpAddr>,
    pub(super) account: String,
    /// Present when it has a proxy of this mesh.
    pub(super) identity: Option<Identity>,
    pub(super) labels: Map,
    pub(super) node: String,
    pub(super) zone: Option<String>,
    pub(super) ready: bool,
    /// Named ports.
    pub(super) ports: Vec<(String, u16)>,
    /// HTTP health checks: paths by port.
    pub(super) probes: BTreeMap<u16, BTreeSet<String>>,
    pub(super) opaque_ports: Option<Ports>,
    pub(super) skip_inbound_ports: Option<Ports>,
    pub(super) inbound_policy: Option<DefaultPolicy>,
    /// Labels of its endpoints in metrics.
    pub(super) metric_labels: Labels,
}

impl Workload {
    pub(super) fn read(pod: &Pod, cluster: &Cluster, problems: &mut Vec<String>) -> Self {
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
        let ports: Vec<_> = containers()
            .flat_map(|container| &container.ports)
            .filter(|port| tcp(&port.protocol) && port.container_port > 0)
            .map(|port| (port.name.clone(), port.container_port))
            .collect();
        let ready = status.conditions.iter().find(|c| c.kind == "Ready").is_none_or(|c| c.status == "True");
        Workload {
            ips,
            account: account.to_string(),
            identity,
            node: spec.node_name.clone(),
            zone: metadata.labels.get(ZONE_LABEL).cloned(),
            ready: ready && !finished && matches!(status.phase.as_str(), "" | "Running"),
            probes: probes(containers(), &ports),
            ports,
            opaque_ports: annotations::config(&metadata.annotations, "opaque-ports", problems),
            skip_inbound_ports: annotations::config(&metadata.annotations, "skip-inbound-ports", problems),
            inbound_policy: annotations::config(&metadata.annotations, "default-inbound-policy", problems),
            metric_labels: metric_labels(pod, account, meshed.then_some(&cluster.control_namespace)),
            labels: metadata.labels.clone(),
        }
    }

    /// The number of a port that may be given by name.
    pub(super) fn port(&self, port: &IntOrString) -> Option<u16> {
        port_number(port, &self.ports)
    }
}

fn port_number(port: &IntOrString, named: &[(String, u16)]) -> Option<u16> {
    match port {
        IntOrString::Int(number) => Some(*number).filter(|number| *number > 0),
        IntOrString::String(name) => {
            let found = named.iter().find(|(port, _)| port == name).map(|(_, number)| *number);
            found.or_else(|| name.parse().ok().filter(|number| *number > 0))
        }
    }
}

fn probes<'a>(
    containers: impl Iterator<Item = &'a Container>,
    ports: &[(String, u16)],
) -> BTreeMap<u16, BTreeSet<String>> {
    let mut found = BTreeMap::<u16, BTreeSet<String>>::new();
    for container in containers {
        let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
        for get in probes.into_iter().flatten().filter_map(|probe| probe.http_get.as_ref()) {
            let Some(port) = port_number(&get.port, ports) else { continue };
            let path = get.path.split(['?', '#']).next().unwrap_or_default();
            let path = if path.starts_with('/') { path.to_string() } else { format!("/{path}") };
            found.entry(port).or_default().insert(path);
        }
    }
    found
}

/// Linkerd's names: pod, its owner by kind, service account, control-plane namespace, pod template.
fn metric_labels(pod: &Pod, account: &str, control_namespace: Option<&String>) -> Labels {
    let mut labels = Labels::new();
    let mut set = |key: &str, value: &str| drop(labels.insert(key.to_string(), value.to_string()));
    set("pod", &pod.metadata.name);
    set("serviceaccount", account);
    if let Some(namespace) = control_namespace {
        set("control_plane_ns", namespace);
    }
    let template = pod.metadata.labels.get("pod-template-hash");
    if let Some(hash) = template {
        set("pod_template_hash", hash);
    }
    if let Some(owner) = pod.metadata.owner_references.first() {
        // A ReplicaSet is named after its Deployment and the template's hash.
        let deployment = template.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
        match (owner.kind.as_str(), deployment) {
            ("ReplicaSet", Some(deployment)) => set("deployment", deployment),
            (kind, _) => set(&kind.to_ascii_lowercase(), &owner.name),
        }
    }
    labels
}

impl Index {
    /// True when a workload's port is opaque for the proxy beside it: by annotation of the workload or its namespace, by
    /// a service that sends bytes to it, else by the cluster's opaque ports.
    pub(super) fn is_opaque(&self, name: &Name, workload: &Workload, port: u16) -> bool {
        let namespace = self.namespace(&name.namespace).and_then(|namespace| namespace.opaque_ports.as_ref());
        let annotated = workload.opaque_ports.as_ref().or(namespace);
        if annotated.is_some_and(|ports| ports.contains(port)) {
            return true;
        }
        let (mut opaque, mut other) = (false, false);
        for (name, service) in self.services_with(name).filter_map(|s| Some((s, self.services.get(s)?))) {
            for sends in service.ports.iter().filter(|sends| workload.port(&sends.target) == Some(port)) {
                match self.speaks(name, service, sends) {
                    Speaks::Opaque => opaque = true,
                    _ => other = true,
                }
            }
        }
        match (opaque, other) {
            (true, false) => true,
            // One service says bytes, another does not: looking at them suits both.
            (_, true) => false,
            (false, false) => annotated.is_none() && self.cluster.opaque_ports.contains(port),
        }
    }

    /// True when connections to this port do not pass through the workload's proxy.
    pub(super) fn is_skipped(&self, name: &Name, workload: &Workload, port: u16) -> bool {
        let namespace = self.namespace(&name.namespace).and_then(|namespace| namespace.skip_inbound_ports.as_ref());
        workload.skip_inbound_ports.as_ref().or(namespace).is_some_and(|ports| ports.contains(port))
    }

    /// The service account of a workload.
    pub fn account(&self, name: &Name) -> Option<&str> {
        self.workloads.get(name).map(|workload| workload.account.as_str())
    }

    /// The addresses, readiness and identity of a workload.
    pub fn workload(&self, name: &Name) -> Option<(&[IpAddr], bool, Option<&Identity>)> {
        let workload = self.workloads.get(name)?;
        Some((&workload.ips, workload.ready, workload.identity.as_ref()))
    }
}

/// Written by the injector; the value is the namespace of the control plane.
const MESHED_LABELS: &[&str] = &["gossamer.io/control-plane-ns", "linkerd.io/control-plane-ns"];
