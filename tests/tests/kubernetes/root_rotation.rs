//! The root of trust is replaced under load.

use crate::rollout::{under_load, web_and_shop};
use gossamer_tests::cluster::{Cluster, ok};

pub(crate) fn a_new_root_fails_nothing(cluster: &Cluster) {
    let space = web_and_shop(cluster, "roots", 2);
    let anchors =
        || cluster.json(&["-n", "gossamer", "get", "configmap", "gossamer-trust-anchors"])["data"].to_string();
    let before = anchors();
    under_load(&space, 40.0, || {
        ok(cluster.meshctl(&["identity", "rotate-root", "--yes"]));
    });
    assert_ne!(anchors(), before);
    let check = cluster.meshctl(&["check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}
