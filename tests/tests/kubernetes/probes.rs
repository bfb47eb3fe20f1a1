//! Health checks of the kubelet tell of the application, not of the proxy.

use gossamer_tests::cluster::{Cluster, eventually};

pub(crate) fn a_tcp_probe_fails_where_nobody_listens(cluster: &Cluster) {
    let space = cluster.namespace("probes", true);
    for (name, checked) in [("good", 8080), ("bad", 8081)] {
        space.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NS}}\nspec:\n  \
             terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: mesh-test/probe:1\n    \
             args: [http, '8080']\n    readinessProbe: {{tcpSocket: {{port: {checked}}}, periodSeconds: 1}}\n"
        ));
    }
    space.ready(&["good"]);
    let words = eventually("the kubelet says why the other is not ready", || {
        let events = space.json(&["get", "events", "--field-selector=involvedObject.name=bad,reason=Unhealthy"]);
        let of_main = |event: &&serde_json::Value| event["involvedObject"]["fieldPath"] == "spec.containers{main}";
        let event = events["items"].as_array().unwrap().iter().find(of_main)?.clone();
        event["message"].as_str().map(str::to_string)
    });
    assert!(words.contains("refused"), "{words}");
    let bad = space.json(&["get", "pod", "bad"]);
    assert_eq!(bad["status"]["containerStatuses"][0]["ready"], false);
    assert_eq!(bad["status"]["initContainerStatuses"][0]["ready"], true, "the proxy itself is well");
}
