//! One of the destination service's replicas writes statuses: the holder of a lease. When it is gone, another does.

use gossamer_tests::cluster::{Cluster, Space, eventually};
use std::time::Instant;

fn holder(cluster: &Cluster) -> Option<String> {
    let holder = cluster.json(&["-n", "gossamer", "get", "lease", "gossamer-destination"]);
    holder["spec"]["holderIdentity"].as_str().filter(|name| !name.is_empty()).map(str::to_string)
}

fn accepted(space: &Space<'_>, route: &str) {
    space.apply(&format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {route}, namespace: NS}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]\n  rules:\n  \
         - backendRefs: [{{name: web, port: 80}}]\n"
    ));
    eventually("the route is accepted", || {
        let conditions = space.field(&format!("httproute/{route}"), "/status/parents/0/conditions");
        conditions.as_array()?.iter().any(|c| c["type"] == "Accepted" && c["status"] == "True").then_some(())
    });
}

pub(crate) fn another_replica_tells_when_the_leader_is_gone(cluster: &Cluster) {
    const DEPLOYMENT: &str = "deployment/gossamer-destination";
    let pods = || -> Vec<String> {
        let names = cluster.kubectl(&[
            "-n",
            "gossamer",
            "get",
            "pods",
            "-l",
            "gossamer.io/control-plane-component=destination",
            "-o=jsonpath={.items[*].metadata.name}",
        ]);
        names.split_whitespace().map(str::to_string).collect()
    };
    let space = cluster.namespace("leader", true);
    space.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: NS}\n\
         spec: {selector: {app: web}, ports: [{name: http, port: 80}]}\n",
    );
    cluster.kubectl(&["-n", "gossamer", "scale", DEPLOYMENT, "--replicas=2"]);
    cluster.kubectl(&["-n", "gossamer", "rollout", "status", DEPLOYMENT, "--timeout=90s"]);
    accepted(&space, "before");
    let first = eventually("a leader", || holder(cluster).filter(|name| pods().contains(name)));
    let other = pods().into_iter().find(|pod| *pod != first).unwrap();
    // Of the two the leader goes, and no third comes.
    let cost = "controller.kubernetes.io/pod-deletion-cost=-1";
    cluster.kubectl(&["-n", "gossamer", "annotate", "pod", &first, cost]);
    let start = Instant::now();
    cluster.kubectl(&["-n", "gossamer", "scale", DEPLOYMENT, "--replicas=1"]);
    eventually("the leader is going", || (!pods().contains(&first)).then_some(()));
    accepted(&space, "after");
    println!("figure: a leader is deleted, another has written a status after {:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(holder(cluster), Some(other));
}
