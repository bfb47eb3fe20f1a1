//! Heads and bodies to bytes. The framing fields are written from [`Framing`] alone; those of the head are left out.
//!
//! **Invariant:** nothing leaves that could end a line or a message early. A head that would, because it came in over
//! a protocol that frames differently, is not written at all.

use bytes::Bytes;

use crate::error::Error;
use crate::h1::chars::{is_authority, is_text, is_token, target_len};
use crate::h1::parse::forbidden_in_trailers;
use crate::h1::write::Writer;
use crate::message::{Headers, Method, RequestHead, ResponseHead};

/// How the body of a message that leaves is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// No body, and nothing said about it. `content-length` of the head is kept where it describes something else
    /// than this message: the answer to HEAD, a 304.
    Nothing { keep_length: bool },
    /// `content-length`.
    Length(u64),
    /// `transfer-encoding: chunked`.
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// What the `connection` field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// Nothing: the version's default.
    Default,
    Close,
    KeepAlive,
}

fn refuse(rule: &'static str) -> Result<(), Error> {
    Err(Error::Malformed(rule))
}

/// Appends the head of a request.
pub(super) fn request(out: &mut Vec<u8>, head: &RequestHead, framing: Framing) -> Result<(), Error> {
    let start = out.len();
    let written = try_request(out, head, framing);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn try_request(out: &mut Vec<u8>, head: &RequestHead, framing: Framing) -> Result<(), Error> {
    let (path, authority) = (head.path(), head.authority());
    if authority.is_some_and(|authority| !is_authority(authority.as_bytes())) {
        return refuse("invalid authority");
    }
    if target_len(path.as_bytes()) != path.len() {
        return refuse("invalid path");
    }
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    if head.method == Method::CONNECT {
        let Some(authority) = authority else { return refuse("CONNECT without an authority") };
        out.extend_from_slice(authority.as_bytes());
    } else {
        if let (true, Some(authority)) = (head.absolute_form, authority) {
            out.extend_from_slice(head.scheme.as_str().as_bytes());
            out.extend_from_slice(b"://");
            out.extend_from_slice(authority.as_bytes());
        }
        match path.as_bytes() {
            [b'/', ..] => out.extend_from_slice(path.as_bytes()),
            // The absolute form of an asterisk has no path (RFC 9112 section 3.2.4).
            b"*" if head.absolute_form && authority.is_some() => {}
            b"*" => out.push(b'*'),
            b"" => out.push(b'/'),
            _ => return refuse("invalid path"),
        }
    }
    out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
    out.extend_from_slice(authority.unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    finish(out, &head.headers, framing, Persistence::Default)
}

/// Appends the head of a response.
pub(super) fn response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    framing: Framing,
    persistence: Persistence,
) -> Result<(), Error> {
    let start = out.len();
    let written = try_response(out, head, framing, persistence);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn try_response(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    framing: Framing,
    persistence: Persistence,
) -> Result<(), Error> {
    if head.status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        let Ok(status) = http::StatusCode::from_u16(head.status) else { return refuse("invalid status") };
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    finish(out, &head.headers, framing, persistence)
}

/// Fields, framing, `connection`, and the empty line.
fn finish(out: &mut Vec<u8>, headers: &Headers, framing: Framing, persistence: Persistence) -> Result<(), Error> {
    let keep_length = matches!(framing, Framing::Nothing { keep_length: true });
    let (mut upgrade, mut te) = (false, false);
    for (name, value) in headers.iter() {
        match name.len() {
            2 => te |= name == b"te",
            4 if name == b"host" => continue,
            7 => upgrade |= name == b"upgrade",
            10 if name == b"connection" || name == b"keep-alive" => continue,
            14 if !keep_length && name == b"content-length" => continue,
            16 if name == b"proxy-connection" => continue,
            17 if name == b"transfer-encoding" => continue,
            _ => {}
        }
        field(out, name, value)?;
    }
    match framing {
        Framing::Nothing { .. } | Framing::UntilClose => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
    }
    // `te` and `upgrade` mean something only to the next hop, and must be listed as such (RFC 9110 7.6.1, 7.8, 10.1.4).
    let options = [
        (persistence == Persistence::Close).then_some("close"),
        (persistence == Persistence::KeepAlive).then_some("keep-alive"),
        upgrade.then_some("upgrade"),
        te.then_some("te"),
    ];
    if options.iter().any(Option::is_some) {
        let mut separator = "connection: ";
        for option in options.into_iter().flatten() {
            out.extend_from_slice(separator.as_bytes());
            out.extend_from_slice(option.as_bytes());
            separator = ", ";
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), Error> {
    if !is_token(name) || !is_text(value) {
        return refuse("field that cannot be sent");
    }
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// The body of a message that leaves, after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoder {
    /// No head was sent for this exchange.
    Waiting,
    /// So many bytes are due.
    Length(u64),
    Chunked,
    UntilClose,
    /// Complete.
    Done,
    /// Ended before its length: only closing the connection tells the peer.
    Broken,
}

impl Encoder {
    /// The state after a head.
    pub(super) fn after_head(framing: Framing) -> Self {
        match framing {
            Framing::Nothing { .. } | Framing::Length(0) => Encoder::Done,
            Framing::Length(length) => Encoder::Length(length),
            Framing::Chunked => Encoder::Chunked,
            Framing::UntilClose => Encoder::UntilClose,
        }
    }

    /// Adds data. Data beyond the length that was announced is dropped: it would be read as the next message.
    pub(super) fn data(&mut self, mut data: Bytes, out: &mut Writer) {
        if data.is_empty() {
            return;
        }
        match self {
            Encoder::Length(left) => {
                debug_assert!(data.len() as u64 <= *left, "more data than the length said");
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                if *left == 0 {
                    *self = Encoder::Done;
                }
                out.push(data);
            }
            Encoder::Chunked => {
                write_hex(out.gather(), data.len());
                out.push(data);
                out.gather().extend_from_slice(b"\r\n");
            }
            Encoder::UntilClose => out.push(data),
            Encoder::Waiting | Encoder::Done | Encoder::Broken => {}
        }
    }

    /// Ends the body. Trailers go out only where the framing has room for them.
    pub(super) fn end(&mut self, trailers: Option<&Headers>, out: &mut Writer) {
        match self {
            Encoder::Length(_) => *self = Encoder::Broken,
            Encoder::Chunked => {
                let out = out.gather();
                out.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().flat_map(|trailers| trailers.iter()) {
                    if !forbidden_in_trailers(name) && is_token(name) && is_text(value) {
                        let _ = field(out, name, value);
                    }
                }
                out.extend_from_slice(b"\r\n");
                *self = Encoder::Done;
            }
            Encoder::UntilClose => *self = Encoder::Done,
            Encoder::Waiting | Encoder::Done | Encoder::Broken => {}
        }
    }
}

/// A chunk's size and the line break after it.
fn write_hex(out: &mut Vec<u8>, size: usize) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        out.push(b"0123456789abcdef"[size >> (4 * place) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request_text(build: impl Fn(&mut RequestHead), framing: Framing) -> Result<String, &'static str> {
        let mut head = RequestHead::default();
        head.set_path("/");
        head.set_authority("h");
        build(&mut head);
        let mut out = b"before".to_vec();
        match request(&mut out, &head, framing) {
            Ok(()) => Ok(String::from_utf8(out[6..].to_vec()).unwrap()),
            Err(Error::Malformed(rule)) => {
                assert_eq!(out, b"before", "a refused head leaves nothing behind");
                Err(rule)
            }
            Err(other) => panic!("{other}"),
        }
    }

    const NOTHING: Framing = Framing::Nothing { keep_length: false };

    #[test]
    fn requests() {
        let check = |build: fn(&mut RequestHead), framing, expect: &str| {
            assert_eq!(request_text(build, framing).unwrap(), expect);
        };
        check(|_| {}, NOTHING, "GET / HTTP/1.1\r\nhost: h\r\n\r\n");
        check(|h| h.absolute_form = true, NOTHING, "GET http://h/ HTTP/1.1\r\nhost: h\r\n\r\n");
        check(|h| h.clear_authority(), NOTHING, "GET / HTTP/1.1\r\nhost: \r\n\r\n");
        check(|h| h.method = Method::CONNECT, NOTHING, "CONNECT h HTTP/1.1\r\nhost: h\r\n\r\n");
        check(|h| h.headers.append("A", "b"), NOTHING, "GET / HTTP/1.1\r\nhost: h\r\na: b\r\n\r\n");
        check(|_| {}, Framing::Length(7), "GET / HTTP/1.1\r\nhost: h\r\ncontent-length: 7\r\n\r\n");
        check(
            |h| {
                h.headers.append("content-length", "9");
                h.headers.append("transfer-encoding", "gzip");
                h.headers.append("connection", "close");
                h.headers.append("keep-alive", "1");
                h.headers.append("host", "other");
            },
            Framing::Chunked,
            "GET / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
        );
        check(
            |h| {
                h.headers.append("upgrade", "x");
                h.headers.append("te", "trailers");
            },
            NOTHING,
            "GET / HTTP/1.1\r\nhost: h\r\nupgrade: x\r\nte: trailers\r\nconnection: upgrade, te\r\n\r\n",
        );
        check(
            |h| {
                h.method = Method::OPTIONS;
                h.absolute_form = true;
                h.set_path("*");
            },
            NOTHING,
            "OPTIONS http://h HTTP/1.1\r\nhost: h\r\n\r\n",
        );
    }

    #[test]
    fn heads_that_would_end_early_are_not_sent() {
        let check = |build: fn(&mut RequestHead), expect| assert_eq!(request_text(build, NOTHING), Err(expect));
        check(|h| h.set_path("/ HTTP/1.1\r\nx: y"), "invalid path");
        check(|h| h.set_path("x"), "invalid path");
        check(|h| h.set_authority("h\r\nx: y"), "invalid authority");
        check(|h| h.headers.append("a", "b\r\nc: d"), "field that cannot be sent");
        check(|h| h.headers.append("a", "b\nc"), "field that cannot be sent");
        check(|h| h.headers.append("a", "\0"), "field that cannot be sent");
        check(|h| h.headers.append("a: b\r\nc", "d"), "field that cannot be sent");
        check(|h| h.headers.append("", "d"), "field that cannot be sent");
        check(|h| h.headers.append(":path", "/"), "field that cannot be sent");
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for size in [1, 15, 16, 255, 256, 65536, usize::MAX] {
            let mut out = Vec::new();
            write_hex(&mut out, size);
            assert_eq!(out, format!("{size:x}\r\n").into_bytes());
        }
    }

    #[test]
    fn trailers_that_would_frame_are_left_out() {
        let (mut writer, mut encoder) = (Writer::default(), Encoder::Chunked);
        let mut trailers = Headers::new();
        trailers.append("x", "1");
        trailers.append("content-length", "5");
        trailers.append("y", "a\r\nb");
        encoder.data(Bytes::from_static(b"hi"), &mut writer);
        encoder.end(Some(&trailers), &mut writer);
        assert_eq!(writer.gather(), b"2\r\nhi\r\n0\r\nx: 1\r\n\r\n");
        assert_eq!(encoder, Encoder::Done);
    }
}
