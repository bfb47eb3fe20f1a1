//! Applications to be meshed, in this process: each listens on an address and serves every connection with a handler.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};

/// Serves a connection.
pub type Handler = Arc<dyn Fn(TcpStream) -> BoxFuture<'static, ()> + Send + Sync>;

/// A handler from an async function.
pub fn handler<F, R>(serve: F) -> Handler
where
    F: Fn(TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |io| Box::pin(serve(io)))
}

/// A listening application. Dropping it closes its listener and its connections.
pub struct App {
    /// Where it listens.
    pub addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl App {
    /// Listens and serves.
    pub async fn start(addr: SocketAddr, handler: Handler) -> App {
        App::on(TcpListener::bind(addr).await.unwrap_or_else(|error| panic!("listen on {addr}: {error}")), handler)
    }

    /// Serves a listener that was made elsewhere.
    pub fn on(listener: TcpListener, handler: Handler) -> App {
        let addr = listener.local_addr().unwrap();
        let accepted = Arc::<AtomicUsize>::default();
        let count = accepted.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((io, _)) = accepted else { continue };
                        let _ = io.set_nodelay(true);
                        count.fetch_add(1, Ordering::Relaxed);
                        connections.spawn(handler(io));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        App { addr, accepted, task }
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Sends back what it gets, and the end of it.
pub fn echo() -> Handler {
    handler(|mut io| async move {
        let (mut read, mut write) = io.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
}

/// Speaks first, then echoes, as MySQL, SMTP or NATS servers do.
pub fn speaks_first(greeting: &'static [u8]) -> Handler {
    handler(move |mut io| async move {
        let _ = io.write_all(greeting).await;
        let (mut read, mut write) = io.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
}

/// Accepts, and closes at once.
pub fn closes() -> Handler {
    handler(|io| async move { drop(io) })
}

/// Keeps what each connection sent, then answers with fixed bytes and closes. An answer without a request to read
/// would race with it, so it is sent after the first bytes that end with `until`.
pub fn script(until: &'static [u8], answer: &'static [u8]) -> (Handler, Heard) {
    let heard = Heard::default();
    let kept = heard.clone();
    let serve = handler(move |mut io| {
        let kept = kept.clone();
        async move {
            let mut got = Vec::new();
            while !got.ends_with(until) {
                match io.read_buf(&mut got).await {
                    Ok(count) if count > 0 => {}
                    _ => break,
                }
            }
            kept.0.lock().unwrap().push(got.clone());
            let _ = io.write_all(answer).await;
            let _ = io.shutdown().await;
            let _ = tokio::io::copy(&mut io, &mut tokio::io::sink()).await;
        }
    });
    (serve, heard)
}

/// What a [`script`] got, one entry per connection.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<Vec<u8>>>>);

impl Heard {
    /// All of it, as text.
    pub fn text(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|got| String::from_utf8_lossy(got).into_owned()).collect()
    }
}

/// A body that may fail, or be streamed.
pub type Body = BoxBody<Bytes, io::Error>;

/// A body of known bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// A body that is sent as the channel's other end says; dropping that without trailers ends it.
pub fn channel() -> (Frames, Body) {
    let (sender, body) = channel_of();
    (Frames(sender), body)
}

fn channel_of() -> (mpsc::Sender<io::Result<Frame<Bytes>>>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(receiver)).boxed())
}

/// Sends a [`channel`]'s body.
pub struct Frames(mpsc::Sender<io::Result<Frame<Bytes>>>);

impl Frames {
    /// Some bytes of it.
    pub async fn data(&self, bytes: impl Into<Bytes>) {
        self.0.send(Ok(Frame::data(bytes.into()))).await.expect("the body is still wanted");
    }

    /// Its trailers.
    pub async fn trailers(&self, trailers: HeaderMap) {
        self.0.send(Ok(Frame::trailers(trailers))).await.expect("the body is still wanted");
    }
}

/// An HTTP application for HTTP/1 and HTTP/2 whose paths say what it does:
///
/// `/echo` the request's body and trailers back, as they come; `/read` the body, once it is there; `/head` its head as text; `/status/N`; `/bytes/N`; `/slow/MS`;
/// `/hang` never; `/flood/N` N chunks of 16 KiB as fast as they are taken; `/fail/N/KEY` 503 for the first N requests with the KEY; `/unavailable/N` the same in
/// gRPC, `/unavailable-late/N` with the status in trailers after a head (later than it where N > 1); `/slow-once/MS`; `/early` 413 without reading; `/drop` breaks the
/// connection; `/cut` breaks it within the body; `/trailers`; `/upgrade` 101 and then an echo, as for CONNECT.
///
/// Every answer says `x-app: NAME`. Requests with a gRPC content type get trailers with `grpc-status`.
#[derive(Clone)]
pub struct Http {
    name: &'static str,
    delay: Duration,
    broken: bool,
    goodbye: Option<usize>,
    streams: u32,
    seen: Arc<Mutex<Vec<Seen>>>,
    failed: Arc<Mutex<HashMap<String, u32>>>,
    given_up: Arc<AtomicUsize>,
    produced: Arc<AtomicUsize>,
}

/// The head of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method.
    pub method: Method,
    /// As in the request line or pseudo headers.
    pub uri: String,
    /// `HTTP/1.1` and so on.
    pub version: String,
    /// All headers.
    pub headers: HeaderMap,
}

/// The HTTP application; see [`Http`].
pub fn http(name: &'static str) -> Http {
    Http {
        name,
        delay: Duration::ZERO,
        broken: false,
        goodbye: None,
        streams: 1000,
        seen: Arc::default(),
        failed: Arc::default(),
        given_up: Arc::default(),
        produced: Arc::default(),
    }
}

impl Http {
    /// As an application.
    pub fn handler(&self) -> Handler {
        let app = self.clone();
        handler(move |io| app.clone().connection(io))
    }

    /// Answers everything this much later.
    pub fn slow(mut self, delay: Duration) -> Http {
        self.delay = delay;
        self
    }

    /// Answers everything with 500.
    pub fn broken(mut self) -> Http {
        self.broken = true;
        self
    }

    /// Says GOAWAY on each connection of HTTP/2 after so many requests.
    pub fn goodbye_after(mut self, requests: usize) -> Http {
        self.goodbye = Some(requests);
        self
    }

    /// Serves so many requests at once on each connection of HTTP/2.
    pub fn streams(mut self, count: u32) -> Http {
        self.streams = count;
        self
    }

    /// How many requests to `/hang` were given up by whoever asked.
    pub fn given_up(&self) -> usize {
        self.given_up.load(Ordering::Relaxed)
    }

    /// How many bytes of `/flood` were taken from it.
    pub fn produced(&self) -> usize {
        self.produced.load(Ordering::Relaxed)
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests so far.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    async fn connection(self, io: TcpStream) {
        let mut start = [0; 3];
        // A client that closes without a word.
        if !matches!(io.peek(&mut start).await, Ok(count) if count > 0) {
            return;
        }
        let (goodbye, streams) = (self.goodbye, self.streams);
        let enough = Arc::new(Notify::new());
        let (here, tell) = (AtomicUsize::new(0), enough.clone());
        let service = service_fn(move |request| {
            if Some(here.fetch_add(1, Ordering::Relaxed) + 1) == goodbye {
                tell.notify_one();
            }
            self.clone().answer(request)
        });
        let result = if start.starts_with(b"PRI") {
            let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new()).max_concurrent_streams(streams).enable_connect_protocol();
            let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), service));
            tokio::select! {
                result = connection.as_mut() => result,
                () = enough.notified() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        } else {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new());
            http.serve_connection(TokioIo::new(io), service).with_upgrades().await
        };
        // Broken connections are part of the tests.
        drop(result);
    }

