//! The commands, one file each: the doc comment is the help, `Args` the contract, `run` does it.

pub mod completion;
pub mod control;
pub mod demo;
pub mod proxy;
pub mod run;
pub mod version;

use crate::error::{Context, Result};
use crate::sandbox::enter::{self, Entered, Network};
use clap::{Parser, Subcommand};
use std::future::Future;
use std::process::ExitCode;

/// An ultralight service mesh: mutual TLS, load balancing, retries and golden metrics for any program.
#[derive(Parser, Debug)]
#[command(name = "meshctl", version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Start here:
  meshctl demo                               a small application, meshed, with live figures
  meshctl run web --port 8080 -- ./server    mesh a program of yours

Exit codes: 0 done, 1 failed, 2 usage, 3 problems found.";

#[derive(Subcommand, Debug)]
enum Command {
    Demo(demo::Args),
    Run(run::Args),
    Control(control::Args),
    Completion(completion::Args),
    Version(version::Args),
    #[command(hide = true)]
    Proxy(proxy::Args),
    #[command(hide = true)]
    DemoApp(crate::demo::app::Args),
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Demo(args) => inside(Network::New, || demo::run(args)),
        Command::Run(args) => {
            let mesh = run::mesh(&args)?;
            inside(Network::Of(mesh.pid), || run::run(args, mesh))
        }
        Command::Control(args) => inside(Network::New, || control::run(args)),
        Command::Proxy(args) => Ok(proxy::run(args)),
        Command::Completion(args) => completion::run(args),
        Command::Version(args) => version::run(args),
        Command::DemoApp(args) => block_on(async { crate::demo::app::run(args).await.map(|()| ExitCode::SUCCESS) }),
    }
}

/// Runs a command within a private network; outside of it, waits for that.
fn inside<F: Future<Output = Result<ExitCode>>>(network: Network, command: impl FnOnce() -> F) -> Result<ExitCode> {
    match enter::enter(network)? {
        Entered::Inside => block_on(command()),
        Entered::Ended(code) => Ok(code),
    }
}

fn block_on(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(command)
}
