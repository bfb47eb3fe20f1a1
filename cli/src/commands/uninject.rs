//! `meshctl uninject`.

use super::inject::{Became, change, pod_of};
use crate::error::Result;
use crate::manifest::Node;
use gossamer_api::keys::{CONTROL_NAMESPACE_LABEL, INJECT, PROXY_VERSION, WORKLOAD_LABEL_PREFIX};
use gossamer_injector::container::{CONTAINER, INIT_CONTAINER, SAFE_TO_EVICT, STATE_VOLUME, VOLUME};
use std::path::PathBuf;
use std::process::ExitCode;

/// Remove the mesh from Kubernetes objects in YAML
///
/// The opposite of `inject`, for the annotation as well as for a proxy that was written with --manual. Settings
/// (`config.gossamer.io/...`) stay: they have no effect without the mesh. Pods of a namespace that asks for the mesh get it
/// all the same, unless they have `gossamer.io/inject: disabled`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  kubectl get deploy -o yaml | meshctl uninject - | kubectl apply -f -")]
pub struct Args {
    /// Files, folders, or - for standard input
    #[arg(required = true, value_name = "FILE|FOLDER|-")]
    paths: Vec<PathBuf>,
}

/// Prints it.
pub fn run(args: Args) -> Result<ExitCode> {
    change(&args.paths, |kind, object| Ok(remove(kind, object)))
}

/// Takes everything out that an injection has put in.
pub(super) fn remove(kind: &str, object: &mut Node) -> Became {
    let pod = if kind == "Namespace" { Some(object) } else { pod_of(kind, object) };
    let Some(pod) = pod else { return Became::Nothing };
    let is_ours = |key: &str, value: &Node| match key {
        // Without it a namespace that asks would bring the mesh back.
        INJECT => *value != Node::Text("disabled".into()),
        PROXY_VERSION | CONTROL_NAMESPACE_LABEL => true,
        // Beside others it does no harm.
        SAFE_TO_EVICT => *value == Node::Text(STATE_VOLUME.into()),
        key => key.starts_with(WORKLOAD_LABEL_PREFIX),
    };
    let named = |node: &Node| [CONTAINER, INIT_CONTAINER, VOLUME, STATE_VOLUME].contains(&node.text("name"));
    let mut removed = false;
    for (outer, inner) in [
        ("metadata", "annotations"),
        ("metadata", "labels"),
        ("spec", "containers"),
        ("spec", "initContainers"),
        ("spec", "volumes"),
    ] {
        let Some(outer) = pod.get_mut(outer) else { continue };
        let Some(part) = outer.get_mut(inner) else { continue };
        if !part.retain(|key, value| !(is_ours(key, value) || key.is_empty() && named(value))) {
            continue;
        }
        removed = true;
        if part.is_empty() {
            outer.retain(|key, _| key != inner);
        }
    }
    if removed {
        Became::Changed("is without the mesh", Vec::new())
    } else {
        Became::Left("there is nothing of the mesh in it".into())
    }
}
