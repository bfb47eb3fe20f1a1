//! A mesh in use is changed: highly available and back, with what was set before.

use crate::rollout::{under_load, web_and_shop};
use gossamer_tests::cluster::{Cluster, ok};

pub(crate) fn an_upgrade_keeps_what_was_set(cluster: &Cluster) {
    let space = web_and_shop(cluster, "upgrade", 2);
    let data = |what: &str| cluster.json(&["-n", "gossamer", "get", what])["data"].to_string();
    let trust = || (data("configmap/gossamer-trust-anchors"), data("secret/gossamer-identity-issuer"));
    let before = trust();
    let settled = || {
        for part in ["identity", "destination", "injector"] {
            let name = format!("deploy/gossamer-{part}");
            cluster.kubectl(&["-n", "gossamer", "rollout", "status", &name, "--timeout=120s"]);
        }
        // The rollout is over, its last pods may still be on their way.
        cluster.assert_well();
    };
    let replicas = || {
        let all = cluster.json(&["-n", "gossamer", "get", "deployments"]);
        all["items"].as_array().unwrap().iter().map(|one| one["spec"]["replicas"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let seconds = if std::env::var_os("CI").is_some() { 30.0 } else { 60.0 };
    under_load(&space, seconds, || {
        ok(cluster.shell(
            "meshctl upgrade --set logLevel=info,gossamer=debug --set proxy.access-log=json | kubectl apply -f -",
        ));
        settled();
        ok(cluster.shell("meshctl upgrade --ha | kubectl apply -f -"));
        settled();
        assert_eq!(replicas(), [3, 3, 3]);
        // One of each goes; what is left injects, and nothing may start without a proxy.
        let hook = cluster.json(&["get", "mutatingwebhookconfiguration", "gossamer-injector"]);
        assert_eq!(hook["webhooks"][0]["failurePolicy"], "Fail");
        for part in ["identity", "destination", "injector"] {
            let selector = format!("gossamer.io/control-plane-component={part}");
            let pods = cluster.json(&["-n", "gossamer", "get", "pods", "-l", &selector]);
            // One of before the upgrade may still be on its way out.
            let mut stay = pods["items"].as_array().unwrap().iter().map(|pod| &pod["metadata"]);
            let stays = stay.find(|pod| pod["deletionTimestamp"].is_null()).unwrap();
            cluster.kubectl(&["-n", "gossamer", "delete", "pod", stays["name"].as_str().unwrap(), "--wait=false"]);
        }
        space.client("later");
        space.ready(&["later"]);
        let values = data("configmap/gossamer-config");
        assert!(values.contains("gossamer=debug") && values.contains("highAvailability"), "{values}");
        // What every proxy gets by default reached the injector.
        let later = space.json(&["get", "pod", "later"]);
        assert!(later["spec"]["initContainers"][0]["env"].to_string().contains("MESH_ACCESS_LOG"), "{later:#}");
        settled();
    });
    ok(cluster.shell(
        "meshctl upgrade --set highAvailability=false --set logLevel= --set proxy.access-log=off | kubectl apply -f -",
    ));
    settled();
    assert_eq!(replicas(), [1, 1, 1]);
    assert_eq!(trust(), before);
}
