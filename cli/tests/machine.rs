//! The mesh of one machine with the real program: what `meshctl demo` and `meshctl run` promise. Needs namespaces (root,
//! or unprivileged user namespaces); where the machine forbids them says so and passes, but not under CI.

#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn meshctl(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshctl"));
    command.env("MESHCTL_STATE", state).env_remove("MESHCTL_MESH").env("NO_COLOR", "1");
    command
}

/// A folder of its own, so that tests don't see each other's meshes. Short: a Unix socket's path has 107 bytes.
fn state() -> tempfile::TempDir {
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    tempfile::Builder::new().prefix("mesh").permissions(owner_only).tempdir_in("/tmp").unwrap()
}

fn namespaces_forbidden() -> bool {
    let check = meshctl(state().path()).args(["check", "--pre", "--local"]).output().unwrap();
    let forbidden = !check.status.success();
    // Anything else that is wrong here is a failure.
    assert!(!forbidden || text(&check).contains("not allowed here"), "{}", text(&check));
    if forbidden {
        assert!(std::env::var_os("CI").is_none(), "{}", text(&check));
        skipped(&text(&check));
    }
    forbidden
}

/// Not by a macro, whose words are only shown when a test fails.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition, at most a time that a loaded machine needs.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(40);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 40 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How many processes are in a PID namespace, as `/proc/PID/ns/pid` names it.
fn processes_in(namespace: &Path) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| std::fs::read_link(entry.path().join("ns/pid")).is_ok_and(|ns| ns == namespace)).count()
}

