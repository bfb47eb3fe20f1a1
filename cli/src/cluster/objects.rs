//! A cluster's objects as the mesh reads them, in an index of the destination service's own: what it would answer, worked
//! out here from what this user may list.

use super::Cluster;
use crate::error::{Context, Result};
use crate::output::paint_err;
use gossamer_api::kubernetes::{AuthorizationPolicy, Kind, Metadata, Namespace, Object, POLICY_GROUP, Pod, Service};
use gossamer_destination::index::{self, Index};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use serde::de::DeserializeOwned;

impl Cluster {
    /// Objects of a kind that the mesh reads; all fields that it does not read are dropped.
    async fn read<T: DeserializeOwned>(&self, kind: Kind, namespace: Option<&str>) -> Result<Vec<T>> {
        let (group, name) = kind.group_kind();
        let (group, version) = match group {
            "core" => ("", "v1"),
            POLICY_GROUP => (POLICY_GROUP, "v1alpha1"),
            other => (other, "v1"),
        };
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, name));
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        let objects = self.pages(api, &resource.plural, namespace, "").await?;
        let one = |object: DynamicObject| {
            let value = serde_json::to_value(object).context("an object of the API server")?;
            serde_json::from_value(value).context(format!("an object of kind {name}"))
        };
        objects.into_iter().map(one).collect()
    }

    /// Everything that decides who may reach workloads of a namespace. Clients in other namespaces are known as far as
    /// this user may list pods there.
    pub async fn index(&self, namespace: &str) -> Result<(Index, Vec<Pod>)> {
        let mut index = Index::new(self.settings().await);
        let policies = self.read(Kind::AuthorizationPolicy, Some(namespace)).await.map_err(|error| {
            let unknown = error.message.contains("knows no");
            if unknown { error.hint("`meshctl install` brings the definition of AuthorizationPolicy") } else { error }
        })?;
        let services = self.read(Kind::Service, Some(namespace)).await?;
        let pods: Vec<Pod> = match self.read(Kind::Pod, None).await {
            Ok(pods) => pods,
            Err(_) => {
                let warning = paint_err("warning:", "1;33");
                eprintln!("{warning} you may list pods of {namespace:?} only; clients elsewhere are not known here");
                self.read(Kind::Pod, Some(namespace)).await?
            }
        };
        // Only its annotations are missed where one may not read it.
        let api: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        if let Ok(Some(found)) = api.get_metadata_opt(namespace).await {
            let annotations = found.metadata.annotations.unwrap_or_default();
            let metadata = Metadata { name: namespace.into(), annotations, ..Metadata::default() };
            index.apply(Object::Namespace(Namespace { metadata }));
        }
        let policies = policies.into_iter().map(|policy: AuthorizationPolicy| Object::AuthorizationPolicy(policy));
        let services = services.into_iter().map(|service: Service| Object::Service(service));
        for object in policies.chain(services).chain(pods.iter().cloned().map(Object::Pod)) {
            index.apply(object);
        }
        Ok((index, pods))
    }

    /// What the destination service was told at its start, from its Deployment; the defaults where one may not see it.
    async fn settings(&self) -> index::Cluster {
        let deployment = self.get::<Deployment>(&self.control_namespace, "gossamer-destination").await;
        let spec = deployment.ok().flatten().and_then(|deployment| deployment.spec?.template.spec);
        let containers = spec.into_iter().flat_map(|spec| spec.containers);
        let arguments: Vec<String> = containers.flat_map(|container| container.args.unwrap_or_default()).collect();
        settings(&arguments, &self.control_namespace)
    }
}

/// Reads `--name=value` arguments of the destination service.
fn settings(arguments: &[String], control_namespace: &str) -> index::Cluster {
    let value = |name: &str| {
        let prefix = format!("--{name}=");
        arguments.iter().find_map(|argument| argument.strip_prefix(&prefix))
    };
    let mut cluster = index::Cluster { control_namespace: control_namespace.into(), ..index::Cluster::default() };
    if let Some(domain) = value("trust-domain") {
        cluster.trust_domain = domain.into();
    }
    if let Some(domain) = value("cluster-domain") {
        cluster.domain = domain.into();
    }
    if let Some(policy) = value("default-inbound-policy").and_then(|policy| policy.parse().ok()) {
        cluster.inbound_policy = policy;
    }
    if let Some(ports) = value("opaque-ports").and_then(|ports| ports.parse().ok()) {
        cluster.opaque_ports = ports;
    }
    if let Some(ports) = value("require-identity-inbound-ports").and_then(|ports| ports.parse().ok()) {
        cluster.require_identity = ports;
    }
    if let Some(networks) = value("cluster-networks") {
        cluster.networks = networks.split(',').filter_map(|network| network.parse().ok()).collect();
    }
    cluster
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_destination::index::DefaultPolicy;

    #[test]
    fn settings_are_those_of_the_running_service() {
        let arguments = ["destination", "--kubernetes", "--default-inbound-policy=deny", "--trust-domain=example.org"];
        let cluster = settings(&arguments.map(String::from), "mesh");
        assert_eq!(cluster.inbound_policy, DefaultPolicy::Deny);
        assert_eq!((cluster.trust_domain.as_str(), cluster.control_namespace.as_str()), ("example.org", "mesh"));
        assert_eq!(settings(&[], "gossamer"), index::Cluster::default());
    }
}
