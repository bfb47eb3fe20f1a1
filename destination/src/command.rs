//! The service as a process of its own: from the Kubernetes API or a folder of YAML objects, to proxies over mutual TLS.

use crate::index::{Cluster, DefaultPolicy};
use crate::pool::Pool;
use crate::registry::Registry;
use crate::{Config, admit, run, serve, watch};
use anyhow::{Context, bail};
use gossamer_api::defaults;
use gossamer_api::process::admin::Admin;
use gossamer_api::process::certify::{self, CertifyConfig, Token, TrustAnchors};
use gossamer_api::process::grpc::{self, ServerTls};
use gossamer_api::process::listen::bind;
use gossamer_api::process::log;
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::ClientAuth;
use gossamer_api::settings::Ports;
use gossamer_api::workload::Identity;
use ipnet::{IpNet, Ipv4Net};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Tells proxies where services are and how to reach them.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Follow the Kubernetes API, as the service account or as the kubeconfig says
    #[arg(long, env = "MESH_DESTINATION_KUBERNETES", value_parser = clap::builder::BoolishValueParser::new())]
    pub kubernetes: bool,
    /// Folder of YAML objects to watch: Service, Pod, EndpointSlice, HTTPRoute, AuthorizationPolicy...
    #[arg(long, env = "MESH_DESTINATION_FILES", value_name = "DIR")]
    pub files: Option<PathBuf>,
    /// Where proxies ask [default: the ports 8086 and 8090, on loopback without TLS]
    #[arg(long, env = "MESH_DESTINATION_LISTEN", value_delimiter = ',')]
    pub listen: Vec<SocketAddr>,
    /// Where people ask what proxies are told, without TLS: only for those who may reach this host's loopback
    #[arg(long, env = "MESH_DESTINATION_QUERY", default_value_t = SocketAddr::from(([127, 0, 0, 1], defaults::QUERY_PORT)))]
    pub query: SocketAddr,
    /// Where metrics and probes are
    #[arg(long, env = "MESH_DESTINATION_ADMIN", default_value = "0.0.0.0:9996")]
    pub admin: SocketAddr,
    /// Speak plain text: for trying things, or where a proxy stands beside this process
    #[arg(long, env = "MESH_DESTINATION_PLAINTEXT", value_parser = clap::builder::BoolishValueParser::new())]
    pub plaintext: bool,
    /// host:port of the identity service [default: gossamer-identity in the control namespace]
    #[arg(long, env = "MESH_DESTINATION_IDENTITY_ADDRESS", value_name = "HOST:PORT")]
    pub identity_address: Option<String>,
    /// The service-account token that our certificate is asked for with
    #[arg(long, env = "MESH_DESTINATION_TOKEN_FILE", default_value = TOKEN_FILE)]
    pub token_file: PathBuf,
    /// PEM bundle of whom to trust; followed when it changes
    #[arg(long, env = "MESH_DESTINATION_TRUST_ANCHORS_FILE", default_value = ANCHORS_FILE)]
    pub trust_anchors_file: PathBuf,
    /// This replica's name, unique among them [default: the host's name, which is the pod's]
    #[arg(long, env = "MESH_DESTINATION_NAME")]
    pub name: Option<String>,
    /// Our service account
    #[arg(long, env = "MESH_DESTINATION_SERVICE_ACCOUNT", default_value = SERVICE_ACCOUNT)]
    pub service_account: String,
    /// The control plane's namespace, part of every identity
    #[arg(long, env = "MESH_DESTINATION_CONTROL_NAMESPACE", default_value = defaults::CONTROL_NAMESPACE)]
    pub control_namespace: String,
    /// The last part of every identity
    #[arg(long, env = "MESH_DESTINATION_TRUST_DOMAIN", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// The DNS suffix of services
    #[arg(long, env = "MESH_DESTINATION_CLUSTER_DOMAIN", default_value = defaults::CLUSTER_DOMAIN)]
    pub cluster_domain: String,
    /// What cluster-* policies mean
    #[arg(long, env = "MESH_DESTINATION_CLUSTER_NETWORKS", value_delimiter = ',', default_value = defaults::CLUSTER_NETWORKS)]
    pub cluster_networks: Vec<IpNet>,
    /// Where health checks come from; they always get in
    #[arg(long, env = "MESH_DESTINATION_PROBE_NETWORKS", value_delimiter = ',', default_value = "0.0.0.0/0,::/0")]
    pub probe_networks: Vec<IpNet>,
    /// Gives services without an address one of this network
    #[arg(long, env = "MESH_DESTINATION_SERVICE_NETWORK")]
    pub service_network: Option<Ipv4Net>,
    /// Who may reach a port that no policy selects
    #[arg(long, env = "MESH_DESTINATION_DEFAULT_INBOUND_POLICY", default_value = defaults::INBOUND_POLICY)]
    pub default_inbound_policy: DefaultPolicy,
    /// Ports whose bytes are not looked at, where nothing else is said [default: those of server-first protocols]
    #[arg(long, env = "MESH_DESTINATION_OPAQUE_PORTS")]
    pub opaque_ports: Option<Ports>,
    /// Ports whose clients need an identity, whatever the default policy says
    #[arg(long, env = "MESH_DESTINATION_REQUIRE_IDENTITY_INBOUND_PORTS")]
    pub require_identity_inbound_ports: Option<Ports>,
    /// What is logged: LEVEL or TARGET=LEVEL, comma-separated; each failed request to Kubernetes is told by who made it
    #[arg(long, env = "MESH_DESTINATION_LOG_LEVEL", default_value = "info,kube_client=off")]
    pub log_level: String,
    /// plain or json
    #[arg(long, env = "MESH_DESTINATION_LOG_FORMAT", default_value = "plain")]
    pub log_format: String,
}

