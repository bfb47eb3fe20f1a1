//! What the mesh costs a cluster: printed, and bounded by what was promised.

use gossamer_tests::cluster::{Cluster, Space, eventually, ok, server, text};
use gossamer_tests::expect::Metrics;
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
    // What the API server itself measures of its calls to the webhook.
    let calls = || {
        let all = cluster.kubectl(&["get", "--raw", "/metrics"]);
        let of_ours =
            |line: &&str| line.contains("webhook_admission_duration") && line.contains("injector.gossamer.io");
        let metrics = Metrics::parse(&all.lines().filter(of_ours).collect::<Vec<_>>().join("\n"));
        let sum =
            |what: &str| metrics.sum(&format!("apiserver_admission_webhook_admission_duration_seconds_{what}"), &[]);
        (sum("sum"), sum("count"))
    };
    let before = calls();
    let path = "/api/v1/namespaces/cost/pods?dryRun=All";
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x","namespace":"cost"},"spec":{"containers":[{"name":"main","image":"x:1"}]}}"#;
    ok(cluster
        .shell(&format!("for i in $(seq 20); do echo '{pod}' | kubectl create --raw '{path}' -f - >/dev/null; done")));
    let after = calls();
    let (took, count) = (after.0 - before.0, after.1 - before.1);
    assert!(count >= 20.0, "{count}");
    println!("figure: admission of a pod: {:.1} ms more, the mean of {count}", took / count * 1000.0);

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
