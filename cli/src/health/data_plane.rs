//! The proxies: there where they were asked for, ready, of the control plane's version, with certificates that prove who
//! they are.

use super::Findings;
use super::control_plane::version_of;
use crate::certificates::Presented;
use crate::cluster::{Cluster, MESHED_LABEL};
use crate::commands::identity;
use crate::fan;
use crate::place::{Place, Workload, of_pod};
use crate::rotation;
use gossamer_api::process::tls::Anchors;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// Looks at one namespace, or at all.
pub async fn check(cluster: &Cluster, namespace: Option<&str>) -> Findings {
    let mut findings = Findings::of("proxies");
    let pods = match cluster.pods(namespace, "").await {
        Ok(pods) => pods,
        Err(error) => {
            findings.add("pods can be listed", Some((error.message, error.hints.join("; "))));
            return findings;
        }
    };
    let running: Vec<&Pod> = pods.iter().filter(|pod| runs(pod)).collect();
    let meshed: Vec<&Pod> = running.iter().copied().filter(|pod| label(pod, MESHED_LABEL).is_some()).collect();
    let waiting: Vec<String> = meshed.iter().filter(|pod| !proxy_is_ready(pod)).map(|pod| name(pod)).collect();
    let hint = "kubectl logs POD -c gossamer-proxy; new pods take a moment";
    findings.add(format!("all {} are ready", meshed.len()), some(waiting).map(|names| (names, hint)));
    let place = Place::Cluster(cluster.clone());
    let roots = identity::roots(&place).await;
    if let Some(roots) = &roots {
        let lost: Vec<String> = meshed.iter().filter(|pod| knows_no_root(pod, roots)).map(|pod| name(pod)).collect();
        let hint = "they missed a whole rotation of the root, or were injected before it, and rightly believe no newer one: \
            kubectl rollout restart their workloads; inject YAML of `meshctl inject --manual` anew";
        findings.add("they know a root of trust that still holds", some(lost).map(|names| (names, hint)));
    }

    let control = cluster.pods(Some(&cluster.control_namespace), "gossamer.io/control-plane-component").await;
    let wanted: BTreeSet<String> = control.unwrap_or_default().iter().filter_map(version_of).collect();
    let old =
        meshed.iter().filter(|pod| annotation(pod, "gossamer.io/proxy-version").is_none_or(|v| !wanted.contains(v)));
    let old: Vec<String> = old.map(|pod| name(pod)).collect();
    let hint = "kubectl rollout restart their workloads, at leisure: versions next to each other work together";
    findings.warn("they are of the control plane's version", some(old).map(|names| (names, hint)));

    certificates(&place, roots.as_ref(), &meshed, &mut findings).await;

    let what = "pods that should have one do";
    match cluster.list_cluster::<Namespace>("").await {
        Ok(mut namespaces) => {
            namespaces.retain(|one| {
                is_enabled(one) && namespace.is_none_or(|only| one.metadata.name.as_deref() == Some(only))
            });
            let hint = "a proxy sets the redirection with NET_ADMIN before it gives up all privileges; label the namespace \
                pod-security.kubernetes.io/enforce=privileged, or keep its pods out";
            let strict = namespaces.iter().filter(|one| is_strict(one)).filter_map(|one| one.metadata.name.clone());
            let strict = some(strict.collect()).map(|names| (format!("Pod Security refuses them in {names}"), hint));
            findings.warn("namespaces that ask for proxies admit them", strict);
            let enabled: BTreeSet<String> = namespaces.into_iter().filter_map(|one| one.metadata.name).collect();
            let missing = running.iter().filter(|pod| wants_one(pod, &enabled) && label(pod, MESHED_LABEL).is_none());
            let missing: Vec<String> = missing.map(|pod| name(pod)).collect();
            let hint = "they were made before the annotation, or while no injector ran: kubectl rollout restart their workloads";
            findings.warn(what, some(missing).map(|names| (names, hint)));
        }
        Err(error) => findings.warn(what, Some((error.message, error.hints.join("; ")))),
    }
    findings
}

