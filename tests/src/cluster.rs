//! A real Kubernetes for tests: brought up for them, asked with kubectl as people do, gone afterwards, also on a panic.
//! Blocking, for tests that are threads.

use serde_json::Value;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::expect::Metrics;

/// How long anything may take that a busy machine has to do.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A cluster. Dropping it takes it down.
pub struct Cluster {
    name: String,
    tools: PathBuf,
    kubeconfig: PathBuf,
    keep: bool,
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Where the scripts are that make a cluster, if this machine has them.
pub fn tools() -> Option<PathBuf> {
    let path = std::env::var_os("MESH_K8S").map_or_else(|| root().join("../shared/k8s"), PathBuf::from);
    path.join("up").is_file().then(|| path.canonicalize().unwrap())
}

impl Cluster {
    /// Brings one up. `MESH_K8S_KEEP=1` leaves it, for looking around after a failure and for the next run.
    pub fn up(tools: PathBuf, name: &str) -> Cluster {
        let output = run(Command::new(tools.join("up")).args(["--name", name]));
        let line = text(&output.stdout);
        let kubeconfig = line.trim().strip_prefix("export KUBECONFIG=").map(PathBuf::from);
        let kubeconfig = kubeconfig.unwrap_or_else(|| panic!("no cluster: {line}{}", text(&output.stderr)));
        let keep = std::env::var_os("MESH_K8S_KEEP").is_some();
        Cluster { name: name.into(), tools, kubeconfig, keep }
    }

    /// Loads the mesh's images, and those of the tests' own programs. The mesh's are those of a debug build, which is there
    /// anyway; `MESH_K8S_RELEASE=1` makes them as they are shipped, for figures.
    pub fn load_images(&self) {
        let load = format!("{} --name {}", self.tools.join("load-image").display(), self.name);
        let build = root().join("manifests/images/build");
        let mut build = Command::new(build);
        build.args(["--load", &load]);
        if std::env::var_os("MESH_K8S_RELEASE").is_none() {
            build.arg("--debug");
        }
        if std::env::var_os("MESH_K8S_NO_BUILD").is_some() {
            build.arg("--no-build");
        }
        ok(run(&mut build));
        let tool = text(&ok(run(&mut Command::new(self.tools.join("build")))).stdout);
        let tool = format!("{}/kubetool", tool.trim());
        let probe = crate::mesh::program().with_file_name("probe").display().to_string();
        for (image, file) in [("mesh-test/kubetool:1", tool), ("mesh-test/probe:1", probe)] {
            let name = self.name.clone();
            ok(run(Command::new(self.tools.join("load-image")).args(["--name", &name, image, &file])));
        }
    }

    /// Ends one of the cluster's daemons, which is started again a second later.
    pub fn restart(&self, daemon: &str) {
        ok(run(Command::new(self.tools.join("restart")).args(["--name", &self.name, "--kill", daemon])));
    }

    /// The power fails: every process of the node ends at once, its network and `/run` with it; then it starts again with what
    /// is on its disk. As `up` starts it.
    pub fn power_cut(&self) {
        let script = r#"set -euo pipefail
            source "$0/lib.sh"; use "$1"; MODE=node INDEX=$(<"$STATE/index"); source "$HERE/components.sh"
            kill -KILL "$(<"$STATE/pid")"
            for _ in $(seq 300); do alive || break; sleep 0.1; done
            ip link del "$LINK" 2>/dev/null || true
            "$BIN/kubetool" spawn -ns -pidfile "$STATE/pid" -log "$STATE/supervisor.log" -- /bin/bash "$STATE/init.sh"
            start_time "$(<"$STATE/pid")" >"$STATE/started"
            ip link add "$LINK" type veth peer name eth0 netns "$(<"$STATE/pid")"
            ip addr add "$HOST_IP/24" dev "$LINK"
            sysctl -qw "net.ipv4.conf.$LINK.forwarding=1"
            ip link set "$LINK" up
            ip route add "$PODS" via "$NODE_IP" dev "$LINK"
            ip route add "$SERVICES" via "$NODE_IP" dev "$LINK""#;
        ok(run(Command::new("bash").args(["-c", script]).arg(&self.tools).arg(&self.name)));
    }

