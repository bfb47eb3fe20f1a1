//! gRPC between the processes of the mesh: [`serve`] and [`Connector`].
//!
//! Credentials may change at any time: each new connection takes the newest, on both sides. Without credentials (none
//! yet, or expired) a side that is meant to speak TLS neither accepts nor connects; it never falls back to plaintext.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::Uri;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint};

use super::listen;
use super::stop::Stop;
use super::tls::{self, Anchors, ClientAuth, Credentials};
use crate::defaults;
use crate::workload::Identity;

/// The newest credentials; `None` means fail closed.
pub type CredentialsWatch = watch::Receiver<Option<Arc<Credentials>>>;

/// Who sent a request; in the extensions of each request that [`serve`] hands on.
#[derive(Clone, Debug)]
pub struct PeerIdentity {
    /// Of the verified certificate; `None` without one, and on sockets without TLS.
    pub identity: Option<Identity>,
    /// `None` on a Unix socket.
    pub address: Option<SocketAddr>,
}

/// How a server speaks TLS.
#[derive(Clone)]
pub struct ServerTls {
    /// Its credentials.
    pub credentials: CredentialsWatch,
    /// What it asks of clients.
    pub auth: ClientAuth,
}

/// Serves `routes` on `listener` until `stop`, then lets what is in flight end; `None` is plaintext.
/// Connections are tracked by `stop`, which also bounds how long they may take to end.
pub async fn serve(routes: Routes, listener: TcpListener, tls: Option<ServerTls>, stop: Stop) {
    let routes = routes.prepare();
    listen::accept(listener, MAX_CONNECTIONS, &stop, |io, address| {
        let (routes, tls, stop) = (routes.clone(), tls.clone(), stop.clone());
        async move {
            let result = match tls {
                None => {
                    serve_connection(routes, io, PeerIdentity { identity: None, address: Some(address) }, &stop).await
                }
                Some(tls) => serve_tls(routes, io, address, tls, &stop).await,
            };
            if let Err(error) = result {
                tracing::debug!(client = %address, %error, "connection failed");
            }
        }
    })
    .await;
}

/// The same on a Unix socket, whose file's mode is what protects it.
pub async fn serve_unix(routes: Routes, listener: UnixListener, stop: Stop) {
    let routes = routes.prepare();
    let serve = |(io, _)| {
        let (routes, stop) = (routes.clone(), stop.clone());
        async move {
            let peer = PeerIdentity { identity: None, address: None };
            if let Err(error) = serve_connection(routes, io, peer, &stop).await {
                tracing::debug!(%error, "connection failed");
            }
        }
    };
    let spawn = |connection| {
        stop.spawn(connection);
    };
    listen::each(MAX_UNIX_CONNECTIONS, stop.stopping(), || listener.accept(), serve, spawn).await;
}

async fn serve_tls(
    routes: Routes,
    io: TcpStream,
    address: SocketAddr,
    tls: ServerTls,
    stop: &Stop,
) -> Result<(), tonic::codegen::StdError> {
    let config = usable(&tls.credentials).ok_or("no certificate yet")?.server_config(&[b"h2"], tls.auth);
    let io = tokio::select! {
        io = tls::accept(config, io) => io?,
        () = stop.stopping() => return Ok(()),
    };
    let identity = io.get_ref().1.peer_certificates().and_then(tls::peer_identity);
    serve_connection(routes, io, PeerIdentity { identity, address: Some(address) }, stop).await
}

async fn serve_connection<I>(
    routes: Routes,
    io: I,
    peer: PeerIdentity,
    stop: &Stop,
) -> Result<(), tonic::codegen::StdError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let mut routes = routes.clone();
        // Routes are always ready (axum's router).
        tower::Service::call(&mut routes, request.map(tonic::body::Body::new))
    });
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(defaults::H2_MAX_STREAMS)
        .max_header_list_size(defaults::HEAD_BYTES as u32);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), TowerToHyperService::new(service)));
    tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        () = stop.stopping() => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        result = connection => Ok(result?),
        () = stop.killed() => Ok(()),
    }
}

/// How a client speaks TLS.
#[derive(Clone)]
pub struct ClientTls {
    /// Whom it must reach.
    pub server: Identity,
    /// As whom.
    pub client: ClientIdentity,
}

