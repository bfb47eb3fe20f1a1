//! Where a live command looks: at the mesh on this machine or at a cluster. One decision, in [`Scope::choose`]; after it
//! commands have [`Workload`]s with proxies that they can dial, and don't care where those are.
//!
//! **Invariant:** only proxies are asked for figures, with the user's own rights; there is nothing else to install.

use crate::cluster::{self, Cluster, MESHED_LABEL};
use crate::error::{CommandError, Result};
use crate::output::paint_err;
use crate::registry::Client;
use crate::resource::{self, Resource};
use crate::sandbox::state::{self, Mesh};
use crate::sandbox::{enter, network};
use crate::scrape;
use gossamer_api::defaults;
use gossamer_api::keys::PROXY_CONTAINER;
use gossamer_api::wire::mesh::WorkloadInfo;
use gossamer_api::workload::Identity;
use k8s_openapi::api::core::v1::Pod;
use kube::core::{Selector, SelectorExt};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::Path;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Which mesh, and what of it.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Scope {
    /// Only this namespace [default: all on this machine, the context's on a cluster]
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
    /// The mesh on this machine of that name, if several run here
    #[arg(long, env = "MESHCTL_MESH")]
    pub mesh: Option<String>,
    /// The mesh on this machine, not a cluster
    #[arg(long, conflicts_with_all = ["kubeconfig", "context", "cluster", "user", "as_user"])]
    pub local: bool,
    // Which cluster, and as whom.
    #[command(flatten)]
    #[allow(missing_docs)]
    pub cluster: cluster::Options,
}

/// What was decided.
pub enum Chosen {
    /// The mesh on this machine.
    Here(Mesh),
    /// A cluster, not asked yet.
    Cluster(cluster::Options),
}

/// The facts of the decision.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// `--local` or `--mesh`.
    local: bool,
    /// A flag of kubectl's, or this program runs as kubectl's plugin.
    cluster: bool,
    /// A mesh of this user runs here.
    runs: bool,
    /// There is a kubeconfig.
    configured: bool,
}

impl Facts {
    /// True: the mesh on this machine. Explicit flags win, then what runs here, then the kubeconfig. `None`: neither.
    fn here(self) -> Option<bool> {
        match self {
            Facts { cluster: true, .. } => Some(false),
            Facts { local: true, .. } | Facts { runs: true, .. } => Some(true),
            Facts { configured: true, .. } => Some(false),
            _ => None,
        }
    }
}

impl Scope {
    /// True when a cluster is meant.
    pub fn is_cluster(&self) -> bool {
        self.facts().here() == Some(false)
    }

    fn facts(&self) -> Facts {
        Facts {
            local: self.local || self.mesh.is_some(),
            cluster: !self.local && (self.cluster.is_given() || is_plugin(std::env::args_os().next().as_deref())),
            runs: state::any(),
            configured: self.cluster.is_configured(),
        }
    }

    /// Decides, and moves this process into the network of a mesh on this machine. Called before there are threads.
    pub fn choose(&self) -> Result<Chosen> {
        match self.facts().here() {
            Some(false) => Ok(Chosen::Cluster(self.cluster.clone())),
            Some(true) => {
                // Inside, this user looks like root: the folder is looked up before.
                let mesh = state::find(self.mesh.as_deref())?;
                enter::join(mesh.pid)?;
                Ok(Chosen::Here(mesh))
            }
            None => Err(CommandError::failed("no mesh runs on this machine, and there is no kubeconfig for a cluster")
                .hint("start one here with `meshctl demo` or `meshctl run`")
                .hint("or point to a cluster with --kubeconfig FILE, --context NAME or KUBECONFIG")),
        }
    }

    /// The namespace that is asked about; `None`: all.
    pub fn within(&self, place: &Place) -> Option<String> {
        match (place, &self.namespace) {
            (_, Some(namespace)) => Some(namespace.clone()),
            (Place::Cluster(cluster), None) if !self.all_namespaces => Some(cluster.namespace.clone()),
            _ => None,
        }
    }
}

/// True when kubectl runs this program as `kubectl gossamer`.
pub fn is_plugin(program: Option<&OsStr>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name()).unwrap_or_default();
    name.to_string_lossy().starts_with("kubectl-")
}

