//! `meshctl identity`.

use crate::certificates::{self, Presented};
use crate::connect::Scope;
use crate::error::{CommandError, Result};
use crate::output::{Format, paint};
use crate::sandbox::state::Mesh;
use futures_util::future::join_all;
use gossamer_api::process::tls::Anchors;
use gossamer_api::settings;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Show workloads' certificates, and whether they prove what they say
///
/// Each proxy is asked for the certificate that it presents to others right now.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl identity\n  meshctl identity web-1 -o json")]
pub struct Args {
    /// Services or replicas (default: all)
    names: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Shows them; finds problems where one is not valid.
pub async fn run(args: Args, mesh: Mesh) -> Result<ExitCode> {
    let mut workloads = args.scope.workloads(&mesh, &args.names).await?;
    workloads.retain(|w| w.meshed);
    if workloads.is_empty() {
        return Err(CommandError::failed("none of them has a proxy"));
    }
    let anchors = anchors(&mesh);
    let seen = join_all(workloads.iter().map(|workload| certificates::of(workload, anchors.as_ref()))).await;
    let mut problems = 0;
    let mut list = Vec::new();
    for (workload, seen) in workloads.iter().zip(&seen) {
        let problem = match seen {
            Ok(presented) => presented.problem.clone(),
            Err(error) => Some(error.clone()),
        };
        problems += usize::from(problem.is_some());
        if args.output == Format::Json {
            let presented = seen.as_ref().ok();
            list.push(json!({
                "namespace": workload.namespace, "replica": workload.replica, "identity": workload.identity,
                "names": presented.map(|p| &p.names), "serial": presented.map(|p| &p.serial),
                "issuer": presented.map(|p| &p.issuer), "not_before": presented.map(|p| p.not_before),
                "not_after": presented.map(|p| p.not_after), "valid": problem.is_none(), "problem": problem,
            }));
            continue;
        }
        let verdict = match &problem {
            None => paint("√ valid", "32"),
            Some(problem) => paint(format!("× {problem}"), "31"),
        };
        println!("{}  {verdict}", paint(format!("{}/{}", workload.namespace, workload.replica), "1"));
        if let Ok(presented) = seen {
            print(presented);
        }
    }
    if args.output == Format::Json {
        println!("{:#}", serde_json::Value::Array(list));
    }
    match problems {
        0 => Ok(ExitCode::SUCCESS),
        n => Err(CommandError::problems(format!("{n} of {} certificates are not valid", workloads.len()))),
    }
}

/// The mesh's own roots of trust.
pub(crate) fn anchors(mesh: &Mesh) -> Option<Anchors> {
    let pem = std::fs::read_to_string(mesh.socket.parent()?.join("identity/anchors.pem")).ok()?;
    Anchors::from_pem(&pem).ok()
}

fn print(presented: &Presented) {
    for name in &presented.names {
        println!("  name     {name}");
    }
    println!("  serial   {}", presented.serial);
    println!("  issuer   {}", presented.issuer);
    println!(
        "  valid    {} to {} ({})",
        time(presented.not_before),
        time(presented.not_after),
        left(presented.not_after)
    );
}

fn time(seconds: i64) -> String {
    let format = &time::format_description::well_known::Rfc3339;
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).ok();
    time.and_then(|time| time.format(format).ok()).unwrap_or_else(|| seconds.to_string())
}

/// How long it still lives.
pub(crate) fn left(not_after: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64);
    match not_after - now {
        gone if gone <= 0 => "expired".into(),
        seconds if seconds >= 3600 => {
            format!("{} left", settings::text(Duration::from_secs(seconds as u64 / 3600 * 3600)))
        }
        seconds => format!("{} left", settings::text(Duration::from_secs(seconds as u64))),
    }
}
