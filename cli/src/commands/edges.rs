//! `meshctl edges`.

use crate::error::Result;
use crate::output::{Format, paint, table};
use crate::place::{Place, Scope, Workload};
use crate::resource;
use crate::samples;
use crate::scrape::Sample;
use crate::selector::Labels;
use gossamer_api::workload::Identity;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

/// Show who talks to whom, and whether that is secured
///
/// Both ends are asked: what a client's proxy opened, and what a server's proxy accepted. Each end is named by the identity
/// that it has proved; where there is none, the last column says why.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl edges                        all workloads
  meshctl edges web -o wide            with whole identities
  meshctl edges deploy/web -n shop
  meshctl edges -l tier=db -n shop
  meshctl edges -A -o json             a whole cluster, for programs")]
pub struct Args {
    /// Only edges of these workloads: deploy/web, pods, web (default: all)
    resources: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    labels: Labels,
    /// How to print it; wide has whole identities
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
    /// Why connections were not secured, as the proxies say it.
    why_not: BTreeSet<String>,
}

/// Namespace and name.
type End = (String, String);

/// Shows it.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    let wanted = resource::parse(&args.resources)?;
    let workloads = place.labelled(&args.scope, &wanted, &args.labels.selector()).await?;
    let within = args.scope.within(&place);
    if !workloads.iter().any(|workload| workload.meshed) {
        return Err(place.no_proxy(within.as_deref()));
    }
    // The other ends have names as well, where one may list them; their proxies may know edges that these do not.
    let everybody = place.all(None).await;
    let everybody = everybody.as_deref().unwrap_or(&workloads);
    let asked = match &place {
        Place::Here(_) => everybody,
        Place::Cluster(_) => &workloads,
    };
    let scraped = samples::once(&place, asked).await;
    let mut edges: BTreeMap<(End, End), Edge> = BTreeMap::new();
    for (workload, samples) in asked.iter().zip(&scraped) {
        let samples = samples.iter().flat_map(|(_, samples)| samples);
        for sample in samples.filter(|s| s.name == "tcp_open_total" && s.value > 0.0) {
            add(&mut edges, workload, sample, everybody);
        }
    }
    drop_told(&mut edges);
    edges.retain(|(from, to), _| {
        let named = |end: &End| workloads.iter().any(|w| w.namespace == end.0 && w.owner_text() == end.1);
        named(from) || named(to)
    });
    print(&edges, args.output);
    Ok(ExitCode::SUCCESS)
}

fn add(edges: &mut BTreeMap<(End, End), Edge>, at: &Workload, sample: &Sample, all: &[Workload]) {
    let here = (at.namespace.clone(), at.owner_text());
    let outbound = match (sample.label("direction"), sample.label("peer")) {
        ("outbound", "dst") => true,
        ("inbound", "src") => false,
        _ => return,
    };
    let far_id = sample.label(if outbound { "server_id" } else { "client_id" });
    let Some(there) = far_end(sample, outbound, far_id, all) else { return };
    let ends = if outbound { (here, there) } else { (there, here) };
    let edge = edges.entry(ends).or_default();
    // The client's end counts; the server's only adds edges that no client told of.
    let secured = sample.label("tls") == "true";
    let counts = if secured { &mut edge.secured } else { &mut edge.plain };
    *counts = if outbound { *counts + sample.value } else { counts.max(sample.value) };
    if !secured {
        let reason = sample.label("no_tls_reason");
        edge.why_not.insert(if reason.is_empty() { sample.label("tls") } else { reason }.to_string());
    }
    if outbound {
        edge.server_id = far_id.to_string();
        edge.client_id = if secured { at.identity.clone() } else { String::new() };
    } else {
        edge.client_id = far_id.to_string();
        edge.server_id = at.identity.clone();
    }
}

/// Removes edges from an identity of several workloads, when these have told of as many connections themselves.
fn drop_told(edges: &mut BTreeMap<(End, End), Edge>) {
    let is_shared = |(from, _): &(End, End)| from.1.starts_with(SHARED);
    let mut told: BTreeMap<(End, String), f64> = BTreeMap::new();
    for (ends, edge) in edges.iter().filter(|(ends, _)| !is_shared(ends)) {
        *told.entry((ends.1.clone(), edge.client_id.clone())).or_default() += edge.secured;
    }
    edges.retain(|ends, edge| {
        let by_clients = told.get(&(ends.1.clone(), edge.client_id.clone())).copied().unwrap_or_default();
        !is_shared(ends) || by_clients < edge.secured
    });
}

/// In the place of a workload's kind: the service account that several share.
const SHARED: &str = "sa/";

/// Who is at the other end. A server is known by its address or by what discovery said of it; a client by its identity
/// alone, which several workloads may share. Unmeshed clients have no name.
fn far_end(sample: &Sample, outbound: bool, far_id: &str, all: &[Workload]) -> Option<End> {
    let end = |workload: &Workload| (workload.namespace.clone(), workload.owner_text());
    if outbound {
        if let Some(workload) = all.iter().find(|w| !w.address.is_empty() && w.address == sample.label("target_ip")) {
            return Some(end(workload));
        }
        for kind in ["deployment", "statefulset", "daemonset", "job"] {
            let name = sample.label(&format!("dst_{kind}"));
            if !name.is_empty() {
                let text = format!("{}/{name}", resource::short(kind));
                return Some((sample.label("dst_namespace").to_string(), text));
            }
        }
    }
    if let Ok(identity) = far_id.parse::<Identity>()
        && let Some((account, namespace, ..)) = identity.parts()
    {
        let mut owners: Vec<End> = all.iter().filter(|w| w.identity == far_id).map(end).collect();
        owners.sort();
        owners.dedup();
        return Some(match &owners[..] {
            [one] => one.clone(),
            [] => (namespace.to_string(), account.to_string()),
            _ => (namespace.to_string(), format!("{SHARED}{account}")),
        });
    }
    outbound.then(|| (String::new(), sample.label("target_addr").to_string()))
}