/// Where to look, ready to be asked.
#[derive(Clone)]
pub enum Place {
    /// The mesh on this machine; this process is in its network.
    Here(Mesh),
    /// A cluster.
    Cluster(Cluster),
}

/// A workload, and how its proxy is reached.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    /// Its namespace.
    pub namespace: String,
    /// The pod, or the replica on this machine.
    pub pod: String,
    /// What its replicas have in common.
    pub owner: Owner,
    /// Where others reach it.
    pub address: String,
    /// Who it is, if it has a proxy.
    pub identity: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// It has a proxy.
    pub meshed: bool,
    /// It is known to take no calls. On a cluster nobody says so.
    pub client_only: bool,
    /// The version of its proxy, if it is known.
    pub version: String,
    pub(crate) reach: Reach,
}

/// What made a pod: a Deployment, a StatefulSet, a Job...; the service on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// `deployment`, `statefulset`...: the label's name in metrics. Empty on this machine.
    pub kind: String,
    /// Its name.
    pub name: String,
}

#[derive(Clone, Debug, Default)]
pub(crate) enum Reach {
    #[default]
    Pod,
    Here {
        admin: String,
        tap: String,
    },
}

/// A port of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Metrics.
    Admin,
    /// The tap API.
    Tap,
    /// Where the mesh's TLS ends.
    Inbound,
}

impl Port {
    fn number(self) -> u16 {
        match self {
            Port::Admin => defaults::ADMIN_PORT,
            Port::Tap => defaults::TAP_PORT,
            Port::Inbound => defaults::INBOUND_PORT,
        }
    }
}

/// A connection to a proxy's port.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Chosen {
    /// Ready to be asked.
    pub async fn open(self) -> Result<Place> {
        Ok(match self {
            Chosen::Here(mesh) => Place::Here(mesh),
            Chosen::Cluster(options) => Place::Cluster(options.connect().await?),
        })
    }
}

impl Place {
    /// The workloads of the scope that one of `wanted` means; no `wanted`: all. Those without a proxy are among them.
    pub async fn workloads(&self, scope: &Scope, wanted: &[Resource]) -> Result<Vec<Workload>> {
        self.labelled(scope, wanted, &Selector::default()).await
    }

    /// The same, of those with certain labels.
    pub async fn labelled(&self, scope: &Scope, wanted: &[Resource], labels: &Selector) -> Result<Vec<Workload>> {
        let within = scope.within(self);
        // Who asks about namespaces as such means all of them.
        let all_meant = scope.namespace.is_none() && wanted.iter().any(|resource| resource.kind == "namespace");
        let mut all = self.select(within.as_deref().filter(|_| !all_meant), labels).await?;
        let labelled = if labels.selects_all() { String::new() } else { format!(" with labels {labels}") };
        if all.is_empty() && !labelled.is_empty() {
            return Err(self.not_found(&format!("no workload{labelled}"), within.as_deref(), &all));
        }
        for resource in wanted {
            if !all.iter().any(|workload| resource.means(workload)) {
                return Err(self.not_found(&format!("no workload {resource}{labelled}"), within.as_deref(), &all));
            }
        }
        if !wanted.is_empty() {
            all.retain(|workload| wanted.iter().any(|resource| resource.means(workload)));
        }
        Ok(all)
    }

    /// Everything in a namespace, or everywhere, by name.
    pub async fn all(&self, namespace: Option<&str>) -> Result<Vec<Workload>> {
        self.select(namespace, &Selector::default()).await
    }

    /// Those with certain labels. A cluster sends no others.
    async fn select(&self, namespace: Option<&str>, labels: &Selector) -> Result<Vec<Workload>> {
        let mut all: Vec<Workload> = match self {
            Place::Here(mesh) => Client::connect(mesh).await?.list().await?.into_iter().map(here).collect(),
            Place::Cluster(cluster) => {
                let pods = cluster.pods(namespace, &labels.to_string()).await?;
                pods.into_iter().filter_map(of_pod).collect()
            }
        };
        all.retain(|workload| labels.matches(&workload.labels));
        all.retain(|workload| namespace.is_none_or(|namespace| namespace == workload.namespace));
        all.sort_by(|a, b| (&a.namespace, &a.owner, &a.pod).cmp(&(&b.namespace, &b.owner, &b.pod)));
        Ok(all)
    }

