//! Where: one replica of a service, and how to speak to it.

use crate::policy::Meta;
use crate::workload::Identity;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Labels that metrics carry about an endpoint (`pod`, `deployment`, `zone`...).
pub type Labels = BTreeMap<String, String>;

/// The weight of an ordinary endpoint. Source: linkerd2-proxy-api destination.proto (10 000 = 1x).
pub const WEIGHT_ONE: u32 = 10_000;

/// One replica: its address and what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its share of traffic, [`WEIGHT_ONE`] for an ordinary one.
    pub weight: u32,
    /// Present when it has a proxy of this mesh: the connection is mutual TLS with that name or none at all.
    pub tls: Option<ServerTls>,
    /// What the endpoint's proxy is known to accept.
    pub hint: ProtocolHint,
    /// The inbound port of the endpoint's proxy, for a hop that starts with the transport header.
    pub transport_port: Option<u16>,
    /// Replaces the authority of requests (services of other clusters).
    pub authority_override: Option<String>,
    /// HTTP/2 settings of connections to it.
    pub http2: Http2Params,
    /// The object behind it.
    pub meta: Option<Meta>,
    /// For metrics and tap.
    pub labels: Labels,
}

impl Endpoint {
    /// An ordinary endpoint without a proxy.
    pub fn new(addr: SocketAddr) -> Self {
        Endpoint {
            addr,
            weight: WEIGHT_ONE,
            tls: None,
            hint: ProtocolHint::Unknown,
            transport_port: None,
            authority_override: None,
            http2: Http2Params::default(),
            meta: None,
            labels: Labels::new(),
        }
    }
}

/// Whose certificate the endpoint must show.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerTls {
    /// Who its certificate must prove it to be.
    pub identity: Identity,
    /// The SNI to send, a DNS-like name; usually the same.
    pub server_name: Identity,
}

/// What an endpoint's proxy accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolHint {
    /// Nothing known: speak to it as the client speaks.
    #[default]
    Unknown,
    /// HTTP/1 may be carried over HTTP/2.
    Http2,
    /// Bytes only.
    Opaque,
}

/// HTTP/2 settings of connections to an endpoint; `None` is our own default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Http2Params {
    /// Bytes.
    pub connection_window: Option<u32>,
    /// Bytes.
    pub stream_window: Option<u32>,
    /// Interval and timeout of pings.
    pub keep_alive: Option<(Duration, Duration)>,
    /// Ping also without streams.
    pub keep_alive_while_idle: bool,
}

/// A change of a set of endpoints, as `Destination.Get` streams it.
#[derive(Clone, Debug, PartialEq)]
pub enum EndpointUpdate {
    /// New or changed ones. The labels belong to the whole set.
    Add(Vec<Endpoint>, Labels),
    /// Gone.
    Remove(Vec<SocketAddr>),
    /// None at all; `exists` tells an empty service from an unknown one.
    Empty {
        /// The service is known.
        exists: bool,
    },
}
