//! What a proxy asks for: an address, or a name as an application writes it.

use super::Index;
use super::few::Few;
use gossamer_api::kubernetes::Name;
use gossamer_api::policy::Target;
use std::net::{IpAddr, SocketAddr};

/// What a target turned out to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Asked {
    /// A service's port.
    Service(Name, u16),
    /// One pod of a service (`POD.SERVICE.NAMESPACE`), on the service's port.
    Instance(Name, String, u16),
    /// A pod's address.
    Workload(Name, SocketAddr),
    /// An address that nothing known has.
    Address(SocketAddr),
}

impl Index {
    /// Finds out what a target is; `None` for a name that is no service's. A short name is completed with `namespace`.
    pub fn resolve(&self, target: &Target, namespace: &str) -> Option<Asked> {
        match target {
            Target::Addr(addr) => Some(self.resolve_addr(*addr)),
            Target::Authority(authority) => {
                let (host, port) = split_authority(authority)?;
                if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
                    return Some(self.resolve_addr(SocketAddr::new(ip, port)));
                }
                let (instance, service) = self.service_of_host(host, namespace)?;
                Some(match instance {
                    None => Asked::Service(service, port),
                    Some(instance) => Asked::Instance(service, instance, port),
                })
            }
        }
    }

    fn resolve_addr(&self, addr: SocketAddr) -> Asked {
        let first = |names: &Few<Name>| names.first().cloned();
        if let Some(service) = self.service_ips.get(&addr.ip()).and_then(first) {
            return Asked::Service(service, addr.port());
        }
        match self.workload_ips.get(&addr.ip()).and_then(first) {
            Some(workload) => Asked::Workload(workload, addr),
            None => Asked::Address(addr),
        }
    }

    /// The address that a DNS name stands for: a service's, or a pod's (`POD.SERVICE.NAMESPACE`, `POD.NAMESPACE`,
    /// `POD`). Suffixes from `NAMESPACE` on may be missing.
    pub fn address_of(&self, host: &str, namespace: &str) -> Option<IpAddr> {
        if let Some((instance, service)) =
            self.service_of_host(host, namespace).filter(|(_, s)| self.services.contains_key(s))
        {
            return match instance {
                None => self.services.get(&service)?.ips.first().copied(),
                Some(pod) => self.workloads.get(&self.instance(&service, &pod)?)?.ips.first().copied(),
            };
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let (pod, namespace) = host.split_once('.').unwrap_or((&host, namespace));
        self.workloads.get(&Name::new(namespace, pod))?.ips.first().copied()
    }

    /// The service that a host names, and the pod if it names one.
    fn service_of_host(&self, host: &str, namespace: &str) -> Option<(Option<String>, Name)> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let host = host.strip_suffix(self.cluster.domain.as_str()).map_or(host.as_str(), |h| h.trim_end_matches('.'));
        let whole = host.strip_suffix(".svc");
        let parts: Vec<&str> = whole.unwrap_or(host).split('.').collect();
        let known = |namespace: &str, name: &str| {
            let name = Name::new(namespace, name);
            self.services.get(&name).is_some_and(|service| !service.external).then_some(name)
        };
        match parts[..] {
            // A whole name says what it is even before the service is there.
            [name, in_namespace] if whole.is_some() => {
                let name = Name::new(in_namespace, name);
                // What an alias stands for, DNS alone knows.
                self.services.get(&name).is_none_or(|service| !service.external).then_some((None, name))
            }
            [name] => known(namespace, name).map(|service| (None, service)),
            [name, in_namespace] => known(in_namespace, name)
                .map(|service| (None, service))
                .or_else(|| known(namespace, in_namespace).map(|service| (Some(name.to_string()), service))),
            [pod, name, in_namespace] => known(in_namespace, name).map(|service| (Some(pod.to_string()), service)),
            _ => None,
        }
    }

    /// The whole name of a service.
    pub fn service_host(&self, service: &Name) -> String {
        format!("{}.{}.svc.{}", service.name, service.namespace, self.cluster.domain)
    }
}

/// Host and port; without one, 80.
fn split_authority(authority: &str) -> Option<(&str, u16)> {
    match authority.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => Some((authority, 80)),
        Some((host, port)) => Some((host, port.parse().ok().filter(|port| *port > 0)?)),
        None => Some((authority, 80)),
    }
}
