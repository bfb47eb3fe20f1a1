//! `meshctl diagnostics`.

use crate::describe;
use crate::error::{CommandError, Result, causes};
use crate::output::{Format, table};
use crate::place::{Place, Scope};
use crate::resource;
use crate::tapping;
use futures_util::StreamExt;
use gossamer_api::defaults;
use gossamer_api::endpoint::{Endpoint, EndpointUpdate, ProtocolHint};
use gossamer_api::policy::Target;
use gossamer_api::wire;
use gossamer_api::workload::Workload as Context;
use linkerd2_proxy_api::destination::destination_client::DestinationClient;
use linkerd2_proxy_api::inbound::inbound_server_policies_client::InboundServerPoliciesClient;
use linkerd2_proxy_api::outbound::outbound_policies_client::OutboundPoliciesClient;
use serde_json::{Value, json};
use std::future::Future;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Ask the control plane what it tells proxies
///
/// The same question that a proxy asks, over a port that only a port-forward to the control plane reaches (on this
/// machine: a socket that only you can open).
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  meshctl diagnostics endpoints web.shop.svc.cluster.local:80
  meshctl diagnostics policy web.shop.svc.cluster.local:80    how requests to it are treated
  meshctl diagnostics policy 10.43.0.17:80                    the same, by address
  meshctl diagnostics policy pod/web-5d8f9c-x2x7l:8080        who may come in")]
pub struct Args {
    #[command(subcommand)]
    pub(crate) what: What,
}

/// What is asked.
#[derive(clap::Subcommand, Debug)]
pub enum What {
    /// Show where the control plane says that a service is
    #[command(after_help = "Examples:
  meshctl diagnostics endpoints web.shop.svc.cluster.local:80
  meshctl diagnostics endpoints web:80 -n shop -o json")]
    Endpoints(Question),
    /// Show how the control plane says that a service or a port is treated
    #[command(after_help = "Examples:
  meshctl diagnostics policy web:80 -n shop                   requests to a service
  meshctl diagnostics policy 10.43.0.17:80                    the same, by address
  meshctl diagnostics policy pod/web-5d8f9c-x2x7l:8080        who may come in to a pod
  meshctl diagnostics policy deploy/web:8080 -o json")]
    Policy(Question),
}

