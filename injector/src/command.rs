//! The injector as a process: options, what is started, how it ends.
//!
//! Its service account may, in the whole cluster: `get list watch` namespaces; `get list watch patch` the mutating
//! webhook configuration `gossamer-injector` and the validating one `gossamer-validator`; `get` replicasets (apps);
//! `create patch` events (events.k8s.io). In its own namespace: `create` secrets, `get update` the secret
//! `gossamer-injector-tls`; `get list watch` the configmap `gossamer-trust-anchors`.

use crate::certs::{self, Serving};
use crate::cluster::{self, Namespaces};
use crate::events::{self, Events};
use crate::inject::Values;
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::webhook::{self, Webhooks};
use anyhow::{Context, Result};
use futures_util::StreamExt;
use gossamer_api::defaults;
use gossamer_api::kubernetes::Map;
use gossamer_api::kubernetes::validate::nearest;
use gossamer_api::process::admin::Admin;
use gossamer_api::process::listen::bind;
use gossamer_api::process::log;
use gossamer_api::process::stop::Stop;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::{Api, Client};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Put the proxy into pods, and check policy before it is stored
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Where the API server asks (HTTPS)
    #[arg(long, env = "MESH_INJECTOR_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Metrics, probes, log level
    #[arg(long, env = "MESH_INJECTOR_ADMIN", default_value = "0.0.0.0:9995")]
    pub admin: SocketAddr,
    /// The namespace of the control plane
    #[arg(long, env = "MESH_INJECTOR_CONTROL_NAMESPACE", default_value = defaults::CONTROL_NAMESPACE)]
    pub control_namespace: String,
    /// The end of every identity
    #[arg(long, env = "MESH_INJECTOR_TRUST_DOMAIN", default_value = defaults::TRUST_DOMAIN)]
    pub trust_domain: String,
    /// The end of every service's name
    #[arg(long, env = "MESH_INJECTOR_CLUSTER_DOMAIN", default_value = defaults::CLUSTER_DOMAIN)]
    pub cluster_domain: String,
    /// Networks of the cluster, comma-separated
    #[arg(long, env = "MESH_INJECTOR_CLUSTER_NETWORKS", default_value = defaults::CLUSTER_NETWORKS)]
    pub cluster_networks: String,
    /// The proxy's image (default: that of this version)
    #[arg(long, env = "MESH_INJECTOR_PROXY_IMAGE")]
    pub proxy_image: Option<String>,
    /// Whether the proxy is an init container that goes on; auto: where Kubernetes has them (1.29)
    #[arg(long, env = "MESH_INJECTOR_NATIVE_SIDECAR", default_value = "auto", value_parser = ["auto", "enabled", "disabled"])]
    pub native_sidecar: String,
    /// A setting for all workloads that don't say otherwise: the name of an annotation without prefix, =, its value;
    /// several separated by semicolons
    #[arg(long = "default", env = "MESH_INJECTOR_DEFAULTS", value_delimiter = ';', value_name = "NAME=VALUE")]
    pub defaults: Vec<String>,
    /// A further name or address in the serving certificate, where the webhooks are not asked through their Service
    #[arg(long, env = "MESH_INJECTOR_ALSO_KNOWN_AS", value_delimiter = ',')]
    pub also_known_as: Vec<String>,
    /// What is logged: LEVEL or TARGET=LEVEL, comma-separated
    #[arg(long, env = "MESH_INJECTOR_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// plain or json
    #[arg(long, env = "MESH_INJECTOR_LOG_FORMAT", default_value = "plain")]
    pub log_format: log::Format,
}