fn print(edges: &BTreeMap<(End, End), Edge>, format: Format) {
    if format == Format::Json {
        let list = edges.iter().map(|((from, to), edge)| {
            json!({
                "src": from.1, "src_namespace": from.0, "dst": to.1, "dst_namespace": to.0,
                "secured": edge.plain == 0.0, "why_not": edge.why_not, "client_id": edge.client_id, "server_id": edge.server_id,
                "connections": edge.secured + edge.plain,
            })
        });
        return println!("{:#}", serde_json::Value::Array(list.collect()));
    }
    let head = ["SRC", "DST", "SRC_NS", "DST_NS", "CLIENT", "SERVER", "SECURED"];
    let rows: Vec<Vec<String>> = edges
        .iter()
        .map(|((from, to), edge)| {
            let why = edge.why_not.iter().map(|reason| words(reason)).collect::<Vec<_>>().join("; ");
            let secured = match (edge.secured > 0.0, edge.plain > 0.0) {
                (true, false) => paint("√", "32"),
                (true, true) => format!("{}: {why}", paint("partly", "33")),
                _ => format!("{}: {why}", paint("no", "31")),
            };
            let or_dash = |text: &str| if text.is_empty() { "-".to_string() } else { text.to_string() };
            let identity = |id: &str| match format {
                Format::Wide => or_dash(id),
                _ => or_dash(&short(id)),
            };
            let ids = [identity(&edge.client_id), identity(&edge.server_id)];
            let [client, server] = ids;
            vec![from.1.clone(), to.1.clone(), or_dash(&from.0), or_dash(&to.0), client, server, secured]
        })
        .collect();
    print!("{}", table(&head, &rows, |_| false));
}

/// `ACCOUNT.NAMESPACE`.
fn short(id: &str) -> String {
    let identity = id.parse::<Identity>().ok();
    let parts = identity.as_ref().and_then(|identity| identity.parts());
    parts.map_or_else(|| id.to_string(), |(account, namespace, ..)| format!("{account}.{namespace}"))
}

/// What the metrics' label means.
fn words(reason: &str) -> &str {
    match reason {
        "not_provided_by_service_discovery" => "the server has no proxy of this mesh",
        "no_tls_from_remote" => "the client has no proxy of this mesh",
        "opaque" => "the program's own TLS, passed through",
        "disabled" | "no_identity" => "the proxy has no identity",
        "loopback" => "within the workload",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::Owner;
    use crate::scrape::parse;

    fn workload(owner: &str, address: &str, account: &str) -> Workload {
        Workload {
            namespace: "shop".into(),
            owner: Owner { kind: "deployment".into(), name: owner.into() },
            address: address.into(),
            identity: format!("{account}.shop.serviceaccount.identity.gossamer.cluster.local"),
            ..Workload::default()
        }
    }

    #[test]
    fn an_edge_is_told_by_both_ends_and_counted_once() {
        let all = [
            workload("web", "10.0.0.1", "web"),
            workload("api", "10.0.0.2", "api"),
            workload("job", "10.0.0.3", "api"),
        ];
        let web = "tcp_open_total{direction=\"outbound\",peer=\"dst\",target_ip=\"10.0.0.2\",tls=\"true\",server_id=\"api.shop.serviceaccount.identity.gossamer.cluster.local\"} 3\n\
                   tcp_open_total{direction=\"outbound\",peer=\"dst\",target_ip=\"192.0.2.9\",target_addr=\"192.0.2.9:80\",tls=\"no_identity\",no_tls_reason=\"not_provided_by_service_discovery\"} 1\n";
        let api = "tcp_open_total{direction=\"inbound\",peer=\"src\",tls=\"true\",client_id=\"web.shop.serviceaccount.identity.gossamer.cluster.local\"} 2\n\
                   tcp_open_total{direction=\"inbound\",peer=\"src\",tls=\"true\",client_id=\"api.shop.serviceaccount.identity.gossamer.cluster.local\"} 1\n";
        let mut edges = BTreeMap::new();
        for (at, text) in [(&all[0], web), (&all[1], api)] {
            parse(text).iter().for_each(|sample| add(&mut edges, at, sample, &all));
        }
        let seen: Vec<String> = edges
            .iter()
            .map(|((from, to), edge)| format!("{} > {} {}+{}", from.1, to.1, edge.secured, edge.plain))
            .collect();
        let why: Vec<&str> = edges.values().flat_map(|edge| &edge.why_not).map(|reason| words(reason)).collect();
        assert_eq!(why, ["the server has no proxy of this mesh"]);
        assert_eq!(short(&all[0].identity), "web.shop");
        assert_eq!(seen, ["deploy/web > 192.0.2.9:80 0+1", "deploy/web > deploy/api 3+0", "sa/api > deploy/api 1+0"]);
        // One of the two that share the account tells of it itself: it is not told twice.
        let job = "tcp_open_total{direction=\"outbound\",peer=\"dst\",target_ip=\"10.0.0.2\",tls=\"true\",server_id=\"api.shop.serviceaccount.identity.gossamer.cluster.local\"} 1\n";
        drop_told(&mut edges);
        assert_eq!(edges.len(), 3);
        parse(job).iter().for_each(|sample| add(&mut edges, &all[2], sample, &all));
        drop_told(&mut edges);
        let from: Vec<&str> = edges.keys().map(|(from, _)| from.1.as_str()).collect();
        assert_eq!(from, ["deploy/job", "deploy/web", "deploy/web"]);
    }
}
