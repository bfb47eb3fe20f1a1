//! Opaque bytes: copied both ways until both sides have ended.
//!
//! Half-close is kept in both directions, a reset on one side becomes a reset on the other, a slow reader slows the
//! writer down. A connection that is silent holds no buffer.

use crate::net::Stream;
use crate::tls::AHEAD;
use bytes::{Buf, Bytes};
use gossamer_engine::buffer::{Block, Size};
use gossamer_engine::io::Io;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

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
    /// Read before the copying began, and not yet written.
    first: Bytes,
    /// Read and not yet written; what TLS opened lies with the stream that it came from.
    block: Block,
    /// How much the next read asks for.
    ask: Size,
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
    fn new(first: Bytes) -> Self {
        Flow { first, block: Block::default(), ask: Size::Small, state: State::Copying, moved: 0 }
    }

    fn poll(&mut self, from: &mut Stream, to: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while let Some(count) = ready!(self.poll_write(from, to, cx))? {
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.moved += count as u64;
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
                    if self.poll_read(from, cx).is_pending() {
                        // TLS keeps what it could not write yet.
                        return match Pin::new(&mut *to).poll_flush(cx)? {
                            Poll::Ready(()) | Poll::Pending => Poll::Pending,
                        };
                    }
                }
            }
        }
    }

    /// Writes what is in hand, without moving it: pieces of several records go out in one call. `None`: nothing is.
    fn poll_write(
        &mut self,
        from: &mut Stream,
        to: &mut Stream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Option<usize>>> {
        if !self.first.is_empty() {
            let count = ready!(Pin::new(to).poll_write(cx, &self.first))?;
            self.first.advance(count);
            return Poll::Ready(Ok(Some(count)));
        }
        if let Some(tls) = from.opened() {
            let mut slices = [io::IoSlice::new(&[]); AHEAD];
            let used = tls.slices(&mut slices);
            if used == 0 {
                return Poll::Ready(Ok(None));
            }
            let count = ready!(Pin::new(to).poll_write_vectored(cx, &slices[..used]))?;
            from.consume(count);
            return Poll::Ready(Ok(Some(count)));
        }
        if self.block.is_empty() {
            self.block = Block::default();
            return Poll::Ready(Ok(None));
        }
        let count = ready!(Pin::new(to).poll_write(cx, self.block.used()))?;
        self.block.start += count;
        Poll::Ready(Ok(Some(count)))
    }

    /// Reads as much as there is, into memory that is borrowed only when there is something to read. What went wrong
    /// is in `state`.
    fn poll_read(&mut self, from: &mut Stream, cx: &mut Context<'_>) -> Poll<()> {
        let result = if from.opened().is_some() {
            ready!(from.poll_fill(cx)).map(usize::from)
        } else {
            match ready!(from.poll_readable(cx)) {
                Ok(()) => {
                    let mut block = Block::take(self.ask);
                    let room = block.capacity().min(self.ask.plain());
                    let mut buf = ReadBuf::new(&mut block.room()[..room]);
                    let read = ready!(Pin::new(from).poll_read(cx, &mut buf));
                    let count = buf.filled().len();
                    if count == buf.capacity() {
                        self.ask = self.ask.more();
                    } else if count < self.ask.less().plain() {
                        self.ask = self.ask.less();
                    }
                    block.end = count;
                    self.block = block;
                    read.map(|()| count)
                }
                Err(error) => Err(error),
            }
        };
        match result {
            Ok(0) => self.state = State::Ending,
            Ok(_) => {}
            Err(error) => self.state = State::Broken(error),
        }
        Poll::Ready(())
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
