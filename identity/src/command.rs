//! The authority as a process: its options, and the whole run. On Kubernetes it goes by objects of the cluster, elsewhere
//! by files of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use gossamer_api::process::admin::Admin;
use gossamer_api::process::listen::bind;
use gossamer_api::process::log::{self, LogLevel};
use gossamer_api::process::stop::Stop;
use gossamer_api::{defaults, keys};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::service::Service;
use crate::token::{JoinTokens, TokenCheck};
use crate::{Authority, Config, SERVICE_ACCOUNT, kubernetes, serve};

/// Signs the certificates of workloads
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Check tokens with, and take issuer and trust anchors from, the Kubernetes API [default where it runs in a pod and
    /// there is no --state-dir]
    #[arg(long, env = "MESH_IDENTITY_KUBERNETES")]
    kubernetes: bool,
    /// Folder of the authority's keys, made on first start; without Kubernetes
    #[arg(long, env = "MESH_IDENTITY_STATE_DIR", value_name = "DIR", conflicts_with = "kubernetes")]
    state_dir: Option<PathBuf>,
    /// Lines of IDENTITY TOKEN: who may ask; without Kubernetes
    #[arg(long, env = "MESH_IDENTITY_TOKENS", value_name = "FILE", conflicts_with = "kubernetes")]
    tokens: Option<PathBuf>,
    /// The mounted Secret gossamer-identity-issuer, for as long as the API server doesn't tell it
    #[arg(long, env = "MESH_IDENTITY_ISSUER_DIR", value_name = "DIR", default_value = "/var/run/gossamer/issuer")]
    issuer_dir: PathBuf,
    /// Trust anchors: a PEM bundle, or a folder of them [default: those in --state-dir; on Kubernetes
    /// /var/run/gossamer/trust-anchors for as long as the API server doesn't tell them]
    #[arg(long, env = "MESH_IDENTITY_ANCHORS", value_name = "PATH")]
    anchors: Option<PathBuf>,
    /// Where proxies ask
    #[arg(long, env = "MESH_IDENTITY_LISTEN", value_name = "ADDR", default_value_t = any(defaults::IDENTITY_PORT))]
    listen: SocketAddr,
    /// Where metrics and probes are
    #[arg(long, env = "MESH_IDENTITY_ADMIN", value_name = "ADDR", default_value_t = any(ADMIN_PORT))]
    admin: SocketAddr,
    /// The control plane's namespace, part of every identity
    #[arg(long, env = "MESH_IDENTITY_CONTROL_NAMESPACE", value_name = "NAME", default_value = defaults::CONTROL_NAMESPACE)]
    control_namespace: String,
    /// The last part of every identity
    #[arg(long, env = "MESH_IDENTITY_TRUST_DOMAIN", value_name = "DOMAIN", default_value = defaults::TRUST_DOMAIN)]
    trust_domain: String,
    /// This service's own account: clients expect its certificate
    #[arg(long, env = "MESH_IDENTITY_SERVICE_ACCOUNT", value_name = "NAME", default_value = SERVICE_ACCOUNT)]
    service_account: String,
    /// What a service account's token must be for
    #[arg(long, env = "MESH_IDENTITY_TOKEN_AUDIENCE", value_name = "AUDIENCE", default_value = keys::TOKEN_AUDIENCE)]
    token_audience: String,
    /// What is logged: LEVEL or TARGET=LEVEL, comma-separated
    #[arg(long, env = "MESH_IDENTITY_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    log_level: String,
    /// plain or json
    #[arg(long, env = "MESH_IDENTITY_LOG_FORMAT", value_name = "FORMAT", default_value = "plain")]
    log_format: String,
}

