//! Settings as the proxy uses them: typed, checked once at start, never changed.

use gossamer_api::defaults;
use gossamer_api::settings::{InvalidSetting, Ports, Values};
use gossamer_api::workload::{Identity, Workload};
use ipnet::IpNet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// A control-plane service: where it is and who it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `host:port`; the name is resolved at each connect.
    pub addr: String,
    /// The identity that it must show; `None`: plain text (tests).
    pub identity: Option<Identity>,
}

/// An explicit local port: what arrives at `listen` is for `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Local address.
    pub listen: SocketAddr,
    /// `host:port`, as discovery takes it.
    pub target: String,
}

/// Who may reach the workload where no policy says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// Everybody.
    AllUnauthenticated,
    /// Everybody with a mesh identity.
    AllAuthenticated,
    /// Everybody in the cluster's networks.
    ClusterUnauthenticated,
    /// Everybody in the cluster's networks with a mesh identity.
    ClusterAuthenticated,
    /// Nobody.
    Deny,
    /// Everybody, and who would be refused by `deny` is counted.
    Audit,
}

/// What a line of the access log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// An object with everything that is known.
    Json,
    /// Apache's common format, with Linkerd's additions.
    Apache,
}

/// Everything that the proxy is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Listeners for what the workload sends.
    pub outbound_listen: Vec<SocketAddr>,
    /// Listeners for what others send to it.
    pub inbound_listen: Vec<SocketAddr>,
    /// Metrics and probes.
    pub admin_listen: SocketAddr,
    /// The tap API.
    pub tap_listen: Option<SocketAddr>,
    /// Explicit local ports.
    pub forwards: Vec<Forward>,
    /// Set the redirection at start.
    pub redirect: bool,
    /// Mark on the proxy's own sockets; 0: none.
    pub mark: u32,
    /// The user that the process becomes when it has set the redirection without a mark.
    pub uid: u32,
    /// The identity service.
    pub identity: Option<Service>,
    /// The destination service.
    pub destination: Option<Service>,
    /// The policy service.
    pub policy: Option<Service>,
    /// PEM of the roots.
    pub trust_anchors: String,
    /// Who we ask to be.
    pub local_identity: Option<Identity>,
    /// What proves it.
    pub token_file: PathBuf,
    /// Where the newest roots of trust are kept.
    pub state_dir: Option<PathBuf>,
    /// What we stand beside.
    pub workload: Workload,
    /// Its addresses.
    pub inbound_ips: Vec<IpAddr>,
    /// Where nothing passes without discovery.
    pub cluster_networks: Vec<IpNet>,
    /// See [`DefaultPolicy`].
    pub default_policy: DefaultPolicy,
    /// Ports that are not looked at.
    pub opaque_ports: Ports,
    /// Ports that bypass the proxy inbound.
    pub skip_inbound_ports: Ports,
    /// Ports that bypass it outbound.
    pub skip_outbound_ports: Ports,
    /// Clients that bypass it inbound.
    pub skip_subnets: Vec<IpNet>,
    /// TCP connect to endpoints.
    pub outbound_connect_timeout: Duration,
    /// TCP connect to the workload.
    pub inbound_connect_timeout: Duration,
    /// How long a silent client is waited for.
    pub detect_patience: Duration,
    /// Data threads.
    pub workers: usize,
    /// Drain.
    pub grace: Duration,
    /// `POST /shutdown` works.
    pub admin_shutdown: bool,
    /// A line per request.
    pub access_log: Option<AccessLog>,
    /// Filter of the log.
    pub log_level: String,
    /// JSON instead of text.
    pub log_json: bool,
}

impl Config {
    /// From the environment.
    pub fn from_env() -> Result<Self, InvalidSetting> {
        Self::new(&Values::from_env())
    }

