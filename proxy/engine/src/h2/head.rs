//! Heads to and from header blocks, and the rules of RFC 9113 section 8 for them.
//!
//! A malformed head is an error of its stream; a block that does not decode is one of the connection, because the
//! tables of both sides no longer agree.

use http::Method;

use super::hpack::{Decoder, ENTRY_OVERHEAD, Encoder, Field, Kind, Undecodable};
use crate::message::{Headers, RequestHead, ResponseHead, Scheme, Version};

/// Why a decoded head cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    Malformed(&'static str),
    TooLarge,
}

/// What a head says about its message.
#[derive(Debug, Default)]
pub(super) struct Judged {
    pub(super) content_length: Option<u64>,
    pub(super) flaw: Option<Flaw>,
}

/// Counts and checks what all heads have in common.
struct Check {
    left: usize,
    regular: bool,
    cookies: u32,
    content_length: Option<u64>,
    flaw: Option<Flaw>,
}

impl Check {
    fn new(max: u32) -> Self {
        Check { left: max as usize, regular: false, cookies: 0, content_length: None, flaw: None }
    }

    fn refuse(&mut self, why: &'static str) {
        self.flaw.get_or_insert(Flaw::Malformed(why));
    }

    /// False when the field is not to be looked at.
    fn admit(&mut self, field: &Field<'_>) -> bool {
        let size = field.name.len() + field.value.len() + ENTRY_OVERHEAD;
        match self.left.checked_sub(size) {
            Some(left) => self.left = left,
            None => {
                self.left = 0;
                self.flaw = Some(Flaw::TooLarge);
            }
        }
        if self.flaw.is_none() && !field.value_ok {
            self.refuse("control character in a field");
        }
        self.flaw.is_none()
    }

    /// Takes a field that is not a pseudo-header.
    fn regular(&mut self, field: &Field<'_>, headers: &mut Headers) {
        self.regular = true;
        // RFC 9113 forbids space around values, HTTP/1 removes it: do the latter, as senders differ.
        let value = field.value.trim_ascii();
        match field.kind {
            Kind::Ordinary | Kind::Host => (),
            Kind::Cookie => self.cookies += 1,
            Kind::ContentLength => {
                let length = decimal(value);
                if length.is_none() || self.content_length.is_some_and(|old| Some(old) != length) {
                    return self.refuse("bad content-length");
                }
                if self.content_length.is_some() {
                    return;
                }
                self.content_length = length;
            }
            Kind::Te if value.eq_ignore_ascii_case(b"trailers") => (),
            Kind::Te => return self.refuse("te other than trailers"),
            Kind::Connection => return self.refuse("connection-specific field"),
            _ => return self.refuse("bad field name"),
        }
        headers.append_lower(field.name, value);
        if field.sensitive {
            headers.mark_sensitive();
        }
    }

    /// True for the first pseudo-header of its kind that comes before all fields.
    fn pseudo(&mut self, first: bool) -> bool {
        if self.regular {
            self.refuse("pseudo-header after a field");
        } else if !first {
            self.refuse("repeated pseudo-header");
        }
        self.flaw.is_none()
    }

    fn judged(self) -> Judged {
        Judged { content_length: self.content_length, flaw: self.flaw }
    }
}

