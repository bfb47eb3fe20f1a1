//! Every kind of workload gets a proxy, which gives its privileges away before it reads from the network.

use gossamer_tests::cluster::{Cluster, Space, eventually, ok, text};

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
         ---\napiVersion: v1\nkind: ReplicationController\nmetadata: {{name: old, namespace: NS}}\n\
         spec: {{replicas: 1, selector: {{app: old}}, \
         template: {{metadata: {{labels: {{app: old}}}}, spec: {{{container}}}}}}}\n\
         ---\napiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: cron, namespace: NS}}\n\
         spec: {{schedule: '0 0 1 1 *', jobTemplate: {{spec: {{template: {{metadata: {{labels: {{app: cron}}}}, spec: {{{once}}}}}}}}}}}\n"
    ));
    space.client("pod");
    space.kubectl(&["create", "job", "--from=cronjob/cron", "run"]);
    space.ready(&["pod"]);
    space.kubectl(&["wait", "--for=condition=Complete", "job/run", "--timeout=60s"]);
    for app in ["deployment", "stateful", "daemon", "replicas", "old", "cron", "pod"] {
        let pods = space.pods(&format!("app={app}"));
        assert!(!pods.is_empty(), "{app}");
        for pod in pods {
            let proxies = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
            assert_eq!(proxies, 1, "{app}: {}", pod["spec"]);
        }
    }
    // Whose pods they are is told where people look.
    news(&space, "daemon", "Injected", "proxy");
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

/// The same mesh in other shapes: a container of its own that sets the redirection, an ordinary container instead of an init
/// container that goes on, a pod whose containers are all root; and none at all where it is not wanted or can't be.
pub(crate) fn a_pod_has_the_shape_that_it_asks_for(cluster: &Cluster) {
    let space = cluster.namespace("shapes", true);
    space.apply(
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: NS}\n\
         spec: {selector: {app: server}, ports: [{name: http, port: 80, targetPort: 8080}]}\n",
    );
    let pod = |name: &str, annotations: &str, more: &str, command: &str| {
        space.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NS, labels: {{app: {name}}}, \
             annotations: {{{annotations}}}}}\nspec:\n  {more}\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: main, image: 'mesh-test/probe:1', args: [{command}]}}\n"
        ));
    };
    pod("server", "config.gossamer.io/redirect: init", "securityContext: {}", "http, '8080'");
    pod("init", "config.gossamer.io/redirect: init", "securityContext: {}", "sleep");
    pod("plain", "config.gossamer.io/native-sidecar: disabled", "securityContext: {}", "sleep");
    pod("root", "", "securityContext: {runAsUser: 0}", "sleep");
    pod("optout", "gossamer.io/inject: disabled", "securityContext: {}", "sleep");
    pod("onhost", "", "hostNetwork: true", "sleep");
    let all = ["server", "init", "plain", "root", "optout", "onhost"];
    space.ready(&all);
    let names = |pod: &str, list: &str| -> Vec<String> {
        let list = space.field(&format!("pod/{pod}"), &format!("/spec/{list}"));
        list.as_array().into_iter().flatten().map(|one| one["name"].as_str().unwrap().to_string()).collect()
    };
    for (pod, init, containers) in [
        ("server", &["gossamer-init", "gossamer-proxy"][..], &["main"][..]),
        ("init", &["gossamer-init", "gossamer-proxy"], &["main"]),
        ("plain", &[], &["gossamer-proxy", "main"]),
        ("root", &["gossamer-init", "gossamer-proxy"], &["main"]),
        ("optout", &[], &["main"]),
        ("onhost", &[], &["main"]),
    ] {
        assert_eq!((names(pod, "initContainers"), names(pod, "containers")), (owned(init), owned(containers)), "{pod}");
    }
    let client_id = |pod: &str| {
        let answer = eventually(pod, || {
            let output = space.probe(pod, &["get", "web", "80", "4"]);
            output.status.success().then(|| text(&output.stdout))
        });
        answer.contains("l5d-client-id: default.shapes.serviceaccount.identity.gossamer.")
    };
    // The server asks itself, too.
    for pod in all {
        if pod != "onhost" {
            assert_eq!(client_id(pod), pod != "optout", "{pod}");
        }
    }
    news(&space, "onhost", "InjectionSkipped", "hostNetwork");
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_string()).collect()
}

/// Waits for an event about an object.
fn news(space: &Space<'_>, object: &str, reason: &str, word: &str) {
    let selector = format!("--field-selector=involvedObject.name={object},reason={reason}");
    eventually("the event is there", || {
        let events = space.json(&["get", "events", &selector]);
        let all = events["items"].as_array().unwrap();
        all.iter().any(|event| event["message"].to_string().contains(word)).then_some(())
    });
}