/// Runs until a signal; true when everything in flight could end.
pub async fn start(options: Options) -> anyhow::Result<bool> {
    // The client's own complaints about the API server are repeated here in better words; a filter that names it wins.
    let filter = format!("kube_client=off,kube_runtime=off,{}", options.log_level);
    let level = log::init(options.log_format.parse()?, &filter)?;
    let stop = Stop::new();
    stop.on_signals()?;
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let (page, listener) = (bind("--admin", options.admin).await?, bind("--listen", options.listen).await?);
    let process = Process { options: &options, listener, page, level, stop: &stop };
    match (options.kubernetes, &options.state_dir) {
        (false, Some(folder)) => process.on_a_machine(folder.clone()).await?,
        (true, _) => process.on_kubernetes().await?,
        (false, None) if in_pod => process.on_kubernetes().await?,
        (false, None) => anyhow::bail!("give --state-dir, or --kubernetes to go by the objects of a cluster"),
    }
    Ok(stop.wait(defaults::SHUTDOWN_GRACE).await)
}

/// What there is before it is known where keys come from.
struct Process<'a> {
    options: &'a Options,
    listener: TcpListener,
    page: TcpListener,
    level: LogLevel,
    stop: &'a Stop,
}

impl Process<'_> {
    async fn on_a_machine(self, folder: PathBuf) -> anyhow::Result<()> {
        let Process { options, listener, page, level, stop } = self;
        let tokens = JoinTokens::new();
        if let Some(path) = &options.tokens {
            let named = || path.display().to_string();
            tokens.read(&std::fs::read_to_string(path).with_context(named)?).with_context(named)?;
        }
        let config = Config {
            anchors: options.anchors.clone(),
            listen: options.listen,
            control_namespace: options.control_namespace.clone(),
            trust_domain: options.trust_domain.clone(),
            service_account: options.service_account.clone(),
            ..Config::new(folder, TokenCheck::JoinTokens(tokens))
        };
        let authority = Authority::start(&config, stop)?;
        let service = authority.service.clone();
        let admin = Admin { metrics: Arc::new(move || service.metrics()), ..Admin::new(level, stop.clone()) };
        tokio::spawn(admin.serve(page, axum::Router::new()));
        tracing::info!(address = %options.listen, identity = %config.server_identity()?, "issuing certificates");
        authority.serve(&config, listener, stop.clone()).await
    }

    async fn on_kubernetes(self) -> anyhow::Result<()> {
        let Process { options, listener, page, level, stop } = self;
        let client =
            kube::Config::infer().await.context("no way to the Kubernetes API: not in a pod, and no kubeconfig")?;
        let client = kube::Client::try_from(kubernetes::client_config(client)).context("Kubernetes API")?;
        let anchors = options.anchors.clone().unwrap_or_else(|| PathBuf::from(ANCHORS_DIR));
        let config = kubernetes::Config {
            control_namespace: options.control_namespace.clone(),
            trust_domain: options.trust_domain.clone(),
            audience: options.token_audience.clone(),
            issuer_dir: Some(options.issuer_dir.clone()),
            anchors: Some(anchors),
        };
        // The page comes first, so that people see what a service that isn't ready is waiting for.
        let (waiting, reason) = watch::channel("issuer and trust anchors are not known yet".to_owned());
        let known: Arc<OnceLock<Service>> = Arc::default();
        let (ready, counted) = (known.clone(), known.clone());
        let admin = Admin {
            metrics: Arc::new(move || counted.get().map(Service::metrics).unwrap_or_default()),
            // What is wrong later leaves the last good in force.
            ready: Arc::new(move || ready.get().map(|_| ()).ok_or_else(|| reason.borrow().clone())),
            ..Admin::new(level, stop.clone())
        };
        tokio::spawn(admin.serve(page, axum::Router::new()));
        let started = kubernetes::Authority::start(&config, &options.service_account, client, waiting, stop);
        let Some(authority) = started.await? else { return Ok(()) };
        // Set once: here.
        let _ = known.set(authority.service.clone());
        tracing::info!(address = %options.listen, identity = %authority.identity, "issuing certificates");
        serve(&authority.service, authority.identity, listener, stop.clone()).await
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

const ADMIN_PORT: u16 = 9990;
/// Where the manifests mount them.
const ANCHORS_DIR: &str = "/var/run/gossamer/trust-anchors";