/// What each proxy shows to others: whether it proves its identity under the roots of now, and for how long.
async fn certificates(place: &Place, roots: Option<&Anchors>, meshed: &[&Pod], findings: &mut Findings) {
    let workloads: Vec<Workload> =
        meshed.iter().filter(|pod| proxy_is_ready(pod)).filter_map(|pod| of_pod((*pod).clone())).collect();
    let what = "their certificates prove their identities under the current roots";
    if roots.is_none() {
        let problem = "the ConfigMap gossamer-trust-anchors can't be read".to_string();
        findings.warn(what, Some((problem, "ask for the right to read it")));
        return;
    }
    let seen =
        fan::out(
            "proxies",
            &workloads,
            |_, workload| async move { identity::certificate(place, workload, roots).await },
        );
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    let (mut bad, mut silent) = (Vec::new(), Vec::new());
    for (workload, seen) in workloads.iter().zip(seen.await) {
        let name = format!("{}/{}", workload.namespace, workload.pod);
        match seen {
            Err(error) => silent.push(format!("{name}: {error}")),
            Ok(presented) => bad.extend(fault(&presented, now).map(|problem| format!("{name}: {problem}"))),
        }
    }
    findings
        .add(what, some(bad).map(|names| (names, "meshctl identity shows each; kubectl logs POD -c gossamer-proxy")));
    if !silent.is_empty() {
        let hint = "it takes the right to create pods/portforward, as meshctl identity does";
        findings.warn("all show their certificate", some(silent).map(|names| (names, hint)));
    }
}

/// True for one that waits for a certificate, and was made with roots that are all trusted no more. Ready ones have learned
/// the newer roots in time.
fn knows_no_root(pod: &Pod, roots: &Anchors) -> bool {
    let given = rotation::injected_with(pod).filter(|_| !proxy_is_ready(pod));
    given.is_some_and(|given| !given.certificates().iter().any(|root| roots.certificates().contains(root)))
}

/// What is wrong with a certificate, if anything is.
fn fault(presented: &Presented, now: i64) -> Option<String> {
    let late = presented.not_after - now < super::CERTIFICATE_LEFT;
    presented.problem.clone().or_else(|| late.then(|| format!("only {}", identity::left(presented.not_after))))
}

/// Its pods may not have what a proxy needs for its first moment.
fn is_strict(namespace: &Namespace) -> bool {
    let level = namespace.metadata.labels.as_ref().and_then(|labels| labels.get("pod-security.kubernetes.io/enforce"));
    level.is_some_and(|level| matches!(level.as_str(), "baseline" | "restricted"))
}

fn is_enabled(namespace: &Namespace) -> bool {
    namespace
        .metadata
        .annotations
        .as_ref()
        .and_then(|map| map.get("gossamer.io/inject"))
        .is_some_and(|v| v == "enabled")
}

/// By the namespace's word and its own.
fn wants_one(pod: &Pod, enabled: &BTreeSet<String>) -> bool {
    let by_namespace = pod.metadata.namespace.as_ref().is_some_and(|namespace| enabled.contains(namespace));
    let on_host = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
    match annotation(pod, "gossamer.io/inject") {
        Some(value) => value == "enabled" && !on_host,
        None => by_namespace && !on_host,
    }
}

/// Neither at its end nor on its way to it.
fn runs(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none()
        && !matches!(phase, Some("Succeeded" | "Failed"))
        && !has_done_its_work(pod)
}

/// All containers have ended for good; the proxy beside them is about to, and the phase follows seconds later.
fn has_done_its_work(pod: &Pod) -> bool {
    let restarts = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    let Some(containers) = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()) else {
        return false;
    };
    let mut ended = containers.iter().map(|one| one.state.as_ref().and_then(|state| state.terminated.as_ref()));
    !containers.is_empty()
        && ended.all(|end| match restarts {
            Some("Never") => end.is_some(),
            Some("OnFailure") => end.is_some_and(|end| end.exit_code == 0),
            _ => false,
        })
}

fn proxy_is_ready(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let mut all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.any(|container| container.name == "gossamer-proxy" && container.ready)
}

fn name(pod: &Pod) -> String {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default())
}

fn label<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.labels.as_ref()?.get(key)
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a String> {
    pod.metadata.annotations.as_ref()?.get(key)
}