    /// Lets the node run this many pods; by default it is 110.
    pub fn allow_pods(&self, pods: usize) {
        let state = self.kubeconfig.parent().and_then(Path::parent).unwrap();
        let file = state.join("kubelet.yaml");
        let before = std::fs::read_to_string(&file).unwrap();
        let kept: Vec<_> = before.lines().filter(|line| !line.starts_with("maxPods")).collect();
        std::fs::write(&file, format!("{}\nmaxPods: {pods}\n", kept.join("\n"))).unwrap();
        self.restart("kubelet");
        eventually("the node takes more pods", || {
            let nodes = self.try_kubectl(&["get", "nodes", "-o=jsonpath={.items[*].status.allocatable.pods}"]);
            (text(&nodes.stdout).trim() == pods.to_string()).then_some(())
        });
    }

    /// A shell command, as a person would give it: `meshctl` is ours, the cluster is this one.
    pub fn shell(&self, script: &str) -> Output {
        run(self.command("bash").current_dir(root()).args(["-euo", "pipefail", "-c", script]))
    }

    /// The same with something on its standard input.
    pub fn pipe(&self, script: &str, input: &str) -> Output {
        let mut command = self.command("bash");
        command.current_dir(root()).args(["-euo", "pipefail", "-c", script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let folder = crate::mesh::program().parent().unwrap().to_path_buf();
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path).env("KUBECONFIG", &self.kubeconfig).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    /// Starts a program that goes on; what it prints can be read.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        self.command(program).args(arguments).stdout(Stdio::piped()).spawn().unwrap()
    }

    /// Runs meshctl.
    pub fn meshctl(&self, arguments: &[&str]) -> Output {
        let program = crate::mesh::program().with_file_name("meshctl");
        run(self.command(program.to_str().unwrap()).args(arguments))
    }

    /// Fails the test, with what is wrong, unless `meshctl check` finds soon that all is well.
    pub fn assert_well(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let check = self.meshctl(&["check"]);
            if check.status.success() {
                return;
            }
            let said = text(&check.stdout);
            let wrong: Vec<_> = said.split('√').filter(|finding| finding.contains('×')).collect();
            assert!(Instant::now() < deadline, "not well within {PATIENCE:?}: {}", wrong.join("..."));
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Runs kubectl; a failure fails the test.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        text(&ok(self.try_kubectl(arguments)).stdout)
    }

    /// Runs kubectl.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        run(self.command("kubectl").args(arguments))
    }

    /// What kubectl says as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<_> = arguments.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.kubectl(&arguments)).unwrap()
    }

    /// Applies YAML.
    pub fn apply(&self, yaml: &str) {
        let output = self.try_apply(yaml);
        assert!(output.status.success(), "{}\n{yaml}", text(&output.stderr));
    }

    /// Applies YAML that may be refused.
    pub fn try_apply(&self, yaml: &str) -> Output {
        let mut child = self
            .command("kubectl")
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A namespace of a test's own.
    pub fn namespace(&self, name: &str, meshed: bool) -> Space<'_> {
        let annotations = if meshed { "{gossamer.io/inject: enabled}" } else { "{}" };
        self.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, annotations: {annotations}}}\n"
        ));
        Space { cluster: self, name: name.into() }
    }

    /// Names of all objects of the cluster but events and what comes and goes by itself.
    pub fn objects(&self) -> Vec<String> {
        let kinds = self.kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
        let passing = ["events", "leases", "endpoint", "componentstatuses", "events.events.k8s.io"];
        let kinds: Vec<_> = kinds.lines().filter(|kind| !passing.iter().any(|p| kind.starts_with(p))).collect();
        let path = r#"-o=jsonpath={range .items[*]}{.kind}/{.metadata.namespace}/{.metadata.name}{"\n"}{end}"#;
        let all = self.kubectl(&["get", &kinds.join(","), "-A", "--ignore-not-found", path]);
        let mut all: Vec<_> = all.lines().map(str::to_string).collect();
        all.sort();
        all
    }

    /// What a person would ask for after a failure.
    pub fn tell(&self) -> String {
        let mut told = String::new();
        let mut section = |title: &str, output: Output| {
            let _ = write!(told, "---- {title}\n{}{}", text(&output.stdout), text(&output.stderr));
        };
        section("pods", self.try_kubectl(&["get", "pods", "-A", "-o", "wide"]));
        section("warnings", self.try_kubectl(&["get", "events", "-A", "--field-selector=type=Warning"]));
        for component in ["identity", "destination", "injector"] {
            let name = format!("deploy/gossamer-{component}");
            section(&name, self.try_kubectl(&["-n", "gossamer", "logs", "--tail=40", &name]));
        }
        told
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.keep {
            let _ = Command::new(self.tools.join("down")).args(["--name", &self.name]).output();
        }
    }
}

