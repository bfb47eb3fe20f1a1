//! What is added to a pod: one container and the token's volume. Pure.
//!
//! **Invariant:** little. Every pod object of the cluster carries this, in etcd and in each watch: what the proxy can
//! derive from the control plane's namespace or has as its default is not written.

use crate::inject::Values;
use crate::settings::Settings;
use gossamer_api::defaults;
use gossamer_api::keys::{CONFIG_PREFIX, PROXY_CONTAINER, TOKEN_AUDIENCE};
use serde_json::{Value, json};

/// The name of the proxy's container.
pub const CONTAINER: &str = PROXY_CONTAINER;
/// The name of the separate init container.
pub const INIT_CONTAINER: &str = "gossamer-init";
/// The name of the token's volume.
pub const VOLUME: &str = "gossamer-token";
/// The name of the volume that outlives the container.
pub const STATE_VOLUME: &str = "gossamer";
/// The annotation that names volumes on a node's disk for which no pod need stay there. Source: the cluster autoscaler's
/// FAQ.
pub const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

/// How the proxy lives in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// An init container that goes on: starts before and ends after the application.
    pub native: bool,
    /// A container of its own sets the redirection; the proxy never has a privilege.
    pub separate_init: bool,
}

/// The proxy.
///
/// `account`: the pod's service account, where it is written into the pod already, as the API server does before it asks.
pub fn proxy(values: &Values, settings: &Settings, shape: Shape, account: Option<&str>) -> Value {
    let mut container = base(CONTAINER, values, settings);
    container["env"] = env(values, settings, !shape.separate_init, account).into();
    container["ports"] = json!([{ "name": CONTAINER, "containerPort": defaults::ADMIN_PORT }]);
    container["volumeMounts"] = json!([
        { "name": VOLUME, "mountPath": defaults::TOKEN_DIR, "readOnly": true },
        { "name": STATE_VOLUME, "mountPath": defaults::STATE_DIR },
    ]);
    container["securityContext"] = if shape.separate_init {
        json!({
            "runAsUser": settings.uid(),
            "runAsGroup": settings.uid(),
            "runAsNonRoot": true,
            "readOnlyRootFilesystem": true,
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        })
    } else {
        privileged(&["NET_ADMIN", "SETGID", "SETPCAP", "SETUID"])
    };
    // Not a startup probe, which would cost the pod's start a round of the kubelet: the proxy holds connections until it
    // has its certificate. The application must not run before the redirection is set, or its first connections would
    // leave in plain text: this hook returns when it is, and the kubelet starts the next container after it.
    container["lifecycle"] = json!({ "postStart": { "exec": { "command": [defaults::PROXY_PROGRAM, "await"] } } });
    // No certificate: nobody should come. There is no liveness probe: a proxy that can't answer is not healed by a
    // restart that cuts the connections of its workload.
    container["readinessProbe"] = json!({ "httpGet": { "path": "/ready", "port": defaults::ADMIN_PORT } });
    if shape.native {
        container["restartPolicy"] = json!("Always");
    } else {
        let wait = settings.set("wait-before-exit").unwrap_or("5s");
        container["lifecycle"]["preStop"] = json!({ "exec": { "command": [defaults::PROXY_PROGRAM, "wait", wait] } });
    }
    container
}

/// The container that sets the redirection and ends.
pub fn init(values: &Values, settings: &Settings) -> Value {
    let mut container = base(INIT_CONTAINER, values, settings);
    container["args"] = json!(["init"]);
    container["env"] = proxy_env(settings).into_iter().filter(redirects).collect::<Vec<_>>().into();
    container["securityContext"] = privileged(&["NET_ADMIN"]);
    container
}

/// The token that proves the workload's identity. It takes the place of the API server's own token in the proxy's
/// container, which Kubernetes would otherwise mount there: the proxy has no business with the API.
pub fn volume() -> Value {
    let token = json!({
        "audience": TOKEN_AUDIENCE,
        "expirationSeconds": TOKEN_SECONDS,
        "path": "token",
    });
    json!({ "name": VOLUME, "projected": { "sources": [{ "serviceAccountToken": token }] } })
}

