//! What a rotation of the roots goes by: trust anchors and issuer of the cluster, and who among the running proxies has
//! taken them over. [`crate::commands::rotate_root`] is the story.
//!
//! **Invariant:** each write replaces exactly what was read, or fails; so two that rotate at once can't undo each other.

use crate::cluster::explain::{self, Doing};
use crate::cluster::{Cluster, MESHED_LABEL};
use crate::error::{CommandError, Context, Result};
use crate::{fan, scrape};
use gossamer_api::process::tls::{self, Anchors};
use gossamer_api::{defaults, keys};
use gossamer_identity::issuer::{Authority, Issuer};
use gossamer_identity::kubernetes::source::{ANCHORS_CONFIG_MAP, ANCHORS_KEY, ISSUER_SECRET};
use gossamer_injector::container::{CONTAINER, STATE_VOLUME};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Api, DeleteParams, PostParams};
use rustls::pki_types::CertificateDer;
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The issuer that will be in force once every proxy trusts its root. Its root's private key is nowhere any more.
pub const NEXT_SECRET: &str = "gossamer-identity-issuer-next";
/// The parts of the control plane that have certificates of the mesh, and where they tell their figures.
const PARTS: [(&str, u16); 2] = [("identity", 9990), ("destination", 9996)];

/// What the cluster has now.
pub struct State {
    map: ConfigMap,
    secret: Secret,
    next: Option<Secret>,
    /// Every root that is trusted.
    pub anchors: Anchors,
    /// Who signs.
    pub issuer: Issuer,
    /// Who will, if a rotation has begun: its root, and the fingerprint of its certificate.
    pub pending: Option<(CertificateDer<'static>, String)>,
}

/// Who has to have taken a change over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Trusts the root of that fingerprint.
    Trusts(String),
    /// Has a certificate of the issuer of that fingerprint.
    SignedBy(String),
    /// Trusts these roots and no other.
    TrustsOnly(Vec<String>),
}

impl State {
    /// Reads it.
    pub async fn read(cluster: &Cluster) -> Result<Self> {
        let namespace = cluster.control_namespace.as_str();
        let (map, secret, next) = tokio::join!(
            cluster.get::<ConfigMap>(namespace, ANCHORS_CONFIG_MAP),
            cluster.get::<Secret>(namespace, ISSUER_SECRET),
            cluster.get::<Secret>(namespace, NEXT_SECRET),
        );
        let missing = |what: &str| {
            CommandError::failed(format!("there is no {what} in namespace {namespace:?}"))
                .hint("`meshctl check` says what is wrong; `meshctl install | kubectl apply -f -` installs the mesh")
        };
        let map = map?.ok_or_else(|| missing(ANCHORS_CONFIG_MAP))?;
        let secret = secret?.ok_or_else(|| missing(ISSUER_SECRET))?;
        let next = next?;
        let pem = map.data.as_ref().and_then(|data| data.get(ANCHORS_KEY)).map(String::as_str).unwrap_or_default();
        let anchors = Anchors::from_pem(pem).context(ANCHORS_CONFIG_MAP)?;
        let issuer = issuer(&secret, anchors.clone())?;
        let pending = next.as_ref().map(pending).transpose()?;
        Ok(State { map, secret, next, anchors, issuer, pending })
    }

    /// True when the root is trusted.
    pub fn trusts(&self, root: &CertificateDer<'_>) -> bool {
        self.anchors.certificates().iter().any(|anchor| anchor == root)
    }

