//! The control plane goes away under load: what is known keeps working, what is not fails at once and says why.

use crate::rollout::{under_load, web_and_shop};
use gossamer_tests::cluster::{Cluster, eventually};
use std::time::Duration;

pub(crate) fn without_a_control_plane_nothing_fails(cluster: &Cluster) {
    let space = web_and_shop(cluster, "gone", 2);
    space.serve("idle", 1);
    space.serve("unseen", 1);
    space.ready(&[]);
    space.load("shop", "new", ("idle", "/"), 20.0, 0.5, &[]).assert_none_failed();
    let scale = |replicas: &str| {
        for part in ["identity", "destination", "injector"] {
            cluster.kubectl(&["-n", "gossamer", "scale", &format!("deploy/gossamer-{part}"), replicas]);
        }
    };
    let seconds = if std::env::var_os("CI").is_some() { 20.0 } else { 60.0 };
    under_load(&space, seconds, || {
        scale("--replicas=0");
        for part in ["identity", "destination", "injector"] {
            let selector = format!("gossamer.io/control-plane-component={part}");
            cluster.kubectl(&["-n", "gossamer", "wait", "--for=delete", "pod", "-l", &selector, "--timeout=60s"]);
        }
        // Known, but idle since before.
        space.load("shop", "new", ("idle", "/"), 20.0, 0.5, &[]).assert_none_failed();
        // Never asked for: fails within a second, with the reason.
        let load = space.load("shop", "new", ("unseen", "/"), 2.0, 2.0, &[]);
        println!("figure: discovery gone: a new service fails after {} ms at most", load.slowest().as_millis());
        assert_eq!(load.ok(), 0, "{load:?}");
        assert!(format!("{load:?}").contains("l5d-proxy-error"), "{load:?}");
        assert!(load.slowest() < Duration::from_millis(1500), "{load:?}");
    });
    scale("--replicas=1");
    let check = cluster.meshctl(&["check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    eventually("the new service works", || {
        let load = space.load("shop", "new", ("unseen", "/"), 10.0, 0.5, &[]);
        (load.ok() == load.total()).then_some(())
    });
}