/// One question.
#[derive(clap::Args, Debug)]
pub struct Question {
    /// NAME:PORT, IP:PORT, or a workload and its port: deploy/web:8080
    #[arg(value_name = "ADDR")]
    addr: String,
    #[command(flatten)]
    pub(crate) scope: Scope,
    /// Ask as this pod of the namespace would [default: as none in particular]
    #[arg(long, value_name = "POD")]
    from: Option<String>,
    /// How to print it; without json, policy is printed as YAML
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl What {
    /// Where to ask.
    pub fn scope(&self) -> &Scope {
        match self {
            What::Endpoints(question) | What::Policy(question) => &question.scope,
        }
    }
}

/// Silence after which a stream has said all that it knows now.
const SILENCE: Duration = Duration::from_millis(300);
/// For the first answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks, and prints the answer.
pub async fn run(args: Args, place: Place) -> Result<ExitCode> {
    match &args.what {
        What::Endpoints(question) => endpoints(question, &place).await,
        What::Policy(question) => match question.addr.contains('/') {
            true => inbound(question, &place).await,
            false => outbound(question, &place).await,
        },
    }
}

async fn endpoints(question: &Question, place: &Place) -> Result<ExitCode> {
    let authority = question.authority(place)?;
    if authority.parse::<SocketAddr>().is_ok() {
        return Err(CommandError::usage(format!("{authority} is an address; endpoints are those of a name"))
            .hint(format!("`meshctl diagnostics policy {authority}` says what is known about it")));
    }
    let ask = wire::get_destination_to_proto(&authority, &question.token(place));
    let mut client = DestinationClient::new(channel(place).await?);
    let answer = within(PATIENCE, client.get(ask)).await?;
    let mut stream = answer.map_err(|status| refused(&status, &authority))?.into_inner();
    let (mut found, mut exists) = (Vec::new(), true);
    let mut patience = PATIENCE;
    while let Ok(Some(update)) = tokio::time::timeout(patience, stream.next()).await {
        let update = update.map_err(|status| refused(&status, &authority))?;
        match wire::endpoint_update_from_proto(update).map_err(CommandError::failed)? {
            EndpointUpdate::Add(endpoints, _) => found.extend(endpoints),
            EndpointUpdate::Remove(gone) => found.retain(|endpoint: &Endpoint| !gone.contains(&endpoint.addr)),
            EndpointUpdate::Empty { exists: there } => exists = there,
        }
        patience = SILENCE;
    }
    found.sort_by_key(|endpoint| endpoint.addr);
    if !exists {
        return Err(CommandError::failed(format!("the control plane knows no service {authority}"))
            .hint("is the name right? NAME.NAMESPACE.svc.cluster.local:PORT"));
    }
    print(&found, &authority, question.output);
    Ok(ExitCode::SUCCESS)
}

fn print(endpoints: &[Endpoint], authority: &str, format: Format) {
    let label = |endpoint: &Endpoint, name: &str| endpoint.labels.get(name).cloned().unwrap_or_default();
    let protocol = |endpoint: &Endpoint| match endpoint.hint {
        ProtocolHint::Http2 => "HTTP/2",
        ProtocolHint::Opaque => "opaque",
        ProtocolHint::Unknown => "as it is",
    };
    let identity = |endpoint: &Endpoint| endpoint.tls.as_ref().map(|tls| tls.identity.to_string());
    if format == Format::Json {
        let one = |endpoint: &Endpoint| {
            json!({
                "address": endpoint.addr.to_string(), "weight": endpoint.weight, "identity": identity(endpoint),
                "protocol": protocol(endpoint), "inbound_port": endpoint.transport_port, "labels": endpoint.labels,
            })
        };
        return println!("{:#}", endpoints.iter().map(one).collect::<Value>());
    }
    let or_dash = |text: String| if text.is_empty() { "-".to_string() } else { text };
    let wide = format == Format::Wide;
    let mut head = vec!["ADDRESS", "POD", "MTLS", "PROTOCOL", "ZONE"];
    if wide {
        head.extend(["WEIGHT", "IDENTITY"]);
    }
    let rows = endpoints.iter().map(|endpoint| {
        let secured = if endpoint.tls.is_some() { "√" } else { "no" };
        let mut row = vec![
            endpoint.addr.to_string(),
            or_dash(label(endpoint, "pod")),
            secured.to_string(),
            protocol(endpoint).to_string(),
            or_dash(label(endpoint, "zone")),
        ];
        if wide {
            row.extend([endpoint.weight.to_string(), or_dash(identity(endpoint).unwrap_or_default())]);
        }
        row
    });
    print!("{}", table(&head, &rows.collect::<Vec<_>>(), |_| false));
    if endpoints.is_empty() {
        eprintln!("{authority} has no endpoints now");
    }
}

async fn outbound(question: &Question, place: &Place) -> Result<ExitCode> {
    let authority = question.authority(place)?;
    let target = authority.parse().map_or(Target::Authority(authority.clone()), Target::Addr);
    let ask = wire::traffic_spec_to_proto(&question.token(place), &target);
    let mut client = OutboundPoliciesClient::new(channel(place).await?);
    let answer = within(PATIENCE, client.get(ask)).await?.map_err(|status| refused(&status, &authority))?;
    let policy = wire::outbound_policy_from_proto(answer.into_inner()).map_err(CommandError::failed)?;
    show(&describe::outbound(&policy), question.output)
}

async fn inbound(question: &Question, place: &Place) -> Result<ExitCode> {
    let (workload, port) = question.addr.rsplit_once(':').unwrap_or((&question.addr, ""));
    let port: u16 = port.parse().map_err(|_| {
        CommandError::usage(format!("{:?} has no port", question.addr)).hint(format!("for example {workload}:8080"))
    })?;
    let found = place.workloads(&question.scope, &[resource::one(workload)?]).await?;
    let Some(workload) = found.iter().find(|workload| workload.meshed).or(found.first()) else {
        return Err(CommandError::failed(format!("no workload {workload}")));
    };
    let context = Context { ns: workload.namespace.clone(), pod: workload.pod.clone(), node_name: String::new() };
    let ask = wire::port_spec_to_proto(&token(&context), port);
    let mut client = InboundServerPoliciesClient::new(channel(place).await?);
    let answer = within(PATIENCE, client.get_port(ask)).await?;
    let answer = answer.map_err(|status| refused(&status, &workload.full_name()))?;
    let server = wire::server_from_proto(answer.into_inner()).map_err(CommandError::failed)?;
    show(&describe::server(&server), question.output)
}

fn show(value: &Value, format: Format) -> Result<ExitCode> {
    match format {
        Format::Json => println!("{value:#}"),
        _ => print!("{}", serde_saphyr::to_string(value).map_err(CommandError::failed)?),
    }
    Ok(ExitCode::SUCCESS)
}

impl Question {
    /// A whole name: what is short is of the namespace that is asked about.
    fn authority(&self, place: &Place) -> Result<String> {
        let namespace = self.scope.within(place).unwrap_or_else(|| "default".into());
        whole(&self.addr, &namespace)
    }

