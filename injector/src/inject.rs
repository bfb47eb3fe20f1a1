//! Decides whether a pod gets the proxy, and says what is added to it. Pure: no I/O, no clock.
//!
//! Works on the object as it is written, so that fields that nobody here knows are kept. It only adds: what is there is
//! never changed or moved, and a pod that has the proxy gets nothing.

use crate::container::{self, CONTAINER, INIT_CONTAINER, SAFE_TO_EVICT, STATE_VOLUME, Shape};
use crate::settings::{self, InvalidAnnotation, Settings};
use gossamer_api::defaults;
use gossamer_api::keys::{
    CONTROL_NAMESPACE_LABEL, CONTROL_PLANE_COMPONENT, INJECT, PROXY_VERSION, WORKLOAD_LABEL_PREFIX,
};
use gossamer_api::kubernetes::Map;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What is the same for all pods of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Values {
    /// The proxy's image.
    pub proxy_image: String,
    /// The roots of trust, as PEM; proxies follow changes by themselves.
    #[serde(skip)]
    pub trust_anchors: String,
    /// Where the control plane lives.
    pub control_namespace: String,
    /// The end of every identity.
    pub trust_domain: String,
    /// The end of every service's name.
    pub cluster_domain: String,
    /// Where nothing passes without discovery.
    pub cluster_networks: String,
    /// Whether the cluster knows init containers that go on (Kubernetes 1.29).
    pub native_sidecar: bool,
    /// Settings for all workloads that don't say otherwise: the names of annotations, without prefix.
    pub defaults: Map,
}

impl Default for Values {
    fn default() -> Self {
        Values {
            proxy_image: format!("{}:{}", defaults::PROXY_IMAGE, env!("CARGO_PKG_VERSION")),
            trust_anchors: String::new(),
            control_namespace: defaults::CONTROL_NAMESPACE.into(),
            trust_domain: defaults::TRUST_DOMAIN.into(),
            cluster_domain: defaults::CLUSTER_DOMAIN.into(),
            cluster_networks: defaults::CLUSTER_NETWORKS.into(),
            native_sidecar: true,
            defaults: Map::new(),
        }
    }
}

/// What is to be done with a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It gets the proxy.
    Inject(Injection),
    /// It stays as it is.
    Skip(Skip),
}

/// How a pod gets the proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// In this order.
    pub additions: Vec<Addition>,
    /// For whoever made the pod.
    pub warnings: Vec<String>,
    /// Whose annotation asked for it.
    pub asked_by: Place,
}

/// A value that is put into an object: as a member of a map, or into a list in front of the element with that number
/// (`-`: at its end). As `add` of a JSON patch (RFC 6902).
#[derive(Clone, Debug, PartialEq)]
pub struct Addition {
    /// The names from the outside to the inside.
    pub path: Vec<String>,
    /// What is put there.
    pub value: Value,
}

/// Whose annotation decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The pod's own.
    Workload,
    /// Its namespace's.
    Namespace,
}

/// Why a pod stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// No annotation asks for the proxy.
    #[error("neither the pod nor its namespace has the annotation gossamer.io/inject: enabled")]
    NotAsked,
    /// An annotation forbids it.
    #[error("the annotation gossamer.io/inject: disabled of its {0} forbids it")]
    OptedOut(&'static str),
    /// It has the proxy.
    #[error("it has the proxy already")]
    Injected,
    /// Another mesh's proxy is in there; two would redirect each other.
    #[error("the container {0} is another mesh's proxy; remove that first")]
    OtherMesh(String),
    /// There is no network namespace of its own.
    #[error("it uses its node's network (hostNetwork: true), which must not be redirected")]
    HostNetwork,
    /// A pod of the control plane.
    #[error("it belongs to the control plane, which speaks mutual TLS itself")]
    ControlPlane,
    /// A pod that the kubelet made from a file can't have a service account.
    #[error("it is a static pod, which has no service account and so no identity")]
    NoToken,
    /// There is no proxy for it.
    #[error("it runs on {0}, where there is no proxy")]
    System(String),
}

impl Skip {
    /// One word for metrics; Linkerd's where it has one.
    pub fn reason(&self) -> &'static str {
        match self {
            Skip::NotAsked => "injection_enable_annotation_absent",
            Skip::OptedOut(_) => "injection_disable_annotation_present",
            Skip::Injected => "sidecar_exists",
            Skip::OtherMesh(_) => "other_sidecar_exists",
            Skip::HostNetwork => "host_network_enabled",
            Skip::ControlPlane => "control_plane",
            Skip::NoToken => "no_service_account_token",
            Skip::System(_) => "unsupported_system",
        }
    }

    /// True when somebody asked for the proxy and should hear why it is not there.
    pub fn is_news(&self) -> bool {
        !matches!(self, Skip::NotAsked | Skip::OptedOut(_) | Skip::Injected | Skip::ControlPlane)
    }
}

