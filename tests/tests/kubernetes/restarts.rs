//! The cluster's own daemons are killed, the API server under load; and the power fails.

use crate::rollout::{under_load, web_and_shop};
use gossamer_tests::cluster::{Cluster, PATIENCE, eventually, within};
use std::time::Instant;

pub(crate) fn restarted_daemons_fail_nothing(cluster: &Cluster) {
    let space = web_and_shop(cluster, "daemons", 2);
    let restart = |daemon: &str| {
        cluster.restart(daemon);
        eventually("the API server", || {
            cluster.try_kubectl(&["get", "--raw", "/readyz"]).status.success().then_some(())
        });
        std::thread::sleep(std::time::Duration::from_secs(3));
    };
    under_load(&space, 12.0, || restart("kube-apiserver"));
    // A kubelet that starts again calls all its pods unready until their probes have answered. With one node, a Service
    // has no endpoints meanwhile, and that is what its clients are told; then everything must be as before.
    restart("kubelet");
    eventually("requests are answered again", || {
        let load = space.load("shop", "new", ("web", "/"), 20.0, 1.0, &[]);
        (load.ok() == load.total()).then_some(())
    });
    // What changes afterwards is heard of: the watches are there again.
    space.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    space.ready(&[]);
    eventually("requests reach the new pod", || {
        let pods = space.pods("app=web");
        let load = space.load("shop", "new", ("web", "/"), 100.0, 1.0, &[]);
        let all = pods.iter().all(|pod| load.by(pod["metadata"]["name"].as_str().unwrap()) > 0);
        (all && load.ok() == load.total()).then_some(())
    });
    cluster.assert_well();
}

/// Everything ends at once and starts again by itself: API server, control plane, proxies, and what they stand beside. Pods
/// keep their names and get new addresses, and proxies start before there is anybody to certify them.
pub(crate) fn a_node_comes_back_after_a_power_cut(cluster: &Cluster) {
    let space = cluster.namespace("power", true);
    space.serve("web", 2);
    space.client("shop");
    space.client("stranger");
    space.apply(
        "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: shop-only, namespace: NS}\n\
         spec:\n  service: web\n  from:\n    - serviceAccounts: [{name: shop}]\n",
    );
    space.ready(&["shop", "stranger"]);
    eventually("the policy is in force", || {
        let (shop, stranger) =
            (space.try_load("shop", ("web", "/"), 20.0, 0.5)?, space.try_load("stranger", ("web", "/"), 20.0, 0.5)?);
        (shop.ok() == shop.total() && stranger.status(403) == stranger.total()).then_some(())
    });
    let restarts =
        |pod: &serde_json::Value| pod["status"]["initContainerStatuses"][0]["restartCount"].as_u64().unwrap_or(0);
    let before: u64 = space.pods("app").iter().map(restarts).sum();
    let start = Instant::now();
    cluster.power_cut();
    // All pods of the node are made anew at once, which takes a busy machine minutes.
    within(PATIENCE * 3, "requests are answered again, by both", || {
        let load = space.try_load("shop", ("web", "/"), 20.0, 1.0)?;
        let pods = space.cluster.try_kubectl(&["-n", &space.name, "get", "pods", "-l", "app=web", "-o", "name"]);
        let pods = String::from_utf8_lossy(&pods.stdout).into_owned();
        let both = pods.lines().all(|pod| load.by(pod.trim_start_matches("pod/")) > 0);
        (both && load.ok() == load.total()).then_some(())
    });
    println!(
        "figure: after a power cut of the node, requests are answered again after {:.0} s",
        start.elapsed().as_secs_f64()
    );
    // From here on nothing fails, and nobody is let in who was not.
    let shop = space.load("shop", "new", ("web", "/"), 50.0, 5.0, &[]);
    shop.assert_none_failed();
    let stranger = space.load("stranger", "new", ("web", "/"), 50.0, 1.0, &[]);
    assert_eq!(stranger.status(403), stranger.total(), "{stranger:?}");
    let after: u64 = space.pods("app").iter().map(restarts).sum();
    assert!(after > before, "the proxies were restarted: {before} {after}");
    cluster.assert_well();
    let identities = cluster.meshctl(&["identity", "-n", &space.name, "-o", "json"]);
    let identities: serde_json::Value = serde_json::from_slice(&identities.stdout).unwrap();
    let identities = identities.as_array().unwrap();
    assert!(identities.len() == 4 && identities.iter().all(|one| one["valid"] == true), "{identities:?}");
}