#[test]
fn the_demo_meshes_everything_and_hides_the_flaky_replica() {
    if namespaces_forbidden() {
        return;
    }
    let state = state();
    let output = meshctl(state.path()).args(["demo", "--duration", "6s", "-o", "json"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let total = &summary["total"];
    assert!(total["success"].as_f64().unwrap() > 60.0, "{summary:#}");
    assert!(total["success_rate"].as_f64().unwrap() > 0.99, "{summary:#}");
    for service in ["web", "catalog", "orders", "prices", "ledger", "vault"] {
        let row = &summary["services"][service];
        assert_eq!(row["meshed"], row["replicas"], "{service}: {summary:#}");
        assert_eq!(row["mtls_share"], 1.0, "{service}: {summary:#}");
    }
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "the demo leaves nothing behind");
}

#[test]
fn a_killed_demo_leaves_no_process() {
    if namespaces_forbidden() {
        return;
    }
    let state = state();
    let mut demo = Running::start(meshctl(state.path()).arg("demo"));
    eventually("the demo can be looked at", || {
        let stat = meshctl(state.path()).args(["stat", "-t", "0", "-o", "json"]).output().unwrap();
        stat.status.success() && serde_json::from_slice::<Value>(&stat.stdout).is_ok_and(|v| v.as_array().is_some())
    });
    let pid = std::fs::read_to_string(state.path().join("demo/pid")).unwrap();
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    eventually("programs and proxies run", || processes_in(&namespace) > 20);
    demo.0.kill().unwrap();
    demo.0.wait().unwrap();
    eventually("all of its processes are gone", || processes_in(&namespace) == 0);
    let stat = meshctl(state.path()).arg("stat").output().unwrap();
    assert!(text(&stat).contains("no mesh runs on this machine"), "{}", text(&stat));
    // The next one trips on nothing.
    let next = meshctl(state.path()).args(["demo", "--duration", "2s", "-o", "json"]).output().unwrap();
    let summary: Value = serde_json::from_slice(&next.stdout).unwrap_or_else(|_| panic!("{}", text(&next)));
    assert!(next.status.success() && summary["total"]["mtls_share"] == 1.0, "{summary:#}");
}

#[test]
fn a_program_is_reached_by_its_name_and_its_exit_code_is_kept() {
    if namespaces_forbidden() {
        return;
    }
    let state = state();
    let client =
        |script: &str| meshctl(state.path()).args(["run", "client", "--", "bash", "-c", script]).output().unwrap();
    assert_eq!(client("exit 7").status.code(), Some(7));
    assert_eq!(client("kill -9 $$").status.code(), Some(137));

    // Any program; this one greets every client, on a port that says nothing about its protocol.
    let program = ["run", "greeter", "--port", "7070", "--", env!("CARGO_BIN_EXE_meshctl"), "demo-app", "ledger"];
    let mut server = Running::start(meshctl(state.path()).args(program));
    eventually("the greeter greets", || {
        assert!(server.0.try_wait().unwrap().is_none(), "the greeter has ended");
        text(&client("exec 3<>/dev/tcp/greeter/7070 && timeout 2 head -1 <&3")).contains("LEDGER ready")
    });
    let edges = meshctl(state.path()).args(["edges", "-o", "json"]).output().unwrap();
    assert!(text(&edges).contains("\"secured\": true"), "{}", text(&edges));
}

/// What is said about a mesh while it runs, by every command; and Ctrl-C ends all of it.
#[test]
fn a_running_demo_is_shown_by_every_command() {
    if namespaces_forbidden() {
        return;
    }
    let state = state();
    let mut demo = Running::start(meshctl(state.path()).arg("demo"));
    let ask = |arguments: &[&str]| meshctl(state.path()).args(arguments).output().unwrap();
    let json = |arguments: &[&str]| {
        let output = ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        serde_json::Deserializer::from_slice(&output.stdout)
            .into_iter::<Value>()
            .map(|value| value.unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{}", text(&output))))
            .collect::<Vec<_>>()
    };
    eventually("there is traffic to the ledger", || {
        let stat = ask(&["stat", "-t", "0", "-o", "json"]);
        stat.status.success() && text(&stat).contains("ledger") && text(&ask(&["edges"])).contains("ledger")
    });
    let wide = ask(&["stat", "-o", "wide"]);
    for word in ["MESHED", "SUCCESS", "RPS", "P50", "P95", "P99", "TCP_CONN", "MTLS", "web", "100%"] {
        assert!(text(&wide).contains(word), "{word} in {}", text(&wide));
    }
    let labelled = text(&ask(&["stat", "-l", "app in (web,catalog)", "-t", "0"]));
    assert!(labelled.contains("web") && labelled.contains("catalog") && !labelled.contains("ledger"), "{labelled}");
    for command in ["stat", "top", "tap", "edges", "identity", "proxy-metrics"] {
        let nobody = ask(&[command, "-l", "app=web,!app"]);
        let said = text(&nobody);
        assert!(nobody.status.code() == Some(1) && said.contains("no workload with labels app=web,!app"), "{said}");
        assert_eq!(ask(&[command, "-l", "=web"]).status.code(), Some(2), "{command}");
    }
    let top = json(&["top", "web", "--duration", "2s", "-o", "json"]);
    assert!(format!("{top:?}").contains("\"path\""), "{top:?}");
    let tapped = json(&["tap", "web", "--method", "GET", "--duration", "2s", "-o", "json"]);
    assert!(!tapped.is_empty() && format!("{tapped:?}").contains("GET"), "{tapped:?}");
    top_on_a_terminal(state.path());
    let named = tapped.iter().find_map(|event| event["requestInitEvent"]["id"]["name"].as_str()).unwrap();
    let story = &json(&["why", named, "-o", "json"])[0][0];
    assert!(story["request"] == named && story["method"] == "GET" && story["status"] == 200, "{story:#}");
    assert!(text(&ask(&["why", named, "web"])).contains("Nothing to do"));
    let forgotten = ask(&["why", "00000000-1"]);
    assert!(forgotten.status.code() == Some(1) && text(&forgotten).contains("remembers"), "{}", text(&forgotten));
    let from = |client: &str| json(&["tap", "web", "--from", client, "--duration", "2s", "-o", "json"]);
    let (asked, asks) = (from("traffic"), from("web"));
    let all = |events: &[Value], direction: &str| {
        !events.is_empty() && events.iter().all(|event| event["proxyDirection"] == direction)
    };
    assert!(all(&asked, "INBOUND") && all(&asks, "OUTBOUND"), "{asked:#?}\n{asks:#?}");
    let nobody = ask(&["tap", "web", "--from", "nobody", "--duration", "1s"]);
    assert!(nobody.status.code() == Some(1) && text(&nobody).contains("hint:"), "{}", text(&nobody));
    let to = json(&["tap", "web", "--to", "catalog", "--authority", "catalog:8080", "--duration", "2s", "-o", "json"]);
    let requests = || to.iter().map(|event| &event["requestInitEvent"]).filter(|init| !init.is_null());
    assert!(requests().count() > 3 && requests().all(|init| init["authority"] == "catalog:8080"), "{to:#?}");
    let nothing = json(&["tap", "web", "--path", "/no-such-path", "--duration", "1s", "-o", "json"]);
    assert!(nothing.is_empty(), "{nothing:?}");
    let edges = format!("{:?}", json(&["edges", "-o", "json"]));
    assert!(edges.contains("ledger") && !edges.contains("\"secured\": Bool(false)"), "{edges}");
    let edges = text(&ask(&["edges"]));
    assert!(edges.contains("web.demo") && edges.contains("catalog.demo"), "{edges}");
    assert!(text(&ask(&["edges", "-o", "wide"])).contains("web.demo.serviceaccount.identity."));
    let stat = text(&ask(&["stat", "catalog", "--from", "web"]));
    assert!(stat.contains("catalog") && stat.contains("READ/S"), "{stat}");
    let identity = text(&ask(&["identity", "web"]));
    assert!(identity.contains("serviceaccount.identity.gossamer.cluster.local"), "{identity}");
    let check = ask(&["check"]);
    assert_eq!(check.status.code(), Some(0), "{}", text(&check));
    let why = text(&ask(&["why", "no-endpoints"]));
    assert!(why.contains("endpoint"), "{why}");
    assert_eq!(ask(&["why", "no-such-code"]).status.code(), Some(1));
    assert!(text(&ask(&["completion", "bash"])).contains("complete"));
    assert!(text(&ask(&["version"])).contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(ask(&["stat", "--no-such-option"]).status.code(), Some(2));
    let nobody = ask(&["stat", "nobody"]);
    assert!(nobody.status.code() == Some(1) && text(&nobody).contains("hint:"), "{}", text(&nobody));

    let pid = std::fs::read_to_string(state.path().join("demo/pid")).unwrap();
    let namespace = std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    assert!(Command::new("kill").args(["-INT", &demo.0.id().to_string()]).status().unwrap().success());
    eventually("Ctrl-C ends the demo", || demo.0.try_wait().unwrap().is_some());
    assert_eq!(processes_in(&namespace), 0);
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "it leaves nothing behind");
}

/// As a person has it: a screen of its own, until the key.
fn top_on_a_terminal(state: &Path) {
    let command = format!("stty cols 100 rows 30 && exec {} top", env!("CARGO_BIN_EXE_meshctl"));
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).env("MESHCTL_STATE", state).env("TERM", "xterm");
    let mut top = Running(script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let (mut keys, mut screen) = (top.0.stdin.take().unwrap(), top.0.stdout.take().unwrap());
    let (tell, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut block = [0; 4096];
        while let Ok(count @ 1..) = std::io::Read::read(&mut screen, &mut block) {
            let _ = tell.send(String::from_utf8_lossy(&block[..count]).into_owned());
        }
    });
    let mut text = String::new();
    eventually("paths are on the screen", || {
        text.extend(seen.try_iter());
        text.contains("/items")
    });
    keys.write_all(b"q").unwrap();
    eventually("the key ends it", || top.0.try_wait().unwrap().is_some());
    text.extend(seen.iter());
    assert!(text.contains("\x1b[?1049h") && text.contains("\x1b[?1049l"), "the terminal is as before: {text:?}");
}

/// Two replicas, each called; a port of them on this machine; and a name that nobody has.
#[test]
fn replicas_share_a_name_and_a_port_can_be_published() {
    if namespaces_forbidden() {
        return;
    }
    let state = state();
    // Not one of those that connections get: another test's might have it by the time that this one listens.
    let first = 30_000 + (std::process::id() % 2_000) as u16;
    let free = (first..).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
    let publish = format!("{free}:7070");
    let program = "run ledger --port 7070 --replicas 2 --label tier=db --publish".split(' ').chain([&*publish, "--"]);
    let mut server =
        Running::start(meshctl(state.path()).args(program).args([env!("CARGO_BIN_EXE_meshctl"), "demo-app", "ledger"]));
    eventually("the published port answers", || {
        assert!(server.0.try_wait().unwrap().is_none(), "it has ended");
        let Ok(io) = std::net::TcpStream::connect(("127.0.0.1", free)) else { return false };
        io.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(io), &mut line).is_ok()
            && line.contains("LEDGER ready")
    });
    let taken = meshctl(state.path()).args(["run", "other", "--publish", &publish, "--", "true"]).output().unwrap();
    let said = text(&taken);
    assert_eq!((taken.status.code(), said.trim().lines().count()), (Some(1), 2), "{said}");
    assert!(said.contains(&format!("127.0.0.1:{free}")) && said.contains("hint: another process uses"), "{said}");
    let script =
        "getent ahostsv4 ledger-1.ledger; getent ahostsv4 ledger-2.ledger; getent ahostsv4 nobody || echo none";
    let names = text(&meshctl(state.path()).args(["run", "client", "--", "sh", "-c", script]).output().unwrap());
    assert!(names.matches("STREAM").count() == 2 && names.contains("none"), "{names}");
    for asked in ["stat ledger", "stat -l tier=db"] {
        let stat = text(&meshctl(state.path()).args(asked.split(' ')).output().unwrap());
        assert!(stat.contains("2/2"), "{asked}: {stat}");
    }
}

