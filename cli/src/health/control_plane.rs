//! The mesh's own parts: objects that an installation makes, programs that run and are ready, roots of trust that last,
//! webhooks that answer, versions that fit together.

use super::{Findings, trust};
use crate::cluster::{Cluster, is_ready};
use crate::error::causes;
use crate::installation::crd_names;
use crate::installation::present::Present;
use gossamer_api::keys::PROXY_CONTAINER;
use gossamer_api::process::tls::not_after_of;
use gossamer_identity::issuer::rfc3339;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, PostParams};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::{Duration, SystemTime};

pub(super) const INSTALL: &str = "meshctl install | kubectl apply -f -";
const UPGRADE: &str = "meshctl upgrade | kubectl apply -f -";
/// The three programs.
const PARTS: [&str; 3] = ["identity", "destination", "injector"];

/// Looks. Ends early where there is no mesh.
pub async fn check(cluster: &Cluster) -> Findings {
    let mut findings = Findings::of("control plane");
    let namespace = &cluster.control_namespace;
    let what = format!("is installed in namespace {namespace:?}");
    let present = match Present::read(cluster).await {
        Ok(present) if present.stored.is_some() => present,
        Ok(_) => {
            findings.add(what, Some(("it is not".into(), INSTALL)));
            return findings;
        }
        Err(error) => {
            let hint = error.hints.first().cloned().unwrap_or_default();
            findings.add(what, Some((error.message, hint)));
            return findings;
        }
    };
    findings.add(what, None::<(_, String)>);
    findings.add("definitions of its kinds are there", definitions(cluster).await);
    let pods = cluster.pods(Some(namespace), "gossamer.io/control-plane-component").await;
    match pods {
        Ok(pods) => {
            for part in PARTS {
                findings.add(format!("{part} is ready"), readiness(cluster, part, &pods));
            }
            findings.warn(format!("its version is that of meshctl, {VERSION}"), version(&pods));
            if is_spread(&present, namespace) {
                findings.warn("several of each part are ready, as --ha has it", alone(&pods));
            }
        }
        Err(error) => findings.add("its pods can be listed", Some((error.message, error.hints.join("; ")))),
    }
    trust::check(cluster, &present, &mut findings).await;
    webhooks(cluster, &mut findings).await;
    findings
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

async fn definitions(cluster: &Cluster) -> Option<(String, String)> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    for name in crd_names() {
        match api.get_metadata_opt(name).await {
            Ok(Some(_)) => {}
            Ok(None) => return Some((format!("{name} is missing"), INSTALL.into())),
            Err(error) => return Some((format!("{name}: {}", causes(&error)), "ask for the right to read it".into())),
        }
    }
    None
}

fn of_part<'a>(pods: &'a [Pod], part: &str) -> impl Iterator<Item = &'a Pod> {
    let is = move |pod: &&Pod| {
        let labels = pod.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get("gossamer.io/control-plane-component")).is_some_and(|is| is == part)
    };
    pods.iter().filter(is)
}

fn readiness(cluster: &Cluster, part: &str, pods: &[Pod]) -> Option<(String, String)> {
    let namespace = &cluster.control_namespace;
    let mut why = None;
    for pod in of_part(pods, part) {
        if pod.metadata.deletion_timestamp.is_some() {
            continue;
        }
        if is_ready(pod) {
            return None;
        }
        why = Some(trouble(pod));
    }
    let hint = format!("kubectl -n {namespace} describe pod -l gossamer.io/control-plane-component={part}");
    let why = why.unwrap_or_else(|| "it has no pod; is it scaled to none?".into());
    Some((format!("{part}: {why}"), hint))
}

/// Why a pod is not ready, in a line.
fn trouble(pod: &Pod) -> String {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    for container in containers.into_iter().flatten() {
        let state = container.state.as_ref();
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        if let Some(waiting) = state.and_then(|state| state.waiting.as_ref()) {
            let reason = waiting.reason.clone().unwrap_or_default();
            let message = waiting.message.clone().unwrap_or_default();
            let ended = last.map(|last| format!(", ended with {}", last.exit_code)).unwrap_or_default();
            return format!("{name}: {reason} {message}{ended}");
        }
    }
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let unscheduled = conditions.clone().find(|one| one.type_ == "PodScheduled" && one.status != "True");
    match unscheduled.and_then(|one| one.message.clone()) {
        Some(message) => format!("{name}: {message}"),
        None => format!("{name} is not ready yet"),
    }
}

