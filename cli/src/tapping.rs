//! Taps proxies: asks each for its requests as they happen, merges what they say. The other end is `proxy/src/tap.rs`,
//! or a linkerd2-proxy.

use crate::demo::app;
use crate::error::{CommandError, Result, causes};
use crate::fan;
use crate::place::{Io, Place, Port, Scope, Workload};
use crate::resource::{self, Resource};
use futures_util::stream::{SelectAll, select_all};
use futures_util::{StreamExt, future};
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::http_types::{HttpMethod, Scheme, http_method, scheme};
use linkerd2_proxy_api::net::{TcpAddress, ip_address::Ip};
use linkerd2_proxy_api::tap::observe_request::r#match::http::string_match;
use linkerd2_proxy_api::tap::observe_request::r#match::{self, Http, Seq, http, tcp};
use linkerd2_proxy_api::tap::observe_request::{Extract, Match, extract};
use linkerd2_proxy_api::tap::tap_client::TapClient;
use linkerd2_proxy_api::tap::{ObserveRequest, TapEvent};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use tokio_stream::Stream;
use tonic::transport::{Channel, Endpoint};

/// Which requests.
#[derive(clap::Args, Clone, Debug)]
pub struct Filter {
    /// Only to this service or workload: api, api.shop, deploy/api
    #[arg(long, value_name = "RESOURCE")]
    pub to: Option<String>,
    /// The namespace of --to
    #[arg(long, value_name = "NAMESPACE", requires = "to")]
    pub to_namespace: Option<String>,
    /// Only from this workload: web, deploy/web
    #[arg(long, value_name = "RESOURCE")]
    pub from: Option<String>,
    /// The namespace of --from [default: the same]
    #[arg(long, value_name = "NAMESPACE", requires = "from")]
    pub from_namespace: Option<String>,
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

/// Opens a tap on every workload's proxy. Who can't be tapped is told on standard error; the error says why none can.
pub async fn open(
    place: &Place,
    scope: &Scope,
    workloads: &[Workload],
    filter: &Filter,
    headers: bool,
) -> Result<SelectAll<Events>> {
    let sources = filter.sources(place, scope).await?;
    let observe = filter.request(headers)?;
    let meshed: Vec<(usize, &Workload)> = workloads.iter().enumerate().filter(|(_, w)| w.meshed).collect();
    if meshed.is_empty() {
        return Err(place.no_proxy(None));
    }
    fan::allow_connections(meshed.len());
    let opened = fan::out("proxies", &meshed, |_, &(index, workload)| {
        let mut observe = observe.clone();
        if let Some(sources) = &sources {
            restrict(&mut observe, from(sources, workload));
        }
        let mut request = tonic::Request::new(observe);
        async move {
            request.metadata_mut().insert(gossamer_proxy::tap::MAX_RPS, filter.max_rps.into());
            let channel = channel(place.dial(workload, Port::Tap).await?).await.map_err(|error| causes(&error))?;
            let answer = TapClient::new(channel).observe(request).await;
            let stream = answer.map_err(|status| status.message().to_string())?.into_inner();
            let events = stream.filter_map(|event| future::ready(event.ok())).map(move |event| (index, event));
            Ok::<Events, String>(events.boxed())
        }
    })
    .await;
    if opened.iter().all(Result::is_err) {
        let why = opened.iter().find_map(|one| one.as_ref().err().cloned()).unwrap_or_default();
        return Err(CommandError::failed(format!("nothing can be tapped: {why}"))
            .hint("`meshctl check` says whether the proxies answer"));
    }
    fan::warn("proxies", meshed.iter().map(|(_, workload)| workload.full_name()), &opened);
    Ok(select_all(opened.into_iter().flatten()))
}

/// gRPC over a connection that is there. Once it is gone, so is the channel.
pub async fn channel(io: impl Io + 'static) -> Result<Channel, tonic::transport::Error> {
    let io = Arc::new(Mutex::new(Some(io)));
    let connect = tower::service_fn(move |_: ::http::Uri| {
        let taken = io.lock().unwrap_or_else(PoisonError::into_inner).take();
        future::ready(taken.map(TokioIo::new).ok_or_else(|| std::io::Error::other("the connection has ended")))
    });
    // The address is not used.
    Endpoint::from_static("http://mesh").connect_with_connector(connect).await
}

impl Filter {
    /// The clients that `--from` means.
    async fn sources(&self, place: &Place, scope: &Scope) -> Result<Option<Vec<Workload>>> {
        let Some(from) = &self.from else { return Ok(None) };
        let resource = resource::one(from)?;
        let at = self.from_namespace.clone().or_else(|| scope.within(place));
        let everybody = place.everybody(scope).await?;
        let there = |workload: &Workload| {
            resource.kind == "namespace" || at.as_ref().is_none_or(|at| *at == workload.namespace)
        };
        let found: Vec<_> = everybody.iter().filter(|w| resource.means(w) && there(w)).cloned().collect();
        match found.len() {
            0 => Err(place.nothing(&resource, at.as_deref(), &everybody)),
            1..=SOURCES => Ok(Some(found)),
            count => Err(CommandError::usage(format!("--from {from} means {count} workloads"))
                .hint(format!("a proxy takes conditions for {SOURCES} at most"))),
        }
    }

