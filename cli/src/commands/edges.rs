//! `meshctl edges`.

use crate::connect::{self, Scope};
use crate::error::Result;
use crate::output::{Format, paint, table};
use crate::sandbox::state::Mesh;
use crate::scrape::Sample;
use gossamer_api::wire::mesh::WorkloadInfo;
use gossamer_api::workload::Identity;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Show who talks to whom, and whether that is secured
///
/// Both ends are asked: what a client's proxy opened, and what a server's proxy accepted.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  meshctl edges\n  meshctl edges web -o wide")]
pub struct Args {
    /// Only edges of these services or replicas (default: all)
    names: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// How to print it; wide adds identities
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// What is known of one edge.
#[derive(Default)]
struct Edge {
    /// Connections with mTLS, and without.
    secured: f64,
    plain: f64,
    client_id: String,
    server_id: String,
}

/// Namespace and name.
type End = (String, String);

/// Shows it.
pub async fn run(args: Args, mesh: Mesh) -> Result<ExitCode> {
    let workloads = args.scope.workloads(&mesh, &[]).await?;
    let wanted = args.scope.workloads(&mesh, &args.names).await?;
    let scraped = connect::scrape(&workloads).await;
    let mut edges: BTreeMap<(End, End), Edge> = BTreeMap::new();
    for (workload, samples) in workloads.iter().zip(&scraped) {
        for sample in samples.iter().flatten().filter(|s| s.name == "tcp_open_total" && s.value > 0.0) {
            add(&mut edges, workload, sample, &workloads);
        }
    }
    edges.retain(|(from, to), _| {
        let named = |end: &End| wanted.iter().any(|w| w.namespace == end.0 && w.name == end.1);
        named(from) || named(to)
    });
    print(&edges, args.output);
    Ok(ExitCode::SUCCESS)
}

fn add(edges: &mut BTreeMap<(End, End), Edge>, at: &WorkloadInfo, sample: &Sample, all: &[WorkloadInfo]) {
    let here = (at.namespace.clone(), at.name.clone());
    let outbound = match (sample.label("direction"), sample.label("peer")) {
        ("outbound", "dst") => true,
        ("inbound", "src") => false,
        _ => return,
    };
    let far_id = sample.label(if outbound { "server_id" } else { "client_id" });
    let there = match far_id.parse::<Identity>().ok().as_ref().and_then(Identity::parts) {
        Some((account, namespace, ..)) => (namespace.to_string(), account.to_string()),
        // Unmeshed clients have no name, unmeshed servers their address.
        None if outbound => match all.iter().find(|w| w.address == sample.label("target_ip")) {
            Some(w) => (w.namespace.clone(), w.name.clone()),
            None => (String::new(), sample.label("target_addr").to_string()),
        },
        None => return,
    };
    let ends = if outbound { (here, there) } else { (there, here) };
    let edge = edges.entry(ends).or_default();
    // The client's end counts; the server's only adds edges that no client told of.
    let counts = if sample.label("tls") == "true" { &mut edge.secured } else { &mut edge.plain };
    *counts = if outbound { *counts + sample.value } else { counts.max(sample.value) };
    if outbound {
        edge.server_id = far_id.to_string();
        edge.client_id = if sample.label("tls") == "true" { at.identity.clone() } else { String::new() };
    } else {
        edge.client_id = far_id.to_string();
        edge.server_id = at.identity.clone();
    }
}

fn print(edges: &BTreeMap<(End, End), Edge>, format: Format) {
    if format == Format::Json {
        let list = edges.iter().map(|((from, to), edge)| {
            json!({
                "src": from.1, "src_namespace": from.0, "dst": to.1, "dst_namespace": to.0,
                "secured": edge.plain == 0.0, "client_id": edge.client_id, "server_id": edge.server_id,
                "connections": edge.secured + edge.plain,
            })
        });
        return println!("{:#}", serde_json::Value::Array(list.collect()));
    }
    let wide = format == Format::Wide;
    let mut head = vec!["SRC", "DST", "SRC_NS", "DST_NS", "SECURED"];
    if wide {
        head.extend(["CLIENT_ID", "SERVER_ID"]);
    }
    let rows: Vec<Vec<String>> = edges
        .iter()
        .map(|((from, to), edge)| {
            let secured = match (edge.secured > 0.0, edge.plain > 0.0) {
                (true, false) => paint("√", "32"),
                (true, true) => paint("partly", "33"),
                _ => paint("no", "31"),
            };
            let or_dash = |text: &str| if text.is_empty() { "-".to_string() } else { text.to_string() };
            let mut row = vec![from.1.clone(), to.1.clone(), or_dash(&from.0), or_dash(&to.0), secured];
            if wide {
                row.extend([or_dash(&edge.client_id), or_dash(&edge.server_id)]);
            }
            row
        })
        .collect();
    print!("{}", table(&head, &rows, |_| false));
}
