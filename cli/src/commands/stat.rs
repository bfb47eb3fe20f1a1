//! `meshctl stat`.

use crate::connect::{self, Scope};
use crate::demo::app;
use crate::error::{CommandError, Result};
use crate::output::Format;
use crate::sandbox::state::Mesh;
use crate::scrape::{Golden, Sample};
use crate::view::{self, Row};
use gossamer_api::wire::mesh::WorkloadInfo;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

/// Show success, rate and latency of services
///
/// Figures are what the proxies count during the window; a service is seen from inside, a mere client by what it sends.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl stat                    all services, during the next 2 seconds
  meshctl stat web -t 10s         one service, during 10 seconds
  meshctl stat web --replicas     each replica
  meshctl stat -t 0 -o json       since the proxies started, for programs")]
pub struct Args {
    /// Services or replicas: web, web-1, web.demo (default: all)
    names: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// How long to look; 0: everything since the proxies started
    #[arg(short, long, value_parser = app::duration, default_value = "2s")]
    time_window: Duration,
    /// A row for each replica
    #[arg(long)]
    replicas: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Shows it.
pub async fn run(args: Args, mesh: Mesh) -> Result<ExitCode> {
    let workloads = args.scope.workloads(&mesh, &args.names).await?;
    if workloads.is_empty() {
        return Err(CommandError::failed("nothing runs in this mesh").hint("start something with `meshctl run`"));
    }
    let started = Instant::now();
    let before =
        if args.time_window.is_zero() { vec![None; workloads.len()] } else { connect::scrape(&workloads).await };
    tokio::time::sleep(args.time_window).await;
    let after = connect::scrape(&workloads).await;
    let window = if args.time_window.is_zero() { age(&after) } else { started.elapsed() };
    let rows = rows(&workloads, &before, &after, window, args.replicas);
    if args.output == Format::Json {
        let named = |row: &Row| {
            let mut json = row.json();
            json["name"] = row.name.clone().into();
            json
        };
        println!("{:#}", serde_json::Value::Array(rows.iter().map(named).collect()));
    } else {
        let several = rows.iter().any(|row| row.namespace != rows[0].namespace);
        print!("{}", view::rows(&rows, args.output, several));
    }
    Ok(ExitCode::SUCCESS)
}

/// How long the oldest proxy has been running.
fn age(scraped: &[Option<Vec<Sample>>]) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let starts = scraped.iter().flatten().flatten().filter(|s| s.name == "process_start_time_seconds");
    let oldest = starts.map(|s| s.value).fold(now.as_secs_f64(), f64::min);
    Duration::from_secs_f64((now.as_secs_f64() - oldest).max(0.0))
}

type Scraped = Vec<Option<Vec<Sample>>>;

/// A row per service or replica, by name.
pub(crate) fn rows(
    workloads: &[WorkloadInfo],
    before: &Scraped,
    after: &Scraped,
    window: Duration,
    replicas: bool,
) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for ((workload, before), after) in workloads.iter().zip(before).zip(after) {
        let name = if replicas { &workload.replica } else { &workload.name };
        let same = |row: &Row| row.name == *name && row.namespace == workload.namespace;
        let at = rows.iter().position(same).unwrap_or_else(|| {
            let (namespace, name) = (workload.namespace.clone(), name.clone());
            rows.push(Row { namespace, name, window, ..Row::default() });
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.replicas += 1;
        let direction = connect::direction(workload);
        let golden = |samples: &Vec<Sample>| {
            let mut golden = Golden::default();
            golden.add(samples, |s| s.label("direction") == direction);
            golden
        };
        if let Some(after) = after {
            row.meshed += 1;
            row.golden.merge(&golden(after).since(&before.as_ref().map(golden).unwrap_or_default()));
        }
    }
    rows.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    rows
}
