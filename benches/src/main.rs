//! The bench: what a pair of proxies costs in CPU, latency and memory, against floors and named peers in one run.
//!
//! This file reads the arguments and decides what this process is: the bench itself, which makes [`network`]s, starts
//! the [`driver`]s, sends it through the [`workload`]s in turn and [`report`]s; or one of the small programs that it
//! starts by re-executing itself ([`server`], [`relay`], [`load`]).

mod bounds;
mod control;
mod driver;
mod load;
mod memory;
mod micro;
mod network;
mod peers;
mod process;
mod relay;
mod report;
mod rounds;
mod server;
mod train;
mod workload;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Measure what a pair of proxies costs, against floors and peers.
///
/// Needs root (or a user namespace), nginx with its stream module and haproxy. Exits 3 when a bound is missed.
#[derive(Parser, Clone)]
pub(crate) struct Args {
    /// Rounds over all drivers and workloads; figures are medians of them.
    #[arg(long)]
    rounds: Option<usize>,
    /// About two minutes: one round, short measurements, 1,000 idle connections.
    #[arg(long)]
    quick: bool,
    /// Only these workloads, comma-separated (see benches/README.md); "memory" is one of them.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these drivers, comma-separated: direct, relay, tls-relay, haproxy, nginx, gossamer, linkerd.
    #[arg(long, value_delimiter = ',')]
    drivers: Vec<String>,
    /// linkerd2-proxy's release binary, to be measured against our control plane.
    #[arg(long)]
    linkerd: Option<PathBuf>,
    /// Our proxy's binary; default: built and taken from the target folder of this program.
    #[arg(long)]
    proxy: Option<PathBuf>,
    /// Where the tables go as Markdown; default: bench.md in the target folder.
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Milliseconds of each measurement; profilers want more.
    #[arg(long)]
    ms: Option<u64>,
    /// Seconds to leave everything running at rest once it is started, to be looked at from another terminal.
    #[arg(long)]
    hold: Option<u64>,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What the bench starts of itself.
#[derive(Subcommand, Clone)]
enum Role {
    /// What the hot small parts cost in instructions; needs valgrind. Exits 3 when one costs more than it may.
    Micro,
    /// One of those parts, so many times.
    #[command(hide = true)]
    Part { name: String, rounds: u64 },
    /// Makes the profile that release builds of the proxy are compiled with, see proxy/profile/rustc.
    Train,
    /// The application behind the proxies.
    #[command(hide = true)]
    Serve,
    /// Moves bytes, with or without TLS.
    #[command(hide = true)]
    Relay(relay::Args),
    /// Generates load.
    #[command(hide = true)]
    Load(load::Args),
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.role {
        None if !network::is_inside() => {
            let binary = proxy_binary(&args)?;
            Err(network::enter(&binary))
        }
        None => {
            let missed = runtime()?.block_on(rounds::run(&args))?;
            std::process::exit(if missed { 3 } else { 0 });
        }
        Some(Role::Train) if !network::is_inside() => Err(network::enter(&train::build()?)),
        Some(Role::Train) => runtime()?.block_on(train::run(&args)),
        Some(Role::Micro) => std::process::exit(if micro::run()? { 3 } else { 0 }),
        Some(Role::Part { name, rounds }) => micro::part(name, *rounds),
        Some(Role::Serve) => runtime()?.block_on(server::run()),
        Some(Role::Relay(relay)) => runtime()?.block_on(relay::run(relay)),
        Some(Role::Load(load)) => {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime()?, load::run(load))
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The release build of our proxy, made anew if cargo runs this: a stale binary must not be measured.
fn proxy_binary(args: &Args) -> Result<PathBuf> {
    if let Some(path) = &args.proxy {
        return path.canonicalize().with_context(|| path.display().to_string());
    }
    let own = std::env::current_exe()?;
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = std::process::Command::new(cargo);
        build.args(["build", "--quiet", "-p", "gossamer-proxy"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        anyhow::ensure!(build.status()?.success(), "the proxy could not be built");
    }
    let path = own.with_file_name("gossamer-proxy");
    path.canonicalize().with_context(|| format!("{}: build it, or name it with --proxy", path.display()))
}
