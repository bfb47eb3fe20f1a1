//! The two ends of an exchange: the client's side and the endpoint's, each HTTP/1 or HTTP/2.
//!
//! Here alone the request's story meets the engine's two protocols.

use crate::net::Stream;
use crate::record::grpc_status;
use bytes::Bytes;
use gossamer_engine::h1::Length;
use gossamer_engine::{Error, Headers, RequestHead, ResponseHead, h1, h2};
use std::task::{Context, Poll};

/// The client's side.
pub enum Downstream<'a> {
    /// A connection; one request after the other.
    H1(&'a mut h1::Server<Stream>),
    /// A stream of a connection.
    H2(h2::Stream),
}

/// The endpoint's side.
pub enum Upstream {
    /// A connection of our own for this exchange; true: it was used before.
    H1(Box<h1::Client<Stream>>, bool),
    /// A stream of a shared connection.
    H2(h2::Stream),
}

macro_rules! each {
    ($self:expr, $end:ident => $call:expr) => {
        match $self {
            Self::H1($end, ..) => $call,
            Self::H2($end) => $call,
        }
    };
}

impl Downstream<'_> {
    /// The next bytes of the request's body; `None` at its end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        each!(self, end => end.poll_data(cx))
    }

    /// The request's trailers, once its body has ended.
    pub fn take_trailers(&mut self) -> Option<Headers> {
        each!(self, end => end.take_trailers())
    }

    /// The request is known to be complete.
    pub fn is_end(&self) -> bool {
        match self {
            Self::H1(server) => server.is_end(),
            Self::H2(stream) => stream.is_end_stream(),
        }
    }

    /// How long the request's body is.
    pub fn length(&self, head: &RequestHead) -> Length {
        match self {
            Self::H1(server) => server.body_length(),
            Self::H2(stream) if stream.is_over() => Length::Empty,
            Self::H2(_) => declared(&head.headers),
        }
    }

    /// Ready, with the reason, when the client is gone, so that nobody waits for the answer.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        match self {
            Self::H1(server) => server.poll_closed(cx).map(|()| Error::Cancelled),
            Self::H2(stream) => stream.poll_reset(cx),
        }
    }

    /// Sends a 1xx head.
    pub fn send_informational(&mut self, head: &ResponseHead) {
        match self {
            Self::H1(server) => server.send_informational(head),
            Self::H2(stream) => drop(stream.send_informational(head)),
        }
    }

    /// Sends the response's head. HTTP/1: the error is that of a head that cannot be sent, and another may be.
    pub fn send_response(&mut self, head: &ResponseHead, length: Length) -> Result<(), Error> {
        match self {
            Self::H1(server) => {
                server.send_response(head, length);
                server.take_refusal()
            }
            Self::H2(stream) => stream.send_response(head, length == Length::Empty),
        }
    }

    /// Ready when there is room for another chunk.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        each!(self, end => end.poll_capacity(cx))
    }

    /// Sends bytes of the response's body; `end`: the last ones, without trailers.
    pub fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), Error> {
        match self {
            Self::H1(server) => {
                server.send_data(data);
                if end {
                    server.send_end(None);
                }
                Ok(())
            }
            Self::H2(stream) => stream.send_data(data, end),
        }
    }

    /// Ends the response.
    pub fn send_end(&mut self, trailers: Option<&Headers>) -> Result<(), Error> {
        match self {
            Self::H1(server) => {
                server.send_end(trailers);
                Ok(())
            }
            Self::H2(stream) => match trailers {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            },
        }
    }

    /// Pushes out what is buffered. HTTP/2 connections do that by themselves.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::H1(server) => server.poll_flush(cx),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// The same when the response is complete, and nothing else is waited for.
    pub fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::H1(server) => server.poll_last(cx),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }
}

impl Upstream {
    /// Ready with the next head: 1xx ones first, each by itself.
    pub fn poll_response(&mut self, cx: &mut Context<'_>, head: &mut ResponseHead) -> Poll<Result<(), Error>> {
        each!(self, end => end.poll_response(cx, head))
    }

    /// The next bytes of the response's body; `None` at its end.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        each!(self, end => end.poll_data(cx))
    }

    /// The response's trailers, once its body has ended.
    pub fn take_trailers(&mut self) -> Option<Headers> {
        each!(self, end => end.take_trailers())
    }

    /// The response is known to be complete.
    pub fn is_end(&self) -> bool {
        match self {
            Self::H1(client, _) => client.is_end(),
            Self::H2(stream) => stream.is_end_stream(),
        }
    }

    /// Ready when something has come after the response's head, which stays.
    pub fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::H1(..) => Poll::Ready(()),
            Self::H2(stream) => stream.poll_begun(cx),
        }
    }

    /// The gRPC status in trailers that follow the head at once.
    pub fn grpc_status(&self) -> Option<u16> {
        match self {
            Self::H1(..) => None,
            Self::H2(stream) => stream.trailers(grpc_status).flatten(),
        }
    }

    /// How long the response's body is.
    pub fn length(&self, head: &ResponseHead) -> Length {
        match self {
            Self::H1(client, _) => client.body_length(),
            Self::H2(stream) if stream.is_over() => Length::Empty,
            Self::H2(_) => declared(&head.headers),
        }
    }

    /// Ready when there is room for another chunk.
    pub fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        each!(self, end => end.poll_capacity(cx))
    }

    /// Sends bytes of the request's body; `end`: the last ones, without trailers.
    pub fn send_data(&mut self, data: Bytes, end: bool) -> Result<(), Error> {
        match self {
            Self::H1(client, _) => {
                client.send_data(data);
                if end {
                    client.send_end(None);
                }
                Ok(())
            }
            Self::H2(stream) => stream.send_data(data, end),
        }
    }

    /// Ends the request.
    pub fn send_end(&mut self, trailers: Option<&Headers>) -> Result<(), Error> {
        match self {
            Self::H1(client, _) => {
                client.send_end(trailers);
                Ok(())
            }
            Self::H2(stream) => match trailers {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            },
        }
    }

    /// Pushes out what is buffered. HTTP/2 connections do that by themselves.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match self {
            Self::H1(client, _) => client.poll_flush(cx),
            Self::H2(_) => Poll::Ready(Ok(())),
        }
    }

    /// True when the connection had served other requests: that it closes without a byte is then an ordinary race.
    pub fn is_reused(&self) -> bool {
        matches!(self, Self::H1(_, true))
    }
}

/// The length that a message declares; the engine has checked its form.
fn declared(headers: &Headers) -> Length {
    match headers.get_str("content-length").and_then(|value| value.parse().ok()) {
        Some(length) => Length::Known(length),
        None => Length::Unknown,
    }
}
