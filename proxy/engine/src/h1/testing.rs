//! A scripted stream for tests: what the peer sends, piece by piece, and what was written to it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::io::Io;

#[derive(Debug, Default)]
pub(super) struct Script {
    /// What the peer sends; an empty piece closes.
    pub(super) input: VecDeque<Vec<u8>>,
    pub(super) output: Vec<u8>,
    /// The number of writes.
    pub(super) writes: usize,
    /// What the peer still takes; writes beyond wait.
    pub(super) window: Option<usize>,
    pub(super) reset: bool,
    pub(super) shut: bool,
    /// The number of writes before which it was told that the end follows.
    pub(super) held: Option<usize>,
}

impl Script {
    pub(super) fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Script { input: pieces.into_iter().map(<[u8]>::to_vec).collect(), ..Script::default() }
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.output).unwrap()
    }
}

impl Io for Script {
    fn poll_readable(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.input.is_empty() && !self.reset { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn hold(&mut self) {
        self.held = self.held.or(Some(self.writes));
    }
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(piece) = self.input.front_mut() else {
            return if self.reset { Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())) } else { Poll::Pending };
        };
        let len = piece.len().min(buf.remaining());
        buf.put_slice(&piece[..len]);
        piece.drain(..len);
        if piece.is_empty() && len > 0 {
            self.input.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let len = buf.len().min(self.window.unwrap_or(usize::MAX));
        if len == 0 {
            return Poll::Pending;
        }
        if let Some(window) = &mut self.window {
            *window -= len;
        }
        self.writes += 1;
        self.output.extend_from_slice(&buf[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

/// Polls once.
pub(super) fn poll<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    poll(&mut Context::from_waker(Waker::noop()))
}

/// What must be ready now.
pub(super) fn now<T>(poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> T {
    match self::poll(poll) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("not ready"),
    }
}