/// A namespace. Dropping it deletes it, without waiting; after a failure it stays for [`Space::tell`].
pub struct Space<'a> {
    /// Where it is.
    pub cluster: &'a Cluster,
    /// Its name.
    pub name: String,
}

impl Space<'_> {
    /// Applies YAML of this namespace: `NS` stands for its name.
    pub fn apply(&self, yaml: &str) {
        self.cluster.apply(&yaml.replace("NS", &self.name));
    }

    /// Runs kubectl in here.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let arguments: Vec<_> = ["-n", self.name.as_str()].iter().chain(arguments).copied().collect();
        self.cluster.kubectl(&arguments)
    }

    /// What kubectl says as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<_> = ["-n", self.name.as_str()].iter().chain(arguments).copied().collect();
        self.cluster.json(&arguments)
    }

    /// A Deployment `name` with its service account and a Service on port 80 that answers who it is and what it was
    /// asked.
    pub fn serve(&self, name: &str, replicas: u16) {
        self.apply(&server(name, replicas, ""));
    }

    /// A pod `name` with a service account of that name that does nothing until it is told to.
    pub fn client(&self, name: &str) {
        self.apply(&format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: NS}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: NS, labels: {{app: {name}}}}}\n\
             spec:\n  serviceAccountName: {name}\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {{name: main, image: 'mesh-test/probe:1', args: [sleep]}}\n"
        ));
    }

    /// A pod `look` that sees the node's processes: images of the mesh have no shell and no other program.
    pub fn look(&self) {
        self.apply(
            "apiVersion: v1\nkind: Pod\nmetadata: {name: look, namespace: NS, annotations: {gossamer.io/inject: disabled}}\n\
             spec:\n  hostPID: true\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
             - {name: main, image: 'mesh-test/probe:1', args: [sleep], securityContext: {privileged: true}}\n",
        );
        self.ready(&["look"]);
    }

    /// Waits until all Deployments, StatefulSets and DaemonSets are complete, and the pods of these names ready.
    pub fn ready(&self, pods: &[&str]) {
        let all = self.json(&["get", "deployments,statefulsets,daemonsets"]);
        for object in all["items"].as_array().unwrap() {
            let name = format!("{}/{}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
            self.kubectl(&["rollout", "status", &name, "--timeout=90s"]);
        }
        for pod in pods {
            self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=90s"]);
        }
    }

    /// Runs the test's program in a pod.
    pub fn probe(&self, pod: &str, arguments: &[&str]) -> Output {
        let start = ["-n", &self.name, "exec", pod, "-c", "main", "--", "/probe"];
        let arguments: Vec<_> = start.iter().chain(arguments).copied().collect();
        self.cluster.try_kubectl(&arguments)
    }

    /// Requests from a pod at a steady rate. `how` is `new` (connections) or `kept`.
    pub fn load(&self, pod: &str, how: &str, url: (&str, &str), rate: f64, seconds: f64, headers: &[&str]) -> Load {
        let (host, path) = url;
        let (rate, seconds) = (rate.to_string(), seconds.to_string());
        let arguments: Vec<_> =
            ["load", how, host, "80", path, &rate, &seconds].iter().chain(headers).copied().collect();
        let output = ok(self.probe(pod, &arguments));
        Load::parse(&text(&output.stdout))
    }

    /// The same from a pod that may not be there.
    pub fn try_load(&self, pod: &str, url: (&str, &str), rate: f64, seconds: f64) -> Option<Load> {
        let (rate, seconds) = (rate.to_string(), seconds.to_string());
        let output = self.probe(pod, &["load", "new", url.0, "80", url.1, &rate, &seconds]);
        output.status.success().then(|| Load::parse(&text(&output.stdout)))
    }

    /// A field of an object, by JSON pointer.
    pub fn field(&self, object: &str, pointer: &str) -> Value {
        self.json(&["get", object]).pointer(pointer).cloned().unwrap_or(Value::Null)
    }

    /// Pods by label, as JSON.
    pub fn pods(&self, selector: &str) -> Vec<Value> {
        self.json(&["get", "pods", "-l", selector])["items"].as_array().unwrap().clone()
    }

    /// The metrics of a pod's proxy.
    pub fn metrics(&self, pod: &str) -> Metrics {
        let ip = self.field(&format!("pod/{pod}"), "/status/podIP");
        let address: SocketAddr = format!("{}:4191", ip.as_str().unwrap()).parse().unwrap();
        Metrics::parse(&get(address, "/metrics"))
    }

    /// What a person would ask for after a failure: pods, events, the proxies' words.
    pub fn tell(&self) -> String {
        let mut told = String::new();
        for (title, arguments) in [
            ("pods", &["get", "pods", "-o", "wide"][..]),
            ("events", &["get", "events", "--sort-by=.lastTimestamp"]),
            (
                "proxies",
                &["logs", "-l", "gossamer.io/control-plane-ns", "-c", "gossamer-proxy", "--tail=20", "--prefix"],
            ),
        ] {
            let arguments: Vec<_> = ["-n", self.name.as_str()].iter().chain(arguments).copied().collect();
            let output = self.cluster.try_kubectl(&arguments);
            let _ = write!(told, "---- {}: {title}\n{}{}", self.name, text(&output.stdout), text(&output.stderr));
        }
        told
    }
}