/// Runs until a signal. True: everything that was in flight has ended.
pub async fn start(options: Options) -> Result<bool> {
    let level = log::init(options.log_format, &options.log_level)?;
    let stop = Stop::new();
    stop.on_signals()?;
    let client = Client::try_default().await.context("no access to the Kubernetes API")?;
    let values = options.values(native_sidecar(&options, &client).await?)?;

    let metrics = Arc::new(Metrics::default());
    let (values_sender, values_receiver) = watch::channel(None);
    let (synced_sender, synced) = watch::channel(false);
    let (certified, has_certificate) = watch::channel(false);
    let (events, news) = Events::new();
    let namespaces = Namespaces::new(client.clone());
    // These follow the cluster for as long as the process lives.
    tokio::spawn(namespaces.clone().follow(client.clone(), synced_sender));
    tokio::spawn(follow_anchors(client.clone(), options.control_namespace.clone(), values, values_sender));
    tokio::spawn(events::publish(client.clone(), std::env::var("HOSTNAME").ok(), news));

    let page = bind("--admin", options.admin).await?;
    let listener = bind("--listen", options.listen).await?;
    let (of_page, anchored) = (metrics.clone(), values_receiver.clone());
    let admin = Admin {
        metrics: Arc::new(move || of_page.text()),
        ready: Arc::new(move || match (*has_certificate.borrow(), anchored.borrow().is_some(), *synced.borrow()) {
            (false, ..) => Err("no serving certificate yet".into()),
            (_, false, _) => Err(format!("ConfigMap {} was not read yet", cluster::ANCHORS)),
            (.., false) => Err("namespaces were not read yet".into()),
            _ => Ok(()),
        }),
        ..Admin::new(level, stop.clone())
    };
    tokio::spawn(admin.serve(page, axum::Router::new()));

    let webhooks = Webhooks { values: values_receiver, namespaces, metrics: metrics.clone(), events };
    let keeping =
        stop.spawn(keep_certificate(client, options.clone(), webhooks, listener, metrics, certified, stop.clone()));
    stop.stopping().await;
    let clean = stop.wait(GRACE).await;
    keeping.await.unwrap_or(Ok(())).map(|()| clean)
}

impl Options {
    /// What pods are injected with; fails with what is wrong in the options.
    fn values(&self, native_sidecar: bool) -> Result<Values> {
        let mut defaults = Map::new();
        for pair in self.defaults.iter().filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair.split_once('=').with_context(|| format!("--default {pair:?} has no \"=\""))?;
            let known = || crate::settings::all().map(|setting| setting.name);
            if !known().any(|one| one == name.trim()) {
                let hint = nearest(name, known()).map(|one| format!("; did you mean {one}?"));
                anyhow::bail!("--default {pair:?}: there is no such setting{}", hint.unwrap_or_default());
            }
            defaults.insert(name.trim().into(), value.trim().into());
        }
        if let Err(errors) = Settings::read(&Map::new(), &Map::new(), &defaults) {
            anyhow::bail!(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "));
        }
        let standard = Values::default();
        Ok(Values {
            proxy_image: self.proxy_image.clone().unwrap_or(standard.proxy_image),
            trust_anchors: String::new(),
            control_namespace: self.control_namespace.clone(),
            trust_domain: self.trust_domain.clone(),
            cluster_domain: self.cluster_domain.clone(),
            cluster_networks: self.cluster_networks.clone(),
            native_sidecar,
            defaults,
        })
    }

    /// What the API server calls us.
    fn names(&self) -> Vec<String> {
        let service = format!("gossamer-injector.{}.svc", self.control_namespace);
        let long = format!("{service}.{}", self.cluster_domain);
        [service, long].into_iter().chain(self.also_known_as.iter().cloned()).collect()
    }
}

/// Native sidecars are on by default since Kubernetes 1.29.
async fn native_sidecar(options: &Options, client: &Client) -> Result<bool> {
    match options.native_sidecar.as_str() {
        "enabled" => return Ok(true),
        "disabled" => return Ok(false),
        _ => {}
    }
    let version = client.apiserver_version().await.context("the Kubernetes API does not say its version")?;
    Ok(has_native_sidecars(&version))
}

/// True where an init container may go on beside the others.
pub fn has_native_sidecars(version: &Info) -> bool {
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    (number(&version.major), number(&version.minor)) >= (1, 29)
}