    async fn answer(self, mut request: Request<Incoming>) -> io::Result<Response<Body>> {
        self.seen.lock().unwrap().push(Seen {
            method: request.method().clone(),
            uri: request.uri().to_string(),
            version: format!("{:?}", request.version()),
            headers: request.headers().clone(),
        });
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let path = if self.broken { "/status/500".into() } else { request.uri().path().to_string() };
        let mut parts = path.trim_start_matches('/').split('/');
        let (first, second) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let number = || second.parse::<u64>().unwrap_or_default();
        let grpc =
            request.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if request.method() == Method::CONNECT || first == "upgrade" {
            return Ok(self.upgrade(&mut request));
        }
        let response = match first {
            "head" => Response::new(full(head(&request))),
            "status" => {
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::from_u16(number() as u16).unwrap_or_default();
                response
            }
            "bytes" => Response::new(full(vec![b'x'; number() as usize])),
            "slow" => {
                tokio::time::sleep(Duration::from_millis(number())).await;
                Response::new(full("slow\n"))
            }
            "hang" => {
                let _guard = GivenUp(self.given_up.clone());
                std::future::pending().await
            }
            "flood" => {
                let (count, produced) = (number(), self.produced.clone());
                let chunks = (0..count).map(move |_| {
                    produced.fetch_add(FLOOD, Ordering::Relaxed);
                    Ok(Frame::data(Bytes::from_static(&[b'f'; FLOOD])))
                });
                Response::new(StreamBody::new(tokio_stream::iter(chunks)).boxed())
            }
            "fail" => {
                let mut failed = self.failed.lock().unwrap();
                let count = failed.entry(path.clone()).or_default();
                *count += 1;
                let mut response = Response::new(full(format!("attempt {count}\n")));
                if u64::from(*count) <= number() {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                response
            }
            "unavailable" if !self.is_over(&path, number()) => {
                let mut response = Response::new(empty());
                response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                response.headers_mut().insert("grpc-status", HeaderValue::from_static("14"));
                response
            }
            "unavailable-late" if !self.is_over(&path, number()) => {
                // The status follows the head by itself, with no content between them.
                let (sender, body) = channel_of();
                let wait = if number() > 1 { Duration::from_millis(50) } else { Duration::ZERO };
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static("14"));
                    let _ = sender.send(Ok(Frame::trailers(trailers))).await;
                });
                let mut response = Response::new(body);
                response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
                response
            }
            "slow-once" => {
                if !self.is_over(&path, 1) {
                    tokio::time::sleep(Duration::from_millis(number())).await;
                }
                Response::new(full("slow\n"))
            }
            "early" => {
                let mut response = Response::new(full("enough\n"));
                *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
                response
            }
            "drop" => return Err(io::ErrorKind::ConnectionAborted.into()),
            "cut" => {
                let (sender, body) = channel_of();
                tokio::spawn(async move {
                    let _ = sender.send(Ok(Frame::data(Bytes::from_static(b"half")))).await;
                    // What was sent is on its way when the connection breaks, not taken back with it.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    let _ = sender.send(Err(io::ErrorKind::ConnectionAborted.into())).await;
                });
                Response::new(body)
            }
            "read" => match request.into_body().collect().await {
                Ok(body) => Response::new(full(body.to_bytes())),
                Err(error) => return Err(io::Error::other(error)),
            },
            "trailers" => {
                let mut trailers = HeaderMap::new();
                trailers.insert("x-checksum", HeaderValue::from_static("42"));
                let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(trailers))];
                let mut response = Response::new(StreamBody::new(tokio_stream::iter(frames)).boxed());
                response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
                response
            }
            _ => echoed(request, grpc),
        };
        let (mut head, body) = response.into_parts();
        head.headers.insert("x-app", HeaderValue::from_static(self.name));
        Ok(Response::from_parts(head, body))
    }

    /// True from the request after the first `count` ones with that path.
    fn is_over(&self, path: &str, count: u64) -> bool {
        let mut failed = self.failed.lock().unwrap();
        let seen = failed.entry(path.to_string()).or_default();
        *seen += 1;
        u64::from(*seen) > count
    }

    fn upgrade(&self, request: &mut Request<Incoming>) -> Response<Body> {
        let upgrade = hyper::upgrade::on(&mut *request);
        tokio::spawn(async move {
            let Ok(io) = upgrade.await else { return };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(io));
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
        let mut response = Response::new(empty());
        if request.method() != Method::CONNECT {
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            let protocol = request.headers().get("upgrade").cloned();
            response.headers_mut().insert("upgrade", protocol.unwrap_or(HeaderValue::from_static("echo")));
        }
        response.headers_mut().insert("x-app", HeaderValue::from_static(self.name));
        response
    }
}

/// Counts a request that nobody waits for any more.
struct GivenUp(Arc<AtomicUsize>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Bytes of one chunk of `/flood`.
pub const FLOOD: usize = 16 * 1024;

fn head(request: &Request<Incoming>) -> String {
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    for (name, value) in request.headers() {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    }
    text
}

/// The body as it comes, its trailers, and for gRPC a status.
fn echoed(request: Request<Incoming>, grpc: bool) -> Response<Body> {
    let kind = request.headers().get("content-type").cloned();
    let body = request.into_body().map_err(io::Error::other);
    let body = match grpc {
        false => body.boxed(),
        true => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            body.with_trailers(async { Some(Ok(trailers)) }).boxed()
        }
    };
    let mut response = Response::new(body);
    if !grpc {
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
    }
    response.headers_mut().extend(kind.map(|kind| (http::header::CONTENT_TYPE, kind)));
    response
}