/// Decodes a request's head. With a flaw, `head` holds anything.
pub(super) fn read_request(
    decoder: &mut Decoder,
    block: &[u8],
    head: &mut RequestHead,
    max: u32,
    connect_protocol: bool,
) -> Result<Judged, Undecodable> {
    head.version = Version::Http2;
    let mut check = Check::new(max);
    let (mut method, mut scheme, mut path) = (None, None, false);
    let mut host: Option<Vec<u8>> = None;
    decoder.decode(block, |field| {
        if !check.admit(&field) {
            return;
        }
        let value = field.value;
        match field.kind {
            Kind::Method if check.pseudo(method.is_none()) => match Method::from_bytes(value) {
                Ok(value) => method = Some(value),
                Err(_) => check.refuse("bad :method"),
            },
            Kind::Scheme if check.pseudo(scheme.is_none()) => match value {
                b"http" => scheme = Some(Scheme::Http),
                b"https" => scheme = Some(Scheme::Https),
                _ => check.refuse("unknown :scheme"),
            },
            Kind::Path if check.pseudo(!path) => match target(value) {
                Some(value) => {
                    path = true;
                    head.set_path(value);
                }
                None => check.refuse("bad :path"),
            },
            Kind::Authority if check.pseudo(head.authority().is_none()) => match authority(value) {
                Some(value) => head.set_authority(value),
                None => check.refuse("bad :authority"),
            },
            Kind::Protocol if check.pseudo(head.protocol().is_none()) => match target(value) {
                Some(value) if connect_protocol => head.set_protocol(value),
                _ => check.refuse("unexpected :protocol"),
            },
            Kind::Method | Kind::Scheme | Kind::Path | Kind::Authority | Kind::Protocol => (),
            Kind::Status => check.refuse(":status in a request"),
            Kind::Host => {
                check.regular = true;
                let value = value.trim_ascii();
                if authority(value).is_none() || host.as_deref().is_some_and(|old| old != value) {
                    check.refuse("bad host");
                }
                host = Some(value.to_vec());
            }
            _ => check.regular(&field, &mut head.headers),
        }
    })?;
    if check.flaw.is_some() {
        return Ok(check.judged());
    }
    let extended = head.protocol().is_some();
    let connect = method == Some(Method::CONNECT);
    if extended && !connect {
        check.refuse(":protocol without CONNECT");
    }
    if connect && !extended {
        if scheme.is_some() || path || head.authority().is_none_or(str::is_empty) {
            check.refuse("CONNECT is made of :method and :authority");
        }
    } else if scheme.is_none() || !path {
        check.refuse("missing pseudo-header");
    } else if !(head.path().starts_with('/') || head.path() == "*" && method == Some(Method::OPTIONS)) {
        check.refuse("bad :path");
    }
    match method {
        Some(method) => head.method = method,
        None => check.refuse("missing pseudo-header"),
    }
    head.scheme = scheme.unwrap_or(Scheme::Http);
    if let Some(host) = host.as_deref().and_then(authority) {
        match head.authority() {
            Some(authority) if !authority.eq_ignore_ascii_case(host) => check.refuse("host differs from :authority"),
            Some(_) => (),
            None => head.set_authority(host),
        }
    }
    join_cookies(&check, &mut head.headers);
    Ok(check.judged())
}

/// Decodes a response's head.
pub(super) fn read_response(
    decoder: &mut Decoder,
    block: &[u8],
    headers: &mut Headers,
    max: u32,
) -> Result<(u16, Judged), Undecodable> {
    let mut check = Check::new(max);
    let mut status = None;
    decoder.decode(block, |field| {
        if !check.admit(&field) {
            return;
        }
        match field.kind {
            Kind::Status if check.pseudo(status.is_none()) => match *field.value {
                [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                    let digit = |byte: u8| u16::from(byte - b'0');
                    status = Some(digit(a) * 100 + digit(b) * 10 + digit(c));
                }
                _ => check.refuse("bad :status"),
            },
            Kind::Status => (),
            Kind::Method | Kind::Scheme | Kind::Path | Kind::Authority | Kind::Protocol => {
                check.refuse("request pseudo-header in a response");
            }
            _ => check.regular(&field, headers),
        }
    })?;
    // RFC 9113 section 8.6: there is no switching of protocols in HTTP/2.
    if status.is_none() || status == Some(101) {
        check.refuse("bad :status");
    }
    Ok((status.unwrap_or(0), check.judged()))
}