/// As whom a client connects.
#[derive(Clone)]
pub enum ClientIdentity {
    /// With the newest credentials.
    Credentials(CredentialsWatch),
    /// Without a certificate; the server is verified all the same.
    Anonymous(watch::Receiver<Anchors>),
}

/// Connects to `host:port`: resolves the name anew for each attempt and tries its addresses in turn, then TLS.
/// For [`Endpoint::connect_with_connector_lazy`]; the URI of the endpoint is not looked at.
#[derive(Clone)]
pub struct Connector {
    address: Arc<str>,
    tls: Option<ClientTls>,
}

impl Connector {
    /// `address` is `host:port`; `tls` of `None` is plaintext.
    pub fn new(address: &str, tls: Option<ClientTls>) -> Self {
        Connector { address: address.into(), tls }
    }

    /// A gRPC channel over this connector: connects when first used and again after a failure, with keep-alive.
    /// A failed attempt fails the requests that wait for it; whoever retries waits in between.
    pub fn channel(self) -> Channel {
        // The authority is for logs and `:authority` only; an address with a zone or the like is no reason to fail.
        let authority = format!("http://{}", self.address);
        Endpoint::from_shared(authority)
            .unwrap_or_else(|_| Endpoint::from_static("http://control-plane"))
            .connect_timeout(CONNECT_TIMEOUT + defaults::HANDSHAKE_TIMEOUT)
            .http2_keep_alive_interval(defaults::CONTROL_PING_INTERVAL)
            .keep_alive_timeout(defaults::CONTROL_PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(self)
    }

    /// One attempt.
    pub async fn connect(&self) -> io::Result<Io> {
        let io = dial(&self.address).await?;
        let Some(tls) = &self.tls else { return Ok(Io::Plain(io)) };
        let config = match &tls.client {
            ClientIdentity::Credentials(credentials) => usable(credentials)
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "no certificate yet"))?
                .client_config(&[b"h2"]),
            ClientIdentity::Anonymous(anchors) => tls::anchors_client_config(&anchors.borrow()),
        };
        Ok(Io::Tls(Box::new(tls::connect(config, &tls.server, io).await?)))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<Io>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Io>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let this = self.clone();
        Box::pin(async move { this.connect().await.map(TokioIo::new) })
    }
}

/// The newest credentials, unless they have expired.
pub fn usable(credentials: &CredentialsWatch) -> Option<Arc<Credentials>> {
    credentials.borrow().clone().filter(|c| !c.is_expired(SystemTime::now()))
}

async fn dial(address: &str) -> io::Result<TcpStream> {
    let failed = |error: io::Error| io::Error::new(error.kind(), format!("{address}: {error}"));
    let resolved = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{address}: DNS timed out")))?
        .map_err(failed)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for resolved in resolved.take(MAX_ADDRESSES) {
        match tokio::time::timeout(defaults::OUTBOUND_CONNECT_TIMEOUT, dial_address(resolved)).await {
            Ok(Ok(io)) => {
                listen::set_options(&io);
                return Ok(io);
            }
            Ok(Err(error)) => last = error,
            Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "connect timed out"),
        }
    }
    Err(failed(last))
}

async fn dial_address(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    let mark = SOCKET_MARK.load(Relaxed);
    if mark != 0 {
        socket2::SockRef::from(&socket).set_mark(mark)?;
    }
    socket.connect(address).await
}

/// Marks every socket that [`Connector`]s of this process make from now on (0: none, the default), so that a proxy's
/// own connections are exempt from the redirection that it set up. Needs the privilege for `SO_MARK`.
pub fn mark_sockets(mark: u32) {
    SOCKET_MARK.store(mark, Relaxed);
}

static SOCKET_MARK: AtomicU32 = AtomicU32::new(0);

/// A connection that was made.
pub enum Io {
    /// Without TLS.
    Plain(TcpStream),
    /// With.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// One per proxy and replica of the service; 10,000 pods are what is planned for.
const MAX_CONNECTIONS: usize = defaults::MAX_CONNECTIONS;
/// Local commands and workloads.
const MAX_UNIX_CONNECTIONS: usize = 1024;
/// To resolve a name and to reach one of its addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of a name that one attempt goes through.
const MAX_ADDRESSES: usize = 4;

#[cfg(test)]
mod tests;
