//! The commands, one file each: the doc comment is the help, `Args` the contract, `run` does it.

pub mod as_user;
pub mod authz;
pub mod check;
pub mod completion;
pub mod control;
pub mod demo;
pub mod diagnostics;
pub mod edges;
pub mod identity;
pub mod inject;
pub mod install;
pub mod proxy;
pub mod proxy_metrics;
pub mod rotate_root;
pub mod run;
pub mod stat;
pub mod tap;
pub mod top;
pub mod uninject;
pub mod uninstall;
pub mod upgrade;
pub mod version;
pub mod why;

use crate::error::{Context, Result};
use crate::place::{Place, Scope};
use crate::sandbox::enter::{self, Beside, Entered, Network};
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
  meshctl install | kubectl apply -f -       the mesh on a Kubernetes cluster
  meshctl stat                               what runs in it, on this machine or on the cluster of your kubeconfig

As a plugin of kubectl, which then always means the cluster: ln -s \"$(command -v meshctl)\" ~/.local/bin/kubectl-gossamer

Exit codes: 0 done, 1 failed, 2 usage, 3 problems found.";

#[derive(Subcommand, Debug)]
enum Command {
    Install(install::Args),
    Upgrade(upgrade::Args),
    Uninstall(uninstall::Args),
    Inject(inject::Args),
    Uninject(uninject::Args),
    Demo(demo::Args),
    Run(run::Args),
    Control(control::Args),
    Stat(stat::Args),
    Top(top::Args),
    Tap(tap::Args),
    Edges(edges::Args),
    Authz(authz::Args),
    Identity(identity::Args),
    ProxyMetrics(proxy_metrics::Args),
    Diagnostics(diagnostics::Args),
    Check(check::Args),
    Why(why::Args),
    Completion(completion::Args),
    Version(version::Args),
    #[command(hide = true)]
    AsUser(as_user::Args),
    #[command(hide = true)]
    Proxy(proxy::Args),
    #[command(hide = true)]
    DemoApp(crate::demo::app::Args),
    /// Connect outside of the private network for the mesh of the process that started this
    #[command(hide = true)]
    Outside,
}

/// Runs the command.
pub fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Install(args) => block_on(install::run(args)),
        Command::Upgrade(args) => block_on(upgrade::run(args)),
        Command::Uninstall(args) => block_on(uninstall::run(args)),
        Command::Inject(args) => block_on(inject::run(args)),
        Command::Uninject(args) => uninject::run(args),
        Command::Demo(args) => inside(Network::New, None, || demo::run(args)),
        Command::Run(args) => {
            let mesh = run::mesh(&args)?;
            let published = run::publish(&args, &mesh)?;
            inside(Network::Of(mesh.pid), published, || run::run(args, mesh))
        }
        Command::Control(args) => {
            let network = control::network(&args)?;
            inside(network, None, || control::run(args))
        }
        Command::Stat(args) => looking(&args.scope.clone(), |place| stat::run(args, place)),
        Command::Top(args) => looking(&args.scope.clone(), |place| top::run(args, place)),
        Command::Tap(args) => looking(&args.scope.clone(), |place| tap::run(args, place)),
        Command::Edges(args) => looking(&args.scope.clone(), |place| edges::run(args, place)),
        Command::Authz(args) => looking(&args.scope.clone(), |place| authz::run(args, place)),
        Command::Identity(identity::Args { action: Some(identity::Action::RotateRoot(args)), .. }) => {
            block_on(rotate_root::run(args))
        }
        Command::Identity(args) => looking(&args.scope.clone(), |place| identity::run(args, place)),
        Command::ProxyMetrics(args) => looking(&args.scope.clone(), |place| proxy_metrics::run(args, place)),
        Command::Diagnostics(args) => looking(&args.what.scope().clone(), |place| diagnostics::run(args, place)),
        Command::Check(args) if args.inside => inside(Network::New, None, check::try_inside),
        Command::Check(args) => check::run(args),
        Command::Why(args) => match args.request() {
            Some(id) => looking(&args.scope.clone(), |place| why::request(args, id, place)),
            None => why::run(args),
        },
        Command::AsUser(args) => as_user::run(args),
        Command::Proxy(args) => Ok(proxy::run(args)),
        Command::Completion(args) => completion::run(args),
        Command::Version(args) => block_on(version::run(args)),
        Command::Outside => crate::sandbox::outside::serve(),
        Command::DemoApp(args) => block_on(async { crate::demo::app::run(args).await.map(|()| ExitCode::SUCCESS) }),
    }
}

/// Runs a command within a private network; outside of it, waits for that.
fn inside<F: Future<Output = Result<ExitCode>>>(
    network: Network,
    beside: Option<Beside>,
    command: impl FnOnce() -> F,
) -> Result<ExitCode> {
    match enter::enter(network, beside)? {
        Entered::Inside => block_on(command()),
        Entered::Ended(code) => Ok(code),
    }
}

/// Runs a command that looks at a mesh, on this machine or on a cluster.
fn looking<F: Future<Output = Result<ExitCode>>>(scope: &Scope, command: impl FnOnce(Place) -> F) -> Result<ExitCode> {
    let chosen = scope.choose()?;
    block_on(async { command(chosen.open().await?).await })
}

fn block_on(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn every_command_says_what_it_does() {
        let cli = Cli::command();
        cli.clone().debug_assert();
        for command in cli.get_subcommands() {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.ends_with('.'), "{}: {about:?}", command.get_name());
            let examples = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(command.is_hide_set() || examples.contains("Examples:\n"), "{}", command.get_name());
        }
    }
}
