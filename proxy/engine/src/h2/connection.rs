//! One connection's state, without I/O: what may be sent, what waits, who is to be woken.
//!
//! Senders write frames into the out-buffer from wherever they are and wake the driver, which writes everything that
//! has come together by its turn. Invariant: `open` is the number of ids in `slots`, and a slot is freed exactly when
//! it is neither held nor open.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use super::frame::{self, DEFAULT_WINDOW, MAX_31, MIN_MAX_FRAME, setting};
use super::hpack::{Decoder, Encoder};
use super::out::Out;
use super::receive::Block;
use super::slot::{self, Method, Slots, register, wake};
use super::{Config, code, head};
use crate::error::Error;
use crate::message::{RequestHead, ResponseHead};

/// Streams wait while the out-buffer holds this much: enough to fill a socket's buffer at once, and what a slow peer
/// can make a connection hold.
pub(super) const OUT_LIMIT: usize = 128 * 1024;
/// Remembered ids of closed streams.
const CLOSED: usize = 128;
/// The ping that tells when the first GOAWAY has arrived.
pub(super) const GOAWAY_PING: [u8; 8] = *b"goodbye?";
/// The ping of keep-alive.
pub(super) const ALIVE_PING: [u8; 8] = *b"alive?\0\0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// What the peer's SETTINGS say.
pub(super) struct PeerSettings {
    pub(super) seen: bool,
    pub(super) initial_window: u32,
    pub(super) max_frame: u32,
    pub(super) max_streams: u32,
    pub(super) connect_protocol: bool,
}

/// An error that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fatal {
    pub(super) code: u32,
    pub(super) why: &'static str,
}

pub(super) struct Connection {
    pub(super) role: Role,
    pub(super) config: Config,
    pub(super) out: Out,
    pub(super) encoder: Encoder,
    pub(super) decoder: Decoder,
    pub(super) slots: Slots,
    /// Streams that are open in the protocol's sense. Only clients open streams; nothing is ever pushed.
    pub(super) open: usize,
    /// The id a client uses next.
    pub(super) next_id: u32,
    /// The highest id that the peer has opened.
    pub(super) last_peer_id: u32,
    /// Lately closed ids, and whether we reset them; the highest id that is not remembered any more.
    pub(super) closed_ids: VecDeque<(u32, bool)>,
    pub(super) forgotten_id: u32,
    pub(super) peer: PeerSettings,
    pub(super) settings_acked: bool,

    pub(super) send_window: i64,
    pub(super) recv_window: i64,
    /// Received and disposed of, not announced yet.
    unannounced: u32,
    /// Slots that wait for the connection's window or buffer, each once.
    pub(super) ready: VecDeque<u32>,

    pub(super) accept: VecDeque<(u32, RequestHead)>,
    /// Requests that are to be refused.
    pub(super) refused: VecDeque<(u32, RequestHead, Error)>,
    pub(super) accept_waker: Option<Waker>,
    open_waiters: Vec<Waker>,

    /// Bytes of the client's preface that are still to come.
    pub(super) preface_left: usize,
    /// A header block that continues.
    pub(super) block: Option<Block>,

    /// No new streams; end when the open ones are done.
    pub(super) draining: bool,
    /// The server waits for the answer to `GOAWAY_PING`.
    pub(super) goaway_ping: bool,
    /// The last id we promised to process.
    pub(super) goaway_sent: Option<u32>,
    /// Last id and code of the peer's GOAWAY.
    pub(super) goaway_received: Option<(u32, u32)>,
    /// Nothing works any more.
    pub(super) dead: Option<Error>,
    /// Handles that may open streams (client) or accept them (server).
    pub(super) owners: usize,

    pub(super) abuse: Abuse,
    /// Tasks were woken since the driver last looked.
    pub(super) woke: bool,
    driver: Option<Waker>,
    notified: bool,
}

/// A request's slot, its head, and why it is to be refused.
pub(super) type Accepted = (u32, RequestHead, Option<Error>);

/// Counts what a peer does to no use, within the current second.
#[derive(Default)]
pub(super) struct Abuse {
    pub(super) resets: u32,
    pub(super) useless: u32,
    /// Answers queued since the out-buffer was last empty.
    pub(super) answers: u32,
}

