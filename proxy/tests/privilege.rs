//! The real program as a pod starts it: root with four capabilities, in a network namespace of its own. Afterwards it
//! redirects, and is nobody. Needs root; elsewhere these tests say so and pass.

#![allow(clippy::unwrap_used)]

use caps::{CapSet, Capability};
use gossamer_proxy::redirect::netlink::{self, Message};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

/// What Kubernetes leaves to the container (`drop: [ALL]`, `add: ...`).
const POD: [Capability; 4] =
    [Capability::CAP_NET_ADMIN, Capability::CAP_SETGID, Capability::CAP_SETPCAP, Capability::CAP_SETUID];

/// Runs a test in a network namespace where programs get these capabilities at most.
fn in_a_pod(capabilities: &'static [Capability], test: impl FnOnce() + Send + 'static) {
    let run = move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            assert!(std::env::var_os("CI").is_none(), "a network namespace can't be made, which takes root: {error}");
            // Not by a macro, whose words are only shown when a test fails.
            let _ = writeln!(std::io::stderr(), "SKIPPED: what a pod's proxy does with its privileges needs root");
            return;
        }
        // RTM_NEWLINK: loopback up.
        let mut head = vec![0; 4];
        head.extend(1i32.to_ne_bytes());
        head.extend([1u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat());
        netlink::send(netlink::ROUTE, &[Message::new(16, 0, "lo").head(&head).text(3, "lo")]).unwrap();
        // Inherited by what this thread starts, as a container's processes have it.
        for capability in caps::all().into_iter().filter(|one| !capabilities.contains(one)) {
            if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, capability).unwrap();
            }
        }
        test();
    };
    std::thread::spawn(run).join().unwrap();
}

fn program(arguments: &[&str]) -> Command {
    // Beside the folder of this test's own program; Cargo builds it for this test.
    let test = std::env::current_exe().unwrap();
    let mut command = Command::new(test.ancestors().nth(2).unwrap().join("gossamer-proxy"));
    // The admin page is opened last: when it answers, everything is set.
    command.args(arguments).env_clear().env("MESH_REDIRECT", "true").env("MESH_OUTBOUND_LISTEN", "127.0.0.1:4140");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(arguments: &[&str]) -> Output {
    program(arguments).output().unwrap()
}

fn status(pid: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_string(), value.trim().to_string())).collect()
}

#[test]
fn once_the_rules_are_set_no_privilege_is_left() {
    in_a_pod(&POD, || {
        let mut proxy = program(&[]).spawn().unwrap();
        let up = output(&["await"]);
        let threads = std::fs::read_dir(format!("/proc/{}/task", proxy.id())).unwrap().count();
        let status = status(proxy.id());
        // The rules are there: a connection to anywhere comes to the proxy, which has nobody to ask where that is.
        let redirected = TcpStream::connect("10.1.2.3:80");
        let _ = proxy.kill();
        let log = String::from_utf8(proxy.wait_with_output().unwrap().stderr).unwrap();
        assert!(up.status.success(), "{log}\n{}", String::from_utf8_lossy(&up.stderr));
        for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status[name], "0000000000000000", "{name}\n{log}");
        }
        assert_eq!(status["Uid"], "2102\t2102\t2102\t2102");
        assert_eq!(status["Gid"], "2102\t2102\t2102\t2102");
        assert_eq!((status["Groups"].as_str(), status["NoNewPrivs"].as_str()), ("", "1"));
        assert!(threads > 1, "it runs: {threads}");
        assert!(
            redirected.is_err_and(|error| error.raw_os_error() == Some(101)),
            "no route: not even a redirected one"
        );
    });
}

#[test]
fn what_cannot_be_given_up_ends_the_process() {
    in_a_pod(&[Capability::CAP_NET_ADMIN], || {
        let output = output(&[]);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), words.lines().count()), (Some(1), 1), "{words}");
        assert!(words.starts_with("error: privileges could not be given up: bounding set: "), "{words}");
    });
}

#[test]
fn without_the_privilege_to_redirect_nothing_starts() {
    in_a_pod(&[Capability::CAP_SETGID, Capability::CAP_SETUID, Capability::CAP_SETPCAP], || {
        let output = output(&[]);
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(words.starts_with("error: setting the redirection needs CAP_NET_ADMIN"), "{words}");
    });
}

#[test]
fn init_sets_the_rules_and_ends() {
    in_a_pod(&[Capability::CAP_NET_ADMIN], || {
        let output = output(&["init"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
}

#[test]
fn unknown_arguments_are_explained() {
    let output = output(&["start"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("usage: gossamer-proxy"));
}