const ONLY_FRIENDS: &str = "apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata: { name: only-friends, namespace: default }
spec:
  service: ledger
  from: [{ serviceAccounts: [{ name: friend }] }]
";

/// The last good state stays in force.
#[test]
fn a_folder_of_objects_is_obeyed_and_a_wrong_one_is_named() {
    if namespaces_forbidden() {
        return;
    }
    let state = state();
    let objects = state.path().join("objects");
    std::fs::create_dir(&objects).unwrap();
    let policy = objects.join("policy.yaml");
    std::fs::write(&policy, ONLY_FRIENDS).unwrap();
    let log = state.path().join("log");
    let mut control = meshctl(state.path());
    control.args(["control", "--isolated", "--objects"]).arg(&objects).stderr(std::fs::File::create(&log).unwrap());
    let _control = Running(control.stdout(Stdio::null()).spawn().unwrap());
    eventually("the control plane runs", || {
        meshctl(state.path()).args(["check", "--local"]).status().unwrap().success()
    });
    let program = ["run", "ledger", "--port", "7070", "--", env!("CARGO_BIN_EXE_meshctl"), "demo-app", "ledger"];
    let _server = Running::start(meshctl(state.path()).args(program));
    let hears = |name: &str| {
        let script = "exec 3<>/dev/tcp/ledger/7070 && timeout 2 head -1 <&3";
        let output = meshctl(state.path()).args(["run", name, "--", "bash", "-c", script]).output().unwrap();
        text(&output).contains("LEDGER ready")
    };
    eventually("a friend is let in", || hears("friend"));
    assert!(!hears("client"), "nobody else is");

    // At once: a file that is empty for a moment is a policy less.
    let new = state.path().join("new");
    std::fs::write(&new, ONLY_FRIENDS.replace("[{ serviceAccounts", "{ serviceAccounts").replace("}] }]", "}] }"))
        .unwrap();
    std::fs::rename(new, &policy).unwrap();
    let place = format!("{}:6: spec.from: ", policy.display());
    eventually("the file, the line and the field are named", || {
        std::fs::read_to_string(&log).unwrap().contains(&place)
    });
    assert!(hears("friend") && !hears("client"), "the last good state stays");
}