    /// What a proxy says of itself.
    fn token(&self, place: &Place) -> String {
        let namespace = self.scope.within(place).unwrap_or_else(|| "default".into());
        token(&Context { ns: namespace, pod: self.from.clone().unwrap_or_default(), node_name: String::new() })
    }
}

fn token(context: &Context) -> String {
    serde_json::to_string(context).unwrap_or_default()
}

/// `web:80`, `web.shop:80` and whole names.
fn whole(addr: &str, namespace: &str) -> Result<String> {
    if addr.parse::<SocketAddr>().is_ok() {
        return Ok(addr.to_string());
    }
    let (name, port) = addr.rsplit_once(':').unwrap_or((addr, ""));
    if port.parse::<u16>().is_err() {
        return Err(CommandError::usage(format!("{addr:?} has no port")).hint(format!("for example {name}:80")));
    }
    let domain = defaults::CLUSTER_DOMAIN;
    Ok(match name.split('.').collect::<Vec<_>>()[..] {
        [service] => format!("{service}.{namespace}.svc.{domain}:{port}"),
        [service, namespace] => format!("{service}.{namespace}.svc.{domain}:{port}"),
        [service, namespace, "svc"] => format!("{service}.{namespace}.svc.{domain}:{port}"),
        _ => addr.to_string(),
    })
}

/// To a place where the control plane answers those who may reach its loopback.
async fn channel(place: &Place) -> Result<Channel> {
    let opened = match place {
        Place::Cluster(cluster) => {
            let pod = cluster.control_pod("destination").await?;
            let forwarded = cluster.forward(&cluster.control_namespace, &pod, defaults::QUERY_PORT).await;
            let forwarded = forwarded.map_err(|error| {
                CommandError::failed(format!("the control plane can't be asked: {error}"))
                    .hint(format!("that needs port-forwards in namespace {:?}", cluster.control_namespace))
            })?;
            tapping::channel(forwarded).await
        }
        Place::Here(mesh) => crate::registry::unix_channel(mesh.socket.with_file_name("query.sock")).await,
    };
    opened.map_err(|error| CommandError::failed(format!("the control plane can't be asked: {}", causes(&error))))
}

async fn within<T>(limit: Duration, answer: impl Future<Output = T>) -> Result<T> {
    let answer = tokio::time::timeout(limit, answer).await;
    answer.map_err(|_| {
        CommandError::failed("the control plane does not answer").hint("`meshctl check` says what is wrong")
    })
}

fn refused(status: &Status, what: &str) -> CommandError {
    match status.code() {
        Code::NotFound => CommandError::failed(format!("the control plane knows no {what}: {}", status.message()))
            .hint("a proxy treats what is not known as a plain address outside of the mesh"),
        Code::InvalidArgument => CommandError::usage(status.message()),
        _ => CommandError::failed(format!("the control plane says: {}", status.message())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_of_the_namespace() {
        for (addr, expect) in [
            ("web:80", "web.shop.svc.cluster.local:80"),
            ("web.data:80", "web.data.svc.cluster.local:80"),
            ("web.data.svc:80", "web.data.svc.cluster.local:80"),
            ("db-0.db.data.svc.cluster.local:80", "db-0.db.data.svc.cluster.local:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
        ] {
            assert_eq!(whole(addr, "shop").unwrap(), expect);
        }
        assert!(whole("web", "shop").is_err());
    }
}