/// A few names, and how many more; `None` if there is none.
fn some(names: Vec<String>) -> Option<String> {
    const SHOWN: usize = 5;
    let more = names.len().saturating_sub(SHOWN);
    let text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match (names.len(), more) {
        (0, _) => None,
        (_, 0) => Some(text),
        _ => Some(format!("{text} and {more} more")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_identity::issuer::new_root;
    use serde_json::json;

    #[test]
    fn who_has_done_its_work_needs_no_proxy() {
        let pod = |policy: &str, states: &[serde_json::Value]| -> Pod {
            let statuses: Vec<_> = states
                .iter()
                .map(|state| json!({ "name": "main", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state }))
                .collect();
            serde_json::from_value(json!({
                "metadata": {}, "spec": { "restartPolicy": policy, "containers": [] },
                "status": { "phase": "Running", "containerStatuses": statuses },
            }))
            .unwrap()
        };
        let (done, failed) = (json!({ "terminated": { "exitCode": 0 } }), json!({ "terminated": { "exitCode": 1 } }));
        let running = json!({ "running": {} });
        assert!(!runs(&pod("Never", std::slice::from_ref(&failed))));
        assert!(!runs(&pod("OnFailure", std::slice::from_ref(&done))));
        assert!(runs(&pod("OnFailure", std::slice::from_ref(&failed))));
        assert!(runs(&pod("Always", std::slice::from_ref(&done))));
        assert!(runs(&pod("Never", &[done, running])));
        assert!(runs(&pod("Never", &[])));
    }

    #[test]
    fn who_waits_with_roots_of_the_past_is_told() {
        let now = SystemTime::now();
        let [old, new] = [(); 2].map(|()| new_root("cluster.local", now).unwrap().certificate);
        let pod = |roots: &str, ready: bool| -> Pod {
            serde_json::from_value(json!({
                "metadata": {},
                "spec": { "containers": [], "initContainers": [
                    { "name": "gossamer-proxy", "env": [{ "name": "MESH_TRUST_ANCHORS", "value": roots }] }
                ]},
                "status": { "initContainerStatuses": [
                    { "name": "gossamer-proxy", "image": "", "imageID": "", "ready": ready, "restartCount": 0 }
                ]},
            }))
            .unwrap()
        };
        let (both, roots) = (format!("{old}{new}"), Anchors::from_pem(&new).unwrap());
        assert!(knows_no_root(&pod(&old, false), &roots));
        for (given, ready) in [(&old, true), (&new, false), (&both, false), (&String::new(), false)] {
            assert!(!knows_no_root(&pod(given, ready), &roots), "{given} {ready}");
        }
    }

    #[test]
    fn who_should_have_a_proxy() {
        let enabled = BTreeSet::from(["shop".to_string()]);
        let wants = |namespace: &str, annotation: &str, host: bool| {
            let pod = json!({
                "metadata": { "name": "x", "namespace": namespace, "annotations": { "gossamer.io/inject": annotation } },
                "spec": { "hostNetwork": host, "containers": [] },
            });
            let mut pod: Pod = serde_json::from_value(pod).unwrap();
            if annotation.is_empty() {
                pod.metadata.annotations = None;
            }
            wants_one(&pod, &enabled)
        };
        assert!(wants("shop", "", false) && wants("other", "enabled", false));
        assert!(!wants("shop", "disabled", false) && !wants("shop", "", true) && !wants("other", "", false));
    }

    #[test]
    fn a_certificate_near_its_end_or_of_another_root_is_told() {
        let now = 1_800_000_000;
        let presented = |left: i64, problem: Option<&str>| Presented {
            names: Vec::new(),
            serial: String::new(),
            issuer: String::new(),
            not_before: 0,
            not_after: now + left,
            problem: problem.map(str::to_string),
        };
        assert_eq!(fault(&presented(80_000, None), now), None);
        assert!(fault(&presented(60, None), now).unwrap().starts_with("only"));
        assert_eq!(fault(&presented(80_000, Some("unknown issuer")), now).unwrap(), "unknown issuer");
    }

    #[test]
    fn strict_namespaces_refuse_proxies() {
        let of = |level: &str| {
            let labels = json!({ "pod-security.kubernetes.io/enforce": level });
            is_strict(&serde_json::from_value(json!({ "metadata": { "labels": labels } })).unwrap())
        };
        assert!(of("baseline") && of("restricted") && !of("privileged") && !is_strict(&Namespace::default()));
    }

    #[test]
    fn many_names_are_cut() {
        let names = |n: usize| some((0..n).map(|i| i.to_string()).collect());
        assert_eq!(
            (names(0), names(2), names(7)),
            (None, Some("0, 1".into()), Some("0, 1, 2, 3, 4 and 2 more".into()))
        );
    }
}