    /// Roots that the present issuer doesn't lead to.
    pub fn old_roots(&self) -> Vec<CertificateDer<'static>> {
        let needed = self.issuer.roots(SystemTime::now());
        self.anchors.certificates().iter().filter(|anchor| !needed.contains(anchor)).cloned().collect()
    }

    /// True when somebody else's controller (cert-manager) writes the issuer.
    pub fn issuer_is_anothers(&self) -> bool {
        let meta = &self.secret.metadata;
        let marks = meta.annotations.iter().chain(&meta.labels).flat_map(BTreeMap::keys);
        let owned = meta.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
        owned || marks.into_iter().any(|key| key.contains("cert-manager.io/"))
    }

    /// Keeps the next issuer, with its root's certificate.
    pub async fn keep_next(&self, cluster: &Cluster, root: &str, next: &Authority) -> Result<()> {
        let mut secret = Secret { type_: Some("kubernetes.io/tls".into()), ..Secret::default() };
        secret.metadata.name = Some(NEXT_SECRET.into());
        secret.metadata.labels =
            Some(BTreeMap::from([("app.kubernetes.io/part-of".to_string(), "gossamer".to_string())]));
        secret.data = Some(BTreeMap::from([
            ("tls.crt".to_string(), ByteString(next.certificate.clone().into_bytes())),
            ("tls.key".to_string(), ByteString(next.key.clone().into_bytes())),
            ("ca.crt".to_string(), ByteString(root.as_bytes().to_vec())),
        ]));
        let created = secrets(cluster).create(&PostParams::default(), &secret).await;
        created.map(|_| ()).map_err(|error| refused(cluster, &error, "create", "secrets"))
    }

    /// Trusts these roots from now on.
    pub async fn write_anchors(&self, cluster: &Cluster, roots: Vec<CertificateDer<'static>>) -> Result<()> {
        let anchors = Anchors::from_der(roots).context("trust anchors")?;
        let mut map = self.map.clone();
        map.data.get_or_insert_default().insert(ANCHORS_KEY.into(), anchors.pem().to_owned());
        let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.control_namespace);
        let written = api.replace(ANCHORS_CONFIG_MAP, &PostParams::default(), &map).await;
        written.map(|_| ()).map_err(|error| refused(cluster, &error, "update", "configmaps"))
    }

    /// Puts the next issuer into force.
    pub async fn write_issuer(&self, cluster: &Cluster) -> Result<()> {
        let next = self.next.as_ref().ok_or_else(|| CommandError::failed("there is no next issuer"))?;
        let mut secret = self.secret.clone();
        secret.data = next.data.clone();
        let written = secrets(cluster).replace(ISSUER_SECRET, &PostParams::default(), &secret).await;
        written.map(|_| ()).map_err(|error| refused(cluster, &error, "update", "secrets"))
    }

    /// The rotation is done.
    pub async fn forget_next(&self, cluster: &Cluster) -> Result<()> {
        if self.next.is_none() {
            return Ok(());
        }
        let deleted = secrets(cluster).delete(NEXT_SECRET, &DeleteParams::default()).await;
        deleted.map(|_| ()).map_err(|error| refused(cluster, &error, "delete", "secrets"))
    }
}

/// Those that have not taken the change over yet: `namespace/pod` and why. The second number is of all that were asked.
pub async fn laggards(cluster: &Cluster, wanted: &Wanted) -> Result<(Vec<(String, String)>, usize)> {
    let (mut pods, plane) = (
        cluster.pods(None, MESHED_LABEL).await?,
        cluster.pods(Some(&cluster.control_namespace), keys::CONTROL_PLANE_COMPONENT).await?,
    );
    pods.extend(plane.into_iter().filter(|pod| part(pod).is_some()));
    let waiting: Vec<Pod> = pods.extract_if(.., |pod| !runs(pod)).collect();
    let answers = fan::out("proxies", &pods, |_, pod| {
        let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        let (component, port) = part(pod).unwrap_or(("proxy", defaults::ADMIN_PORT));
        async move {
            let stream = cluster.forward(&namespace, &name, port).await?;
            let samples = scrape::parse(&scrape::fetch(stream, "/metrics").await?);
            let named = |metric: &str| -> Vec<String> {
                let of = samples.iter().filter(|sample| sample.name == metric && sample.value > 0.0);
                of.map(|sample| sample.label("fingerprint").to_owned()).collect()
            };
            Ok::<_, String>(match component {
                "identity" => (named("identity_trust_anchor_info"), named("identity_issuer_info")),
                _ => (named("control_identity_trust_anchor_info"), named("control_identity_cert_issuer_info")),
            })
        }
    })
    .await;
    let mut late = Vec::new();
    if let Wanted::Trusts(root) = wanted {
        // They start with the roots that they were made with, and would not believe an identity service under the new one.
        let reason = "has not started, and was made before the new root; if it goes on waiting, delete it: what takes its \
                      place will know both";
        let stale = waiting.iter().filter(|pod| has_not_started(pod) && lacks_root(pod, root));
        late.extend(stale.map(|pod| (full_name(pod), reason.to_owned())));
    }
    // Who waits is counted only when it is late.
    let all = pods.len() + late.len();
    for (pod, answer) in pods.iter().zip(answers) {
        let reason = match answer {
            Ok((anchors, issuer)) => lacks(wanted, &anchors, &issuer),
            Err(error) => Some(error),
        };
        if let Some(reason) = reason {
            late.push((full_name(pod), reason));
        }
    }
    Ok((late, all))
}

