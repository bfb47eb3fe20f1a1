//! The side towards an endpoint: requests out, responses in, one after the other.
//!
//! **Invariant:** a connection is reusable only when both messages ended where both ends saw it, and nothing was read
//! beyond: a stray byte could be the head of an answer to somebody else.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::error::Error;
use crate::h1::conn::Conn;
use crate::h1::encode::{self, Encoder, Framing};
use crate::h1::framing::Decoder;
use crate::h1::parse::{self, Facts};
use crate::h1::{Length, Limits};
use crate::io::Io;
use crate::message::{Headers, Method, RequestHead, ResponseHead};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No request was sent.
    Idle,
    /// The final head is awaited. `interim`: an informational one was received.
    Waiting { interim: bool },
    /// The final head was received.
    Responding,
    /// After a 101, or a 2xx to CONNECT: what follows is not HTTP.
    Tunnel,
    /// Nothing more can be exchanged.
    Over,
}

/// The client's end of a connection.
///
/// A request goes out with [`Client::send_request`], `send_data` and `send_end`, and leaves with
/// [`Client::poll_flush`]; the response is read with [`Client::poll_response`], which may be ready before the request
/// is complete, and [`Client::poll_data`].
#[derive(Debug)]
pub struct Client<S: Io> {
    conn: Conn<S>,
    request: Encoder,
    body: Decoder,
    phase: Phase,
    /// What was sent changes how the response is framed.
    sent_head: bool,
    sent_connect: bool,
    sent_upgrade: bool,
    keep_alive: bool,
    write_failed: bool,
    /// A head that could not be sent.
    failed: Option<Error>,
}

impl<S: Io> Client<S> {
    /// A client on `io`.
    pub fn new(io: S, limits: Limits) -> Self {
        Client {
            conn: Conn::new(io, Bytes::new(), limits),
            request: Encoder::Done,
            body: Decoder::end(),
            phase: Phase::Idle,
            sent_head: false,
            sent_connect: false,
            sent_upgrade: false,
            keep_alive: true,
            write_failed: false,
            failed: None,
        }
    }

    /// The stream.
    pub fn io(&self) -> &S {
        &self.conn.io
    }

    /// Sends the head of a request: in absolute form if it came so, in authority form for CONNECT, else in origin form.
    /// `length` is that of the body that follows.
    ///
    /// A head that cannot be sent is [`Error::Malformed`] from the next `poll_*`, once, and the connection is as it
    /// was. Only for a connection that [`Client::is_reusable`]; on a used one, poll [`Client::poll_idle_closed`] once
    /// before: an answer that lies there already was meant for nobody.
    pub fn send_request(&mut self, head: &RequestHead, length: Length) {
        debug_assert!(self.is_reusable(), "a request on a connection that is in use");
        if !self.is_reusable() {
            self.failed = Some(Error::Cancelled);
            return;
        }
        let with_content = matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
        let framing = match length {
            _ if head.method == Method::CONNECT => Framing::Nothing { keep_length: false },
            Length::Known(length) => Framing::Length(length),
            Length::Unknown => Framing::Chunked,
            Length::Empty if with_content || head.headers.contains("content-length") => Framing::Length(0),
            Length::Empty => Framing::Nothing { keep_length: false },
        };
        if let Err(error) = encode::request(self.conn.output.gather(), head, framing) {
            self.failed = Some(error);
            return;
        }
        self.request = Encoder::after_head(framing);
        self.phase = Phase::Waiting { interim: false };
        self.sent_head = head.method == Method::HEAD;
        self.sent_connect = head.method == Method::CONNECT;
        self.sent_upgrade = head.headers.contains("upgrade");
        self.keep_alive = true;
        self.body.start_empty();
    }

