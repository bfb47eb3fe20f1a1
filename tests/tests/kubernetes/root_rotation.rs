//! The root of trust and the issuer are replaced under load: by our own command, and as cert-manager would.

use crate::rollout::{under_load, web_and_shop};
use gossamer_api::process::tls::{Anchors, fingerprint};
use gossamer_identity::issuer::{Authority, new_issuer, new_root};
use gossamer_tests::cluster::{Cluster, Space, eventually, ok, text};
use serde_json::{Value, json};
use std::time::SystemTime;

fn anchors(cluster: &Cluster) -> String {
    cluster.json(&["-n", "gossamer", "get", "configmap", "gossamer-trust-anchors"])["data"].to_string()
}

pub(crate) fn a_new_root_fails_nothing(cluster: &Cluster) {
    let space = web_and_shop(cluster, "roots", 2);
    let before = anchors(cluster);
    let of_before = space.json(&["get", "pod", "shop"]);
    under_load(&space, 40.0, || {
        ok(cluster.meshctl(&["identity", "rotate-root", "--yes"]));
    });
    assert_ne!(anchors(cluster), before);
    cluster.assert_well();
    the_proxy_comes_back(&space);
    who_missed_it_is_told(&space, of_before);
}

/// A pod as it was made before the old root was dropped: it believes nobody, and `check` says why.
fn who_missed_it_is_told(space: &Space<'_>, mut pod: Value) {
    let of = |key: &str| pod["metadata"][key].clone();
    pod["metadata"] =
        json!({"name": "late", "namespace": space.name, "labels": of("labels"), "annotations": of("annotations")});
    pod.as_object_mut().unwrap().remove("status");
    space.apply(&pod.to_string());
    let check = || text(&space.cluster.meshctl(&["check", "-o", "json"]).stdout);
    eventually("check names it", || {
        let findings: Value = serde_json::from_str(&check()).unwrap();
        let all = findings["checks"].as_array().cloned().unwrap_or_default();
        let root =
            all.iter().find(|one| one.to_string().contains("know a root of trust that still holds"))?.to_string();
        (root.contains("roots/late") && root.contains("rollout restart")).then_some(())
    });
    space.kubectl(&["delete", "pod", "late", "--wait"]);
    space.cluster.assert_well();
}

/// A container that is started again has only the old root in its environment.
fn the_proxy_comes_back(space: &Space<'_>) {
    space.look();
    let pod = space.pods("app=web")[0]["metadata"]["name"].as_str().unwrap().to_string();
    let killed = ok(space.probe("look", &["kill", "gossamer-proxy", &format!("MESH_POD={pod}")]));
    assert!(text(&killed.stdout).contains("killed"), "{}", text(&killed.stdout));
    let restarted = eventually("the proxy is started again, and ready", || {
        let proxy = space.field(&format!("pod/{pod}"), "/status/initContainerStatuses/0");
        (proxy["ready"] == true).then(|| proxy["restartCount"].as_u64().unwrap()).filter(|count| *count > 0)
    });
    assert_eq!(restarted, 1);
    eventually("requests reach it", || {
        let load = space.load("shop", "new", ("web", "/"), 50.0, 1.0, &[]);
        (load.by(&pod) > 0).then(|| load.assert_none_failed())
    });
}

pub(crate) fn an_issuer_of_cert_manager_is_taken_over(cluster: &Cluster) {
    let space = web_and_shop(cluster, "issuer", 2);
    let now = SystemTime::now();
    let root = new_root("cluster.local", now).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &root.certificate).unwrap();
    let issuers = [(); 2].map(|()| new_issuer(&root.pem(), "cluster.local", now).unwrap());
    let rotate = |arguments: &[&str]| {
        ok(cluster.meshctl(&[&["identity", "rotate-root", "--yes"], arguments].concat()));
    };
    under_load(&space, 60.0, || {
        write(cluster, &root, None);
        rotate(&["--phase", "add", "--new-root", file.path().to_str().unwrap()]);
        write(cluster, &root, Some(&issuers[0]));
        rotate(&["--phase", "issue"]);
        rotate(&["--phase", "drop"]);
        // Renewed under the same root: nobody has to do anything.
        write(cluster, &root, Some(&issuers[1]));
        let of = Anchors::from_pem(&issuers[1].certificate).unwrap();
        let of = fingerprint(&of.certificates()[0]);
        eventually("proxies have certificates of the second issuer", || {
            (space.metrics("shop").sum("control_identity_cert_issuer_info", &[("fingerprint", &of)]) > 0.0)
                .then_some(())
        });
    });
    assert!(anchors(cluster).contains(root.certificate.lines().nth(3).unwrap()));
    cluster.assert_well();
}

/// The Secret as cert-manager writes it; without an issuer only its mark.
fn write(cluster: &Cluster, root: &Authority, issuer: Option<&Authority>) {
    let indent = |pem: &str| pem.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let data = issuer.map_or(String::new(), |issuer| {
        format!(
            "stringData:\n  tls.crt: |\n{}  tls.key: |\n{}  ca.crt: |\n{}",
            indent(&issuer.certificate),
            indent(&issuer.key),
            indent(&root.certificate)
        )
    });
    let secret = format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata:\n  name: gossamer-identity-issuer\n  \
         namespace: gossamer\n  annotations:\n    cert-manager.io/certificate-name: gossamer-identity-issuer\n    \
         cert-manager.io/issuer-name: trust-anchor\n{data}"
    );
    ok(cluster.pipe("kubectl apply --server-side --force-conflicts --field-manager=cert-manager -f -", &secret));
}
