//! `meshctl check` finds what is wrong, and says what to do.

use gossamer_tests::cluster::{Cluster, text};
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
    let output = cluster.meshctl(&["check"]);
    assert!(output.status.success(), "{}", text(&output.stdout));
}