    /// Everything that this user may list: clients may be anywhere. Says so where that is one namespace only.
    pub async fn everybody(&self, scope: &Scope) -> Result<Vec<Workload>> {
        let error = match self.all(None).await {
            Ok(all) => return Ok(all),
            Err(error) => error,
        };
        let Some(namespace) = scope.within(self) else { return Err(error) };
        let known = self.all(Some(&namespace)).await?;
        let warning = paint_err("warning:", "1;33");
        eprintln!("{warning} {}; only namespace {namespace:?} is looked at", error.message);
        Ok(known)
    }

    /// Says what there is instead.
    pub fn nothing(&self, wanted: &Resource, within: Option<&str>, all: &[Workload]) -> CommandError {
        self.not_found(&format!("no workload {wanted}"), within, all)
    }

    fn not_found(&self, what: &str, within: Option<&str>, all: &[Workload]) -> CommandError {
        let place = match (self, within) {
            (Place::Here(_), _) => "in this mesh".to_string(),
            (Place::Cluster(_), Some(namespace)) => format!("in namespace {namespace:?}"),
            (Place::Cluster(_), None) => "in this cluster".to_string(),
        };
        let error = CommandError::failed(format!("{what} {place}"));
        let mut there: Vec<String> = all.iter().map(Workload::owner_text).collect();
        there.dedup();
        let error = match (self, there.len()) {
            (Place::Here(_), 0) => error.hint("start one with `meshctl run`"),
            (Place::Cluster(_), 0) => error.hint("look elsewhere with -n NAMESPACE, or everywhere with -A"),
            (_, n) if n > 20 => error.hint(format!("there are {n}, among them: {}", there[..10].join(", "))),
            _ => error.hint(format!("there are: {}", there.join(", "))),
        };
        match self {
            Place::Here(_) => error,
            Place::Cluster(cluster) => error.hint(format!("context {:?} is in use", cluster.context)),
        }
    }

    /// Nothing with a proxy is there.
    pub fn no_proxy(&self, within: Option<&str>) -> CommandError {
        match (self, within) {
            (Place::Here(_), _) => {
                CommandError::failed("nothing runs in this mesh").hint("start something with `meshctl run`")
            }
            (Place::Cluster(cluster), Some(namespace)) => {
                CommandError::failed(format!("no pods with a proxy in namespace {namespace:?}"))
                    .hint("look elsewhere with -n NAMESPACE, or everywhere with -A")
                    .hint(format!("inject them: kubectl annotate namespace {namespace} gossamer.io/inject=enabled"))
                    .hint(format!("then restart them: kubectl rollout restart deploy -n {namespace}"))
                    .hint(format!("context {:?} is in use", cluster.context))
            }
            (Place::Cluster(cluster), None) => CommandError::failed("no pods with a proxy in this cluster")
                .hint("install the mesh (`meshctl install --help`), then annotate a namespace: gossamer.io/inject=enabled")
                .hint(format!("context {:?} is in use", cluster.context)),
        }
    }

    /// Connects to a port of a workload's proxy.
    pub async fn dial(&self, workload: &Workload, port: Port) -> Result<Box<dyn Io>, String> {
        let tcp = async |address: &str| {
            let stream = TcpStream::connect(address).await.map_err(|e| format!("{address}: {e}"))?;
            Ok(Box::new(stream) as Box<dyn Io>)
        };
        match (&workload.reach, self) {
            (Reach::Here { admin, .. }, _) if port == Port::Admin => tcp(admin).await,
            (Reach::Here { tap, .. }, _) if port == Port::Tap => {
                let stream = UnixStream::connect(tap).await.map_err(|e| format!("{}: {e}", workload.pod))?;
                Ok(Box::new(stream))
            }
            (Reach::Here { .. }, _) | (_, Place::Here(_)) => {
                tcp(&format!("{}:{}", workload.address, port.number())).await
            }
            (Reach::Pod, Place::Cluster(cluster)) => {
                Ok(Box::new(cluster.forward(&workload.namespace, &workload.pod, port.number()).await?))
            }
        }
    }

