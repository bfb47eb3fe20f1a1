//! Handles: `Stream` for one exchange, `Client` to open streams, `Accept` to take them.
//!
//! A handle refers to its connection and finds its state by a slot's number. Nothing here waits by itself; every
//! `poll_` registers the task for what it asks about, one task per question. Cancel safety: a future that is dropped
//! has taken nothing.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::connection::Connection;
use super::slot::register;
use crate::error::Error;
use crate::message::{Headers, RequestHead, ResponseHead};

pub(super) type Shared = Rc<RefCell<Connection>>;

/// Opens streams on a connection. Clones share it; when the last is dropped, the connection ends after its streams.
pub struct Client {
    pub(super) shared: Shared,
}

impl Clone for Client {
    fn clone(&self) -> Self {
        self.shared.borrow_mut().owners += 1;
        Client { shared: self.shared.clone() }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.borrow_mut().drop_owner();
    }
}

impl Client {
    /// Ready when the peer's limit lets a stream be opened. `Refused` when none ever will be: open another
    /// connection.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.shared.borrow_mut().poll_ready(cx)
    }

    /// Waits until a stream may be opened.
    pub async fn ready(&self) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Opens a stream and sends the head of the request on it. `Refused` when there is no capacity: nothing was sent.
    pub fn open(&self, head: &RequestHead, end_stream: bool) -> Result<Stream, Error> {
        let (key, id) = self.shared.borrow_mut().open(head, end_stream)?;
        Ok(Stream { shared: self.shared.clone(), key, id })
    }

    /// False when no stream will ever be opened here again.
    pub fn is_usable(&self) -> bool {
        self.shared.borrow().usable()
    }

    /// The number of open streams.
    pub fn active(&self) -> usize {
        self.shared.borrow().open
    }

    /// True when a stream may be opened now.
    pub fn has_capacity(&self) -> bool {
        self.shared.borrow().has_capacity()
    }

    /// Streams that the server takes at once, as far as it has said.
    pub fn max_streams(&self) -> u32 {
        self.shared.borrow().peer.max_streams
    }

    /// Opens no more streams; the connection ends after those that are open.
    pub fn shutdown(&self) {
        self.shared.borrow_mut().shutdown();
    }

    /// True when the server speaks extended CONNECT (RFC 8441). Known once its SETTINGS have come.
    pub fn peer_allows_connect_protocol(&self) -> bool {
        self.shared.borrow().peer.connect_protocol
    }
}

/// Takes the streams that the peer opens. Dropping it refuses further ones and ends the connection after those that
/// were taken.
pub struct Accept {
    pub(super) shared: Shared,
}

impl Drop for Accept {
    fn drop(&mut self) {
        self.shared.borrow_mut().drop_owner();
    }
}

/// What a peer has sent.
pub enum Incoming {
    /// A request to be served.
    Request(RequestHead, Stream),
    /// One that is not: malformed, and its stream reset already; or too large, to be answered with 431. The head is what
    /// was read until then.
    Refused(RequestHead, Stream, Error),
}

impl Accept {
    /// The next request to be served; `None` when there will be none. Others are refused without a word.
    pub async fn accept(&mut self) -> Option<(RequestHead, Stream)> {
        loop {
            match self.incoming().await? {
                Incoming::Request(head, stream) => return Some((head, stream)),
                Incoming::Refused(_, mut stream, Error::HeadTooLarge) => {
                    let _ = stream.send_response(&ResponseHead::new(431), true);
                }
                Incoming::Refused(..) => {}
            }
        }
    }

    /// The next request, also one that is to be refused; `None` when there will be none.
    pub async fn incoming(&mut self) -> Option<Incoming> {
        std::future::poll_fn(|cx| self.poll_incoming(cx)).await
    }

    /// The next request, also one that is to be refused; `None` when there will be none.
    pub fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Incoming>> {
        let mut shared = self.shared.borrow_mut();
        shared.poll_accept(cx).map(|next| {
            let (key, head, refused) = next?;
            let id = shared.slots[key].id;
            let stream = Stream { shared: self.shared.clone(), key, id };
            Some(match refused {
                None => Incoming::Request(head, stream),
                Some(why) => Incoming::Refused(head, stream, why),
            })
        })
    }

    /// Says goodbye: what the peer opened before it heard so is still served, then the connection ends.
    pub fn shutdown(&self) {
        self.shared.borrow_mut().shutdown();
    }

    /// Wakes whoever waits for a stream: something that is not of this connection has changed for all of them.
    pub fn wake_streams(&self) {
        self.shared.borrow_mut().wake_streams();
    }

    /// A handle that only says goodbye, for a task that does not own this one.
    pub fn closer(&self) -> Closer {
        Closer { shared: self.shared.clone() }
    }

    /// The number of open streams.
    pub fn active(&self) -> usize {
        self.shared.borrow().open
    }
}

