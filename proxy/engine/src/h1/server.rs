//! The side towards the application that calls: requests in, responses out, one after the other.
//!
//! **Invariant:** no request is given out before the response to the former one is complete and has left; a
//! connection whose state the two ends could see differently is closed after the response.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

use crate::buffer::SMALL;
use crate::error::Error;
use crate::h1::conn::Conn;
use crate::h1::encode::{self, Encoder, Framing, Persistence};
use crate::h1::framing::Decoder;
use crate::h1::{Length, Limits, parse};
use crate::io::Io;
use crate::message::{Headers, Method, RequestHead, ResponseHead, Version};

/// What is left of a request's body after its response is read and dropped up to this size, so that the connection
/// can be kept; beyond, closing is cheaper.
const DRAINED: usize = 64 * 1024;
/// Bytes of pipelined requests that are read while a response is awaited.
const PIPELINED: usize = SMALL;
/// How long the last bytes of a connection may take to leave.
const LAST_FLUSH: Duration = Duration::from_secs(30);
/// How long, and for how many bytes, a client is listened to after the last response: if it were cut off while it
/// sends, its kernel would throw away the response that it has not read yet. nginx waits 5 s for each read.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between requests.
    Idle,
    /// A request was given out, or was refused and may be answered.
    Exchange,
    /// After a 101, or a 2xx to CONNECT: what follows is not HTTP.
    Tunnel,
    /// Nothing more can be exchanged.
    Over,
}

/// The server's end of a connection.
///
/// A request is read with [`Server::poll_request`], its body with [`Server::poll_data`]; the response goes out with
/// [`Server::send_response`], `send_data` and `send_end`, and leaves with [`Server::poll_flush`]. The response may be
/// sent before the request's body is complete.
#[derive(Debug)]
pub struct Server<S: Io> {
    conn: Conn<S>,
    body: Decoder,
    response: Encoder,
    phase: Phase,
    /// The method of the request changes how the response is framed.
    to_head: bool,
    to_connect: bool,
    to_http10: bool,
    expects_continue: bool,
    keep_alive: bool,
    /// The connection closes after the response, whatever the client asks for.
    closing: bool,
    /// What the client sends is no longer understood.
    lost: bool,
    drained: usize,
    /// The last bytes wait for the end of the stream.
    held: bool,
    /// A head that could not be sent.
    failed: Option<Error>,
}

impl<S: Io> Server<S> {
    /// A server on `io`, from which `prefix` was read already.
    pub fn new(io: S, prefix: Bytes, limits: Limits) -> Self {
        Server {
            conn: Conn::new(io, prefix, limits),
            body: Decoder::end(),
            response: Encoder::Waiting,
            phase: Phase::Idle,
            to_head: false,
            to_connect: false,
            to_http10: false,
            expects_continue: false,
            keep_alive: true,
            closing: false,
            lost: false,
            drained: 0,
            held: false,
            failed: None,
        }
    }

    /// The stream.
    pub fn io(&self) -> &S {
        &self.conn.io
    }

    /// Waits for the next request, after flushing what is unsent.
    ///
    /// `None` when there will be none: the client closed between requests, the former exchange ended the connection or
    /// was given up before its end. After an error of the client ([`crate::Fault::Peer`]) one response may be sent;
    /// the connection closes after it. Cancel safe; `head` is of use only when a request is given.
    pub fn poll_request(&mut self, cx: &mut Context<'_>, head: &mut RequestHead) -> Poll<Option<Result<(), Error>>> {
        if let Err(error) = ready!(self.poll_flush(cx)) {
            return Poll::Ready(Some(Err(error)));
        }
        if self.phase == Phase::Exchange {
            ready!(self.poll_finish(cx));
        }
        if self.phase != Phase::Idle {
            return Poll::Ready(None);
        }
        let facts = match ready!(self.conn.poll_head(cx, |bytes, limits| parse::request(bytes, limits, head))) {
            Ok(Some(facts)) => facts,
            Ok(None) => {
                self.phase = Phase::Over;
                return Poll::Ready(None);
            }
            Err(error) => {
                self.refuse(&error);
                return Poll::Ready(Some(Err(error)));
            }
        };
        self.phase = Phase::Exchange;
        self.response = Encoder::Waiting;
        self.to_head = head.method == Method::HEAD;
        self.to_connect = head.method == Method::CONNECT;
        self.to_http10 = head.version == Version::Http10;
        self.expects_continue = facts.expects_continue;
        self.keep_alive = facts.keep_alive && !self.closing;
        self.drained = 0;
        match facts.length {
            _ if facts.chunked => self.body.start_chunked(),
            Some(length) if !self.to_connect => self.body.start_known(length),
            _ => self.body.start_empty(),
        }
        Poll::Ready(Some(Ok(())))
    }

