//! Frames that come in: what each does to the connection, and what the RFC says when it should not have come.
//!
//! An error of a stream resets that stream; an error of the connection (`Fatal`) ends it with GOAWAY. Whatever a peer
//! can make us queue is counted.

use bytes::{Buf, Bytes, BytesMut};

use super::code;
use super::connection::{Connection, Fatal, GOAWAY_PING, Role};
use super::frame::{self, FrameHead, HEAD, MAX_31, MAX_MAX_FRAME, MIN_MAX_FRAME, PREFACE, flag, kind, setting};
use super::head::{self, Flaw, Judged};
use super::hpack::Undecodable;
use super::slot::{Method, Slot};
use crate::error::Error;
use crate::message::{Headers, RequestHead};

/// DATA from this size on is handed to its reader as a slice of the read buffer; smaller ones are copied, so that a
/// few bytes never hold a whole buffer.
const SLICE_FROM: usize = 4096;
/// CONTINUATION frames per header block.
const MAX_CONTINUATIONS: u32 = 32;
/// Informational heads that wait for their reader.
const MAX_HEADS: usize = 16;
/// Frames without use (empty DATA, PING, SETTINGS, PRIORITY, unknown types...) per second.
const MAX_USELESS: u32 = 20_000;
/// Answers (PING and SETTINGS acknowledgements, resets of closed streams) that wait to be written.
const MAX_ANSWERS: u32 = 5_000;

/// A header block that is not complete yet.
pub(super) struct Block {
    stream: u32,
    end_stream: bool,
    refuse: bool,
    bytes: Vec<u8>,
    frames: u32,
}

fn fatal<T>(code: u32, why: &'static str) -> Result<T, Fatal> {
    Err(Fatal { code, why })
}

impl From<Undecodable> for Fatal {
    fn from(Undecodable(why): Undecodable) -> Self {
        Fatal { code: code::COMPRESSION_ERROR, why }
    }
}

impl Connection {
    /// Takes all whole frames out of the buffer.
    pub(super) fn receive(&mut self, buffer: &mut BytesMut) -> Result<(), Fatal> {
        let mut at = self.receive_preface(buffer)?;
        if self.preface_left > 0 {
            buffer.clear();
            return Ok(());
        }
        while let Some(head) = FrameHead::read(&buffer[at..]) {
            if head.len > self.config.max_frame_size as usize {
                return fatal(code::FRAME_SIZE_ERROR, "frame larger than allowed");
            }
            let end = at + HEAD + head.len;
            if head.kind == kind::DATA && head.len >= SLICE_FROM {
                buffer.advance(at);
                at = 0;
                if buffer.len() < HEAD + head.len {
                    break;
                }
                let payload = buffer.split_to(HEAD + head.len).freeze().slice(HEAD..);
                self.admit(head)?;
                self.receive_data(head, &payload, Some(&payload))?;
                continue;
            }
            let Some(payload) = buffer.get(at + HEAD..end) else { break };
            self.admit(head)?;
            self.receive_frame(head, payload)?;
            at = end;
        }
        buffer.advance(at);
        Ok(())
    }

    /// Says how much of the buffer belongs to the client's preface.
    fn receive_preface(&mut self, buffer: &[u8]) -> Result<usize, Fatal> {
        let len = self.preface_left.min(buffer.len());
        let start = PREFACE.len() - self.preface_left;
        if buffer[..len] != PREFACE[start..start + len] {
            return fatal(code::PROTOCOL_ERROR, "not an HTTP/2 preface");
        }
        self.preface_left -= len;
        Ok(len)
    }

    /// Checks that a frame of this kind may come now.
    fn admit(&mut self, head: FrameHead) -> Result<(), Fatal> {
        if !self.peer.seen && (head.kind != kind::SETTINGS || head.has(flag::ACK)) {
            return fatal(code::PROTOCOL_ERROR, "first frame is not SETTINGS");
        }
        if let Some(block) = &self.block
            && (head.kind != kind::CONTINUATION || head.stream != block.stream)
        {
            return fatal(code::PROTOCOL_ERROR, "header block interrupted");
        }
        Ok(())
    }

