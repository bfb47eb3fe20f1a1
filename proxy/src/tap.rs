//! Live subscriptions to requests: the server side of `linkerd2-proxy-api`'s `Tap`.
//!
//! Sessions are added and removed by the control thread; data threads look at one flag per request ([`Taps::is_active`])
//! and, only while somebody taps, at the sessions. Events cross in bounded queues; what does not fit is dropped and
//! counted. Only clients on this host are served, for a pod through a port-forward: there is no TLS on this port, and
//! what passes through a proxy is nobody's business but that of who may enter its network namespace.
//! Every request that fails or is watched has a name and is remembered for a while ([`journal`]).
//!
//! **Invariant:** a tap never delays or fails a request, and its memory is bounded whoever reads it however slowly.

pub mod journal;
mod matcher;
#[cfg(test)]
mod tests;

use crate::metrics::{Counter, Direction, TlsLabel};
use crate::policy::limit::RateLimiter;
use arc_swap::ArcSwap;
use gossamer_api::authorization::RateLimit;
use gossamer_api::defaults::{TAP_QUEUE, TAP_SESSIONS};
use gossamer_api::endpoint::Labels;
use gossamer_api::keys::HEADER_PROXY_ERROR;
use gossamer_api::process::grpc::PeerIdentity;
use gossamer_api::request_id::RequestId;
use gossamer_api::wire::mesh::requests_server::RequestsServer;
use gossamer_engine::{Headers, RequestHead, ResponseHead, Version};
use journal::Journal;
use linkerd2_proxy_api::http_types;
use linkerd2_proxy_api::tap as api;
use linkerd2_proxy_api::tap::tap_event::http::{Event, RequestInit, ResponseEnd, ResponseInit, StreamId};
use linkerd2_proxy_api::tap::tap_server::{Tap, TapServer};
use matcher::Match;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// Requests that a session sees per second at most; a client may ask for fewer or more in the metadata [`MAX_RPS`].
/// Source: `linkerd viz tap --max-rps`.
pub const DEFAULT_MAX_RPS: u32 = 100;
/// Metadata of `Observe` with the client's own bound.
pub const MAX_RPS: &str = "max-rps";
/// Bytes of header fields in one event; further fields are left out. Names and values in full, or not at all.
const HEADER_BYTES: usize = 8 * 1024;
/// Events queued per session when they carry headers, so that a reader who stands still costs 2 MiB.
const QUEUE_WITH_HEADERS: usize = 256;
/// Bytes of an `ObserveRequest`.
const REQUEST_BYTES: usize = 64 * 1024;
/// The label of the destination that has the reason code.
pub const ERROR_LABEL: &str = "error";
/// RST_STREAM code for what was given up.
const CANCEL: u32 = 8;

/// All sessions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Taps(Arc<Sessions>);

#[derive(Debug)]
struct Sessions {
    /// True while there is a session: all that a request looks at otherwise.
    active: AtomicBool,
    sessions: ArcSwap<Vec<Arc<Session>>>,
    /// Held while the two above change together.
    change: Mutex<()>,
    next: AtomicU32,
    dropped: Arc<Counter>,
    journal: Journal,
}

#[derive(Debug)]
struct Session {
    id: u32,
    wanted: Match,
    headers: bool,
    limit: u64,
    rate: RateLimiter,
    seen: AtomicU64,
    events: mpsc::Sender<api::TapEvent>,
}

/// What is known about a request once it is clear where it goes.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Its head.
    pub head: &'a RequestHead,
    /// Which side of the proxy.
    pub direction: Direction,
    /// The client.
    pub source: SocketAddr,
    /// The client's TLS (inbound: its identity).
    pub source_tls: TlsLabel<'a>,
    /// The endpoint (outbound) or the workload's port (inbound).
    pub destination: Option<SocketAddr>,
    /// The endpoint's TLS (outbound: its identity).
    pub destination_tls: TlsLabel<'a>,
    /// Of the endpoint, or of the inbound server.
    pub destination_labels: Option<&'a Labels>,
    /// Of the route.
    pub route_labels: Option<&'a Labels>,
}

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Completely.
    Complete,
    /// With this gRPC status.
    Grpc(u32),
    /// By a reset with this HTTP/2 code.
    Reset(u32),
}

