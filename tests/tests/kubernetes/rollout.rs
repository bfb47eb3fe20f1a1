//! Pods come and go under load, and no request fails.

use gossamer_tests::cluster::{Cluster, Load, Space, eventually};
use std::time::Duration;

/// Runs `disturb` while clients with new and with kept connections ask, then lets them end. The clients are pods that run
/// by themselves: what is disturbed may be the way to them.
pub(crate) fn under_load(space: &Space<'_>, seconds: f64, disturb: impl FnOnce()) {
    const HOW: [&str; 2] = ["new", "kept"];
    for how in HOW {
        space.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: load-{how}, namespace: NS}}\nspec:\n  restartPolicy: Never\n  \
             containers:\n  - name: main\n    image: mesh-test/probe:1\n    \
             args: [load, {how}, web, '80', /, '50', '{seconds}']\n"
        ));
    }
    for how in HOW {
        eventually("the client runs", || {
            let state = space.field(&format!("pod/load-{how}"), "/status/containerStatuses/0/state");
            (!state["running"].is_null()).then_some(())
        });
    }
    std::thread::sleep(Duration::from_secs(1));
    disturb();
    for how in HOW {
        let pod = format!("pod/load-{how}");
        space.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", &pod, "--timeout=120s"]);
        let load = Load::parse(&space.kubectl(&["logs", &pod, "-c", "main"]));
        println!("figure: {}: {how}: {} of {} failed", space.name, load.total() - load.ok(), load.total());
        load.assert_none_failed();
    }
}

pub(crate) fn web_and_shop<'a>(cluster: &'a Cluster, name: &str, replicas: u16) -> Space<'a> {
    let space = cluster.namespace(name, true);
    space.serve("web", replicas);
    space.client("shop");
    space.ready(&["shop"]);
    space
}

pub(crate) fn a_rolling_update_fails_nothing(cluster: &Cluster) {
    let space = web_and_shop(cluster, "rolling", 2);
    under_load(&space, 15.0, || {
        space.kubectl(&["rollout", "restart", "deployment/web"]);
        space.ready(&[]);
    });
}

pub(crate) fn deleted_pods_fail_nothing(cluster: &Cluster) {
    let space = web_and_shop(cluster, "deleting", 3);
    under_load(&space, 12.0, || {
        for _ in 0..2 {
            let pods = space.pods("app=web");
            let name = pods[0]["metadata"]["name"].as_str().unwrap();
            space.kubectl(&["delete", "pod", name, "--wait"]);
            space.ready(&[]);
        }
    });
}
