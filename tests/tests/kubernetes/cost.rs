//! What the mesh costs a cluster: printed, and bounded by what was promised.

use gossamer_tests::cluster::{Cluster, Space, eventually, ok, server, text};
use std::time::Instant;

pub(crate) fn what_the_mesh_costs(cluster: &Cluster) {
    let (meshed, plain) = (cluster.namespace("cost", true), cluster.namespace("costplain", false));
    // Admission: a pod that is made only in the API server's mind.
    let dry = |space: &Space<'_>| {
        let pod = space.json(&["run", "x", "--image=mesh-test/probe:1", "--dry-run=server"]);
        pod.to_string().len()
    };
    let (with, without) = (dry(&meshed), dry(&plain));
    println!("figure: pod object: {without} -> {with} bytes");
    let script = |space: &Space<'_>| {
        let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", space.name);
        let pod = format!(
            r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"x","namespace":"{}"}},"spec":{{"containers":[{{"name":"main","image":"x:1"}}]}}}}"#,
            space.name
        );
        format!("for i in $(seq 20); do echo '{pod}' | kubectl create --raw '{path}' -f - >/dev/null; done")
    };
    let time = |space: &Space<'_>| {
        let start = Instant::now();
        ok(cluster.shell(&script(space)));
        start.elapsed().as_secs_f64() / 20.0 * 1000.0
    };
    let (mut with, mut without) = (f64::MAX, f64::MAX);
    for _ in 0..2 {
        (with, without) = (with.min(time(&meshed)), without.min(time(&plain)));
    }
    println!("figure: admission of a pod: {:.1} ms more ({without:.1} -> {with:.1}, kubectl included)", with - without);

    let started = |space: &Space<'_>, name: &str| {
        let start = Instant::now();
        space.client(name);
        space.ready(&[name]);
        start.elapsed().as_secs_f64()
    };
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c"] {
        with.push(started(&meshed, name));
        without.push(started(&plain, name));
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[1]
    };
    let (with, without) = (median(&mut with), median(&mut without));
    println!("figure: a pod's start: {:.1} s more ({without:.1} -> {with:.1})", with - without);

    meshed.apply(&server("web", 1, ""));
    meshed.ready(&[]);
    meshed.load("a", "new", ("web", "/"), 50.0, 1.0, &[]).assert_none_failed();
    let metrics = meshed.metrics("a");
    let lines = metrics.text.lines().count();
    println!("figure: /metrics of a client with one destination: {lines} lines, {} bytes", metrics.text.len());
    assert!(lines < 300, "{lines}");

    memory(&meshed);
}

/// Resident, anonymous and proportional memory by program.
fn memory(space: &Space<'_>) {
    space.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: look, namespace: NS, annotations: {gossamer.io/inject: disabled}}\n\
         spec:\n  hostPID: true\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {name: main, image: 'mesh-test/probe:1', args: [sleep], securityContext: {privileged: true}}\n",
    );
    space.ready(&["look"]);
    for program in ["gossamer-control", "gossamer-proxy"] {
        let output = ok(space.probe("look", &["memory", program]));
        println!("figure: memory of {program}: {}", text(&output.stdout).trim().replace('\n', "; "));
    }
}

pub(crate) fn a_server_that_speaks_first_is_heard_at_once(cluster: &Cluster) {
    let space = cluster.namespace("first", true);
    space.apply(
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: greeter, namespace: NS}\n\
         spec: {selector: {app: greeter}, ports: [{port: 7000}]}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {name: greeter, namespace: NS, labels: {app: greeter}}\n\
         spec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {name: main, image: 'mesh-test/probe:1', args: [greeter, '7000']}\n",
    );
    space.client("shop");
    space.ready(&["greeter", "shop"]);
    let took = eventually("a greeting", || {
        let output = space.probe("shop", &["greet", "greeter", "7000"]);
        output.status.success().then(|| text(&output.stdout).trim().parse::<f64>().unwrap())
    });
    let again: f64 = text(&ok(space.probe("shop", &["greet", "greeter", "7000"])).stdout).trim().parse().unwrap();
    println!("figure: a server that speaks first: first byte after {:.0} ms, then {:.0} ms", took * 1e3, again * 1e3);
    assert!(again < 0.5, "{again}");
}