/// A request that somebody watches. Dropped before its end, it is reported as cancelled.
#[derive(Debug)]
pub struct Tapped {
    /// Its name, the same for all who watch.
    pub id: RequestId,
    watchers: Vec<Arc<Session>>,
    base: api::TapEvent,
    requested: Instant,
    responded: Option<Instant>,
    dropped: Arc<Counter>,
    ended: bool,
}

impl Taps {
    /// Nobody watches. `dropped` counts events that did not fit.
    pub fn new(dropped: Arc<Counter>) -> Self {
        Taps(Arc::new(Sessions {
            active: AtomicBool::new(false),
            sessions: ArcSwap::default(),
            change: Mutex::new(()),
            next: AtomicU32::new(1),
            dropped,
            journal: Journal::new(),
        }))
    }

    /// True while somebody watches: one relaxed load.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.0.active.load(Ordering::Relaxed)
    }

    /// Reports a request to those who want it; `None` when nobody does.
    #[inline]
    pub fn request(&self, observed: &Observed<'_>, now: Instant) -> Option<Tapped> {
        if self.is_active() { self.observe(observed, now) } else { None }
    }

    #[cold]
    fn observe(&self, observed: &Observed<'_>, now: Instant) -> Option<Tapped> {
        let sessions = self.0.sessions.load();
        let mut tapped: Option<Tapped> = None;
        for session in sessions.iter().filter(|session| session.wanted.matches(observed)) {
            if session.rate.check(None, now).is_err() {
                continue;
            }
            let seen = session.seen.fetch_add(1, Ordering::Relaxed);
            if seen + 1 >= session.limit {
                // The last one: the stream ends when what it watches has ended.
                self.0.remove(session.id);
            }
            if seen >= session.limit {
                continue;
            }
            let tapped = tapped.get_or_insert_with(|| Tapped {
                id: self.journal().name(),
                watchers: Vec::new(),
                base: base(observed),
                requested: now,
                responded: None,
                dropped: self.0.dropped.clone(),
                ended: false,
            });
            let event = Event::RequestInit(request_init(observed, tapped.id, session.headers));
            // Whoever missed the beginning is not told the rest.
            if session.send(&tapped.base, event, &tapped.dropped) {
                tapped.watchers.push(session.clone());
            }
        }
        tapped.filter(|tapped| !tapped.watchers.is_empty())
    }

    /// The requests that are remembered.
    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// The gRPC services, for the control thread; serve them with `api::process::grpc`, which says who the client is.
    pub fn routes(&self) -> tonic::service::Routes {
        let tap = TapServer::new(TapService(self.clone())).max_decoding_message_size(REQUEST_BYTES);
        let requests = RequestsServer::new(TapService(self.clone())).max_decoding_message_size(REQUEST_BYTES);
        tonic::service::Routes::new(tap).add_service(requests)
    }

    /// Starts a session; it ends when the events are dropped.
    fn start(&self, wanted: Match, headers: bool, limit: u32, max_rps: u32) -> Result<Events, Status> {
        let (events, receive) = mpsc::channel(if headers { QUEUE_WITH_HEADERS } else { TAP_QUEUE });
        let rate = RateLimit { meta: None, total: Some(max_rps), identity: None, overrides: Vec::new() };
        let session = Arc::new(Session {
            id: self.0.next.fetch_add(1, Ordering::Relaxed),
            wanted,
            headers,
            limit: limit.into(),
            rate: RateLimiter::new(&rate, Instant::now()),
            seen: AtomicU64::new(0),
            events,
        });
        let id = session.id;
        if !self.0.add(session) {
            return Err(Status::resource_exhausted(format!("{TAP_SESSIONS} taps are running already")));
        }
        Ok(Events { receive, sessions: self.0.clone(), id })
    }
}

impl Sessions {
    fn add(&self, session: Arc<Session>) -> bool {
        self.change(|sessions| {
            let room = sessions.len() < TAP_SESSIONS;
            if room {
                sessions.push(session);
            }
            room
        })
    }

    fn remove(&self, id: u32) {
        self.change(|sessions| sessions.retain(|session| session.id != id));
    }

