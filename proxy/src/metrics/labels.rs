//! Labels as structs, turned into text once per handle. Keys are Linkerd's.
//!
//! Whoever fills them in sees to it that clients cannot choose values at will: an authority is one that discovery knows.

use gossamer_api::endpoint::Labels;
use gossamer_api::policy::Meta;
use gossamer_api::workload::Identity;
use std::fmt::Write;
use std::net::SocketAddr;

/// Which side of the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

impl Direction {
    /// `inbound` or `outbound`.
    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }
    }
}

/// The TLS of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsLabel<'a> {
    /// Mesh TLS; inbound with the client's identity (none: no certificate), outbound with the server's.
    Mesh(Option<&'a Identity>),
    /// TLS of the application, passed through.
    Opaque,
    /// None, because: `no_tls_from_remote`, `port_skipped`, `loopback`, `not_provided_by_service_discovery`...
    None(&'static str),
    /// The proxy has no identity at all.
    Disabled,
}

/// Of requests to one endpoint (outbound) or from one client under one rule (inbound).
#[derive(Clone, Copy, Debug)]
pub struct RequestLabels<'a> {
    /// Which side.
    pub direction: Direction,
    /// Of the hop to the other proxy.
    pub tls: TlsLabel<'a>,
    /// The endpoint (outbound) or the workload's port (inbound).
    pub target: Option<SocketAddr>,
    /// Outbound: `name:port` as discovery knows it.
    pub authority: Option<&'a str>,
    /// Outbound: of the endpoint, shown as `dst_*`.
    pub dst: Option<&'a Labels>,
    /// Inbound: the server.
    pub server: Option<&'a Meta>,
    /// Inbound: the route.
    pub route: Option<&'a Meta>,
    /// Inbound: the authorization.
    pub authz: Option<&'a Meta>,
}

impl<'a> RequestLabels<'a> {
    /// With direction and TLS only.
    pub fn new(direction: Direction, tls: TlsLabel<'a>) -> Self {
        RequestLabels {
            direction,
            tls,
            target: None,
            authority: None,
            dst: None,
            server: None,
            route: None,
            authz: None,
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = Text::new();
        text.pair("direction", self.direction.as_str());
        if let Some(authority) = self.authority {
            text.pair("authority", authority);
        }
        text.target(self.target).tls(self.direction, self.tls);
        text.object("srv", self.server).object("route", self.route).object("authz", self.authz);
        text.dst(self.dst).take()
    }
}

/// Of connections with one kind of peer.
#[derive(Clone, Copy, Debug)]
pub struct TcpLabels<'a> {
    /// Which side.
    pub direction: Direction,
    /// True: the side that opened the connection to us (`peer="src"`); false: the one that we opened (`peer="dst"`).
    pub accepted: bool,
    /// Of this connection.
    pub tls: TlsLabel<'a>,
    /// The endpoint or the workload's port.
    pub target: Option<SocketAddr>,
    /// Outbound: `name:port` as discovery knows it.
    pub authority: Option<&'a str>,
    /// Outbound: of the endpoint.
    pub dst: Option<&'a Labels>,
    /// Inbound: the server.
    pub server: Option<&'a Meta>,
}

impl<'a> TcpLabels<'a> {
    /// With direction, side and TLS only.
    pub fn new(direction: Direction, accepted: bool, tls: TlsLabel<'a>) -> Self {
        TcpLabels { direction, accepted, tls, target: None, authority: None, dst: None, server: None }
    }

    pub(super) fn text(&self) -> String {
        let mut text = Text::new();
        text.pair("direction", self.direction.as_str()).pair("peer", if self.accepted { "src" } else { "dst" });
        if let Some(authority) = self.authority {
            text.pair("authority", authority);
        }
        text.target(self.target).tls(self.direction, self.tls).object("srv", self.server).dst(self.dst).take()
    }
}

/// Of decisions: a route's absence means connections, an authorization's absence denials.
#[derive(Clone, Copy, Debug)]
pub struct AuthzLabels<'a> {
    /// The server.
    pub server: &'a Meta,
    /// The route.
    pub route: Option<&'a Meta>,
    /// The authorization.
    pub authz: Option<&'a Meta>,
    /// Of the client.
    pub tls: TlsLabel<'a>,
    /// The workload's port.
    pub target: Option<SocketAddr>,
}

impl AuthzLabels<'_> {
    pub(super) fn text(&self) -> String {
        let mut text = Text::new();
        text.target(self.target).tls(Direction::Inbound, self.tls);
        text.object("srv", Some(self.server)).object("route", self.route).object("authz", self.authz).take()
    }
}

/// Of an outbound route.
#[derive(Clone, Copy, Debug)]
pub struct RouteLabels<'a> {
    /// The service that the route is of.
    pub parent: &'a Meta,
    /// The route.
    pub route: &'a Meta,
    /// True: the families are those of gRPC routes.
    pub grpc: bool,
}

