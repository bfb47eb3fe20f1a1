//! `meshctl check` finds what is wrong, and says what to do.

use gossamer_identity::issuer::{new_issuer, new_root};
use gossamer_tests::cluster::{Cluster, PATIENCE, eventually, ok, text};
use serde_json::Value;
use std::time::{Duration, Instant, SystemTime};

/// `meshctl check` as it is now: its exit code and its findings.
fn check(cluster: &Cluster, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = cluster.meshctl(&[&["check", "-o", "json", "--wait", "0s"], arguments].concat());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    (output.status.code(), report["checks"].as_array().unwrap().clone())
}

/// Looks until there are findings whose problems contain these words, each with a hint that contains what is beside it.
fn finds(cluster: &Cluster, arguments: &[&str], expect: &[(&str, &str)]) {
    let is = |finding: &Value, key: &str, word: &str| finding[key].as_str().is_some_and(|text| text.contains(word));
    let mut last = Vec::new();
    let (start, all) = (Instant::now(), |found: &[Value]| {
        expect.iter().all(|(problem, hint)| found.iter().any(|one| is(one, "error", problem) && is(one, "hint", hint)))
    });
    while start.elapsed() < PATIENCE {
        let (code, found) = check(cluster, arguments);
        last = found.into_iter().filter(|one| !one["error"].is_null()).collect();
        // Whoever reads of a problem reads what to do.
        assert!(last.iter().all(|one| one["hint"].as_str().is_some_and(|hint| !hint.is_empty())), "{last:#?}");
        let failed = last.iter().any(|one| one["ok"] == false);
        assert_eq!(code, Some(if failed { 3 } else { 0 }), "{last:#?}");
        if all(&last) {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    panic!("{expect:?}: {last:#?}");
}

pub(crate) fn check_finds_what_is_wrong(cluster: &Cluster) {
    let (code, report) = check(cluster, &[]);
    assert_eq!(code, Some(0), "{report:#?}");
    let (code, report) = check(cluster, &["--pre", "--as", "jane"]);
    assert!(code == Some(3) && report.iter().any(|one| one["error"].to_string().contains("you may not create")));

    proxies(cluster);
    let control = |arguments: &[&str]| cluster.kubectl(&[&["-n", "gossamer"], arguments].concat());
    // An issuer of other roots: nothing takes it over, and it is told.
    let kept = cluster.json(&["-n", "gossamer", "get", "secret", "gossamer-identity-issuer"]);
    let root = new_root("cluster.local", SystemTime::now()).unwrap();
    let issuer = new_issuer(&root.pem(), "cluster.local", SystemTime::now()).unwrap();
    let data = serde_json::json!({ "stringData": { "tls.crt": issuer.certificate, "tls.key": issuer.key } });
    control(&["patch", "secret", "gossamer-identity-issuer", "-p", &data.to_string()]);
    finds(cluster, &[], &[("issuer: ", "meshctl upgrade --issuer-certificate")]);
    let data =
        serde_json::json!({ "data": { "tls.crt": kept["data"]["tls.crt"], "tls.key": kept["data"]["tls.key"] } });
    control(&["patch", "secret", "gossamer-identity-issuer", "-p", &data.to_string()]);

    // What an installation makes is missing, and one command brings it back.
    cluster.kubectl(&["delete", "crd", "authorizationpolicies.policy.gossamer.io"]);
    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", "gossamer-injector"]);
    let install = "meshctl install | kubectl apply -f -";
    finds(
        cluster,
        &[],
        &[
            ("authorizationpolicies.policy.gossamer.io is missing", install),
            ("the webhook configuration gossamer-injector is missing", install),
        ],
    );
    ok(cluster.shell(install));
    cluster.assert_well();

    // No part runs, and the API server believes somebody else.
    for part in ["identity", "destination", "injector"] {
        control(&["scale", &format!("deploy/gossamer-{part}"), "--replicas=0"]);
    }
    control(&["wait", "--for=delete", "pod", "-l", "gossamer.io/control-plane-component", "--timeout=60s"]);
    let other = r#"[{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "eA=="}]"#;
    cluster.kubectl(&["patch", "mutatingwebhookconfiguration", "gossamer-injector", "--type=json", "-p", other]);
    let scaled = |part| format!("{part}: it has no pod; is it scaled to none?");
    let parts = ["identity", "destination", "injector"].map(scaled);
    let describe = "kubectl -n gossamer describe pod -l gossamer.io/control-plane-component";
    let mut expect: Vec<_> = parts.iter().map(|problem| (problem.as_str(), describe)).collect();
    expect.push(("caBundle is not ca.crt of the secret", "look at the injector"));
    finds(cluster, &[], &expect);
    for part in ["identity", "destination", "injector"] {
        control(&["scale", &format!("deploy/gossamer-{part}"), "--replicas=1"]);
    }
    cluster.assert_well();

    // Pods of the control plane: three, with one container each.
    let pods = cluster.json(&["-n", "gossamer", "get", "pods", "--field-selector=status.phase=Running"]);
    let pods: Vec<_> =
        pods["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect();
    let count = |list: &str| pods.iter().map(|pod| pod["spec"][list].as_array().map_or(0, Vec::len)).sum::<usize>();
    let (containers, init) = (count("containers"), count("initContainers"));
    println!("figure: control plane: {} pods, {containers} containers", pods.len());
    assert_eq!((pods.len(), containers, init), (3, 3, 0));
    // No more is installed for the tables.
    assert_eq!(
        cluster.json(&["get", "deployments", "-A", "-l", "app.kubernetes.io/part-of=gossamer"])["items"]
            .as_array()
            .unwrap()
            .len(),
        3
    );
}

/// What can be wrong with proxies, all at once.
fn proxies(cluster: &Cluster) {
    let space = cluster.namespace("ill", true);
    space.client("old");
    space.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: never, namespace: NS, annotations: {config.gossamer.io/image: 'none:0'}}\n\
         spec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - {name: main, image: 'mesh-test/probe:1', args: [sleep]}\n",
    );
    space.ready(&["old"]);
    space.kubectl(&["annotate", "pod", "old", "gossamer.io/proxy-version=0.0.1", "--overwrite"]);
    space.kubectl(&["label", "namespace", "ill", "pod-security.kubernetes.io/enforce=baseline"]);
    // One that was there before its namespace asked for the mesh.
    let late = cluster.namespace("late", false);
    late.client("bare");
    late.kubectl(&["annotate", "namespace", "late", "gossamer.io/inject=enabled"]);
    finds(
        cluster,
        &[],
        &[
            ("ill/never", "kubectl logs POD -c gossamer-proxy"),
            ("ill/old", "kubectl rollout restart"),
            ("Pod Security refuses them in ill", "pod-security.kubernetes.io/enforce=privileged"),
            ("late/bare", "kubectl rollout restart"),
        ],
    );
    // Of one namespace alone: the others' are not looked at, and warnings are no failure.
    finds(cluster, &["-n", "late"], &[("late/bare", "kubectl rollout restart")]);
    for space in ["ill", "late"] {
        cluster.kubectl(&["delete", "namespace", space, "--wait"]);
    }
}

/// Deleted, or never there: the injector makes its serving certificate, and tells the API server whom to trust.
pub(crate) fn the_injector_makes_its_certificate_anew(cluster: &Cluster) {
    let space = cluster.namespace("anew", true);
    let certificate = || {
        let output = cluster.try_kubectl(&[
            "-n",
            "gossamer",
            "get",
            "secret",
            "gossamer-injector-tls",
            "-o=jsonpath={.data.ca\\.crt}",
        ]);
        let text = text(&output.stdout);
        (output.status.success() && !text.is_empty()).then_some(text)
    };
    let before = certificate().unwrap();
    cluster.kubectl(&["-n", "gossamer", "delete", "secret", "gossamer-injector-tls"]);
    let after = eventually("a new certificate", || certificate().filter(|after| *after != before));
    eventually("the API server is told", || {
        let told = cluster.kubectl(&[
            "get",
            "mutatingwebhookconfiguration",
            "gossamer-injector",
            "-o=jsonpath={.webhooks[*].clientConfig.caBundle}",
        ]);
        told.split_whitespace().all(|bundle| bundle == after).then_some(())
    });
    eventually("pods get the proxy", || {
        space.client("shop");
        let proxies = space.field("pod/shop", "/spec/initContainers/0/name");
        if proxies != "gossamer-proxy" {
            space.kubectl(&["delete", "pod", "shop", "--wait"]);
            return None;
        }
        Some(())
    });
    space.ready(&["shop"]);
    cluster.assert_well();
}