    /// Rare: when a session starts, ends or reaches its limit.
    fn change<T>(&self, change: impl FnOnce(&mut Vec<Arc<Session>>) -> T) -> T {
        let _alone = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sessions = Vec::clone(&self.sessions.load());
        let result = change(&mut sessions);
        self.active.store(!sessions.is_empty(), Ordering::Relaxed);
        self.sessions.store(Arc::new(sessions));
        result
    }
}

impl Tapped {
    /// The response's head came.
    pub fn response(&mut self, head: &ResponseHead, now: Instant) {
        self.responded = Some(now);
        let since = now.saturating_duration_since(self.requested);
        // A proxy's answer, ours or that of the other end: the reason is a label, for those who don't want headers.
        if let Some(said) = head.headers.get_str(HEADER_PROXY_ERROR) {
            self.failed(said.split(':').next().unwrap_or(said));
        }
        for watcher in &self.watchers {
            let status = (head.version == Version::Http2).then(|| (":status", head.status.to_string()));
            let event = Event::ResponseInit(ResponseInit {
                id: Some(stream_id(self.id)),
                since_request_init: duration(since),
                http_status: head.status.into(),
                headers: watcher.headers.then(|| fields(status.iter(), &head.headers)),
            });
            watcher.send(&self.base, event, &self.dropped);
        }
    }

    /// The reason code, told with all that follows.
    pub fn failed(&mut self, reason: &str) {
        if let Some(meta) = &mut self.base.destination_meta {
            meta.labels.insert(ERROR_LABEL.to_string(), reason.to_string());
        }
    }

    /// The response ended after so many bytes of body.
    pub fn end(mut self, end: End, bytes: u64, trailers: Option<&Headers>, now: Instant) {
        self.finish(end, bytes, trailers, now);
    }

    fn finish(&mut self, end: End, bytes: u64, trailers: Option<&Headers>, now: Instant) {
        self.ended = true;
        let end = match end {
            End::Complete => None,
            End::Grpc(code) => Some(api::eos::End::GrpcStatusCode(code)),
            End::Reset(code) => Some(api::eos::End::ResetErrorCode(code)),
        };
        for watcher in &self.watchers {
            let event = Event::ResponseEnd(ResponseEnd {
                id: Some(stream_id(self.id)),
                since_request_init: duration(now.saturating_duration_since(self.requested)),
                since_response_init: self.responded.and_then(|at| duration(now.saturating_duration_since(at))),
                response_bytes: bytes,
                eos: Some(api::Eos { end }),
                trailers: trailers.filter(|_| watcher.headers).map(|trailers| fields([].iter(), trailers)),
            });
            watcher.send(&self.base, event, &self.dropped);
        }
    }
}

impl Drop for Tapped {
    fn drop(&mut self) {
        if !self.ended && !self.watchers.is_empty() {
            self.finish(End::Reset(CANCEL), 0, None, Instant::now());
        }
    }
}

fn stream_id(id: RequestId) -> StreamId {
    StreamId { base: id.base, stream: id.stream }
}

impl Session {
    fn send(&self, base: &api::TapEvent, event: Event, dropped: &Counter) -> bool {
        let http = api::tap_event::Http { event: Some(event) };
        let event = api::TapEvent { event: Some(api::tap_event::Event::Http(http)), ..base.clone() };
        let sent = self.events.try_send(event);
        if let Err(mpsc::error::TrySendError::Full(_)) = sent {
            dropped.inc();
        }
        sent.is_ok()
    }
}

/// What all events of a request have in common.
fn base(observed: &Observed<'_>) -> api::TapEvent {
    use api::tap_event::{EndpointMeta, ProxyDirection, RouteMeta};
    let copy = |labels: Option<&Labels>| labels.into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    let mut source = EndpointMeta::default();
    let mut destination = EndpointMeta { labels: copy(observed.destination_labels) };
    let tls = |meta: &mut EndpointMeta, tls: TlsLabel<'_>, key: &str| {
        let text = match tls {
            TlsLabel::Mesh(_) => "true",
            TlsLabel::Opaque => "passthru",
            TlsLabel::None(reason) => reason,
            TlsLabel::Disabled => "disabled",
        };
        meta.labels.insert("tls".to_string(), text.to_string());
        if let TlsLabel::Mesh(Some(identity)) = tls {
            meta.labels.insert(key.to_string(), identity.to_string());
        }
    };
    tls(&mut source, observed.source_tls, "client_id");
    tls(&mut destination, observed.destination_tls, "server_id");
    let direction = match observed.direction {
        Direction::Inbound => ProxyDirection::Inbound,
        Direction::Outbound => ProxyDirection::Outbound,
    };
    api::TapEvent {
        source: Some(observed.source.into()),
        source_meta: Some(source),
        route_meta: observed.route_labels.map(|labels| RouteMeta { labels: copy(Some(labels)) }),
        destination: observed.destination.map(Into::into),
        destination_meta: Some(destination),
        proxy_direction: direction.into(),
        event: None,
    }
}

