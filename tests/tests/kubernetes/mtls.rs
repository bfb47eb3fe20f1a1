//! A namespace with one annotation gets mutual TLS between all its pods: by identities at both ends, and on the wire.

use gossamer_tests::cluster::Cluster;

pub(crate) fn a_namespace_with_one_annotation_has_mutual_tls(cluster: &Cluster) {
    let space = cluster.namespace("mtls", true);
    space.serve("web", 2);
    space.client("shop");
    space.ready(&["shop"]);
    let load = space.load("shop", "new", ("web", "/"), 50.0, 2.0, &[]);
    load.assert_none_failed();
    let client = "shop.mtls.serviceaccount.identity.gossamer.cluster.local";
    let server = "web.mtls.serviceaccount.identity.gossamer.cluster.local";
    let mut seen = 0.0;
    for pod in space.pods("app=web") {
        let metrics = space.metrics(pod["metadata"]["name"].as_str().unwrap());
        let labels = [("direction", "inbound"), ("tls", "true"), ("client_id", client)];
        seen += metrics.sum("request_total", &labels);
    }
    assert_eq!(seen, load.total() as f64, "the servers' proxies saw each request, with the client's identity");
    let metrics = space.metrics("shop");
    let labels = [("direction", "outbound"), ("tls", "true"), ("server_id", server)];
    assert_eq!(metrics.sum("response_total", &labels), load.total() as f64, "{}", metrics.text);
    // The application was told who asked.
    let output = space.probe("shop", &["get", "web", "80", "4"]);
    let answer = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
    assert!(answer.contains(client), "{answer}");
}

/// The node's own sniffer on all its links: the application's words are on none of them but loopback, which it never
/// leaves its pod by.
pub(crate) fn nothing_readable_is_on_the_wire(cluster: &Cluster) {
    let space = cluster.namespace("wire", true);
    space.serve("web", 1);
    space.client("shop");
    // A client without a proxy, to see that the sniffer sees.
    let plain = cluster.namespace("wireplain", false);
    plain.client("shop");
    space.ready(&["shop"]);
    plain.ready(&["shop"]);
    space.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: sniffer, namespace: NS, annotations: {gossamer.io/inject: disabled}}\n\
         spec:\n  hostNetwork: true\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    \
         image: mesh-test/probe:1\n    args: [sniff, secret_word_meshed, secret_word_plain]\n    \
         securityContext: {capabilities: {add: [NET_RAW]}}\n",
    );
    space.ready(&["sniffer"]);
    space.load("shop", "new", ("web", "/secret-word-meshed"), 20.0, 1.0, &[]).assert_none_failed();
    plain.load("shop", "new", ("web.wire", "/secret-word-plain"), 20.0, 1.0, &[]).assert_none_failed();
    let words = gossamer_tests::cluster::eventually("the sniffer hears plain text", || {
        let words = space.kubectl(&["logs", "sniffer"]);
        words.contains("secret-word-plain").then_some(words)
    });
    assert!(!words.contains("secret-word-meshed"), "{words}");
}
