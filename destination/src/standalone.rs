//! Workloads that this process itself starts: the mesh of one machine, without Kubernetes.
//!
//! Each replica becomes the same objects that Kubernetes would have, a Pod and a Service of its name, so that everything
//! else is the same. **Invariant:** a replica is known for exactly as long as its [`Registration`] lives.

use crate::registry::{Change, Origin, Registry};
use gossamer_api::kubernetes::{
    Container, ContainerPort, IntOrString, Key, Kind, Map, Metadata, Name, Object, Pod, PodIp, PodSpec, PodStatus,
    Service, ServicePort, ServiceSpec,
};
use gossamer_api::workload::Identity;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// A replica to be known.
#[derive(Clone, Debug)]
pub struct WorkloadSpec {
    /// Namespace.
    pub namespace: String,
    /// The service and the service account; replicas share it.
    pub name: String,
    /// Unique in the namespace.
    pub replica: String,
    /// Where it is reached.
    pub ip: IpAddr,
    /// Where else, of the other IP version.
    pub other_ips: Vec<IpAddr>,
    /// What it listens on.
    pub ports: Vec<PortSpec>,
    /// Its labels; `app` is added.
    pub labels: Map,
    /// Settings, as annotations on a pod; those of the service (`retry.`, `timeout.`, `balancer.`) count there too.
    pub annotations: Map,
    /// It has a proxy.
    pub meshed: bool,
}

impl WorkloadSpec {
    /// Its labels, and the one that its service selects.
    pub fn all_labels(&self) -> Map {
        let mut labels = self.labels.clone();
        labels.insert(APP_LABEL.into(), self.name.clone());
        labels
    }
}

/// A port of a replica, and of its service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSpec {
    /// Number.
    pub port: u16,
    /// As a Service's port name.
    pub name: String,
    /// As a Service's appProtocol; empty: found out.
    pub app_protocol: String,
}

/// Why a replica can't be known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// The name is in use.
    #[error("replica {0} exists already")]
    Exists(Name),
    /// Not a DNS label.
    #[error("{field} {value:?} is no DNS label: 1 to 63 lower-case letters, digits and hyphens")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// The text.
        value: String,
    },
    /// The pool of service addresses is exhausted.
    #[error("no address is left for service {0}")]
    NoAddress(Name),
}

/// The workloads of this process.
#[derive(Clone)]
pub struct Standalone {
    registry: Registry,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Replicas that live, with what they were registered with.
    replicas: BTreeMap<Name, WorkloadSpec>,
    /// Services stay for as long as the control plane lives, so that a restarted workload is found where it was.
    services: BTreeMap<Name, Service>,
}

/// Keeps a replica known; dropping it makes the replica unknown.
pub struct Registration {
    /// The replica's whole name.
    pub replica: Name,
    /// The address of its service.
    pub service_address: IpAddr,
    /// `NAME.NAMESPACE.svc.DOMAIN`.
    pub service_name: String,
    /// Present when it is meshed.
    pub identity: Option<Identity>,
    standalone: Standalone,
}

impl Standalone {
    /// The registry should have a [`crate::pool::Pool`].
    pub fn new(registry: Registry) -> Self {
        Standalone { registry, state: Arc::default() }
    }

    /// Makes a replica known, at once and ready.
    pub fn register(&self, spec: WorkloadSpec) -> Result<Registration, RegisterError> {
        for (field, value) in [("namespace", &spec.namespace), ("name", &spec.name), ("replica", &spec.replica)] {
            if !is_dns_label(value) {
                return Err(RegisterError::Invalid { field, value: value.clone() });
            }
        }
        let replica = Name::new(&spec.namespace, &spec.replica);
        let service = Name::new(&spec.namespace, &spec.name);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.replicas.contains_key(&replica) {
            return Err(RegisterError::Exists(replica));
        }
        let address =
            self.registry.service_address(&service).ok_or_else(|| RegisterError::NoAddress(service.clone()))?;
        let object = state.services.entry(service.clone()).or_insert_with(|| new_service(&service, address));
        add_ports(object, &spec);
        let (cluster_identity, control, host) = self.registry.read(|index| {
            let cluster = index.cluster();
            let identity = cluster.identity(&spec.name, &spec.namespace).filter(|_| spec.meshed);
            (identity, cluster.control_namespace.clone(), index.service_host(&service))
        });
        let changes =
            [Change::Apply(Object::Service(object.clone())), Change::Apply(Object::Pod(pod(&spec, &control)))];
        self.registry.change(&Origin::Process, changes);
        state.replicas.insert(replica.clone(), spec);
        let identity = cluster_identity;
        // A file may say another address.
        let service_address = self.registry.read(|index| index.address_of(&host, "")).unwrap_or(address);
        let standalone = self.clone();
        Ok(Registration { replica, service_address, service_name: host, identity, standalone })
    }

    /// The address that a DNS name stands for: a service's (`NAME`, `NAME.NAMESPACE`, `NAME.NAMESPACE.svc`, with the
    /// domain) or a replica's. A short name is completed with `namespace`.
    pub fn resolve(&self, name: &str, namespace: &str) -> Option<IpAddr> {
        self.registry.read(|index| index.address_of(name, namespace))
    }

