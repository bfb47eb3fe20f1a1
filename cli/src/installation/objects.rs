//! The manifests as types, and what is put into them.

use super::authority::Authority;
use super::values::{FailurePolicy, PullPolicy, Values};
use crate::error::{CommandError, Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{
    Affinity, ConfigMap, LocalObjectReference, Namespace, PodAffinityTerm, PodAntiAffinity, ResourceRequirements,
    Secret, Service, ServiceAccount, WeightedPodAffinityTerm,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding, Subject};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Serialize;
use serde_json::Value;

/// In the order in which they are applied.
const MANIFESTS: &[&str] = &[
    include_str!("../../../manifests/control-plane/namespace.yaml"),
    include_str!("../../../manifests/control-plane/rbac.yaml"),
    include_str!("../../../manifests/control-plane/config.yaml"),
    include_str!("../../../manifests/control-plane/identity.yaml"),
    include_str!("../../../manifests/control-plane/destination.yaml"),
    include_str!("../../../manifests/control-plane/injector.yaml"),
    include_str!("../../../manifests/control-plane/webhooks.yaml"),
];
/// The webhook that may refuse an object.
const VALIDATOR: &str = "validator.gossamer.io";
/// Beside them for high availability.
const HIGH_AVAILABILITY: &str = include_str!("../../../manifests/control-plane/ha.yaml");

macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        /// An object of the installation.
        #[derive(Clone, Debug, PartialEq, Serialize)]
        #[serde(untagged)]
        #[allow(missing_docs)]
        pub enum Object { $($kind(Box<$kind>)),* }

        impl Object {
            fn read(kind: &str, value: Value) -> serde_json::Result<Option<Self>> {
                Ok(match kind {
                    $(stringify!($kind) => Some(Object::$kind(serde_json::from_value(value)?)),)*
                    _ => None,
                })
            }

            /// Kind and name.
            pub fn kind(&self) -> &'static str {
                match self { $(Object::$kind(_) => stringify!($kind)),* }
            }

            /// `v1` and so on.
            pub fn api_version(&self) -> &'static str {
                match self { $(Object::$kind(_) => <$kind as k8s_openapi::Resource>::API_VERSION),* }
            }

            /// Name, namespace, labels.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Object::$kind(object) => &object.metadata),* }
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                match self { $(Object::$kind(object) => &mut object.metadata),* }
            }
        }
    };
}

kinds!(
    Namespace,
    ServiceAccount,
    ClusterRole,
    ClusterRoleBinding,
    Role,
    RoleBinding,
    ConfigMap,
    Secret,
    Deployment,
    Service,
    PodDisruptionBudget,
    MutatingWebhookConfiguration,
    ValidatingWebhookConfiguration,
);

impl Object {
    /// As YAML, in the usual order of fields.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(self).context(format_args!("{} as YAML", self.kind()))
    }
}

/// The manifests as they are.
pub fn parse_all(high_availability: bool) -> Result<Vec<Object>> {
    let more = high_availability.then_some(HIGH_AVAILABILITY);
    let texts = MANIFESTS.iter().copied().chain(more);
    texts.flat_map(documents).map(parse).collect()
}

