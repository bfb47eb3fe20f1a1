//! Replicas of a service: what `Destination.Get` asks and streams.

use super::net::labels_to_proto;
use super::{
    Decoded, InvalidMessage, Within, address_from_proto, address_to_proto, duration_from_proto, duration_to_proto,
    each, meta_from_proto, meta_to_proto, required,
};
use crate::endpoint::{Endpoint, EndpointUpdate, Http2Params, ProtocolHint, ServerTls};
use crate::workload::{Identity, InvalidIdentity};
use linkerd2_proxy_api::destination::{self as proto, http2_client_params, protocol_hint, tls_identity, update};

/// Asks for the replicas of `name:port`. The token is what the proxy says about itself (a workload as JSON).
pub fn get_destination_to_proto(authority: &str, context_token: &str) -> proto::GetDestination {
    proto::GetDestination {
        scheme: String::new(),
        path: authority.to_string(),
        context_token: context_token.to_string(),
    }
}

/// A change of a set of replicas.
pub fn endpoint_update_to_proto(from: &EndpointUpdate) -> proto::Update {
    let change = match from {
        EndpointUpdate::Add(endpoints, labels) => update::Update::Add(proto::WeightedAddrSet {
            addrs: endpoints.iter().map(endpoint_to_proto).collect(),
            metric_labels: labels_to_proto(labels),
        }),
        EndpointUpdate::Remove(addrs) => {
            update::Update::Remove(proto::AddrSet { addrs: addrs.iter().copied().map(address_to_proto).collect() })
        }
        EndpointUpdate::Empty { exists } => update::Update::NoEndpoints(proto::NoEndpoints { exists: *exists }),
    };
    proto::Update { update: Some(change) }
}

/// A change of a set of replicas.
///
/// A replica that has no meaning for us (no address, an identity that we cannot verify) is left out with a warning, so
/// that the others stay reachable.
pub fn endpoint_update_from_proto(from: proto::Update) -> Decoded<EndpointUpdate> {
    Ok(match required(from.update, "update")? {
        update::Update::Add(set) => {
            let decode = |addr| match endpoint_from_proto(addr) {
                Ok(endpoint) => Some(endpoint),
                Err(error) => {
                    tracing::warn!(%error, "ignoring an endpoint");
                    None
                }
            };
            let endpoints = set.addrs.into_iter().filter_map(decode).collect();
            EndpointUpdate::Add(endpoints, set.metric_labels.into_iter().collect())
        }
        update::Update::Remove(set) => EndpointUpdate::Remove(each(set.addrs, "remove.addrs", address_from_proto)?),
        update::Update::NoEndpoints(proto::NoEndpoints { exists }) => EndpointUpdate::Empty { exists },
    })
}

/// One replica.
pub fn endpoint_to_proto(from: &Endpoint) -> proto::WeightedAddr {
    proto::WeightedAddr {
        addr: Some(address_to_proto(from.addr)),
        weight: from.weight,
        metric_labels: labels_to_proto(&from.labels),
        tls_identity: from.tls.as_ref().map(tls_to_proto),
        protocol_hint: hint_to_proto(from.hint, from.transport_port),
        authority_override: from
            .authority_override
            .clone()
            .map(|authority_override| proto::AuthorityOverride { authority_override }),
        http2: http2_to_proto(&from.http2),
        resource_ref: from.meta.as_ref().map(meta_to_proto),
    }
}

/// One replica. An address without meaning, or an identity that nobody could verify, is an error: such a replica must
/// not become one that is spoken to in the clear.
pub fn endpoint_from_proto(from: proto::WeightedAddr) -> Decoded<Endpoint> {
    let addr = address_from_proto(required(from.addr, "addr")?).within("addr")?;
    let (hint, transport_port) = hint_from_proto(from.protocol_hint);
    Ok(Endpoint {
        addr,
        weight: from.weight,
        tls: from.tls_identity.map(tls_from_proto).transpose().within("tls_identity")?,
        hint,
        transport_port,
        // As in linkerd2-proxy: what is no authority overrides nothing.
        authority_override: from
            .authority_override
            .map(|over| over.authority_override)
            .filter(|authority| authority.parse::<http::uri::Authority>().is_ok()),
        http2: from.http2.map(http2_from_proto).unwrap_or_default(),
        meta: from.resource_ref.and_then(|meta| meta_from_proto(meta).ok()),
        labels: from.metric_labels.into_iter().collect(),
    })
}