    /// A proxy's `/metrics` as it is.
    pub async fn metrics(&self, workload: &Workload) -> Result<String, String> {
        scrape::fetch(self.dial(workload, Port::Admin).await?, "/metrics").await
    }
}

impl Workload {
    /// `NAMESPACE/POD`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    /// Where it is, and what its own connections come from.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let Ok(ip) = self.address.parse() else { return Vec::new() };
        match (&self.reach, ip) {
            (Reach::Here { .. }, IpAddr::V4(v4)) => vec![ip, network::v6_of(v4).into()],
            _ => vec![ip],
        }
    }

    /// `deploy/web`; `web` on this machine.
    pub fn owner_text(&self) -> String {
        match self.owner.kind.as_str() {
            "" => self.owner.name.clone(),
            kind => format!("{}/{}", resource::short(kind), self.owner.name),
        }
    }
}

/// A workload that is registered on this machine.
fn here(info: WorkloadInfo) -> Workload {
    Workload {
        namespace: info.namespace,
        pod: info.replica,
        owner: Owner { kind: String::new(), name: info.name },
        address: info.address,
        identity: info.identity,
        meshed: info.meshed,
        client_only: info.ports.is_empty(),
        labels: info.labels.into_iter().collect(),
        reach: Reach::Here { admin: info.admin, tap: info.tap },
        ..Workload::default()
    }
}

