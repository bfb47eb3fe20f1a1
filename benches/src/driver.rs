//! What is measured: nothing in between, floors, peers, ours. Starting and stopping a pair of each.

use crate::control::{Control, Meshed};
use crate::network::{self, Pair};
use crate::server::{BULK, GRPC, HTTP, HTTP2};
use crate::{peers, process, workload};
use anyhow::{Context, Result};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// One thing to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Driver {
    /// No proxy.
    Direct,
    /// Our byte relay.
    Relay,
    /// Our byte relay with mutual TLS on the hop.
    TlsRelay,
    /// Debian's.
    Haproxy,
    /// Debian's.
    Nginx,
    /// Ours.
    Gossamer,
    /// linkerd2-proxy.
    Linkerd,
}

impl Driver {
    /// In the tables' order.
    pub(crate) const ALL: [Driver; 7] = [
        Driver::Direct,
        Driver::Relay,
        Driver::TlsRelay,
        Driver::Haproxy,
        Driver::Nginx,
        Driver::Gossamer,
        Driver::Linkerd,
    ];

    /// True if it knows services and endpoints.
    pub(crate) fn is_mesh(self) -> bool {
        matches!(self, Driver::Gossamer | Driver::Linkerd)
    }

    /// On the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Driver::Direct => "direct",
            Driver::Relay => "relay",
            Driver::TlsRelay => "tls-relay",
            Driver::Haproxy => "haproxy",
            Driver::Nginx => "nginx",
            Driver::Gossamer => "gossamer",
            Driver::Linkerd => "linkerd",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A driver with its namespaces, its application and its proxies.
pub(crate) struct Running {
    /// Which.
    pub driver: Driver,
    /// Where.
    pub pair: Pair,
    /// From the start of both proxies to the first answer through them.
    pub start: Duration,
    /// Processes of the outbound proxy.
    pub outbound: Vec<u32>,
    /// Processes of the inbound proxy.
    pub inbound: Vec<u32>,
    /// The application's process.
    pub server: u32,
    target: IpAddr,
    /// The application, then the proxies.
    children: Vec<Child>,
    _mesh: Option<[Meshed; 2]>,
}

/// Its sockets are told from the workload's by their user, as on Kubernetes.
const LINKERD_USER: u32 = 2102;

/// How long a pair may take until the first answer.
const START: Duration = Duration::from_secs(15);

impl Running {
    /// Starts the application and both proxies, and waits for the first answer. Needs a folder for files.
    pub(crate) async fn start(
        driver: Driver,
        number: u8,
        folder: &Path,
        control: &Control,
        binary: &Path,
    ) -> Result<Running> {
        let pair = Pair::new(number, &format!("{driver}{number}"))?;
        let own = std::env::current_exe()?;
        let mut serve = pair.command(&pair.server(), &own);
        let server = serve.arg("serve").spawn()?;
        let server_pid = server.id().context("the application has ended")?;
        wait_until(&format!("{}:{HTTP}", pair.server_control_ip())).await?;
        let mut children = vec![server];

        if let Driver::Haproxy | Driver::Nginx | Driver::Relay | Driver::TlsRelay = driver {
            let (outbound, inbound) = peers::redirections();
            pair.redirect(&outbound, &inbound)?;
        }
        let mut mesh = None;
        let mut target = IpAddr::V4(pair.server_ip());
        let commands: Vec<Command> = match driver {
            Driver::Direct => Vec::new(),
            Driver::Relay => relays(&pair, &own, None),
            Driver::TlsRelay => relays(&pair, &own, Some(folder)),
            Driver::Haproxy => {
                let configs = peers::haproxy(&pair, folder)?;
                let mut commands = on_both_sides(&pair, Path::new("/usr/sbin/haproxy"));
                for (command, config) in commands.iter_mut().zip(configs) {
                    command.args(["-db", "-q", "-f"]).arg(config);
                }
                commands.into()
            }
            Driver::Nginx => {
                let configs = peers::nginx(&pair, folder)?;
                let mut commands = on_both_sides(&pair, Path::new("/usr/sbin/nginx"));
                for (command, config) in commands.iter_mut().zip(configs) {
                    command.arg("-p").arg(folder).arg("-c").arg(config);
                }
                commands.into()
            }
            Driver::Gossamer | Driver::Linkerd => {
                let sides = control.register(&pair)?;
                pair.add_endpoints(workload::ENDPOINTS - 1)?;
                target = sides[1].service;
                let mut commands =
                    on_both_sides(&pair, if driver == Driver::Linkerd { Path::new("setpriv") } else { binary });
                if driver == Driver::Linkerd {
                    for command in &mut commands {
                        let user = LINKERD_USER.to_string();
                        command.args(["--reuid", &user, "--clear-groups"]).arg(binary);
                    }
                }
                let ips = [pair.client_ip(), pair.server_ip()];
                for ((command, side), ip) in commands.iter_mut().zip(&sides).zip(ips) {
                    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").envs(match driver {
                        Driver::Gossamer => control.environment(side, ip.into())?,
                        _ => control.linkerd_environment(side, ip.into())?,
                    });
                }
                if driver == Driver::Linkerd {
                    pair.redirect_by_user(LINKERD_USER, &[HTTP, HTTP2, GRPC, BULK])?;
                }
                mesh = Some(sides);
                commands.into()
            }
        };
        let began = Instant::now();
        let mut pids = Vec::new();
        // The server's side first: what it takes to be there is part of the measured time all the same.
        for mut command in commands.into_iter().rev() {
            let log = std::fs::File::create(folder.join(format!("{}-{}.log", pair.name, pids.len())))?;
            let child = command.stdout(Stdio::null()).stderr(log).spawn().context("starting a proxy")?;
            pids.push(child.id().context("a proxy has ended at once")?);
            children.push(child);
        }
        let mut running = Running {
            driver,
            pair,
            start: Duration::ZERO,
            outbound: Vec::new(),
            inbound: Vec::new(),
            server: server_pid,
            target,
            children,
            _mesh: mesh,
        };
        running
            .first_answer(began)
            .await
            .with_context(|| format!("{driver} gave no answer; see {}", folder.display()))?;
        let mut pids = pids.into_iter();
        running.inbound = pids.next().map(process::family).unwrap_or_default();
        running.outbound = pids.next().map(process::family).unwrap_or_default();
        Ok(running)
    }

    /// Where load goes.
    pub(crate) fn target(&self, port: u16) -> SocketAddr {
        debug_assert!([HTTP, HTTP2, GRPC, BULK].contains(&port));
        SocketAddr::new(self.target, port)
    }

    /// Where load goes that is spread over many services: the first of their addresses.
    pub(crate) fn first_service(&self, port: u16) -> SocketAddr {
        SocketAddr::from((network::service_ip(self.pair.number, 0), port))
    }

    /// The load generator, in the client's namespace.
    pub(crate) fn load(&self) -> Result<Command> {
        let mut command = self.pair.command(&self.pair.client(), &std::env::current_exe()?);
        command.arg("load").stdout(Stdio::piped());
        Ok(command)
    }

    /// Asks the proxies to end, and waits for it.
    pub(crate) async fn end(mut self) -> Result<()> {
        for proxy in self.children.iter_mut().skip(1) {
            let pid = proxy.id().context("a proxy has ended by itself")?;
            Command::new("kill").arg(pid.to_string()).status().await?;
            let status = tokio::time::timeout(START, proxy.wait()).await.context("a proxy does not end")??;
            anyhow::ensure!(status.success(), "a proxy ends with {status}");
        }
        Ok(())
    }

    async fn first_answer(&mut self, began: Instant) -> Result<()> {
        let mut load = self.load()?;
        load.args(["--kind", "first", "--target", &self.target(HTTP).to_string()]);
        let output = tokio::time::timeout(START, load.output()).await.context("too slow")??;
        anyhow::ensure!(output.status.success(), "no answer");
        self.start = began.elapsed();
        Ok(())
    }
}

