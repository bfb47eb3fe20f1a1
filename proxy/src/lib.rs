//! The data plane: one process beside one workload.
//!
//! A connection's story is in [`outbound`] (from the workload) and [`inbound`] (to it): original destination, detect,
//! discover, authorize, then [`request`] (HTTP) or [`tcp`] (bytes), which route, balance, connect, forward, record.
//!
//! Two kinds of threads. Data threads run connections, each with a [`shard::Shard`] of its own: single-threaded, no
//! locks, nothing shared but settings, snapshots of policy and counters. The control thread runs everything else:
//! discovery, identity, admin, tap; so a scrape never delays a request.

pub mod accept;
pub mod access;
pub mod balance;
pub mod config;
pub mod control;
pub mod detect;
pub mod drain;
pub mod error;
pub mod inbound;
pub mod metrics;
pub mod net;
pub mod outbound;
pub mod patience;
pub mod pod;
pub mod policy;
pub mod privilege;
pub mod record;
pub mod redirect;
pub mod request;
pub mod shard;
pub mod tap;
pub mod tcp;
pub mod tls;

use accept::Kind;
use anyhow::{Context, Result};
use config::Config;
use control::Control;
use gossamer_api::defaults;
use gossamer_api::process::log::{self, Format, LogLevel};
use gossamer_api::process::memory;
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::Credentials;
use gossamer_api::process::{admin::Admin, grpc};
use metrics::Metrics;
use shard::Shard;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use tap::Taps;
use tokio::runtime::LocalOptions;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// The whole process: settings from the environment, threads, until a signal. Gives the exit code.
///
/// 0: stopped when asked to; 1: could not start; 64: bad settings (as linkerd2-proxy, `EX_USAGE`).
pub fn main() -> i32 {
    memory::small_from_the_start();
    with_config(serve)
}

/// Sets the redirection and ends: the separate init container, where the proxy itself never has a privilege.
pub fn init() -> i32 {
    with_config(|config| Ok(redirect(&config).apply()?))
}

fn with_config(main: impl FnOnce(Config) -> Result<()>) -> i32 {
    let result = match Config::from_env() {
        Ok(config) => main(config),
        Err(error) => {
            eprintln!("error: {error}");
            return 64;
        }
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {error:#}");
            1
        }
    }
}