fn documents(text: &'static str) -> impl Iterator<Item = &'static str> {
    text.split("\n---\n").filter(|document| !document.trim().is_empty())
}

fn parse(document: &str) -> Result<Object> {
    let value: Value = serde_saphyr::from_str(document).context("a manifest")?;
    let kind = value["kind"].as_str().unwrap_or_default().to_string();
    let object = Object::read(&kind, value).context(format_args!("the manifest of a {kind}"))?;
    object.ok_or_else(|| CommandError::failed(format!("the manifests have a {kind}, which nobody knows")))
}

/// The manifests with everything put in. `stored` is what the ConfigMap keeps of the values.
pub fn render(values: &Values, stored: &str, authority: &Authority) -> Result<Vec<Object>> {
    let mut objects = parse_all(values.high_availability)?;
    for object in &mut objects {
        set_namespace(object, &values.namespace);
        let labels = object.metadata_mut().labels.get_or_insert_default();
        labels.insert("app.kubernetes.io/version".into(), values.version.clone());
        match object {
            Object::Deployment(deployment) => set_deployment(deployment, values)?,
            Object::ConfigMap(config) => match config.metadata.name.as_deref() {
                Some("gossamer-trust-anchors") => {
                    config.data.get_or_insert_default().insert("ca-bundle.crt".into(), authority.anchors.clone());
                }
                _ => {
                    let data = config.data.get_or_insert_default();
                    data.insert("values".into(), stored.into());
                    data.insert("version".into(), values.version.clone());
                }
            },
            Object::Secret(secret) => {
                if let Some(issuer) = &authority.issuer {
                    secret.string_data = None;
                    let entry = |key: &str, text: &str| (key.to_string(), ByteString(text.into()));
                    let (certificate, key) = (entry("tls.crt", &issuer.certificate), entry("tls.key", &issuer.key));
                    secret.data = Some([certificate, key, entry("ca.crt", &issuer.anchors)].into());
                }
            }
            Object::MutatingWebhookConfiguration(webhooks) => {
                for webhook in webhooks.webhooks.iter_mut().flatten() {
                    webhook.failure_policy = Some(failure_policy(values));
                }
            }
            Object::ValidatingWebhookConfiguration(webhooks) => {
                // The other one only warns.
                for webhook in webhooks.webhooks.iter_mut().flatten().filter(|webhook| webhook.name == VALIDATOR) {
                    webhook.failure_policy = Some(failure_policy(values));
                }
            }
            _ => {}
        }
    }
    if authority.issuer.is_none() {
        objects.retain(|object| !matches!(object, Object::Secret(_)));
    }
    Ok(objects)
}

/// Moves an object to the control plane's namespace, and what it says about that namespace too.
pub fn set_namespace(object: &mut Object, namespace: &str) {
    let default = gossamer_api::defaults::CONTROL_NAMESPACE;
    if object.metadata().namespace.is_some() {
        object.metadata_mut().namespace = Some(namespace.into());
    }
    let subjects = |subjects: &mut Option<Vec<Subject>>| {
        for subject in subjects.iter_mut().flatten() {
            subject.namespace = Some(namespace.into());
        }
    };
    let webhook = |client: &mut WebhookClientConfig, selector: &mut Option<LabelSelector>| {
        if let Some(service) = &mut client.service {
            service.namespace = namespace.into();
        }
        let values = selector.iter_mut().flat_map(|s| s.match_expressions.iter_mut().flatten());
        for value in values.flat_map(|expression| expression.values.iter_mut().flatten()) {
            if value == default {
                *value = namespace.into();
            }
        }
    };
    match object {
        Object::Namespace(object) => object.metadata.name = Some(namespace.into()),
        Object::ClusterRoleBinding(object) => subjects(&mut object.subjects),
        Object::RoleBinding(object) => subjects(&mut object.subjects),
        Object::MutatingWebhookConfiguration(object) => {
            object.webhooks.iter_mut().flatten().for_each(|w| webhook(&mut w.client_config, &mut w.namespace_selector));
        }
        Object::ValidatingWebhookConfiguration(object) => {
            object.webhooks.iter_mut().flatten().for_each(|w| webhook(&mut w.client_config, &mut w.namespace_selector));
        }
        _ => {}
    }
}

fn failure_policy(values: &Values) -> String {
    match values.webhook_failure_policy {
        FailurePolicy::Ignore => "Ignore".into(),
        FailurePolicy::Fail => "Fail".into(),
    }
}

fn set_deployment(deployment: &mut Deployment, values: &Values) -> Result<()> {
    let missing = |what: &str| CommandError::failed(format!("the manifest of a Deployment has no {what}"));
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let spec = deployment.spec.as_mut().ok_or_else(|| missing("spec"))?;
    spec.replicas = Some(values.replicas.into());
    let template = spec.template.metadata.get_or_insert_default();
    template.labels.get_or_insert_default().insert("app.kubernetes.io/version".into(), values.version.clone());
    let pod = spec.template.spec.as_mut().ok_or_else(|| missing("pod"))?;
    pod.node_selector.get_or_insert_default().extend(values.node_selector.clone());
    pod.priority_class_name = Some(values.priority_class_name.clone()).filter(|name| !name.is_empty());
    let secrets = values.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() });
    pod.image_pull_secrets = Some(secrets.collect()).filter(|secrets: &Vec<_>| !secrets.is_empty());
    if values.high_availability {
        pod.affinity = Some(spread(spec.selector.clone()));
    }
    let container = pod.containers.first_mut().ok_or_else(|| missing("container"))?;
    container.image = Some(values.control());
    container.image_pull_policy = Some(match values.image_pull_policy {
        PullPolicy::IfNotPresent => "IfNotPresent".into(),
        PullPolicy::Always => "Always".into(),
        PullPolicy::Never => "Never".into(),
    });
    container.resources = Some(resources(values));
    let arguments = container.args.get_or_insert_default();
    arguments.extend(flags(&name, values).into_iter().map(|(flag, value)| format!("--{flag}={value}")));
    Ok(())
}