/// A pod that runs or is about to; one that has ended has no proxy to ask.
pub(crate) fn of_pod(pod: Pod) -> Option<Workload> {
    let (metadata, spec, status) = (pod.metadata, pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let (labels, namespace) = (metadata.labels.unwrap_or_default(), metadata.namespace.unwrap_or_default());
    let annotations = metadata.annotations.unwrap_or_default();
    let pod = metadata.name.unwrap_or_default();
    let control = labels.get(MESHED_LABEL).cloned();
    let account = spec.service_account_name.filter(|account| !account.is_empty()).unwrap_or_else(|| "default".into());
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let env: Vec<_> = containers.filter(|c| c.name == PROXY_CONTAINER).flat_map(|c| c.env.iter().flatten()).collect();
    // What the injector told the proxy, if it is written out.
    let told =
        |name: &str| env.iter().find(|variable| variable.name == name).and_then(|variable| variable.value.clone());
    let said = told("MESH_LOCAL_IDENTITY").filter(|identity| !identity.contains("$("));
    let domain = told("MESH_TRUST_DOMAIN").unwrap_or_else(|| defaults::TRUST_DOMAIN.into());
    let made =
        control.as_ref().and_then(|control| Identity::service_account(&account, &namespace, control, &domain).ok());
    let identity = said.or_else(|| made.map(|identity| identity.to_string()));
    let owner = metadata.owner_references.iter().flatten().next();
    let template = labels.get("pod-template-hash");
    let owner = owner.map(|owner| owner_of(&owner.kind, &owner.name, template.map(String::as_str)));
    Some(Workload {
        owner: owner.unwrap_or_else(|| Owner { kind: "pod".into(), name: pod.clone() }),
        address: status.pod_ip.unwrap_or_default(),
        identity: identity.filter(|_| control.is_some()).unwrap_or_default(),
        meshed: control.is_some() && spec.host_network != Some(true),
        version: annotations.get("gossamer.io/proxy-version").cloned().unwrap_or_default(),
        client_only: false,
        reach: Reach::Pod,
        namespace,
        pod,
        labels,
    })
}

/// True when `wanted`, said in a namespace, means this pod.
pub fn stands_for(wanted: &Resource, pod: &gossamer_api::kubernetes::Pod, namespace: &str) -> bool {
    let metadata = &pod.metadata;
    let template = metadata.labels.get("pod-template-hash").map(String::as_str);
    let owner = metadata.owner_references.first().map(|owner| owner_of(&owner.kind, &owner.name, template));
    let workload = Workload {
        namespace: metadata.namespace.clone(),
        owner: owner.unwrap_or_else(|| Owner { kind: "pod".into(), name: metadata.name.clone() }),
        pod: metadata.name.clone(),
        ..Workload::default()
    };
    let elsewhere = wanted.name.ends_with(&format!(".{}", metadata.namespace));
    wanted.means(&workload) && (elsewhere || metadata.namespace == namespace)
}

/// A ReplicaSet is named after its Deployment and the template's hash, as the labels of metrics have it.
fn owner_of(kind: &str, name: &str, template: Option<&str>) -> Owner {
    let deployment = template.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
    match (kind, deployment) {
        ("ReplicaSet", Some(deployment)) => Owner { kind: "deployment".into(), name: deployment.into() },
        _ => Owner { kind: kind.to_ascii_lowercase(), name: name.into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_then_what_runs_here_then_the_kubeconfig() {
        let nothing = Facts { local: false, cluster: false, runs: false, configured: false };
        for (facts, here) in [
            (nothing, None),
            (Facts { configured: true, ..nothing }, Some(false)),
            (Facts { configured: true, runs: true, ..nothing }, Some(true)),
            (Facts { cluster: true, runs: true, ..nothing }, Some(false)),
            (Facts { local: true, configured: true, ..nothing }, Some(true)),
            (Facts { local: true, ..nothing }, Some(true)),
        ] {
            assert_eq!(facts.here(), here, "{facts:?}");
        }
    }

    #[test]
    fn kubectl_runs_it_under_another_name() {
        assert!(is_plugin(Some(OsStr::new("/usr/local/bin/kubectl-gossamer"))));
        assert!(!is_plugin(Some(OsStr::new("/usr/bin/meshctl"))));
        assert!(!is_plugin(None));
    }

    #[test]
    fn a_pods_identity_ends_with_its_meshs_trust_domain() {
        let pod = |env: serde_json::Value| -> Workload {
            let containers = serde_json::json!([{ "name": "web" }, { "name": PROXY_CONTAINER, "env": env }]);
            let labels = serde_json::json!({ MESHED_LABEL: "mesh" });
            let metadata = serde_json::json!({ "name": "web-0", "namespace": "demo", "labels": labels });
            let pod = serde_json::json!({ "metadata": metadata, "spec": { "containers": containers } });
            of_pod(serde_json::from_value(pod).unwrap()).unwrap()
        };
        assert!(pod(serde_json::json!([])).identity.ends_with(".identity.mesh.cluster.local"));
        let other = serde_json::json!([{ "name": "MESH_TRUST_DOMAIN", "value": "example.org" }]);
        assert_eq!(pod(other).identity, "default.demo.serviceaccount.identity.mesh.example.org");
    }

    #[test]
    fn pods_are_chosen_by_their_labels() {
        let pod = |name: &str, labels: serde_json::Value| {
            let pod = serde_json::json!({ "metadata": { "name": name, "namespace": "demo", "labels": labels } });
            of_pod(serde_json::from_value(pod).unwrap()).unwrap()
        };
        let pods = [
            pod("web-0", serde_json::json!({ "app": "web", MESHED_LABEL: "gossamer" })),
            pod("web-1", serde_json::json!({ "app": "web", "canary": "" })),
            pod("db-0", serde_json::json!({ "app": "db" })),
            pod("bare", serde_json::json!(null)),
        ];
        for (selector, names) in [
            ("app=web", "web-0 web-1"),
            ("app=web,!canary", "web-0"),
            ("app!=web", "db-0 bare"),
            ("gossamer.io/control-plane-ns", "web-0"),
            ("app in (db,cache)", "db-0"),
        ] {
            let selector = crate::selector::parse(selector).unwrap();
            let chosen: Vec<_> = pods.iter().filter(|w| selector.matches(&w.labels)).map(|w| w.pod.as_str()).collect();
            assert_eq!(chosen.join(" "), names, "{selector}");
        }
    }

    #[test]
    fn a_pods_owner_is_what_a_person_made() {
        let owner = |kind: &str, name: &str| Owner { kind: kind.into(), name: name.into() };
        assert_eq!(owner_of("ReplicaSet", "web-5d8f9c", Some("5d8f9c")), owner("deployment", "web"));
        assert_eq!(owner_of("ReplicaSet", "web-5d8f9c", None), owner("replicaset", "web-5d8f9c"));
        assert_eq!(owner_of("StatefulSet", "db", None), owner("statefulset", "db"));
    }
}
