//! The streams of one connection: their state, found by id, kept in slots that are used again.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::Waker;

use bytes::{Bytes, BytesMut};

use crate::error::Error;
use crate::message::Headers;

/// Chunks up to this size are gathered into one while nobody reads them, so that many tiny DATA frames cannot hold
/// much more memory than the window admits.
const GATHER_UP_TO: usize = 4096;

/// The methods that change the meaning of a response's `content-length`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Method {
    Head,
    Connect,
    #[default]
    Other,
}

/// The state of one stream.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) id: u32,
    /// A handle, or the queue of accepted requests, refers to this slot.
    pub(super) held: bool,
    /// Open in the protocol's sense: found by id and counted.
    pub(super) open: bool,
    /// Why the stream ended early.
    pub(super) error: Option<Error>,

    // Receiving.
    /// END_STREAM has come.
    pub(super) remote_end: bool,
    /// A client has got the final head.
    pub(super) head_received: bool,
    /// A client's request, as far as it decides what the response's fields mean.
    pub(super) method: Method,
    /// What the peer may still send.
    pub(super) recv_window: i64,
    /// Taken by the reader, not announced to the peer yet.
    pub(super) unannounced: u32,
    /// What `content-length` says is still to come.
    pub(super) expected: Option<u64>,
    pub(super) heads: VecDeque<(u16, Headers)>,
    pub(super) trailers: Option<Headers>,
    data: VecDeque<Bytes>,
    gathered: BytesMut,
    /// Bytes in `data` and `gathered`.
    pub(super) buffered: usize,

    // Sending.
    /// A server has sent the final head.
    pub(super) head_sent: bool,
    /// The sender has said everything; some of it may wait in `pending`.
    pub(super) send_done: bool,
    /// END_STREAM is in the out-buffer.
    pub(super) local_end: bool,
    /// What we may still send.
    pub(super) send_window: i64,
    pub(super) pending: Bytes,
    pub(super) pending_trailers: Option<Headers>,
    /// In the queue for the connection's window and buffer.
    pub(super) queued: bool,
    /// Came out of that queue: may send ahead of those in it.
    pub(super) granted: bool,
    /// Nobody reads any more: reset with NO_ERROR once everything is sent.
    pub(super) abandon: bool,

    // Who waits.
    pub(super) recv_waker: Option<Waker>,
    pub(super) send_waker: Option<Waker>,
    pub(super) reset_waker: Option<Waker>,
}

impl Slot {
    /// Queues received data.
    pub(super) fn push_data(&mut self, data: &[u8], owned: Option<&Bytes>) {
        self.buffered += data.len();
        if let Some(owned) = owned {
            self.flush_gathered();
            self.data.push_back(owned.slice_ref(data));
        } else if self.gathered.is_empty() && self.data.is_empty() {
            self.data.push_back(Bytes::copy_from_slice(data));
        } else {
            self.gathered.extend_from_slice(data);
            if self.gathered.len() >= GATHER_UP_TO {
                self.flush_gathered();
            }
        }
    }

    fn flush_gathered(&mut self) {
        if !self.gathered.is_empty() {
            self.data.push_back(std::mem::take(&mut self.gathered).freeze());
        }
    }

    /// The next chunk of received data.
    pub(super) fn take_data(&mut self) -> Option<Bytes> {
        let data = match self.data.pop_front() {
            Some(data) => data,
            None if self.gathered.is_empty() => return None,
            None => std::mem::take(&mut self.gathered).freeze(),
        };
        self.buffered -= data.len();
        Some(data)
    }

    /// Drops what was received and says how many bytes of data that were.
    pub(super) fn discard(&mut self) -> usize {
        self.data.clear();
        self.gathered = BytesMut::new();
        self.heads.clear();
        self.trailers = None;
        std::mem::take(&mut self.buffered)
    }

    pub(super) fn wake_recv(&mut self) -> bool {
        wake(&mut self.recv_waker)
    }

    pub(super) fn wake_send(&mut self) -> bool {
        wake(&mut self.send_waker)
    }