impl Connection {
    pub(super) fn new(role: Role, config: Config) -> Self {
        let config = config.checked();
        let mut connection = Connection {
            role,
            out: Out::default(),
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            slots: Slots::default(),
            open: 0,
            next_id: 1,
            last_peer_id: 0,
            closed_ids: VecDeque::new(),
            forgotten_id: 0,
            peer: PeerSettings {
                seen: false,
                initial_window: DEFAULT_WINDOW,
                max_frame: MIN_MAX_FRAME,
                max_streams: config.streams_before_settings,
                connect_protocol: false,
            },
            settings_acked: false,
            send_window: i64::from(DEFAULT_WINDOW),
            recv_window: i64::from(DEFAULT_WINDOW),
            unannounced: 0,
            ready: VecDeque::new(),
            accept: VecDeque::new(),
            refused: VecDeque::new(),
            accept_waker: None,
            open_waiters: Vec::new(),
            preface_left: if role == Role::Server { frame::PREFACE.len() } else { 0 },
            block: None,
            draining: false,
            goaway_ping: false,
            goaway_sent: None,
            goaway_received: None,
            dead: None,
            owners: 1,
            abuse: Abuse::default(),
            woke: false,
            driver: None,
            notified: false,
            config,
        };
        connection.greet();
        connection
    }

    /// Writes what both sides say first.
    fn greet(&mut self) {
        let config = &self.config;
        let mut settings = vec![
            (setting::INITIAL_WINDOW_SIZE, config.stream_window),
            (setting::MAX_FRAME_SIZE, config.max_frame_size),
            (setting::MAX_HEADER_LIST_SIZE, config.max_header_list),
        ];
        match self.role {
            Role::Client => {
                self.out.small().extend_from_slice(frame::PREFACE);
                settings.push((setting::ENABLE_PUSH, 0));
            }
            Role::Server => {
                settings.push((setting::MAX_CONCURRENT_STREAMS, config.max_concurrent_streams));
                if config.enable_connect_protocol {
                    settings.push((setting::ENABLE_CONNECT_PROTOCOL, 1));
                }
            }
        }
        frame::write_settings(&mut self.out, &settings);
        let more = config.connection_window - DEFAULT_WINDOW;
        if more > 0 {
            frame::write_window_update(&mut self.out, 0, more);
            self.recv_window += i64::from(more);
        }
    }

    // ---- The driver's side.

    /// Called at the start of the driver's turn. What happens within it needs no wake.
    pub(super) fn begin_turn(&mut self, waker: &Waker) {
        self.notified = true;
        register(&mut self.driver, waker);
    }

    /// Called at the end of the driver's turn.
    pub(super) fn end_turn(&mut self) {
        self.notified = false;
    }

    /// Lets the driver have a turn.
    pub(super) fn notify(&mut self) {
        if !self.notified {
            self.notified = true;
            if let Some(driver) = &self.driver {
                driver.wake_by_ref();
            }
        }
    }

    /// True when there is no more to do, ever.
    pub(super) fn finished(&self) -> bool {
        let going = self.draining || self.goaway_received.is_some() && self.role == Role::Client;
        going && !self.goaway_ping && self.open == 0 && self.accept.is_empty() && self.refused.is_empty()
    }

    /// True while the peer should be there.
    pub(super) fn wants_alive(&self) -> bool {
        self.open > 0 || self.config.keep_alive_while_idle
    }

    /// Ends everything: `error` goes to all streams that are not over.
    pub(super) fn die(&mut self, error: Error) {
        if self.dead.is_some() {
            return;
        }
        self.dead = Some(error.clone());
        for key in self.slots.open() {
            self.close(key, Some(error.clone()));
        }
        self.ready.clear();
        wake(&mut self.accept_waker);
        self.wake_openers();
    }

    /// The error for streams when the transport ends.
    pub(super) fn end_of_transport(&self, error: Error) -> Error {
        match self.goaway_received {
            Some((_, code)) if code != code::NO_ERROR => Error::GoAway(code),
            _ => error,
        }
    }

    // ---- Streams open and close.

    pub(super) fn usable(&self) -> bool {
        self.dead.is_none() && !self.draining && self.goaway_received.is_none() && self.next_id <= MAX_31
    }

    pub(super) fn has_capacity(&self) -> bool {
        self.usable() && self.open < self.peer.max_streams as usize
    }

    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.has_capacity() {
            return Poll::Ready(Ok(()));
        }
        if !self.usable() {
            return Poll::Ready(Err(self.dead.clone().unwrap_or(Error::Refused)));
        }
        if !self.open_waiters.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.open_waiters.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// All of them: one that was dropped meanwhile must not swallow another's turn.
    pub(super) fn wake_openers(&mut self) {
        for waker in self.open_waiters.drain(..) {
            self.woke = true;
            waker.wake();
        }
    }

