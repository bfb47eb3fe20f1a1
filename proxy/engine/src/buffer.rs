//! Buffers that connections borrow while they have bytes in hand, and give back when they wait.
//!
//! One bounded pool per thread, no lock. An idle connection holds none, so memory follows the number of connections
//! that are busy at the same moment. A buffer may be given back while slices of it are still in use elsewhere: what is
//! behind them is handed out again at once if it is room enough, the rest after the last of them is gone.

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
    blocks: [Vec<Box<[u8]>>; 3],
    /// Blocks of [`Size::Bulk`] that are in use.
    bulk: usize,
}

thread_local! {
    static POOL: RefCell<Pool> = RefCell::default();
}

/// Gives half of what lies in wait back to the allocator. To be called every second or so: what is in use all the time
/// is soon replaced, and after a burst nothing is left within seconds.
pub fn sweep() {
    let _ = POOL.try_with(|pool| {
        let pool = &mut *pool.borrow_mut();
        // The coldest first. What is empty is left alone: at rest nothing is fetched for it.
        for shelf in [&mut pool.small, &mut pool.large].into_iter().filter(|shelf| shelf.capacity() > 0) {
            shelf.drain(..shelf.len().div_ceil(2));
            if shelf.is_empty() {
                *shelf = VecDeque::new();
            }
        }
        halve(&mut pool.write);
        pool.blocks.iter_mut().for_each(halve);
    });
    crate::message::sweep();
    crate::h2::sweep();
}

/// Drops the half that lies there longest. What is empty is left alone.
pub(crate) fn halve<T>(waiting: &mut Vec<T>) {
    let gone = waiting.len().div_ceil(2);
    if gone > 0 {
        waiting.drain(..gone);
    }
}

