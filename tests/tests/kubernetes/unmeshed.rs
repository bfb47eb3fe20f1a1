//! Clients and servers without a proxy keep working with those that have one.

use gossamer_tests::cluster::{Cluster, eventually};

pub(crate) fn unmeshed_clients_and_servers_keep_working(cluster: &Cluster) {
    let (meshed, plain) = (cluster.namespace("with", true), cluster.namespace("without", false));
    for space in [&meshed, &plain] {
        space.serve("web", 1);
        space.client("shop");
    }
    meshed.ready(&["shop"]);
    plain.ready(&["shop"]);
    assert!(plain.pods("app=web")[0]["spec"]["initContainers"].is_null());
    // A node refuses connections to a Service until it has heard of its first endpoint, which takes it a moment.
    for (from, to) in [(&plain, "web.with"), (&meshed, "web.without")] {
        eventually(&format!("{to} is routed"), || {
            let load = from.load("shop", "new", (to, "/"), 5.0, 0.2, &[]);
            (load.ok() == load.total()).then_some(())
        });
    }
    for how in ["new", "kept"] {
        plain.load("shop", how, ("web.with", "/"), 30.0, 1.0, &[]).assert_none_failed();
        meshed.load("shop", how, ("web.without", "/"), 30.0, 1.0, &[]).assert_none_failed();
    }
    let metrics = meshed.metrics("shop");
    assert!(metrics.sum("response_total", &[("direction", "outbound"), ("tls", "true")]) == 0.0, "{}", metrics.text);
}