/// What needs a privilege, in the only thread; then without any, everything else.
fn serve(config: Config) -> Result<()> {
    let listeners = bind(&config)?;
    if config.redirect {
        redirect(&config).apply()?;
        // With a mark each socket of ours needs a capability for good, and whoever set it up keeps to its own namespace.
        if config.mark == 0 {
            privilege::give_up(config.uid, &config.token_file)?;
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    runtime.block_on(async {
        let format = if config.log_json { Format::Json } else { Format::Plain };
        let log = log::init(format, &config.log_level)?;
        let stop = Stop::new();
        stop.on_signals().context("signal handlers")?;
        run(config, listeners, log, stop).await
    })
}

/// Runs the proxy until `stop`, then drains. The calling runtime becomes the control thread.
///
/// Errors: the admin page, the tap API or a thread can't be started.
async fn run(config: Config, listeners: Vec<Vec<(Kind, TcpListener)>>, log: LogLevel, stop: Stop) -> Result<()> {
    let config = Arc::new(config);
    let metrics = Metrics::new();
    let taps = Taps::new(metrics.tap_dropped());
    // Connections to the control plane are our own, too.
    grpc::mark_sockets(config.mark);
    let credentials = control::identity::start(&config, &metrics, &stop)?;
    let control = control(&config, &credentials, &stop);
    // So that the way to the control plane stands before the first connection comes.
    drop(control.server(config.admin_listen.port()));

    if let Some(addr) = config.tap_listen {
        let listener = tokio::net::TcpListener::from_std(bind_one(addr)?)?;
        // A drain can be watched to its end.
        stop_free(grpc::serve(taps.routes(), listener, None, Stop::new()));
    }

    let mut threads = Vec::new();
    for (worker, listeners) in listeners.into_iter().enumerate() {
        let (config, control, metrics) = (config.clone(), control.clone(), metrics.clone());
        let (taps, credentials, stop) = (taps.clone(), credentials.clone(), stop.clone());
        let thread = std::thread::Builder::new().name(format!("data-{worker}")).spawn(move || {
            data_thread(listeners, move || Shard::new(config, control, metrics, taps, credentials, stop))
        })?;
        threads.push(thread);
    }
    // Opened last, since `await` takes it for the sign that all of the above runs.
    let admin = tokio::net::TcpListener::from_std(bind_one(config.admin_listen)?)?;
    stop_free(serve_admin(&config, &metrics, &credentials, &control, log, &stop).serve(admin, axum::Router::new()));
    tracing::info!(
        outbound = ?config.outbound_listen, inbound = ?config.inbound_listen, admin = %config.admin_listen,
        "proxy runs"
    );
    stop.stopping().await;
    // The data threads drain by themselves, within the grace period; control goes on for them meanwhile.
    tokio::task::spawn_blocking(move || threads.into_iter().try_for_each(join)).await??;
    stop.wait(std::time::Duration::from_millis(200)).await;
    Ok(())
}

/// Spawns what ends with the process rather than with the drain.
fn stop_free(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn join(thread: JoinHandle<Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a data thread panicked")))
}

/// Tasks that run before the kernel is asked for news again: about as many as become ready at once under load, so that
/// what they write to a shared connection leaves together.
const TASKS_PER_POLL: u32 = 256;

/// Runs one shard: accepts until the process stops, then waits for what is in flight.
fn data_thread(listeners: Vec<(Kind, TcpListener)>, shard: impl FnOnce() -> std::rc::Rc<Shard>) -> Result<()> {
    // A runtime whose own tasks stay on its thread: a `LocalSet` within one would schedule everything twice.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .event_interval(TASKS_PER_POLL)
        .build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let shard = shard();
        let tasks = TaskTracker::new();
        let accepting = TaskTracker::new();
        for (kind, listener) in listeners {
            let arrivals = net::Arrivals::new(listener)?;
            accepting.spawn_local(accept::accept(shard.clone(), arrivals, kind, tasks.clone()));
        }
        let sweep = tokio::task::spawn_local(shard.clone().sweep());
        let trim = tokio::task::spawn_local(memory::when_idle());
        shard.stop.stopping().await;
        shard.drain.begin();
        accepting.close();
        accepting.wait().await;
        tasks.close();
        if tokio::time::timeout(shard.config.grace, tasks.wait()).await.is_err() {
            tracing::warn!(open = tasks.len(), "the grace period ended before all connections did");
            shard.drain.end();
            let _ = tokio::time::timeout(defaults::LAST_ANSWERS, tasks.wait()).await;
        }
        shard.close();
        sweep.abort();
        trim.abort();
        Ok(())
    })
}

/// Listeners for each data thread: the kernel spreads connections over those that share a port.
fn bind(config: &Config) -> Result<Vec<Vec<(Kind, TcpListener)>>> {
    let each = || {
        let outbound = config.outbound_listen.iter().map(|addr| (Kind::Outbound, *addr));
        let inbound = config.inbound_listen.iter().map(|addr| (Kind::Inbound, *addr));
        let explicit = config.forwards.iter().map(|f| (Kind::Explicit(f.target.clone()), f.listen));
        let mut listeners = Vec::new();
        for (kind, addr) in outbound.chain(inbound).chain(explicit) {
            match bind_one(addr) {
                Ok(listener) => listeners.push((kind, listener)),
                // A machine without IPv6 has nothing to listen for there.
                Err(error) if addr.is_ipv6() => tracing::debug!(%addr, "no IPv6 listener: {error:#}"),
                Err(error) => return Err(error),
            }
        }
        Ok(listeners)
    };
    (0..config.workers).map(|_| each()).collect()
}

fn bind_one(addr: SocketAddr) -> Result<TcpListener> {
    net::listen(addr).with_context(|| match addr.port() {
        0 => format!("cannot listen on {addr}"),
        port => format!("cannot listen on {addr}; is another process using port {port}?"),
    })
}

fn redirect(config: &Config) -> redirect::Redirect {
    let port = |listen: &[SocketAddr], default| listen.first().map_or(default, SocketAddr::port);
    let inbound_port = port(&config.inbound_listen, defaults::INBOUND_PORT);
    let mut own_ports = vec![inbound_port, config.admin_listen.port()];
    own_ports.extend(config.tap_listen.map(|addr| addr.port()));
    redirect::Redirect {
        outbound_port: port(&config.outbound_listen, defaults::OUTBOUND_PORT),
        inbound_port,
        exempt_uid: (config.mark == 0).then_some(config.uid),
        exempt_mark: (config.mark != 0).then_some(config.mark),
        skip_outbound: config.skip_outbound_ports.clone(),
        skip_inbound: config.skip_inbound_ports.clone(),
        skip_clients: config.skip_subnets.clone(),
        own_ports,
        // The outbound listener's, unless it is open to others.
        closed_port: config
            .outbound_listen
            .iter()
            .all(|addr| addr.ip().is_loopback())
            .then(|| port(&config.outbound_listen, defaults::OUTBOUND_PORT)),
    }
}

fn control(config: &Config, credentials: &watch::Receiver<Option<Arc<Credentials>>>, stop: &Stop) -> Control {
    if config.destination.is_none() && config.policy.is_none() {
        return Control::offline();
    }
    let asked = control::ControlConfig {
        destination: config.destination.clone(),
        policy: config.policy.clone(),
        workload: config.workload.clone(),
    };
    Control::new(asked, credentials.clone(), stop.clone())
}

fn serve_admin(
    config: &Config,
    metrics: &Metrics,
    credentials: &watch::Receiver<Option<Arc<Credentials>>>,
    control: &Control,
    log: LogLevel,
    stop: &Stop,
) -> Admin {
    let (needs_certificate, credentials) = (config.local_identity.is_some(), credentials.clone());
    let (asked, missing) = (control.clone(), control.clone());
    let metrics = metrics.clone();
    let mut admin = Admin::new(log, stop.clone());
    admin.shutdown = config.admin_shutdown;
    admin.metrics = Arc::new(move || metrics.render());
    admin.ready = Arc::new(move || match credentials.borrow().as_ref() {
        None if needs_certificate => Err("no certificate yet".into()),
        _ => asked.unheard().map_or(Ok(()), Err),
    });
    admin.warning = Arc::new(move || missing.missed());
    admin
}
