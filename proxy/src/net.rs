//! Sockets: listen, dial, original destination. The only room that makes them, so the only one with socket
//! options.

mod plain;

pub use plain::{Arrivals, Plain};

use crate::metrics::OpenConnection;
use crate::tls::Tls;
use gossamer_api::defaults;
use gossamer_api::process::listen::keepalive;
use gossamer_engine::io::Io;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Backlog of listeners. Source: the kernel's own default ceiling (`net.core.somaxconn` 4096).
const BACKLOG: i32 = 4096;

/// A listener, not blocking, that several threads may share the port of.
pub fn listen(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if addr.is_ipv6() {
        // IPv4 has a listener of its own.
        socket.set_only_v6(true)?;
    }
    // What it accepts inherits these.
    tune(SockRef::from(&socket));
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets what every connection of the proxy wants: no delay, keep-alive, a bound on unacknowledged data.
fn tune(socket: SockRef<'_>) {
    // Options that a kernel lacks cost nothing but the option.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive());
    let _ = socket.set_tcp_user_timeout(Some(defaults::TCP_USER_TIMEOUT));
}

/// Connects, with the mark (0: none) that exempts the proxy's own connections from redirection.
pub async fn dial(addr: SocketAddr, mark: u32) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    tune(SockRef::from(&socket));
    tokio::net::TcpSocket::from_std_stream(socket.into()).connect(addr).await
}

/// Where `client` wanted to go, if the kernel redirected its connection here.
pub fn original_destination(stream: &impl AsFd, client: SocketAddr) -> Option<SocketAddr> {
    let socket = SockRef::from(stream);
    let original = match client.ip() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    original.ok()?.as_socket()
}

/// Where a connection came in.
pub fn local_addr(stream: &impl AsFd) -> Option<SocketAddr> {
    SockRef::from(stream).local_addr().ok()?.as_socket()
}

/// Makes close send RST instead of FIN: the peer learns that the stream was cut, not ended.
pub fn reset_on_close(stream: &impl AsFd) {
    let _ = SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
}

/// One end of a connection: plain, or TLS as either side. Counts its bytes, and itself while it is open.
#[derive(Debug)]
pub struct Stream {
    io: Kind,
    meter: Option<OpenConnection>,
}

#[derive(Debug)]
enum Kind {
    Tcp(Plain),
    Tls(Box<Tls>),
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

impl From<TcpStream> for Stream {
    fn from(io: TcpStream) -> Self {
        Plain::from(io).into()
    }
}

impl From<Plain> for Stream {
    fn from(io: Plain) -> Self {
        Stream { io: Kind::Tcp(io), meter: None }
    }
}

impl From<Tls> for Stream {
    fn from(io: Tls) -> Self {
        Stream { io: Kind::Tls(Box::new(io)), meter: None }
    }
}

#[cfg(test)]
impl From<tokio::io::DuplexStream> for Stream {
    fn from(io: tokio::io::DuplexStream) -> Self {
        Stream { io: Kind::Memory(io), meter: None }
    }
}

impl Stream {
    /// Counts from here on; `read` bytes of the peer were taken before.
    pub fn measure(&mut self, meter: OpenConnection, read: usize) {
        meter.metrics().read(read as u64);
        self.meter = Some(meter);
    }

    /// Makes close send RST, so that the peer does not take a cut stream for a complete one.
    pub fn reset_on_close(&self) {
        match &self.io {
            Kind::Tcp(io) => {
                let _ = io.fd().inspect(reset_on_close);
            }
            Kind::Tls(io) => reset_on_close(io.tcp()),
            #[cfg(test)]
            Kind::Memory(_) => {}
        }
    }

    /// What TLS opened and nobody has read; `None` without TLS.
    pub fn opened(&self) -> Option<&Tls> {
        match &self.io {
            Kind::Tls(io) => Some(io),
            _ => None,
        }
    }

    /// Opens what there is ([`Tls::poll_fill`]); without TLS never ready.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Kind::Tls(io) = &mut self.io else { return Poll::Pending };
        let polled = io.poll_fill(cx);
        if let Poll::Ready(Err(error)) = &polled {
            self.failed(error);
        }
        polled
    }

    /// So much of [`opened`](Self::opened) was taken.
    pub fn consume(&mut self, count: usize) {
        if let Kind::Tls(io) = &mut self.io {
            io.consume(count);
            if let Some(meter) = &self.meter {
                meter.metrics().read(count as u64);
            }
        }
    }

    fn failed(&mut self, error: &io::Error) {
        if let Some(meter) = &mut self.meter {
            meter.fail(error);
        }
    }
}

macro_rules! each {
    ($self:expr, $io:ident => $call:expr) => {
        match &mut $self.io {
            Kind::Tcp($io) => $call,
            Kind::Tls($io) => $call,
            #[cfg(test)]
            Kind::Memory($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = each!(self, io => Pin::new(io).poll_read(cx, buf));
        match &polled {
            Poll::Ready(Ok(())) => {
                if let Some(meter) = &self.meter {
                    meter.metrics().read((buf.filled().len() - before) as u64);
                }
            }
            Poll::Ready(Err(error)) => self.failed(error),
            Poll::Pending => {}
        }
        polled
    }
}

impl Stream {
    fn wrote(&mut self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &polled {
            Poll::Ready(Ok(count)) => {
                if let Some(meter) = &self.meter {
                    meter.metrics().wrote(*count as u64);
                }
            }
            Poll::Ready(Err(error)) => self.failed(error),
            Poll::Pending => {}
        }
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = each!(self, io => Pin::new(io).poll_write(cx, buf));
        self.wrote(polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs));
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Kind::Tcp(io) => io.is_write_vectored(),
            Kind::Tls(io) => io.is_write_vectored(),
            #[cfg(test)]
            Kind::Memory(io) => io.is_write_vectored(),
        }
    }
}

impl Io for Stream {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Kind::Tcp(io) => io.poll_readable(cx),
            Kind::Tls(io) => io.poll_readable(cx),
            #[cfg(test)]
            Kind::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Kind::Tcp(io) => io.poll_end(cx),
            _ => self.poll_readable(cx),
        }
    }

    fn abort(&mut self) {
        self.reset_on_close();
    }

    fn hold(&mut self) {
        if let Kind::Tcp(io) = &mut self.io {
            io.hold();
        }
    }

    fn ends_on_drop(&self) -> bool {
        matches!(self.io, Kind::Tcp(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accepted_connections_inherit_their_options() {
        let listener = tokio::net::TcpListener::from_std(listen("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let dialed = dial(listener.local_addr().unwrap(), 0).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        for stream in [&dialed, &accepted] {
            let socket = SockRef::from(stream);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), defaults::TCP_KEEPALIVE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), defaults::TCP_KEEPALIVE_INTERVAL);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(defaults::TCP_USER_TIMEOUT));
        }
    }

    #[tokio::test]
    async fn what_is_held_leaves_with_the_end_even_if_the_peer_said_too_much() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::from_std(listen("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let mut dialed = dial(listener.local_addr().unwrap(), 0).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        dialed.write_all(b"nobody will read this").await.unwrap();
        accepted.readable().await.unwrap();
        let mut held = Stream::from(accepted);
        held.hold();
        held.write_all(b"last").await.unwrap();
        held.shutdown().await.unwrap();
        drop(held);
        let mut got = [0; 16];
        assert_eq!(dialed.read(&mut got).await.unwrap(), 4);
        assert_eq!(&got[..4], b"last");
    }
}