/// What one lacks that trusts `anchors` and whose certificate `issuer` signed.
fn lacks(wanted: &Wanted, anchors: &[String], issuer: &[String]) -> Option<String> {
    if anchors.is_empty() {
        return Some("does not tell which roots it trusts: it has no certificate, or is of an older version".into());
    }
    match wanted {
        Wanted::Trusts(root) if !anchors.contains(root) => Some("does not trust the new root yet".into()),
        Wanted::SignedBy(by) if !issuer.contains(by) => Some("still has a certificate of another issuer".into()),
        Wanted::TrustsOnly(roots) if anchors.iter().any(|anchor| !roots.contains(anchor)) => {
            Some("still trusts a root that was dropped".into())
        }
        _ => None,
    }
}

/// Pods whose proxy, should its container be started again, begins with the roots that it was injected with, and not with
/// the one of that fingerprint. Those that keep the newest roots in a volume of theirs are not among them.
pub async fn injected_without(cluster: &Cluster, root: &str) -> Result<Vec<String>> {
    let pods = cluster.pods(None, MESHED_LABEL).await?;
    let keeps = |pod: &Pod| {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        volumes.into_iter().any(|volume| volume.name == STATE_VOLUME)
    };
    Ok(pods.iter().filter(|pod| runs(pod) && !keeps(pod) && lacks_root(pod, root)).map(full_name).collect())
}

/// True when the roots that a pod was injected with lack the one of that fingerprint.
fn lacks_root(pod: &Pod, root: &str) -> bool {
    injected_with(pod)
        .is_some_and(|anchors| !anchors.certificates().iter().any(|anchor| tls::fingerprint(anchor) == root))
}

/// The roots that a pod was injected with.
pub(crate) fn injected_with(pod: &Pod) -> Option<Anchors> {
    let spec = pod.spec.as_ref()?;
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut env = containers.filter(|container| container.name == CONTAINER).flat_map(|c| c.env.iter().flatten());
    let given = env.find(|variable| variable.name == "MESH_TRUST_ANCHORS")?;
    Anchors::from_pem(given.value.as_deref()?).ok()
}

/// True while its proxy has never run.
fn has_not_started(pod: &Pod) -> bool {
    let Some(status) = pod.status.as_ref() else { return true };
    let mut all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let proxy = all.find(|container| container.name == CONTAINER);
    let waits =
        status.phase.as_deref().is_none_or(|phase| phase == "Pending") && pod.metadata.deletion_timestamp.is_none();
    waits && proxy.and_then(|proxy| proxy.state.as_ref()).is_none_or(|state| state.running.is_none())
}

