//! Bytes on their way out: small ones gathered in one borrowed buffer, large ones kept as they are and written from
//! where they lie, in one vectored write.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};

use crate::buffer;
use crate::io::Io;

/// From this size on, a slice of its own in the write costs less than a copy.
const COPIED: usize = 4 * 1024;
/// Most slices in one write.
const SLICES: usize = 16;

/// What is not written yet.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Gathered bytes; borrowed from the pool while there are any. Those before `at` are written.
    flat: Vec<u8>,
    at: usize,
    /// Large chunks, each after so many gathered bytes since the one before it.
    chunks: VecDeque<(usize, Bytes)>,
    chunk_bytes: usize,
    /// Gathered bytes that lie before the last chunk.
    gaps: usize,
    /// Written bytes may still lie in the stream below (TLS).
    unflushed: bool,
}

impl Writer {
    /// The number of bytes not written.
    pub(super) fn len(&self) -> usize {
        self.flat.len() - self.at + self.chunk_bytes
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.flat.capacity()
    }

    #[cfg(test)]
    pub(super) fn gathered(&self) -> usize {
        self.flat.len()
    }

    /// True when everything has left.
    pub(super) fn is_flushed(&self) -> bool {
        !self.unflushed && self.len() == 0
    }

    /// The gathered bytes, to add to.
    pub(super) fn gather(&mut self) -> &mut Vec<u8> {
        if self.flat.capacity() == 0 {
            self.flat = buffer::take_write();
        }
        self.unflushed = true;
        &mut self.flat
    }

    /// Adds a chunk, by copy if it is small.
    pub(super) fn push(&mut self, data: Bytes) {
        let copied = data.len() < COPIED;
        let flat = self.gather();
        if copied {
            flat.extend_from_slice(&data);
            return;
        }
        let gap = self.flat.len() - self.at - self.gaps;
        self.gaps += gap;
        self.chunk_bytes += data.len();
        self.chunks.push_back((gap, data));
    }

    /// Forgets what is unsent: the stream is broken.
    pub(super) fn clear(&mut self) {
        *self = Writer::default();
    }

    /// Writes until no more than `bound` bytes are left.
    pub(super) fn poll_drain<S: Io>(&mut self, io: &mut S, cx: &mut Context<'_>, bound: usize) -> Poll<io::Result<()>> {
        while self.len() > bound {
            let written = if self.chunks.is_empty() {
                ready!(Pin::new(&mut *io).poll_write(cx, &self.flat[self.at..]))?
            } else if io.is_write_vectored() {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let used = self.slices(&mut slices);
                ready!(Pin::new(&mut *io).poll_write_vectored(cx, &slices[..used]))?
            } else {
                let mut slices = [IoSlice::new(&[]); 1];
                self.slices(&mut slices);
                ready!(Pin::new(&mut *io).poll_write(cx, &slices[0]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes everything and hands the buffer back.
    pub(super) fn poll_flush<S: Io>(&mut self, io: &mut S, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(self.poll_drain(io, cx, 0))?;
            ready!(Pin::new(io).poll_flush(cx))?;
            self.unflushed = false;
        }
        if self.flat.capacity() > 0 {
            buffer::give_write(std::mem::take(&mut self.flat));
        }
        Poll::Ready(Ok(()))
    }

    /// Fills `slices` with what comes next, none of them empty, and says how many there are.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let (mut used, mut at) = (0, self.at);
        let mut add = |bytes: &'a [u8]| {
            if !bytes.is_empty() && used < slices.len() {
                slices[used] = IoSlice::new(bytes);
                used += 1;
            }
        };
        for (gap, chunk) in self.chunks.iter().take(SLICES) {
            add(&self.flat[at..at + gap]);
            add(chunk);
            at += gap;
        }
        if self.chunks.len() <= SLICES {
            add(&self.flat[at..]);
        }
        used
    }

    fn advance(&mut self, mut written: usize) {
        while let Some((gap, chunk)) = self.chunks.front_mut() {
            let flat = written.min(*gap);
            *gap -= flat;
            self.gaps -= flat;
            self.at += flat;
            written -= flat;
            let len = written.min(chunk.len());
            chunk.advance(len);
            self.chunk_bytes -= len;
            written -= len;
            if *gap > 0 || !chunk.is_empty() {
                break;
            }
            self.chunks.pop_front();
        }
        self.at += written;
        if self.at == self.flat.len() {
            self.flat.clear();
            self.at = 0;
        } else if self.at >= buffer::SMALL {
            self.flat.drain(..self.at);
            self.at = 0;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        buffer::give_write(std::mem::take(&mut self.flat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_however_they_are_cut() {
        for step in [1, 7, 4096, 5000, 100_000] {
            let (mut writer, mut expect, mut got) = (Writer::default(), Vec::new(), Vec::new());
            for (byte, size) in [(b'a', 10), (b'b', 5000), (b'c', 3), (b'd', 4096), (b'e', 4097), (b'f', 4000)] {
                let data = vec![byte; size];
                expect.extend_from_slice(&data);
                writer.push(data.into());
            }
            assert_eq!(writer.len(), expect.len());
            while writer.len() > 0 {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let used = writer.slices(&mut slices);
                let all: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
                let now = step.min(all.len());
                got.extend_from_slice(&all[..now]);
                writer.advance(now);
            }
            assert_eq!(got, expect, "by {step}");
        }
    }
}
