//! EVERY answer that the proxy makes itself: one exhaustive match, so that no cause is forgotten.

use super::ends::Downstream;
use crate::error::Error;
use bytes::Bytes;
use gossamer_api::keys::{HEADER_PROXY_ERROR, HEADER_REQUEST};
use gossamer_api::request_id::RequestId;
use gossamer_engine::h1::Length;
use gossamer_engine::{ResponseHead, Version};

/// gRPC codes. Source: grpc/doc/statuscodes.md.
mod code {
    pub(super) const UNKNOWN: u16 = 2;
    pub(super) const DEADLINE_EXCEEDED: u16 = 4;
    pub(super) const NOT_FOUND: u16 = 5;
    pub(super) const PERMISSION_DENIED: u16 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u16 = 8;
    pub(super) const FAILED_PRECONDITION: u16 = 9;
    pub(super) const INTERNAL: u16 = 13;
    pub(super) const UNAVAILABLE: u16 = 14;
    pub(super) const UNAUTHENTICATED: u16 = 16;
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status; a gRPC client gets 200.
    pub status: u16,
    /// gRPC code.
    pub grpc: u16,
    /// The connection is not used again.
    pub close: bool,
}

/// The answer for each error.
pub fn answer(error: &Error) -> Answer {
    let (status, grpc, close) = match error {
        Error::BadRequest(_) => (400, code::INTERNAL, true),
        Error::HeadTooLarge => (431, code::RESOURCE_EXHAUSTED, true),
        // GOAWAY says it.
        Error::Flood(_) => (429, code::RESOURCE_EXHAUSTED, true),
        Error::NoRoute(_) => (404, code::NOT_FOUND, false),
        Error::Denied { .. } => (403, code::PERMISSION_DENIED, false),
        Error::Forbidden(_) => (403, code::PERMISSION_DENIED, false),
        Error::InvalidPolicy(..) => (500, code::INTERNAL, false),
        Error::Extension(..) => (503, code::UNAVAILABLE, false),
        Error::RateLimited(_) => (429, code::RESOURCE_EXHAUSTED, false),
        Error::Overloaded(_) => (503, code::UNAVAILABLE, false),
        Error::NoEndpoints(_) => (503, code::UNAVAILABLE, false),
        Error::NotReady(..) => (504, code::UNAVAILABLE, false),
        Error::Discovery(..) => (503, code::UNAVAILABLE, false),
        Error::Connect(..) => (502, code::UNAVAILABLE, false),
        Error::Handshake(..) => (502, code::UNAVAILABLE, false),
        Error::WrongIdentity(..) => (502, code::UNAUTHENTICATED, false),
        Error::NoIdentity => (503, code::UNAUTHENTICATED, false),
        Error::RequiredIdentity(_) => (502, code::FAILED_PRECONDITION, false),
        Error::Timeout(..) => (504, code::DEADLINE_EXCEEDED, false),
        Error::Upstream(..) => (502, code::UNAVAILABLE, false),
        Error::Loop => (508, code::FAILED_PRECONDITION, true),
        // On gRPC routes `status` is a gRPC code.
        Error::Injected { status, .. } if *status < 100 => (200, *status, false),
        Error::Injected { status, .. } => (*status, code::UNKNOWN, false),
        Error::Redirect { status, .. } => (*status, code::UNKNOWN, false),
        // Nobody reads it; the log and metrics name the status that nginx made customary.
        Error::ClientGone => (499, code::UNKNOWN, true),
        Error::ShuttingDown => (503, code::UNAVAILABLE, true),
    };
    Answer { status, grpc, close }
}

/// The head and body of an answer. The headers name the reason, the object that decided, and the request.
pub fn compose(error: &Error, grpc: bool, id: Option<RequestId>) -> (ResponseHead, Bytes) {
    let Answer { status, grpc: code, .. } = answer(error);
    let text = format!("{}: {error}", error.reason());
    let mut head = ResponseHead::new(if grpc { 200 } else { status });
    head.headers.append(HEADER_PROXY_ERROR, printable(&text));
    if let Error::Redirect { location, .. } = error {
        head.headers.append("location", location);
        head.headers.append("content-length", "0");
        return (head, Bytes::new());
    }
    if let Some(id) = id {
        head.headers.append(HEADER_REQUEST, id.to_string());
    }
    if grpc {
        head.headers.append("content-type", "application/grpc");
        head.headers.append("grpc-status", code.to_string());
        head.headers.append("grpc-message", percent(&error.to_string()));
        return (head, Bytes::new());
    }
    let body = format!("{text}\n");
    head.headers.append("content-type", "text/plain; charset=utf-8");
    head.headers.append("content-length", body.len().to_string());
    (head, body.into())
}

/// Sends an answer. The client may be in any state before the response's head.
pub fn send(error: &Error, id: RequestId, version: Version, grpc: bool, head_only: bool, down: &mut Downstream<'_>) {
    let (mut head, body) = compose(error, grpc && version == Version::Http2, Some(id));
    head.version = version;
    if answer(error).close
        && let Downstream::H1(server) = down
    {
        server.set_close();
    }
    let length = if body.is_empty() || head_only { Length::Empty } else { Length::Known(body.len() as u64) };
    // A client that is gone needs no answer.
    if down.send_response(&head, length).is_ok() && length != Length::Empty {
        let _ = down.send_data(body, true);
    } else if let Downstream::H1(server) = down {
        server.send_end(None);
    }
}

/// Header values are visible ASCII here: error texts may quote what a client sent.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(512).collect()
}

/// Source: gRPC over HTTP/2, "Status-Message": percent-encoded UTF-8.
fn percent(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes().take(512) {
        if (0x20..0x7f).contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: RequestId = RequestId { base: 42, stream: 7 };

    #[test]
    fn an_answer_names_its_reason_and_the_object() {
        let (head, body) = compose(&Error::NoEndpoints("catalog.demo.svc.cluster.local:80".into()), false, Some(ID));
        assert_eq!(head.status, 503);
        let header = head.headers.get_str(HEADER_PROXY_ERROR).unwrap();
        assert_eq!(header, "no-endpoints: catalog.demo.svc.cluster.local:80 has no endpoints");
        assert_eq!(&body[..], format!("{header}\n").as_bytes());
        assert_eq!(head.headers.get_str(HEADER_REQUEST), Some("0000002a-7"));
    }

    #[test]
    fn a_redirect_says_whose_it_is() {
        let redirect = Error::Redirect { status: 301, location: "https://new/".into() };
        let (head, body) = compose(&redirect, false, None);
        assert_eq!((head.status, head.headers.get_str("location"), body.len()), (301, Some("https://new/"), 0));
        assert_eq!(head.headers.get_str(HEADER_PROXY_ERROR), Some("redirect: redirect to https://new/"));
    }

    #[test]
    fn a_grpc_client_gets_a_grpc_status() {
        let (head, body) = compose(&Error::Overloaded("a%b".into()), true, None);
        assert_eq!((head.status, head.headers.get_str("grpc-status"), body.len()), (200, Some("14"), 0));
        assert_eq!(head.headers.get_str("grpc-message"), Some("too many requests wait for a%25b"));
    }

    #[test]
    fn what_a_client_sent_cannot_break_the_header() {
        let (head, _) = compose(&Error::NoRoute("x\r\nset-cookie: a".into()), false, None);
        assert!(!head.headers.get(HEADER_PROXY_ERROR).unwrap().contains(&b'\r'));
    }
}