/// What each part is told beyond its manifest: only what differs from its own defaults.
fn flags(name: &str, values: &Values) -> Vec<(&'static str, String)> {
    let defaults = Values::default();
    let mut flags = vec![];
    let mut set = |flag, value: &str, default: &str| {
        if value != default {
            flags.push((flag, value.to_string()));
        }
    };
    set("log-level", &values.log_level, "");
    set("log-format", &values.log_format, &defaults.log_format);
    set("control-namespace", &values.namespace, gossamer_api::defaults::CONTROL_NAMESPACE);
    set("trust-domain", &values.trust_domain, &defaults.trust_domain);
    if name != "gossamer-identity" {
        set("cluster-domain", &values.cluster_domain, &defaults.cluster_domain);
        set("cluster-networks", &values.cluster_networks, &defaults.cluster_networks);
    }
    // What the control plane tells of a pod that says nothing, and what its proxy was told, are the same.
    let mut proxy = values.proxy.clone();
    if values.inbound_policy() != defaults.default_inbound_policy {
        proxy.insert("default-inbound-policy".into(), values.inbound_policy().into());
    }
    if name == "gossamer-destination" {
        for setting in ["default-inbound-policy", "opaque-ports", "require-identity-inbound-ports"] {
            flags.extend(proxy.get(setting).map(|value| (setting, value.clone())));
        }
    }
    if name == "gossamer-injector" {
        flags.push(("proxy-image", values.proxy()));
        flags.extend(proxy.iter().map(|(setting, value)| ("default", format!("{setting}={value}"))));
    }
    flags
}

fn resources(values: &Values) -> ResourceRequirements {
    let list = |entries: &[(&str, &String)]| {
        let given = entries.iter().filter(|(_, amount)| !amount.is_empty());
        let list: std::collections::BTreeMap<String, Quantity> =
            given.map(|(what, amount)| (what.to_string(), Quantity((*amount).clone()))).collect();
        Some(list).filter(|list| !list.is_empty())
    };
    ResourceRequirements {
        requests: list(&[("cpu", &values.cpu_request), ("memory", &values.memory_request)]),
        limits: list(&[("memory", &values.memory_limit)]),
        claims: None,
    }
}

/// On different nodes, and better still in different zones; rather together than not at all.
fn spread(selector: LabelSelector) -> Affinity {
    let term = |weight, topology: &str| WeightedPodAffinityTerm {
        weight,
        pod_affinity_term: PodAffinityTerm {
            label_selector: Some(selector.clone()),
            topology_key: topology.into(),
            ..PodAffinityTerm::default()
        },
    };
    let terms = vec![term(100, "kubernetes.io/hostname"), term(50, "topology.kubernetes.io/zone")];
    let anti = PodAntiAffinity {
        preferred_during_scheduling_ignored_during_execution: Some(terms),
        required_during_scheduling_ignored_during_execution: None,
    };
    Affinity { pod_anti_affinity: Some(anti), ..Affinity::default() }
}

#[cfg(test)]
mod tests {
    use super::super::values::Overrides;
    use super::super::{PART_OF, authority};
    use super::*;
    use std::time::SystemTime;

    fn rendered(assignments: &[&str]) -> Vec<Object> {
        rendered_in("gossamer", assignments)
    }

    fn rendered_in(namespace: &str, assignments: &[&str]) -> Vec<Object> {
        let mut overrides = Overrides::default();
        assignments.iter().for_each(|assignment| overrides.set(assignment).unwrap());
        let values = overrides.values(namespace).unwrap();
        let none = (authority::Files::default(), authority::Kept::default());
        let authority = authority::decide(&none.0, none.1, false, &values.trust_domain, SystemTime::now()).unwrap();
        render(&values, &overrides.to_yaml().unwrap(), &authority).unwrap()
    }

    fn deployments(objects: &[Object]) -> Vec<&Deployment> {
        objects.iter().filter_map(|o| if let Object::Deployment(d) = o { Some(&**d) } else { None }).collect()
    }

    /// A misspelt field would be lost in silence.
    #[test]
    fn the_types_keep_every_field_of_the_manifests() {
        for document in MANIFESTS.iter().copied().chain([HIGH_AVAILABILITY]).flat_map(documents) {
            let written: Value = serde_saphyr::from_str(document).unwrap();
            let typed = serde_json::to_value(parse(document).unwrap()).unwrap();
            assert_eq!(typed, written);
        }
    }

    #[test]
    fn what_is_printed_reads_back_the_same() {
        for object in rendered_in("mesh", &["logLevel=debug"]) {
            let text = object.to_yaml().unwrap();
            assert_eq!(parse(&text).unwrap(), object, "{text}");
        }
    }

    #[test]
    fn everything_has_the_label_that_uninstall_looks_for() {
        for object in rendered(&["highAvailability=true"]) {
            let labels = object.metadata().labels.clone().unwrap_or_default();
            assert_eq!(labels.get(PART_OF.0).map(String::as_str), Some(PART_OF.1), "{}", object.kind());
        }
        for crd in super::super::CRDS.iter().chain(super::super::GATEWAY_CRDS.iter().map(|(_, text)| text)) {
            assert!(crd.contains("app.kubernetes.io/part-of: gossamer"));
        }
    }

