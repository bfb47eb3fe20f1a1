//! Buffers that connections borrow while they have bytes in hand, and give back when they wait.
//!
//! One bounded pool per thread, no lock. An idle connection holds none, so memory follows the number of connections
//! that are busy at the same moment. A buffer may be given back while slices of it are still in use elsewhere: it is
//! handed out again only after the last of them is gone.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::BytesMut;

/// Reads of heads and small bodies, and all writes that are gathered: room for nearly every request.
pub const SMALL: usize = 16 * 1024;
/// Reads of large bodies: fewer system calls for each byte.
pub const LARGE: usize = 64 * 1024;

/// At most this many small buffers lie in wait: 1 MiB for each thread.
const SMALL_KEPT: usize = 64;
/// At most this many large buffers lie in wait: 1 MiB for each thread.
const LARGE_KEPT: usize = 16;
/// How many buffers that are still in use are looked at before a new one is made.
const TRIES: usize = 4;

#[derive(Default)]
struct Pool {
    small: VecDeque<BytesMut>,
    large: VecDeque<BytesMut>,
    write: Vec<Vec<u8>>,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// Gives half of what lies in wait back to the allocator. To be called every second or so: what is in use all the time
/// is soon replaced, and after a burst nothing is left within seconds.
pub fn sweep() {
    let _ = POOL.try_with(|pool| {
        let pool = &mut *pool.borrow_mut();
        // The coldest first.
        pool.small.drain(..pool.small.len().div_ceil(2));
        pool.large.drain(..pool.large.len().div_ceil(2));
        pool.write.drain(..pool.write.len().div_ceil(2));
        for shelf in [&mut pool.small, &mut pool.large] {
            if shelf.is_empty() {
                *shelf = VecDeque::new();
            }
        }
    });
    crate::h2::sweep();
}

/// A buffer for reading, empty, with room for at least `size` bytes.
pub fn take(size: usize) -> BytesMut {
    let pooled = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let shelf = if size > SMALL { &mut pool.large } else { &mut pool.small };
        // The most recent is the warmest in the cache; one that is still in use goes to the far end.
        for _ in 0..TRIES.min(shelf.len()) {
            let mut buffer = shelf.pop_back()?;
            if buffer.try_reclaim(size) {
                return Some(buffer);
            }
            shelf.push_front(buffer);
        }
        None
    });
    pooled.ok().flatten().unwrap_or_else(|| BytesMut::with_capacity(size))
}

/// Gives back a reading buffer that was taken with `size`; its bytes are forgotten. One that grew is dropped.
pub fn give(mut buffer: BytesMut, size: usize) {
    buffer.clear();
    if buffer.try_reclaim(2 * size) {
        return;
    }
    let _ = POOL.try_with(|pool| {
        let pool = &mut *pool.borrow_mut();
        let (shelf, kept) = if size > SMALL { (&mut pool.large, LARGE_KEPT) } else { (&mut pool.small, SMALL_KEPT) };
        if shelf.len() < kept {
            shelf.push_back(buffer);
        }
    });
}

/// A buffer for writing, empty.
pub fn take_write() -> Vec<u8> {
    POOL.try_with(|pool| pool.borrow_mut().write.pop()).ok().flatten().unwrap_or_else(|| Vec::with_capacity(SMALL))
}

/// Gives a writing buffer back. One that held no memory, or grew too large, is dropped.
pub fn give_write(mut buffer: Vec<u8>) {
    if !(SMALL..=LARGE).contains(&buffer.capacity()) {
        return;
    }
    buffer.clear();
    let _ = POOL.try_with(|pool| {
        let shelf = &mut pool.borrow_mut().write;
        if shelf.len() < SMALL_KEPT {
            shelf.push(buffer);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_with_all_its_room() {
        let mut buffer = take(SMALL);
        buffer.extend_from_slice(b"some bytes");
        let address = buffer.as_ptr();
        drop(buffer.split_to(4).freeze());
        give(buffer, SMALL);
        let again = take(SMALL);
        assert_eq!(again.as_ptr(), address);
        assert!(again.is_empty() && again.capacity() >= SMALL);
    }

    #[test]
    fn a_buffer_in_use_is_not_handed_out() {
        let mut buffer = take(SMALL);
        buffer.extend_from_slice(b"kept");
        let slice = buffer.split_to(4).freeze();
        give(buffer, SMALL);
        let mut other = take(SMALL);
        other.extend_from_slice(b"else");
        assert_eq!(&slice[..], b"kept");
        assert_ne!(other.as_ptr(), slice.as_ptr());
    }

    #[test]
    fn what_lies_in_wait_goes_back() {
        for _ in 0..10 {
            give(BytesMut::with_capacity(SMALL), SMALL);
            give(BytesMut::with_capacity(LARGE), LARGE);
            give_write(Vec::with_capacity(SMALL));
        }
        let left = || POOL.with_borrow(|pool| (pool.small.len(), pool.large.len(), pool.write.len()));
        sweep();
        assert_eq!(left(), (5, 5, 5));
        (0..3).for_each(|_| sweep());
        assert_eq!(left(), (0, 0, 0));
    }

    #[test]
    fn the_pool_is_bounded() {
        for _ in 0..SMALL_KEPT * 2 {
            give(BytesMut::with_capacity(SMALL), SMALL);
            give_write(Vec::with_capacity(SMALL));
        }
        for _ in 0..LARGE_KEPT * 2 {
            give(BytesMut::with_capacity(LARGE), LARGE);
        }
        POOL.with(|pool| {
            let pool = pool.borrow();
            assert_eq!((pool.small.len(), pool.large.len(), pool.write.len()), (SMALL_KEPT, LARGE_KEPT, SMALL_KEPT));
        });
    }
}