    pub(super) fn wake_streams(&mut self) {
        for key in self.slots.open() {
            self.woke |= self.slots[key].wake_all();
        }
    }

    /// A client opens a stream.
    pub(super) fn open(&mut self, request: &RequestHead, end_stream: bool) -> Result<(u32, u32), Error> {
        if !self.has_capacity() {
            return Err(Error::Refused);
        }
        let id = self.next_id;
        self.next_id += 2;
        let key = self.slots.insert(id);
        self.open += 1;
        let slot = &mut self.slots[key];
        slot.recv_window = i64::from(self.config.stream_window);
        slot.send_window = i64::from(self.peer.initial_window);
        slot.method = match request.method {
            http::Method::HEAD => Method::Head,
            http::Method::CONNECT => Method::Connect,
            _ => Method::Other,
        };
        let max_frame = self.peer.max_frame as usize;
        frame::write_headers(&mut self.out, &mut self.encoder, id, end_stream, max_frame, |encoder, out| {
            head::write_request(encoder, request, out);
        });
        if end_stream {
            slot.send_done = true;
            slot.local_end = true;
        }
        self.notify();
        Ok((key, id))
    }

    /// Both sides have ended, or may have.
    pub(super) fn settle(&mut self, key: u32) {
        let slot = &self.slots[key];
        if slot.open && slot.remote_end && slot.local_end {
            self.close(key, None);
        } else if slot.open && slot.local_end && slot.abandon {
            self.reset(key, code::NO_ERROR, Error::Cancelled);
        }
    }

    /// The stream is over in the protocol's sense.
    pub(super) fn close(&mut self, key: u32, error: Option<Error>) {
        let slot = &mut self.slots[key];
        if !slot.open {
            return;
        }
        slot.open = false;
        self.open -= 1;
        let id = slot.id;
        self.slots.forget_id(id);
        let by_us = matches!(error, Some(Error::Cancelled | Error::Malformed(_) | Error::HeadTooLarge));
        self.remember_closed(id, by_us);
        let slot = &mut self.slots[key];
        slot.pending = Bytes::new();
        slot.pending_trailers = None;
        if error.is_some() {
            slot.error = error;
            self.woke |= slot.wake_all();
        }
        if !slot.held {
            self.free(key);
        }
        self.wake_openers();
        if self.open == 0 && (self.draining || self.goaway_received.is_some()) {
            self.notify();
        }
    }

    pub(super) fn remember_closed(&mut self, id: u32, by_us: bool) {
        if self.closed_ids.len() == CLOSED
            && let Some((id, _)) = self.closed_ids.pop_front()
        {
            self.forgotten_id = self.forgotten_id.max(id);
        }
        self.closed_ids.push_back((id, by_us));
    }

    /// Resets a stream, telling the peer.
    pub(super) fn reset(&mut self, key: u32, code: u32, error: Error) {
        let slot = &self.slots[key];
        if slot.open {
            frame::write_reset(&mut self.out, slot.id, code);
            self.close(key, Some(error));
            self.notify();
        }
    }

    fn free(&mut self, key: u32) {
        let slot = &mut self.slots[key];
        let unread = slot.discard();
        if slot.queued {
            self.ready.retain(|&other| other != key);
        }
        self.slots.free(key);
        self.credit(unread);
        if self.slots.used() == 0 {
            self.rest();
        }
    }

    /// Gives up what queues have grown to while many streams were open at once: a request in one takes 400 bytes.
    fn rest(&mut self) {
        fn empty<T>(queue: &mut VecDeque<T>) {
            if queue.is_empty() && queue.capacity() > slot::KEEP {
                *queue = VecDeque::new();
            }
        }
        empty(&mut self.accept);
        empty(&mut self.refused);
        empty(&mut self.ready);
    }

    /// The stream's handle is gone.
    pub(super) fn release(&mut self, key: u32) {
        let slot = &mut self.slots[key];
        slot.held = false;
        slot.recv_waker = None;
        slot.send_waker = None;
        slot.reset_waker = None;
        if !slot.open {
            return self.free(key);
        }
        let unread = slot.discard();
        let done = slot.send_done && (slot.remote_end || self.role == Role::Server);
        if !done {
            self.reset(key, code::CANCEL, Error::Cancelled);
        } else {
            // What is pending is still sent.
            slot.abandon = true;
            self.settle(key);
        }
        self.credit(unread);
    }