    fn receive_frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        match head.kind {
            kind::DATA => self.receive_data(head, payload, None),
            kind::HEADERS => self.receive_headers(head, payload),
            kind::PRIORITY => self.receive_priority(head, payload),
            kind::RST_STREAM => self.receive_reset(head, payload),
            kind::SETTINGS => self.receive_settings(head, payload),
            kind::PUSH_PROMISE => fatal(code::PROTOCOL_ERROR, "PUSH_PROMISE is disabled"),
            kind::PING => self.receive_ping(head, payload),
            kind::GOAWAY => self.receive_goaway(head, payload),
            kind::WINDOW_UPDATE => self.receive_window_update(head, payload),
            kind::CONTINUATION => self.receive_continuation(head, payload),
            _ => self.useless(),
        }
    }

    fn useless(&mut self) -> Result<(), Fatal> {
        self.abuse.useless += 1;
        if self.abuse.useless > MAX_USELESS {
            return fatal(code::ENHANCE_YOUR_CALM, "too many frames without use");
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<(), Fatal> {
        self.abuse.answers += 1;
        if self.abuse.answers > MAX_ANSWERS {
            return fatal(code::ENHANCE_YOUR_CALM, "peer does not read its answers");
        }
        Ok(())
    }

    /// Never used by either side.
    fn idle(&self, id: u32) -> bool {
        match self.role {
            Role::Server => id.is_multiple_of(2) || id > self.last_peer_id,
            Role::Client => id.is_multiple_of(2) || id >= self.next_id,
        }
    }

    /// `Some(reset by us)` for a closed stream that is remembered.
    fn remembered(&self, id: u32) -> Option<bool> {
        self.closed_ids.iter().rev().find(|(closed, _)| *closed == id).map(|(_, by_us)| *by_us)
    }

    /// An error of one stream: the peer is told, and so is the stream's handle.
    fn refuse(&mut self, key: u32, code: u32, error: Error) -> Result<(), Fatal> {
        self.begun_for_nothing(key)?;
        self.reset(key, code, error);
        Ok(())
    }

    fn malformed(&mut self, key: u32, why: &'static str) -> Result<(), Fatal> {
        self.refuse(key, code::PROTOCOL_ERROR, Error::Malformed(why))
    }

    /// Counts requests that the peer gave up, or made us give up, before they were answered (CVE-2023-44487,
    /// CVE-2025-8671).
    fn begun_for_nothing(&mut self, key: u32) -> Result<(), Fatal> {
        if self.role == Role::Server && !self.slots[key].head_sent {
            self.abuse.resets += 1;
            if self.abuse.resets > self.config.max_resets_per_second {
                return fatal(code::ENHANCE_YOUR_CALM, "too many resets");
            }
        }
        Ok(())
    }

    /// Answers a frame on a stream that is not there any more.
    fn reset_closed(&mut self, id: u32, code: u32) -> Result<(), Fatal> {
        self.answer()?;
        self.useless()?;
        frame::write_reset(&mut self.out, id, code);
        Ok(())
    }

    // ---- DATA

    fn receive_data(&mut self, head: FrameHead, payload: &[u8], owned: Option<&Bytes>) -> Result<(), Fatal> {
        if head.stream == 0 {
            return fatal(code::PROTOCOL_ERROR, "DATA on stream 0");
        }
        let flow = payload.len();
        if flow as i64 > self.recv_window {
            return fatal(code::FLOW_CONTROL_ERROR, "connection window exceeded");
        }
        self.recv_window -= flow as i64;
        let Some(data) = frame::unpad(head, payload) else {
            return fatal(code::PROTOCOL_ERROR, "more padding than frame");
        };
        let Some(key) = self.slots.find(head.stream) else {
            if self.idle(head.stream) {
                return fatal(code::PROTOCOL_ERROR, "DATA on an idle stream");
            }
            self.credit(flow);
            return match self.remembered(head.stream) {
                Some(true) => self.useless(),
                _ => self.reset_closed(head.stream, code::STREAM_CLOSED),
            };
        };
        let end = head.has(flag::END_STREAM);
        if data.is_empty() && !end {
            self.useless()?;
        }
        let slot = &mut self.slots[key];
        let refused = if slot.remote_end {
            Some((code::STREAM_CLOSED, Error::Malformed("DATA after the end")))
        } else if flow as i64 > slot.recv_window {
            Some((code::FLOW_CONTROL_ERROR, Error::Malformed("stream window exceeded")))
        } else if self.role == Role::Client && !slot.head_received {
            Some((code::PROTOCOL_ERROR, Error::Malformed("DATA before the head")))
        } else if !fits(slot, data.len(), end) {
            Some((code::PROTOCOL_ERROR, Error::Malformed("content-length differs from the content")))
        } else {
            None
        };
        if let Some((code, error)) = refused {
            self.credit(flow);
            return self.refuse(key, code, error);
        }
        slot.recv_window -= flow as i64;
        slot.remote_end = end;
        let held = slot.held;
        if held && !data.is_empty() {
            slot.push_data(data, owned);
        }
        if held && (end || !data.is_empty()) {
            self.woke |= slot.wake_recv();
        }
        // Padding is disposed of already, and so is what nobody will read.
        let kept = if held { data.len() } else { 0 };
        if flow > kept {
            self.consumed(key, flow - kept);
            self.credit(flow - kept);
        }
        if end {
            self.settle(key);
        }
        Ok(())
    }

    // ---- HEADERS and CONTINUATION

    fn receive_headers(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return fatal(code::PROTOCOL_ERROR, "HEADERS on stream 0");
        }
        let Some(mut block) = frame::unpad(head, payload) else {
            return fatal(code::PROTOCOL_ERROR, "more padding than frame");
        };
        let mut refuse = false;
        if head.has(flag::PRIORITY) {
            let Some((priority, rest)) = block.split_at_checked(5) else {
                return fatal(code::FRAME_SIZE_ERROR, "HEADERS too short");
            };
            refuse = frame::word(priority) & MAX_31 == head.stream;
            block = rest;
        }
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return self.receive_block(head.stream, end_stream, refuse, block);
        }
        self.check_block(head.stream, block.len(), 0)?;
        self.block = Some(Block { stream: head.stream, end_stream, refuse, bytes: block.to_vec(), frames: 0 });
        Ok(())
    }

    fn receive_continuation(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        let Some(mut block) = self.block.take() else {
            return fatal(code::PROTOCOL_ERROR, "CONTINUATION without HEADERS");
        };
        block.frames += 1;
        self.check_block(block.stream, block.bytes.len() + payload.len(), block.frames)?;
        block.bytes.extend_from_slice(payload);
        if head.has(flag::END_HEADERS) {
            return self.receive_block(block.stream, block.end_stream, block.refuse, &block.bytes);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A block must be decoded even when its head is refused, so an endless one ends the connection.
    fn check_block(&mut self, stream: u32, bytes: usize, frames: u32) -> Result<(), Fatal> {
        // Plain literals are hardly larger than the list they make.
        let max = self.config.max_header_list as usize * 2 + MIN_MAX_FRAME as usize;
        if bytes > max || frames > MAX_CONTINUATIONS {
            // Not to be tried again elsewhere: GOAWAY must not say that it was left untouched.
            self.last_peer_id = self.last_peer_id.max(stream);
            return fatal(code::ENHANCE_YOUR_CALM, "header block too large");
        }
        Ok(())
    }

    fn receive_block(&mut self, id: u32, end_stream: bool, refuse: bool, block: &[u8]) -> Result<(), Fatal> {
        match self.slots.find(id) {
            Some(key) if refuse => {
                self.skip_block(block)?;
                self.malformed(key, "stream depends on itself")
            }
            Some(key) if self.slots[key].remote_end => {
                self.skip_block(block)?;
                self.refuse(key, code::STREAM_CLOSED, Error::Malformed("HEADERS after the end"))
            }
            Some(key) if self.role == Role::Client && !self.slots[key].head_received => {
                self.receive_response(key, end_stream, block)
            }
            Some(key) => self.receive_trailers(key, end_stream, block),
            None if self.role == Role::Server && id % 2 == 1 && id > self.last_peer_id => {
                self.receive_request(id, end_stream, refuse, block)
            }
            None => self.receive_late_block(id, block),
        }
    }

    /// Decodes a block for the sake of the tables.
    fn skip_block(&mut self, block: &[u8]) -> Result<(), Fatal> {
        Ok(self.decoder.decode(block, |_| ())?)
    }

    fn receive_late_block(&mut self, id: u32, block: &[u8]) -> Result<(), Fatal> {
        self.skip_block(block)?;
        if self.idle(id) {
            return fatal(code::PROTOCOL_ERROR, "HEADERS on an idle stream");
        }
        match self.remembered(id) {
            Some(true) => self.useless(),
            Some(false) => fatal(code::STREAM_CLOSED, "HEADERS on a closed stream"),
            None if id <= self.forgotten_id => self.reset_closed(id, code::STREAM_CLOSED),
            None => fatal(code::PROTOCOL_ERROR, "stream id below an earlier one"),
        }
    }

    fn receive_request(&mut self, id: u32, end_stream: bool, refuse: bool, block: &[u8]) -> Result<(), Fatal> {
        let mut request = RequestHead::default();
        let judged = head::read_request(
            &mut self.decoder,
            block,
            &mut request,
            self.config.max_header_list,
            self.config.enable_connect_protocol,
        )?;
        if self.goaway_sent.is_some_and(|last| id > last) {
            // The peer knows, or will soon, that this stream is not processed.
            return self.useless();
        }
        self.last_peer_id = id;
        let max = self.config.max_concurrent_streams as usize;
        // Streams that were reset count until they are let go, with some grace.
        if self.open >= max || self.slots.used() >= 2 * max || self.owners == 0 {
            self.remember_closed(id, true);
            return self.reset_closed(id, code::REFUSED_STREAM);
        }
        let key = self.slots.insert(id);
        self.open += 1;
        let slot = &mut self.slots[key];
        // Until the peer has acknowledged our settings it may count on the default window.
        let unaware = if self.settings_acked { 0 } else { frame::DEFAULT_WINDOW };
        slot.recv_window = i64::from(self.config.stream_window.max(unaware));
        slot.send_window = i64::from(self.peer.initial_window);
        slot.remote_end = end_stream;
        slot.expected = judged.content_length.filter(|_| request.method != http::Method::CONNECT);
        let flaw = match judged.flaw {
            None if refuse => Some(Flaw::Malformed("stream depends on itself")),
            None if !fits(slot, 0, end_stream) => Some(Flaw::Malformed("content-length without content")),
            flaw => flaw,
        };
        match flaw {
            None => self.accept.push_back((key, request)),
            Some(flaw) => {
                self.useless()?;
                let why = match flaw {
                    Flaw::Malformed(why) => {
                        self.malformed(key, why)?;
                        Error::Malformed(why)
                    }
                    Flaw::TooLarge => Error::HeadTooLarge,
                };
                self.refused.push_back((key, request, why));
            }
        }
        if let Some(waker) = self.accept_waker.take() {
            waker.wake();
            self.woke = true;
        }
        Ok(())
    }

    fn receive_response(&mut self, key: u32, end_stream: bool, block: &[u8]) -> Result<(), Fatal> {
        let mut headers = Headers::new();
        let max = self.config.max_header_list;
        let (status, judged) = head::read_response(&mut self.decoder, block, &mut headers, max)?;
        if let Some(flaw) = judged.flaw {
            return self.refuse_flaw(key, flaw);
        }
        let slot = &mut self.slots[key];
        if (100..200).contains(&status) {
            if end_stream {
                return self.malformed(key, "informational head ends the stream");
            }
            if slot.heads.len() >= MAX_HEADS {
                return self.refuse(key, code::ENHANCE_YOUR_CALM, Error::HeadTooLarge);
            }
        } else {
            slot.head_received = true;
            slot.expected = match (status, slot.method) {
                (204 | 304, _) | (_, Method::Head) => Some(0),
                // A tunnel has no message and no length (RFC 9110 section 9.3.6).
                (200..300, Method::Connect) => None,
                _ => judged.content_length,
            };
            if !fits(slot, 0, end_stream) {
                return self.malformed(key, "content-length without content");
            }
        }
        slot.remote_end = end_stream;
        slot.heads.push_back((status, headers));
        self.woke |= slot.wake_recv();
        if end_stream {
            self.settle(key);
        }
        Ok(())
    }

    fn receive_trailers(&mut self, key: u32, end_stream: bool, block: &[u8]) -> Result<(), Fatal> {
        let mut trailers = Headers::new();
        let max = self.config.max_header_list;
        let Judged { flaw, .. } = head::read_trailers(&mut self.decoder, block, &mut trailers, max)?;
        if let Some(flaw) = flaw {
            return self.refuse_flaw(key, flaw);
        }
        if !end_stream {
            return self.malformed(key, "trailers without the end");
        }
        let slot = &mut self.slots[key];
        if !fits(slot, 0, true) {
            return self.malformed(key, "content-length differs from the content");
        }
        slot.remote_end = true;
        if slot.held {
            slot.trailers = Some(trailers);
        }
        self.woke |= slot.wake_recv();
        self.settle(key);
        Ok(())
    }

    fn refuse_flaw(&mut self, key: u32, flaw: Flaw) -> Result<(), Fatal> {
        match flaw {
            Flaw::Malformed(why) => self.malformed(key, why),
            Flaw::TooLarge => self.refuse(key, code::ENHANCE_YOUR_CALM, Error::HeadTooLarge),
        }
    }

    // ---- The small ones

    fn receive_priority(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 {
            return fatal(code::PROTOCOL_ERROR, "PRIORITY on stream 0");
        }
        let wrong = match payload.len() {
            5 if frame::word(payload) & MAX_31 == head.stream => Some(code::PROTOCOL_ERROR),
            5 => None,
            _ => Some(code::FRAME_SIZE_ERROR),
        };
        match (wrong, self.slots.find(head.stream)) {
            (None, _) => self.useless(),
            (Some(code), Some(key)) => self.refuse(key, code, Error::Malformed("bad PRIORITY")),
            // A reset of an idle stream would be an error of ours.
            (Some(code), None) if self.idle(head.stream) => fatal(code, "bad PRIORITY"),
            (Some(code), None) => self.reset_closed(head.stream, code),
        }
    }

    fn receive_reset(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream == 0 || self.idle(head.stream) {
            return fatal(code::PROTOCOL_ERROR, "RST_STREAM on an idle stream");
        }
        if payload.len() != 4 {
            return fatal(code::FRAME_SIZE_ERROR, "RST_STREAM is four octets");
        }
        let Some(key) = self.slots.find(head.stream) else { return self.useless() };
        let code = frame::word(payload);
        self.begun_for_nothing(key)?;
        let error = if code == code::REFUSED_STREAM { Error::Refused } else { Error::Reset(code) };
        self.close(key, Some(error));
        // Nobody has seen the request yet: nobody needs to.
        if let Some(at) = self.accept.iter().position(|(waiting, _)| *waiting == key) {
            self.accept.remove(at);
            self.release(key);
        }
        Ok(())
    }

    fn receive_settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return fatal(code::PROTOCOL_ERROR, "SETTINGS on a stream");
        }
        if head.has(flag::ACK) {
            if !payload.is_empty() {
                return fatal(code::FRAME_SIZE_ERROR, "acknowledgement with settings");
            }
            self.settings_acked = true;
            return self.useless();
        }
        if !payload.len().is_multiple_of(6) {
            return fatal(code::FRAME_SIZE_ERROR, "SETTINGS are six octets each");
        }
        self.useless()?;
        self.answer()?;
        if !self.peer.seen {
            self.peer.seen = true;
            self.peer.max_streams = u32::MAX;
        }
        for setting in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            self.receive_setting(name, frame::word(&setting[2..]))?;
        }
        frame::write_settings_ack(&mut self.out);
        self.wake_openers();
        Ok(())
    }

    fn receive_setting(&mut self, name: u16, value: u32) -> Result<(), Fatal> {
        match name {
            setting::HEADER_TABLE_SIZE => self.encoder.set_peer_max(value),
            setting::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return fatal(code::PROTOCOL_ERROR, "bad ENABLE_PUSH");
            }
            setting::MAX_CONCURRENT_STREAMS => self.peer.max_streams = value,
            setting::INITIAL_WINDOW_SIZE => {
                if value > MAX_31 {
                    return fatal(code::FLOW_CONTROL_ERROR, "bad INITIAL_WINDOW_SIZE");
                }
                let by = i64::from(value) - i64::from(self.peer.initial_window);
                self.peer.initial_window = value;
                if by != 0 {
                    for key in self.slots.open() {
                        self.slots[key].send_window += by;
                        if self.slots[key].send_window > i64::from(MAX_31) {
                            return fatal(code::FLOW_CONTROL_ERROR, "window too large");
                        }
                        self.window_opened(key);
                    }
                }
            }
            setting::MAX_FRAME_SIZE => {
                if !(MIN_MAX_FRAME..=MAX_MAX_FRAME).contains(&value) {
                    return fatal(code::PROTOCOL_ERROR, "bad MAX_FRAME_SIZE");
                }
                self.peer.max_frame = value;
            }
            setting::ENABLE_CONNECT_PROTOCOL => {
                if value > 1 || (value == 0 && self.peer.connect_protocol) {
                    return fatal(code::PROTOCOL_ERROR, "bad ENABLE_CONNECT_PROTOCOL");
                }
                self.peer.connect_protocol = value == 1;
            }
            // MAX_HEADER_LIST_SIZE is advice that heads which are passed on cannot follow; the rest is unknown.
            _ => (),
        }
        Ok(())
    }

    fn receive_ping(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return fatal(code::PROTOCOL_ERROR, "PING on a stream");
        }
        let Ok(payload) = <[u8; 8]>::try_from(payload) else {
            return fatal(code::FRAME_SIZE_ERROR, "PING is eight octets");
        };
        self.useless()?;
        if !head.has(flag::ACK) {
            self.answer()?;
            frame::write_ping(&mut self.out, true, payload);
        } else if payload == GOAWAY_PING && self.goaway_ping {
            self.last_goaway();
        }
        // Others are of keep-alive, for which it counts that anything came.
        Ok(())
    }

    fn receive_goaway(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if head.stream != 0 {
            return fatal(code::PROTOCOL_ERROR, "GOAWAY on a stream");
        }
        if payload.len() < 8 {
            return fatal(code::FRAME_SIZE_ERROR, "GOAWAY too short");
        }
        self.useless()?;
        let last = frame::word(payload) & MAX_31;
        self.goaway_received = Some((last, frame::word(&payload[4..])));
        if self.role == Role::Client {
            for key in self.slots.open() {
                if self.slots[key].id > last {
                    self.close(key, Some(Error::Refused));
                }
            }
        }
        self.wake_openers();
        Ok(())
    }

    fn receive_window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fatal> {
        if payload.len() != 4 {
            return fatal(code::FRAME_SIZE_ERROR, "WINDOW_UPDATE is four octets");
        }
        let by = i64::from(frame::word(payload) & MAX_31);
        if head.stream == 0 {
            self.send_window += by;
            return match (by, self.send_window > i64::from(MAX_31)) {
                (0, _) => fatal(code::PROTOCOL_ERROR, "WINDOW_UPDATE of nothing"),
                (_, true) => fatal(code::FLOW_CONTROL_ERROR, "window too large"),
                _ => Ok(()),
            };
        }
        let Some(key) = self.slots.find(head.stream) else {
            if self.idle(head.stream) {
                return fatal(code::PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream");
            }
            return self.useless();
        };
        let slot = &mut self.slots[key];
        slot.send_window += by;
        match (by, slot.send_window > i64::from(MAX_31)) {
            (0, _) => self.malformed(key, "WINDOW_UPDATE of nothing"),
            (_, true) => self.refuse(key, code::FLOW_CONTROL_ERROR, Error::Malformed("window too large")),
            _ => {
                self.window_opened(key);
                Ok(())
            }
        }
    }
}

/// Counts received content against what `content-length` announced.
fn fits(slot: &mut Slot, len: usize, end: bool) -> bool {
    let Some(expected) = &mut slot.expected else { return true };
    let Some(left) = expected.checked_sub(len as u64) else { return false };
    *expected = left;
    !end || left == 0
}
