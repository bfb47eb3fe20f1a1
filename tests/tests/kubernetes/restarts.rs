//! The cluster's own daemons are killed, the API server under load.

use crate::rollout::{under_load, web_and_shop};
use gossamer_tests::cluster::{Cluster, eventually};

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
    let check = cluster.meshctl(&["check"]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
}
