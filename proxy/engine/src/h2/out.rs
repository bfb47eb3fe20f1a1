//! What waits to be written: small frames in one buffer, large chunks of DATA beside it without a copy.
//!
//! A connection with nothing to write holds no buffer: it comes from and goes back to a few spare ones of the thread.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

/// Chunks up to this size are copied next to their frame's head: cheaper than another slice in the write, and it
/// frees what the chunk was cut from.
const COPY_UP_TO: usize = 2048;
/// A buffer that grew beyond this is not kept.
const KEEP_UP_TO: usize = 128 * 1024;
const SPARES: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Gives half of the spare buffers back: see [`crate::buffer::sweep`].
pub(super) fn sweep() {
    let _ = SPARE.try_with(|spare| crate::buffer::halve(&mut spare.borrow_mut()));
}

/// The outgoing bytes of one connection.
#[derive(Default)]
pub(super) struct Out {
    buffer: Vec<u8>,
    /// How much of the buffer is written already.
    written: usize,
    /// Chunks, each with the place in `buffer` before which it goes.
    chunks: VecDeque<(usize, Bytes)>,
    /// Bytes in `chunks`.
    chunked: usize,
}

impl Out {
    /// The number of bytes that wait.
    pub(super) fn len(&self) -> usize {
        self.chunked + self.buffer.len() - self.written
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The buffer, to append to.
    pub(super) fn small(&mut self) -> &mut Vec<u8> {
        if self.buffer.capacity() == 0 {
            self.buffer = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(4096));
        }
        &mut self.buffer
    }

    /// Appends a chunk.
    pub(super) fn chunk(&mut self, chunk: Bytes) {
        if chunk.len() <= COPY_UP_TO {
            return self.small().extend_from_slice(&chunk);
        }
        self.chunked += chunk.len();
        self.chunks.push_back((self.buffer.len(), chunk));
    }

    /// Fills `slices` with what is next, and says how many there are.
    pub(super) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        let mut at = self.written;
        for (place, chunk) in &self.chunks {
            if *place > at && count < slices.len() {
                slices[count] = IoSlice::new(&self.buffer[at..*place]);
                count += 1;
            }
            at = *place;
            if count == slices.len() {
                return count;
            }
            slices[count] = IoSlice::new(chunk);
            count += 1;
        }
        if at < self.buffer.len() && count < slices.len() {
            slices[count] = IoSlice::new(&self.buffer[at..]);
            count += 1;
        }
        count
    }

    /// What is next, in one piece.
    pub(super) fn next(&self) -> &[u8] {
        match self.chunks.front() {
            Some((place, chunk)) if *place == self.written => chunk,
            Some((place, _)) => &self.buffer[self.written..*place],
            None => &self.buffer[self.written..],
        }
    }

    /// Forgets the first `n` bytes: they are written.
    pub(super) fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let upto = self.chunks.front().map_or(self.buffer.len(), |(place, _)| *place);
            let plain = n.min(upto - self.written);
            self.written += plain;
            n -= plain;
            let Some((_, chunk)) = self.chunks.front_mut().filter(|_| n > 0) else { break };
            let taken = n.min(chunk.len());
            self.chunked -= taken;
            n -= taken;
            bytes::Buf::advance(chunk, taken);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        if self.is_empty() {
            self.release();
        } else if self.written > KEEP_UP_TO {
            self.buffer.drain(..self.written);
            for (place, _) in &mut self.chunks {
                *place -= self.written;
            }
            self.written = 0;
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.chunks.clear();
        self.chunked = 0;
        self.release();
    }

    fn release(&mut self) {
        self.written = 0;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        if buffer.capacity() > 0 && buffer.capacity() <= KEEP_UP_TO {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARES {
                    spare.push(buffer);
                }
            });
        }
        if self.chunks.capacity() > 64 {
            self.chunks = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(super) fn contiguous(&self) -> Vec<u8> {
        let mut slices = vec![IoSlice::new(&[]); 2 * self.chunks.len() + 1];
        let count = self.slices(&mut slices);
        slices[..count].iter().flat_map(|slice| slice.to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_buffer_is_held_when_everything_is_written() {
        let mut out = Out::default();
        out.small().extend_from_slice(b"abc");
        out.chunk(Bytes::from(vec![0; 5000]));
        out.advance(5003);
        assert!(out.is_empty());
        assert_eq!(out.buffer.capacity(), 0);
    }

    proptest! {
        #[test]
        fn bytes_leave_in_the_order_they_came(
            parts in proptest::collection::vec((any::<bool>(), 1..6000usize), 1..40),
            steps in proptest::collection::vec(1..9000usize, 1..200),
            vectored: bool,
        ) {
            let mut out = Out::default();
            let mut expect = Vec::new();
            for (at, (large, len)) in parts.into_iter().enumerate() {
                let part: Vec<u8> = (0..len).map(|i| (i * 7 + at) as u8).collect();
                expect.extend_from_slice(&part);
                if large { out.chunk(Bytes::from(part)) } else { out.small().extend_from_slice(&part) }
            }
            let mut got = Vec::new();
            for step in steps.into_iter().cycle() {
                prop_assert_eq!(out.len(), expect.len() - got.len());
                if out.is_empty() {
                    break;
                }
                let taken: Vec<u8> = if vectored {
                    out.contiguous().into_iter().take(step).collect()
                } else {
                    out.next().iter().copied().take(step).collect()
                };
                prop_assert!(!taken.is_empty());
                out.advance(taken.len());
                got.extend(taken);
            }
            prop_assert_eq!(got, expect);
        }
    }
}
