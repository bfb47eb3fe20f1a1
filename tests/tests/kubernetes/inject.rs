//! `meshctl inject` and `uninject`: YAML with the whole proxy in it, and with the annotation alone.

use gossamer_tests::cluster::{Cluster, eventually, ok, text};
use serde_json::Value;

const KINDS: &str = r#"
apiVersion: v1
kind: List
items:
- apiVersion: apps/v1
  kind: StatefulSet
  metadata: {name: stateful}
  spec:
    serviceName: stateful
    selector: {matchLabels: {app: stateful}}
    template:
      metadata: {labels: {app: stateful}}
      spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "mesh-test/probe:1", args: [http, "8080"]}]}
- {apiVersion: v1, kind: Service, metadata: {name: stateful}, spec: {clusterIP: None, selector: {app: stateful}, ports: [{port: 8080}]}}
---
# A comment, and a document without anything.
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: daemon}
spec:
  selector: {matchLabels: {app: daemon}}
  template:
    metadata: {labels: {app: daemon}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "mesh-test/probe:1", args: [http, "8080"]}]}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: cron}
spec:
  schedule: "0 0 1 1 *"
  jobTemplate:
    spec:
      template:
        metadata: {labels: {app: cron}}
        spec:
          restartPolicy: Never
          containers: [{name: main, image: "mesh-test/probe:1", args: [load, new, stateful, "8080", /, "5", "1"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: bare, labels: {app: bare}}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: "mesh-test/probe:1", args: [sleep]}]}
"#;

pub(crate) fn yaml_is_injected_and_uninjected(cluster: &Cluster) {
    let space = cluster.namespace("written", false);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kinds.yaml"), KINDS).unwrap();
    let folder = folder.path().display();
    // A namespace that does not ask for the mesh: what is there is what was written.
    let said = ok(cluster
        .shell(&format!("meshctl inject --manual --set access-log=json {folder} | kubectl -n written apply -f -")));
    let said = text(&said.stderr);
    for object in ["statefulset/stateful", "daemonset/daemon", "cronjob/cron", "pod/bare"] {
        assert!(said.contains(&format!("{object} has the proxy")), "{said}");
    }
    assert!(said.contains("service/stateful has no pods"), "{said}");
    space.ready(&["bare"]);
    space.kubectl(&["create", "job", "--from=cronjob/cron", "run"]);
    space.kubectl(&["wait", "--for=condition=Complete", "job/run", "--timeout=60s"]);
    let proxies = |app: &str| -> Vec<usize> {
        let of = |pod: &Value| pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
        space
            .pods(&format!("app={app}"))
            .iter()
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .map(of)
            .collect()
    };
    for app in ["stateful", "daemon", "cron", "bare"] {
        assert_eq!(proxies(app), [1], "{app}");
    }
    let answer = eventually("a meshed answer", || {
        let output = space.probe("bare", &["get", "stateful-0.stateful", "8080", "4"]);
        output.status.success().then(|| text(&output.stdout))
    });
    assert!(answer.contains("l5d-client-id: default.written."), "{answer}");

    let everything = "kubectl -n written get statefulsets,daemonsets,cronjobs -o yaml";
    ok(cluster.shell(&format!("{everything} | meshctl uninject - | kubectl apply -f -")));
    space.ready(&[]);
    eventually("the pods are without proxy", || (proxies("stateful") == [0] && proxies("daemon") == [0]).then_some(()));
    ok(cluster.shell(&format!("{everything} | meshctl inject - | kubectl apply -f -")));
    space.ready(&[]);
    eventually("the injector gave them one", || (proxies("stateful") == [1] && proxies("daemon") == [1]).then_some(()));
    let unknown = cluster.shell(&format!("meshctl inject --set accesslog=json {folder}"));
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("did you mean access-log?"), "{}", text(&unknown.stderr));
}
