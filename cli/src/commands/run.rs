//! `meshctl run`.

use crate::error::{CommandError, Context, Result};
use crate::output::paint_err;
use crate::registry::{Client, Lease};
use crate::replica::{Replica, Words, signal as send, tap_socket, terminate};
use crate::sandbox::dns;
use crate::sandbox::enter::{self, Beside};
use crate::sandbox::network;
use crate::sandbox::publish::{self, Publish};
use crate::sandbox::state::{self, Member, Mesh};
use futures_util::future::{join_all, try_join_all};
use gossamer_api::defaults;
use gossamer_api::wire::mesh::{Port, RegisterWorkload, Registered};
use nix::sys::signal::Signal;
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

/// Run a program with the mesh around it
///
/// The program gets a network of its own with a proxy in front. Others of the mesh reach it by its name; it reaches them
/// by theirs. It needs no change and no settings. The exit code is the program's.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl run web --port 8080 -- python3 -m http.server 8080
  meshctl run web --port 8080 --publish 8080 -- ./server     and curl localhost:8080
  meshctl run client -- curl -s http://web:8080/
  meshctl run api --port 9000 --replicas 3 --env LOG=debug -- ./api")]
pub struct Args {
    /// The service's name; also its account
    name: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// A port that it listens on, and its protocol if that can't be seen: 8080, 6379/redis
    #[arg(short, long = "port", value_name = "PORT[/PROTOCOL]", value_parser = port)]
    ports: Vec<Port>,
    /// Let this machine reach a port of it: 8080, 8000:80, 0.0.0.0:8080
    #[arg(short = 'P', long, value_name = "[ADDRESS:]PORT[:PORT]")]
    publish: Vec<Publish>,
    /// How many of it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    replicas: u16,
    /// A variable of its environment
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,
    /// A label, as on a pod, for policies and for --selector; app=NAME is there already
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// A setting, as an annotation on a pod: config.gossamer.io/opaque-ports=7000
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    annotation: Vec<(String, String)>,
    /// The mesh to join; started if it is missing
    #[arg(long, env = "MESHCTL_MESH", default_value = state::DEFAULT)]
    mesh: String,
    /// What the proxy logs on standard error: LEVEL or TARGET=LEVEL, comma-separated: warn,gossamer_proxy::balance=debug
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    proxy_log: String,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// A control plane that was started on demand ends this long after its last workload.
const IDLE: &str = "10s";
/// It starts in well under a second on an idle machine.
const START: Duration = Duration::from_secs(20);
/// How long the proxy may finish what is in flight when the program has ended.
const DRAIN: Duration = Duration::from_secs(5);

/// The mesh to join; its control plane is started if there is none. Called before there are threads.
pub fn mesh(args: &Args) -> Result<Mesh> {
    let find = || state::find(Some(&args.mesh));
    if let Ok(mesh) = find() {
        return Ok(mesh);
    }
    let path = state::directory()?.join(format!("{}.log", args.mesh));
    // Emptied, then appended to: another one may be starting at the same moment.
    std::fs::write(&path, "").context("the control plane's log")?;
    let log = std::fs::File::options().append(true).open(&path).context("the control plane's log")?;
    let mut child = std::process::Command::new("/proc/self/exe")
        .arg0("meshctl")
        .args(["control", "--idle", IDLE, "--mesh", &args.mesh])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // The terminal's Ctrl-C is not for it: other workloads may join.
        .process_group(0)
        .spawn()
        .context("starting the control plane")?;
    let deadline = Instant::now() + START;
    loop {
        if let Ok(mesh) = find() {
            return Ok(mesh);
        }
        let ended = child.try_wait().context("the control plane")?.is_some();
        // If it ended because another one was faster, that one is there by now, or soon.
        if (ended && !state::is_taken(&args.mesh)?) || Instant::now() > deadline {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let what = if ended { "the control plane did not start" } else { "the control plane is not ready" };
            let lines = text.lines().filter(|line| !line.is_empty());
            let why = lines.map(|line| line.trim_start_matches("error: ").trim_start_matches("hint: "));
            return Err(why.fold(CommandError::failed(what), |error, line| error.hint(line)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Listens on this machine, if asked to; the outer process relays.
pub fn publish(args: &Args, mesh: &Mesh) -> Result<Option<Beside>> {
    if args.publish.is_empty() || !enter::is_outer() {
        return Ok(None);
    }
    let listeners = publish::bind(&args.publish)?;
    let (mesh, namespace, name) = (mesh.clone(), args.namespace.clone(), args.name.clone());
    Ok(Some(Box::new(move || publish::relay(listeners, mesh, namespace, name))))
}

/// Runs the program in the mesh's network, in which this process is.
pub async fn run(args: Args, mesh: Mesh) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut registry = Client::connect(&mesh).await?;
    let mut registered = Vec::new();
    for _ in 0..args.replicas {
        registered.push(registry.register(&mesh, args.registration()).await?);
    }
    // From here on the mesh's network lives as long as this process.
    let names = registered.iter().map(|(one, _)| (args.namespace.as_str(), &*one.replica, &*one.address));
    let _member = Member::new(&mesh, enter::outer_pid()?, &names.collect::<Vec<_>>())?;
    let resolv = resolv_conf(&args.namespace)?;
    let starts =
        registered.into_iter().map(|(registered, lease)| start(&args, &mesh, registered, lease, resolv.path().into()));
    let mut running = tokio::select! {
        running = try_join_all(starts) => running?,
        signal = signals.next() => return Ok(ExitCode::from(128 + signal as u8)),
    };

    let code = wait(&mut running, &mut signals).await?;
    join_all(running.iter_mut().map(|running| running.replica.stop_proxy(DRAIN))).await;
    Ok(code)
}

struct Running {
    replica: Replica,
    program: Child,
    ended: Option<ExitStatus>,
    _lease: Lease,
}

async fn start(
    args: &Args,
    mesh: &Mesh,
    registered: Registered,
    lease: Lease,
    resolv_conf: PathBuf,
) -> Result<Running> {
    let mut replica = Replica::new(&args.name, &registered, resolv_conf).await?;
    replica.start_proxy(&registered, Words::Terminal).await?;
    replica.renew_token(lease.again.clone());
    if let Some(folder) = mesh.socket.parent() {
        replica.serve_tap(tap_socket(folder, &args.namespace, &registered.replica))?;
    }
    let (program, arguments) = args.command.split_first().ok_or_else(|| CommandError::usage("no program"))?;
    let program = replica.start(program, arguments, args.env.clone(), Words::Terminal).await?;
    Ok(Running { replica, program, ended: None, _lease: lease })
}

/// Until all programs have ended. The first failure is the exit code.
async fn wait(running: &mut [Running], signals: &mut Signals) -> Result<ExitCode> {
    let mut asked = 0;
    let mut failure = None;
    while running.iter().any(|r| r.ended.is_none()) {
        tokio::select! {
            ended = next_end(running) => {
                let status = ended?;
                failure = failure.or((!status.success()).then_some(status));
            }
            signal = signals.next() => {
                asked += 1;
                for one in running.iter().filter(|r| r.ended.is_none()) {
                    match signal {
                        // The terminal has sent it to the program as well.
                        Signal::SIGINT if asked == 1 => {}
                        _ if asked > 2 => send(&one.program, Signal::SIGKILL),
                        other => send(&one.program, other),
                    }
                }
            }
        }
    }
    Ok(failure.map_or(ExitCode::SUCCESS, |status| {
        ExitCode::from(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)) as u8)
    }))
}

/// The next program to end; a proxy that ends before its program takes it along.
async fn next_end(running: &mut [Running]) -> Result<ExitStatus> {
    let ends = running.iter_mut().filter(|r| r.ended.is_none()).map(|one| {
        Box::pin(async move {
            let name = one.replica.name.clone();
            let proxy = async {
                match one.replica.proxy() {
                    Some(proxy) => proxy.wait().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                status = one.program.wait() => {
                    let status = status.context("the program")?;
                    one.ended = Some(status);
                    return Ok(status);
                }
                status = proxy => {
                    let status = status.context("the proxy")?;
                    eprintln!("{} the proxy of {name} has ended: {status}", paint_err("error:", "1;31"));
                }
            }
            terminate(&one.program);
            let status = one.program.wait().await.context("the program")?;
            one.ended = Some(status);
            // However the program ended, this was no success.
            Ok(if status.success() { ExitStatus::from_raw(1 << 8) } else { status })
        })
    });
    futures_util::future::select_all(ends).await.0
}

fn resolv_conf(namespace: &str) -> Result<NamedTempFile> {
    let file = NamedTempFile::new_in(state::directory()?).context("resolv.conf")?;
    let text = dns::resolv_conf(network::NODE, namespace, defaults::CLUSTER_DOMAIN);
    std::fs::write(file.path(), text).context("resolv.conf")?;
    // The program may be somebody else's by then.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(file.path(), mode).context("resolv.conf")?;
    Ok(file)
}

impl Args {
    fn registration(&self) -> RegisterWorkload {
        let mut annotations: std::collections::HashMap<_, _> = self.annotation.iter().cloned().collect();
        let log = format!("{}/log-level", gossamer_api::keys::CONFIG_PREFIX);
        annotations.entry(log).or_insert_with(|| self.proxy_log.clone());
        RegisterWorkload {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            ports: self.ports.clone(),
            labels: self.labels.iter().cloned().collect(),
            annotations,
            ..RegisterWorkload::default()
        }
    }
}

struct Signals(Vec<(Signal, tokio::signal::unix::Signal)>);

impl Signals {
    fn new() -> Result<Signals> {
        let kinds = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let listen = |kind: Signal| Ok((kind, signal(SignalKind::from_raw(kind as i32)).context("signal handler")?));
        Ok(Signals(kinds.into_iter().map(listen).collect::<Result<_>>()?))
    }

    async fn next(&mut self) -> Signal {
        let waits = self.0.iter_mut().map(|(kind, signal)| {
            Box::pin(async move {
                signal.recv().await;
                *kind
            })
        });
        futures_util::future::select_all(waits).await.0
    }
}

fn port(text: &str) -> Result<Port, String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, ""));
    match number.parse::<u16>() {
        Ok(number) if number > 0 => {
            let name = protocol.to_ascii_lowercase();
            Ok(Port { port: number.into(), name: name.clone(), app_protocol: name })
        }
        _ => Err(format!("{number:?} is no port (1 to 65535)")),
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.into(), value.into()))
}
