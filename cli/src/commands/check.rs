//! `meshctl check`.

use crate::certificates;
use crate::commands::identity;
use crate::connect;
use crate::demo::app::duration;
use crate::error::{CommandError, Result, causes};
use crate::health::{self, CERTIFICATE_LEFT, Finding};
use crate::output::Format;
use crate::place::Scope;
use crate::registry::Client;
use crate::sandbox::enter;
use crate::sandbox::network;
use crate::sandbox::state::{self, Mesh};
use gossamer_api::defaults;
use gossamer_api::wire::mesh::WorkloadInfo;
use gossamer_proxy::redirect::Redirect;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::TcpStream;

/// Check the mesh, on a cluster or on this machine, and what it runs on
///
/// Each failure says what to do. Exit code 3 when a check fails.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl check\n  meshctl check --pre\n  meshctl check -n shop -o json")]
pub struct Args {
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Only whether a mesh could be installed, or run here
    #[arg(long)]
    pre: bool,
    /// How long a cluster's control plane may take to become ready
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1m")]
    wait: Duration,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Inside a private network: try what a mesh needs
    #[arg(long, hide = true)]
    pub(crate) inside: bool,
}

/// How long a part may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Checks; called before there are threads.
pub fn run(args: Args) -> Result<ExitCode> {
    if args.scope.is_cluster() {
        return super::block_on(on_cluster(args));
    }
    let mut findings = vec![private_network()];
    let mesh = if args.pre { Ok(None) } else { find(&args.scope) };
    match mesh {
        Ok(None) => {}
        Ok(Some(mesh)) => {
            enter::join(mesh.pid)?;
            super::block_on(async {
                whole(&args.scope, &mesh, &mut findings).await;
                Ok(ExitCode::SUCCESS)
            })?;
        }
        Err(error) => {
            let hint = error.hints.first().cloned().unwrap_or_default();
            findings.push(Finding {
                category: "control plane",
                what: "runs".into(),
                problem: Some((error.message, hint)),
                warning: false,
            });
        }
    }
    let code = health::report(&findings, args.output)?;
    if findings.len() == 1 && args.output != Format::Json {
        println!("\nNo mesh runs here. Start one with `meshctl demo` or `meshctl run`.");
    }
    Ok(code)
}

async fn on_cluster(args: Args) -> Result<ExitCode> {
    let cluster = args.scope.cluster.connect().await?;
    let namespace = args.scope.namespace.clone();
    let scope = health::Scope { pre: args.pre, namespace, wait: args.wait };
    health::report(&health::check(&cluster, &scope).await, args.output)
}

/// None where there is no mesh at all, which is no fault.
fn find(scope: &Scope) -> Result<Option<Mesh>> {
    if scope.mesh.is_none() && state::meshes()?.is_empty() {
        return Ok(None);
    }
    state::find(scope.mesh.as_deref()).map(Some)
}

/// What a mesh needs of the kernel, tried in another process.
fn private_network() -> Finding {
    let tried = std::process::Command::new("/proc/self/exe").args(["check", "--inside"]).output();
    let problem = match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            let line =
                |prefix: &str| words.lines().find_map(|l| l.strip_prefix(prefix)).unwrap_or_default().to_string();
            Some((line("error: "), line("hint: ")))
        }
        Err(error) => Some((causes(&error), String::new())),
    };
    Finding {
        category: "machine",
        what: "a private network with redirection can be made".into(),
        problem,
        warning: false,
    }
}

/// In a private network: a bridge, and a redirection.
pub async fn try_inside() -> Result<ExitCode> {
    network::make_bridge()?;
    let redirect = Redirect {
        outbound_port: defaults::OUTBOUND_PORT,
        inbound_port: defaults::INBOUND_PORT,
        exempt_mark: Some(defaults::SOCKET_MARK),
        ..Redirect::default()
    };
    redirect.apply().map_err(|error| CommandError::failed(causes(&error)))?;
    Ok(ExitCode::SUCCESS)
}

