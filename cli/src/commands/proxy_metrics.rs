//! `meshctl proxy-metrics`.

use crate::error::{CommandError, Result};
use crate::fan;
use crate::place::{Place, Scope};
use crate::resource;
use crate::selector::Labels;
use std::io::Write;
use std::process::ExitCode;

/// Print the metrics of proxies, as Prometheus reads them
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl proxy-metrics pod/web-5d8f9c-x2x7l -n shop
  meshctl proxy-metrics deploy/web | grep outbound_http_errors_total
  meshctl proxy-metrics -l app=web -n shop")]
pub struct Args {
    /// Workloads: pod/web-5d8f9c-x2x7l, deploy/web, web-1
    #[arg(required_unless_present = "selector")]
    resources: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    labels: Labels,
}

/// Prints them; several are told apart by comments.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    let mut workloads =
        place.labelled(&args.scope, &resource::parse(&args.resources)?, &args.labels.selector()).await?;
    workloads.retain(|workload| workload.meshed);
    if workloads.is_empty() {
        return Err(place.no_proxy(args.scope.within(&place).as_deref()));
    }
    let pages = fan::out("proxies", &workloads, |_, workload| place.metrics(workload)).await;
    fan::warn("proxies", workloads.iter().map(|workload| workload.full_name()), &pages);
    if pages.iter().all(std::result::Result::is_err) {
        return Err(CommandError::failed("no proxy has answered"));
    }
    let mut out = std::io::stdout().lock();
    for (workload, page) in workloads.iter().zip(&pages) {
        let Ok(page) = page else { continue };
        let title = if pages.len() > 1 { format!("# proxy of {}\n", workload.full_name()) } else { String::new() };
        // A closed pipe (`| head`) is the end.
        if write!(out, "{title}{page}").is_err() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
