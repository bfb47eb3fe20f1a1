//! Every kind of workload gets a proxy, which gives its privileges away before it reads from the network.

use gossamer_tests::cluster::{Cluster, eventually, ok, text};

pub(crate) fn every_kind_of_workload_gets_a_proxy(cluster: &Cluster) {
    let space = cluster.namespace("kinds", true);
    space.serve("deployment", 1);
    let container = "containers: [{name: main, image: 'mesh-test/kubetool:1', args: [echo]}]";
    let once = "restartPolicy: Never, containers: [{name: main, image: 'mesh-test/kubetool:1', \
                args: [fetch, 'http://deployment/']}]";
    space.apply(&format!(
        "---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: stateful, namespace: NS}}\n\
         spec: {{serviceName: stateful, replicas: 2, selector: {{matchLabels: {{app: stateful}}}}, \
         template: {{metadata: {{labels: {{app: stateful}}}}, spec: {{{container}}}}}}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: stateful, namespace: NS}}\n\
         spec: {{clusterIP: None, selector: {{app: stateful}}, ports: [{{name: http, port: 8080}}]}}\n\
         ---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: daemon, namespace: NS}}\n\
         spec: {{selector: {{matchLabels: {{app: daemon}}}}, \
         template: {{metadata: {{labels: {{app: daemon}}}}, spec: {{{container}}}}}}}\n\
         ---\napiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: replicas, namespace: NS}}\n\
         spec: {{replicas: 1, selector: {{matchLabels: {{app: replicas}}}}, \
         template: {{metadata: {{labels: {{app: replicas}}}}, spec: {{{container}}}}}}}\n\
         ---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: cron, namespace: NS}}\n\
         spec: {{schedule: '0 0 1 1 *', jobTemplate: {{spec: {{template: {{metadata: {{labels: {{app: cron}}}}, spec: {{{once}}}}}}}}}}}\n"
    ));
    space.client("pod");
    space.kubectl(&["create", "job", "--from=cronjob/cron", "run"]);
    space.ready(&["pod"]);
    space.kubectl(&["wait", "--for=condition=Complete", "job/run", "--timeout=60s"]);
    for app in ["deployment", "stateful", "daemon", "replicas", "cron", "pod"] {
        let pods = space.pods(&format!("app={app}"));
        assert!(!pods.is_empty(), "{app}");
        for pod in pods {
            let proxies = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
            assert_eq!(proxies, 1, "{app}: {}", pod["spec"]);
        }
    }
    // A StatefulSet's replica by its own name, which only a headless service has.
    eventually("the second replica's name", || {
        let output = space.probe("pod", &["get", "stateful-1.stateful", "8080", "4"]);
        output.status.success().then(|| assert!(text(&output.stdout).contains("stateful-1")))
    });
}

pub(crate) fn the_proxy_gives_its_privileges_away(cluster: &Cluster) {
    let space = cluster.namespace("privilege", true);
    space.client("shop");
    space.ready(&["shop"]);
    space.look();
    let output = ok(space.probe("look", &["processes", "gossamer-proxy"]));
    let found = text(&output.stdout);
    assert!(!found.is_empty());
    for process in found.split("\n\n").filter(|process| !process.trim().is_empty()) {
        let value = |key: &str| {
            let line = process.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("{key} in {process}"))
                .split_whitespace()
                .map(str::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(value("Uid:"), ["2102"; 4], "{process}");
        assert_eq!(value("Gid:"), ["2102"; 4], "{process}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(value(set), ["0000000000000000"], "{set} {process}");
        }
        assert_eq!(value("NoNewPrivs:"), ["1"], "{process}");
        assert_eq!(value("Seccomp:"), ["2"], "{process}");
    }
}
