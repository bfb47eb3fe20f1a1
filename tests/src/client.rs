//! Who asks: raw bytes ([`Raw`]), and hyper's HTTP/1 and HTTP/2 clients ([`H1`], [`H2`]).

use crate::app::{Body, empty, full};
use crate::expect::within;
use bytes::{Buf, Bytes};
use gossamer_api::process::tls;
use gossamer_proxy::balance::transport::{Header, Session};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A response, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Trailers, or none.
    pub trailers: HeaderMap,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Why the proxy itself answered: the first word of its header.
    pub fn reason(&self) -> &str {
        self.header("l5d-proxy-error").split(':').next().unwrap_or_default()
    }

    /// The gRPC status, from trailers or a trailers-only answer.
    pub fn grpc(&self) -> Option<u16> {
        let status = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"))?;
        status.to_str().ok()?.parse().ok()
    }

    /// Reads a response to its end.
    pub async fn read(response: Response<Incoming>) -> Result<Answer, hyper::Error> {
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body: collected.to_bytes(), trailers })
    }
}

/// An HTTP/1 connection.
pub struct H1(http1::SendRequest<Body>);

impl H1 {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> H1 {
        H1::try_connect(addr).await.unwrap_or_else(|error| panic!("connect to {addr}: {error}"))
    }

    /// Connects, or says why not.
    pub async fn try_connect(addr: SocketAddr) -> io::Result<H1> {
        H1::over(TcpStream::connect(addr).await?).await
    }

    /// Speaks on a connection that was made elsewhere.
    pub async fn over(io: TcpStream) -> io::Result<H1> {
        io.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
        tokio::spawn(connection.with_upgrades());
        Ok(H1(sender))
    }

    /// Sends a request; the response's head.
    pub async fn start(&mut self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        self.0.ready().await?;
        self.0.send_request(request).await
    }

    /// Sends a request; the whole response.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Answer, hyper::Error> {
        within("an answer", async { Answer::read(self.start(request).await?).await }).await
    }

    /// Gets a path.
    pub async fn get(&mut self, host: &str, path: &str) -> Answer {
        self.send(get_request(host, path)).await.unwrap_or_else(|error| panic!("GET {path}: {error:?}"))
    }

    /// True when the server closed.
    pub async fn closed(&mut self) -> bool {
        within("the connection's state", self.0.ready()).await.is_err()
    }
}

/// An HTTP/2 connection with prior knowledge.
#[derive(Clone)]
pub struct H2(http2::SendRequest<Body>);

impl H2 {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> H2 {
        H2::connect_with(addr, |_| {}).await
    }

    /// Connects with other settings.
    pub async fn connect_with(addr: SocketAddr, set: impl FnOnce(&mut http2::Builder<TokioExecutor>)) -> H2 {
        let io = TcpStream::connect(addr).await.unwrap_or_else(|error| panic!("connect to {addr}: {error}"));
        H2::over(io, set).await
    }

    /// Speaks on a connection that was made elsewhere.
    pub async fn over(io: TcpStream, set: impl FnOnce(&mut http2::Builder<TokioExecutor>)) -> H2 {
        io.set_nodelay(true).unwrap();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        set(&mut builder);
        let (sender, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
        tokio::spawn(connection);
        H2(sender)
    }

    /// Sends a request; the response's head.
    pub async fn start(&self, request: Request<Body>) -> Result<Response<Incoming>, hyper::Error> {
        let mut sender = self.0.clone();
        sender.ready().await?;
        sender.send_request(request).await
    }

    /// Sends a request; the whole response.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer, hyper::Error> {
        within("an answer", async { Answer::read(self.start(request).await?).await }).await
    }

    /// Gets a path.
    pub async fn get(&self, authority: &str, path: &str) -> Answer {
        let request = Request::get(format!("http://{authority}{path}")).body(empty()).unwrap();
        self.send(request).await.unwrap_or_else(|error| panic!("GET {path}: {error:?}"))
    }

    /// A unary gRPC call with a message.
    pub async fn grpc(&self, authority: &str, path: &str, message: &[u8]) -> Answer {
        let request = grpc_request(authority, path, full(grpc_frame(message)));
        self.send(request).await.unwrap_or_else(|error| panic!("gRPC {path}: {error:?}"))
    }
}

/// A gRPC request.
pub fn grpc_request(authority: &str, path: &str, body: Body) -> Request<Body> {
    let request = Request::post(format!("http://{authority}{path}"));
    request.header("content-type", "application/grpc").header("te", "trailers").body(body).unwrap()
}

/// A gRPC message with its prefix.
pub fn grpc_frame(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(message);
    frame.into()
}

/// A GET.
pub fn get_request(host: &str, path: &str) -> Request<Body> {
    Request::get(path).header("host", host).body(empty()).unwrap()
}

/// A POST with a body of known length.
pub fn post_request(host: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    Request::post(path).header("host", host).body(full(body)).unwrap()
}

