//! Which requests a tap wants: `ObserveRequest.Match`, checked and bounded when the session starts.

use super::Observed;
use gossamer_api::endpoint::Labels;
use ipnet::IpNet;
use linkerd2_proxy_api::http_types::{http_method, scheme};
use linkerd2_proxy_api::tap::observe_request as api;
use std::net::{IpAddr, SocketAddr};

/// A condition on a request.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Match {
    All(Vec<Match>),
    Any(Vec<Match>),
    Not(Box<Match>),
    Source(Tcp),
    Destination(Tcp),
    DestinationLabel(String, String),
    RouteLabel(String, String),
    Method(String),
    Scheme(String),
    Authority(Text),
    Path(Text),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tcp {
    Net(IpNet),
    /// Inclusive.
    Ports(u16, u16),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Text {
    Exact(String),
    Prefix(String),
}

/// Why a match is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    #[error("a match lacks a required field")]
    Empty,
    #[error("a port is between 1 and 65535, and a range ends after it begins")]
    Port,
    #[error("a network has an address and a prefix length that fits it")]
    Network,
    #[error("an unknown method")]
    Method,
    #[error("the scheme is http or https")]
    Scheme,
    #[error("a match has at most {MAX_CONDITIONS} conditions")]
    TooMany,
}

/// They are evaluated for every request while the session runs.
const MAX_CONDITIONS: usize = 256;

impl Match {
    /// Checks what a client sent. Its depth is bounded by the decoder (100).
    pub(super) fn new(wanted: Option<api::Match>) -> Result<Self, Invalid> {
        build(wanted, &mut MAX_CONDITIONS.clone())
    }

    pub(super) fn matches(&self, request: &Observed<'_>) -> bool {
        match self {
            Match::All(all) => all.iter().all(|one| one.matches(request)),
            Match::Any(all) => all.iter().any(|one| one.matches(request)),
            Match::Not(one) => !one.matches(request),
            Match::Source(tcp) => tcp.matches(request.source),
            Match::Destination(tcp) => request.destination.is_some_and(|address| tcp.matches(address)),
            Match::DestinationLabel(key, value) => has(request.destination_labels, key, value),
            Match::RouteLabel(key, value) => has(request.route_labels, key, value),
            Match::Method(method) => request.head.method.as_str() == method,
            Match::Scheme(scheme) => request.head.scheme.as_str() == scheme,
            Match::Authority(text) => request.head.authority().is_some_and(|authority| text.matches(authority)),
            Match::Path(text) => text.matches(request.head.path_only()),
        }
    }
}

fn build(wanted: Option<api::Match>, left: &mut usize) -> Result<Match, Invalid> {
    use api::r#match::Match as Api;
    *left = left.checked_sub(1).ok_or(Invalid::TooMany)?;
    // As in linkerd2-proxy, a condition of a kind that this version does not know is left out of a list.
    let mut list = |seq: api::r#match::Seq| -> Result<Vec<_>, Invalid> {
        seq.matches.into_iter().filter(|one| one.r#match.is_some()).map(|one| build(Some(one), left)).collect()
    };
    Ok(match wanted.and_then(|wanted| wanted.r#match).ok_or(Invalid::Empty)? {
        Api::All(seq) => Match::All(list(seq)?),
        Api::Any(seq) => Match::Any(list(seq)?),
        Api::Not(one) => Match::Not(Box::new(build(Some(*one), left)?)),
        Api::Source(tcp) => Match::Source(Tcp::new(tcp)?),
        Api::Destination(tcp) => Match::Destination(Tcp::new(tcp)?),
        Api::DestinationLabel(label) => label_of(label).map(|(key, value)| Match::DestinationLabel(key, value))?,
        Api::RouteLabel(label) => label_of(label).map(|(key, value)| Match::RouteLabel(key, value))?,
        Api::Http(http) => http_of(http)?,
    })
}

fn label_of(label: api::r#match::Label) -> Result<(String, String), Invalid> {
    if label.key.is_empty() || label.value.is_empty() {
        return Err(Invalid::Empty);
    }
    Ok((label.key, label.value))
}

fn http_of(http: api::r#match::Http) -> Result<Match, Invalid> {
    use api::r#match::http::Match as Api;
    Ok(match http.r#match.ok_or(Invalid::Empty)? {
        Api::Scheme(scheme) => match scheme.r#type.ok_or(Invalid::Empty)? {
            scheme::Type::Registered(0) => Match::Scheme("http".to_string()),
            scheme::Type::Registered(1) => Match::Scheme("https".to_string()),
            scheme::Type::Registered(_) => return Err(Invalid::Scheme),
            scheme::Type::Unregistered(name) => Match::Scheme(name.to_ascii_lowercase()),
        },
        Api::Method(method) => Match::Method(match method.r#type.ok_or(Invalid::Empty)? {
            http_method::Type::Registered(code) => {
                let method = http_method::Registered::try_from(code).map_err(|_| Invalid::Method)?;
                method.as_str_name().to_string()
            }
            http_method::Type::Unregistered(name) => name,
        }),
        Api::Authority(text) => Match::Authority(Text::new(text)?),
        Api::Path(text) => Match::Path(Text::new(text)?),
    })
}

impl Text {
    fn new(text: api::r#match::http::StringMatch) -> Result<Self, Invalid> {
        use api::r#match::http::string_match::Match as Api;
        Ok(match text.r#match.ok_or(Invalid::Empty)? {
            Api::Exact(text) => Text::Exact(text),
            Api::Prefix(text) => Text::Prefix(text),
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Text::Exact(exact) => text == exact,
            Text::Prefix(prefix) => text.starts_with(prefix),
        }
    }
}

impl Tcp {
    fn new(tcp: api::r#match::Tcp) -> Result<Self, Invalid> {
        use api::r#match::tcp::Match as Api;
        match tcp.r#match.ok_or(Invalid::Empty)? {
            Api::Netmask(net) => {
                let ip = IpAddr::try_from(net.ip.ok_or(Invalid::Empty)?).map_err(|_| Invalid::Network)?;
                let length = u8::try_from(net.mask).map_err(|_| Invalid::Network)?;
                // Linkerd's clients leave it out for a single address in no case; 0 would be everything by mistake.
                if length == 0 {
                    return Err(Invalid::Network);
                }
                IpNet::new(ip, length).map(Tcp::Net).map_err(|_| Invalid::Network)
            }
            Api::Ports(range) => {
                // One that is not given is the other.
                let min = if range.min == 0 { range.max } else { range.min };
                let max = if range.max == 0 { range.min } else { range.max };
                let port = |port: u32| u16::try_from(port).ok().filter(|port| *port > 0).ok_or(Invalid::Port);
                let (min, max) = (port(min)?, port(max)?);
                if min > max { Err(Invalid::Port) } else { Ok(Tcp::Ports(min, max)) }
            }
        }
    }

    fn matches(&self, address: SocketAddr) -> bool {
        match self {
            Tcp::Net(net) => net.contains(&address.ip().to_canonical()),
            Tcp::Ports(min, max) => (*min..=*max).contains(&address.port()),
        }
    }
}

fn has(labels: Option<&Labels>, key: &str, value: &str) -> bool {
    labels.and_then(|labels| labels.get(key)).is_some_and(|found| found == value)
}