    // ---- Receiving.

    /// Gives the connection's window back for bytes that were disposed of.
    pub(super) fn credit(&mut self, bytes: usize) {
        self.unannounced += bytes as u32;
        if self.unannounced >= self.config.connection_window / 2 && self.dead.is_none() {
            frame::write_window_update(&mut self.out, 0, self.unannounced);
            self.recv_window += i64::from(self.unannounced);
            self.unannounced = 0;
            self.notify();
        }
    }

    pub(super) fn poll_data(&mut self, key: u32, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let slot = &mut self.slots[key];
        if let Some(data) = slot.take_data() {
            self.consumed(key, data.len());
            self.credit(data.len());
            return Poll::Ready(Some(Ok(data)));
        }
        if slot.remote_end {
            return Poll::Ready(None);
        }
        if let Some(error) = &slot.error {
            return Poll::Ready(Some(Err(error.clone())));
        }
        register(&mut slot.recv_waker, cx.waker());
        Poll::Pending
    }

    /// Gives the stream's window back.
    pub(super) fn consumed(&mut self, key: u32, bytes: usize) {
        let slot = &mut self.slots[key];
        slot.unannounced += bytes as u32;
        if slot.open && !slot.remote_end && slot.unannounced >= self.config.stream_window / 2 {
            frame::write_window_update(&mut self.out, slot.id, slot.unannounced);
            slot.recv_window += i64::from(slot.unannounced);
            slot.unannounced = 0;
            self.notify();
        }
    }

    pub(super) fn poll_response(
        &mut self,
        key: u32,
        cx: &mut Context<'_>,
        head: &mut ResponseHead,
    ) -> Poll<Result<(), Error>> {
        let slot = &mut self.slots[key];
        if let Some((status, headers)) = slot.heads.pop_front() {
            head.status = status;
            head.version = crate::message::Version::Http2;
            std::mem::replace(&mut head.headers, headers).release();
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &slot.error {
            return Poll::Ready(Err(error.clone()));
        }
        if slot.head_received {
            // Asked once too often.
            return Poll::Ready(Err(Error::Cancelled));
        }
        register(&mut slot.recv_waker, cx.waker());
        Poll::Pending
    }

    /// The next request.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        if let Some((key, head)) = self.accept.pop_front() {
            return Poll::Ready(Some((key, head, None)));
        }
        if let Some((key, head, why)) = self.refused.pop_front() {
            return Poll::Ready(Some((key, head, Some(why))));
        }
        if self.dead.is_some() || (self.goaway_sent.is_some() && !self.goaway_ping) {
            return Poll::Ready(None);
        }
        register(&mut self.accept_waker, cx.waker());
        Poll::Pending
    }

    // ---- The end.

    /// A client stops opening streams; a server lets the peer know and takes what is under way.
    pub(super) fn shutdown(&mut self) {
        if self.draining || self.dead.is_some() {
            return;
        }
        self.draining = true;
        match self.role {
            Role::Client => {
                frame::write_goaway(&mut self.out, 0, code::NO_ERROR);
                self.goaway_sent = Some(0);
                self.wake_openers();
            }
            Role::Server => {
                frame::write_goaway(&mut self.out, MAX_31, code::NO_ERROR);
                frame::write_ping(&mut self.out, false, GOAWAY_PING);
                self.goaway_sent = Some(MAX_31);
                self.goaway_ping = true;
            }
        }
        self.notify();
    }

    /// The peer has seen the first GOAWAY: what it opened before is all there will be.
    pub(super) fn last_goaway(&mut self) {
        self.goaway_ping = false;
        self.goaway_sent = Some(self.last_peer_id);
        frame::write_goaway(&mut self.out, self.last_peer_id, code::NO_ERROR);
        wake(&mut self.accept_waker);
        self.notify();
    }

    /// One handle less that opens or accepts streams.
    pub(super) fn drop_owner(&mut self) {
        self.owners -= 1;
        if self.owners > 0 {
            return;
        }
        self.shutdown();
        // Requests that nobody will take.
        let refused = std::mem::take(&mut self.refused).into_iter().map(|(key, ..)| key);
        let accepted = std::mem::take(&mut self.accept).into_iter().map(|(key, _)| key);
        for key in accepted.chain(refused) {
            self.reset(key, code::REFUSED_STREAM, Error::Cancelled);
            self.release(key);
        }
    }
}

/// How long a window of abuse counting lasts.
pub(super) const ABUSE_WINDOW: Duration = Duration::from_secs(1);