fn is_spread(present: &Present, namespace: &str) -> bool {
    let stored = present.stored.as_ref().and_then(|(stored, _)| stored.values(namespace).ok());
    stored.is_some_and(|values| values.high_availability)
}

/// Parts of which fewer than two are ready.
fn alone(pods: &[Pod]) -> Option<(String, String)> {
    let ready = |part: &&str| of_part(pods, part).filter(|pod| is_ready(pod)).count();
    let few: Vec<_> = PARTS.iter().copied().filter(|part| ready(part) < 2).collect();
    (!few.is_empty()).then(|| {
        let hint = "is there room on other nodes? kubectl get pods shows which of them wait";
        (format!("one or none of {}", few.join(", ")), hint.into())
    })
}

fn version(pods: &[Pod]) -> Option<(String, String)> {
    let mut others: Vec<String> = pods.iter().filter_map(version_of).filter(|version| version != VERSION).collect();
    others.sort();
    others.dedup();
    (!others.is_empty()).then(|| (format!("it is {}", others.join(", ")), UPGRADE.into()))
}

/// The tag of a control-plane pod's image.
pub fn version_of(pod: &Pod) -> Option<String> {
    let image = pod.spec.as_ref()?.containers.first()?.image.clone()?;
    let name = image.split('@').next()?.rsplit('/').next()?.to_string();
    name.split_once(':').map(|(_, tag)| tag.to_string())
}

async fn webhooks(cluster: &Cluster, findings: &mut Findings) {
    let serving = serving(cluster, findings).await;
    let what = "the webhooks believe the injector's certificate";
    let mutating: Api<MutatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let validating: Api<ValidatingWebhookConfiguration> = Api::all(cluster.client.clone());
    let (mutating, validating) =
        tokio::join!(mutating.get_opt("gossamer-injector"), validating.get_opt("gossamer-validator"));
    let clients: Vec<WebhookClientConfig> = match (mutating, validating) {
        (Ok(Some(mutating)), Ok(Some(validating))) => {
            let first = mutating.webhooks.into_iter().flatten().map(|webhook| webhook.client_config);
            first.chain(validating.webhooks.into_iter().flatten().map(|webhook| webhook.client_config)).collect()
        }
        (Err(error), _) | (_, Err(error)) => {
            findings.add(what, Some((causes(&error), INSTALL)));
            return;
        }
        (mutating, _) => {
            let missing = if matches!(mutating, Ok(None)) { "gossamer-injector" } else { "gossamer-validator" };
            findings.add(what, Some((format!("the webhook configuration {missing} is missing"), INSTALL)));
            return;
        }
    };
    let hint = format!("look at the injector: kubectl -n {} logs deploy/gossamer-injector", cluster.control_namespace);
    let wrong = bundles(&clients, serving.as_ref());
    let wrong_now = wrong.is_some();
    findings.add(what, wrong.map(|problem| (problem, hint.clone())));
    if wrong_now {
        return;
    }
    let what = "the API server reaches the injector, which adds the proxy";
    findings.add(what, injection(cluster).await.map(|problem| (problem, hint.clone())));
    let what = "the API server reaches the validator, which refuses what is broken";
    findings.add(what, validation(cluster).await.map(|problem| (problem, hint)));
}

/// The certificate that both webhooks are served with. Its injector renews it months before its end.
async fn serving(cluster: &Cluster, findings: &mut Findings) -> Option<Secret> {
    let what = "the injector's certificate is valid for long enough";
    match cluster.get::<Secret>(&cluster.control_namespace, INJECTOR_TLS).await {
        Ok(secret) => {
            findings.add(what, expiry(secret.as_ref(), SystemTime::now()));
            secret
        }
        Err(error) => {
            findings.warn(what, Some((error.message, "ask for the right to read it".to_string())));
            None
        }
    }
}