fn on_both_sides(pair: &Pair, program: &Path) -> [Command; 2] {
    [pair.command(&pair.client(), program), pair.command(&pair.server(), program)]
}

fn relays(pair: &Pair, own: &Path, tls: Option<&Path>) -> Vec<Command> {
    let [mut outbound, mut inbound] = on_both_sides(pair, own);
    for command in [&mut outbound, &mut inbound] {
        command.arg("relay");
        if let Some(folder) = tls {
            command.arg("--tls").arg(folder);
        }
    }
    for port in [HTTP, HTTP2, GRPC, BULK] {
        let hop = SocketAddr::from((pair.server_ip(), port + peers::HOP));
        outbound.arg("--route").arg(format!("127.0.0.1:{}={hop}", port + peers::OUTBOUND));
        inbound.arg("--route").arg(format!("0.0.0.0:{}=127.0.0.1:{port}", port + peers::INBOUND));
    }
    inbound.arg("--inbound");
    vec![outbound, inbound]
}

async fn wait_until(address: &str) -> Result<()> {
    let deadline = Instant::now() + START;
    while tokio::net::TcpStream::connect(address).await.is_err() {
        anyhow::ensure!(Instant::now() < deadline, "{address} is not listened on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// The binary of a driver's proxy, for its size.
pub(crate) fn binary(driver: Driver, linkerd: Option<&Path>) -> Option<PathBuf> {
    match driver {
        Driver::Direct | Driver::Relay | Driver::TlsRelay => None,
        Driver::Haproxy => Some("/usr/sbin/haproxy".into()),
        Driver::Nginx => Some("/usr/sbin/nginx".into()),
        Driver::Gossamer => Some(network::proxy_binary()),
        Driver::Linkerd => linkerd.map(Path::to_path_buf),
    }
}
