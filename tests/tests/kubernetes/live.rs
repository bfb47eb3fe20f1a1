//! What the commands that look at a cluster show: the traffic that is there, straight from the proxies.

use gossamer_tests::cluster::{Cluster, PATIENCE, Space, eventually, text};
use serde_json::Value;
use std::net::TcpStream;
use std::process::{Child, Output};
use std::time::{Duration, Instant};

const TAP_PORT: u16 = 4190;

/// Runs meshctl in the space's namespace; its JSON.
fn seen(space: &Space<'_>, arguments: &[&str]) -> Value {
    let output = meshctl(space, arguments, &["-o", "json"]);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {}", text(&output.stdout)))
}

fn meshctl(space: &Space<'_>, arguments: &[&str], more: &[&str]) -> Output {
    let all: Vec<&str> = arguments.iter().chain(&["-n", space.name.as_str()]).chain(more).copied().collect();
    space.cluster.meshctl(&all)
}

/// A client that goes on asking. Dropping it lets go of it; it ends with its pod.
struct Asking(Child);

impl Asking {
    fn begin(space: &Space<'_>, pod: &str, host: &str, rate: &str) -> Asking {
        let load =
            ["exec", pod, "-n", &space.name, "-c", "main", "--", "/probe", "load", "kept", host, "80", "/", rate];
        Asking(space.cluster.spawn("kubectl", &[&load[..], &["3600"]].concat()))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Looks until a row is as it should be. A busy machine makes proxies silent for a moment, and rows then have no figures.
fn shows(space: &Space<'_>, arguments: &[&str], name: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let rows = seen(space, arguments);
        let here = |row: &&Value| row["namespace"] == *space.name || row["namespace"] == "";
        let row = rows.as_array().unwrap().iter().filter(here).find(|row| row["name"] == name).cloned();
        if let Some(row) = row.filter(&is_right) {
            return row;
        }
        assert!(Instant::now() < deadline, "{arguments:?}: {rows:#}");
    }
}

fn rps(row: &Value) -> f64 {
    row["rps"].as_f64().unwrap_or(-1.0)
}

pub(crate) fn traffic_is_seen_as_it_is(cluster: &Cluster) {
    let space = cluster.namespace("live", true);
    space.serve("api", 2);
    space.client("web");
    space.ready(&["web"]);
    // For as long as the looking takes, which on a busy machine nobody knows.
    let asking = Asking::begin(&space, "web", "api", "20");
    // Figures are right after 2 s, whatever the machine does beside.
    let start = Instant::now();
    shows(&space, &["stat", "deploy"], "api", |api| (10.0..30.0).contains(&rps(api)));
    println!("figure: live tables: right after {:.1} s", start.elapsed().as_secs_f64());
    // A health check that is under way at the window's end is a connection whose request is not counted yet.
    let api = shows(&space, &["stat", "deploy/api"], "api", |api| rps(api) > 5.0 && api["mtls_share"] == 1.0);
    assert_eq!((&api["meshed"], &api["replicas"], &api["kind"]), (&2.into(), &2.into(), &"deployment".into()));
    assert_eq!(api["success_rate"].as_f64(), Some(1.0), "{api:#}");
    shows(&space, &["stat", "svc/api", "--from", "pod/web"], "api", |api| rps(api) > 5.0);
    let sent = shows(&space, &["stat", "pod/web", "--to", "deploy/api"], "web", |web| rps(web) > 5.0);
    assert_eq!(sent["mtls_share"].as_f64(), Some(1.0), "{sent:#}");
    shows(&space, &["stat", "ns/live"], "live", |live| rps(live) > 5.0);
    by_labels(&space);
    as_a_plugin_of_kubectl(&space);
    let nothing = shows(&space, &["stat", "pod/web", "--to", "svc/elsewhere"], "web", |web| rps(web) >= 0.0);
    assert_eq!(rps(&nothing), 0.0, "{nothing:#}");

    let call = eventually("top has a call", || {
        let top = seen(&space, &["top", "pod/web", "--duration", "2s"]);
        top.as_array().unwrap().first().cloned()
    });
    let (destination, method, path) = (&call["destination"], &call["method"], &call["path"]);
    assert_eq!((destination, method, path), (&"deploy/api".into(), &"GET".into(), &"/".into()), "{call:#}");

    let requests = eventually("tap has requests", || {
        let tap = meshctl(&space, &["tap", "deploy/api", "--duration", "2s"], &["-o", "json"]);
        let events = text(&tap.stdout);
        let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let requests = events.filter(|event| event["requestInitEvent"]["path"] == "/").collect::<Vec<_>>();
        (requests.len() > 10).then_some(requests)
    });
    let named = requests[0]["requestInitEvent"]["id"]["name"].as_str().unwrap();
    let why = meshctl(&space, &["why", named], &["-o", "json"]);
    let stories: Value = serde_json::from_slice(&why.stdout).unwrap_or_else(|_| panic!("{}", text(&why.stderr)));
    assert!(stories[0]["request"] == named && stories[0]["path"] == "/", "{stories:#}");

    let edge = eventually("the edge", || {
        let edges = seen(&space, &["edges"]);
        edges.as_array()?.iter().find(|edge| edge["src"] == "po/web" && edge["dst"] == "deploy/api").cloned()
    });
    assert_eq!(edge["secured"], true, "{edge:#}");
    assert!(edge["client_id"].as_str().unwrap().starts_with("web.live.serviceaccount."), "{edge:#}");

    eventually("all three show a certificate that is valid", || {
        let certificates = seen(&space, &["identity"]);
        let certificates = certificates.as_array().unwrap();
        (certificates.len() == 3 && certificates.iter().all(|one| one["valid"] == true)).then_some(())
    });
    let metrics = meshctl(&space, &["proxy-metrics", "pod/web"], &[]);
    assert!(text(&metrics.stdout).contains("\nresponse_total{"), "{}", text(&metrics.stderr));
    let answered =
        |class| space.metrics("web").sum("response_total", &[("direction", "outbound"), ("classification", class)]);
    assert!(answered("success") > 100.0 && answered("failure") == 0.0, "{}", answered("failure"));
    drop(asking);
}

/// Labels choose as kubectl's do, the API server among them: in each command that looks.
fn by_labels(space: &Space<'_>) {
    for selector in ["app=api", "app in (api,none)", "app!=web", "!nothing,pod-template-hash"] {
        let pods = seen(space, &["stat", "pods", "-l", selector]);
        let names: Vec<_> = pods.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
        assert!(names.len() == 2 && names.iter().all(|name| name.starts_with("api-")), "{selector}: {names:?}");
    }
    shows(space, &["stat", "-l", "app=web"], "web", |web| rps(web) > 5.0);
    let edges = seen(space, &["edges", "-l", "app in (api)"]);
    let all: Vec<_> = edges.as_array().unwrap().iter().map(|edge| (&edge["src"], &edge["dst"])).collect();
    assert_eq!(all, [(&Value::from("po/web"), &Value::from("deploy/api"))], "{edges:#}");
    let certificates = seen(space, &["identity", "-l", "app=web"]);
    assert_eq!(certificates.as_array().map(Vec::len), Some(1), "{certificates:#}");
    for command in ["stat", "top", "tap", "edges", "identity"] {
        let none = meshctl(space, &[command, "-l", "app=nothing"], &[]);
        let said = text(&none.stderr);
        assert_eq!(none.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("no workload with labels app=nothing in namespace \"live\""), "{command}: {said}");
        let wrong = meshctl(space, &[command, "-l", "app=="], &[]);
        assert_eq!(wrong.status.code(), Some(1), "app is not empty: {command}: {}", text(&wrong.stderr));
        let wrong = meshctl(space, &[command, "-l", "app in api"], &[]);
        assert!(wrong.status.code() == Some(2) && text(&wrong.stderr).contains("parentheses"), "{command}");
    }
}

/// Under kubectl's name, with its flags, and without the variable.
fn as_a_plugin_of_kubectl(space: &Space<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().display();
    let script = format!(
        "ln -sf \"$(command -v meshctl)\" {folder}/kubectl-gossamer; export PATH={folder}:$PATH CONFIG=$KUBECONFIG; unset KUBECONFIG; \
         kubectl gossamer stat deploy -A -o json --kubeconfig $CONFIG --context $(kubectl --kubeconfig $CONFIG config current-context)"
    );
    eventually("the plugin shows the load", || {
        let output = space.cluster.shell(&script);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let live = rows.iter().find(|row| row["name"] == "api" && row["namespace"] == *space.name)?;
        (rps(live) > 5.0).then_some(())
    });
}

pub(crate) fn nobody_else_can_tap(cluster: &Cluster) {
    let space = cluster.namespace("notap", true);
    space.serve("api", 1);
    space.client("web");
    space.ready(&["web"]);
    let ip = space.pods("app=api")[0]["status"]["podIP"].as_str().unwrap().to_string();
    // From outside of the pod nobody listens, with or without a proxy.
    assert!(TcpStream::connect_timeout(&format!("{ip}:{TAP_PORT}").parse().unwrap(), Duration::from_secs(2)).is_err());
    let tried = space.probe("web", &["get", &ip, &TAP_PORT.to_string(), "4"]);
    assert!(!tried.status.success(), "{}", text(&tried.stdout));
    // The user may, by port-forward.
    let tap = meshctl(&space, &["tap", "deploy/api", "--duration", "1s"], &["-o", "json"]);
    assert!(tap.status.success(), "{}", text(&tap.stderr));
}

pub(crate) fn who_may_is_told_with_the_object_that_decides(cluster: &Cluster) {
    let space = cluster.namespace("whomay", true);
    space.serve("api", 1);
    ["web", "job"].iter().for_each(|name| space.client(name));
    space.ready(&["web", "job"]);
    let ask = |from: &str, path: &str| {
        meshctl(&space, &["authz", "deploy/api", "--from", from, "--path", path], &["-o", "json"])
    };
    let by = |output: &Output| serde_json::from_slice::<Value>(&output.stdout).unwrap()[0]["by"].clone();
    assert_eq!(by(&ask("pod/web", "/")), "default policy all-unauthenticated");
    space.apply(
        "apiVersion: policy.gossamer.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: web-only, namespace: NS}\n\
         spec:\n  service: api\n  from:\n    - serviceAccounts: [{name: web}]\n",
    );
    for (from, verdict, code, status) in [("web", "allow", 0, 200), ("job", "deny", 3, 403)] {
        let told = ask(&format!("pod/{from}"), "/");
        assert_eq!(told.status.code(), Some(code), "{from}: {}", text(&told.stderr));
        assert!(by(&told).as_str().unwrap().ends_with("AuthorizationPolicy web-only"), "{}", text(&told.stdout));
        assert!(text(&told.stdout).contains(verdict));
        // The proxies agree.
        eventually("the policy is in force", || {
            let load = space.load(from, "new", ("api", "/"), 10.0, 0.5, &[]);
            (load.status(status) == load.total()).then_some(())
        });
    }
    assert!(text(&ask("unmeshed", "/healthz").stdout).contains("health checks"));
}

pub(crate) fn the_control_plane_says_what_it_tells_proxies(cluster: &Cluster) {
    let space = cluster.namespace("said", true);
    space.serve("api", 2);
    space.ready(&[]);
    let endpoints = seen(&space, &["diagnostics", "endpoints", "api:80"]);
    assert_eq!(endpoints.as_array().unwrap().len(), 2, "{endpoints:#}");
    assert!(endpoints[0]["identity"].as_str().unwrap().starts_with("api.said."), "{endpoints:#}");
    let policy = seen(&space, &["diagnostics", "policy", "api:80"]);
    assert_eq!(policy["for"], "Service/said/api:80", "{policy:#}");
    let server = seen(&space, &["diagnostics", "policy", "deploy/api:8080"]);
    assert_eq!(server["server"], "default/all-unauthenticated", "{server:#}");
    let unknown = meshctl(&space, &["diagnostics", "endpoints", "nothing:80"], &[]);
    assert!(
        !unknown.status.success() && text(&unknown.stderr).contains("knows no service"),
        "{}",
        text(&unknown.stderr)
    );
}

pub(crate) fn without_a_right_it_is_named(cluster: &Cluster) {
    let space = cluster.namespace("rights", true);
    let output = meshctl(&space, &["stat", "--as", "jane"], &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("you may not list pods in namespace \"rights\"") && said.contains("kubectl auth can-i"),
        "{said}"
    );
}