fn full_name(pod: &Pod) -> String {
    format!("{}/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
}

fn issuer(secret: &Secret, anchors: Anchors) -> Result<Issuer> {
    let data = secret.data.as_ref();
    let part = |key| data.and_then(|data| data.get(key)).map(|value| String::from_utf8_lossy(&value.0).into_owned());
    let [certificate, key, ca] = ["tls.crt", "tls.key", "ca.crt"].map(|key| part(key).unwrap_or_default());
    let issuer = Issuer::of_secret(&certificate, &key, &ca, anchors, SystemTime::now());
    issuer
        .map_err(|error| CommandError::failed(error).hint("`kubectl describe` of it and the log of identity say more"))
}

fn pending(next: &Secret) -> Result<(CertificateDer<'static>, String)> {
    let ca = next.data.as_ref().and_then(|data| data.get("ca.crt")).map(|value| String::from_utf8_lossy(&value.0));
    let anchors = Anchors::from_pem(ca.as_deref().unwrap_or_default()).context(NEXT_SECRET)?;
    let fingerprint = issuer(next, anchors.clone())?.fingerprint();
    Ok((anchors.certificates()[0].clone(), fingerprint))
}

/// Which part of the control plane it is, and its port for figures.
fn part(pod: &Pod) -> Option<(&'static str, u16)> {
    let component = pod.metadata.labels.as_ref()?.get(keys::CONTROL_PLANE_COMPONENT)?;
    PARTS.into_iter().find(|(name, _)| name == component)
}

/// True while its proxy is expected to answer.
fn runs(pod: &Pod) -> bool {
    let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    running && pod.metadata.deletion_timestamp.is_none()
}

/// A root as people know it: the beginning of its fingerprint, and its name.
pub fn named(root: &CertificateDer<'_>) -> String {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let fingerprint = tls::fingerprint(root);
    let subject = X509Certificate::from_der(root).map(|(_, parsed)| parsed.subject().to_string()).unwrap_or_default();
    format!("{} ({subject})", &fingerprint[..12])
}

fn secrets(cluster: &Cluster) -> Api<Secret> {
    Api::namespaced(cluster.client.clone(), &cluster.control_namespace)
}

fn refused(cluster: &Cluster, error: &kube::Error, verb: &str, what: &str) -> CommandError {
    if matches!(error, kube::Error::Api(status) if status.code == 409) {
        return CommandError::failed("somebody else changed the roots or the issuer at the same time")
            .hint("run the command again: it goes on from what is there");
    }
    let doing = Doing { verb, what, namespace: Some(&cluster.control_namespace) };
    explain::refused(cluster, error, doing)
}

fn text(name: &Option<String>) -> String {
    name.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_waits_with_old_roots_is_late() {
        let pem = |name: &str| gossamer_identity::issuer::new_root(name, SystemTime::now()).unwrap().certificate;
        let (old, new) = (pem("old"), pem("new"));
        let fingerprint = |pem: &str| tls::fingerprint(&Anchors::from_pem(pem).unwrap().certificates()[0]);
        let pod = |phase: &str, state: serde_json::Value| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "a" },
                "spec": { "containers": [], "initContainers": [
                    { "name": CONTAINER, "env": [{ "name": "MESH_TRUST_ANCHORS", "value": old }] }
                ] },
                "status": { "phase": phase, "initContainerStatuses": [
                    { "name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state }
                ] },
            }))
            .unwrap()
        };
        let waits = pod("Pending", serde_json::json!({ "waiting": {} }));
        assert!(has_not_started(&waits) && lacks_root(&waits, &fingerprint(&new)));
        assert!(!lacks_root(&waits, &fingerprint(&old)));
        assert!(!has_not_started(&pod("Pending", serde_json::json!({ "running": {} }))));
        assert!(!has_not_started(&pod("Succeeded", serde_json::json!({ "terminated": { "exitCode": 0 } }))));
        assert!(has_not_started(&Pod::default()));
    }

    #[test]
    fn a_proxy_lacks_what_it_does_not_tell() {
        let [old, new] = ["aa", "bb"].map(String::from);
        let both = [old.clone(), new.clone()];
        let trusts = Wanted::Trusts(new.clone());
        assert!(lacks(&trusts, &both[..1], &[]).is_some());
        assert_eq!(lacks(&trusts, &both, &[]), None);
        assert!(lacks(&trusts, &[], &[]).unwrap().contains("older version"));
        let signed = Wanted::SignedBy("cc".into());
        assert!(lacks(&signed, &both, &["dd".into()]).is_some());
        assert!(lacks(&signed, &both, &[]).is_some());
        assert_eq!(lacks(&signed, &both, &["cc".into()]), None);
        let only = Wanted::TrustsOnly(vec![new.clone()]);
        assert!(lacks(&only, &both, &[]).is_some());
        assert_eq!(lacks(&only, &both[1..], &[]), None);
    }
}
