//! Taps proxies: asks each for its requests as they happen, merges what they say. The other end is `proxy/src/tap.rs`,
//! or a linkerd2-proxy.

use crate::demo::app;
use crate::error::{CommandError, Result, causes};
use crate::registry;
use futures_util::stream::{SelectAll, select_all};
use futures_util::{StreamExt, future};
use gossamer_api::wire::mesh::WorkloadInfo;
use linkerd2_proxy_api::http_types::{HttpMethod, Scheme, http_method, scheme};
use linkerd2_proxy_api::net::{TcpAddress, ip_address::Ip};
use linkerd2_proxy_api::tap::observe_request::r#match::http::string_match;
use linkerd2_proxy_api::tap::observe_request::r#match::{self, Http, Seq, http};
use linkerd2_proxy_api::tap::observe_request::{Extract, Match, extract};
use linkerd2_proxy_api::tap::tap_client::TapClient;
use linkerd2_proxy_api::tap::{ObserveRequest, TapEvent};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use tokio_stream::Stream;

/// Which requests.
#[derive(clap::Args, Clone, Debug)]
pub struct Filter {
    /// Only to this service
    #[arg(long, value_name = "SERVICE")]
    pub to: Option<String>,
    /// Only this method
    #[arg(long)]
    pub method: Option<String>,
    /// Only paths that begin so
    #[arg(long)]
    pub path: Option<String>,
    /// Only this authority
    #[arg(long)]
    pub authority: Option<String>,
    /// Only this scheme
    #[arg(long)]
    pub scheme: Option<String>,
    /// At most this many requests per second and proxy
    #[arg(long, default_value_t = 100)]
    pub max_rps: u32,
}

/// An event and the index of the workload that it came from.
pub type Event = (usize, TapEvent);
type Events = Pin<Box<dyn Stream<Item = Event> + Send>>;

/// Opens a tap on every workload's proxy. The error says why none could be opened.
pub async fn open(workloads: &[WorkloadInfo], filter: &Filter, headers: bool) -> Result<SelectAll<Events>> {
    let request = filter.request(headers);
    let opened = future::join_all(workloads.iter().enumerate().filter(|(_, w)| w.meshed).map(|(index, workload)| {
        let mut request = tonic::Request::new(request.clone());
        let max = filter.max_rps;
        async move {
            request.metadata_mut().insert(gossamer_proxy::tap::MAX_RPS, max.into());
            let channel = registry::unix_channel(workload.tap.clone().into()).await;
            let channel = channel.map_err(|error| format!("{}: {}", workload.replica, causes(&error)))?;
            let answer = TapClient::new(channel).observe(request).await;
            let stream = answer.map_err(|status| format!("{}: {}", workload.replica, status.message()))?.into_inner();
            let events = stream.filter_map(|event| future::ready(event.ok())).map(move |event| (index, event));
            Ok::<Events, String>(events.boxed())
        }
    }))
    .await;
    let mut why = String::from("no workload has a proxy");
    let mut streams = Vec::new();
    for one in opened {
        match one {
            Ok(stream) => streams.push(stream),
            Err(error) => why = error,
        }
    }
    if streams.is_empty() {
        return Err(CommandError::failed(format!("nothing can be tapped: {why}")));
    }
    Ok(select_all(streams))
}

impl Filter {
    fn request(&self, headers: bool) -> ObserveRequest {
        let http = |one| Match { r#match: Some(r#match::Match::Http(Http { r#match: Some(one) })) };
        let text = |one| http::StringMatch { r#match: Some(one) };
        let exact = |text_: &String| text(string_match::Match::Exact(text_.clone()));
        let mut matches = Vec::new();
        if let Some(service) = &self.to {
            let (name, namespace) = service.split_once('.').unwrap_or((service, ""));
            let label = |key: &str, value: &str| {
                let label = r#match::Label { key: key.into(), value: value.into() };
                Match { r#match: Some(r#match::Match::DestinationLabel(label)) }
            };
            matches.push(label("service", name));
            matches.extend((!namespace.is_empty()).then(|| label("namespace", namespace)));
        }
        matches.extend(self.method.as_ref().map(|m| http(http::Match::Method(method_of(m)))));
        matches.extend(self.authority.as_ref().map(|a| http(http::Match::Authority(exact(a)))));
        let prefix = |path: &String| text(string_match::Match::Prefix(path.clone()));
        matches.extend(self.path.as_ref().map(|path| http(http::Match::Path(prefix(path)))));
        matches.extend(self.scheme.as_ref().map(|s| http(http::Match::Scheme(scheme_of(s)))));
        let extract = extract::Http { extract: Some(extract::http::Extract::Headers(Default::default())) };
        ObserveRequest {
            limit: u32::MAX,
            r#match: Some(Match { r#match: Some(r#match::Match::All(Seq { matches })) }),
            extract: headers.then_some(Extract { extract: Some(extract::Extract::Http(extract)) }),
        }
    }
}

fn method_of(name: &str) -> HttpMethod {
    let name = name.to_ascii_uppercase();
    let registered = http_method::Registered::from_str_name(&name);
    HttpMethod {
        r#type: Some(match registered {
            Some(known) => http_method::Type::Registered(known as i32),
            None => http_method::Type::Unregistered(name),
        }),
    }
}

fn scheme_of(name: &str) -> Scheme {
    let registered = scheme::Registered::from_str_name(&name.to_ascii_uppercase());
    Scheme {
        r#type: Some(match registered {
            Some(known) => scheme::Type::Registered(known as i32),
            None => scheme::Type::Unregistered(name.into()),
        }),
    }
}

/// A method's name.
pub fn method_name(method: &Option<HttpMethod>) -> String {
    match method.as_ref().and_then(|m| m.r#type.as_ref()) {
        Some(http_method::Type::Registered(code)) => {
            http_method::Registered::try_from(*code).map_or("?", |known| known.as_str_name()).to_string()
        }
        Some(http_method::Type::Unregistered(name)) => name.clone(),
        None => "?".into(),
    }
}

/// An event's end, if it says so.
pub fn address(address: &Option<TcpAddress>) -> Option<SocketAddr> {
    let address = address.as_ref()?;
    let ip = match address.ip.as_ref()?.ip.as_ref()? {
        Ip::Ipv4(bits) => IpAddr::V4(Ipv4Addr::from_bits(*bits)),
        Ip::Ipv6(ip) => IpAddr::V6(Ipv6Addr::from_bits(u128::from(ip.first) << 64 | u128::from(ip.last))),
    };
    Some(SocketAddr::new(ip, address.port as u16))
}

/// A duration of the API in microseconds.
pub fn micros(duration: &Option<prost_types::Duration>) -> u64 {
    duration.map_or(0, |d| d.seconds.max(0) as u64 * 1_000_000 + d.nanos.max(0) as u64 / 1000)
}

/// `--duration` of the commands that tap.
pub fn limit(text: &str) -> Result<std::time::Duration, String> {
    app::duration(text)
}
