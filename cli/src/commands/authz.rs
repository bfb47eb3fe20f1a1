//! `meshctl authz`.

use crate::cluster::Cluster;
use crate::error::{CommandError, Result};
use crate::output::{Format, paint, table};
use crate::place::{Place, Scope, Workload};
use crate::resource;
use crate::verdict::{self, Verdict};
use gossamer_api::kubernetes::{Action, Name, Pod};
use gossamer_api::policy::Meta;
use gossamer_api::workload::Identity;
use gossamer_destination::index::Index;
use gossamer_engine::RequestHead;
use gossamer_proxy::policy::authorize::{Peer, PeerTls};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

/// Show who may reach a workload, and which object says so
///
/// Works out what the control plane tells the workload's proxy, from the objects that you may list: AuthorizationPolicies,
/// the default policy, the pods. With --from it judges one client as the proxy would; exit code 3 when it is denied.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl authz deploy/api                                   all ports
  meshctl authz deploy/api --port 8080 -n shop
  meshctl authz deploy/api --from deploy/web --path /orders  may web call this?
  meshctl authz deploy/api --from sa/web.shop --method POST --path /orders
  meshctl authz deploy/api --from unmeshed                   may those without a proxy?")]
pub struct Args {
    /// A workload: deploy/api, sts/db, pod/api-5d8f9c-x2x7l, api
    #[arg(required = true)]
    resource: Vec<String>,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Only this port of it, by number or name [default: all that it declares]
    #[arg(long)]
    port: Option<String>,
    /// Judge this client: a workload (deploy/web), a service account (sa/web, sa/web.shop), an identity, or unmeshed
    #[arg(long, value_name = "CLIENT")]
    from: Option<String>,
    /// The address that the client comes from [default: a pod's of that client]
    #[arg(long, value_name = "IP", requires = "from")]
    from_ip: Option<IpAddr>,
    /// Judge a request for this path [default: /]
    #[arg(long, requires = "from")]
    path: Option<String>,
    /// Judge a request with this method
    #[arg(long, requires = "from", default_value = "GET")]
    method: String,
    /// Judge a connection that carries no HTTP
    #[arg(long, requires = "from", conflicts_with_all = ["path", "method"])]
    tcp: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Shows it.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    let Place::Cluster(cluster) = &place else {
        return Err(CommandError::usage("authorization is worked out from a cluster's objects")
            .hint("choose a cluster with --context")
            .hint("on this machine, policies are the files of `meshctl control --objects DIR`"));
    };
    let workloads = place.workloads(&args.scope, &resource::parse(&args.resource)?).await?;
    // Replicas of one owner are treated alike, so one of each is asked about.
    let mut seen = BTreeSet::new();
    let workloads: Vec<&Workload> =
        workloads.iter().filter(|w| seen.insert((w.namespace.clone(), w.owner.clone()))).collect();
    let namespace = workloads.first().map(|w| w.namespace.clone()).unwrap_or_default();
    if workloads.iter().any(|w| w.namespace != namespace) {
        return Err(
            CommandError::usage("these workloads are in several namespaces").hint("choose one with -n NAMESPACE")
        );
    }
    let (index, pods) = cluster.index(&namespace).await?;
    let mut lines = Vec::new();
    let client = match &args.from {
        Some(from) => Some(client(&args, from, cluster, &namespace, &index, &pods)?),
        None => None,
    };
    let mut denied = false;
    for workload in workloads {
        let name = Name::new(&workload.namespace, &workload.pod);
        let Some(pod) = pods.iter().find(|pod| pod.metadata.key() == name) else { continue };
        if !workload.meshed {
            return Err(CommandError::failed(format!(
                "{} has no proxy: everybody may reach it",
                workload.owner_text()
            ))
            .hint(format!("inject one: kubectl annotate namespace {namespace} gossamer.io/inject=enabled")));
        }
        for port in ports(pod, &name, args.port.as_deref())? {
            match &client {
                None => {
                    lines.extend(rules(&index, &name, port).into_iter().map(|rule| (workload.owner_text(), port, rule)))
                }
                Some((peer, text)) => {
                    let head = request(&args)?;
                    let Some(verdict) = verdict::judge(&index, &name, port, peer, head.as_ref()) else { continue };
                    denied |= !matches!(verdict, Verdict::Allowed(_));
                    lines.push((workload.owner_text(), port, judged(&verdict, text, &args, &index, &name, port)));
                }
            }
        }
    }
    print(&lines, args.output, client.is_some());
    if denied { Err(CommandError::problems("")) } else { Ok(ExitCode::SUCCESS) }
}

/// One line: what is done with whom, for which requests, because of what.
struct Rule {
    action: &'static str,
    clients: String,
    requests: String,
    by: String,
}

