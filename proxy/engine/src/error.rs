//! Why a connection or an exchange ended early, whose fault it was, and whether the request may be tried again.

use std::io;

/// Who is to blame, seen from this end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The peer broke the protocol: answer 400 (or GOAWAY) and close.
    Peer,
    /// The transport failed: reset, closed, timed out.
    Transport,
    /// This side gave up: a bound was reached or the exchange was cancelled.
    Local,
}

/// An error of one connection or one stream.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The peer's bytes are not valid HTTP. The text says which rule was broken, never what the bytes were.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// The peer sends more than any use needs; the text says of what.
    #[error("{0}")]
    Flood(&'static str),
    /// The head of a message is larger than allowed (431 for a request).
    #[error("message head too large")]
    HeadTooLarge,
    /// The peer closed, or the transport failed, in the middle of something.
    #[error("connection failed: {0}")]
    Io(io::ErrorKind),
    /// The peer closed the connection before it sent a byte of the response: on a reused connection this is the
    /// ordinary race with an idle timeout, and the request was not processed.
    #[error("connection closed before the response")]
    ClosedBeforeResponse,
    /// The peer reset this stream with an HTTP/2 error code (RFC 9113 section 7).
    #[error("stream reset by the peer (code {0})")]
    Reset(u32),
    /// The peer refused the stream without processing it (REFUSED_STREAM, or a GOAWAY below its id): safe to retry.
    #[error("stream refused by the peer")]
    Refused,
    /// The peer sent GOAWAY with an error, or a protocol error of the peer ended the whole connection.
    #[error("connection ended by an HTTP/2 error (code {0})")]
    GoAway(u32),
    /// The peer stopped answering keep-alive pings.
    #[error("peer stopped answering")]
    Unresponsive,
    /// This side cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// Who is to blame.
    pub fn fault(&self) -> Fault {
        match self {
            Error::Malformed(_) | Error::Flood(_) | Error::HeadTooLarge => Fault::Peer,
            Error::Cancelled => Fault::Local,
            _ => Fault::Transport,
        }
    }

    /// True when the peer certainly did not process the request.
    pub fn unprocessed(&self) -> bool {
        matches!(self, Error::Refused | Error::ClosedBeforeResponse)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Error::Io(error.kind())
    }
}
