//! Services: addresses, ports, and what each port is known to speak.

use super::texts::{LabelSet, Text, Texts};
use super::{Index, annotations};
use gossamer_api::kubernetes::{self, IntOrString, Name};
use gossamer_api::policy::{Breaker, Load, Retry, Timeouts};
use gossamer_api::settings::Ports;
use std::net::IpAddr;
use std::sync::LazyLock;

/// A service, as far as it matters.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Service {
    pub(super) ips: Box<[IpAddr]>,
    /// The family of addresses that endpoints are reached at where they have both.
    pub(super) ipv6: bool,
    /// An alias in DNS, which has neither address nor endpoints.
    pub(super) external: bool,
    pub(super) ports: Box<[Port]>,
    selector: LabelSet,
    /// Only endpoints on the client's node.
    pub(super) local: bool,
    pub(super) opaque_ports: Option<Ports>,
    /// `None`: nothing out of the ordinary, as of most.
    traffic: Option<Box<Traffic>>,
}

/// How requests to a service are treated, as its annotations say.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Traffic {
    pub(super) breaker: Option<Breaker>,
    pub(super) load: Load,
    pub(super) retry: Option<Retry>,
    pub(super) timeouts: Timeouts,
}

/// What no annotation says otherwise.
static ORDINARY: LazyLock<Traffic> = LazyLock::new(|| Traffic {
    breaker: None,
    load: annotations::default_load(),
    retry: None,
    timeouts: Timeouts::default(),
});

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) name: Text,
    pub(super) number: u16,
    pub(super) target: IntOrString,
    pub(super) declared: Option<Speaks>,
}

/// What a port is known to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Unknown,
    Http1,
    Http2,
    Grpc,
    Opaque,
}

impl Service {
    pub(super) fn read(from: &kubernetes::Service, keep: &mut Texts, problems: &mut Vec<String>) -> Self {
        let (spec, notes) = (&from.spec, &from.metadata.annotations);
        let mut ips: Vec<IpAddr> =
            std::iter::once(&spec.cluster_ip).chain(&spec.cluster_ips).filter_map(|ip| ip.parse().ok()).collect();
        ips.dedup();
        let external = spec.kind == "ExternalName";
        if external {
            ips.clear();
        }
        let tcp = spec.ports.iter().filter(|port| !external && matches!(port.protocol.as_str(), "" | "TCP"));
        let opaque_ports = annotations::config(notes, "opaque-ports", problems);
        let traffic = Traffic {
            breaker: annotations::breaker(notes, problems),
            load: annotations::load(notes, problems),
            retry: annotations::retry(notes, problems),
            timeouts: annotations::timeouts(notes, problems),
        };
        let family = spec.ip_families.first().map(|family| family == "IPv6");
        Service {
            ipv6: family.or_else(|| ips.first().map(IpAddr::is_ipv6)).unwrap_or(false),
            ips: ips.into(),
            external,
            ports: tcp.map(|port| Port::read(port, keep)).collect(),
            selector: keep.labels(&spec.selector),
            local: spec.internal_traffic_policy == "Local",
            opaque_ports,
            traffic: (traffic != *ORDINARY).then(|| Box::new(traffic)),
        }
    }

    pub(super) fn traffic(&self) -> &Traffic {
        self.traffic.as_deref().unwrap_or(&ORDINARY)
    }

    pub(super) fn selects(&self, labels: &LabelSet) -> bool {
        !self.selector.is_empty() && self.selector.is_within(labels)
    }

    pub(super) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }
}

impl Port {
    fn read(from: &kubernetes::ServicePort, keep: &mut Texts) -> Self {
        let declared = from.app_protocol.as_deref().map(by_app_protocol).or_else(|| by_port_name(&from.name));
        Port {
            name: keep.keep(&from.name),
            number: from.port,
            target: from.target_port.clone().unwrap_or(IntOrString::Int(from.port)),
            declared,
        }
    }
}

/// What an `appProtocol` says. What is encrypted (`https`, `kubernetes.io/wss`) is bytes to us, and so are unknown ones,
/// as in Linkerd.
fn by_app_protocol(text: &str) -> Speaks {
    match text.to_ascii_lowercase().as_str() {
        "http" | "http1" | "http/1.1" | "ws" | "kubernetes.io/ws" | "grpc-web" => Speaks::Http1,
        "kubernetes.io/h2c" | "h2c" | "http2" | "http/2" => Speaks::Http2,
        "grpc" | "gossamer.io/grpc" | "kubernetes.io/grpc" => Speaks::Grpc,
        _ => Speaks::Opaque,
    }
}

/// What a port's name says (`grpc-api`). `http` says nothing of the version, and HTTP of either is recognized by its
/// first bytes, so such a port is left to detection: gRPC on a port called `http` is common.
fn by_port_name(name: &str) -> Option<Speaks> {
    Some(match name.split('-').next()? {
        "grpc" => Speaks::Grpc,
        "http2" | "h2c" => Speaks::Http2,
        "tcp" | "mysql" | "redis" | "mongo" | "postgres" | "postgresql" | "amqp" | "kafka" | "smtp" => Speaks::Opaque,
        _ => return None,
    })
}

impl Index {
    /// What a service's port speaks: by annotation, declaration, then the cluster's opaque ports.
    pub(super) fn speaks(&self, name: &Name, service: &Service, port: &Port) -> Speaks {
        let namespace = self.namespace(&name.namespace).and_then(|namespace| namespace.opaque_ports.as_ref());
        let annotated = service.opaque_ports.as_ref().or(namespace);
        if annotated.is_some_and(|ports| ports.contains(port.number)) {
            return Speaks::Opaque;
        }
        match port.declared {
            Some(declared) => declared,
            None if annotated.is_none() && self.cluster.opaque_ports.contains(port.number) => Speaks::Opaque,
            None => Speaks::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_by_declaration() {
        for (text, speaks) in [
            ("http", Speaks::Http1),
            ("kubernetes.io/h2c", Speaks::Http2),
            ("grpc", Speaks::Grpc),
            ("linkerd.io/opaque", Speaks::Opaque),
            ("gossamer.io/opaque", Speaks::Opaque),
            ("https", Speaks::Opaque),
            ("kubernetes.io/ws", Speaks::Http1),
            ("kubernetes.io/wss", Speaks::Opaque),
            ("GRPC", Speaks::Grpc),
        ] {
            assert_eq!(by_app_protocol(text), speaks, "{text}");
        }
        for (name, speaks) in
            [("grpc-api", Some(Speaks::Grpc)), ("tcp", Some(Speaks::Opaque)), ("http-web", None), ("", None)]
        {
            assert_eq!(by_port_name(name), speaks, "{name}");
        }
    }
}
