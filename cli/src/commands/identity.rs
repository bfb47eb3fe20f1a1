//! `meshctl identity`.

use crate::certificates::{self, Presented};
use crate::commands::rotate_root;
use crate::error::{CommandError, Result};
use crate::fan;
use crate::output::{Format, paint, paint_err};
use crate::place::{Place, Port, Scope, Workload};
use crate::resource;
use crate::sandbox::state::Mesh;
use crate::selector::Labels;
use gossamer_api::process::tls::Anchors;
use gossamer_api::settings;
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Show workloads' certificates, and whether they prove what they say
///
/// Each proxy is asked for the certificate that it presents to others right now.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:
  meshctl identity                     all proxies
  meshctl identity web-1 -o json
  meshctl identity deploy/web -n shop
  meshctl identity -l app=web -n shop
  meshctl identity rotate-root --dry-run",
    args_conflicts_with_subcommands = true
)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) action: Option<Action>,
    /// Workloads: deploy/web, pods, web-1 (default: all)
    resources: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    labels: Labels,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// What else than showing certificates
#[derive(clap::Subcommand, Debug)]
pub(crate) enum Action {
    RotateRoot(rotate_root::Args),
}

/// Shows them; finds problems where one is not valid.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    let mut workloads =
        place.labelled(&args.scope, &resource::parse(&args.resources)?, &args.labels.selector()).await?;
    workloads.retain(|w| w.meshed);
    if workloads.is_empty() {
        return Err(place.no_proxy(args.scope.within(&place).as_deref()));
    }
    let anchors = roots(&place).await;
    if anchors.is_none() {
        let warning = paint_err("warning:", "1;33");
        eprintln!("{warning} the trust anchors can't be read, so signatures are not checked");
    }
    let anchors = anchors.as_ref();
    let seen = fan::out("proxies", &workloads, |_, workload| {
        let place = &place;
        async move { certificate(place, workload, anchors).await }
    })
    .await;
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
                "namespace": workload.namespace, "replica": workload.pod, "identity": workload.identity,
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
        println!("{}  {verdict}", paint(workload.full_name(), "1"));
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

/// What a workload's proxy presents right now.
pub(crate) async fn certificate(
    place: &Place,
    workload: &Workload,
    anchors: Option<&Anchors>,
) -> Result<Presented, String> {
    certificates::of(place.dial(workload, Port::Inbound).await?, &workload.identity, anchors).await
}

/// The roots of trust of whatever mesh this is; `None` where one may not read them.
pub(crate) async fn roots(place: &Place) -> Option<Anchors> {
    match place {
        Place::Here(mesh) => anchors(mesh),
        Place::Cluster(cluster) => {
            let map: ConfigMap = cluster.get(&cluster.control_namespace, ANCHORS).await.ok()??;
            Anchors::from_pem(map.data?.get("ca-bundle.crt")?).ok()
        }
    }
}

/// Where the roots of a cluster's mesh are for all to read.
const ANCHORS: &str = "gossamer-trust-anchors";

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
