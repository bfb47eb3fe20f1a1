//! A Kubernetes cluster as this user sees it: kubectl's flags, a client, lists of objects, and ports of pods by
//! port-forward. Nothing here needs more rights than the question asks for, and nothing is kept on the cluster.
//!
//! [`Options`] is flattened into every command that talks to a cluster; [`explain`] says what was refused and what to do.

pub mod explain;
pub mod forward;
pub mod objects;

use crate::error::{CommandError, Result};
use explain::Doing;
use gossamer_api::defaults;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, Resource};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Written by the injector on every pod with a proxy; the value is the control plane's namespace.
pub const MESHED_LABEL: &str = "gossamer.io/control-plane-ns";
/// An API server that is there answers in milliseconds; kubectl waits half a minute.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Objects per page, as kubectl.
const PAGE: u32 = 500;

/// Which cluster, and as whom: kubectl's flags
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Options {
    /// The kubeconfig file [default: $KUBECONFIG, then ~/.kube/config]
    #[arg(help_heading = "Cluster", long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context [default: its current one]
    #[arg(help_heading = "Cluster", long, value_name = "NAME")]
    pub context: Option<String>,
    /// The kubeconfig's cluster [default: the context's]
    #[arg(help_heading = "Cluster", long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The kubeconfig's user [default: the context's]
    #[arg(help_heading = "Cluster", long, value_name = "NAME")]
    pub user: Option<String>,
    /// Act as this user
    #[arg(help_heading = "Cluster", long = "as", value_name = "USER")]
    pub as_user: Option<String>,
    /// Act as a member of this group; may be repeated
    #[arg(help_heading = "Cluster", long, value_name = "GROUP", requires = "as_user")]
    pub as_group: Vec<String>,
    /// Act as the user with this UID
    #[arg(help_heading = "Cluster", long, value_name = "UID", requires = "as_user")]
    pub as_uid: Option<String>,
    /// The namespace of the mesh's control plane
    #[arg(help_heading = "Cluster", long, value_name = "NAMESPACE", env = "MESHCTL_CONTROL_NAMESPACE", default_value = defaults::CONTROL_NAMESPACE)]
    pub control_namespace: String,
}

impl Options {
    /// True when a flag says that a cluster is meant.
    pub fn is_given(&self) -> bool {
        let Options { kubeconfig, context, cluster, user, as_user, as_group: _, as_uid: _, control_namespace: _ } =
            self;
        kubeconfig.is_some() || [context, cluster, user, as_user].into_iter().any(Option::is_some)
    }

    /// True when there is a kubeconfig that names a context, or this runs in a pod. One that is named and can't be read
    /// is one too: whoever named it shall hear of it.
    pub fn is_configured(&self) -> bool {
        let named = std::env::var_os("KUBECONFIG").is_some_and(|paths| !paths.is_empty());
        self.is_given() || in_pod() || names_a_cluster(self.read(), named)
    }

    fn read(&self) -> Result<Kubeconfig, kube::config::KubeconfigError> {
        self.kubeconfig.as_deref().map_or_else(Kubeconfig::read, Kubeconfig::read_from::<&Path>)
    }

    /// A client for the cluster. Says nothing to it yet.
    pub async fn connect(&self) -> Result<Cluster> {
        let (mut config, context) = self.config().await?;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        let acting = [
            ("impersonate-user", config.auth_info.impersonate.clone()),
            ("impersonate-uid", config.auth_info.impersonate_uid.clone()),
        ];
        let groups =
            config.auth_info.impersonate_groups.iter().flatten().map(|group| ("impersonate-group", group.clone()));
        let acting: Vec<_> =
            acting.into_iter().filter_map(|(name, value)| Some((name, value?))).chain(groups).collect();
        for (name, value) in acting {
            let value =
                value.parse().map_err(|_| CommandError::usage(format!("{value:?} can't be a user or a group")))?;
            config.headers.push((http::HeaderName::from_static(name), value));
        }
        let namespace = config.default_namespace.clone();
        let server = config.cluster_url.to_string().trim_end_matches('/').to_string();
        let client = Client::try_from(config).map_err(|error| explain::connecting(&error, &context))?;
        Ok(Cluster { client, context, server, namespace, control_namespace: self.control_namespace.clone() })
    }

    async fn config(&self) -> Result<(Config, String)> {
        let kubeconfig = match self.read() {
            Ok(kubeconfig) => kubeconfig,
            Err(_) if !self.is_given() && in_pod() => {
                let config = Config::incluster().map_err(|error| {
                    CommandError::failed(format!(
                        "this pod's service account can't be used: {}",
                        crate::error::causes(&error)
                    ))
                })?;
                return Ok((config, "in-cluster".into()));
            }
            Err(error) => return Err(explain::kubeconfig(&error)),
        };
        let context = self.context.clone().or_else(|| kubeconfig.current_context.clone()).unwrap_or_default();
        let known: Vec<String> = kubeconfig.contexts.iter().map(|context| context.name.clone()).collect();
        if context.is_empty() || !known.contains(&context) {
            return Err(explain::context(&context, &known));
        }
        let options = KubeConfigOptions {
            context: Some(context.clone()),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
        };
        let read = Config::from_custom_kubeconfig(kubeconfig, &options).await;
        let mut config = read.map_err(|error| explain::kubeconfig(&error))?;
        if self.as_user.is_some() {
            config.auth_info.impersonate = self.as_user.clone();
            config.auth_info.impersonate_uid = self.as_uid.clone();
            config.auth_info.impersonate_groups = Some(self.as_group.clone());
        }
        Ok((config, context))
    }
}

