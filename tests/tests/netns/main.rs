//! The mesh as people use it: `meshctl run` with transparent interception in network namespaces, IPv4 and IPv6. Needs
//! no root; a machine that allows no user namespaces fails these tests, with the program's own words.

#![allow(clippy::unwrap_used)]

use gossamer_tests::mesh::program;
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A mesh with a folder and a name of its own. Dropping it ends everything in it.
struct Mesh {
    folder: TempDir,
    name: String,
    services: Vec<Child>,
    control: Option<Child>,
}

impl Mesh {
    fn new(test: &str) -> Mesh {
        let folder = tempfile::Builder::new().prefix("mesh-netns-").tempdir().unwrap();
        Mesh { folder, name: format!("{test}-{}", std::process::id()), services: Vec::new(), control: None }
    }

    /// Runs the control plane by hand, until it is ready. A killed one may take a moment to be gone.
    fn control(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let log = fs::File::options().create(true).append(true).open(self.log("control")).unwrap();
            let mut control = self.command(&["control"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
            let pid = self.folder.path().join("gossamer").join(&self.name).join("pid");
            while control.try_wait().unwrap().is_none() {
                if pid.exists() {
                    self.control = Some(control);
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(Instant::now() < deadline, "{}", self.logs());
        }
    }

    fn kill_control(&mut self) {
        let mut control = self.control.take().unwrap();
        control.kill().unwrap();
        control.wait().unwrap();
        // Left over; a new one writes its own.
        let _ = fs::remove_file(self.folder.path().join("gossamer").join(&self.name).join("pid"));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).env("MESHCTL_MESH", &self.name).env("XDG_RUNTIME_DIR", self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// Starts a service; its words go to a file.
    fn serve(&mut self, name: &str, probe: &[&str]) {
        let log = fs::File::options().create(true).append(true).open(self.log(name)).unwrap();
        let mut command = self.command(&["run", name, "--port", probe[1], "--"]);
        command.arg(program().with_file_name("probe")).args(probe);
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.services.push(command.spawn().unwrap());
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// Runs a client to its end.
    fn client(&self, probe: &[&str]) -> Output {
        let mut command = self.command(&["run", "client", "--"]);
        command.arg(program().with_file_name("probe")).args(probe).output().unwrap()
    }

    /// Runs a client until it succeeds; what it printed.
    fn eventually(&self, probe: &[&str]) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.client(probe);
            if output.status.success() {
                return String::from_utf8_lossy(&output.stdout).into_owned();
            }
            assert!(Instant::now() < deadline, "{}\n{}", String::from_utf8_lossy(&output.stderr), self.logs());
        }
    }

    fn logs(&self) -> String {
        let mut text = String::new();
        for entry in fs::read_dir(self.folder.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|ext| ext == "log") {
                text += &format!("---- {}\n{}", entry.path().display(), fs::read_to_string(entry.path()).unwrap());
            }
        }
        text
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for service in self.services.iter_mut().chain(&mut self.control) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(service.id() as i32), nix::sys::signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(10);
            while matches!(service.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = service.kill();
            let _ = service.wait();
        }
    }
}

/// The process that a person has started is killed as the kernel kills; its network and all that was known live on in the
/// workloads. New connections all the while.
#[test]
fn nobody_notices_that_the_control_plane_is_killed_and_started_again() {
    let mut mesh = Mesh::new("killed");
    mesh.control();
    mesh.serve("web", &["http", "8080"]);
    mesh.serve("web", &["http", "8080"]);
    mesh.eventually(&["get", "web-2.web", "8080", "4"]);
    let mut load = mesh.command(&["run", "shop", "--"]);
    load.arg(program().with_file_name("probe")).args(["load", "new", "web", "8080", "/", "50", "-"]);
    let mut load = load.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stat = |mesh: &Mesh, wanted: &dyn Fn(&Value) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let output = mesh.command(&["stat", "-t", "0", "-o", "json"]).output().unwrap();
            let rows: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let row = |name: &str| rows.as_array().and_then(|rows| rows.iter().find(|row| row["name"] == name));
            if row("web").is_some_and(|web| row("shop").is_some() && wanted(web)) {
                return;
            }
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(Instant::now() < deadline, "{rows:#}\n{err}\n{}", mesh.logs());
        }
    };
    for _ in 0..2 {
        stat(&mesh, &|web| web["success"].as_f64() > Some(30.0));
        assert!(load.try_wait().unwrap().is_none(), "the load goes on");
        mesh.kill_control();
        // An outage worth the name.
        std::thread::sleep(Duration::from_secs(1));
        let told = mesh.command(&["stat", "--local"]).output().unwrap();
        let told = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.contains("its workloads still run") && told.contains("meshctl control --mesh"), "{told}");
        mesh.control();
        // All are known again, at once, and nobody new gets an address that is taken.
        stat(&mesh, &|web| web["meshed"] == 2);
        let answer = mesh.eventually(&["get", "web", "8080", "4"]);
        assert!(answer.contains("l5d-client-id: client.default.serviceaccount.identity."), "{answer}");
    }
    // It is told to end, which closes its standard input.
    let output = load.wait_with_output().unwrap();
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let statuses = seen["statuses"].as_object().unwrap_or_else(|| panic!("{seen}\n{}", mesh.logs()));
    assert!(statuses.keys().eq(["200"]) && statuses["200"].as_u64() >= Some(100), "{seen:#}\n{}", mesh.logs());
}