    /// From texts.
    pub fn new(values: &Values) -> Result<Self, InvalidSetting> {
        let cluster = Cluster::new(values);
        let service = |part: &str, port: u16| -> Result<Option<Service>, InvalidSetting> {
            let addr = values.text(&format!("{part}-addr"));
            let identity = values.optional(&format!("{part}-name"))?;
            if addr.is_empty() && identity.is_none() {
                return Ok(cluster.as_ref().and_then(|cluster| cluster.service(part, port)));
            }
            Ok((!addr.is_empty()).then_some(Service { addr, identity }))
        };
        let destination = service("destination", defaults::DESTINATION_PORT)?;
        let policy = service("policy", 0)?.or_else(|| destination.clone());
        let token_file = match values.text("token-file") {
            none if none.is_empty() && cluster.is_some() => PathBuf::from(defaults::TOKEN_DIR).join("token"),
            path => path.into(),
        };
        let state_dir = match values.text("state-dir") {
            none if none.is_empty() => cluster.is_some().then(|| PathBuf::from(defaults::STATE_DIR)),
            path => Some(path.into()),
        };
        let local_identity = match values.optional("local-identity")? {
            None => cluster.as_ref().and_then(|cluster| cluster.workload(values)),
            given => given,
        };
        Ok(Config {
            outbound_listen: values.addresses("outbound-listen")?,
            inbound_listen: values.addresses("inbound-listen")?,
            admin_listen: values.parse("admin-listen")?,
            tap_listen: values.optional("tap-listen")?,
            forwards: values.parse_with("forward", forwards)?,
            redirect: values.either("redirect", "true", "false")?,
            mark: values.parse("socket-mark")?,
            uid: values.parse("uid")?,
            identity: service("identity", defaults::IDENTITY_PORT)?,
            policy,
            destination,
            trust_anchors: values.inline_or_file("trust-anchors", "-----BEGIN")?,
            local_identity,
            token_file,
            state_dir,
            workload: values.parse_with("workload", |text| match text {
                "" => Ok(Workload {
                    ns: values.text("namespace"),
                    pod: values.text("pod"),
                    node_name: values.text("node"),
                }),
                text => serde_json::from_str(text).map_err(|error| format!("; {error}")),
            })?,
            inbound_ips: values.list("inbound-ips")?,
            cluster_networks: values.list("cluster-networks")?,
            default_policy: values.parse_with("default-inbound-policy", |text| {
                Ok::<_, &str>(match text {
                    "all-unauthenticated" => DefaultPolicy::AllUnauthenticated,
                    "all-authenticated" => DefaultPolicy::AllAuthenticated,
                    "cluster-unauthenticated" => DefaultPolicy::ClusterUnauthenticated,
                    "cluster-authenticated" => DefaultPolicy::ClusterAuthenticated,
                    "deny" => DefaultPolicy::Deny,
                    "audit" => DefaultPolicy::Audit,
                    _ => return Err(""),
                })
            })?,
            opaque_ports: values.ports("opaque-ports")?,
            skip_inbound_ports: values.ports("skip-inbound-ports")?,
            skip_outbound_ports: values.ports("skip-outbound-ports")?,
            skip_subnets: values.list("skip-subnets")?,
            outbound_connect_timeout: values.duration("outbound-connect-timeout")?,
            inbound_connect_timeout: values.duration("inbound-connect-timeout")?,
            detect_patience: values.duration("detect-patience")?,
            workers: values.parse_with("workers", |text| match text.parse() {
                Ok(count @ 1..=64) => Ok(count),
                _ => Err("; 1 to 64"),
            })?,
            grace: values.duration("shutdown-grace-period")?,
            admin_shutdown: values.either("admin-shutdown", "enabled", "disabled")?,
            access_log: values.parse_with("access-log", |text| match text {
                "json" => Ok(Some(AccessLog::Json)),
                "apache" => Ok(Some(AccessLog::Apache)),
                "off" => Ok(None),
                _ => Err(""),
            })?,
            log_level: values.text("log-level"),
            log_json: values.either("log-format", "json", "plain")?,
        })
    }

    /// True when an address belongs to the cluster.
    pub fn in_cluster(&self, ip: IpAddr) -> bool {
        self.cluster_networks.iter().any(|net| net.contains(&ip))
    }

    /// True when a connection to that address would come back to this proxy.
    pub fn is_own(&self, addr: SocketAddr) -> bool {
        let listens = self.outbound_listen.iter().chain(&self.inbound_listen);
        let own_port = listens.into_iter().any(|own| own.port() == addr.port());
        own_port && (addr.ip().is_loopback() || self.inbound_ips.contains(&addr.ip()))
    }
}

