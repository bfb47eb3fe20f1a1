//! `meshctl version`.

use crate::cluster::{MESHED_LABEL, Options};
use crate::error::Result;
use crate::health::control_plane::version_of;
use crate::output::{Format, table};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Print the versions of this program, of a cluster's control plane and of its proxies
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl version\n  meshctl version --client")]
pub struct Args {
    #[command(flatten)]
    cluster: Options,
    /// Only this program's
    #[arg(long)]
    client: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Versions, and how many have each.
type Counts = BTreeMap<String, usize>;

/// Prints them. A cluster that is not there or does not answer is no failure unless it was asked for.
pub async fn run(args: Args) -> Result<ExitCode> {
    let version = env!("CARGO_PKG_VERSION");
    let looked = match args.client || !args.cluster.is_configured() {
        true => None,
        false => match look(&args.cluster).await {
            Err(error) if args.cluster.is_given() => return Err(error),
            looked => Some(looked),
        },
    };
    if args.output == Format::Json {
        let counts = |counts: &Counts| -> Value { counts.iter().map(|(v, n)| (v.clone(), json!(n))).collect() };
        let mut all = json!({ "meshctl": version });
        if let Some(Ok((control, proxies))) = &looked {
            all["controlPlane"] = counts(control);
            all["proxies"] = counts(proxies);
        }
        println!("{all}");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![vec!["meshctl".to_string(), version.to_string(), String::new()]];
    match &looked {
        None => {
            println!("meshctl {version}");
            return Ok(ExitCode::SUCCESS);
        }
        Some(Err(error)) => rows.push(vec!["control plane".into(), "unknown".into(), error.message.clone()]),
        Some(Ok((control, proxies))) => {
            for (what, counts) in [("control plane", control), ("proxies", proxies)] {
                if counts.is_empty() {
                    rows.push(vec![what.into(), "none".into(), String::new()]);
                }
                rows.extend(counts.iter().map(|(version, n)| vec![what.into(), version.clone(), format!("{n} pods")]));
            }
        }
    }
    print!("{}", table(&["", "VERSION", ""], &rows, |_| false));
    Ok(ExitCode::SUCCESS)
}

/// Of the control plane's images, and what the injector wrote on pods.
async fn look(options: &Options) -> Result<(Counts, Counts)> {
    let cluster = options.connect().await?;
    let control = cluster.pods(Some(&cluster.control_namespace), "gossamer.io/control-plane-component").await?;
    let meshed = cluster.pods(None, MESHED_LABEL).await?;
    let of_proxy = |pod: k8s_openapi::api::core::v1::Pod| pod.metadata.annotations?.remove("gossamer.io/proxy-version");
    Ok((count(control.iter().filter_map(version_of)), count(meshed.into_iter().filter_map(of_proxy))))
}

fn count(versions: impl Iterator<Item = String>) -> Counts {
    let mut counts = Counts::new();
    versions.for_each(|version| *counts.entry(version).or_default() += 1);
    counts
}
