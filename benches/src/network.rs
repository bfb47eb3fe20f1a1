//! Namespaces: the bench's own, which everything dies with, and for every driver two that a cable joins.
//!
//! In a pair, the client's side is 10.98.N.1 and the server's 10.98.N.2. A second cable from each leads to the bench's
//! own namespace, where the control plane is. **Invariant:** the machine's own namespaces are not touched.

use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Where proxies find the control plane.
pub(crate) const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 99, 255, 1);

/// The address of one of many services of a pair.
pub(crate) fn service_ip(pair: u8, number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, pair, number as u8 + 1)
}

const INSIDE: &str = "GOSSAMER_BENCH_PROXY";

/// True in the process that [`enter`] has started.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// The proxy's binary that [`enter`] was told of.
pub(crate) fn proxy_binary() -> std::path::PathBuf {
    std::env::var_os(INSIDE).unwrap_or_default().into()
}

/// Executes this program again in namespaces of its own; only returns if that fails. Whatever it starts ends with it.
pub(crate) fn enter(proxy: &Path) -> anyhow::Error {
    let own = match std::env::current_exe() {
        Ok(own) => own,
        Err(error) => return error.into(),
    };
    // Ten thousand idle connections are as many descriptors.
    let script = "ulimit -n $(ulimit -Hn); mkdir -p /run/netns; mount -t tmpfs bench /run/netns; exec \"$0\" \"$@\"";
    let flags = ["--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"];
    let mut command = Command::new("unshare");
    command.args(flags).args(["sh", "-c", script]).arg(own).args(std::env::args_os().skip(1));
    anyhow::Error::from(command.env(INSIDE, proxy).exec()).context("unshare (util-linux), as root")
}

/// Two namespaces and the cables.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// Of the addresses.
    pub number: u8,
    /// Of the namespaces.
    pub name: String,
}

impl Pair {
    /// Makes it.
    pub(crate) fn new(number: u8, name: &str) -> Result<Pair> {
        let pair = Pair { number, name: name.into() };
        let (c, s, n) = (pair.client(), pair.server(), number);
        let sysctls = "echo 10000 65000 > /proc/sys/net/ipv4/ip_local_port_range; \
            echo 1 > /proc/sys/net/ipv4/tcp_tw_reuse; echo 8192 > /proc/sys/net/core/somaxconn; \
            echo 8192 > /proc/sys/net/ipv4/tcp_max_syn_backlog";
        shell(&format!(
            "ip link set lo up
             ip netns add {c}; ip netns add {s}
             ip -n {c} link add eth0 type veth peer name eth0 netns {s}
             ip link add {c} type veth peer name ctl netns {c}
             ip link add {s} type veth peer name ctl netns {s}
             ip addr replace {CONTROL}/32 dev lo
             ip addr add 10.99.{n}.1/30 dev {c}; ip link set {c} up
             ip addr add 10.99.{n}.5/30 dev {s}; ip link set {s} up
             for ns in {c} {s}; do ip -n $ns link set lo up; ip -n $ns link set eth0 up; ip -n $ns link set ctl up; done
             ip -n {c} addr add 10.98.{n}.1/24 dev eth0; ip -n {c} addr add 10.99.{n}.2/30 dev ctl
             ip -n {s} addr add 10.98.{n}.2/24 dev eth0; ip -n {s} addr add 10.99.{n}.6/30 dev ctl
             ip -n {c} route add {CONTROL} via 10.99.{n}.1; ip -n {s} route add {CONTROL} via 10.99.{n}.5
             ip -n {c} route add default via 10.98.{n}.2; ip -n {s} route add default via 10.98.{n}.1
             ip netns exec {c} sh -c '{sysctls}'; ip netns exec {s} sh -c '{sysctls}'"
        ))
        .with_context(|| format!("the namespaces of {name}"))?;
        Ok(pair)
    }

    /// The namespace of the load and the outbound proxy.
    pub(crate) fn client(&self) -> String {
        format!("{}-c", self.name)
    }

    /// The namespace of the application and the inbound proxy.
    pub(crate) fn server(&self) -> String {
        format!("{}-s", self.name)
    }

    /// The client's address.
    pub(crate) fn client_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, self.number, 1)
    }

    /// The server's address.
    pub(crate) fn server_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 98, self.number, 2)
    }

    /// Another address of the server's, for one more endpoint. There are 65,000.
    pub(crate) fn endpoint_ip(&self, number: usize) -> Ipv4Addr {
        let [high, low] = (number as u16 + 1).to_be_bytes();
        Ipv4Addr::new(10, 100 + self.number, high, low)
    }

    /// Gives the server as many further addresses.
    pub(crate) fn add_endpoints(&self, count: usize) -> Result<()> {
        let lines: String =
            (0..count).map(|number| format!("addr add {}/32 dev eth0\n", self.endpoint_ip(number))).collect();
        shell(&format!("ip -n {} -batch - <<'END'\n{lines}END", self.server()))
    }

    /// Where the bench reaches something in the server's namespace.
    pub(crate) fn server_control_ip(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, self.number, 6)
    }

    /// A program in one of the namespaces. It is killed when its `Child` is dropped.
    pub(crate) fn command(&self, namespace: &str, program: &Path) -> tokio::process::Command {
        let mut command = tokio::process::Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Interception for proxies that do not set it up themselves: on both sides, ports are redirected.
    pub(crate) fn redirect(&self, outbound: &[(u16, u16)], inbound: &[(u16, u16)]) -> Result<()> {
        let rules = |ports: &[(u16, u16)]| -> String {
            ports.iter().map(|(from, to)| format!("tcp dport {from} redirect to :{to};")).collect()
        };
        let server = self.server_ip();
        let tables = [
            (self.client(), "output", "oifname eth0", rules(outbound)),
            (self.server(), "prerouting", "iifname eth0", rules(inbound)),
        ];
        for (namespace, hook, on, rules) in tables {
            let rules = rules.replace("tcp dport", &format!("{on} ip daddr {server} tcp dport"));
            let rules = rules.replace(';', "\n");
            let ruleset =
                format!("table ip bench {{ chain {hook} {{ type nat hook {hook} priority -100;\n{rules}\n}}\n}}");
            shell(&format!("ip netns exec {namespace} nft -f - <<'END'\n{ruleset}\nEND"))?;
        }
        Ok(())
    }

    /// Interception as Linkerd's init container sets it: everything but what the proxy's own user sends.
    pub(crate) fn redirect_by_user(&self, user: u32, ports: &[u16]) -> Result<()> {
        let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let rules = [
            (self.client(), "output", format!("oifname eth0 meta skuid != {user} meta l4proto tcp redirect to :4140")),
            (self.server(), "prerouting", format!("iifname eth0 tcp dport {{ {ports} }} redirect to :4143")),
        ];
        for (namespace, hook, rule) in rules {
            let ruleset =
                format!("table ip bench {{ chain {hook} {{ type nat hook {hook} priority -100;\n{rule}\n}}\n}}");
            shell(&format!("ip netns exec {namespace} nft -f - <<'END'\n{ruleset}\nEND"))?;
        }
        Ok(())
    }
}

fn shell(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    ensure!(output.status.success(), "{}\n{script}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