#[test]
fn an_unchanged_program_is_meshed_over_ipv4_and_ipv6() {
    let mut mesh = Mesh::new("http");
    mesh.serve("web", &["http", "8080"]);
    let by_service = mesh.eventually(&["get", "web", "8080", "4"]);
    assert!(by_service.contains("l5d-client-id: client.default.serviceaccount.identity."), "{by_service}");
    // A replica's own address goes the same way; IPv6 is taken as well. Names stand for the IPv4 address only.
    let answer = mesh.eventually(&["get", "web-1.web", "8080", "4"]);
    assert!(answer.contains("l5d-client-id: client.default."), "{answer}");
    let v6 = v6_of(&answer);
    mesh.eventually(&["intercepted", &v6, "8080", "6"]);
    assert!(mesh.eventually(&["get", &v6, "8080", "6"]).contains(" 200 "));
}

/// The IPv6 address of the replica whose IPv4 address the probe printed.
fn v6_of(answer: &str) -> String {
    let v4: Ipv4Addr = answer.lines().next().unwrap().parse().unwrap();
    meshctl::sandbox::network::v6_of(v4).to_string()
}

#[test]
fn a_replica_is_meshed_at_its_ipv6_address() {
    let mut mesh = Mesh::new("v6");
    mesh.serve("web", &["http", "8080"]);
    let v6 = v6_of(&mesh.eventually(&["get", "web-1.web", "8080", "4"]));
    let answer = mesh.eventually(&["get", &v6, "8080", "6"]);
    assert!(answer.contains("l5d-client-id: client.default."), "{answer}");
}

#[test]
fn a_server_that_speaks_first_needs_no_setting() {
    let mut mesh = Mesh::new("greeter");
    mesh.serve("mail", &["greeter", "2525"]);
    let took = mesh.eventually(&["greet", "mail", "2525"]);
    let seconds: f64 = took.trim().parse().unwrap();
    // Others wait for ten; the rest is what a busy machine takes.
    assert!(seconds < 3.0, "{seconds} s");
}

/// Where the kernel, not the program, says where a connection was meant to go.
#[test]
fn ends_and_breaks_of_bytes_are_kept_transparently_and_loops_are_refused() {
    let mut mesh = Mesh::new("bytes");
    mesh.serve("count", &["count", "7000"]);
    mesh.serve("reset", &["reset", "7001"]);
    assert_eq!(mesh.eventually(&["half-close", "count", "7000"]), "1000000 bytes\n");
    mesh.eventually(&["broken", "reset", "7001"]);
    // The inbound proxy itself is nobody's target.
    let inbound = gossamer_api::defaults::INBOUND_PORT.to_string();
    let direct = mesh.client(&["get", "count-1.count", &inbound, "4"]);
    assert!(!String::from_utf8_lossy(&direct.stdout).contains(" 200 "), "{direct:?}");
    mesh.eventually(&["broken", "count-1.count", &inbound]);
}

