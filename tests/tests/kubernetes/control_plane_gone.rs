//! The control plane goes away under load: what is known keeps working, what is not fails at once and says why.

use crate::rollout::{under_load, web_and_shop};
use gossamer_tests::cluster::{Cluster, Space, eventually};
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
    under_load(&space, 60.0, || {
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
        assert!(load.slowest() < Duration::from_millis(1200), "{load:?}");
        event(&space, "shop", "destination service", "stays in force");
    });
    scale("--replicas=1");
    cluster.assert_well();
    without_discovery_alone(&space);
    eventually("the new service works", || {
        let load = space.load("shop", "new", ("unseen", "/"), 10.0, 0.5, &[]);
        (load.ok() == load.total()).then_some(())
    });
}

/// Pods that come while discovery alone is away have the proxy and a certificate, and would reach nothing, nor be reached.
fn without_discovery_alone(space: &Space<'_>) {
    let scale = |replicas: &str| {
        space.cluster.kubectl(&["-n", "gossamer", "scale", "deploy/gossamer-destination", replicas]);
    };
    scale("--replicas=0");
    let selector = "gossamer.io/control-plane-component=destination";
    space.cluster.kubectl(&["-n", "gossamer", "wait", "--for=delete", "pod", "-l", selector, "--timeout=60s"]);
    space.client("late");
    eventually("the pod runs", || {
        let state = space.field("pod/late", "/status/containerStatuses/0/state/running");
        (!state.is_null()).then_some(())
    });
    event(space, "late", "Readiness probe failed", "503");
    let ready = |pod: &str| space.field(&format!("pod/{pod}"), "/status/initContainerStatuses/0/ready");
    assert_eq!((ready("late"), ready("shop")), (false.into(), true.into()));
    scale("--replicas=1");
    space.ready(&["late"]);
}

/// Waits for a warning about a pod with these words.
fn event(space: &Space<'_>, pod: &str, what: &str, more: &str) {
    let selector = format!("--field-selector=type=Warning,involvedObject.name={pod}");
    let said = eventually("the pod's event says it", || {
        let events = space.json(&["get", "events", &selector]);
        let all = events["items"].as_array().unwrap().clone();
        let mut said = all.iter().filter_map(|event| event["message"].as_str());
        said.find(|message| message.contains(what) && message.contains(more)).map(str::to_string)
    });
    println!("figure: discovery gone: an event of pod {pod}: {said}");
}
