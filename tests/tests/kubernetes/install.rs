//! From nothing to a meshed application by the README's commands, and back.

use gossamer_tests::cluster::{Cluster, PATIENCE, eventually, ok, root, text};
use std::time::{Duration, Instant};

/// The first block of commands of the README's section about Kubernetes, as it is.
fn commands() -> String {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("\n## On Kubernetes\n").nth(1).expect("the README has a section \"On Kubernetes\"");
    let block = section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("that section has commands").to_string()
}

pub(crate) fn from_nothing_to_a_meshed_application(cluster: &Cluster) {
    let commands = commands();
    assert!(commands.starts_with("meshctl install | kubectl apply -f -"), "{commands}");
    let before = cluster.meshctl(&["check", "--pre"]);
    assert!(before.status.success(), "{}{}", text(&before.stdout), text(&before.stderr));
    let (install, rest) = commands.split_once('\n').unwrap();
    ok(cluster.shell(install));
    let applied = Instant::now();
    let check = cluster.meshctl(&["check"]);
    assert!(check.status.success(), "{}{}", text(&check.stdout), text(&check.stderr));
    println!("figure: end of apply until check passes: {:.1} s", applied.elapsed().as_secs_f64());
    ok(cluster.shell(rest));

    let pods = cluster.json(&["-n", "demo", "get", "pods"]);
    let pods = pods["items"].as_array().unwrap();
    assert!(pods.len() >= 8, "{} pods", pods.len());
    for pod in pods {
        let proxy = &pod["spec"]["initContainers"][0];
        assert_eq!(proxy["name"], "gossamer-proxy", "{}", pod["metadata"]["name"]);
    }
    // Every edge of the application is there, and all of them are secured.
    let edges = eventually("five edges", || {
        let output = cluster.meshctl(&["edges", "-n", "demo", "-o", "json"]);
        let edges: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).ok()?;
        (edges.len() >= 5).then_some(edges)
    });
    assert!(edges.iter().all(|edge| edge["secured"] == true), "{edges:?}");

    // Once more: nothing changes, roots of trust least of all.
    let again = text(&ok(cluster.shell("meshctl install | kubectl apply -f -")).stdout);
    let changed: Vec<_> = again.lines().filter(|line| !line.ends_with(" unchanged")).collect();
    // kubectl calls lists of containers "configured" at times; the roots and the issuer must be the same.
    assert!(!changed.iter().any(|line| line.contains("trust-anchors") || line.contains("issuer")), "{changed:?}");
}

pub(crate) fn uninstall_leaves_nothing(cluster: &Cluster, before: &[String]) {
    let start = Instant::now();
    ok(cluster.shell("kubectl delete namespace demo --ignore-not-found --wait"));
    println!("figure: the demo's namespace is gone after {:.0} s", start.elapsed().as_secs_f64());
    // What has to be killed is killed after 30 s: programs and proxies end by themselves.
    assert!(start.elapsed() < Duration::from_secs(28), "{:?}", start.elapsed());
    ok(cluster.shell("meshctl uninstall | kubectl delete -f -"));
    // Everything counts that was not there before, but what is in the suite's namespaces: those are on their way out, with
    // the addresses of their services.
    let namespaces: Vec<_> = before.iter().filter_map(|object| object.strip_prefix("Namespace//")).collect();
    let suites = |object: &str| {
        let mut parts = object.splitn(3, '/');
        let (kind, namespace, name) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let namespace = if kind == "Namespace" { name } else { namespace };
        kind == "IPAddress"
            || !(namespace.is_empty() || namespace.contains("gossamer") || namespaces.contains(&namespace))
    };
    let left = || cluster.objects().into_iter().filter(|o| !suites(o) && !before.contains(o)).collect::<Vec<_>>();
    let deadline = Instant::now() + PATIENCE;
    let mut still = left();
    while !still.is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_secs(1));
        still = left();
    }
    assert!(still.is_empty(), "still there: {still:?}");
    let gone: Vec<_> = cluster.kubectl(&["get", "crd", "-o", "name"]).lines().map(str::to_string).collect();
    assert!(gone.is_empty(), "{gone:?}");
}
