//! Pods come and go under load, and no request fails.

use gossamer_tests::cluster::{Cluster, Space};

/// Runs `disturb` while clients with new and with kept connections ask, then lets them end.
pub(crate) fn under_load(space: &Space<'_>, seconds: f64, disturb: impl FnOnce()) {
    std::thread::scope(|scope| {
        let loads: Vec<_> = ["new", "kept"]
            .into_iter()
            .map(|how| (how, scope.spawn(move || space.load("shop", how, ("web", "/"), 50.0, seconds, &[]))))
            .collect();
        std::thread::sleep(std::time::Duration::from_secs(1));
        disturb();
        for (how, load) in loads {
            let load = load.join().unwrap();
            println!("figure: {}: {how}: {} of {} failed", space.name, load.total() - load.ok(), load.total());
            load.assert_none_failed();
        }
    });
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