/// Runs until a signal. True when everything in flight could end.
pub async fn start(options: Options) -> anyhow::Result<bool> {
    if options.kubernetes == options.files.is_some() {
        bail!("either --kubernetes or --files DIR is needed, and not both");
    }
    let level = log::init(options.log_format.parse()?, &options.log_level)?;
    let stop = Stop::new();
    stop.on_signals()?;
    let registry = Registry::new(options.cluster(), options.service_network.map(Pool::new));
    let addresses = options.addresses();
    let mut listeners = Vec::new();
    for address in &addresses {
        listeners.push(bind("--listen", *address).await?);
    }
    let page = bind("--admin", options.admin).await?;
    let tls = options.tls(&stop)?;
    let progress = match options.kubernetes {
        true => Some({
            let (client, namespace) = (client().await?, &options.control_namespace);
            watch::start(client, registry.clone(), namespace, &options.name(), &stop)
        }),
        false => None,
    };

    let (known, watched, credentials) = (registry.clone(), progress.clone(), tls.clone());
    let certified = tls.clone();
    let metrics = move || {
        let own = certified.as_ref().map(|tls| certify::metrics(&tls.credentials)).unwrap_or_default();
        format!("{}{own}", known.metrics())
    };
    let ready = move || {
        watched.as_ref().map_or(Ok(()), watch::Progress::check)?;
        match &credentials {
            Some(tls) if tls.credentials.borrow().is_none() => Err("there is no certificate yet".into()),
            _ => Ok(()),
        }
    };
    let admin = Admin { ready: Arc::new(ready), metrics: Arc::new(metrics), ..Admin::new(level, stop.clone()) };
    let page = tokio::spawn(admin.serve(page, axum::Router::new()));

    if let Some(progress) = &progress {
        tokio::select! {
            () = progress.complete() => {}
            () = stop.stopping() => {}
        }
    }
    let (services, workloads) = registry.read(|index| index.len());
    tracing::info!(?addresses, services, workloads, tls = tls.is_some(), "answering proxies");
    if tls.is_some() {
        // Who may port-forward into the control plane's namespace could read all of this from the API as well.
        anyhow::ensure!(options.query.ip().is_loopback(), "--query {} is no loopback address", options.query);
        let listener = bind("--query", options.query).await?;
        let asked = serve::State { registry: registry.clone(), admit: None, stop: stop.clone() };
        stop.spawn(grpc::serve(serve::services(asked), listener, None, stop.clone()));
    }
    let admit = tls.as_ref().map(|_| admit::own_workload(registry.clone()));
    let config = Config { files: options.files, admit };
    run(config, registry, listeners, tls, stop.clone()).await;
    let clean = stop.wait(GRACE).await;
    page.await?;
    Ok(clean)
}

