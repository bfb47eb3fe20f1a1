//! `gossamer-destination`: discovery and policy as a process of its own, from a folder of YAML objects.
//!
//! It speaks plaintext: beside it stands a proxy, which adds the mesh's TLS, as for every other workload.

use anyhow::Context;
use clap::Parser;
use gossamer_api::defaults;
use gossamer_api::process::admin::Admin;
use gossamer_api::process::log;
use gossamer_api::process::stop::Stop;
use gossamer_api::settings::Ports;
use gossamer_destination::index::{Cluster, DefaultPolicy};
use gossamer_destination::pool::Pool;
use gossamer_destination::registry::Registry;
use gossamer_destination::{Config, run};
use ipnet::{IpNet, Ipv4Net};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Tells proxies where services are and how to reach them
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Folder of YAML objects to watch: Service, Pod, EndpointSlice, HTTPRoute, AuthorizationPolicy...
    #[arg(long, env = "MESH_DESTINATION_FILES", value_name = "DIR")]
    files: PathBuf,
    /// Where proxies ask
    #[arg(long, env = "MESH_DESTINATION_LISTEN", value_delimiter = ',', default_values_t = listen())]
    listen: Vec<SocketAddr>,
    /// Where metrics and probes are
    #[arg(long, env = "MESH_DESTINATION_ADMIN", default_value = "0.0.0.0:9996")]
    admin: SocketAddr,
    /// The control plane's namespace, part of every identity
    #[arg(long, env = "MESH_DESTINATION_CONTROL_NAMESPACE", default_value = defaults::CONTROL_NAMESPACE)]
    control_namespace: String,
    /// The last part of every identity
    #[arg(long, env = "MESH_DESTINATION_TRUST_DOMAIN", default_value = defaults::TRUST_DOMAIN)]
    trust_domain: String,
    /// The DNS suffix of services
    #[arg(long, env = "MESH_DESTINATION_CLUSTER_DOMAIN", default_value = defaults::CLUSTER_DOMAIN)]
    cluster_domain: String,
    /// What cluster-* policies mean
    #[arg(long, env = "MESH_DESTINATION_CLUSTER_NETWORKS", value_delimiter = ',', default_value = defaults::CLUSTER_NETWORKS)]
    cluster_networks: Vec<IpNet>,
    /// Gives services without an address one of this network
    #[arg(long, env = "MESH_DESTINATION_SERVICE_NETWORK")]
    service_network: Option<Ipv4Net>,
    /// Who may reach a port that no policy selects
    #[arg(long, env = "MESH_DESTINATION_DEFAULT_INBOUND_POLICY", default_value = defaults::INBOUND_POLICY)]
    default_inbound_policy: DefaultPolicy,
    /// Ports whose bytes are not looked at, where nothing else is said [default: those of server-first protocols]
    #[arg(long, env = "MESH_DESTINATION_OPAQUE_PORTS")]
    opaque_ports: Option<Ports>,
    /// What is logged
    #[arg(long, env = "MESH_DESTINATION_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// plain or json
    #[arg(long, env = "MESH_DESTINATION_LOG_FORMAT", default_value = "plain")]
    log_format: String,
}

fn listen() -> Vec<SocketAddr> {
    [defaults::DESTINATION_PORT, defaults::POLICY_PORT].map(|port| SocketAddr::from(([127, 0, 0, 1], port))).into()
}

fn main() -> ExitCode {
    let started = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match started.context("no runtime").and_then(|runtime| runtime.block_on(start(Options::parse()))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True when everything in flight could end.
async fn start(options: Options) -> anyhow::Result<bool> {
    let level = log::init(options.log_format.parse()?, &options.log_level)?;
    let stop = Stop::new();
    stop.on_signals()?;
    let default = Cluster::default();
    let cluster = Cluster {
        control_namespace: options.control_namespace,
        trust_domain: options.trust_domain,
        domain: options.cluster_domain,
        opaque_ports: options.opaque_ports.unwrap_or(default.opaque_ports),
        inbound_policy: options.default_inbound_policy,
        networks: options.cluster_networks,
        probe_networks: default.probe_networks,
        http2_hint: default.http2_hint,
    };
    let registry = Registry::new(cluster, options.service_network.map(Pool::new));
    let mut listeners = Vec::new();
    for addr in &options.listen {
        listeners.push(TcpListener::bind(addr).await.with_context(|| format!("--listen {addr}"))?);
    }
    let page = TcpListener::bind(options.admin).await.with_context(|| format!("--admin {}", options.admin))?;
    let known = registry.clone();
    let admin = Admin { metrics: Arc::new(move || known.metrics()), ..Admin::new(level, stop.clone()) };
    let page = tokio::spawn(admin.serve(page, axum::Router::new()));
    tracing::info!(addresses = ?options.listen, files = %options.files.display(), "answering proxies");
    let config = Config { files: Some(options.files), admit: None };
    run(config, registry, listeners, None, stop.clone()).await;
    let clean = stop.wait(defaults::SHUTDOWN_GRACE).await;
    page.await?;
    Ok(clean)
}