/// What the proxy keeps for the next start of its container: the newest roots of trust, since those that are written into
/// the pod may be older. On the node's disk: a node that starts again must not bring back proxies that trust nobody.
/// [`SAFE_TO_EVICT`] lets autoscalers move the pod all the same.
pub fn state_volume() -> Value {
    json!({ "name": STATE_VOLUME, "emptyDir": {} })
}

fn base(name: &str, values: &Values, settings: &Settings) -> Value {
    let image = settings.set("image").unwrap_or(&values.proxy_image);
    let mut container = json!({ "name": name, "image": image });
    if let Some(policy) = settings.set("image-pull-policy") {
        container["imagePullPolicy"] = policy.into();
    }
    for of in ["request", "limit"] {
        for resource in ["cpu", "memory", "ephemeral-storage"] {
            if let Some(amount) = settings.set(&format!("{resource}-{of}")) {
                container["resources"][format!("{of}s")][resource] = amount.into();
            }
        }
    }
    container
}

/// Root, but with these capabilities alone, whatever the pod says.
fn privileged(capabilities: &[&str]) -> Value {
    json!({
        "runAsUser": 0,
        "runAsNonRoot": false,
        "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"], "add": capabilities },
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

fn env(values: &Values, settings: &Settings, redirect: bool, account: Option<&str>) -> Vec<Value> {
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut env = vec![
        field("MESH_POD", "metadata.name"),
        field("MESH_NAMESPACE", "metadata.namespace"),
        account.map_or_else(
            || field("MESH_SERVICE_ACCOUNT", "spec.serviceAccountName"),
            |account| variable("MESH_SERVICE_ACCOUNT", account),
        ),
        field("MESH_NODE", "spec.nodeName"),
        field("MESH_INBOUND_IPS", "status.podIPs"),
        variable("MESH_TRUST_ANCHORS", &values.trust_anchors),
    ];
    if redirect {
        env.push(variable("MESH_REDIRECT", "true"));
    }
    for (name, value, default) in [
        ("MESH_CONTROL_NAMESPACE", &values.control_namespace, defaults::CONTROL_NAMESPACE),
        ("MESH_CLUSTER_DOMAIN", &values.cluster_domain, defaults::CLUSTER_DOMAIN),
        ("MESH_TRUST_DOMAIN", &values.trust_domain, defaults::TRUST_DOMAIN),
        ("MESH_CLUSTER_NETWORKS", &values.cluster_networks, defaults::CLUSTER_NETWORKS),
    ] {
        if value != default {
            env.push(variable(name, value));
        }
    }
    if settings.is("tap", "disabled") {
        env.push(variable("MESH_TAP_LISTEN", ""));
    }
    env.extend(proxy_env(settings));
    env
}

fn proxy_env(settings: &Settings) -> Vec<Value> {
    let workers = settings.workers().map(|workers| variable("MESH_WORKERS", &workers.to_string()));
    settings.env().map(|(name, value)| variable(&name, value)).chain(workers).collect()
}

/// What the separate init container must know.
fn redirects(variable: &Value) -> bool {
    matches!(
        variable["name"].as_str(),
        Some("MESH_UID" | "MESH_SKIP_INBOUND_PORTS" | "MESH_SKIP_OUTBOUND_PORTS" | "MESH_SKIP_SUBNETS")
    )
}

fn variable(name: &str, value: &str) -> Value {
    json!({ "name": name, "value": value })
}

/// True for an annotation that says something about the proxy.
pub fn is_setting(key: &str) -> bool {
    key.strip_prefix(CONFIG_PREFIX).is_some_and(|rest| rest.starts_with('/'))
}

/// The kubelet renews it at 80 % of its life.
const TOKEN_SECONDS: u32 = 86_400;