impl Drop for Space<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.tell());
        } else {
            let _ = self.cluster.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}

/// What came of a load.
#[derive(Debug)]
pub struct Load(Value);

impl Load {
    /// Reads what the test's program printed.
    pub fn parse(said: &str) -> Load {
        Load(serde_json::from_str(said).unwrap_or_else(|error| panic!("{error}: {said}")))
    }

    /// Answers of 200.
    pub fn ok(&self) -> u64 {
        self.status(200)
    }

    /// Answers of a status; 0 is none at all.
    pub fn status(&self, status: u16) -> u64 {
        self.0["statuses"][status.to_string()].as_u64().unwrap_or(0)
    }

    /// All requests.
    pub fn total(&self) -> u64 {
        self.0["statuses"].as_object().unwrap().values().filter_map(Value::as_u64).sum()
    }

    /// Answers of servers whose name begins so.
    pub fn by(&self, name: &str) -> u64 {
        let servers = self.0["servers"].as_object().unwrap();
        servers.iter().filter(|(server, _)| server.starts_with(name)).filter_map(|(_, n)| n.as_u64()).sum()
    }

    /// The longest answer.
    pub fn slowest(&self) -> Duration {
        Duration::from_millis(self.0["slowest_ms"].as_u64().unwrap())
    }

    /// Fails the test unless every request was answered with 200.
    pub fn assert_none_failed(&self) {
        assert!(self.total() > 0 && self.ok() == self.total(), "{}", self.0);
    }
}

/// A server as [`Space::serve`] makes it; `extra` goes into the pod's metadata.
pub fn server(name: &str, replicas: u16, extra: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: NS}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: NS}}\n\
         spec:\n  selector: {{app: {name}}}\n  ports: [{{name: http, port: 80, targetPort: 8080}}]\n\
         ---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, namespace: NS}}\n\
         spec:\n  replicas: {replicas}\n  selector: {{matchLabels: {{app: {name}}}}}\n  \
         strategy: {{rollingUpdate: {{maxUnavailable: 0, maxSurge: 1}}}}\n  \
         template:\n    metadata:\n      labels: {{app: {name}}}\n{extra}    spec:\n      serviceAccountName: {name}\n      \
         containers:\n      - name: main\n        image: mesh-test/kubetool:1\n        args: [echo]\n        \
         ports: [{{containerPort: 8080}}]\n        \
         readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 1}}\n"
    )
}

/// An HTTP answer's body.
pub fn get(address: SocketAddr, path: &str) -> String {
    let mut io = TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap();
    io.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let _ = io.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{address}{path}: {answer:?}"));
    assert!(head.starts_with("HTTP/1.1 200 "), "{address}{path}: {head}");
    match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        false => body.to_string(),
        true => unchunk(body),
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 {
            break;
        }
        whole += &rest[..size];
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

/// Asks again and again until the answer is `Some`.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, look)
}

/// The same for what takes long.
pub fn within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Fails the test unless the program succeeded.
pub fn ok(output: Output) -> Output {
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    output
}

/// Bytes of a program as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