fn tls_to_proto(from: &ServerTls) -> proto::TlsIdentity {
    let name = |identity: &Identity| tls_identity::DnsLikeIdentity { name: identity.as_str().to_string() };
    let uri = || tls_identity::UriLikeIdentity { uri: from.identity.as_str().to_string() };
    proto::TlsIdentity {
        strategy: Some(match from.identity.is_spiffe() {
            false => tls_identity::Strategy::DnsLikeIdentity(name(&from.identity)),
            true => tls_identity::Strategy::UriLikeIdentity(uri()),
        }),
        server_name: Some(name(&from.server_name)),
    }
}

fn tls_from_proto(from: proto::TlsIdentity) -> Decoded<ServerTls> {
    let wrong = |field: &'static str| move |error: InvalidIdentity| InvalidMessage::new(field, error.reason);
    let server_name = from.server_name.map(|server| server.name.parse::<Identity>().map_err(wrong("server_name")));
    let server_name = server_name.transpose()?;
    let identity = match from.strategy {
        Some(tls_identity::Strategy::DnsLikeIdentity(dns)) => dns.name.parse().map_err(wrong("dns_like_identity"))?,
        Some(tls_identity::Strategy::UriLikeIdentity(uri)) => {
            Identity::spiffe(&uri.uri).map_err(wrong("uri_like_identity"))?
        }
        None => required(server_name.clone(), "server_name")?,
    };
    // A SPIFFE ID can't be sent as SNI.
    let server_name = match server_name {
        None if !identity.is_spiffe() => identity.clone(),
        server_name => required(server_name, "server_name")?,
    };
    Ok(ServerTls { server_name, identity })
}

fn hint_to_proto(hint: ProtocolHint, transport_port: Option<u16>) -> Option<proto::ProtocolHint> {
    let protocol = match hint {
        ProtocolHint::Unknown => None,
        ProtocolHint::Http2 => Some(protocol_hint::Protocol::H2(protocol_hint::H2 {})),
        ProtocolHint::Opaque => Some(protocol_hint::Protocol::Opaque(protocol_hint::Opaque {})),
    };
    let opaque_transport = transport_port.map(|port| protocol_hint::OpaqueTransport { inbound_port: u32::from(port) });
    (protocol.is_some() || opaque_transport.is_some()).then_some(proto::ProtocolHint { protocol, opaque_transport })
}

fn hint_from_proto(from: Option<proto::ProtocolHint>) -> (ProtocolHint, Option<u16>) {
    let Some(from) = from else { return (ProtocolHint::Unknown, None) };
    let hint = match from.protocol {
        Some(protocol_hint::Protocol::H2(_)) => ProtocolHint::Http2,
        Some(protocol_hint::Protocol::Opaque(_)) => ProtocolHint::Opaque,
        None => ProtocolHint::Unknown,
    };
    let port = from.opaque_transport.and_then(|transport| u16::try_from(transport.inbound_port).ok());
    (hint, port.filter(|port| *port != 0))
}

fn http2_to_proto(from: &Http2Params) -> Option<proto::Http2ClientParams> {
    if *from == Http2Params::default() {
        return None;
    }
    let windows = from.connection_window.is_some() || from.stream_window.is_some();
    let pings = from.keep_alive.is_some() || from.keep_alive_while_idle;
    Some(proto::Http2ClientParams {
        flow_control: windows.then(|| http2_client_params::FlowControl {
            initial_connection_window_size: from.connection_window.unwrap_or(0),
            initial_stream_window_size: from.stream_window.unwrap_or(0),
            adaptive_flow_control: false,
        }),
        keep_alive: pings.then(|| http2_client_params::KeepAlive {
            interval: from.keep_alive.map(|(interval, _)| duration_to_proto(interval)),
            timeout: from.keep_alive.map(|(_, timeout)| duration_to_proto(timeout)),
            while_idle: from.keep_alive_while_idle,
        }),
        internals: None,
    })
}

/// Adaptive windows and hyper's internals have no meaning for our engine: it uses its own.
fn http2_from_proto(from: proto::Http2ClientParams) -> Http2Params {
    let flow = from.flow_control.filter(|flow| !flow.adaptive_flow_control).unwrap_or_default();
    let pings = from.keep_alive.unwrap_or_default();
    let interval = duration_from_proto(pings.interval, "interval").ok().flatten();
    let timeout = duration_from_proto(pings.timeout, "timeout").ok().flatten();
    Http2Params {
        connection_window: Some(flow.initial_connection_window_size).filter(|bytes| *bytes > 0),
        stream_window: Some(flow.initial_stream_window_size).filter(|bytes| *bytes > 0),
        keep_alive: interval.zip(timeout),
        keep_alive_while_idle: pings.while_idle,
    }
}