/// A buffer for reading, empty, with room for `size` bytes, or for half of them if they are few.
pub fn take(size: usize) -> BytesMut {
    let pooled = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let shelf = if size > SMALL { &mut pool.large } else { &mut pool.small };
        // The most recent is the warmest in the cache; one that is still in use goes to the far end.
        for _ in 0..TRIES.min(shelf.len()) {
            let mut buffer = shelf.pop_back()?;
            // Small messages of many connections share one: otherwise each would hold 16 KiB until it is sent on.
            if buffer.try_reclaim(size) || (size <= SMALL && buffer.capacity() >= size / 2) {
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

/// How large a [`Block`] is: room for so many full records of TLS (16 KiB and what seals it), so that what one proxy
/// writes another reads without a record being cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// One record.
    #[default]
    Small = 0,
    /// Four records.
    Large = 1,
    /// Sixteen records: for streams that keep the processor busy.
    Bulk = 2,
}

impl Size {
    /// In bytes.
    pub const fn bytes(self) -> usize {
        const RECORD: usize = 16 * 1024 + 22;
        match self {
            Size::Small => RECORD,
            Size::Large => 4 * RECORD,
            Size::Bulk => 16 * RECORD,
        }
    }

    /// What the records hold: who reads more of plain bytes seals a record, and sends it, for the few that are over.
    pub const fn plain(self) -> usize {
        match self {
            Size::Small => 16 * 1024,
            Size::Large => 4 * 16 * 1024,
            Size::Bulk => 16 * 16 * 1024,
        }
    }

    /// The next smaller one.
    pub const fn less(self) -> Size {
        match self {
            Size::Small | Size::Large => Size::Small,
            Size::Bulk => Size::Large,
        }
    }

    /// The next larger one.
    pub const fn more(self) -> Size {
        match self {
            Size::Small => Size::Large,
            Size::Large | Size::Bulk => Size::Bulk,
        }
    }

    /// How many blocks lie in wait at most: 1 MiB for each thread and size.
    const fn kept(self) -> usize {
        match self {
            Size::Small => 64,
            Size::Large => 16,
            Size::Bulk => 4,
        }
    }
}

/// Blocks of [`Size::Bulk`] in use at a time, for each thread: 4 MiB. Who comes later gets [`Size::Large`].
const BULK_USED: usize = 16;

/// Borrowed memory whose bytes can be written anywhere; `start..end` is in use. Goes back when it is dropped. The
/// default holds no memory.
#[derive(Debug, Default)]
pub struct Block {
    bytes: Box<[u8]>,
    /// Where what is in use begins.
    pub start: usize,
    /// Where what is in use ends, and the room begins.
    pub end: usize,
}

impl Block {
    /// A block of this size, or of less if too much is in use.
    pub fn take(size: Size) -> Block {
        let bytes = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let size = if size == Size::Bulk && pool.bulk >= BULK_USED { Size::Large } else { size };
            pool.bulk += usize::from(size == Size::Bulk);
            pool.blocks[size as usize].pop().unwrap_or_else(|| vec![0; size.bytes()].into())
        });
        Block { bytes: bytes.unwrap_or_else(|_| vec![0; Size::Small.bytes()].into()), start: 0, end: 0 }
    }

    /// What is in use.
    pub fn used(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    /// All of it.
    pub fn all(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// All of it, to read from.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is not in use yet, behind that which is.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// How large it is.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing is in use.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return;
        }
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let sizes = [Size::Small, Size::Large, Size::Bulk];
            if let Some(size) = sizes.into_iter().find(|size| size.bytes() == bytes.len()) {
                pool.bulk -= usize::from(size == Size::Bulk && pool.bulk > 0);
                let shelf = &mut pool.blocks[size as usize];
                if shelf.len() < size.kept() {
                    shelf.push(bytes);
                }
            }
        });
    }
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
    fn what_is_in_use_is_not_handed_out() {
        let mut buffer = take(SMALL);
        buffer.extend_from_slice(b"kept");
        let slice = buffer.split_to(4).freeze();
        give(buffer, SMALL);
        let mut other = take(SMALL);
        other.extend_from_slice(b"else");
        assert_eq!(&slice[..], b"kept");
        assert_eq!(other.as_ptr(), slice.as_ptr().wrapping_add(4), "small messages share one");
        let mut large = take(LARGE);
        large.extend_from_slice(b"kept");
        let slice = large.split_to(4).freeze();
        give(large, LARGE);
        assert!(take(LARGE).capacity() >= LARGE);
        assert_eq!(&slice[..], b"kept");
    }

    #[test]
    fn many_small_messages_need_few_buffers() {
        let mut kept = Vec::new();
        let mut buffers = std::collections::BTreeSet::new();
        for _ in 0..256 {
            let mut buffer = take(SMALL);
            buffer.resize(1200, b'x');
            kept.push(buffer.split_to(1200).freeze());
            buffers.insert(buffer.as_ptr() as usize / SMALL);
            give(buffer, SMALL);
        }
        let bytes: usize = kept.iter().map(|one| one.len()).sum();
        assert!(buffers.len() * SMALL < 5 * bytes, "{} buffers", buffers.len());
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
    fn large_blocks_are_few() {
        let taken: Vec<Block> = (0..BULK_USED + 1).map(|_| Block::take(Size::Bulk)).collect();
        let sizes: Vec<usize> = taken.iter().map(Block::capacity).collect();
        assert!(sizes[..BULK_USED].iter().all(|size| *size == Size::Bulk.bytes()));
        assert_eq!(sizes[BULK_USED], Size::Large.bytes());
        drop(taken);
        assert_eq!(Block::take(Size::Bulk).capacity(), Size::Bulk.bytes(), "those that went back count no more");
        POOL.with_borrow(|pool| {
            assert_eq!((pool.blocks[2].len(), pool.blocks[1].len(), pool.bulk), (Size::Bulk.kept(), 1, 0));
        });
        (0..4).for_each(|_| sweep());
        assert!(POOL.with_borrow(|pool| pool.blocks.iter().all(Vec::is_empty)));
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
