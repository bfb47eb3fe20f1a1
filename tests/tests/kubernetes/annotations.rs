//! Annotations: typos are told where people look, and what changes the way to a workload does what it says.

use gossamer_tests::cluster::{Cluster, eventually, text};

const TYPO: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: typo, namespace: typos, annotations: {gossamer.io/inject: enabled}}
spec:
  selector: {matchLabels: {app: typo}}
  template:
    metadata: {labels: {app: typo}, annotations: {gossamer.io/injcet: enabled}}
    spec: {containers: [{name: main, image: "mesh-test/probe:1", args: [sleep]}]}
"#;

pub(crate) fn typos_are_told_where_people_look(cluster: &Cluster) {
    let space = cluster.namespace("typos", false);
    // By whoever writes the workload...
    eventually("the API server asks the webhook that warns", || {
        let said = text(&cluster.try_apply(TYPO).stderr);
        (said.contains("did you mean \"gossamer.io/inject\"?") && said.contains("spec.template.metadata")).then_some(())
    });
    let annotated = cluster.try_kubectl(&["annotate", "namespace", "typos", "config.gossamer.io/opaque-port=80"]);
    assert!(text(&annotated.stderr).contains("config.gossamer.io/opaque-ports"), "{}", text(&annotated.stderr));
    // ...and by an event of it, since its pods are made by a controller.
    let event = eventually("an event of the Deployment", || {
        let of = "involvedObject.kind=Deployment,involvedObject.name=typo,reason=InjectionWarning";
        space.json(&["get", "events", "--field-selector", of])["items"].as_array()?.first().cloned()
    });
    assert!(event["message"].to_string().contains("gossamer.io/inject"), "{event:#}");
    // A namespace with the label is left alone by all webhooks.
    space.kubectl(&["label", "namespace", "typos", "config.gossamer.io/admission-webhooks=disabled"]);
    eventually("nobody is asked about it", || {
        let said = cluster.try_kubectl(&["-n", "typos", "annotate", "--overwrite", "deploy/typo", "other=1"]);
        (!text(&said.stderr).contains("did you mean")).then_some(())
    });
}

/// Linkerd's annotations as well as ours, on the namespace: what the proxy does, and what clients are told of it.
pub(crate) fn skipped_clients_and_ports_bypass_the_proxy(cluster: &Cluster) {
    let (space, plain) = (cluster.namespace("skips", true), cluster.namespace("skips-plain", false));
    space.kubectl(&["annotate", "namespace", "skips", "config.linkerd.io/default-inbound-policy=deny"]);
    plain.client("shop");
    space.serve("closed", 1);
    space.ready(&[]);
    // All pods of the cluster's network, by a mask that is not a whole number of bytes.
    space.kubectl(&["annotate", "namespace", "skips", "config.linkerd.io/skip-subnets=10.0.0.0/9,10.128.0.0/9"]);
    space.serve("open", 1);
    space.ready(&[]);
    plain.ready(&["shop"]);
    let gets = |server: &str, status: u16| {
        let url = format!("{server}.skips");
        eventually(&format!("{server} answers {status}"), || {
            let load = plain.load("shop", "new", (url.as_str(), "/"), 10.0, 0.3, &[]);
            (load.status(status) == load.total()).then_some(())
        });
    };
    gets("closed", 403);
    gets("open", 200);

    // The ports of a pod that runs are those that its proxy was told: clients go on by its proxy.
    space.client("friend");
    space.ready(&["friend"]);
    for change in ["default-inbound-policy=all-authenticated", "skip-inbound-ports=8080"] {
        space.kubectl(&["annotate", "--overwrite", "namespace", "skips", &format!("config.linkerd.io/{change}")]);
    }
    eventually("an identity is shown", || {
        let load = space.load("friend", "new", ("closed", "/"), 10.0, 0.3, &[]);
        (load.ok() == load.total()).then_some(())
    });
    let skipped = space.pods("app=closed")[0]["spec"].to_string().contains("MESH_SKIP_INBOUND_PORTS");
    assert!(!skipped, "it was made before");
}
