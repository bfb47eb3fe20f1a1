//! [h2spec](https://github.com/summerwind/h2spec) in strict mode: all of its cases, against each side of the proxy.

use crate::tools;
use gossamer_tests::mesh::{self, Mesh};
use gossamer_tests::{expect, loopback};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::process::{Child, Command};

fn programs() -> Option<(PathBuf, PathBuf)> {
    Some((tools::built("h2spec", "github.com/summerwind/h2spec/cmd/h2spec")?, tools::built("h2c", "./h2c")?))
}

fn backend(program: &Path, listen: SocketAddr) -> Child {
    let mut command = Command::new(program);
    command.args(["-listen", &listen.to_string()]).stdin(Stdio::null()).kill_on_drop(true).spawn().unwrap()
}

/// What h2spec prints last, when nothing was skipped.
fn check(out: &str) {
    let summary = out.lines().rev().find(|line| line.contains(" tests, ")).unwrap_or_default();
    let count: u32 = summary.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default();
    assert!(count >= 140 && summary.contains(" 0 skipped, 0 failed"), "{out}");
}

#[tokio::test]
async fn outbound_keeps_all_rules_of_http2() {
    let Some((h2spec, h2c)) = programs() else { return };
    let mesh = Mesh::start().await;
    let web = mesh.workload("web").port(8080).impatient().start().await;
    let _backend = backend(&h2c, (web.ip, 8080).into());
    let shop = mesh.workload("shop").calls("web:8080").impatient().start().await;
    let to = shop.to("web:8080");
    expect::eventually("the backend listens", || async { tokio::net::TcpStream::connect((web.ip, 8080)).await.ok() })
        .await;
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    check(&tools::run(Command::new(&h2spec).args(["--strict", "-h", &host, "-p", &port])).await);
    let secured = web.metrics().await.sum("request_total", &[("direction", "inbound"), ("tls", "true")]);
    assert!(secured > 0.0, "the valid requests came through both proxies");
}

/// In namespaces of its own, with real redirection: the client has no proxy in front, the server has.
#[tokio::test]
async fn inbound_keeps_all_rules_of_http2() {
    let Some((h2spec, h2c)) = programs() else { return };
    let mut mesh = Sandbox::new();
    if !mesh.is_allowed().await {
        return;
    }
    mesh.start(&["run", "back", "--port", "8080", "--"], &h2c).await;
    // Nothing is known of the port's protocol: it is found out.
    mesh.reachable("back-1.back:8080").await;
    let skip = "config.gossamer.io/skip-outbound-ports=8080";
    let mut command = mesh.command(&["run", "spec", "--annotation", skip, "--"]);
    check(&tools::run(command.arg(&h2spec).args(["--strict", "-h", "back-1.back", "-p", "8080"])).await);
}

/// The mesh of one machine, as `meshctl run` makes it.
struct Sandbox {
    name: String,
    started: Vec<Child>,
}

impl Sandbox {
    fn new() -> Sandbox {
        // The claimed address is this test's alone, and so is a name made of it.
        let name = format!("test-{:x}", loopback::address().to_bits());
        Sandbox { name, started: Vec::new() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(mesh::program());
        command.env("MESHCTL_MESH", &self.name).args(arguments).stdin(Stdio::null());
        command
    }

    /// False, and said so, where the machine forbids private networks.
    async fn is_allowed(&self) -> bool {
        let check = self.command(&["check", "--pre"]).output().await.unwrap();
        let said = String::from_utf8_lossy(&check.stdout).into_owned() + &String::from_utf8_lossy(&check.stderr);
        check.status.success() || tools::missing("a private network", &said).is_some()
    }

    async fn start(&mut self, arguments: &[&str], program: &Path) {
        self.started.push(self.command(arguments).arg(program).spawn().unwrap());
    }

    /// Waits until something listens there, asked from inside of the mesh.
    async fn reachable(&self, target: &str) {
        let (host, port) = target.split_once(':').unwrap();
        let look =
            format!("for i in $(seq 200); do (: <>/dev/tcp/{host}/{port}) 2>&- && exit; sleep 0.05; done; exit 1");
        let skip = format!("config.gossamer.io/skip-outbound-ports={port}");
        let arguments = ["run", "look", "--annotation", &skip, "--", "bash", "-c", &look];
        tools::run(&mut self.command(&arguments)).await;
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for child in &mut self.started {
            if let Some(pid) = child.id() {
                // It takes its program and proxy along.
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
            }
        }
    }
}
