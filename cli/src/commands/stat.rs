//! `meshctl stat`.

use crate::demo::app;
use crate::error::{CommandError, Result};
use crate::output::Format;
use crate::place::{Place, Scope, Workload};
use crate::resource::{self, Resource};
use crate::samples;
use crate::selector::Labels;
use crate::stats::{self, By, Counted, Scrape, Target};
use crate::view::{self, Columns, Row};
use k8s_openapi::api::core::v1::Service;
use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

/// Show success, rate and latency of workloads and services
///
/// Figures are what the proxies count during the window. A server is seen from inside, a mere client by what it sends;
/// services, and whatever is limited with --from or --to, as their meshed clients see them.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl stat                              all workloads, during the next 2 seconds
  meshctl stat deploy/web -t 10s            one Deployment, during 10 seconds
  meshctl stat deploy -A -o wide            all Deployments of a cluster, with counts
  meshctl stat pods -n shop                 each pod
  meshctl stat -l 'tier in (front,api)'     only what has such labels
  meshctl stat svc/api --from deploy/web    a service, as one of its clients sees it
  meshctl stat deploy/web --to svc/api      what a Deployment sends to a service
  meshctl stat routes                       HTTPRoutes and GRPCRoutes, as clients see them
  meshctl stat ns                           whole namespaces
  meshctl stat -t 0 -o json                 since the proxies started, for programs")]
pub struct Args {
    /// Kinds and names as for kubectl: deploy, sts/db, pods, ns, svc/api; on this machine: web, web-1 (default: all)
    resources: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    #[command(flatten)]
    labels: Labels,
    /// Only what this workload calls
    #[arg(long, value_name = "RESOURCE", conflicts_with = "to")]
    from: Option<String>,
    /// The namespace of --from [default: the same]
    #[arg(long, value_name = "NAMESPACE", requires = "from")]
    from_namespace: Option<String>,
    /// Only calls to this workload or service
    #[arg(long, value_name = "RESOURCE")]
    to: Option<String>,
    /// The namespace of --to [default: the same]
    #[arg(long, value_name = "NAMESPACE", requires = "to")]
    to_namespace: Option<String>,
    /// How long to look; 0: everything since the proxies started
    #[arg(short, long, value_parser = app::duration, default_value = "2s")]
    time_window: Duration,
    /// A row for each pod or replica
    #[arg(long)]
    replicas: bool,
    /// Also what has no proxy at all
    #[arg(long)]
    unmeshed: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Shows it.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    let wanted = resource::parse(&args.resources)?;
    let by_name = args.from.is_some() || wanted.iter().any(|resource| matches!(resource.kind, "route" | "service"));
    if by_name && args.labels.is_given() {
        return Err(CommandError::usage(
            "--selector chooses workloads; services, routes and --from are chosen by name",
        ));
    }
    let mut rows = if wanted.iter().any(|resource| resource.kind == "route") {
        of_routes(&args, &place, &wanted).await?
    } else if args.from.is_some() || wanted.iter().any(|resource| resource.kind == "service") {
        as_clients_see(&args, &place, &wanted).await?
    } else {
        from_inside(&args, &place, &wanted).await?
    };
    if let [Resource { kind, .. }] = &wanted[..]
        && !matches!(*kind, "" | "route")
    {
        // Who asks for one kind need not read it on every line.
        rows.iter_mut().for_each(|row| row.shown.clear());
    }
    if args.output == Format::Json {
        let named = |row: &Row| {
            let mut json = row.json();
            json["name"] = row.name.clone().into();
            json
        };
        println!("{:#}", serde_json::Value::Array(rows.iter().map(named).collect()));
    } else {
        let columns = if args.output == Format::Wide { Columns::Counts } else { Columns::Bytes };
        let several = args.scope.all_namespaces || rows.iter().any(|row| row.namespace != rows[0].namespace);
        print!("{}", view::rows(&rows, columns, several && rows.iter().any(|row| !row.namespace.is_empty())));
    }
    Ok(ExitCode::SUCCESS)
}

async fn from_inside(args: &Args, place: &Place, wanted: &[Resource]) -> Result<Vec<Row>> {
    let workloads = place.labelled(&args.scope, wanted, &args.labels.selector()).await?;
    none_is_an_error(args, place, &workloads)?;
    let to = args.to.as_ref().map(|to| target(args, place, to, args.to_namespace.as_ref())).transpose()?;
    let counted = watch(place, &workloads, args.time_window).await?;
    let by = match wanted.first().map(|resource| resource.kind) {
        _ if args.replicas => By::Pod,
        Some("pod") => By::Pod,
        Some("namespace") => By::Namespace,
        _ => By::Owner,
    };
    let mut rows = stats::of_workloads(&workloads, &counted, by, to.as_ref());
    if let Place::Cluster(_) = place {
        rows.retain(|row| row.meshed > 0 || args.unmeshed);
    }
    Ok(rows)
}

