//! `meshctl check` finds what is wrong, and says what to do.

use gossamer_tests::cluster::{Cluster, eventually, text};
use serde_json::Value;

pub(crate) fn check_finds_what_is_wrong(cluster: &Cluster) {
    let check = |arguments: &[&str]| {
        let output = cluster.meshctl(&[&["check", "-o", "json", "--wait", "0s"], arguments].concat());
        let report: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
        (output.status.code(), report)
    };
    let (code, report) = check(&[]);
    assert_eq!(code, Some(0), "{report:#}");

    cluster.kubectl(&["-n", "gossamer", "scale", "deploy/gossamer-injector", "--replicas=0"]);
    cluster.kubectl(&[
        "-n",
        "gossamer",
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "gossamer.io/control-plane-component=injector",
    ]);
    let (code, report) = check(&[]);
    assert_eq!(code, Some(3), "{report:#}");
    let failed: Vec<_> = report["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false).collect();
    assert!(failed.iter().any(|check| check["error"].to_string().contains("injector")), "{failed:#?}");
    assert!(failed.iter().all(|check| check["hint"].as_str().is_some_and(|hint| !hint.is_empty())), "{failed:#?}");

    cluster.kubectl(&["-n", "gossamer", "scale", "deploy/gossamer-injector", "--replicas=1"]);
    cluster.assert_well();

    // Pods of the control plane: three, with one container each.
    let pods = cluster.json(&["-n", "gossamer", "get", "pods", "--field-selector=status.phase=Running"]);
    let pods: Vec<_> =
        pods["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
    let count = |list: &str| pods.iter().map(|pod| pod["spec"][list].as_array().map_or(0, Vec::len)).sum::<usize>();
    let (containers, init) = (count("containers"), count("initContainers"));
    println!("figure: control plane: {} pods, {containers} containers", pods.len());
    assert_eq!((pods.len(), containers, init), (3, 3, 0));
    // No more is installed for the tables.
    assert_eq!(
        cluster.json(&["get", "deployments", "-A", "-l", "app.kubernetes.io/part-of=gossamer"])["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

/// Deleted, or never there: the injector makes its serving certificate, and tells the API server whom to trust.
pub(crate) fn the_injector_makes_its_certificate_anew(cluster: &Cluster) {
    let space = cluster.namespace("anew", true);
    let certificate = || {
        let output = cluster.try_kubectl(&[
            "-n",
            "gossamer",
            "get",
            "secret",
            "gossamer-injector-tls",
            "-o=jsonpath={.data.ca\\.crt}",
        ]);
        let text = text(&output.stdout);
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let before = certificate().unwrap();
    cluster.kubectl(&["-n", "gossamer", "delete", "secret", "gossamer-injector-tls"]);
    let after = eventually("a new certificate", || certificate().filter(|after| *after != before));
    eventually("the API server is told", || {
        let told = cluster.kubectl(&[
            "get",
            "mutatingwebhookconfiguration",
            "gossamer-injector",
            "-o=jsonpath={.webhooks[*].clientConfig.caBundle}",
        ]);
        told.split_whitespace().all(|bundle| bundle == after).then_some(())
    });
    eventually("pods get the proxy", || {
        space.client("shop");
        let proxies = space.field("pod/shop", "/spec/initContainers/0/name");
        if proxies != "gossamer-proxy" {
            space.kubectl(&["delete", "pod", "shop", "--wait"]);
            return None;
        }
        Some(())
    });
    space.ready(&["shop"]);
    cluster.assert_well();
}