/// Decodes trailers.
pub(super) fn read_trailers(
    decoder: &mut Decoder,
    block: &[u8],
    headers: &mut Headers,
    max: u32,
) -> Result<Judged, Undecodable> {
    let mut check = Check::new(max);
    decoder.decode(block, |field| {
        if check.admit(&field) {
            match field.kind {
                // What frames a message cannot come after it.
                Kind::ContentLength | Kind::Host => (),
                _ if field.name.starts_with(b":") => check.refuse("pseudo-header in trailers"),
                _ => check.regular(&field, headers),
            }
        }
    })?;
    Ok(Judged { content_length: None, flaw: check.flaw })
}

/// Cookies may come in crumbs; everything else wants one field (RFC 9113 section 8.2.3).
fn join_cookies(check: &Check, headers: &mut Headers) {
    if check.cookies > 1 {
        let crumbs: Vec<&[u8]> = headers.get_all("cookie").collect();
        let joined = crumbs.join(&b"; "[..]);
        headers.set("cookie", joined);
    }
}

fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Text without spaces, not empty.
fn target(value: &[u8]) -> Option<&str> {
    if value.is_empty() || value.iter().any(|&byte| byte <= b' ') {
        return None;
    }
    std::str::from_utf8(value).ok()
}

/// Host and port, without user information (RFC 9113 section 8.3.1). May be empty.
fn authority(value: &[u8]) -> Option<&str> {
    let plain = value.iter().all(|&byte| byte.is_ascii_graphic() && !matches!(byte, b'@' | b'/' | b'?' | b'#' | b'\\'));
    if plain { std::str::from_utf8(value).ok() } else { None }
}

/// Encodes a request's head.
pub(super) fn write_request(encoder: &mut Encoder, head: &RequestHead, out: &mut Vec<u8>) {
    match head.method {
        Method::GET => encoder.indexed(2, out),
        Method::POST => encoder.indexed(3, out),
        ref method => encoder.pseudo(2, method.as_str().as_bytes(), out),
    }
    if head.method != Method::CONNECT || head.protocol().is_some() {
        encoder.indexed(if head.scheme == Scheme::Https { 7 } else { 6 }, out);
        match head.path() {
            "/" | "" => encoder.indexed(4, out),
            path => encoder.pseudo(4, path.as_bytes(), out),
        }
    }
    if let Some(authority) = head.authority() {
        encoder.pseudo(1, authority.as_bytes(), out);
    }
    if let Some(protocol) = head.protocol() {
        encoder.pseudo(0, protocol.as_bytes(), out);
    }
    write_fields(encoder, &head.headers, out);
}

/// Encodes a response's head.
pub(super) fn write_response(encoder: &mut Encoder, head: &ResponseHead, out: &mut Vec<u8>) {
    encoder.status(head.status, out);
    write_fields(encoder, &head.headers, out);
}