/// Every packet between the workloads' networks is looked at: names may be read (DNS, the TLS server name), nothing else.
#[test]
fn what_is_said_can_be_read_nowhere_on_the_wire() {
    const SECRET: &str = "attack-at-dawn";
    let mut mesh = Mesh::new("wire");
    mesh.control();
    mesh.serve("canary", &["http", "8080"]);
    mesh.eventually(&["get", "canary", "8080", "4"]);
    let pid = fs::read_to_string(mesh.folder.path().join("gossamer").join(&mesh.name).join("pid")).unwrap();
    let mut sniffer = Command::new("nsenter");
    sniffer.args(["--target", pid.trim(), "--net"]);
    if !nix::unistd::geteuid().is_root() {
        sniffer.args(["--user", "--preserve-credentials"]);
    }
    sniffer.arg(program().with_file_name("probe")).args(["sniff", "canary", SECRET]);
    let mut sniffer = sniffer.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let (tell, heard) = std::sync::mpsc::channel();
    let words = BufReader::new(sniffer.stdout.take().unwrap());
    std::thread::spawn(move || words.lines().map_while(Result::ok).for_each(|word| drop(tell.send(word))));
    // The answer has the words of the request in it.
    let say = || {
        let header = format!("x-secret: {SECRET}");
        let said = mesh.client(&["load", "new", "canary", "8080", &format!("/{SECRET}"), "20", "0.5", &header]);
        let seen: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
        assert_eq!(seen["statuses"], serde_json::json!({ "200": 10 }), "{seen:#}\n{}", mesh.logs());
    };
    let (mut all, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(30));
    while all.is_empty() {
        say();
        all.extend(heard.try_iter());
        assert!(Instant::now() < deadline && sniffer.try_wait().unwrap().is_none(), "the sniffer hears nothing");
    }
    // It hears now; once more for what matters.
    say();
    sniffer.kill().unwrap();
    sniffer.wait().unwrap();
    all.extend(heard.iter());
    assert_eq!(all, ["canary"]);
}

/// A service of this machine itself, which is in no mesh.
#[test]
fn a_program_reaches_the_machine_outside() {
    let outside = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = outside.local_addr().unwrap().port().to_string();
    std::thread::spawn(move || {
        for mut io in outside.incoming().flatten() {
            // The whole request, or the reset of what is unread would overtake the answer.
            let mut head = Vec::new();
            let mut block = [0; 1024];
            while !head.ends_with(b"\r\n\r\n") {
                match io.read(&mut block) {
                    Ok(count @ 1..) => head.extend_from_slice(&block[..count]),
                    _ => break,
                }
            }
            let _ = io.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 8\r\n\r\noutside!");
        }
    });
    let mesh = Mesh::new("outside");
    let answer = mesh.eventually(&["get", "host.mesh.internal", &port, "4"]);
    assert!(answer.contains(" 200 ") && answer.trim_end().ends_with("outside!"), "{answer}");
    // What nobody serves there fails, and at once.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let start = Instant::now();
    let answer = mesh.client(&["get", "host.mesh.internal", &closed, "4"]);
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    assert!(!text.contains(" 200 ") && start.elapsed() < Duration::from_secs(10), "{text}");
}