/// Whom the API server is told to believe, and who signed what the injector serves with, where that may be read.
fn bundles(clients: &[WebhookClientConfig], serving: Option<&Secret>) -> Option<String> {
    let bundle = |client: &WebhookClientConfig| client.ca_bundle.as_ref().map(|bundle| bundle.0.clone());
    if clients.iter().any(|client| bundle(client).is_none_or(|bundle| bundle.is_empty())) {
        return Some("caBundle is empty: the injector has not written it yet".into());
    }
    let signer = &serving?.data.as_ref()?.get("ca.crt")?.0;
    let other = clients.iter().any(|client| bundle(client).as_ref() != Some(signer));
    other.then(|| format!("caBundle is not ca.crt of the secret {INJECTOR_TLS}: the injector writes it when it runs"))
}

fn expiry(secret: Option<&Secret>, now: SystemTime) -> Option<(String, String)> {
    let hint = "the injector makes a new one: kubectl delete secret gossamer-injector-tls in its namespace".to_string();
    let Some(secret) = secret else {
        return Some((format!("there is no secret {INJECTOR_TLS}"), "look at the injector's log".into()));
    };
    let pem =
        secret.data.as_ref().and_then(|data| data.get("tls.crt")).map(|bytes| bytes.0.as_slice()).unwrap_or_default();
    let ends = CertificateDer::from_pem_slice(pem).ok().and_then(|certificate| not_after_of(&certificate).ok());
    match ends {
        None => Some((format!("tls.crt in the secret {INJECTOR_TLS} can't be read"), hint)),
        Some(end) => (end < now + SERVING_LEFT).then(|| (format!("it ends at {}", rfc3339(end)), hint)),
    }
}

/// A pod that asks for the proxy, made in the API server's mind alone.
async fn injection(cluster: &Cluster) -> Option<String> {
    // Where nothing forbids it: the control plane's own namespace is excluded.
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    let pod: Pod = match serde_json::from_value(serde_json::json!({
        "metadata": { "name": "gossamer-check", "annotations": { "gossamer.io/inject": "enabled" } },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "none",
                "image": "none:0",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })) {
        Ok(pod) => pod,
        Err(error) => return Some(error.to_string()),
    };
    let made = api.create(&PostParams { dry_run: true, ..PostParams::default() }, &pod).await;
    match made {
        Ok(pod) => {
            let spec = pod.spec.unwrap_or_default();
            let mut containers = spec.init_containers.into_iter().flatten().chain(spec.containers);
            let injected = containers.any(|container| container.name == PROXY_CONTAINER);
            // With failurePolicy Ignore a call that fails looks like this.
            (!injected).then(|| "a pod that asked for it got no proxy: the injector was not reached".to_string())
        }
        Err(error) => refusal(&causes(&error)),
    }
}

/// Whether a refused pod tells of the injector. One that is refused for the proxy's privileges has got the proxy.
fn refusal(why: &str) -> Option<String> {
    let restricted = why.contains("violates PodSecurity") && why.contains(PROXY_CONTAINER);
    (!restricted).then(|| format!("a pod could not be made: {why}"))
}

/// A policy that is broken in a way which only the webhook sees, made in the API server's mind alone.
async fn validation(cluster: &Cluster) -> Option<String> {
    let resource =
        ApiResource::from_gvk(&GroupVersionKind::gvk("policy.gossamer.io", "v1alpha1", "AuthorizationPolicy"));
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "default", &resource);
    let broken = DynamicObject::new("gossamer-check", &resource).data(serde_json::json!({ "spec": { "ports": [0] } }));
    match api.create(&PostParams { dry_run: true, ..PostParams::default() }, &broken).await {
        Err(kube::Error::Api(status)) if status.message.contains("is no port") => None,
        Ok(_) => Some("a broken policy was not refused: the validator was not reached".into()),
        Err(error) => Some(format!("a policy could not be tried: {}", causes(&error))),
    }
}