/// What is in force at a port, as people wrote it.
fn rules(index: &Index, name: &Name, port: u16) -> Vec<Rule> {
    let Some(server) = index.server(name, port) else { return Vec::new() };
    let mut rules = Vec::new();
    let policies = index.policies(name, port);
    for (name, policy) in &policies {
        let action = match policy.spec.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
            Action::Audit => "audit",
        };
        let or = |list: Vec<String>, none: &str| if list.is_empty() { none.to_string() } else { list.join("; ") };
        let clients = or(verdict::clients(policy), if action == "allow" { "nobody" } else { "-" });
        rules.push(Rule {
            action,
            clients,
            requests: or(verdict::requests(policy), "everything"),
            by: policy_text(name),
        });
    }
    let http = verdict::http(&server.protocol);
    let routes = http.into_iter().flat_map(|http| &http.routes);
    let default = server.authorizations.iter().chain(routes.clone().flat_map(|route| &route.authorizations));
    let default = default
        .map(|authorization| &authorization.meta)
        .find(|meta| meta.name() != "probe" && matches!(meta, Meta::Default(_)));
    let allows = policies.iter().any(|(_, policy)| policy.spec.action == Action::Allow);
    match default {
        // An audit policy lets in everybody else by a permission that has no name of its own.
        Some(_) if allows => {}
        Some(meta) => rules.push(default_rule(meta.name())),
        None if policies.iter().all(|(_, policy)| policy.spec.action == Action::Deny) => {
            rules.push(default_rule("deny"))
        }
        None => {}
    }
    if routes.clone().any(|route| route.meta.name() == "probe") {
        let paths = routes
            .filter(|route| route.meta.name() == "probe")
            .flat_map(|route| &route.rules)
            .flat_map(|rule| &rule.matches);
        let paths: BTreeSet<String> = paths.filter_map(|m| m.path.as_ref()).map(path_text).collect();
        let requests = format!("GET {}", paths.into_iter().collect::<Vec<_>>().join(","));
        rules.push(Rule {
            action: "allow",
            clients: "everybody".into(),
            requests,
            by: "health checks of the pod".into(),
        });
    }
    rules
}

fn path_text(path: &gossamer_api::policy::PathMatch) -> String {
    use gossamer_api::policy::PathMatch;
    match path {
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(path) => format!("{}/*", path.trim_end_matches('/')),
        PathMatch::Regex(path) => path.clone(),
        PathMatch::Rpc { service, method } => format!("{service}/{method}"),
    }
}

fn default_rule(policy: &str) -> Rule {
    let (action, clients) = match policy {
        "all-unauthenticated" => ("allow", "everybody"),
        "all-authenticated" => ("allow", "everybody with a certificate"),
        "cluster-unauthenticated" => ("allow", "everybody in the cluster's networks"),
        "cluster-authenticated" => ("allow", "everybody with a certificate in the cluster's networks"),
        "audit" => ("audit", "everybody"),
        _ => ("deny", "everybody"),
    };
    let by = format!("default policy {policy}");
    Rule { action, clients: clients.into(), requests: "everything".into(), by }
}

fn policy_text(name: &Name) -> String {
    format!("AuthorizationPolicy {}", name.name)
}

fn judged(verdict: &Verdict, client: &str, args: &Args, index: &Index, name: &Name, port: u16) -> Rule {
    let list = |names: &[Name]| names.iter().map(policy_text).collect::<Vec<_>>().join(", ");
    let (action, by) = match verdict {
        Verdict::Allowed(meta @ Meta::Resource { .. }) => ("allow", format!("AuthorizationPolicy {}", meta.name())),
        Verdict::Allowed(meta) if meta.name() == "probe" => ("allow", "health checks of the pod".into()),
        Verdict::Allowed(meta) => ("allow", format!("default policy {}", meta.name())),
        Verdict::Denied(policies) => ("deny", list(policies)),
        Verdict::NotAllowed(policies) if policies.is_empty() => {
            let default = rules(index, name, port).into_iter().find(|rule| rule.by.starts_with("default policy"));
            ("deny", default.map_or_else(|| "no policy allows it".into(), |rule| rule.by))
        }
        Verdict::NotAllowed(policies) => ("deny", format!("not among the clients of {}", list(policies))),
    };
    let requests = match args.tcp {
        true => "connection".to_string(),
        false => format!("{} {}", args.method, args.path.as_deref().unwrap_or("/")),
    };
    Rule { action, clients: client.to_string(), requests, by }
}

/// The request that is judged; none for a connection.
fn request(args: &Args) -> Result<Option<RequestHead>> {
    if args.tcp {
        return Ok(None);
    }
    let path = args.path.as_deref().unwrap_or("/");
    if !path.starts_with('/') {
        return Err(CommandError::usage(format!("--path {path:?} does not begin with /")));
    }
    let method = args.method.to_ascii_uppercase();
    let method = method.parse().map_err(|_| CommandError::usage(format!("--method {:?} is no method", args.method)))?;
    let mut head = RequestHead::default();
    head.method = method;
    head.set_path(path);
    Ok(Some(head))
}

