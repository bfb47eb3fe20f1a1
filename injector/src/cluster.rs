//! What the injector knows of the cluster: annotations of namespaces, the trust anchors; and the one thing that it
//! writes there, who vouches for its certificate.

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt};
use gossamer_api::kubernetes::Map;
use gossamer_api::process::tls::Anchors;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// The ConfigMap with the roots of trust.
pub const ANCHORS: &str = "gossamer-trust-anchors";
const BUNDLE: &str = "ca-bundle.crt";

/// Annotations of namespaces, as a watch brings them. Cheap to clone.
#[derive(Clone, Default)]
pub struct Namespaces {
    known: Arc<RwLock<HashMap<String, Arc<Map>>>>,
    client: Option<Client>,
}

impl Namespaces {
    /// None are known yet; one that is not is asked for.
    pub fn new(client: Client) -> Self {
        Namespaces { client: Some(client), ..Self::default() }
    }

    /// These, and no others (tests).
    pub fn fixed(known: impl IntoIterator<Item = (String, Map)>) -> Self {
        let known = known.into_iter().map(|(name, annotations)| (name, Arc::new(annotations))).collect();
        Namespaces { known: Arc::new(RwLock::new(known)), client: None }
    }

    /// Annotations of a namespace. Fails where the API server does not know it.
    pub async fn annotations(&self, name: &str) -> Result<Arc<Map>, String> {
        if let Some(known) = self.known.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return Ok(known.clone());
        }
        let Some(client) = &self.client else { return Err(format!("there is no namespace {name:?}")) };
        let found = Api::<Namespace>::all(client.clone()).get_metadata(name).await;
        let found = found.map_err(|error| format!("namespace {name:?} can't be read: {error}"))?;
        Ok(Arc::new(found.metadata.annotations.unwrap_or_default()))
    }

    /// Follows the cluster's namespaces; `synced` turns true when all are known. Ends never.
    pub async fn follow(self, client: Client, synced: watch::Sender<bool>) {
        let namespaces = Api::<Namespace>::all(client);
        let mut events = pin!(watcher::metadata_watcher(namespaces, watcher::Config::default()).default_backoff());
        let mut listed = HashMap::new();
        while let Some(event) = events.next().await {
            let known = || self.known.write().unwrap_or_else(PoisonError::into_inner);
            let entry = |of: kube::core::PartialObjectMeta<Namespace>| {
                Some((of.metadata.name?, Arc::new(of.metadata.annotations.unwrap_or_default())))
            };
            match event {
                Ok(watcher::Event::Init) => listed = HashMap::new(),
                Ok(watcher::Event::InitApply(one)) => listed.extend(entry(one)),
                Ok(watcher::Event::InitDone) => {
                    *known() = std::mem::take(&mut listed);
                    synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(one)) => known().extend(entry(one)),
                Ok(watcher::Event::Delete(one)) => {
                    known().remove(&one.metadata.name.unwrap_or_default());
                }
                Err(error) => tracing::warn!(%error, "the watch of namespaces broke; it is begun anew"),
            }
        }
    }
}

/// The roots of trust, each time that they change. One that can't be read is told, and the last good one stays.
pub fn anchors(client: Client, namespace: &str) -> impl Stream<Item = Anchors> + use<> {
    let only = watcher::Config::default().fields(&format!("metadata.name={ANCHORS}"));
    let events = watcher(Api::<ConfigMap>::namespaced(client, namespace), only).default_backoff().applied_objects();
    events.filter_map(|event| async {
        let read = event.map_err(anyhow::Error::from).and_then(|map| {
            let bundle = map.data.and_then(|mut data| data.remove(BUNDLE));
            Ok(Anchors::from_pem(&bundle.with_context(|| format!("{BUNDLE} is missing"))?)?)
        });
        read.inspect_err(|error| tracing::warn!("ConfigMap {ANCHORS}: {error:#}")).ok()
    })
}

