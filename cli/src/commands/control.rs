//! `meshctl control`.

use crate::demo::app;
use crate::error::{CommandError, Context, Result};
use crate::node::Node;
use crate::output::paint_err;
use crate::plane::Plane;
use crate::sandbox::enter::{self, Network};
use crate::sandbox::state::{self, State};
use gossamer_api::process::log::{self, Format};
use gossamer_api::process::stop::Stop;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Run the control plane of a mesh on this machine
///
/// `meshctl run` starts one by itself when it needs it. Start it by hand to keep it, or to give it a folder of objects:
/// the same YAML as on Kubernetes (Service, HTTPRoute, AuthorizationPolicy …), read again whenever it changes.
///
/// Started again after it was killed, it takes over the workloads that still run: they go on with what they know meanwhile.
///
/// Programs in the mesh reach the internet, and this machine's own services as `host.mesh.internal`: by TCP, and names as
/// this machine knows them. Nothing else leaves the private network.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl control --objects ./mesh\n  meshctl control --isolated")]
pub struct Args {
    /// The mesh's name
    #[arg(long, env = "MESHCTL_MESH", default_value = state::DEFAULT)]
    mesh: String,
    /// A folder of YAML objects to watch
    #[arg(long, value_name = "DIR")]
    objects: Option<PathBuf>,
    /// No way out: programs in the mesh reach each other and nothing else
    #[arg(long)]
    pub(crate) isolated: bool,
    /// What it logs: LEVEL or TARGET=LEVEL, comma-separated: warn,gossamer_destination=debug
    #[arg(long, default_value = "warn,gossamer=info")]
    log_level: String,
    /// End when there has been no workload for this long
    #[arg(long, value_parser = app::duration, hide = true)]
    idle: Option<Duration>,
}

/// A new private network, or the one of workloads whose control plane has ended. Called before there are threads.
pub fn network(args: &Args) -> Result<Network> {
    // Those further inside are where they should be.
    let survivor = if enter::is_outer() { state::survivor(&args.mesh)? } else { None };
    Ok(match survivor {
        Some(pid) => Network::Left(pid, !args.isolated),
        None if args.isolated => Network::New,
        None => Network::Open,
    })
}

/// What is in flight when it is told to end.
const GRACE: Duration = Duration::from_secs(2);

/// Runs it until a signal.
pub async fn run(args: Args) -> Result<ExitCode> {
    log::init(Format::Plain, &args.log_level).context("--log-level")?;
    let Some(state) = State::take(&args.mesh)? else {
        return Err(CommandError::failed(format!("a mesh called {:?} runs already", args.mesh))
            .hint("give this one another name with --mesh"));
    };
    let stop = Stop::new();
    stop.on_signals().context("signal handlers")?;
    let plane = Plane::prepare(args.objects, stop.clone())?;
    let mut node = Node::start(state).await?;
    plane.serve(&node).await?;
    node.answer(plane.resolver());
    node.publish()?;
    eprintln!("{} {:?} is ready", paint_err("mesh:", "1;32"), args.mesh);
    let idle = async {
        match args.idle {
            Some(patience) => plane.idle(patience).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.stopping() => {}
        () = idle => {}
    }
    stop.stop();
    stop.wait(GRACE).await;
    Ok(ExitCode::SUCCESS)
}
