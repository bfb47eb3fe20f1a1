//! Opaque bytes: copied both ways until both sides have ended.
//!
//! Half-close is kept in both directions, a reset on one side becomes a reset on the other, a slow reader slows the
//! writer down. A connection that is silent holds no buffer.

use crate::net::Stream;
use bytes::{Buf, Bytes};
use gossamer_engine::buffer;
use gossamer_engine::io::Io;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_read_buf;

/// Bytes moved, both ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From the client to the server.
    pub sent: u64,
    /// From the server to the client.
    pub received: u64,
}

/// Copies until both directions have ended. `first` are bytes of the client that were read already, `greeting` those
/// of the server.
///
/// Dropping the future closes both connections.
pub async fn relay(client: &mut Stream, server: &mut Stream, first: Bytes, greeting: Bytes) -> io::Result<Moved> {
    let mut up = Flow::new(first);
    let mut down = Flow::new(greeting);
    let result = poll_fn(|cx| {
        let sent = up.poll(client, server, cx)?;
        let received = down.poll(server, client, cx)?;
        if sent.is_ready() && received.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    })
    .await;
    if result.is_err() {
        // Whoever is left must not take a cut stream for a complete one.
        client.reset_on_close();
        server.reset_on_close();
    }
    result.map(|()| Moved { sent: up.moved, received: down.moved })
}

/// One direction.
struct Flow {
    /// Bytes read and not yet written.
    pending: Bytes,
    state: State,
    moved: u64,
}

enum State {
    Copying,
    /// The source broke: what came before that is written first.
    Broken(io::Error),
    Ending,
    Ended,
}

impl Flow {
    fn new(pending: Bytes) -> Self {
        Flow { moved: pending.len() as u64, pending, state: State::Copying }
    }

    fn poll(&mut self, from: &mut Stream, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while !self.pending.is_empty() {
                let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))?;
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.pending.advance(count);
            }
            match &mut self.state {
                State::Ended => return Poll::Ready(Ok(())),
                State::Broken(error) => return Poll::Ready(Err(std::mem::replace(error, io::ErrorKind::Other.into()))),
                State::Ending => {
                    // A peer that is gone already has nothing to be told.
                    match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => return Poll::Ready(Err(error)),
                        _ => self.state = State::Ended,
                    }
                }
                State::Copying => {
                    if self.read(from, cx).is_pending() {
                        // TLS keeps what it could not write yet.
                        return match Pin::new(&mut *to).poll_flush(cx)? {
                            Poll::Ready(()) | Poll::Pending => Poll::Pending,
                        };
                    }
                    self.moved += self.pending.len() as u64;
                }
            }
        }
    }

    /// Reads into a borrowed buffer, which goes back at once when there is nothing to read.
    ///
    /// As much as there is and fits: TLS gives one record at a time, and a write for each would cost more than all else.
    fn read(&mut self, from: &mut Stream, cx: &mut Context<'_>) -> Poll<()> {
        match from.poll_readable(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => {
                self.state = State::Broken(error);
                return Poll::Ready(());
            }
            Poll::Ready(Ok(())) => {}
        }
        let mut memory = buffer::take(buffer::LARGE);
        let mut waits = false;
        while memory.len() < memory.capacity() {
            match poll_read_buf(Pin::new(&mut *from), cx, &mut memory) {
                Poll::Ready(Ok(0)) => self.state = State::Ending,
                Poll::Ready(Ok(_)) => continue,
                Poll::Ready(Err(error)) => self.state = State::Broken(error),
                Poll::Pending => waits = true,
            }
            break;
        }
        self.pending = memory.split().freeze();
        buffer::give(memory, buffer::LARGE);
        if waits && self.pending.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn half_close_is_kept_and_every_byte_arrives() {
        let (mut app, near) = tokio::io::duplex(64);
        let (far, mut service) = tokio::io::duplex(64);
        let (mut near, mut far) = (Stream::from(near), Stream::from(far));
        let relay = relay(&mut near, &mut far, Bytes::from_static(b"he"), Bytes::from_static(b"hi "));
        let client = async {
            app.write_all(b"llo").await.unwrap();
            app.shutdown().await.unwrap();
            let mut answer = Vec::new();
            app.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let server = async {
            let mut request = Vec::new();
            service.read_to_end(&mut request).await.unwrap();
            // The client has ended, the server still speaks.
            service.write_all(&[7; 1000]).await.unwrap();
            service.shutdown().await.unwrap();
            request
        };
        let (moved, answer, request) = tokio::join!(relay, client, server);
        assert_eq!(moved.unwrap(), Moved { sent: 5, received: 1003 });
        assert_eq!(request, b"hello");
        assert_eq!((&answer[..3], answer.len()), (&b"hi "[..], 1003));
    }
}