/// Decides about `pod` (an object with `metadata` and `spec`: a pod, or a pod template) in a namespace with these
/// annotations.
///
/// Errors: annotations with values that can't be read; nothing may be made of such a pod.
pub fn inject(pod: &Value, namespace: &Map, values: &Values) -> Result<Outcome, Vec<InvalidAnnotation>> {
    let own = strings(&pod["metadata"]["annotations"]);
    let labels = strings(&pod["metadata"]["labels"]);
    let spec = &pod["spec"];
    if labels.contains_key(CONTROL_PLANE_COMPONENT) {
        return Ok(Outcome::Skip(Skip::ControlPlane));
    }
    let asked_by = match asked(&own, namespace)? {
        Ok(place) => place,
        Err(skip) => return Ok(Outcome::Skip(skip)),
    };
    if let Some(skip) = unfit(&own, spec) {
        return Ok(Outcome::Skip(skip));
    }
    let settings = Settings::read(&own, namespace, &values.defaults)?;
    let mut warnings = settings::without_effect(&own);
    warnings.extend(settings::without_effect(namespace).into_iter().map(of_namespace));

    let shape = shape(spec, &settings, values);
    if !shape.native && owner(pod).is_some_and(|(kind, _)| kind == "job") {
        warnings.push(
            "the proxy is a plain container, which does not end with the job; have the job call POST /shutdown on \
             localhost:4191 when it is done (annotation config.gossamer.io/admin-shutdown: enabled)"
                .into(),
        );
    }
    if spec["shareProcessNamespace"] == true && settings.set("redirect").is_none() {
        warnings.push("the pod shares its process namespace: its containers can send signals to the proxy".into());
    }

    let mut additions = Additions { pod, list: Vec::new() };
    additions.member("annotations", PROXY_VERSION, env!("CARGO_PKG_VERSION"));
    let movable = own.get(SAFE_TO_EVICT).filter(|others| !others.is_empty());
    let movable = movable
        .map_or_else(|| STATE_VOLUME.to_string(), |others| format!("{},{STATE_VOLUME}", others.trim_end_matches(',')));
    additions.member("annotations", SAFE_TO_EVICT, &movable);
    additions.member("labels", CONTROL_NAMESPACE_LABEL, &values.control_namespace);
    if let Some((kind, name)) = owner(pod) {
        additions.member("labels", &format!("{WORKLOAD_LABEL_PREFIX}{kind}"), &name);
    }
    additions.append("volumes", container::volume());
    additions.append("volumes", container::state_volume());
    // In the order in which they go to the front: the last one is the first.
    let proxy = container::proxy(values, &settings, shape, spec["serviceAccountName"].as_str());
    additions.prepend(if shape.native { "initContainers" } else { "containers" }, proxy);
    if shape.separate_init {
        additions.prepend("initContainers", container::init(values, &settings));
    }
    Ok(Outcome::Inject(Injection { additions: additions.list, warnings, asked_by }))
}

/// What may be meant for us, where nobody asks for the proxy: a request that is misspelt.
pub fn misspelt(pod: &Value, namespace: &Map) -> Vec<String> {
    let own = settings::unknown_keys(&strings(&pod["metadata"]["annotations"]));
    own.into_iter().chain(settings::unknown_keys(namespace).into_iter().map(of_namespace)).collect()
}

fn of_namespace(warning: String) -> String {
    format!("on the namespace: {warning}")
}

/// Where an object's pod, or its template, is; the empty path is the object itself.
pub fn pod_path(kind: &str) -> Option<&'static [&'static str]> {
    Some(match kind {
        "Pod" => &[],
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            &["spec", "template"]
        }
        "CronJob" => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    })
}

/// Whether somebody wants the proxy: the pod's word counts before its namespace's.
pub(crate) fn asked(pod: &Map, namespace: &Map) -> Result<Result<Place, Skip>, Vec<InvalidAnnotation>> {
    let places = [("pod", Place::Workload, pod), ("namespace", Place::Namespace, namespace)];
    for (place, by, annotations) in places {
        return match annotations.get(INJECT).map(String::as_str) {
            None => continue,
            Some("enabled") => Ok(Ok(by)),
            Some("disabled") => Ok(Err(Skip::OptedOut(place))),
            Some(value) => Err(vec![InvalidAnnotation {
                key: INJECT.into(),
                place,
                value: value.into(),
                form: "enabled or disabled",
                detail: String::new(),
            }]),
        };
    }
    Ok(Err(Skip::NotAsked))
}

