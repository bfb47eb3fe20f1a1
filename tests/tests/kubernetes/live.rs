//! What the commands that look at a cluster show: the traffic that is there, straight from the proxies.

use gossamer_tests::cluster::{Cluster, Space, eventually, text};
use serde_json::Value;
use std::net::TcpStream;
use std::process::Output;
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

fn row<'a>(rows: &'a Value, name: &str) -> &'a Value {
    let found = rows.as_array().unwrap().iter().find(|row| row["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {rows:#}"))
}

pub(crate) fn traffic_is_seen_as_it_is(cluster: &Cluster) {
    let space = cluster.namespace("live", true);
    space.serve("api", 2);
    space.client("web");
    space.ready(&["web"]);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| space.load("web", "kept", ("api", "/"), 20.0, 40.0, &[]));
        // Figures are right after 2 s, whatever the machine does beside.
        let start = Instant::now();
        eventually("the load is seen", || {
            let rows = seen(&space, &["stat", "deploy"]);
            let rps = row(&rows, "api")["rps"].as_f64().unwrap();
            (10.0..30.0).contains(&rps).then_some(())
        });
        println!("figure: live tables: right after {:.1} s", start.elapsed().as_secs_f64());
        let rows = seen(&space, &["stat", "deploy/api"]);
        let api = row(&rows, "api");
        assert_eq!((&api["meshed"], &api["replicas"], &api["kind"]), (&2.into(), &2.into(), &"deployment".into()));
        assert_eq!((api["success_rate"].as_f64(), api["mtls_share"].as_f64()), (Some(1.0), Some(1.0)), "{api:#}");
        let by_client = seen(&space, &["stat", "svc/api", "--from", "pod/web"]);
        assert!(row(&by_client, "api")["rps"].as_f64().unwrap() > 5.0, "{by_client:#}");
        let sent = seen(&space, &["stat", "pod/web", "--to", "deploy/api"]);
        assert_eq!(row(&sent, "web")["mtls_share"].as_f64(), Some(1.0), "{sent:#}");
        let namespaces = seen(&space, &["stat", "ns/live"]);
        assert!(row(&namespaces, "live")["rps"].as_f64().unwrap() > 5.0, "{namespaces:#}");
        as_a_plugin_of_kubectl(&space);
        let nothing = seen(&space, &["stat", "pod/web", "--to", "svc/elsewhere"]);
        assert_eq!(row(&nothing, "web")["rps"].as_f64(), Some(0.0), "{nothing:#}");

        let top = seen(&space, &["top", "pod/web", "--duration", "2s"]);
        let call = &top.as_array().unwrap()[0];
        assert_eq!(
            (&call["destination"], &call["method"], &call["path"]),
            (&"deploy/api".into(), &"GET".into(), &"/".into())
        );

        let tap = meshctl(&space, &["tap", "deploy/api", "--duration", "2s"], &["-o", "json"]);
        let events: Vec<Value> = text(&tap.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let requests = events.iter().filter(|event| event["requestInitEvent"]["path"] == "/").count();
        assert!(requests > 10, "{requests} of {}", events.len());
        let named = events.iter().find_map(|event| event["requestInitEvent"]["id"]["name"].as_str()).unwrap();
        let why = meshctl(&space, &["why", named], &["-o", "json"]);
        let stories: Value = serde_json::from_slice(&why.stdout).unwrap_or_else(|_| panic!("{}", text(&why.stderr)));
        assert!(stories[0]["request"] == named && stories[0]["path"] == "/", "{stories:#}");
        load.join().unwrap().assert_none_failed();
    });
    let edges = seen(&space, &["edges"]);
    let edge = edges.as_array().unwrap().iter().find(|edge| edge["src"] == "po/web" && edge["dst"] == "deploy/api");
    let edge = edge.unwrap_or_else(|| panic!("{edges:#}"));
    assert_eq!(edge["secured"], true, "{edge:#}");
    assert!(edge["client_id"].as_str().unwrap().starts_with("web.live.serviceaccount."), "{edge:#}");

    let certificates = seen(&space, &["identity"]);
    assert_eq!(certificates.as_array().unwrap().len(), 3);
    assert!(certificates.as_array().unwrap().iter().all(|one| one["valid"] == true), "{certificates:#}");
    let metrics = meshctl(&space, &["proxy-metrics", "pod/web"], &[]);
    assert!(text(&metrics.stdout).contains("\nresponse_total{"), "{}", text(&metrics.stderr));
}

/// Under kubectl's name, with its flags, and without the variable.
fn as_a_plugin_of_kubectl(space: &Space<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().display();
    let output = space.cluster.shell(&format!(
        "ln -s \"$(command -v meshctl)\" {folder}/kubectl-gossamer; export PATH={folder}:$PATH CONFIG=$KUBECONFIG; unset KUBECONFIG; \
         kubectl gossamer stat deploy -A -o json --kubeconfig $CONFIG --context $(kubectl --kubeconfig $CONFIG config current-context)"
    ));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let rows: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(row(&rows, "api")["rps"].as_f64().unwrap() > 5.0, "{rows:#}");
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
