//! A Job with a proxy completes by itself.

use gossamer_tests::cluster::Cluster;
use std::time::Instant;

pub(crate) fn a_job_completes(cluster: &Cluster) {
    let space = cluster.namespace("jobs", true);
    let start = Instant::now();
    space.apply(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {name: task, namespace: NS}\n\
         spec:\n  backoffLimit: 0\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n      \
         - {name: main, image: 'mesh-test/probe:1', args: [sleep, '2']}\n",
    );
    space.kubectl(&["wait", "--for=condition=Complete", "job/task", "--timeout=60s"]);
    println!("figure: a Job with a task of 2 s completes after {:.1} s", start.elapsed().as_secs_f64());
    let pods = space.pods("job-name=task");
    assert_eq!(pods.len(), 1);
    assert_eq!(pods[0]["status"]["phase"], "Succeeded");
    assert_eq!(pods[0]["spec"]["initContainers"][0]["name"], "gossamer-proxy");
}
