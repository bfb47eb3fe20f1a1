//! Who may come in: what `InboundServerPolicies` streams for one port of a workload.

use crate::endpoint::Labels;
use crate::policy::{Filter, HostMatch, Meta, RequestMatch};
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Duration;

/// An inbound port and who may use it.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// The object, as labels `group`, `kind`, `name` (Linkerd sends labels here, not a reference).
    pub meta: Meta,
    /// What it speaks.
    pub protocol: InboundProtocol,
    /// Addresses of the workload; empty: any. Told, and enforced by nobody (linkerd2-proxy does not either): the kernel
    /// brings a proxy only what is for its own workload, and an address that is missing here would be an outage.
    pub ips: Vec<IpAddr>,
    /// Any of them lets a client in; none: nobody.
    pub authorizations: Vec<Authorization>,
    /// For metrics. What comes over the wire always has `group`, `kind` and `name`.
    pub labels: Labels,
}

/// What an inbound port speaks.
#[derive(Clone, Debug, PartialEq)]
pub enum InboundProtocol {
    /// To be found out.
    Detect {
        /// What the control plane would have a proxy wait; ours never waits that long.
        timeout: Duration,
        /// HTTP policy if it turns out to be HTTP.
        http: InboundHttp,
    },
    /// HTTP/1.
    Http1(InboundHttp),
    /// HTTP/2.
    Http2(InboundHttp),
    /// gRPC.
    Grpc(InboundHttp),
    /// Bytes.
    Opaque,
    /// TLS of the application.
    Tls,
}

/// HTTP policy of a port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InboundHttp {
    /// Empty: everything is allowed that the server's authorizations allow.
    pub routes: Vec<InboundRoute>,
    /// Local rate limit.
    pub rate_limit: Option<RateLimit>,
}

/// An HTTP or gRPC route of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct InboundRoute {
    /// The object.
    pub meta: Meta,
    /// Hosts it is for; empty: all.
    pub hosts: Vec<HostMatch>,
    /// Any of them lets a client in, and so does any of the server's: a route adds to its server (linkerd2-proxy does
    /// the same).
    pub authorizations: Vec<Authorization>,
    /// Tried by specificity.
    pub rules: Vec<InboundRule>,
    /// True for a gRPC route.
    pub grpc: bool,
}

/// One rule of an inbound route.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InboundRule {
    /// Any of these; empty: everything.
    pub matches: Vec<RequestMatch>,
    /// Applied in order.
    pub filters: Vec<Filter>,
}

/// Lets a set of clients in.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    /// The object that decides.
    pub meta: Meta,
    /// Where from; empty: nowhere.
    pub networks: Vec<Network>,
    /// Who.
    pub authentication: Authentication,
    /// For metrics. What comes over the wire always has `group`, `kind` and `name`.
    pub labels: Labels,
}

/// A network without some of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// All of this.
    pub net: IpNet,
    /// But not these.
    pub except: Vec<IpNet>,
}

impl Network {
    /// True when the address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.net.contains(&ip) && !self.except.iter().any(|net| net.contains(&ip))
    }
}

/// What a client must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing.
    Unauthenticated,
    /// Mesh TLS, with or without a client certificate.
    Tls,
    /// Mesh TLS with one of these identities (`*` suffixes already split off).
    Identities {
        /// Whole names.
        names: Vec<String>,
        /// `.suffix`; an empty one is everybody with a certificate.
        suffixes: Vec<String>,
    },
}

/// A local rate limit (GCRA, as Linkerd's `HTTPLocalRateLimitPolicy`).
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// The object.
    pub meta: Option<Meta>,
    /// Requests per second of all clients together.
    pub total: Option<u32>,
    /// Of each client identity; all without one share a bucket.
    pub identity: Option<u32>,
    /// Of these identities.
    pub overrides: Vec<(Vec<String>, u32)>,
}