/// Keeps `authorities` (PEM) in both webhook configurations, whoever changes or makes these. Ends never.
pub async fn keep_believed(client: Client, mut authorities: watch::Receiver<String>) {
    let only = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
    let watch = |(kind, name): (&str, &str)| {
        watcher(configurations(&client, kind), only(name)).default_backoff().applied_objects().boxed()
    };
    let mut mutating = watch(CONFIGURATIONS[0]);
    let mut validating = watch(CONFIGURATIONS[1]);
    loop {
        tokio::select! {
            _ = mutating.next() => {}
            _ = validating.next() => {}
            changed = authorities.changed() => if changed.is_err() { return },
        }
        let bundle = authorities.borrow_and_update().clone();
        if let Err(error) = believe(&client, &bundle).await {
            tracing::warn!("{error:#}");
        }
    }
}

/// Writes `authorities` into both webhook configurations, where they are not there yet. A missing configuration is fine.
pub async fn believe(client: &Client, authorities: &str) -> Result<()> {
    for (kind, name) in CONFIGURATIONS {
        let api = configurations(client, kind);
        let read = api.get_opt(name).await.with_context(|| format!("read {kind} {name}"))?;
        let Some(configuration) = read else { continue };
        let Some(patch) = belief(&configuration.data, authorities) else { continue };
        let patch: json_patch::Patch = serde_json::from_value(patch)?;
        let patched = api.patch(name, &PatchParams::default(), &Patch::Json::<()>(patch)).await;
        patched.with_context(|| format!("write caBundle into {kind} {name}"))?;
        tracing::info!(kind, name, "the API server now believes our certificate");
    }
    Ok(())
}

/// What must change in a configuration so that the bundle is in all of its webhooks; `None`: nothing.
fn belief(configuration: &Value, authorities: &str) -> Option<Value> {
    let bundle = json!(ByteString(authorities.as_bytes().to_vec()));
    let webhooks = configuration["webhooks"].as_array()?;
    let operations = webhooks.iter().enumerate().filter(|(_, one)| one["clientConfig"]["caBundle"] != bundle);
    let operations: Vec<Value> = operations
        .flat_map(|(at, one)| {
            // Fails where somebody has just put another webhook there.
            let test = json!({ "op": "test", "path": format!("/webhooks/{at}/name"), "value": one["name"] });
            [test, json!({ "op": "add", "path": format!("/webhooks/{at}/clientConfig/caBundle"), "value": bundle })]
        })
        .collect();
    (!operations.is_empty()).then_some(operations.into())
}

fn configurations(client: &Client, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind));
    Api::all_with(client.clone(), &resource)
}

const CONFIGURATIONS: [(&str, &str); 2] =
    [("MutatingWebhookConfiguration", "gossamer-injector"), ("ValidatingWebhookConfiguration", "gossamer-validator")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lacks_the_bundle_is_patched() {
        let configuration = json!({ "webhooks": [
            { "name": "a", "clientConfig": { "caBundle": "eA==" } },
            { "name": "b", "clientConfig": {} },
            { "name": "c", "clientConfig": { "caBundle": "eQ==" } },
        ] });
        let patch = belief(&configuration, "x").unwrap();
        let paths: Vec<_> = patch.as_array().unwrap().iter().map(|one| one["path"].as_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/webhooks/1/name",
                "/webhooks/1/clientConfig/caBundle",
                "/webhooks/2/name",
                "/webhooks/2/clientConfig/caBundle"
            ]
        );
        let mut patched = configuration;
        json_patch::patch(&mut patched, &serde_json::from_value::<json_patch::Patch>(patch).unwrap()).unwrap();
        assert_eq!(belief(&patched, "x"), None);
    }

    #[tokio::test]
    async fn an_unknown_namespace_is_an_error() {
        let namespaces = Namespaces::fixed([("demo".into(), Map::new())]);
        assert!(namespaces.annotations("demo").await.is_ok());
        assert!(namespaces.annotations("other").await.is_err());
    }
}