    pub(super) fn wake_all(&mut self) -> bool {
        self.wake_recv() | self.wake_send() | wake(&mut self.reset_waker)
    }

    /// Makes the slot as new; what is allocated for queues stays.
    fn reset(&mut self) {
        let mut data = std::mem::take(&mut self.data);
        let mut heads = std::mem::take(&mut self.heads);
        data.clear();
        heads.clear();
        *self = Slot { data, heads, ..Slot::default() };
    }
}

/// Registers the task's waker, without a clone when it is there already.
pub(super) fn register(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(old) if old.will_wake(waker) => (),
        _ => *place = Some(waker.clone()),
    }
}

/// Wakes the task that waits there, and says whether there was one.
pub(super) fn wake(place: &mut Option<Waker>) -> bool {
    place.take().map(Waker::wake).is_some()
}

/// All slots.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
}

/// Slots, and places in queues of them, kept when no stream is left.
pub(super) const KEEP: usize = 16;

impl Slots {
    /// The number of slots in use.
    pub(super) fn used(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a slot for an open stream.
    pub(super) fn insert(&mut self, id: u32) -> u32 {
        let key = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[key as usize];
        slot.id = id;
        slot.held = true;
        slot.open = true;
        self.by_id.insert(id, key);
        key
    }

    /// The slot of an open stream.
    pub(super) fn find(&self, id: u32) -> Option<u32> {
        self.by_id.get(&id).copied()
    }

    /// Forgets the id; the slot stays until it is freed.
    pub(super) fn forget_id(&mut self, id: u32) {
        self.by_id.remove(&id);
    }

    pub(super) fn free(&mut self, key: u32) {
        self.slots[key as usize].reset();
        self.free.push(key);
        if self.used() == 0 && self.slots.len() > KEEP {
            *self = Slots::default();
        }
    }

    /// The keys of all open streams.
    pub(super) fn open(&self) -> Vec<u32> {
        self.by_id.values().copied().collect()
    }
}

impl std::ops::Index<u32> for Slots {
    type Output = Slot;
    fn index(&self, key: u32) -> &Slot {
        &self.slots[key as usize]
    }
}

impl std::ops::IndexMut<u32> for Slots {
    fn index_mut(&mut self, key: u32) -> &mut Slot {
        &mut self.slots[key as usize]
    }
}

/// Stream ids are sequential, and a peer can choose only which of them it leaves out: one multiplication will do.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8 | u64::from(byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_stays_small() {
        assert!(size_of::<Slot>() <= 512, "{}", size_of::<Slot>());
    }

    #[test]
    fn slots_are_used_again_and_do_not_pile_up() {
        let mut slots = Slots::default();
        for round in 0..100 {
            let key = slots.insert(round * 2 + 1);
            assert_eq!((key, slots.find(round * 2 + 1)), (0, Some(0)));
            slots.forget_id(round * 2 + 1);
            slots.free(key);
        }
        let keys: Vec<u32> = (0..100).map(|id| slots.insert(id)).collect();
        for (id, key) in keys.into_iter().enumerate() {
            slots.forget_id(id as u32);
            slots.free(key);
        }
        assert_eq!((slots.used(), slots.slots.capacity(), slots.by_id.capacity()), (0, 0, 0));
    }

    #[test]
    fn data_comes_out_as_it_went_in() {
        let mut slot = Slot::default();
        let large = Bytes::from(vec![9; 5000]);
        for at in 0..3000u32 {
            slot.push_data(&[at as u8], None);
            if at % 1000 == 0 {
                slot.push_data(&large[1..], Some(&large));
            }
        }
        assert_eq!(slot.buffered, 3000 + 3 * 4999);
        let mut chunks = 0;
        let mut all = Vec::new();
        while let Some(data) = slot.take_data() {
            chunks += 1;
            all.extend_from_slice(&data);
        }
        let mut expect = Vec::new();
        for at in 0..3000u32 {
            expect.push(at as u8);
            if at % 1000 == 0 {
                expect.extend([9; 4999]);
            }
        }
        assert!(all == expect && slot.buffered == 0);
        assert!(chunks < 10, "{chunks}: tiny frames are gathered");
    }
}
