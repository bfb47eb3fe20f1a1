//! The live commands where there are many pods, and where one of them is silent.

use gossamer_tests::cluster::{Cluster, Space, eventually, text};
use serde_json::Value;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const GROUPS: usize = 10;

/// All of the 300 that are promised take minutes to start on two cores: `MESH_K8S_PODS=300` has them.
fn pods() -> usize {
    let said = std::env::var("MESH_K8S_PODS").ok().and_then(|number| number.parse::<usize>().ok());
    said.unwrap_or(100) / GROUPS * GROUPS
}

/// Neighbours that the kernel remembers, for all namespaces of the machine together; by default 1,024, and every pod has
/// some. Set back in the end.
struct Neighbours(String);

const NEIGHBOURS: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";

impl Neighbours {
    fn allow(number: usize) -> Neighbours {
        let before = std::fs::read_to_string(NEIGHBOURS).unwrap();
        std::fs::write(NEIGHBOURS, number.to_string()).unwrap();
        Neighbours(before)
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        let _ = std::fs::write(NEIGHBOURS, &self.0);
    }
}

/// Runs meshctl in the space's namespace; how long it took.
fn timed(space: &Space<'_>, arguments: &[&str]) -> (Output, Duration) {
    let all: Vec<&str> = arguments.iter().chain(&["-n", space.name.as_str()]).copied().collect();
    let start = Instant::now();
    let output = space.cluster.meshctl(&all);
    (output, start.elapsed())
}

fn rows(output: &Output) -> Vec<Value> {
    let rows: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", text(&output.stdout), text(&output.stderr)));
    rows.as_array().unwrap().clone()
}

/// A small one: what is asked about is its proxies.
fn deployment(n: usize, replicas: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web{n}, namespace: NS}}\n\
         spec:\n  selector: {{app: web{n}}}\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n\
         ---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web{n}, namespace: NS}}\n\
         spec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: web{n}}}}}\n  \
         template:\n    metadata: {{labels: {{app: web{n}}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      \
         containers:\n      - {{name: main, image: 'mesh-test/probe:1', args: [http, '8080']}}\n"
    )
}

pub(crate) fn hundreds_of_pods_are_asked_in_seconds(cluster: &Cluster) {
    let pods = pods();
    let _neighbours = Neighbours::allow(16 * pods);
    cluster.allow_pods(pods + 60);
    let space = cluster.namespace("many", true);
    let start = Instant::now();
    space.client("shop");
    // One after the other: a kubelet that starts hundreds at once starves all that is beside it.
    for n in 0..GROUPS {
        space.apply(&deployment(n, pods / GROUPS));
        space.kubectl(&["rollout", "status", &format!("deployment/web{n}"), "--timeout=400s"]);
    }
    space.ready(&["shop"]);
    println!("figure: {pods} pods with a proxy are ready after {:.0} s", start.elapsed().as_secs_f64());

    std::thread::scope(|scope| {
        let load = scope.spawn(|| space.load("shop", "kept", ("web3", "/"), 20.0, 60.0, &[]));
        let (stat, took) = timed(&space, &["stat", "pods", "-o", "json"]);
        let all = rows(&stat);
        println!("figure: stat of {pods} pods takes {:.1} s, of which it watches 2", took.as_secs_f64());
        assert_eq!(all.len(), pods + 1, "{}", text(&stat.stderr));
        assert!(all.iter().all(|row| row["meshed"] == 1) && !text(&stat.stderr).contains("did not answer"));
        let (groups, _) = timed(&space, &["stat", "deploy", "-o", "json"]);
        let groups = rows(&groups);
        assert_eq!(groups.len(), GROUPS);
        let busy = groups.iter().find(|row| row["name"] == "web3").unwrap();
        assert!(busy["rps"].as_f64().unwrap() > 5.0 && busy["mtls_share"] == 1.0, "{busy:#}");

        let (top, took) = timed(&space, &["top", "--duration", "2s", "-o", "json"]);
        println!("figure: top of {pods} pods for 2 s takes {:.1} s", took.as_secs_f64());
        let call = rows(&top).into_iter().next().unwrap_or_else(|| panic!("{}", text(&top.stderr)));
        assert_eq!((&call["source"], &call["destination"]), (&"po/shop".into(), &"deploy/web3".into()), "{call:#}");
        let (tap, took) = timed(&space, &["tap", "--duration", "2s", "-o", "json"]);
        println!("figure: tap of {pods} pods for 2 s takes {:.1} s", took.as_secs_f64());
        assert!(text(&tap.stdout).lines().count() > 10, "{}", text(&tap.stderr));
        let (edges, took) = timed(&space, &["edges", "-o", "json"]);
        println!("figure: edges of {pods} pods take {:.1} s", took.as_secs_f64());
        let edges = rows(&edges);
        assert!(edges.iter().any(|edge| edge["dst"] == "deploy/web3" && edge["secured"] == true), "{edges:#?}");
        drop(load.join());
    });
    one_is_silent(&space, pods);
    // Whoever comes next shall not wait for hundreds of pods to end.
    let start = Instant::now();
    space.kubectl(&["delete", "namespace", &space.name, "--wait", "--timeout=400s"]);
    println!("figure: {pods} pods are gone after {:.0} s", start.elapsed().as_secs_f64());
}

/// A proxy that is stopped, as one that hangs: it costs its own figures, a bounded wait, and a word.
fn one_is_silent(space: &Space<'_>, pods: usize) {
    let pod = &space.pods("app=web5")[0];
    let name = pod["metadata"]["name"].as_str().unwrap();
    let id =
        pod["status"]["initContainerStatuses"][0]["containerID"].as_str().unwrap().trim_start_matches("containerd://");
    let process = process_of(id).unwrap_or_else(|| panic!("no process of container {id}"));
    signal("STOP", process);
    let (stat, took) = timed(space, &["stat", "pods", "-o", "json"]);
    signal("CONT", process);
    let (all, said) = (rows(&stat), text(&stat.stderr));
    println!("figure: stat of {pods} pods, one of them silent, takes {:.1} s", took.as_secs_f64());
    assert!(said.contains(&format!("1 of {} proxies did not answer", pods + 1)) && said.contains(name), "{said}");
    assert_eq!(all.len(), pods + 1);
    let others = all.iter().filter(|row| row["rps"].is_number()).count();
    assert_eq!(others, pods, "the silent one has a row without figures");
    eventually("it answers again", || {
        let (stat, _) = timed(space, &["stat", &format!("pod/{name}"), "-t", "0", "-o", "json"]);
        stat.status.success().then_some(())
    });
}

/// The first process of a container; nodes' processes are this machine's.
fn process_of(container: &str) -> Option<u32> {
    let mut of: Vec<u32> = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(container)))
        .collect();
    of.sort_unstable();
    of.first().copied()
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill").args([format!("-{name}"), process.to_string()]).status();
    assert!(status.unwrap().success());
}