    /// Waits for room for another chunk: flushes while more is unsent than the bound.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let done = ready!(self.conn.poll_capacity(cx));
        Poll::Ready(self.written(done))
    }

    /// Adds data to the request.
    pub fn send_data(&mut self, data: Bytes) {
        if !self.write_failed {
            self.request.data(data, &mut self.conn.output);
        }
    }

    /// Ends the request; needless after [`Length::Empty`] or when all of [`Length::Known`] was sent. Trailers are sent
    /// if the request is chunked.
    pub fn send_end(&mut self, trailers: Option<&Headers>) {
        if !self.write_failed {
            self.request.end(trailers, &mut self.conn.output);
        }
    }

    /// Writes all that is unsent.
    ///
    /// After an error the response may still be awaited: an endpoint that refuses a large body answers and closes.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let done = ready!(self.conn.poll_flush(cx));
        Poll::Ready(self.written(done))
    }

    /// [`Client::poll_flush`] as a future.
    pub async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn written(&mut self, done: io::Result<()>) -> Result<(), Error> {
        if let Err(error) = done {
            self.conn.output.clear();
            self.request = Encoder::Broken;
            self.write_failed = true;
            self.keep_alive = false;
            return Err(error.into());
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Waits for the next head of the response, while it writes what is unsent.
    ///
    /// Informational heads (1xx) come one for each call, before the final one. After a 101 that was asked for, and a
    /// 2xx to CONNECT, what follows is not HTTP: see [`Client::into_parts`]. Cancel safe.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), Error>> {
        match self.conn.poll_flush(cx) {
            Poll::Ready(done) => match self.written(done) {
                Err(Error::Io(_)) | Ok(()) => {}
                Err(unsendable) => return Poll::Ready(Err(unsendable)),
            },
            Poll::Pending => {}
        }
        let Phase::Waiting { interim } = self.phase else { return Poll::Ready(Err(Error::Cancelled)) };
        let unanswered = !interim && self.conn.input.is_empty();
        let error = match ready!(self.conn.poll_head(cx, |bytes, limits| parse::response(bytes, limits, head))) {
            Ok(Some(facts)) => match self.received(head, facts) {
                Ok(()) => return Poll::Ready(Ok(())),
                Err(error) => error,
            },
            Ok(None) if interim => Error::Io(io::ErrorKind::UnexpectedEof),
            Ok(None) => Error::ClosedBeforeResponse,
            // The endpoint closed, and what was sent to it after that made its kernel say so.
            Err(Error::Io(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe))
                if unanswered && self.conn.input.is_empty() =>
            {
                Error::ClosedBeforeResponse
            }
            Err(error) => error,
        };
        self.end();
        Poll::Ready(Err(error))
    }

    /// [`Client::poll_response`] as a future.
    pub async fn response(&mut self, head: &mut ResponseHead) -> Result<(), Error> {
        poll_fn(|cx| self.poll_response(cx, head)).await
    }

    /// Decides what follows a head (RFC 9112 section 6.3).
    fn received(&mut self, head: &mut ResponseHead, facts: Facts) -> Result<(), Error> {
        let claims_body = facts.chunked || facts.length.is_some_and(|length| length > 0);
        let without_body = head.is_informational() || head.status == 204;
        if without_body {
            head.headers.remove("content-length");
        }
        if head.status == 101 {
            if !self.sent_upgrade {
                return Err(Error::Malformed("switch of protocols that was not asked for"));
            }
            self.phase = Phase::Tunnel;
            return Ok(());
        }
        if head.is_informational() {
            if claims_body {
                return Err(Error::Malformed("informational response with a body"));
            }
            self.phase = Phase::Waiting { interim: true };
            return Ok(());
        }
        if self.sent_connect && (200..300).contains(&head.status) {
            head.headers.remove("content-length");
            self.phase = Phase::Tunnel;
            return Ok(());
        }
        self.phase = Phase::Responding;
        self.keep_alive &= facts.keep_alive;
        match facts.length {
            _ if self.sent_head || head.status == 304 => self.body.start_empty(),
            _ if without_body => {
                // It has none, whatever it says; but what it says may follow.
                self.keep_alive &= !claims_body;
                self.body.start_empty();
            }
            _ if facts.chunked => self.body.start_chunked(),
            Some(length) => self.body.start_known(length),
            None => {
                self.keep_alive = false;
                self.body.start_until_close();
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.phase = Phase::Over;
        self.keep_alive = false;
    }

    /// How much of the response's body is still to come.
    pub fn body_length(&self) -> Length {
        self.body.length()
    }

    /// The next bytes of the response's body; `None` at its end. A body that ends too early is an error. Cancel safe.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        if self.phase != Phase::Responding {
            return Poll::Ready(None);
        }
        let data = ready!(self.conn.poll_data(cx, &mut self.body));
        if matches!(data, Some(Err(_))) {
            self.end();
        }
        Poll::Ready(data)
    }

    /// The trailers of the response, once, after its end.
    pub fn take_trailers(&mut self) -> Option<Headers> {
        self.body.take_trailers()
    }

    /// True when the response was taken to its end.
    pub fn is_end(&self) -> bool {
        self.phase == Phase::Responding && self.body.is_end()
    }

    /// True when another request may be sent: both messages are complete, both sides keep the connection, and nothing
    /// was read beyond the response.
    pub fn is_reusable(&self) -> bool {
        (self.phase == Phase::Idle || self.is_end())
            && self.request == Encoder::Done
            && self.keep_alive
            && self.conn.output.len() == 0
            && self.conn.input.is_empty()
            && !self.conn.eof
    }

    /// For a connection that lies in a pool: ready when it is of no more use, because the endpoint closed it or sent
    /// bytes that nobody asked for.
    pub fn poll_idle_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_reusable() {
            let _ = ready!(self.conn.poll_fill(cx, 0));
            self.end();
        }
        Poll::Ready(())
    }

    /// The stream, and the bytes that were read beyond the last message: after a 101 or a CONNECT, once all is flushed.
    pub fn into_parts(self) -> (S, Bytes) {
        self.conn.into_parts()
    }
}

#[cfg(test)]
mod tests;