async fn whole(scope: &Scope, mesh: &Mesh, findings: &mut Vec<Finding>) {
    let mut add = |category, what: String, problem: Option<(String, &str)>| {
        let problem = problem.map(|(problem, hint)| (problem, hint.to_string()));
        findings.push(Finding { category, what, problem, warning: false });
    };
    let listed = match Client::connect(mesh).await {
        Ok(mut client) => client.list().await,
        Err(error) => Err(error),
    };
    let restart = "end its `meshctl` and start it anew";
    let control = "control plane";
    add(
        control,
        format!("registry of {:?} answers", mesh.name),
        listed.as_ref().err().map(|e| (e.message.clone(), restart)),
    );
    for (what, port) in [("identity", defaults::IDENTITY_PORT), ("destination", defaults::DESTINATION_PORT)] {
        let problem = listens((network::NODE, port).into()).await.err();
        add(control, format!("{what} service accepts connections"), problem.map(|p| (p, restart)));
    }
    match identity::anchors(mesh) {
        Some(anchors) => {
            let expires =
                anchors.certificates().iter().filter_map(|c| gossamer_api::process::tls::not_after_of(c).ok());
            let soon = std::time::SystemTime::now() + Duration::from_secs(60 * 24 * 3600);
            let dying = expires.filter(|end| *end < soon).count();
            let problem = (dying > 0).then(|| (format!("{dying} end within 60 days"), "rotate the roots"));
            add(control, "trust anchors are valid for at least 60 days".into(), problem);
        }
        None => add(control, "trust anchors can be read".into(), Some(("they can't".into(), restart))),
    }
    let Ok(mut workloads) = listed else { return };
    workloads.retain(|w| scope.namespace.as_ref().is_none_or(|namespace| *namespace == w.namespace));
    proxies(mesh, &workloads, add).await;
}

async fn proxies(
    mesh: &Mesh,
    workloads: &[WorkloadInfo],
    mut add: impl FnMut(&'static str, String, Option<(String, &str)>),
) {
    let meshed: Vec<WorkloadInfo> = workloads.iter().filter(|w| w.meshed).cloned().collect();
    let proxies = "proxies";
    let silent = |what: Vec<String>| match what.len() {
        0 => None,
        _ => Some(what.join("; ")),
    };
    let scraped = connect::scrape(&meshed).await;
    let missing = meshed.iter().zip(&scraped).filter(|(_, samples)| samples.is_none());
    let missing = silent(missing.map(|(w, _)| w.replica.clone()).collect());
    let look = "look at the proxy's log";
    add(proxies, format!("all {} answer", meshed.len()), missing.map(|m| (m, look)));

    let anchors = identity::anchors(mesh);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    let mut bad = Vec::new();
    for workload in &meshed {
        let address = format!("{}:{}", workload.address, defaults::INBOUND_PORT);
        let presented = match TcpStream::connect(&address).await {
            Ok(tcp) => certificates::of(tcp, &workload.identity, anchors.as_ref()).await,
            Err(error) => Err(format!("{address}: {error}")),
        };
        match presented {
            Err(error) => bad.push(format!("{}: {error}", workload.replica)),
            Ok(presented) => {
                let late = presented.not_after - now < CERTIFICATE_LEFT;
                let late = late.then(|| format!("only {}", identity::left(presented.not_after)));
                bad.extend(presented.problem.or(late).map(|problem| format!("{}: {problem}", workload.replica)));
            }
        }
    }
    add(proxies, "certificates prove their identities".into(), silent(bad).map(|b| (b, "meshctl identity")));

    let unmeshed: Vec<String> = workloads.iter().filter(|w| !w.meshed).map(|w| w.replica.clone()).collect();
    if !unmeshed.is_empty() {
        add(proxies, "every workload has one".into(), silent(unmeshed).map(|u| (u, "start it with `meshctl run`")));
    }
}

async fn listens(address: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("{address}: {error}")),
        Err(_) => Err(format!("{address}: no answer")),
    }
}