#[test]
fn an_ordinary_user_needs_no_root_and_stays_that_user() {
    const NOBODY: u32 = 65534;
    // Only root can become somebody else; for everybody else all tests are this one.
    if !is_root() || namespaces_forbidden() {
        return;
    }
    let state = state();
    let (program, own) = (state.path().join("meshctl"), state.path().join("state"));
    // Not by this process: what other tests fork meanwhile would hold the copy open for writing, and the kernel starts no
    // program (ETXTBSY) that somebody may still write.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_meshctl")).arg(&program).status().unwrap().success());
    std::os::unix::fs::chown(state.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let mut run = Command::new(&program);
    run.uid(NOBODY).gid(NOBODY).current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("MESHCTL_STATE", &own);
    let script = "id -u; grep CapEff /proc/self/status; getent hosts web.default";
    let output = run.args(["run", "web", "--port", "80", "--", "sh", "-c", script]).output().unwrap();
    if text(&output).contains("not allowed here") {
        assert!(std::env::var_os("CI").is_none(), "{}", text(&output));
        return skipped(&text(&output));
    }
    assert!(output.status.success(), "{}", text(&output));
    let text = text(&output);
    for expected in ["65534\n", "CapEff:\t0000000000000000", "web.default.svc.cluster.local"] {
        assert!(text.contains(expected), "{expected:?} in {text}");
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}
