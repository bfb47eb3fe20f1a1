//! Addresses, networks and references to objects.

use super::{Decoded, InvalidMessage, Within, narrow, required};
use crate::endpoint::Labels;
use crate::policy::Meta;
use ipnet::IpNet;
use linkerd2_proxy_api::{meta, net};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// An address and port.
pub fn address_to_proto(addr: SocketAddr) -> net::TcpAddress {
    addr.into()
}

/// An address and port; one without a family, or with a port above 65535, is an error.
pub fn address_from_proto(addr: net::TcpAddress) -> Decoded<SocketAddr> {
    let ip = ip_from_proto(required(addr.ip, "ip")?).within("ip")?;
    Ok(SocketAddr::new(ip, narrow(addr.port, "port")?))
}

pub(super) fn ip_from_proto(ip: net::IpAddress) -> Decoded<IpAddr> {
    IpAddr::try_from(ip).map_err(|error| InvalidMessage::new("", error))
}

pub(super) fn network_from_proto(network: net::IpNetwork) -> Decoded<IpNet> {
    IpNet::try_from(network).map_err(|error| InvalidMessage::new("", error))
}

/// A reference to an object.
///
/// linkerd2-proxy refuses a whole policy for a reference without group, kind, namespace or name, so a reference that
/// lacks one is sent as a default of that name.
pub fn meta_to_proto(from: &Meta) -> meta::Metadata {
    let kind = match from {
        Meta::Resource { group, kind, namespace, name, section, port }
            if ![group, kind, namespace, name].iter().any(|part| part.is_empty()) =>
        {
            meta::metadata::Kind::Resource(meta::Resource {
                group: group.clone(),
                kind: kind.clone(),
                name: name.clone(),
                namespace: namespace.clone(),
                section: section.clone(),
                port: u32::from(*port),
            })
        }
        other => meta::metadata::Kind::Default(other.name().to_string()),
    };
    meta::Metadata { kind: Some(kind) }
}

/// A reference to an object.
pub fn meta_from_proto(from: meta::Metadata) -> Decoded<Meta> {
    Ok(match required(from.kind, "kind")? {
        meta::metadata::Kind::Default(name) => Meta::Default(name),
        meta::metadata::Kind::Resource(meta::Resource { group, kind, name, namespace, section, port }) => {
            // As in linkerd2-proxy: a port that is none says nothing.
            let port = u16::try_from(port).unwrap_or(0);
            Meta::Resource { group, kind, namespace, name, section, port }
        }
    })
}

/// The labels of an object that is known by labels only (`Server`, and authorizations of older control planes).
pub(super) fn labels_of(meta: &Meta, labels: &Labels) -> HashMap<String, String> {
    let mut all = labels_to_proto(labels);
    let mut set = |key: &str, value: &str| all.insert(key.to_string(), value.to_string());
    match meta {
        Meta::Default(name) => {
            set("group", "");
            set("kind", "default");
            set("name", name);
        }
        Meta::Resource { group, kind, namespace, name, section, port } => {
            set("group", group);
            set("kind", kind);
            set("name", name);
            // Ours; linkerd2-proxy reads the three above and passes over these.
            if !namespace.is_empty() {
                set("namespace", namespace);
            }
            if !section.is_empty() {
                set("section", section);
            }
            if *port != 0 {
                set("port", &port.to_string());
            }
        }
    }
    all
}

/// What the labels of a `Server` or an authorization say about its object. Source: linkerd2-proxy server-policy meta.rs.
pub(super) fn meta_of(labels: &Labels, default_kind: &str) -> Decoded<Meta> {
    let label = |key: &str| labels.get(key).map(String::as_str);
    let name = label("name").ok_or_else(|| InvalidMessage::missing("labels.name"))?;
    let group = label("group").unwrap_or("policy.linkerd.io");
    let (kind, name) = match (label("kind"), name.split_once(':')) {
        (Some("default"), _) if group.is_empty() => return Ok(Meta::named(name)),
        (Some(kind), _) => (kind, name),
        // Control planes from before the label `kind` write `default:deny`, `server:web`.
        (None, Some(("default", name))) => return Ok(Meta::named(name)),
        (None, Some((kind, name))) => (kind, name),
        (None, None) => (default_kind, name),
    };
    Ok(Meta::Resource {
        group: group.to_string(),
        kind: kind.to_string(),
        namespace: label("namespace").unwrap_or_default().to_string(),
        name: name.to_string(),
        section: label("section").unwrap_or_default().to_string(),
        port: label("port").and_then(|port| port.parse().ok()).unwrap_or(0),
    })
}

pub(super) fn labels_to_proto(labels: &Labels) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
