//! `meshctl version`.

use crate::cluster::{MESHED_LABEL, Options};
use crate::error::Result;
use crate::health::control_plane::version_of;
use crate::output::{Format, table};
use gossamer_api::keys::PROXY_VERSION;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Print the versions of this program, of a cluster's control plane and of its proxies
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  meshctl version\n  meshctl version --client\n  meshctl version -o wide               each proxy"
)]
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

/// What runs on a cluster.
#[derive(Debug, PartialEq)]
struct Found {
    control: Counts,
    /// By `NAMESPACE/POD`.
    proxies: BTreeMap<String, String>,
}

impl Found {
    fn counts(&self) -> Counts {
        count(self.proxies.values().cloned())
    }

    /// Proxies whose version no part of the control plane has.
    fn others(&self) -> impl Iterator<Item = (&String, &String)> {
        self.proxies.iter().filter(|(_, version)| !self.control.contains_key(*version))
    }
}

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
        if let Some(Ok(found)) = &looked {
            all["controlPlane"] = counts(&found.control);
            all["proxies"] = counts(&found.counts());
            all["proxyByPod"] = json!(found.proxies);
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
        Some(Ok(found)) => {
            for (what, counts) in [("control plane", found.control.clone()), ("proxies", found.counts())] {
                if counts.is_empty() {
                    rows.push(vec![what.into(), "none".into(), String::new()]);
                }
                rows.extend(counts.iter().map(|(version, n)| vec![what.into(), version.clone(), format!("{n} pods")]));
            }
            // All of them, or those that stand out.
            let row = |(pod, version): (&String, &String)| vec!["proxy".into(), version.clone(), pod.clone()];
            match args.output {
                Format::Wide => rows.extend(found.proxies.iter().map(row)),
                _ => rows.extend(found.others().take(SHOWN).map(row)),
            }
            let more = found.others().count().saturating_sub(SHOWN);
            if more > 0 && args.output != Format::Wide {
                rows.push(vec!["proxy".into(), "other".into(), format!("{more} more; -o wide shows all")]);
            }
        }
    }
    print!("{}", table(&["", "VERSION", ""], &rows, |_| false));
    Ok(ExitCode::SUCCESS)
}

/// Of the control plane's images, and what the injector wrote on pods.
async fn look(options: &Options) -> Result<Found> {
    let cluster = options.connect().await?;
    let control = cluster.pods(Some(&cluster.control_namespace), "gossamer.io/control-plane-component").await?;
    let meshed = cluster.pods(None, MESHED_LABEL).await?;
    Ok(Found {
        control: count(control.iter().filter_map(version_of)),
        proxies: meshed.into_iter().filter_map(of_proxy).collect(),
    })
}

/// A pod's name, and the version of its proxy.
fn of_proxy(pod: Pod) -> Option<(String, String)> {
    let ObjectMeta { name, namespace, annotations, .. } = pod.metadata;
    let version = annotations.and_then(|mut annotations| annotations.remove(PROXY_VERSION));
    Some((format!("{}/{}", namespace?, name?), version.unwrap_or_else(|| "unknown".into())))
}

fn count(versions: impl Iterator<Item = String>) -> Counts {
    let mut counts = Counts::new();
    versions.for_each(|version| *counts.entry(version).or_default() += 1);
    counts
}

/// Of proxies that have another version than the control plane.
const SHOWN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_that_are_behind_are_named() {
        let pod = |name: &str, version: Option<&str>| -> Pod {
            let annotations: BTreeMap<_, _> = version.map(|version| (PROXY_VERSION, version)).into_iter().collect();
            let metadata = json!({ "namespace": "demo", "name": name, "annotations": annotations });
            serde_json::from_value(json!({ "metadata": metadata })).unwrap()
        };
        let pods = [pod("new", Some("2")), pod("old", Some("1")), pod("odd", None)];
        let found = Found {
            control: count(["2".to_string()].into_iter()),
            proxies: pods.into_iter().filter_map(of_proxy).collect(),
        };
        let others: Vec<_> = found.others().map(|(pod, version)| (pod.as_str(), version.as_str())).collect();
        assert_eq!(others, [("demo/odd", "unknown"), ("demo/old", "1")]);
        assert_eq!(found.counts()["2"], 1);
    }
}
