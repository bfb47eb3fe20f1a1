//! What streams send: heads and small content straight into the out-buffer, the rest in turns.
//!
//! A stream that lacks the connection's window, or room in its out-buffer, stands in the queue `ready`: with content
//! that is pending it is served one frame at a time, without it is woken to send some. Invariant: whoever waits for
//! capacity is in that queue, has content pending, or has no window of its own.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::connection::{Connection, OUT_LIMIT, Role};
use super::frame::{self, HEAD, flag, kind};
use super::head;
use super::slot::register;
use crate::error::Error;
use crate::message::{Headers, ResponseHead};

/// Largest DATA frame sent: one TLS record's worth, so that streams take turns.
const DATA_FRAME: usize = 16_384;

impl Connection {
    /// Fails when the stream is over, or when the sender has said everything already.
    fn check_send(&self, key: u32) -> Result<(), Error> {
        let slot = &self.slots[key];
        match &slot.error {
            Some(error) => Err(error.clone()),
            None if slot.send_done || !slot.open => Err(Error::Cancelled),
            None => Ok(()),
        }
    }

    pub(super) fn send_response(&mut self, key: u32, head: &ResponseHead, end_stream: bool) -> Result<(), Error> {
        self.check_send(key)?;
        let slot = &mut self.slots[key];
        if slot.head_sent || self.role == Role::Client {
            return Err(Error::Cancelled);
        }
        let max_frame = self.peer.max_frame as usize;
        frame::write_headers(&mut self.out, &mut self.encoder, slot.id, end_stream, max_frame, |encoder, out| {
            head::write_response(encoder, head, out);
        });
        slot.head_sent = !head.is_informational();
        if end_stream {
            self.end(key);
        }
        self.notify();
        Ok(())
    }

    /// END_STREAM is in the out-buffer.
    fn end(&mut self, key: u32) {
        let slot = &mut self.slots[key];
        slot.send_done = true;
        slot.local_end = true;
        self.settle(key);
    }

    pub(super) fn poll_capacity(&mut self, key: u32, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Err(error) = self.check_send(key) {
            return Poll::Ready(Err(error));
        }
        let slot = &self.slots[key];
        if slot.pending.is_empty() && slot.send_window > 0 {
            if self.may_send(key) {
                return Poll::Ready(Ok(()));
            }
            self.enqueue(key);
            if self.send_window > 0 && self.out.len() < OUT_LIMIT {
                self.notify();
            }
        }
        register(&mut self.slots[key].send_waker, cx.waker());
        Poll::Pending
    }

    /// True when the connection's window and buffer have room, and nobody waits who was here first.
    fn may_send(&self, key: u32) -> bool {
        let first = self.ready.is_empty() || self.slots[key].granted;
        first && self.send_window > 0 && self.out.len() < OUT_LIMIT
    }

    pub(super) fn send_data(&mut self, key: u32, data: Bytes, end_stream: bool) -> Result<(), Error> {
        self.check_send(key)?;
        let now = self.may_send(key);
        let slot = &mut self.slots[key];
        slot.send_done = end_stream;
        if slot.pending.is_empty() {
            slot.pending = data;
        } else {
            slot.pending = [&slot.pending[..], &data].concat().into();
        }
        slot.granted = false;
        if slot.pending.is_empty() {
            if end_stream {
                self.out.small().extend_from_slice(&frame::head(0, kind::DATA, flag::END_STREAM, slot.id));
                self.end(key);
            }
        } else if slot.send_window > 0 {
            if now && !slot.queued {
                self.send_pending(key);
            } else {
                self.enqueue(key);
            }
        }
        self.notify();
        Ok(())
    }

    pub(super) fn send_trailers(&mut self, key: u32, trailers: &Headers) -> Result<(), Error> {
        self.check_send(key)?;
        let slot = &mut self.slots[key];
        slot.send_done = true;
        if slot.pending.is_empty() {
            self.write_trailers(key, trailers);
        } else {
            slot.pending_trailers = Some(trailers.clone());
        }
        self.notify();
        Ok(())
    }

    fn write_trailers(&mut self, key: u32, trailers: &Headers) {
        let max_frame = self.peer.max_frame as usize;
        let id = self.slots[key].id;
        if trailers.is_empty() {
            self.out.small().extend_from_slice(&frame::head(0, kind::DATA, flag::END_STREAM, id));
        } else {
            frame::write_headers(&mut self.out, &mut self.encoder, id, true, max_frame, |encoder, out| {
                head::write_fields(encoder, trailers, out);
            });
        }
        self.end(key);
    }

    /// Writes one frame of what is pending; then either queues for the next, or writes what follows the last one.
    /// That may end the stream, and with it the slot.
    fn send_pending(&mut self, key: u32) {
        let slot = &mut self.slots[key];
        let window = slot.send_window.min(self.send_window).max(0) as usize;
        let len = slot.pending.len().min(window).min(DATA_FRAME).min(self.peer.max_frame as usize);
        if len == 0 {
            return;
        }
        let chunk = slot.pending.split_to(len);
        slot.send_window -= len as i64;
        self.send_window -= len as i64;
        let over = slot.pending.is_empty() && slot.send_done && slot.pending_trailers.is_none();
        let flags = if over { flag::END_STREAM } else { 0 };
        let written: [u8; HEAD] = frame::head(len, kind::DATA, flags, slot.id);
        self.out.small().extend_from_slice(&written);
        self.out.chunk(chunk);
        if !slot.pending.is_empty() {
            if slot.send_window > 0 {
                self.enqueue(key);
            }
            return;
        }
        slot.pending = Bytes::new();
        self.woke |= slot.wake_send();
        if over {
            self.end(key);
        } else if let Some(trailers) = slot.pending_trailers.take() {
            self.write_trailers(key, &trailers);
        }
    }

    /// The stream's window has grown.
    pub(super) fn window_opened(&mut self, key: u32) {
        let slot = &mut self.slots[key];
        if slot.send_window <= 0 {
            return;
        }
        if slot.pending.is_empty() {
            self.woke |= slot.wake_send();
        } else {
            self.enqueue(key);
            self.notify();
        }
    }

    /// Moves queued data into the out-buffer as far as window and buffer allow, one frame of each stream at a time.
    /// True when it has to be called again although nothing may happen until then: those who were woken to send may
    /// choose not to.
    pub(super) fn pump(&mut self) -> bool {
        // What woken streams are expected to send, so that no more are woken than can send.
        let mut promised = 0;
        while self.out.len() + promised < OUT_LIMIT && self.send_window > promised as i64 {
            let Some(key) = self.ready.pop_front() else { return false };
            let slot = &mut self.slots[key];
            slot.queued = false;
            if slot.pending.is_empty() {
                promised += DATA_FRAME.min(slot.send_window.max(0) as usize);
                slot.granted = true;
                self.woke |= slot.wake_send();
                continue;
            }
            self.send_pending(key);
        }
        promised > 0 && !self.ready.is_empty()
    }

    fn enqueue(&mut self, key: u32) {
        let slot = &mut self.slots[key];
        if !slot.queued {
            slot.queued = true;
            self.ready.push_back(key);
        }
    }
}