    /// Replicas that live, by name.
    pub fn list(&self) -> Vec<WorkloadSpec> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).replicas.values().cloned().collect()
    }

    fn deregister(&self, replica: &Name) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.replicas.remove(replica);
        let key = Key { kind: Kind::Pod, name: replica.clone() };
        self.registry.change(&Origin::Process, [Change::Delete(key)]);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.standalone.deregister(&self.replica);
    }
}

fn new_service(name: &Name, address: IpAddr) -> Service {
    Service {
        metadata: Metadata {
            name: name.name.to_string(),
            namespace: name.namespace.to_string(),
            ..Metadata::default()
        },
        spec: ServiceSpec {
            cluster_ip: address.to_string(),
            selector: [(APP_LABEL.to_string(), name.name.to_string())].into(),
            ..ServiceSpec::default()
        },
    }
}

/// A service has the ports of all replicas that it ever had.
fn add_ports(service: &mut Service, spec: &WorkloadSpec) {
    for port in &spec.ports {
        let protocol = Some(port.app_protocol.clone()).filter(|protocol| !protocol.is_empty());
        let new = ServicePort {
            name: port.name.clone(),
            port: port.port,
            target_port: Some(IntOrString::Int(port.port)),
            protocol: String::new(),
            app_protocol: protocol,
        };
        match service.spec.ports.iter_mut().find(|old| old.port == port.port) {
            Some(old) => *old = new,
            None => service.spec.ports.push(new),
        }
    }
    let for_service = |key: &&String| ["retry.", "timeout.", "balancer.", "config."].iter().any(|p| key.starts_with(p));
    let annotations = spec.annotations.iter().filter(|(key, _)| for_service(key));
    service.metadata.annotations.extend(annotations.map(|(key, value)| (key.clone(), value.clone())));
}

fn pod(spec: &WorkloadSpec, control_namespace: &str) -> Pod {
    let mut labels = spec.all_labels();
    if spec.meshed {
        labels.insert(MESHED_LABEL.into(), control_namespace.into());
    } else {
        labels.remove(MESHED_LABEL);
    }
    let ports = spec.ports.iter().map(|port| ContainerPort {
        name: port.name.clone(),
        container_port: port.port,
        protocol: String::new(),
    });
    Pod {
        metadata: Metadata {
            name: spec.replica.clone(),
            namespace: spec.namespace.clone(),
            labels,
            annotations: spec.annotations.clone(),
            ..Metadata::default()
        },
        spec: PodSpec {
            service_account_name: spec.name.clone(),
            containers: vec![Container { name: spec.name.clone(), ports: ports.collect(), ..Container::default() }],
            ..PodSpec::default()
        },
        status: PodStatus {
            pod_ip: spec.ip.to_string(),
            pod_ips: spec.other_ips.iter().map(|ip| PodIp { ip: ip.to_string() }).collect(),
            ..PodStatus::default()
        },
    }
}

fn is_dns_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

const APP_LABEL: &str = "app";
const MESHED_LABEL: &str = "gossamer.io/control-plane-ns";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{Cluster, Source};
    use crate::pool::Pool;

    fn spec(replica: &str, ip: &str) -> WorkloadSpec {
        WorkloadSpec {
            namespace: "demo".into(),
            name: "web".into(),
            replica: replica.into(),
            ip: ip.parse().unwrap(),
            other_ips: Vec::new(),
            ports: vec![PortSpec { port: 8080, ..PortSpec::default() }],
            labels: Map::new(),
            annotations: Map::new(),
            meshed: true,
        }
    }

    #[test]
    fn replicas_come_and_go_and_the_service_stays() {
        let pool = Pool::new("10.96.0.0/16".parse().unwrap());
        let registry = Registry::new(Cluster::default(), Some(pool));
        let standalone = Standalone::new(registry.clone());
        let first = standalone.register(spec("web-0", "10.1.0.1")).unwrap();
        let second = standalone.register(spec("web-1", "10.1.0.2")).unwrap();
        assert_eq!(
            standalone.register(spec("web-1", "10.1.0.3")).err(),
            Some(RegisterError::Exists(second.replica.clone()))
        );
        assert_eq!(first.service_address, second.service_address);
        let address = Some(first.service_address);
        for name in ["web", "web.demo", "web.demo.svc", "web.demo.svc.cluster.local", "WEB.demo.svc.cluster.local."] {
            assert_eq!(standalone.resolve(name, "demo"), address, "{name}");
        }
        assert_eq!(standalone.resolve("web", "other"), None);
        assert_eq!(standalone.resolve("web-1", "demo"), Some("10.1.0.2".parse().unwrap()));
        assert_eq!(standalone.resolve("web-1.web.demo.svc.cluster.local", ""), Some("10.1.0.2".parse().unwrap()));
        let service = Name::new("demo", "web");
        let endpoints =
            || registry.read(|index| index.endpoints(&service, 8080, None, &Source::default()).endpoints.len());
        assert_eq!(endpoints(), 2);
        drop(first);
        assert_eq!((endpoints(), standalone.list().len()), (1, 1));
        drop(second);
        assert_eq!(endpoints(), 0);
        assert_eq!(standalone.resolve("web.demo", ""), address);
    }
}