    /// [`Server::poll_request`] as a future.
    pub async fn request(&mut self, head: &mut RequestHead) -> Option<Result<(), Error>> {
        poll_fn(|cx| self.poll_request(cx, head)).await
    }

    /// Ends the exchange if the connection can be kept, else the connection.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.phase = if self.response == Encoder::Done && self.keep_alive() {
            match ready!(self.poll_drain_body(cx)) {
                true => Phase::Idle,
                false => Phase::Over,
            }
        } else {
            Phase::Over
        };
        Poll::Ready(())
    }

    /// Drops what is left of the request's body; false if that is too much.
    fn poll_drain_body(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if matches!(self.body.length(), Length::Known(left) if left > DRAINED as u64) {
            return Poll::Ready(false);
        }
        while !self.body.is_end() {
            match ready!(self.conn.poll_data(cx, &mut self.body)) {
                Some(Ok(data)) if self.drained + data.len() <= DRAINED => self.drained += data.len(),
                Some(_) => return Poll::Ready(false),
                None => {}
            }
        }
        Poll::Ready(true)
    }

    /// After an error of what comes in: a response may still go out, nothing more is read.
    fn refuse(&mut self, error: &Error) {
        self.keep_alive = false;
        self.lost = true;
        if matches!(error, Error::Malformed(_) | Error::HeadTooLarge) {
            if self.phase == Phase::Idle {
                self.response = Encoder::Waiting;
                (self.to_head, self.to_connect, self.to_http10) = (false, false, false);
                self.expects_continue = false;
                self.body.start_empty();
            }
            self.phase = Phase::Exchange;
        } else {
            self.phase = Phase::Over;
        }
    }

    /// How much of the request's body is still to come.
    pub fn body_length(&self) -> Length {
        self.body.length()
    }

    /// True when the request's body was taken to its end, or there is none.
    pub fn is_end(&self) -> bool {
        self.body.is_end()
    }

    /// True when the client waits for a 100 before it sends the body. This engine never sends one by itself.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// The next bytes of the request's body; `None` at its end. Cancel safe. Flushes nothing.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        let data = ready!(self.conn.poll_data(cx, &mut self.body));
        match &data {
            Some(Ok(_)) => self.expects_continue = false,
            Some(Err(error)) => self.refuse(&error.clone()),
            None => {}
        }
        Poll::Ready(data)
    }

    /// The trailers of the request, once, after its end.
    pub fn take_trailers(&mut self) -> Option<Headers> {
        self.body.take_trailers()
    }

    /// While a response is awaited and the request was taken to its end: ready when the client has closed, also only
    /// its sending half, as nginx, Envoy and Go see it. Bytes of a next request are kept, up to a bound.
    pub fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.body.is_end() && self.conn.input.len() < PIPELINED {
            if ready!(self.conn.io.poll_end(cx)).is_err() {
                return Poll::Ready(());
            }
            match ready!(self.conn.poll_fill(cx, 0)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Sends a 1xx head other than 101. Clients of HTTP/1.0 do not know these; it is left out for them.
    pub fn send_informational(&mut self, head: &ResponseHead) {
        if self.phase != Phase::Exchange || self.response != Encoder::Waiting || self.to_http10 {
            return;
        }
        let framing = Framing::Nothing { keep_length: false };
        match encode::response(self.conn.output.gather(), head, framing, Persistence::Default) {
            Ok(()) if head.status == 100 => self.expects_continue = false,
            Ok(()) => {}
            Err(error) => self.failed = Some(error),
        }
    }

    /// Sends the head of the response. `length` is that of the body that follows; it is framed as the client needs it,
    /// and a response that has none by its nature (to HEAD, 204, 304, 101, 2xx to CONNECT) gets none.
    ///
    /// A head that cannot be sent is [`Error::Malformed`] from the next `poll_capacity` or `poll_flush`, once; another
    /// may be sent in its place.
    pub fn send_response(&mut self, head: &ResponseHead, length: Length) {
        if self.phase != Phase::Exchange || self.response != Encoder::Waiting {
            debug_assert!(self.phase == Phase::Over, "a response without a request");
            return;
        }
        let tunnel = head.status == 101 || (self.to_connect && (200..300).contains(&head.status));
        if head.is_informational() && !tunnel {
            return self.send_informational(head);
        }
        // The client may or may not send the body that it holds back, and after a refused CONNECT it may have sent
        // bytes of the tunnel: what comes next could be a request or not.
        if (self.expects_continue && !self.body.is_end()) || (self.to_connect && !tunnel) {
            self.keep_alive = false;
        }
        let framing = match length {
            _ if tunnel || head.status == 204 => Framing::Nothing { keep_length: false },
            _ if head.status == 304 => Framing::Nothing { keep_length: true },
            Length::Known(length) if !self.to_head => Framing::Length(length),
            Length::Empty if !self.to_head => Framing::Length(0),
            Length::Known(length) if !head.headers.contains("content-length") => Framing::Length(length),
            _ if self.to_head => Framing::Nothing { keep_length: true },
            _ if self.to_http10 => Framing::UntilClose,
            _ => Framing::Chunked,
        };
        if framing == Framing::UntilClose {
            self.keep_alive = false;
        }
        let persistence = match self.keep_alive() {
            _ if tunnel => Persistence::Default,
            false => Persistence::Close,
            true if self.to_http10 => Persistence::KeepAlive,
            true => Persistence::Default,
        };
        if let Err(error) = encode::response(self.conn.output.gather(), head, framing, persistence) {
            self.failed = Some(error);
            return;
        }
        self.response = if self.to_head { Encoder::Done } else { Encoder::after_head(framing) };
        if tunnel {
            self.phase = Phase::Tunnel;
        }
    }

    /// What was wrong with the head that was sent last, if it could not be sent; then not told again.
    pub fn take_refusal(&mut self) -> Result<(), Error> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for room for another chunk: flushes while more is unsent than the bound.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let done = ready!(self.conn.poll_capacity(cx));
        Poll::Ready(self.written(done))
    }

    /// Adds data to the response.
    pub fn send_data(&mut self, data: Bytes) {
        self.response.data(data, &mut self.conn.output);
    }

    /// Ends the response; needless after [`Length::Empty`] or when all of [`Length::Known`] was sent. Trailers are sent
    /// if the response is chunked. Before all of a known length was sent, it breaks the connection off.
    pub fn send_end(&mut self, trailers: Option<&Headers>) {
        self.response.end(trailers, &mut self.conn.output);
        if self.response == Encoder::Broken {
            self.keep_alive = false;
        }
    }

    /// Writes all that is unsent.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let done = ready!(self.conn.poll_flush(cx));
        Poll::Ready(self.written(done))
    }

    /// [`Server::poll_flush`] after the last byte of a response, to be followed by [`Server::close`] without a wait if
    /// the connection is not kept.
    pub fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let over = self.phase == Phase::Exchange && self.response == Encoder::Done && !self.keep_alive();
        if over && !self.may_send() && !self.conn.output.is_flushed() {
            self.conn.io.hold();
            self.held = true;
        }
        self.poll_flush(cx)
    }

    /// True when the client may still be sending what nobody will read.
    fn may_send(&self) -> bool {
        self.lost || !self.body.is_end() || !self.conn.input.is_empty()
    }

    /// [`Server::poll_flush`] as a future.
    pub async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn written(&mut self, done: io::Result<()>) -> Result<(), Error> {
        if let Err(error) = done {
            self.conn.output.clear();
            self.response = Encoder::Broken;
            self.phase = Phase::Over;
            return Err(error.into());
        }
        self.take_refusal()
    }

    /// Closes the connection after this response, or the next one if none is under way.
    pub fn set_close(&mut self) {
        self.closing = true;
        self.keep_alive = false;
    }

    /// True while the connection will be kept after this exchange.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive && !self.closing && !self.conn.eof && matches!(self.phase, Phase::Idle | Phase::Exchange)
    }

    /// True between requests, with nothing to write and no byte of a next request read.
    pub fn is_idle(&self) -> bool {
        let complete = self.phase == Phase::Idle
            || (self.phase == Phase::Exchange && self.response == Encoder::Done && self.body.is_end());
        complete && self.conn.output.is_flushed() && self.conn.input.is_empty()
    }

    /// The stream, and the bytes that were read beyond the last message: after a 101 or a CONNECT, once all is flushed.
    pub fn into_parts(self) -> (S, Bytes) {
        self.conn.into_parts()
    }

    /// Flushes, closes, and if the client may still be sending, listens to it for a while, so that it gets to read the
    /// response. A body that ends with the connection and was not ended by `send_end` is cut off with a reset.
    pub async fn close(mut self) {
        if self.response == Encoder::UntilClose {
            self.conn.io.abort();
            return;
        }
        let sending = self.may_send();
        // What is held would be lost if the client has sent something that nobody has read: dropping is a reset then.
        if !sending && !self.held && self.conn.output.is_flushed() && self.conn.io.ends_on_drop() {
            return;
        }
        let last = poll_fn(|cx| {
            ready!(self.conn.poll_flush(cx))?;
            Pin::new(&mut self.conn.io).poll_shutdown(cx)
        });
        let closed = matches!(tokio::time::timeout(LAST_FLUSH, last).await, Ok(Ok(())));
        if closed && sending && !self.conn.eof {
            let _ = tokio::time::timeout(LINGER, poll_fn(|cx| self.conn.poll_discard(cx, LINGER_BYTES))).await;
        }
    }
}

#[cfg(test)]
mod tests;