    #[test]
    fn another_namespace_is_everywhere() {
        for object in rendered_in("mesh", &[]) {
            let mut value = serde_json::to_value(&object).unwrap();
            // Labels and names of objects say gossamer, places say mesh.
            value["metadata"]["labels"].take();
            let text = value.to_string();
            assert!(!text.contains(r#""namespace":"gossamer""#) && !text.contains(r#"manager","gossamer""#), "{text}");
        }
    }

    #[test]
    fn high_availability_is_three_that_stay_apart() {
        let objects = rendered(&["highAvailability=true"]);
        for deployment in deployments(&objects) {
            let spec = deployment.spec.as_ref().unwrap();
            assert_eq!(spec.replicas, Some(3));
            assert!(spec.template.spec.as_ref().unwrap().affinity.is_some());
        }
        assert_eq!(objects.iter().filter(|o| matches!(o, Object::PodDisruptionBudget(_))).count(), 3);
        let Some(Object::MutatingWebhookConfiguration(webhooks)) =
            objects.iter().find(|o| matches!(o, Object::MutatingWebhookConfiguration(_)))
        else {
            panic!("no webhook");
        };
        assert_eq!(webhooks.webhooks.as_ref().unwrap()[0].failure_policy.as_deref(), Some("Fail"));
    }

    fn arguments(objects: &[Object], of: &str) -> Vec<String> {
        let deployments = deployments(objects);
        let one = deployments.iter().find(|deployment| deployment.metadata.name.as_deref() == Some(of)).unwrap();
        one.spec.as_ref().unwrap().template.spec.as_ref().unwrap().containers[0].args.clone().unwrap()
    }

    #[test]
    fn the_control_plane_is_told_what_proxies_are_told() {
        let objects = rendered(&[
            "proxy.opaque-ports=25,9999",
            "proxy.require-identity-inbound-ports=8080",
            "proxy.skip-inbound-ports=9090",
            "defaultInboundPolicy=deny",
        ]);
        let (destination, injector) =
            (arguments(&objects, "gossamer-destination"), arguments(&objects, "gossamer-injector"));
        for argument in
            ["--opaque-ports=25,9999", "--require-identity-inbound-ports=8080", "--default-inbound-policy=deny"]
        {
            assert!(destination.iter().any(|one| one == argument), "{argument}: {destination:?}");
            let of_proxy = argument.replacen("--", "--default=", 1);
            assert!(injector.contains(&of_proxy), "{of_proxy}: {injector:?}");
        }
        // Each pod's redirection says itself which ports it leaves out.
        assert!(injector.iter().any(|one| one == "--default=skip-inbound-ports=9090"), "{injector:?}");
        let by_annotation = rendered(&["proxy.default-inbound-policy=audit"]);
        let destination = arguments(&by_annotation, "gossamer-destination");
        assert!(destination.iter().any(|one| one == "--default-inbound-policy=audit"), "{destination:?}");
    }

    #[test]
    fn nothing_waits_for_a_webhook_that_only_warns() {
        for object in rendered(&["highAvailability=true"]) {
            let Object::ValidatingWebhookConfiguration(webhooks) = object else { continue };
            let policies: Vec<_> = webhooks
                .webhooks
                .iter()
                .flatten()
                .map(|one| (one.name.as_str(), one.failure_policy.as_deref()))
                .collect();
            assert_eq!(policies, [(VALIDATOR, Some("Fail")), ("warnings.gossamer.io", Some("Ignore"))]);
        }
    }

    #[test]
    fn a_control_plane_pod_has_no_privilege() {
        for deployment in deployments(&rendered(&[])) {
            let pod = deployment.spec.as_ref().unwrap().template.spec.as_ref().unwrap();
            let security = pod.security_context.as_ref().unwrap();
            assert_eq!((security.run_as_non_root, security.run_as_user), (Some(true), Some(65532)));
            let security = pod.containers[0].security_context.as_ref().unwrap();
            assert_eq!(security.read_only_root_filesystem, Some(true));
            assert_eq!(security.capabilities.as_ref().unwrap().drop.as_deref(), Some(&["ALL".to_string()][..]));
            assert_eq!(pod.containers.len(), 1);
        }
    }

    #[test]
    fn an_external_issuer_is_not_printed() {
        let values = Values { external_issuer: true, ..Values::default() };
        let authority = Authority { anchors: "x".into(), issuer: None };
        let objects = render(&values, "{}", &authority).unwrap();
        assert!(!objects.iter().any(|object| matches!(object, Object::Secret(_))));
    }
}
