//! What a cluster has of an installation already. Reads only.

use super::authority::{IssuerPem, Kept};
use super::values::Overrides;
use super::{GATEWAY_CRDS, PART_OF};
use crate::cluster::Cluster;
use crate::cluster::explain::{self, Doing};
use crate::error::{Context, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use std::collections::{BTreeMap, BTreeSet};

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// Gateway API's definitions that others installed, which are theirs to keep up to date.
    pub foreign_crds: BTreeSet<String>,
    /// Trust anchors and issuer.
    pub kept: Kept,
    /// The values of the last installation, and the version that it had.
    pub stored: Option<(Overrides, String)>,
}

impl Present {
    /// Looks.
    pub async fn read(cluster: &Cluster) -> Result<Self> {
        let namespace = cluster.control_namespace.as_str();
        let (crds, anchors, issuer, config) = tokio::join!(
            foreign_crds(cluster),
            cluster.get::<ConfigMap>(namespace, "gossamer-trust-anchors"),
            cluster.get::<Secret>(namespace, "gossamer-identity-issuer"),
            cluster.get::<ConfigMap>(namespace, "gossamer-config"),
        );
        let anchors = anchors?.and_then(|map| map.data?.remove("ca-bundle.crt")).filter(|pem| !pem.trim().is_empty());
        let mut stored = None;
        if let Some(mut data) = config?.and_then(|map| map.data) {
            let values = data.remove("values").unwrap_or_default();
            let values = Overrides::parse(&values, "the ConfigMap gossamer-config")?;
            stored = Some((values, data.remove("version").unwrap_or_default()));
        }
        let issuer = issuer?;
        let issuer_is_anothers = issuer.as_ref().is_some_and(is_anothers);
        let issuer = issuer.filter(|_| !issuer_is_anothers).and_then(issuer_of);
        Ok(Present { foreign_crds: crds?, kept: Kept { anchors, issuer, issuer_is_anothers }, stored })
    }
}

async fn foreign_crds(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut foreign = BTreeSet::new();
    for (name, _) in GATEWAY_CRDS {
        let doing = Doing { verb: "get", what: "customresourcedefinitions", namespace: None };
        let found = api.get_metadata_opt(name).await.map_err(|error| explain::refused(cluster, &error, doing))?;
        let ours = |labels: &BTreeMap<String, String>| labels.get(PART_OF.0).is_some_and(|value| value == PART_OF.1);
        if found.is_some_and(|crd| !crd.metadata.labels.as_ref().is_some_and(ours)) {
            foreign.insert(name.to_string());
        }
    }
    Ok(foreign)
}

/// Somebody else's controller writes it: printing it would take a rotation back.
pub(crate) fn is_anothers(secret: &Secret) -> bool {
    let marks = [&secret.metadata.annotations, &secret.metadata.labels];
    let marked =
        marks.iter().any(|map| map.iter().flat_map(|map| map.keys()).any(|key| key.contains("cert-manager.io/")));
    marked || secret.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty())
}

fn issuer_of(secret: Secret) -> Option<IssuerPem> {
    let data = secret.data?;
    let text = |key: &str| data.get(key).and_then(|ByteString(bytes)| String::from_utf8(bytes.clone()).ok());
    let (certificate, key) = (text("tls.crt")?, text("tls.key")?);
    let empty = certificate.trim().is_empty() || key.trim().is_empty();
    (!empty).then(|| IssuerPem { certificate, key, anchors: text("ca.crt").unwrap_or_default() })
}

/// The version of Gateway API's definitions that others installed, for people.
pub async fn gateway_version(cluster: &Cluster) -> Result<Option<String>> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let found = api.get_metadata_opt(GATEWAY_CRDS[0].0).await.context("Gateway API's definitions")?;
    let annotations = found.and_then(|crd| crd.metadata.annotations).unwrap_or_default();
    Ok(annotations.get("gateway.networking.k8s.io/bundle-version").cloned())
}