/// Why a pod can't have the proxy.
fn unfit(annotations: &Map, spec: &Value) -> Option<Skip> {
    let names: Vec<&str> = containers(spec).filter_map(|container| container["name"].as_str()).collect();
    if names.iter().any(|name| [CONTAINER, INIT_CONTAINER].contains(name)) {
        return Some(Skip::Injected);
    }
    if let Some(name) = names.iter().find(|name| OTHER_PROXIES.contains(name)) {
        return Some(Skip::OtherMesh((*name).into()));
    }
    if spec["hostNetwork"] == true {
        return Some(Skip::HostNetwork);
    }
    if annotations.contains_key("kubernetes.io/config.mirror") {
        return Some(Skip::NoToken);
    }
    let system = spec["os"]["name"].as_str().or_else(|| spec["nodeSelector"]["kubernetes.io/os"].as_str());
    system.filter(|system| *system != "linux").map(|system| Skip::System(system.into()))
}

fn shape(spec: &Value, settings: &Settings, values: &Values) -> Shape {
    // Where every container says that it is root, the kubelet makes the token readable for root alone; the proxy is
    // somebody else when it reads it. A container that is not root from its start changes that.
    let all_root = spec["securityContext"]["fsGroup"].is_null()
        && containers(spec).all(|container| {
            let user = &container["securityContext"]["runAsUser"];
            let user = if user.is_null() { &spec["securityContext"]["runAsUser"] } else { user };
            *user == 0
        });
    Shape {
        native: values.native_sidecar && !settings.is("native-sidecar", "disabled"),
        separate_init: settings.is("redirect", "init") || all_root,
    }
}

/// The kind (in lower case) and name of what made a pod; a ReplicaSet's Deployment, which the template's hash tells.
pub fn owner(pod: &Value) -> Option<(String, String)> {
    let metadata = &pod["metadata"];
    let owners = metadata["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["controller"] == true).or(owners.first())?;
    let (kind, name) = (owner["kind"].as_str()?, owner["name"].as_str()?);
    let hash = metadata["labels"]["pod-template-hash"].as_str();
    let deployment = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-')).filter(|_| kind == "ReplicaSet");
    let (kind, name) = deployment.map_or((kind, name), |name| ("Deployment", name));
    // The longest value of a label; a name that does not fit is known from the pod's owner all the same.
    (name.len() <= 63).then(|| (kind.to_ascii_lowercase(), name.to_string()))
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| spec[name].as_array().into_iter().flatten();
    list("initContainers").chain(list("containers"))
}

/// The texts of an object.
pub(crate) fn strings(of: &Value) -> Map {
    let members = of.as_object().into_iter().flatten();
    members.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_string()))).collect()
}

/// Collects additions; knows which maps and lists the object has.
struct Additions<'a> {
    pod: &'a Value,
    list: Vec<Addition>,
}

impl Additions<'_> {
    fn push(&mut self, path: &[&str], value: Value) {
        self.list.push(Addition { path: path.iter().map(|name| (*name).to_string()).collect(), value });
    }

    /// True when the object has this, or gets it by an earlier addition.
    fn has(&self, outer: &str, name: &str) -> bool {
        !self.pod[outer][name].is_null() || self.list.iter().any(|one| one.path == [outer, name])
    }

    fn member(&mut self, of: &str, key: &str, value: &str) {
        if self.pod["metadata"].is_null() && !self.list.iter().any(|one| one.path[0] == "metadata") {
            self.push(&["metadata"], json!({ of: { key: value } }));
        } else if self.has("metadata", of)
            || self.list.iter().any(|one| one.path == ["metadata"] && one.value.get(of).is_some())
        {
            self.push(&["metadata", of, key], value.into());
        } else {
            self.push(&["metadata", of], json!({ key: value }));
        }
    }

    fn append(&mut self, list: &str, value: Value) {
        if self.has("spec", list) {
            self.push(&["spec", list, "-"], value)
        } else {
            self.push(&["spec", list], json!([value]))
        }
    }

    fn prepend(&mut self, list: &str, value: Value) {
        if self.has("spec", list) {
            self.push(&["spec", list, "0"], value)
        } else {
            self.push(&["spec", list], json!([value]))
        }
    }
}

impl Injection {
    /// As a JSON patch of an object in which the pod is under `prefix`.
    pub fn patch(&self, prefix: &[&str]) -> Value {
        let escape = |name: &str| name.replace('~', "~0").replace('/', "~1");
        let pointer = |path: &[String]| -> String {
            let names = prefix.iter().copied().chain(path.iter().map(String::as_str));
            names.map(|name| format!("/{}", escape(name))).collect()
        };
        let op = |one: &Addition| json!({ "op": "add", "path": pointer(&one.path), "value": one.value });
        self.additions.iter().map(op).collect()
    }
}

/// Containers of meshes that redirect.
const OTHER_PROXIES: &[&str] =
    &["linkerd-proxy", "linkerd-init", "istio-proxy", "istio-init", "kuma-sidecar", "kuma-init"];

#[cfg(test)]
mod tests;
