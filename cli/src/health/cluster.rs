//! What the mesh needs of its cluster: an API server of a version that has what we use, clocks that agree, and, before an
//! installation, the right to install.

use super::Findings;
use crate::cluster::Cluster;
use crate::error::causes;
use gossamer_api::defaults;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::PostParams;
use std::time::{Duration, SystemTime};

/// Kubernetes has been without v1 of everything that is used here before 1.25; native sidecars are of 1.29, and where
/// they are missing proxies are ordinary containers.
const OLDEST: (u32, u32) = (1, 25);
/// The kubelet renews its node's lease every 10 s.
const LEASE_RENEWAL: Duration = Duration::from_secs(40);

/// Looks. Ends with the first finding if nobody answers.
pub async fn check(cluster: &Cluster, pre: bool) -> Findings {
    let mut findings = Findings::of("cluster");
    let version = cluster.client.apiserver_version().await;
    let answers = format!("the API server {} answers", cluster.server);
    let version = match version {
        Ok(version) => version,
        Err(error) => {
            let hint = format!("context {:?} is in use; `kubectl cluster-info` tries the same", cluster.context);
            findings.add(answers, Some((causes(&error), hint)));
            return findings;
        }
    };
    findings.add(answers, None::<(_, String)>);
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    let present = (number(&version.major), number(&version.minor));
    let old = (present < OLDEST).then(|| (format!("it is {}", version.git_version), "upgrade the cluster"));
    findings.add(format!("Kubernetes is {}.{} or later", OLDEST.0, OLDEST.1), old);
    match cluster.list::<Lease>(Some("kube-node-lease"), "").await {
        Ok(leases) => findings.add("clocks agree", clocks(leases, seconds(SystemTime::now()))),
        // Not everybody may read them; the mesh may be well all the same.
        Err(error) => findings.warn("clocks agree", Some((error.message, error.hints.join("; ")))),
    }
    if pre {
        findings.add("you may install", rights(cluster).await);
    }
    findings
}

/// Nodes write the time into their leases: one far ahead of us, or behind, has another clock than certificates need.
fn clocks(leases: Vec<Lease>, now: i64) -> Option<(String, String)> {
    let hint = |what: &str| format!("set the clock of {what} by NTP: certificates begin and end by it");
    let slack = defaults::CLOCK_SKEW.as_secs() as i64;
    for lease in leases {
        let name = lease.metadata.name.unwrap_or_default();
        let Some(renewed) = lease.spec.and_then(|spec| spec.renew_time) else { continue };
        let ahead = renewed.0.as_second() - now;
        if ahead > slack {
            return Some((format!("node {name} is {ahead} s ahead of this machine"), hint("both")));
        }
        let behind = -ahead - LEASE_RENEWAL.as_secs() as i64;
        if behind > slack && behind < MAX_BEHIND {
            return Some((format!("node {name} is {behind} s behind, or does not answer"), hint("it")));
        }
    }
    None
}

/// Older leases are those of nodes that are gone.
const MAX_BEHIND: i64 = 300;

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// Asks for the rights that an installation needs and few have.
async fn rights(cluster: &Cluster) -> Option<(String, String)> {
    let api: Api<SelfSubjectAccessReview> = Api::all(cluster.client.clone());
    let of_namespace = |resource| (resource, Some(cluster.control_namespace.clone()));
    for (group, (resource, namespace)) in [
        ("", ("namespaces", None)),
        ("apiextensions.k8s.io", ("customresourcedefinitions", None)),
        ("rbac.authorization.k8s.io", ("clusterroles", None)),
        ("rbac.authorization.k8s.io", ("clusterrolebindings", None)),
        ("admissionregistration.k8s.io", ("mutatingwebhookconfigurations", None)),
        ("admissionregistration.k8s.io", ("validatingwebhookconfigurations", None)),
        ("rbac.authorization.k8s.io", of_namespace("roles")),
        ("rbac.authorization.k8s.io", of_namespace("rolebindings")),
        ("", of_namespace("serviceaccounts")),
        ("", of_namespace("configmaps")),
        ("", of_namespace("secrets")),
        ("", of_namespace("services")),
        ("apps", of_namespace("deployments")),
        ("policy", of_namespace("poddisruptionbudgets")),
    ] {
        let place = namespace.as_ref().map(|namespace| format!(" in namespace {namespace:?}")).unwrap_or_default();
        let attributes = ResourceAttributes {
            group: Some(group.into()),
            resource: Some(resource.into()),
            verb: Some("create".into()),
            namespace,
            ..ResourceAttributes::default()
        };
        let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), non_resource_attributes: None };
        let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
        let hint = "ask who runs the cluster for the role cluster-admin";
        match api.create(&PostParams::default(), &review).await {
            Ok(review) if review.status.as_ref().is_some_and(|status| status.allowed) => {}
            Ok(_) => return Some((format!("you may not create {resource}{place}"), hint.into())),
            Err(error) => return Some((format!("{resource}: {}", causes(&error)), hint.into())),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn clocks_that_differ_are_seen_by_their_leases() {
        let now = 1_800_000_000;
        let at = |seconds: i64| -> Lease {
            let time = k8s_openapi::jiff::Timestamp::from_second(now + seconds).unwrap().to_string();
            let time = time.replace('Z', ".000000Z");
            serde_json::from_value(json!({ "metadata": { "name": "n1" }, "spec": { "renewTime": time } })).unwrap()
        };
        assert_eq!(clocks(vec![at(0), at(-40), at(15)], now), None);
        let (ahead, hint) = clocks(vec![at(0), at(60)], now).unwrap();
        assert!(ahead == "node n1 is 60 s ahead of this machine" && hint.contains("NTP"), "{ahead} {hint}");
        assert!(clocks(vec![at(-120)], now).unwrap().0.contains("behind"));
        // A node that went away long ago.
        assert_eq!(clocks(vec![at(-4000)], now), None);
    }
}