async fn of_routes(args: &Args, place: &Place, wanted: &[Resource]) -> Result<Vec<Row>> {
    if let Some(other) = wanted.iter().find(|resource| resource.kind != "route") {
        return Err(CommandError::usage(format!("routes and {other} can't be shown together")));
    }
    let sources = sources(args, place, &place.everybody(&args.scope).await?)?;
    let counted = watch(place, &sources, args.time_window).await?;
    let names: Vec<&str> = wanted.iter().map(|route| route.name.as_str()).filter(|name| !name.is_empty()).collect();
    let rows = stats::of_routes(&counted, &names, args.scope.within(place).as_deref());
    if rows.is_empty() {
        eprintln!("no request has taken such a route; those without a route are counted by service: meshctl stat svc");
    }
    Ok(rows)
}

/// The clients that are asked: those of `--from`, or everybody.
fn sources(args: &Args, place: &Place, everybody: &[Workload]) -> Result<Vec<Workload>> {
    let from = args.from.as_deref().map(resource::one).transpose()?;
    let at = args.from_namespace.clone().or_else(|| args.scope.within(place));
    let is_source = |workload: &&Workload| match &from {
        None => true,
        Some(from) => {
            from.means(workload) && (from.kind == "namespace" || at.as_ref().is_none_or(|at| *at == workload.namespace))
        }
    };
    let sources: Vec<Workload> = everybody.iter().filter(is_source).cloned().collect();
    if let (Some(from), true) = (&from, sources.is_empty()) {
        return Err(place.nothing(from, at.as_deref(), everybody));
    }
    none_is_an_error(args, place, &sources)?;
    Ok(sources)
}

async fn as_clients_see(args: &Args, place: &Place, wanted: &[Resource]) -> Result<Vec<Row>> {
    let target_namespace = args.scope.within(place).unwrap_or_default();
    let wanted = if wanted.is_empty() { &[Resource { kind: "service", name: String::new() }] } else { wanted };
    let targets: Vec<Target> =
        wanted.iter().map(|r| Target { resource: r.clone(), namespace: target_namespace.clone() }).collect();
    let everybody = place.everybody(&args.scope).await?;
    let sources = sources(args, place, &everybody)?;
    let services = selectors(args, place).await?;
    let counted = watch(place, &sources, args.time_window).await?;
    let replicas = |namespace: &str, kind: &str, name: &str| {
        let selector = services.get(&(namespace.to_string(), name.to_string()));
        let resource = Resource { kind: resource::kind(kind).unwrap_or_default(), name: name.to_string() };
        let of: Vec<&Workload> = everybody
            .iter()
            .filter(|workload| match (kind, place) {
                ("namespace", _) => workload.namespace == name,
                _ if workload.namespace != namespace => false,
                // On this machine a service's workloads are called like it.
                ("service", Place::Here(_)) => workload.owner.name == name,
                ("service", Place::Cluster(_)) => selector.is_some_and(|selector| {
                    !selector.is_empty() && selector.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
                }),
                _ => resource.means(workload),
            })
            .collect();
        (of.iter().filter(|workload| workload.meshed).count(), of.len())
    };
    Ok(stats::as_clients_see(&counted, &targets, replicas))
}

type Selectors = HashMap<(String, String), Vec<(String, String)>>;

async fn selectors(args: &Args, place: &Place) -> Result<Selectors> {
    let Place::Cluster(cluster) = place else { return Ok(Selectors::new()) };
    let services: Vec<Service> = cluster.list(args.scope.within(place).as_deref(), "").await?;
    let one = |service: Service| {
        let name = (service.metadata.namespace.unwrap_or_default(), service.metadata.name.unwrap_or_default());
        (name, service.spec.and_then(|spec| spec.selector).unwrap_or_default().into_iter().collect())
    };
    Ok(services.into_iter().map(one).collect())
}

fn target(args: &Args, place: &Place, text: &str, namespace: Option<&String>) -> Result<Target> {
    let resource = resource::one(text)?;
    let namespace = namespace.cloned().or_else(|| args.scope.within(place)).unwrap_or_default();
    Ok(Target { resource, namespace })
}

fn none_is_an_error(args: &Args, place: &Place, workloads: &[Workload]) -> Result<()> {
    let found = workloads.iter().any(|workload| workload.meshed);
    match place {
        _ if found || (args.unmeshed && !workloads.is_empty()) => Ok(()),
        _ => Err(place.no_proxy(args.scope.within(place).as_deref())),
    }
}

/// What each proxy counts during the window. Fails when all are silent: figures of nobody would look like no traffic.
pub(crate) async fn watch(place: &Place, workloads: &[Workload], window: Duration) -> Result<Vec<Option<Counted>>> {
    let (before, after) = match window.is_zero() {
        true => (vec![None; workloads.len()], samples::once(place, workloads).await),
        false => samples::twice(place, workloads, window).await,
    };
    let asked = workloads.iter().filter(|workload| workload.meshed).count();
    if asked > 0 && after.iter().all(Option::is_none) {
        let all = if asked == 1 { "the only proxy".to_string() } else { format!("none of {asked} proxies") };
        return Err(CommandError::failed(format!("{all} {}", if asked == 1 { "did not answer" } else { "answered" }))
            .hint("the reasons are above; `meshctl check` looks at the rest"));
    }
    let before: Vec<Scrape> = before.into_iter().map(|before| before?.ok()).collect();
    let before = before.iter().map(|before| if window.is_zero() { None } else { Some(before) });
    Ok(before.zip(after).map(|(before, after)| Counted::between(before, after)).collect())
}