impl Options {
    fn cluster(&self) -> Cluster {
        let default = Cluster::default();
        Cluster {
            control_namespace: self.control_namespace.clone(),
            trust_domain: self.trust_domain.clone(),
            domain: self.cluster_domain.clone(),
            opaque_ports: self.opaque_ports.clone().unwrap_or(default.opaque_ports),
            inbound_policy: self.default_inbound_policy,
            require_identity: self.require_identity_inbound_ports.clone().unwrap_or_default(),
            networks: self.cluster_networks.clone(),
            probe_networks: self.probe_networks.clone(),
            http2_hint: default.http2_hint,
        }
    }

    /// Where to listen. Without TLS only this machine is listened to, unless it is asked for.
    fn addresses(&self) -> Vec<SocketAddr> {
        if !self.listen.is_empty() {
            return self.listen.clone();
        }
        let host = if self.plaintext { [127, 0, 0, 1] } else { [0, 0, 0, 0] };
        [defaults::DESTINATION_PORT, defaults::POLICY_PORT].map(|port| SocketAddr::from((host, port))).into()
    }

    fn name(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = self.name.clone().unwrap_or_else(host);
        match name.trim() {
            // Two that run on one host, outside of a pod, are not the same.
            "" => format!("destination-{}", std::process::id()),
            name => name.to_string(),
        }
    }

    fn identity(&self, account: &str) -> anyhow::Result<Identity> {
        let (namespace, domain) = (&self.control_namespace, &self.trust_domain);
        Identity::service_account(account, namespace, namespace, domain)
            .with_context(|| format!("{account:?} in {namespace:?} makes no identity"))
    }

    /// Our certificate, asked for and kept fresh. `None`: plain text, as asked for.
    fn tls(&self, stop: &Stop) -> anyhow::Result<Option<ServerTls>> {
        if self.plaintext {
            tracing::warn!("speaking plain text: whoever reaches these ports may ask");
            return Ok(None);
        }
        let namespace = &self.control_namespace;
        let default =
            || format!("{IDENTITY_SERVICE}.{namespace}.svc.{}:{}", self.cluster_domain, defaults::IDENTITY_PORT);
        let config = CertifyConfig {
            address: self.identity_address.clone().unwrap_or_else(default),
            server: Some(self.identity(IDENTITY_SERVICE)?),
            identity: self.identity(&self.service_account)?,
            token: Token::File(self.token_file.clone()),
            anchors: TrustAnchors::File(self.trust_anchors_file.clone()),
        };
        let credentials = certify::start(config, stop.clone())?;
        Ok(Some(ServerTls { credentials, auth: ClientAuth::Required }))
    }
}

async fn client() -> anyhow::Result<kube::Client> {
    let mut config =
        kube::Config::infer().await.context("no Kubernetes: neither a service account nor a kubeconfig was found")?;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    kube::Client::try_from(config).context("no client for the Kubernetes API")
}

/// The service account of the identity service, and its Service's name.
const IDENTITY_SERVICE: &str = "gossamer-identity";
const SERVICE_ACCOUNT: &str = "gossamer-destination";
/// Where the pod's manifest mounts them.
const TOKEN_FILE: &str = "/var/run/secrets/gossamer/token";
const ANCHORS_FILE: &str = "/var/run/gossamer/trust-anchors/ca-bundle.crt";
/// An API that does not answer within this time is tried again, mostly at another of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams end by themselves when the process stops; what is left are connections that do not close.
const GRACE: Duration = Duration::from_secs(20);