/// A connection out of the mesh is not the control plane's, and goes on without it; so does the next control plane's way out.
#[test]
fn a_connection_to_the_machine_outlives_the_control_plane() {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let mut mesh = Mesh::new("relayed");
    mesh.control();
    let starts = |mesh: &Mesh, name: &str| {
        let log = fs::File::options().create(true).append(true).open(mesh.log(name)).unwrap();
        let mut client = mesh.command(&["run", name, "--"]);
        client.arg(program().with_file_name("probe")).args(["answer", "host.mesh.internal", &port]);
        let client = client.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let io = loop {
            if let Ok((io, _)) = server.accept() {
                break io;
            }
            assert!(Instant::now() < deadline, "{}", mesh.logs());
            std::thread::sleep(Duration::from_millis(10));
        };
        io.set_nonblocking(false).unwrap();
        io.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        (client, io)
    };
    let answers = |mesh: &Mesh, mut io: &std::net::TcpStream, word: &str| {
        io.write_all(word.as_bytes()).unwrap();
        let mut said = vec![0; word.len()];
        io.read_exact(&mut said).unwrap_or_else(|error| panic!("{word}: {error}\n{}", mesh.logs()));
        assert_eq!(said, word.as_bytes());
    };
    let (client, first) = starts(&mesh, "first");
    mesh.services.push(client);
    answers(&mesh, &first, "with its control plane");
    for _ in 0..2 {
        mesh.kill_control();
        answers(&mesh, &first, "without one");
        mesh.control();
        answers(&mesh, &first, "with another");
    }
    let (client, second) = starts(&mesh, "second");
    mesh.services.push(client);
    answers(&mesh, &second, "by the way of the new one");
    // What is left ends with the last workload.
    mesh.kill_control();
    answers(&mesh, &second, "without it");
    for mut workload in std::mem::take(&mut mesh.services) {
        workload.kill().unwrap();
        workload.wait().unwrap();
    }
    assert!(matches!((&first).read(&mut [0]), Ok(0) | Err(_)) && matches!((&second).read(&mut [0]), Ok(0) | Err(_)));
    let folder = format!("XDG_RUNTIME_DIR={}", mesh.folder.path().display());
    let left = || {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let of_this_mesh = |entry: &fs::DirEntry| {
            let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|variable| variable == folder.as_bytes())
        };
        all.filter(of_this_mesh).map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !left().is_empty() {
        assert!(Instant::now() < deadline, "{:?}", left());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// In a user namespace of its own the switch is the test's, and root without capabilities is an ordinary user.
#[test]
fn where_private_networks_are_forbidden_it_says_what_to_do() {
    let mesh = Mesh::new("forbidden");
    let script = "echo 0 >/proc/sys/user/max_user_namespaces && \
                  exec setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all \"$@\"";
    let forbidden = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]).arg(program()).args(arguments);
        command.env("MESHCTL_MESH", &mesh.name).env("XDG_RUNTIME_DIR", mesh.folder.path());
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    };
    // `check` has found a problem.
    for (arguments, expected) in [
        (&["run", "web", "--port", "8080", "--", "true"][..], 1),
        (&["demo", "--duration", "1s"], 1),
        (&["check", "--pre", "--local"], 3),
    ] {
        let (code, [out, err]) = forbidden(arguments);
        let words = format!("{out}\n{err}");
        assert_eq!(code, Some(expected), "{arguments:?}: {words}");
        for expected in ["not allowed here", "sudo sysctl -w user.max_user_namespaces=10000", "or use sudo"] {
            assert!(words.contains(expected), "{arguments:?}: {expected:?} in {words}");
        }
        assert!(arguments[0] == "check" || words.contains("MESH_FORWARD"), "{arguments:?}: {words}");
    }
}

/// Everything above once more without privileges, where this is root.
#[test]
fn an_ordinary_user_needs_no_privilege() {
    const UID: u32 = 65_534;
    // Only root can become somebody else; for everybody else all other tests here are this one.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    // A copy: the checkout may be where only root may look.
    let folder = tempfile::Builder::new().prefix("mesh-user-").tempdir().unwrap();
    let open = |path: &std::path::Path| fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    open(folder.path());
    let copy = |from: &std::path::Path, name: &str| {
        let to = folder.path().join(name);
        // Not by this process: what other tests fork meanwhile would hold the copy open for writing, and the kernel starts
        // no program (ETXTBSY) that somebody may still write.
        assert!(Command::new("cp").arg(from).arg(&to).status().unwrap().success());
        open(&to);
        to
    };
    copy(&program(), "mesh");
    copy(&program().with_file_name("probe"), "probe");
    let tests = copy(&std::env::current_exe().unwrap(), "tests");
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(UID), Some(UID)).unwrap();
    let mut command = Command::new(&tests);
    command.args(["--skip", "an_ordinary_user"]).uid(UID).gid(UID).env("HOME", &home).env("TMPDIR", &home);
    let output = command.current_dir(&home).stdin(Stdio::null()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    assert!(out.contains("10 passed; 0 failed"), "{out}");
}

#[test]
fn the_demo_runs_and_leaves_nothing_behind() {
    let mesh = Mesh::new("demo");
    let output = mesh.command(&["demo", "--duration", "6s", "-o", "json"]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let summary: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"));
    let total = &summary["total"];
    assert!(total["success"].as_f64().is_some_and(|requests| requests > 20.0), "{summary:#}");
    assert_eq!(total["mtls_share"].as_f64(), Some(1.0), "{summary:#}");
    let left: Vec<_> = fs::read_dir(mesh.folder.path()).unwrap().flatten().map(|entry| entry.path()).collect();
    let left: Vec<_> = left.iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten()).collect();
    assert!(left.iter().all(|entry| entry.path().extension().is_some_and(|ext| ext == "log")), "{left:?}");
}
