//! Namespaces, nodes, services, pods and endpoint slices.

use super::{Map, Metadata, or_default};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// A namespace; only its annotations matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    /// Name and annotations.
    pub metadata: Metadata,
}

/// A node; only its zone (label `topology.kubernetes.io/zone`) matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Node {
    /// Name and labels.
    pub metadata: Metadata,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Name and annotations.
    pub metadata: Metadata,
    /// What it is.
    pub spec: ServiceSpec,
}

/// What a service is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP` (also when empty), `NodePort`, `LoadBalancer`, `ExternalName`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its virtual address, `None` for a headless service; empty: to be allocated.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    /// All of them (dual stack).
    #[serde(rename = "clusterIPs")]
    #[serde(deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    /// Ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePort>,
    /// Labels of its pods; empty: its endpoints come as endpoint slices.
    #[serde(deserialize_with = "or_default")]
    pub selector: Map,
    /// `Local`: only endpoints on the client's node.
    pub internal_traffic_policy: String,
    /// `IPv4`, `IPv6`, the first is preferred (dual stack).
    #[serde(deserialize_with = "or_default")]
    pub ip_families: Vec<String>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Unique in the service; may begin with a protocol (`http-web`).
    pub name: String,
    /// The service's port.
    pub port: u16,
    /// The pod's port; missing: the same.
    pub target_port: Option<IntOrString>,
    /// `TCP` (also when empty), `UDP`, `SCTP`.
    pub protocol: String,
    /// What it speaks.
    pub app_protocol: Option<String>,
}

/// A port by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(u16),
    /// A name, or a number in quotes.
    String(String),
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Name, labels and annotations.
    pub metadata: Metadata,
    /// What it runs.
    pub spec: PodSpec,
    /// How it is.
    pub status: PodStatus,
}

/// What a pod runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Empty: `default`.
    pub service_account_name: String,
    /// Where it runs.
    pub node_name: String,
    /// True: it has its node's address, and no redirection.
    pub host_network: bool,
    /// Containers.
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    /// Init containers, native sidecars among them.
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<Container>,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ContainerPort>,
    /// Asked by the kubelet.
    pub liveness_probe: Option<Probe>,
    /// Asked by the kubelet.
    pub readiness_probe: Option<Probe>,
    /// Asked by the kubelet.
    pub startup_probe: Option<Probe>,
    /// Also asked by the kubelet, once.
    pub lifecycle: Option<Lifecycle>,
    /// What a proxy's redirection leaves out, by its variable; no other variable is kept.
    #[serde(rename = "env", deserialize_with = "skip_inbound_ports")]
    pub skip_inbound_ports: Option<String>,
}

fn skip_inbound_ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Variable {
        name: String,
        value: Option<String>,
    }
    let variables = Option::<Vec<Variable>>::deserialize(deserializer)?.unwrap_or_default();
    let found = variables.into_iter().find(|variable| variable.name == "MESH_SKIP_INBOUND_PORTS");
    Ok(found.and_then(|variable| variable.value))
}

/// What the kubelet does after a container's start and before its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// After its start.
    pub post_start: Option<Probe>,
    /// Before its end.
    pub pre_stop: Option<Probe>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Name, may be empty.
    pub name: String,
    /// Number.
    pub container_port: u16,
    /// `TCP` (also when empty), `UDP`, `SCTP`.
    pub protocol: String,
}

/// A health check; only those that send a request matter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Probe {
    /// An HTTP request.
    pub http_get: Option<HttpGet>,
    /// A request of gRPC's health protocol.
    pub grpc: Option<GrpcProbe>,
}

/// A health check of gRPC's health protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcProbe {
    /// By number only.
    pub port: u16,
}

/// An HTTP health check.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Empty: `/`.
    #[serde(default)]
    pub path: String,
    /// By number or name.
    pub port: IntOrString,
}

/// How a pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed`; empty: as running.
    pub phase: String,
    /// Its address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All of them (dual stack).
    #[serde(rename = "podIPs")]
    #[serde(deserialize_with = "or_default")]
    pub pod_ips: Vec<PodIp>,
    /// `Ready` is the one that matters; missing: ready.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// An address of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// Address.
    pub ip: String,
}

/// A condition of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// `Ready`...
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
}

/// A part of a service's endpoints; the label `kubernetes.io/service-name` says whose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Name and labels.
    pub metadata: Metadata,
    /// `IPv4`, `IPv6` or `FQDN`.
    pub address_type: String,
    /// Endpoints.
    #[serde(deserialize_with = "or_default")]
    pub endpoints: Vec<SliceEndpoint>,
    /// The ports of all of them.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<SlicePort>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Addresses; only the first matters.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// Readiness.
    #[serde(deserialize_with = "or_default")]
    pub conditions: SliceConditions,
    /// Zone.
    pub zone: Option<String>,
    /// Node.
    pub node_name: Option<String>,
    /// The pod.
    pub target_ref: Option<ObjectReference>,
    /// Zones that should use it.
    pub hints: Option<Hints>,
    /// Name of the replica in a headless service.
    pub hostname: Option<String>,
}

/// Readiness of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SliceConditions {
    /// Missing: ready.
    pub ready: Option<bool>,
    /// Passes its health check, whether it is ending or not; missing: as `ready`.
    pub serving: Option<bool>,
    /// Is ending; missing: it is not.
    pub terminating: Option<bool>,
}

/// Zones that should use an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hints {
    /// Zones.
    #[serde(deserialize_with = "or_default")]
    pub for_zones: Vec<ZoneHint>,
}

/// A zone that should use an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ZoneHint {
    /// Zone.
    pub name: String,
}

/// Another object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ObjectReference {
    /// Kind.
    pub kind: String,
    /// Empty: that of the referring object.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// A port of a slice's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlicePort {
    /// The name of the service's port.
    pub name: Option<String>,
    /// The endpoints' port.
    pub port: Option<u16>,
    /// `TCP` (also when empty), `UDP`, `SCTP`.
    pub protocol: Option<String>,
}

/// Selects objects by labels: all that is given must hold; an empty one selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LabelSelector {
    /// These labels with these values.
    #[serde(deserialize_with = "or_default")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(deserialize_with = "or_default")]
    pub match_expressions: Vec<LabelExpression>,
}

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// What must hold.
    pub operator: LabelOperator,
    /// For `In` and `NotIn`.
    #[serde(default)]
    #[serde(deserialize_with = "or_default")]
    pub values: Vec<String>,
}

/// What must hold of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[allow(missing_docs)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// True when an object is selected whose labels `label` looks up.
    pub fn selects<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let listed = |e: &LabelExpression, value: &str| e.values.iter().any(|listed| listed == value);
        let expression = |e: &LabelExpression| match (e.operator, label(&e.key)) {
            (LabelOperator::In, value) => value.is_some_and(|value| listed(e, value)),
            (LabelOperator::NotIn, value) => !value.is_some_and(|value| listed(e, value)),
            (LabelOperator::Exists, value) => value.is_some(),
            (LabelOperator::DoesNotExist, value) => value.is_none(),
        };
        self.match_labels.iter().all(|(key, value)| label(key) == Some(value.as_str()))
            && self.match_expressions.iter().all(expression)
    }
}