/// Without the query, which may hold what nobody should see.
fn request_init(observed: &Observed<'_>, id: RequestId, headers: bool) -> RequestInit {
    let head = observed.head;
    let authority = head.authority().unwrap_or_default();
    let pseudo = || {
        let http2 = head.version == Version::Http2;
        let all = [
            (":method", head.method.as_str().to_string()),
            (":scheme", head.scheme.as_str().to_string()),
            (":authority", authority.to_string()),
            (":path", head.path_only().to_string()),
        ];
        all.into_iter().filter(|_| http2).collect::<Vec<_>>()
    };
    RequestInit {
        id: Some(stream_id(id)),
        method: Some(head.method.clone().into()),
        scheme: Some(http_types::Scheme::from(head.scheme.as_str())),
        authority: authority.to_string(),
        path: head.path_only().to_string(),
        headers: headers.then(|| fields(pseudo().iter(), &head.headers)),
    }
}

fn fields<'a>(pseudo: impl Iterator<Item = &'a (&'static str, String)>, headers: &Headers) -> http_types::Headers {
    use http_types::headers::Header;
    let mut left = HEADER_BYTES;
    let pseudo = pseudo.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let mut all = Vec::new();
    for (name, value) in pseudo.chain(headers.iter()) {
        let size = name.len() + value.len();
        if size <= left {
            left -= size;
            all.push(Header { name: String::from_utf8_lossy(name).into_owned(), value: value.to_vec() });
        }
    }
    http_types::Headers { headers: all }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// `Tap` of `linkerd2-proxy-api`.
#[derive(Clone, Debug)]
pub struct TapService(Taps);

/// The events of a session, which ends when they are dropped.
#[derive(Debug)]
pub struct Events {
    receive: mpsc::Receiver<api::TapEvent>,
    sessions: Arc<Sessions>,
    id: u32,
}

impl Stream for Events {
    type Item = Result<api::TapEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receive.poll_recv(context).map(|event| event.map(Ok))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.sessions.remove(self.id);
    }
}

/// True for loopback and Unix sockets.
fn may_tap(peer: &PeerIdentity) -> bool {
    peer.address.is_none_or(|address| address.ip().to_canonical().is_loopback())
}

#[tonic::async_trait]
impl Tap for TapService {
    type ObserveStream = Events;

    async fn observe(&self, request: Request<api::ObserveRequest>) -> Result<Response<Events>, Status> {
        if !request.extensions().get::<PeerIdentity>().is_some_and(may_tap) {
            return Err(Status::permission_denied(
                "taps are only served to this host (for a pod: through a port-forward)",
            ));
        }
        let max_rps = match request.metadata().get(MAX_RPS) {
            None => DEFAULT_MAX_RPS,
            Some(value) => value
                .to_str()
                .ok()
                .and_then(|value| value.parse().ok())
                .filter(|rps| *rps > 0)
                .ok_or_else(|| Status::invalid_argument(format!("{MAX_RPS} must be a positive number")))?,
        };
        let request = request.into_inner();
        if request.limit == 0 {
            return Err(Status::invalid_argument("limit must be positive"));
        }
        let wanted = Match::new(request.r#match).map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        let headers = request.extract.is_some_and(|extract| {
            use api::observe_request::extract::{Extract, http};
            matches!(&extract.extract, Some(Extract::Http(http)) if matches!(http.extract, Some(http::Extract::Headers(_))))
        });
        let events = self.0.start(wanted, headers, request.limit, max_rps)?;
        tracing::info!(id = events.id, limit = request.limit, max_rps, headers, "tap started");
        Ok(Response::new(events))
    }
}
