//! One connection's bytes: what was read and is not taken yet, what is to be written. Shared by both sides.
//!
//! **Invariant:** a connection that waits and has no bytes in hand holds no buffer.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;

use crate::buffer::{self, LARGE, SMALL};
use crate::error::Error;
use crate::h1::Limits;
use crate::h1::framing::{Decoder, Step};
use crate::h1::parse::{self, Facts};
use crate::h1::write::Writer;
use crate::io::Io;

/// With less room than this in a buffer that has bytes in it, it grows before the next read.
const LEAST_ROOM: usize = 2 * 1024;

/// Bytes that were read, in a buffer that is borrowed from the pool while there are any.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: BytesMut,
    /// The size with which the buffer was borrowed; 0 for none.
    size: usize,
}

impl Input {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn release(&mut self) {
        if self.size > 0 {
            buffer::give(std::mem::take(&mut self.bytes), std::mem::take(&mut self.size));
        }
    }

    /// For when no more bytes are expected soon.
    fn release_if_empty(&mut self) {
        if self.bytes.is_empty() {
            self.release();
        }
    }

    /// Makes room for a read, for about `size` bytes if there is nothing in hand.
    fn make_room(&mut self, size: usize) {
        if !self.bytes.is_empty() {
            if self.bytes.capacity() - self.bytes.len() < LEAST_ROOM {
                self.bytes.reserve(self.bytes.len().max(SMALL));
                self.size = self.size.max(SMALL);
            }
            return;
        }
        if self.size >= size && (self.bytes.try_reclaim(self.size) || self.bytes.capacity() >= size / 2) {
            return;
        }
        self.release();
        self.bytes = buffer::take(size);
        self.size = size;
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.release();
    }
}

/// A stream and the bytes on both sides of it.
#[derive(Debug)]
pub(super) struct Conn<S> {
    pub(super) io: S,
    pub(super) input: Input,
    pub(super) output: Writer,
    pub(super) limits: Limits,
    /// The peer will send no more.
    pub(super) eof: bool,
    /// Bytes of an incomplete head that need not be looked at again for its end.
    scanned: usize,
    /// The last read filled its buffer: the next may have a larger one.
    filled: bool,
}

impl<S: Io> Conn<S> {
    pub(super) fn new(io: S, prefix: Bytes, limits: Limits) -> Self {
        let mut input = Input::default();
        if !prefix.is_empty() {
            input.make_room(SMALL);
            input.bytes.extend_from_slice(&prefix);
        }
        Conn { io, input, output: Writer::default(), limits, eof: false, scanned: 0, filled: false }
    }

    /// Reads once; 0 at the end of the stream. `ahead` bytes at least are known to follow.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, ahead: u64) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.input.is_empty() {
            match self.io.poll_readable(cx) {
                Poll::Ready(readable) => readable?,
                Poll::Pending => {
                    self.input.release();
                    return Poll::Pending;
                }
            }
        }
        self.input.make_room(if ahead >= SMALL as u64 || self.filled { LARGE } else { SMALL });
        let room = self.input.bytes.capacity() - self.input.bytes.len();
        match pin!(self.io.read_buf(&mut self.input.bytes)).poll(cx) {
            Poll::Ready(read) => {
                let read = read?;
                self.eof = read == 0;
                self.filled = read == room;
                Poll::Ready(Ok(read))
            }
            Poll::Pending => {
                self.input.release_if_empty();
                Poll::Pending
            }
        }
    }

    /// Reads a head with `parse`. `None`: the peer closed before its first byte.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        mut parse: impl FnMut(&[u8], &Limits) -> Result<Option<(usize, Facts)>, Error>,
    ) -> Poll<Result<Option<Facts>, Error>> {
        loop {
            let bytes = &self.input.bytes;
            if !bytes.is_empty() {
                // The first look parses at once: nearly all heads arrive whole. After that the end is looked for first.
                let first_look = self.scanned == 0;
                if first_look || parse::section_ends(bytes, &mut self.scanned)? {
                    if let Some((len, facts)) = parse(bytes, &self.limits)? {
                        if len > self.limits.head_bytes {
                            return Poll::Ready(Err(Error::HeadTooLarge));
                        }
                        self.input.bytes.advance(len);
                        self.input.release_if_empty();
                        self.scanned = 0;
                        self.filled = false;
                        return Poll::Ready(Ok(Some(facts)));
                    }
                    parse::section_ends(bytes, &mut self.scanned)?;
                }
                if bytes.len() >= self.limits.head_bytes {
                    return Poll::Ready(Err(Error::HeadTooLarge));
                }
            }
            if ready!(self.poll_fill(cx, 0))? == 0 {
                return Poll::Ready(match &self.input.bytes[..] {
                    b"" | b"\r\n" => Ok(None),
                    _ => Err(Error::Io(io::ErrorKind::UnexpectedEof)),
                });
            }
        }
    }

    /// The next data of the body that `body` decodes.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>, body: &mut Decoder) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            match body.next(&mut self.input.bytes, &self.limits) {
                Ok(Step::Data(data)) => {
                    if body.is_end() {
                        self.input.release_if_empty();
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(Step::End) => return Poll::Ready(None),
                Ok(Step::More) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
            if ready!(self.poll_fill(cx, body.data_ahead()))? == 0 {
                body.close()?;
            }
        }
    }

    /// Waits until no more bytes are unsent than the bound.
    pub(super) fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.poll_drain(&mut self.io, cx, self.limits.write_buffer)
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.poll_flush(&mut self.io, cx)
    }

    /// The bytes of buffers that are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.input.bytes.capacity() + self.output.held()
    }

    /// Reads and drops up to `most` bytes, until the peer closes.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<()> {
        let mut dropped = 0;
        while dropped < most {
            self.input.bytes.clear();
            match ready!(self.poll_fill(cx, 0)) {
                Ok(0) | Err(_) => break,
                Ok(read) => dropped += read,
            }
        }
        Poll::Ready(())
    }

    /// The stream, and the bytes that were read from it and not taken.
    pub(super) fn into_parts(mut self) -> (S, Bytes) {
        self.input.size = 0;
        (self.io, std::mem::take(&mut self.input.bytes).freeze())
    }
}