/// Encodes trailers, or the fields of a head.
pub(super) fn write_fields(encoder: &mut Encoder, headers: &Headers, out: &mut Vec<u8>) {
    for (name, value, sensitive) in headers.iter_marked() {
        encoder.field(name, value, sensitive, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fields: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in fields {
            out.push(0);
            for text in [name, value] {
                out.push(text.len() as u8);
                out.extend_from_slice(text.as_bytes());
            }
        }
        out
    }

    fn request(fields: &[(&str, &str)]) -> Result<RequestHead, Flaw> {
        let mut head = RequestHead::default();
        let judged = read_request(&mut Decoder::new(), &block(fields), &mut head, 1000, true).unwrap();
        judged.flaw.map_or(Ok(head), Err)
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];

    fn with(more: &[(&'static str, &'static str)]) -> Result<RequestHead, Flaw> {
        request(&[&GET[..], more].concat())
    }

    #[test]
    fn a_request_survives() {
        let mut head = with(&[("x", " y\t"), ("te", "trailers")]).unwrap();
        assert_eq!(head.headers.get("x"), Some(&b"y"[..]));
        head.method = Method::PATCH;
        head.scheme = Scheme::Https;
        let mut bytes = Vec::new();
        write_request(&mut Encoder::new(), &head, &mut bytes);
        let mut again = RequestHead::default();
        let judged = read_request(&mut Decoder::new(), &bytes, &mut again, 1000, false).unwrap();
        assert_eq!(judged.flaw, None);
        assert_eq!((again.method, again.scheme, again.headers.len()), (Method::PATCH, Scheme::Https, 2));
        assert_eq!(again.headers.get_str("te"), Some("trailers"));
    }

    #[test]
    fn malformed_requests_are_refused() {
        let refused: &[&[(&str, &str)]] = &[
            &[(":method", "GET")],
            &[("x", "1"), (":path", "/b")],
            &[(":path", "/b")],
            &[(":status", "200")],
            &[(":other", "x")],
            &[("X-Upper", "1")],
            &[("connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("te", "gzip")],
            &[("content-length", "1"), ("content-length", "2")],
            &[("content-length", "+1")],
            &[("content-length", "")],
            &[("x", "a\r\nb: c")],
            &[("host", "b")],
            &[("host", "a"), ("host", "b")],
            &[("", "x")],
            &[(":protocol", "websocket")],
        ];
        for more in refused {
            assert!(matches!(with(more), Err(Flaw::Malformed(_))), "{more:?}");
        }
        for fields in [
            &[(":method", "GET"), (":scheme", "http"), (":path", "")][..],
            &[(":method", "GET"), (":scheme", "http"), (":path", "b")],
            &[(":method", "GET"), (":scheme", "http"), (":path", "*")],
            &[(":method", "GET"), (":scheme", "http"), (":path", "/a b")],
            &[(":method", "GET"), (":scheme", "ftp"), (":path", "/")],
            &[(":method", "GET"), (":path", "/")],
            &[(":method", "G T"), (":scheme", "http"), (":path", "/")],
            &[(":scheme", "http"), (":path", "/")],
            &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "u@h")],
            &[(":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", "a")],
            &[(":method", "CONNECT")],
            &[],
        ] {
            assert!(request(fields).is_err(), "{fields:?}");
        }
        assert_eq!(with(&[("x", "y"); 30]).unwrap_err(), Flaw::TooLarge);
    }

    #[test]
    fn the_unusual_is_admitted() {
        let head = request(&[(":method", "CONNECT"), (":authority", "a:1")]).unwrap();
        assert_eq!((head.path(), head.authority()), ("", Some("a:1")));
        let head = request(&[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":path", "/chat"),
            (":authority", "a"),
        ]);
        assert_eq!(head.unwrap().protocol(), Some("websocket"));
        let head = request(&[(":method", "OPTIONS"), (":scheme", "http"), (":path", "*"), ("host", "H")]).unwrap();
        assert_eq!((head.path(), head.authority(), head.headers.len()), ("*", Some("H"), 0));
        let head = with(&[("host", "A"), ("cookie", "a=1"), ("x", "1"), ("cookie", "b=2")]).unwrap();
        assert_eq!(head.headers.get_str("cookie"), Some("a=1; b=2"));
    }

    #[test]
    fn responses_and_trailers_are_checked() {
        let response = |fields: &[(&str, &str)]| {
            let mut headers = Headers::new();
            let (status, judged) = read_response(&mut Decoder::new(), &block(fields), &mut headers, 1000).unwrap();
            judged.flaw.map_or(Ok(status), Err)
        };
        assert_eq!(response(&[(":status", "204")]), Ok(204));
        for fields in [
            &[(":status", "20")][..],
            &[(":status", "099")],
            &[(":status", "101")],
            &[("x", "1")],
            &[(":status", "200"), (":path", "/")],
            &[("x", "1"), (":status", "200")],
        ] {
            assert!(response(fields).is_err(), "{fields:?}");
        }
        let trailers = |fields: &[(&str, &str)]| {
            let mut headers = Headers::new();
            read_trailers(&mut Decoder::new(), &block(fields), &mut headers, 1000).unwrap().flaw
        };
        assert_eq!(trailers(&[("grpc-status", "0")]), None);
        assert!(trailers(&[(":status", "200")]).is_some());
    }
}