const INJECTOR_TLS: &str = "gossamer-injector-tls";
/// It is renewed after two thirds of a year.
const SERVING_LEFT: Duration = Duration::from_secs(30 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_version_is_the_tag_of_an_image() {
        let of = |image: &str| version_of(&pod(json!({ "spec": { "containers": [{ "name": "a", "image": image }] } })));
        assert_eq!(of("gossamer/control:0.1.0").as_deref(), Some("0.1.0"));
        assert_eq!(of("registry.example:5000/gossamer/control:1.2@sha256:00").as_deref(), Some("1.2"));
        assert_eq!(of("registry.example:5000/gossamer/control"), None);
    }

    #[test]
    fn one_replica_is_not_several() {
        let one = |part: &str| {
            pod(json!({
                "metadata": { "labels": { "gossamer.io/control-plane-component": part } },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            }))
        };
        let two = || PARTS.iter().chain(&PARTS).map(|part| one(part));
        assert_eq!(alone(&two().collect::<Vec<_>>()), None);
        let fewer: Vec<Pod> = two().skip(1).collect();
        assert_eq!(alone(&fewer).unwrap().0, "one or none of identity");
    }

    #[test]
    fn the_injectors_certificate_ends_one_day() {
        let now = SystemTime::now();
        let made = gossamer_injector::certs::Serving::new(&["a.b.svc".into()], None, now).unwrap();
        let secret = made.write("gossamer", None);
        assert_eq!(expiry(Some(&secret), now), None);
        let year = Duration::from_secs(360 * 24 * 3600);
        assert!(expiry(Some(&secret), now + year).unwrap().0.starts_with("it ends at"));
        assert!(expiry(None, now).unwrap().0.contains("there is no secret"));
        assert!(expiry(Some(&Secret::default()), now).unwrap().0.contains("can't be read"));
    }

    #[test]
    fn the_webhooks_must_believe_who_signed_the_injectors_certificate() {
        let now = SystemTime::now();
        let secret =
            || gossamer_injector::certs::Serving::new(&["a.b.svc".into()], None, now).unwrap().write("gossamer", None);
        let (ours, other) = (secret(), secret());
        let client = |of: Option<&Secret>| WebhookClientConfig {
            ca_bundle: of.map(|secret| secret.data.as_ref().unwrap()["ca.crt"].clone()),
            ..WebhookClientConfig::default()
        };
        assert_eq!(bundles(&[client(Some(&ours)), client(Some(&ours))], Some(&ours)), None);
        // Who may not read the secret is told of what can be seen.
        assert_eq!(bundles(&[client(Some(&other))], None), None);
        assert!(bundles(&[client(Some(&ours)), client(None)], None).unwrap().starts_with("caBundle is empty"));
        let wrong = bundles(&[client(Some(&ours)), client(Some(&other))], Some(&ours)).unwrap();
        assert!(wrong.starts_with("caBundle is not ca.crt"), "{wrong}");
    }

    #[test]
    fn another_version_is_told_with_its_number() {
        let of = |tag: &str| {
            pod(json!({ "spec": { "containers": [{ "name": "a", "image": format!("gossamer/control:{tag}") }] } }))
        };
        assert_eq!(version(&[of(VERSION), of(VERSION)]), None);
        let (what, hint) = version(&[of(VERSION), of("0.0.9"), of("0.0.9")]).unwrap();
        assert_eq!((what.as_str(), hint.as_str()), ("it is 0.0.9", UPGRADE));
    }

    #[test]
    fn a_pod_that_is_refused_for_its_proxy_has_one() {
        let security = "pods \"gossamer-check\" is forbidden: violates PodSecurity \"baseline:latest\": non-default \
            capabilities (container \"gossamer-proxy\" must not include \"NET_ADMIN\")";
        assert_eq!(refusal(security), None);
        assert!(refusal("quota exceeded").is_some());
    }

    #[test]
    fn trouble_is_told_in_a_line() {
        let waiting = pod(json!({
            "metadata": { "name": "x" },
            "status": { "containerStatuses": [{
                "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 40s" } },
                "lastState": { "terminated": { "exitCode": 1 } },
            }] },
        }));
        assert_eq!(trouble(&waiting), "x: CrashLoopBackOff back-off 40s, ended with 1");
        let unscheduled = pod(json!({
            "metadata": { "name": "x" },
            "status": { "conditions": [{ "type": "PodScheduled", "status": "False", "message": "no node fits" }] },
        }));
        assert_eq!(trouble(&unscheduled), "x: no node fits");
    }
}
