//! The mesh as people use it: `meshctl run` with transparent interception in network namespaces, IPv4 and IPv6. Needs
//! no root; a machine that allows no user namespaces fails these tests, with the program's own words.

#![allow(clippy::unwrap_used)]

use gossamer_tests::mesh::program;
use serde_json::Value;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A mesh with a folder and a name of its own. Dropping it ends everything in it.
struct Mesh {
    folder: TempDir,
    name: String,
    services: Vec<Child>,
}

impl Mesh {
    fn new(test: &str) -> Mesh {
        let folder = tempfile::Builder::new().prefix("mesh-netns-").tempdir().unwrap();
        Mesh { folder, name: format!("{test}-{}", std::process::id()), services: Vec::new() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).env("MESHCTL_MESH", &self.name).env("XDG_RUNTIME_DIR", self.folder.path());
        command.stdin(Stdio::null());
        command
    }

    /// Starts a service; its words go to a file.
    fn serve(&mut self, name: &str, probe: &[&str]) {
        let log = fs::File::create(self.log(name)).unwrap();
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
        for service in &mut self.services {
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
    assert!(seconds < 1.0, "{seconds} s");
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