async fn follow_anchors(client: Client, namespace: String, values: Values, sender: watch::Sender<Option<Arc<Values>>>) {
    let mut anchors = pin!(cluster::anchors(client, &namespace));
    while let Some(anchors) = anchors.next().await {
        let values = Values { trust_anchors: anchors.pem().to_string(), ..values.clone() };
        sender.send_replace(Some(Arc::new(values)));
    }
}

/// Serves the webhooks as soon as there is a certificate, and renews it while they are served.
async fn keep_certificate(
    client: Client,
    options: Options,
    webhooks: Webhooks,
    listener: TcpListener,
    metrics: Arc<Metrics>,
    certified: watch::Sender<bool>,
    stop: Stop,
) -> Result<()> {
    let secrets = Api::<Secret>::namespaced(client.clone(), &options.control_namespace);
    let names = options.names();
    let ensure = || certs::ensure(&secrets, &options.control_namespace, &names, SystemTime::now());
    let mut serving = loop {
        match ensure().await {
            Ok(serving) => break serving,
            Err(error) => tracing::warn!("no serving certificate yet: {error:#}"),
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = stop.stopping() => return Ok(()),
        }
    };
    let (config_sender, config) = watch::channel(serving.config()?);
    let (authorities_sender, authorities) = watch::channel(serving.authorities.clone());
    stop_free(cluster::keep_believed(client.clone(), authorities));
    metrics.certificate_ends(seconds(&serving));
    certified.send_replace(true);
    tracing::info!(address = %options.listen, "deciding about pods");
    stop.spawn(webhook::serve(webhooks, listener, config, stop.clone()));
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = stop.stopping() => return Ok(()),
        }
        let next = match ensure().await {
            Ok(next) if next != serving => next,
            Ok(_) => continue,
            Err(error) => {
                tracing::warn!("the serving certificate could not be looked at: {error:#}");
                continue;
            }
        };
        // First it is believed, then it is shown.
        authorities_sender.send_replace(next.authorities.clone());
        if let Err(error) = cluster::believe(&client, &next.authorities).await {
            tracing::warn!("the new certificate is not shown yet: {error:#}");
            continue;
        }
        tokio::time::sleep(SPREAD).await;
        config_sender.send_replace(next.config()?);
        metrics.certificate_ends(seconds(&next));
        serving = next;
    }
}

/// Spawns what ends with the process rather than with the drain.
fn stop_free(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

fn seconds(serving: &Serving) -> u64 {
    let ends = serving.ends().unwrap_or(SystemTime::UNIX_EPOCH);
    ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Between two looks at the Secret.
const LOOK: Duration = Duration::from_secs(60);
/// Between two attempts to get a first certificate.
const RETRY: Duration = Duration::from_secs(1);
/// Until every API server has heard of a new authority.
const SPREAD: Duration = Duration::from_secs(10);
/// An admission is answered within seconds or not at all.
const GRACE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    fn values(arguments: &[&str]) -> Result<Values> {
        let arguments = std::iter::once("injector").chain(arguments.iter().copied());
        Cli::try_parse_from(arguments).unwrap().options.values(true)
    }

    #[test]
    fn options_become_values() {
        assert_eq!(values(&[]).unwrap(), Values::default());
        let some = values(&["--default", "skip-outbound-ports=1,2;access-log=json", "--proxy-image", "x:1"]).unwrap();
        assert_eq!((some.proxy_image.as_str(), some.defaults["skip-outbound-ports"].as_str()), ("x:1", "1,2"));
        assert_eq!(some.defaults["access-log"], "json");
    }

    #[test]
    fn native_sidecars_are_of_1_29() {
        let has = |major: &str, minor: &str| {
            has_native_sidecars(&Info { major: major.into(), minor: minor.into(), ..Info::default() })
        };
        assert!(has("1", "29") && has("1", "31+") && !has("1", "28+") && !has("", ""));
    }

    #[test]
    fn bad_defaults_say_what_is_meant() {
        let error = |value| values(&["--default", value]).unwrap_err().to_string();
        assert!(error("acess-log=json").ends_with("there is no such setting; did you mean access-log?"));
        assert!(error("access-log").contains("has no \"=\""));
        assert!(error("access-log=yes").contains("expected json, apache or off"));
    }
}
