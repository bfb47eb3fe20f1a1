//! Labels, turned into text once per handle. Keys are Linkerd's.
//!
//! Whoever fills them in sees to it that clients cannot choose values at will: an authority is one that discovery knows.

use gossamer_api::endpoint::Labels as EndpointLabels;
use gossamer_api::policy::Meta;
use gossamer_api::workload::Identity;
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

/// Labels of a handle: `key="value",...`, escaped as the text format demands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(String);

impl Labels {
    /// `direction`: `inbound` or `outbound`.
    pub fn new(direction: &str) -> Self {
        let mut labels = Labels::none();
        labels.add("direction", direction);
        labels
    }

    /// None at all.
    pub fn none() -> Self {
        Labels(String::new())
    }

    /// One more. The key becomes a legal label name, and a second of the same name is left out: either would make the
    /// whole scrape invalid. Values are cut where nobody reads on.
    pub fn add(&mut self, key: &str, value: &str) {
        self.part("", key, value);
    }

    /// `target_addr`, `target_ip`, `target_port`.
    pub fn target(&mut self, target: SocketAddr) {
        self.add("target_addr", &target.to_string());
        self.add("target_ip", &target.ip().to_string());
        self.add("target_port", itoa::Buffer::new().format(target.port()));
    }

    /// `tls` with `client_id`, `server_id` or `no_tls_reason`.
    pub fn tls(&mut self, direction: Direction, tls: TlsLabel<'_>) {
        let id = match direction {
            Direction::Inbound => "client_id",
            Direction::Outbound => "server_id",
        };
        match tls {
            TlsLabel::Mesh(identity) => {
                self.add("tls", "true");
                self.add(id, identity.map_or("", Identity::as_str));
            }
            TlsLabel::Opaque => self.add("tls", "opaque"),
            TlsLabel::None(reason) => {
                self.add("tls", "no_identity");
                self.add("no_tls_reason", reason);
            }
            TlsLabel::Disabled => self.add("tls", "disabled"),
        }
    }

    /// `dst_*`, the labels of an endpoint.
    pub fn dst(&mut self, labels: &EndpointLabels) {
        for (key, value) in labels {
            self.part("dst_", key, value);
        }
    }

    /// `PREFIX_group`, `PREFIX_kind`, `PREFIX_name`: the inbound objects `srv`, `route`, `authz`.
    pub fn object(&mut self, prefix: &str, meta: &Meta) {
        let (group, kind) = group_and_kind(meta);
        let prefix = format!("{prefix}_");
        self.part(&prefix, "group", group);
        self.part(&prefix, "kind", kind);
        self.part(&prefix, "name", meta.name());
    }

    /// The same with `_namespace`, `_port` and `_section_name`: the outbound objects `parent`, `route`, `backend`.
    pub fn reference(&mut self, prefix: &str, meta: &Meta) {
        let (namespace, section, port) = match meta {
            Meta::Default(_) => ("", "", 0),
            Meta::Resource { namespace, section, port, .. } => (namespace.as_str(), section.as_str(), *port),
        };
        let mut buffer = itoa::Buffer::new();
        self.object(prefix, meta);
        let prefix = format!("{prefix}_");
        self.part(&prefix, "namespace", namespace);
        self.part(&prefix, "port", if port == 0 { "" } else { buffer.format(port) });
        self.part(&prefix, "section_name", section);
    }

    /// The text without braces.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn part(&mut self, prefix: &str, key: &str, value: &str) {
        let key = legal(&format!("{prefix}{key}"));
        // A quote inside of a value is escaped, so this is found nowhere else.
        let start = format!("{key}=\"");
        if self.0.starts_with(&start) || self.0.contains(&format!(",{start}")) {
            return;
        }
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&start);
        for c in value.chars().take(LONGEST_VALUE) {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }
}

/// A label name of `key`: letters, digits and underscores.
fn legal(key: &str) -> String {
    let mut legal: String = key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if legal.is_empty() || legal.starts_with(|c: char| c.is_ascii_digit()) {
        legal.insert(0, '_');
    }
    legal
}

/// Longer than any name of Kubernetes or DNS.
const LONGEST_VALUE: usize = 512;

fn group_and_kind(meta: &Meta) -> (&str, &str) {
    match meta {
        Meta::Default(_) => ("", "default"),
        Meta::Resource { group, kind, .. } => (group, kind),
    }
}