/// Ends a server's connection gracefully, from wherever that is decided.
#[derive(Clone)]
pub struct Closer {
    shared: Shared,
}

impl Closer {
    /// As [`Accept::shutdown`].
    pub fn shutdown(&self) {
        self.shared.borrow_mut().shutdown();
    }
}

/// One exchange: the same handle for both roles, and for both directions.
///
/// Dropping it gives up what is not finished: a stream that has not ended on both sides is reset with CANCEL, or with
/// NO_ERROR where a server has sent its whole response. What was handed over for sending with an end is still sent.
pub struct Stream {
    pub(super) shared: Shared,
    pub(super) key: u32,
    pub(super) id: u32,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.borrow_mut().release(self.key);
    }
}

impl Stream {
    /// The stream's id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Client: the next head of the response. Informational ones come first, one by one, then the final one. The
    /// memory of what `head` held is used for later heads.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), Error>> {
        self.shared.borrow_mut().poll_response(self.key, cx, head)
    }

    /// Client: waits for the next head of the response.
    pub async fn response(&mut self, head: &mut ResponseHead) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_response(cx, head)).await
    }

    /// The next chunk of content; `None` at the end. Taking a chunk lets the peer send as much again.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        self.shared.borrow_mut().poll_data(self.key, cx)
    }

    /// Waits for the next chunk of content.
    pub async fn data(&mut self) -> Option<Result<Bytes, Error>> {
        std::future::poll_fn(|cx| self.poll_data(cx)).await
    }

    /// The trailers, once `poll_data` has given `None`.
    pub fn take_trailers(&mut self) -> Option<Headers> {
        self.shared.borrow_mut().slots[self.key].trailers.take()
    }

    /// True when nothing more will be received and nothing is buffered. Trailers may still be there to be taken.
    pub fn is_end_stream(&self) -> bool {
        let shared = self.shared.borrow();
        let slot = &shared.slots[self.key];
        slot.remote_end && slot.buffered == 0
    }

    /// True when nothing more will be received, and no trailers are there to be taken either.
    pub fn is_over(&self) -> bool {
        let shared = self.shared.borrow();
        let slot = &shared.slots[self.key];
        slot.remote_end && slot.buffered == 0 && slot.trailers.is_none()
    }

    /// Ready when content, trailers or the end have come; they stay to be taken.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut shared = self.shared.borrow_mut();
        let slot = &mut shared.slots[self.key];
        if slot.remote_end || slot.buffered > 0 || slot.error.is_some() {
            return Poll::Ready(());
        }
        register(&mut slot.recv_waker, cx.waker());
        Poll::Pending
    }

    /// Looks at the trailers, if they have come and nothing lies before them; they stay to be taken.
    pub fn trailers<T>(&self, look: impl FnOnce(&Headers) -> T) -> Option<T> {
        let shared = self.shared.borrow();
        let slot = &shared.slots[self.key];
        slot.trailers.as_ref().filter(|_| slot.buffered == 0).map(look)
    }

    /// Server: sends a 1xx head.
    pub fn send_informational(&mut self, head: &ResponseHead) -> Result<(), Error> {
        debug_assert!(head.is_informational());
        self.shared.borrow_mut().send_response(self.key, head, false)
    }

    /// Server: sends the head of the response.
    pub fn send_response(&mut self, head: &ResponseHead, end_stream: bool) -> Result<(), Error> {
        self.shared.borrow_mut().send_response(self.key, head, end_stream)
    }

    /// Ready when some content may be sent now: what was handed over before is gone, both windows are open, and the
    /// connection does not hold too much already.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.shared.borrow_mut().poll_capacity(self.key, cx)
    }

    /// Waits until some content may be sent.
    pub async fn capacity(&mut self) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_capacity(cx)).await
    }

    /// Sends a chunk of content. All of it is taken; what exceeds the windows waits, and there is no capacity until
    /// it has gone.
    pub fn send_data(&mut self, data: Bytes, end_stream: bool) -> Result<(), Error> {
        self.shared.borrow_mut().send_data(self.key, data, end_stream)
    }

    /// Sends trailers, which end the stream, after all content that was handed over.
    pub fn send_trailers(&mut self, trailers: &Headers) -> Result<(), Error> {
        self.shared.borrow_mut().send_trailers(self.key, trailers)
    }

    /// Resets the stream with an error code (see [`code`](super::code)).
    pub fn reset(&mut self, code: u32) {
        self.shared.borrow_mut().reset(self.key, code, Error::Cancelled);
    }

    /// Ready when the stream ended early: the peer reset it, or the connection is gone.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let mut shared = self.shared.borrow_mut();
        let slot = &mut shared.slots[self.key];
        if let Some(error) = &slot.error {
            return Poll::Ready(error.clone());
        }
        register(&mut slot.reset_waker, cx.waker());
        Poll::Pending
    }
}