/// Who asks, and how to call it.
fn client(
    args: &Args,
    from: &str,
    cluster: &Cluster,
    namespace: &str,
    index: &Index,
    pods: &[Pod],
) -> Result<(Peer, String)> {
    let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let ip_of = |wanted: &dyn Fn(&Pod) -> bool| {
        pods.iter().find(|pod| wanted(pod)).and_then(|pod| pod.status.pod_ip.parse::<IpAddr>().ok())
    };
    let identity_of = |pod: &Pod| index.workload(&pod.metadata.key()).and_then(|(_, _, identity)| identity.cloned());
    let peer = |identity: Option<Identity>, ip: Option<IpAddr>| Peer {
        ip: args.from_ip.or(ip).unwrap_or(nowhere),
        tls: identity.map_or(PeerTls::None, PeerTls::Identity),
    };
    if from == "unmeshed" {
        return Ok((peer(None, None), "those without a proxy".into()));
    }
    let account = from.strip_prefix("sa/").or_else(|| from.strip_prefix("serviceaccount/"));
    if account.is_some() || from.contains(".serviceaccount.identity.") {
        let identity = match account {
            Some(account) => {
                let (account, namespace) = account.rsplit_once('.').unwrap_or((account, namespace));
                index.cluster().identity(account, namespace)
            }
            None => from.parse().ok(),
        };
        let identity = identity.ok_or_else(|| CommandError::usage(format!("--from {from:?} is no identity")))?;
        let ip = ip_of(&|pod| identity_of(pod).as_ref() == Some(&identity));
        return Ok((peer(Some(identity), ip), from.to_string()));
    }
    let wanted = resource::one(from)?;
    let found: Vec<&Pod> = pods.iter().filter(|pod| crate::place::stands_for(&wanted, pod, namespace)).collect();
    let Some(pod) = found.first() else {
        return Err(CommandError::failed(format!("no workload {wanted} in namespace {namespace:?}"))
            .hint("say deploy/NAME.NAMESPACE for one elsewhere, or sa/ACCOUNT.NAMESPACE")
            .hint(format!("context {:?} is in use", cluster.context)));
    };
    let identity = identity_of(pod);
    let text = if identity.is_some() { from.to_string() } else { format!("{from} (no proxy)") };
    Ok((peer(identity, pod.status.pod_ip.parse().ok()), text))
}

/// The ports to speak of.
fn ports(pod: &Pod, name: &Name, wanted: Option<&str>) -> Result<BTreeSet<u16>> {
    let containers =
        pod.spec.containers.iter().filter(|container| container.name != gossamer_api::keys::PROXY_CONTAINER);
    let declared: Vec<_> = containers
        .flat_map(|container| &container.ports)
        .filter(|port| matches!(port.protocol.as_str(), "" | "TCP"))
        .collect();
    if let Some(wanted) = wanted {
        let named = declared.iter().find(|port| port.name == wanted).map(|port| port.container_port);
        let port = named.or_else(|| wanted.parse().ok().filter(|port| *port > 0));
        return port.map(|port| BTreeSet::from([port])).ok_or_else(|| {
            CommandError::usage(format!("--port {wanted:?} is no port of {}", name.name)).hint("give its number")
        });
    }
    let ports: BTreeSet<u16> = declared.iter().map(|port| port.container_port).collect();
    if ports.is_empty() {
        return Err(CommandError::usage(format!("pod {} declares no ports", name.name)).hint("name one with --port"));
    }
    Ok(ports)
}

fn print(lines: &[(String, u16, Rule)], format: Format, judged: bool) {
    if format == Format::Json {
        let one = |(workload, port, rule): &(String, u16, Rule)| -> Value {
            json!({
                "workload": workload, "port": port, "action": rule.action, "clients": rule.clients,
                "requests": rule.requests, "by": rule.by,
            })
        };
        return println!("{:#}", lines.iter().map(one).collect::<Value>());
    }
    let head = match judged {
        true => ["WORKLOAD", "PORT", "VERDICT", "CLIENT", "REQUEST", "BECAUSE OF"],
        false => ["WORKLOAD", "PORT", "ACTION", "CLIENTS", "REQUESTS", "BECAUSE OF"],
    };
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|(workload, port, rule)| {
            let colour = match rule.action {
                "allow" => "32",
                "audit" => "33",
                _ => "31",
            };
            let action = paint(rule.action, colour);
            vec![
                workload.clone(),
                port.to_string(),
                action,
                rule.clients.clone(),
                rule.requests.clone(),
                rule.by.clone(),
            ]
        })
        .collect();
    print!("{}", table(&head, &rows, |column| column == 1));
}