/// Gets a path on a connection of its own.
pub async fn get(addr: SocketAddr, host: &str, path: &str) -> Answer {
    H1::connect(addr).await.get(host, path).await
}

/// The same, or why not.
pub async fn try_get(addr: SocketAddr, host: &str, path: &str) -> io::Result<Answer> {
    let mut client = H1::try_connect(addr).await?;
    client.send(get_request(host, path)).await.map_err(io::Error::other)
}

/// Speaks the mesh's TLS to a proxy as another proxy would: the transport header for a port, then whatever the test
/// writes. Without credentials of its own it shows no certificate.
pub async fn meshed(
    proxy: SocketAddr,
    config: std::sync::Arc<rustls::ClientConfig>,
    name: &gossamer_api::workload::Identity,
    port: u16,
    session: Option<Session>,
) -> io::Result<TlsStream<TcpStream>> {
    let io = TcpStream::connect(proxy).await?;
    let mut io = tls::connect(config, name, io).await?;
    io.write_all(&Header { port, name: None, session }.encode()).await?;
    Ok(io)
}

/// Everything until the other side's end.
pub async fn rest(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    within("the end", io.read_to_end(&mut bytes)).await?;
    Ok(bytes.into())
}

/// A connection whose bytes the test writes itself.
pub struct Raw {
    /// The socket.
    pub io: TcpStream,
    /// Read, and not yet taken.
    pub read: bytes::BytesMut,
}

impl From<TcpStream> for Raw {
    fn from(io: TcpStream) -> Raw {
        Raw { io, read: bytes::BytesMut::new() }
    }
}

impl Raw {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Raw {
        let io = TcpStream::connect(addr).await.unwrap_or_else(|error| panic!("connect to {addr}: {error}"));
        io.set_nodelay(true).unwrap();
        io.into()
    }

    /// Writes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("room to write", self.io.write_all(bytes.as_ref())).await.expect("the connection takes it");
    }

    /// Ends its own direction.
    pub async fn finish(&mut self) {
        self.io.shutdown().await.expect("the connection is open");
    }

    /// Exactly that many bytes.
    pub async fn exactly(&mut self, count: usize) -> Bytes {
        while self.read.len() < count {
            let more = self.more().await.expect("the connection is not broken");
            assert!(more > 0, "the end after {:?}", self.read);
        }
        self.read.split_to(count).freeze()
    }

    /// Everything until the other side's end.
    pub async fn rest(&mut self) -> io::Result<Bytes> {
        while self.more().await? > 0 {}
        Ok(self.read.split().freeze())
    }

    /// A line, without its end.
    pub async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end + 1);
                return String::from_utf8_lossy(&line).trim_end().to_string();
            }
            let more = self.more().await.expect("the connection is not broken");
            assert!(more > 0, "the end after {:?}", self.read);
        }
    }

    /// A response to a request that was not HEAD.
    pub async fn answer(&mut self) -> Answer {
        self.answer_to("GET").await
    }

    /// A response's head: status line's number and headers.
    pub async fn head(&mut self) -> (u16, HeaderMap) {
        let line = self.line().await;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status line: {line:?}"));
        (status, self.fields().await)
    }

    /// A response to a request with this method; interim responses are left out.
    pub async fn answer_to(&mut self, method: &str) -> Answer {
        let (mut status, mut headers) = self.head().await;
        while (100..200).contains(&status) && status != 101 {
            (status, headers) = self.head().await;
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        let mut trailers = HeaderMap::new();
        let tunnel = status == 101 || (method == "CONNECT" && status < 300);
        let body = if method == "HEAD" || status == 204 || status == 304 || tunnel {
            Bytes::new()
        } else if text("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            let mut body = Vec::new();
            loop {
                let line = self.line().await;
                let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16);
                match size.unwrap_or_else(|_| panic!("no chunk size: {line:?}")) {
                    0 => break,
                    size => body.extend_from_slice(&self.exactly(size).await),
                }
                assert_eq!(self.line().await, "", "the end of a chunk");
            }
            trailers = self.fields().await;
            body.into()
        } else if let Some(length) = text("content-length") {
            self.exactly(length.parse().unwrap()).await
        } else {
            self.rest().await.expect("a body until the end")
        };
        Answer { status, headers, body, trailers }
    }

    async fn fields(&mut self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        loop {
            let line = self.line().await;
            if line.is_empty() {
                return headers;
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}"));
            let name: http::HeaderName = name.parse().unwrap_or_else(|_| panic!("no field: {line:?}"));
            headers.append(name, value.trim().parse().unwrap_or_else(|_| panic!("no field: {line:?}")));
        }
    }

    async fn more(&mut self) -> io::Result<usize> {
        within("bytes, or the end", self.io.read_buf(&mut self.read)).await
    }

    /// True when the other side closes, in whatever way, without another byte.
    pub async fn ends(&mut self) -> bool {
        !self.read.has_remaining() && !matches!(self.more().await, Ok(count) if count > 0)
    }
}
