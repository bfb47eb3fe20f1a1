//! A Job with a proxy completes by itself.

use gossamer_tests::cluster::{Cluster, Space};
use std::time::Instant;

pub(crate) fn a_job_completes(cluster: &Cluster) {
    let (space, plain) = (cluster.namespace("jobs", true), cluster.namespace("plainjobs", false));
    let (with, without) = (completes(&space), completes(&plain));
    println!("figure: a Job with a task of 2 s completes after {with:.1} s, without the mesh after {without:.1} s");
    let pods = space.pods("job-name=task");
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0]["status"]["phase"], "Succeeded");
    assert_eq!(pods[0]["spec"]["initContainers"][0]["name"], "gossamer-proxy");
    let ended = |list: &str| {
        let state = &pods[0]["status"][list][0]["state"]["terminated"];
        println!(
            "figure: a Job's {}: {} to {}",
            pods[0]["spec"][&list.replace("Statuses", "s")][0]["name"],
            state["startedAt"],
            state["finishedAt"]
        );
    };
    ["initContainerStatuses", "containerStatuses"].iter().for_each(|list| ended(list));
}

/// How long a Job of two seconds takes in this namespace.
fn completes(space: &Space<'_>) -> f64 {
    let start = Instant::now();
    space.apply(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: task, namespace: NS}\n\
         spec:\n  backoffLimit: 0\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n      \
         - {name: main, image: 'mesh-test/probe:1', args: [sleep, '2']}\n",
    );
    space.kubectl(&["wait", "--for=condition=Complete", "job/task", "--timeout=60s"]);
    start.elapsed().as_secs_f64()
}