fn names_a_cluster(read: Result<Kubeconfig, kube::config::KubeconfigError>, named: bool) -> bool {
    match read {
        Ok(config) => config.current_context.is_some_and(|context| !context.is_empty()),
        Err(_) => named,
    }
}

fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        && Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
}

/// A cluster that can be asked. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The kubeconfig's context, or `in-cluster`.
    pub context: String,
    /// The API server.
    pub server: String,
    /// Where nothing else is said: the context's namespace, or `default`.
    pub namespace: String,
    /// Where the control plane is.
    pub control_namespace: String,
}

impl Cluster {
    /// All objects of a kind, of one namespace or of all, page by page.
    pub async fn list<K>(&self, namespace: Option<&str>, selector: &str) -> Result<Vec<K>>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let api: Api<K> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        self.pages(api, &K::plural(&()), namespace, selector).await
    }

    /// All objects of a kind that has no namespaces.
    pub async fn list_cluster<K>(&self, selector: &str) -> Result<Vec<K>>
    where
        K: Resource<Scope = k8s_openapi::ClusterResourceScope, DynamicType = ()>,
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        self.pages(Api::all(self.client.clone()), &K::plural(&()), None, selector).await
    }

    /// All pages of what an error calls `what`.
    async fn pages<K>(&self, api: Api<K>, what: &str, namespace: Option<&str>, selector: &str) -> Result<Vec<K>>
    where
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let doing = Doing { verb: "list", what, namespace };
        let mut params = ListParams::default().labels(selector).limit(PAGE);
        let mut all = Vec::new();
        loop {
            let page = api.list(&params).await.map_err(|error| explain::refused(self, &error, doing))?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// One object; `None` if there is none of that name.
    pub async fn get<K>(&self, namespace: &str, name: &str) -> Result<Option<K>>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
    {
        let what = K::plural(&()).into_owned();
        let doing = Doing { verb: "get", what: &what, namespace: Some(namespace) };
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(|error| explain::refused(self, &error, doing))
    }

    /// Pods, of one namespace or of all. A selector as kubectl's `-l`; `gossamer.io/control-plane-ns` means meshed ones.
    pub async fn pods(&self, namespace: Option<&str>, selector: &str) -> Result<Vec<Pod>> {
        self.list(namespace, selector).await
    }

    /// A ready pod of the control plane, by its component: `identity`, `destination` or `injector`.
    pub async fn control_pod(&self, component: &str) -> Result<String> {
        let selector = format!("gossamer.io/control-plane-component={component}");
        let pods = self.pods(Some(&self.control_namespace), &selector).await?;
        let ready = pods.iter().find(|pod| is_ready(pod)).and_then(|pod| pod.metadata.name.clone());
        ready.ok_or_else(|| {
            let error = match pods.len() {
                0 => format!("no {component} in namespace {:?}", self.control_namespace),
                n => format!("none of {n} pods of {component} in namespace {:?} is ready", self.control_namespace),
            };
            let error = CommandError::failed(error).hint("`meshctl check` says what is wrong");
            if pods.is_empty() { error.hint("`meshctl install | kubectl apply -f -` installs the mesh") } else { error }
        })
    }
}

/// True when its condition `Ready` says so.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBECONFIG: &str = "
apiVersion: v1
kind: Config
current-context: blue
contexts:
- {name: blue, context: {cluster: c, user: u, namespace: shop}}
- {name: green, context: {cluster: c, user: u}}
clusters:
- {name: c, cluster: {server: 'https://127.0.0.1:6443'}}
users:
- {name: u, user: {token: t}}
";

    fn options(file: &Path) -> Options {
        Options { kubeconfig: Some(file.into()), control_namespace: "gossamer".into(), ..Options::default() }
    }

    #[tokio::test]
    async fn the_context_gives_server_and_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KUBECONFIG).unwrap();
        let cluster = options(file.path()).connect().await.unwrap();
        assert_eq!((cluster.context.as_str(), cluster.namespace.as_str()), ("blue", "shop"));
        assert_eq!(cluster.server, "https://127.0.0.1:6443");
        let green = Options { context: Some("green".into()), ..options(file.path()) };
        assert_eq!(green.connect().await.unwrap().namespace, "default");
        let red = Options { context: Some("red".into()), ..options(file.path()) };
        let error = red.connect().await.err().unwrap();
        assert!(error.message.contains("\"red\"") && error.hints[0].contains("blue, green"), "{error:?}");
    }

    #[tokio::test]
    async fn a_missing_kubeconfig_is_named() {
        let error = options(Path::new("/nonexistent/config")).connect().await.err().unwrap();
        assert!(error.message.contains("/nonexistent/config"), "{error:?}");
        assert!(!error.hints.is_empty());
    }

    #[test]
    fn a_kubeconfig_that_was_named_is_not_passed_over() {
        let missing = || Kubeconfig::read_from("/nonexistent/config");
        assert!(names_a_cluster(missing(), true) && !names_a_cluster(missing(), false));
        let empty = Kubeconfig { current_context: Some(String::new()), ..Kubeconfig::default() };
        assert!(!names_a_cluster(Ok(empty), true));
    }

    #[tokio::test]
    async fn acting_as_somebody_goes_with_every_request() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KUBECONFIG).unwrap();
        let acting = Options {
            as_user: Some("jane".into()),
            as_group: vec!["dev".into(), "ops".into()],
            ..options(file.path())
        };
        let (config, _) = acting.config().await.unwrap();
        assert_eq!(config.auth_info.impersonate.as_deref(), Some("jane"));
        assert_eq!(config.auth_info.impersonate_groups.unwrap().len(), 2);
        let odd = Options { as_user: Some("a\nb".into()), ..options(file.path()) };
        assert!(odd.connect().await.is_err());
    }
}
