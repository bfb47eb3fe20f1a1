//! What the engine asks of a connection: bytes in, bytes out, and a way to wait for bytes without holding a buffer.

use std::io;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::{TcpStream, UnixStream};

/// A duplex byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin {
    /// Ready when a read may give bytes, the end of the stream or an error. It may be ready too often, never too
    /// seldom: the engine waits here, without a buffer, and reads only then.
    ///
    /// The default is always ready: right for streams that cannot tell, which then borrow a buffer for each attempt.
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = cx;
        Poll::Ready(Ok(()))
    }

    /// [`poll_readable`](Self::poll_readable) for who only wants to know whether the peer leaves: that may be told a
    /// moment late.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_readable(cx)
    }

    /// Makes the close that follows look like a failure to the peer, where the transport can: a body that ends with
    /// the connection must not look complete when it was cut off.
    fn abort(&mut self) {}

    /// The stream is shut down as soon as what comes next is written: that may wait for it, to leave together. Where the
    /// two are packets of their own, each costs the peer's kernel and ours as much as the other.
    fn hold(&mut self) {}

    /// True when dropping the stream tells the peer that no more comes, as a shutdown would.
    fn ends_on_drop(&self) -> bool {
        false
    }
}

impl Io for TcpStream {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }

    fn abort(&mut self) {
        // A reset. If it fails the connection is gone already.
        let _ = self.set_zero_linger();
    }

    fn ends_on_drop(&self) -> bool {
        true
    }
}

impl Io for UnixStream {
    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(cx)
    }
}

impl Io for DuplexStream {}