/// In a pod everything about the control plane follows from its namespace, so that pod objects stay small.
struct Cluster {
    control_namespace: String,
    cluster_domain: String,
    trust_domain: String,
}

impl Cluster {
    fn new(values: &Values) -> Option<Self> {
        let control_namespace = match values.text("control-namespace") {
            // Nobody else has service accounts.
            none if none.is_empty() && !values.text("service-account").is_empty() => defaults::CONTROL_NAMESPACE.into(),
            namespace => namespace,
        };
        let (cluster_domain, trust_domain) = (values.text("cluster-domain"), values.text("trust-domain"));
        (!control_namespace.is_empty()).then_some(Cluster { control_namespace, cluster_domain, trust_domain })
    }

    /// One of the control plane's services. Policy is served with destination.
    fn service(&self, part: &str, port: u16) -> Option<Service> {
        let (namespace, domain) = (&self.control_namespace, &self.cluster_domain);
        let name = (part != "policy").then(|| format!("gossamer-{part}"))?;
        let identity = Identity::service_account(&name, namespace, namespace, &self.trust_domain).ok()?;
        Some(Service { addr: format!("{name}.{namespace}.svc.{domain}:{port}"), identity: Some(identity) })
    }

    fn workload(&self, values: &Values) -> Option<Identity> {
        let (account, namespace) = (values.text("service-account"), values.text("namespace"));
        Identity::service_account(&account, &namespace, &self.control_namespace, &self.trust_domain).ok()
    }
}

fn forwards(text: &str) -> Result<Vec<Forward>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (listen, target) = part.split_once('=').ok_or_else(|| format!("; {part:?} has no \"=\""))?;
            let listen = listen.parse().map_err(|_| format!("; {listen:?} is no address"))?;
            match target.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
                Some((host, Ok(_))) if !host.is_empty() => Ok(Forward { listen, target: target.to_string() }),
                _ => Err(format!("; {target:?} is no host:port")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_make_a_config() {
        let config = Config::new(&Values::default()).unwrap();
        assert_eq!(config.workers, 1);
        assert!(config.destination.is_none() && config.in_cluster("10.1.2.3".parse().unwrap()));
        assert!(config.is_own("127.0.0.1:4140".parse().unwrap()) && !config.is_own("10.0.0.1:4140".parse().unwrap()));
    }

    #[test]
    fn in_a_pod_the_rest_follows_from_the_control_planes_namespace() {
        let values = Values::from_lookup(|name| {
            let value = match name {
                "MESH_TRUST_DOMAIN" => "example.org",
                "MESH_NAMESPACE" => "demo",
                "MESH_SERVICE_ACCOUNT" => "web",
                "MESH_POD" => "web-0",
                "MESH_NODE" => "n1",
                _ => return None,
            };
            Some(value.to_string())
        });
        let config = Config::new(&values).unwrap();
        let identity = config.identity.unwrap();
        assert_eq!(identity.addr, "gossamer-identity.gossamer.svc.cluster.local:8080");
        let name = "gossamer-identity.gossamer.serviceaccount.identity.gossamer.example.org";
        assert_eq!(identity.identity.unwrap().as_str(), name);
        assert_eq!(config.policy, config.destination);
        assert_eq!(config.destination.unwrap().addr, "gossamer-destination.gossamer.svc.cluster.local:8086");
        assert_eq!(config.local_identity.unwrap().as_str(), "web.demo.serviceaccount.identity.gossamer.example.org");
        assert_eq!((config.workload.pod.as_str(), config.workload.node_name.as_str()), ("web-0", "n1"));
        assert_eq!(config.state_dir, Some(PathBuf::from("/state")));
        assert_eq!(config.token_file, PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount/token"));
    }

    #[test]
    fn explicit_forwards_are_checked() {
        assert_eq!(forwards("127.0.0.1:9000=db.demo:5432").unwrap()[0].target, "db.demo:5432");
        for bad in ["127.0.0.1:9000", "x=db:1", "127.0.0.1:1=db", "127.0.0.1:1=:5"] {
            assert!(forwards(bad).is_err(), "{bad}");
        }
    }
}