    fn request(&self, headers: bool) -> Result<ObserveRequest> {
        let http = |one| Match { r#match: Some(r#match::Match::Http(Http { r#match: Some(one) })) };
        let text = |one| http::StringMatch { r#match: Some(one) };
        let exact = |text_: &String| text(string_match::Match::Exact(text_.clone()));
        let mut matches = Vec::new();
        if let Some(to) = &self.to {
            let labels = destination(&resource::one(to)?, self.to_namespace.as_deref())?;
            matches.extend(labels.into_iter().map(|(key, value)| {
                let label = r#match::Label { key, value };
                Match { r#match: Some(r#match::Match::DestinationLabel(label)) }
            }));
        }
        matches.extend(self.method.as_ref().map(|m| http(http::Match::Method(method_of(m)))));
        matches.extend(self.authority.as_ref().map(|a| http(http::Match::Authority(exact(a)))));
        let prefix = |path: &String| text(string_match::Match::Prefix(path.clone()));
        matches.extend(self.path.as_ref().map(|path| http(http::Match::Path(prefix(path)))));
        matches.extend(self.scheme.as_ref().map(|s| http(http::Match::Scheme(scheme_of(s)))));
        let extract = extract::Http { extract: Some(extract::http::Extract::Headers(Default::default())) };
        Ok(ObserveRequest {
            limit: u32::MAX,
            r#match: Some(Match { r#match: Some(r#match::Match::All(Seq { matches })) }),
            extract: headers.then_some(Extract { extract: Some(extract::Extract::Http(extract)) }),
        })
    }
}

/// Clients that `--from` may mean: a proxy takes 256 conditions in all, and one may have two addresses.
const SOURCES: usize = 100;

/// Any of the clients' addresses. Those tapped themselves may talk to their own proxy over loopback.
fn from(sources: &[Workload], tapped: &Workload) -> Match {
    let mut addresses: Vec<IpAddr> = sources.iter().flat_map(Workload::addresses).collect();
    let same = |source: &Workload| (&source.namespace, &source.pod) == (&tapped.namespace, &tapped.pod);
    if sources.iter().any(same) {
        addresses.extend([IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]);
    }
    let source = |address: IpAddr| {
        let netmask = tcp::Netmask { ip: Some(address.into()), mask: if address.is_ipv4() { 32 } else { 128 } };
        let tcp = r#match::Tcp { r#match: Some(tcp::Match::Netmask(netmask)) };
        Match { r#match: Some(r#match::Match::Source(tcp)) }
    };
    Match { r#match: Some(r#match::Match::Any(Seq { matches: addresses.into_iter().map(source).collect() })) }
}

/// This as well.
fn restrict(observe: &mut ObserveRequest, to: Match) {
    let both = Seq { matches: observe.r#match.take().into_iter().chain([to]).collect() };
    observe.r#match = Some(Match { r#match: Some(r#match::Match::All(both)) });
}

/// The labels that discovery gives a destination, and that a tap matches.
fn destination(to: &Resource, namespace: Option<&str>) -> Result<Vec<(String, String)>> {
    let kind = if to.kind.is_empty() { "service" } else { to.kind };
    if to.name.is_empty() || matches!(kind, "route" | "cronjob") {
        return Err(CommandError::usage(format!("--to {to}: a service or a workload is needed"))
            .hint("for example --to svc/api or --to deploy/api"));
    }
    // A pod's name may have dots, a service's has none.
    let (name, of_name) = match to.name.split_once('.') {
        Some((name, namespace)) if kind == "service" => (name, Some(namespace)),
        _ => (to.name.as_str(), None),
    };
    let mut labels = vec![(kind.to_string(), name.to_string())];
    if let Some(namespace) = of_name.or(namespace).filter(|_| kind != "namespace") {
        labels.push(("namespace".into(), namespace.into()));
    }
    Ok(labels)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_matched_by_its_addresses_and_its_own_proxy_by_loopback_too() {
        let workload =
            |pod: &str, address: &str| Workload { pod: pod.into(), address: address.into(), ..Workload::default() };
        let (web, api) = (workload("web-1", "10.1.0.1"), workload("api-1", "10.1.0.2"));
        let count = |tapped: &Workload| match from(std::slice::from_ref(&web), tapped).r#match {
            Some(r#match::Match::Any(Seq { matches })) => matches.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((count(&api), count(&web)), (1, 3));
        let mut observe = ObserveRequest::default();
        restrict(&mut observe, from(&[web], &api));
        assert!(matches!(observe.r#match.unwrap().r#match, Some(r#match::Match::All(_))));
    }

    #[test]
    fn a_destination_is_matched_by_the_labels_of_discovery() {
        let labels = |to: &str, namespace| {
            let found = destination(&resource::one(to).unwrap(), namespace).unwrap();
            found.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(labels("api", None), ["service=api"]);
        assert_eq!(labels("api.shop", None), ["service=api", "namespace=shop"]);
        assert_eq!(labels("deploy/api", Some("shop")), ["deployment=api", "namespace=shop"]);
        assert_eq!(labels("ns/shop", None), ["namespace=shop"]);
        assert!(destination(&resource::one("deploy").unwrap(), None).is_err());
    }
}