impl RouteLabels<'_> {
    pub(super) fn text(&self) -> String {
        let mut text = Text::new();
        text.reference("parent", self.parent).reference("route", self.route).take()
    }
}

/// Of copies of requests.
#[derive(Clone, Copy, Debug)]
pub struct MirrorLabels<'a> {
    /// The route.
    pub route: &'a Meta,
    /// The service that gets the copies.
    pub backend: &'a Meta,
}

impl MirrorLabels<'_> {
    pub(super) fn text(&self) -> String {
        Text::new().reference("route", self.route).reference("backend", self.backend).take()
    }
}

/// Of a balancer.
#[derive(Clone, Copy, Debug)]
pub struct BackendLabels<'a> {
    /// The service that the client addressed, where that is known.
    pub parent: Option<&'a Meta>,
    /// The service that is balanced.
    pub backend: &'a Meta,
    /// True: the families are those of TCP balancers.
    pub tcp: bool,
}

impl BackendLabels<'_> {
    pub(super) fn text(&self) -> String {
        let mut text = Text::new();
        if let Some(parent) = self.parent {
            text.reference("parent", parent);
        }
        text.reference("backend", self.backend).take()
    }
}

/// `key="value",...`, escaped as the text format demands.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    pub(super) fn new() -> Self {
        Text(String::new())
    }

    pub(super) fn pair(&mut self, key: &str, value: &str) -> &mut Self {
        self.part("", key, value)
    }

    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.0)
    }

    /// The key becomes a legal label name; values are cut where nobody reads on.
    fn part(&mut self, prefix: &str, key: &str, value: &str) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(prefix);
        self.0.push_str(&legal(key));
        self.0.push_str("=\"");
        for c in value.chars().take(LONGEST_VALUE) {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }

    fn target(&mut self, target: Option<SocketAddr>) -> &mut Self {
        let Some(target) = target else { return self };
        self.pair("target_addr", &target.to_string()).pair("target_ip", &target.ip().to_string());
        self.pair("target_port", itoa::Buffer::new().format(target.port()))
    }

    fn tls(&mut self, direction: Direction, tls: TlsLabel<'_>) -> &mut Self {
        let id = match direction {
            Direction::Inbound => "client_id",
            Direction::Outbound => "server_id",
        };
        match tls {
            TlsLabel::Mesh(identity) => self.pair("tls", "true").pair(id, identity.map_or("", Identity::as_str)),
            TlsLabel::Opaque => self.pair("tls", "opaque"),
            TlsLabel::None(reason) => self.pair("tls", "no_identity").pair("no_tls_reason", reason),
            TlsLabel::Disabled => self.pair("tls", "disabled"),
        }
    }

    fn dst(&mut self, labels: Option<&Labels>) -> &mut Self {
        let mut before = String::new();
        for (key, value) in labels.into_iter().flatten() {
            // Two keys may become the same label (`a.b`, `a_b`); twice would make the whole scrape invalid. They need
            // not be neighbours, so that all of the text is looked at: a quote inside of a value is escaped.
            let _ = write!(before, ",dst_{}=\"", legal(key));
            if !self.0.contains(&before) {
                self.part("dst_", key, value);
            }
            before.clear();
        }
        self
    }

    /// `PREFIX_group`, `PREFIX_kind`, `PREFIX_name`.
    fn object(&mut self, prefix: &str, meta: Option<&Meta>) -> &mut Self {
        let Some(meta) = meta else { return self };
        let (group, kind) = group_and_kind(meta);
        let mut key = String::with_capacity(prefix.len() + 1);
        let _ = write!(key, "{prefix}_");
        self.part(&key, "group", group).part(&key, "kind", kind).part(&key, "name", meta.name())
    }

    /// The same with `_namespace`, `_port` and `_section_name`.
    fn reference(&mut self, prefix: &str, meta: &Meta) -> &mut Self {
        let key = format!("{prefix}_");
        let (group, kind) = group_and_kind(meta);
        let (namespace, section, port) = match meta {
            Meta::Default(_) => ("", "", 0),
            Meta::Resource { namespace, section, port, .. } => (namespace.as_str(), section.as_str(), *port),
        };
        let mut buffer = itoa::Buffer::new();
        let port = if port == 0 { "" } else { buffer.format(port) };
        self.part(&key, "group", group).part(&key, "kind", kind).part(&key, "namespace", namespace);
        self.part(&key, "name", meta.name()).part(&key, "port", port).part(&key, "section_name", section)
    }
}

/// A label name of `key`: letters, digits and underscores.
fn legal(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// Longer than any name of Kubernetes or DNS.
const LONGEST_VALUE: usize = 512;

fn group_and_kind(meta: &Meta) -> (&str, &str) {
    match meta {
        Meta::Default(_) => ("", "default"),
        Meta::Resource { group, kind, .. } => (group, kind),
    }
}
