//! First bytes of a connection → its protocol. Pure: no I/O, no clock, nothing consumed.
//!
//! A client that sends nothing is the caller's business: it never waits for a timeout.

use gossamer_api::defaults::DETECT_BYTES;

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// A TLS ClientHello, with what it asks for.
    Tls(Hello),
    /// Anything else.
    Opaque,
}

/// What a ClientHello asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server name, lower case.
    pub sni: Option<String>,
}

/// The start of every HTTP/2 connection. Source: RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest word taken for a method, twice the longest that IANA knows.
const METHOD_BYTES: usize = 32;

/// The longest request line looked for its version; longer ones are opaque.
const LINE_BYTES: usize = 8 * 1024;

/// The protocol, or `None` when these bytes may still become several of them.
pub fn detect(bytes: &[u8]) -> Option<Protocol> {
    let first = *bytes.first()?;
    if first == 0x16 {
        return tls(bytes);
    }
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        // "P" alone may also become "POST"; "PRI" is no registered method but the preface itself.
        return (common == PREFACE.len()).then_some(Protocol::Http2);
    }
    http1(bytes)
}

/// Methods by which clients are known to begin: those registered with IANA and a few that proxies and caches made common.
/// Source: IANA's Hypertext Transfer Protocol (HTTP) Method Registry.
const METHODS: &[&str] = &[
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LABEL",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "ORDERPATCH",
    "PATCH",
    "POST",
    "PRI",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "QUERY",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// Of bytes that [`detect`] is undecided about: true when they begin as requests, prefaces or handshakes do, so that
/// the rest is worth waiting for. A word that is no method may as well be all that the client wants to say.
pub fn promising(bytes: &[u8]) -> bool {
    if bytes.first() == Some(&0x16) {
        return true;
    }
    let line = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let (word, target) = line.split_at(line.iter().position(|byte| *byte == b' ').unwrap_or(line.len()));
    match target {
        [] => !bytes.is_empty() && METHODS.iter().any(|method| method.as_bytes().starts_with(word)),
        // Whatever the method: a path or a whole URI follows.
        [_, b'/', ..] => true,
        [_, rest @ ..] => {
            let uri = &rest[..rest.len().min(4)];
            (!uri.is_empty() && b"http".starts_with(uri)) || METHODS.iter().any(|method| method.as_bytes() == word)
        }
    }
}

/// `METHOD SP target SP HTTP/1.x CRLF`: only the method's form and the version count.
fn http1(bytes: &[u8]) -> Option<Protocol> {
    // One empty line before the request is tolerated (RFC 9112 section 2.2).
    let line = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let method = line.iter().take_while(|b| b.is_ascii_alphabetic() || **b == b'-' || **b == b'_').count();
    if method > METHOD_BYTES {
        return Some(Protocol::Opaque);
    }
    if method == line.len() {
        return if line.first() == Some(&b'\r') { Some(Protocol::Opaque) } else { None };
    }
    if method == 0 {
        return if bytes == b"\r" { None } else { Some(Protocol::Opaque) };
    }
    if line[method] != b' ' {
        return Some(Protocol::Opaque);
    }
    match memchr::memchr(b'\n', line) {
        Some(end) => {
            let line = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]);
            // A request with a version that nobody speaks is still HTTP: the parser refuses it with 400.
            let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
            Some(if version.starts_with(b"HTTP/") { Protocol::Http1 } else { Protocol::Opaque })
        }
        None if line.len() > LINE_BYTES => Some(Protocol::Opaque),
        None => None,
    }
}

/// A ClientHello, possibly split over several records (RFC 8446 sections 4.1.2 and 5.1).
fn tls(bytes: &[u8]) -> Option<Protocol> {
    let mut hello = Vec::new();
    let mut rest = bytes;
    loop {
        if rest.len() < 5 {
            return undecided(bytes);
        }
        // Record: type, version 3.x, length of at most 2^14 + 256.
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        if rest[0] != 0x16 || rest[1] != 3 || length == 0 || length > 16_640 {
            return Some(Protocol::Opaque);
        }
        let have = rest.len().min(5 + length);
        hello.extend_from_slice(&rest[5..have]);
        if hello.first().is_some_and(|kind| *kind != 1) {
            return Some(Protocol::Opaque);
        }
        if hello.len() >= 4 {
            let want = 4 + usize::from(hello[1]) * 65_536 + usize::from(hello[2]) * 256 + usize::from(hello[3]);
            if want > DETECT_BYTES {
                return Some(Protocol::Opaque);
            }
            if hello.len() >= want {
                return Some(match client_hello(&hello[4..want]) {
                    Some(hello) => Protocol::Tls(hello),
                    None => Protocol::Opaque,
                });
            }
        }
        if have < 5 + length {
            return undecided(bytes);
        }
        rest = &rest[have..];
    }
}

fn undecided(bytes: &[u8]) -> Option<Protocol> {
    (bytes.len() >= DETECT_BYTES).then_some(Protocol::Opaque)
}

/// The body of a ClientHello; `None` when it is none.
fn client_hello(body: &[u8]) -> Option<Hello> {
    let mut at = Cursor(body);
    at.take(2 + 32)?;
    let session = at.u8()?;
    at.take(session)?;
    let suites = at.u16()?;
    at.take(suites)?;
    let compression = at.u8()?;
    at.take(compression)?;
    let mut hello = Hello::default();
    if at.0.is_empty() {
        return Some(hello);
    }
    let length = at.u16()?;
    let mut extensions = Cursor(at.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let data = extensions.take(length)?;
        if kind == 0 {
            hello.sni = Some(server_name(data)?);
        }
    }
    Some(hello)
}

/// RFC 6066 section 3: a list of which only host names (type 0) exist.
fn server_name(data: &[u8]) -> Option<String> {
    let mut list = Cursor(data);
    let length = list.u16()?;
    let mut names = Cursor(list.take(length)?);
    if names.u8()? != 0 {
        return None;
    }
    let length = names.u16()?;
    let name = names.take(length)?;
    let valid = !name.is_empty() && name.len() <= 255 && name.iter().all(|b| (0x21..0x7f).contains(b));
    valid.then(|| String::from_utf8_lossy(name).trim_end_matches('.').to_ascii_lowercase())
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn u8(&mut self) -> Option<usize> {
        Some(usize::from(self.take(1)?[0]))
    }

    fn u16(&mut self) -> Option<usize> {
        let bytes = self.take(2)?;
        Some(usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8], expect: Option<Protocol>) {
        assert_eq!(detect(bytes), expect, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn requests_prefaces_and_everything_else() {
        check(b"", None);
        check(b"G", None);
        check(b"GET / HTTP/1.1\r\n", Some(Protocol::Http1));
        check(b"GET / HTTP/1.1", None);
        check(b"GET / HTTP/3.9\r\n", Some(Protocol::Http1));
        check(b"\r\nGET / HTTP/1.0\r\n", Some(Protocol::Http1));
        check(b"M-SEARCH * HTTP/1.1\r\n", Some(Protocol::Http1));
        check(b"GET /\r\n", Some(Protocol::Opaque));
        check(b"P", None);
        check(b"PRI * HT", None);
        check(PREFACE, Some(Protocol::Http2));
        check(b"PUT / HTTP/1.1\r\n", Some(Protocol::Http1));
        check(b"hello world\r\n", Some(Protocol::Opaque));
        check(b"EHLO example.org\r\n", Some(Protocol::Opaque));
        check(b"\0\0\0", Some(Protocol::Opaque));
        check(b"*1\r\n$4\r\nPING\r\n", Some(Protocol::Opaque));
        check(&[b'A'; 64], Some(Protocol::Opaque));
        // Refused by the parser once it is whole, however it was cut.
        check(b"GET \x01", None);
        check(b"GET \x01 HTTP/1.1\r\n", Some(Protocol::Http1));
    }

    #[test]
    fn the_beginning_of_a_request_or_a_handshake_is_worth_waiting_for() {
        for bytes in
            ["G", "GET", "GET ", "GET /ind", "PRI * HT", "\r\nPOST", "\r\n", "FOO /", "FOO http://x/", "\u{16}\u{3} "]
        {
            assert!(promising(bytes.as_bytes()) && detect(bytes.as_bytes()).is_none(), "{bytes:?}");
        }
        for bytes in ["", "EHLO", "HELO example", "HELO host", "hello", "SELECT x", "user", "\r"] {
            assert!(!promising(bytes.as_bytes()), "{bytes:?}");
        }
    }

    fn hello(sni: &str, padding: usize, record: usize) -> Vec<u8> {
        let mut extensions = Vec::new();
        if padding > 0 {
            extensions.extend_from_slice(&[0xfa, 0xfa]);
            extensions.extend_from_slice(&(padding as u16).to_be_bytes());
            extensions.extend(std::iter::repeat_n(0u8, padding));
        }
        let name = sni.as_bytes();
        extensions.extend_from_slice(&[0, 0]);
        extensions.extend_from_slice(&(name.len() as u16 + 5).to_be_bytes());
        extensions.extend_from_slice(&(name.len() as u16 + 3).to_be_bytes());
        extensions.push(0);
        extensions.extend_from_slice(&(name.len() as u16).to_be_bytes());
        extensions.extend_from_slice(name);
        let mut body = vec![3, 3];
        body.extend_from_slice(&[7; 32]);
        body.push(0);
        body.extend_from_slice(&[0, 2, 0x13, 1, 1, 0]);
        body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
        body.extend_from_slice(&extensions);
        let mut message = vec![1, 0, (body.len() >> 8) as u8, body.len() as u8];
        message.extend_from_slice(&body);
        let mut out = Vec::new();
        for part in message.chunks(record) {
            out.extend_from_slice(&[0x16, 3, 1]);
            out.extend_from_slice(&(part.len() as u16).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }

    #[test]
    fn a_hello_gives_its_name_however_it_is_cut() {
        let want = Some(Protocol::Tls(Hello { sni: Some("web.demo".into()) }));
        for (padding, record) in [(0, 16_000), (1800, 16_000), (4000, 500), (0, 1)] {
            let bytes = hello("Web.demo", padding, record);
            check(&bytes, want.clone());
            for end in 1..bytes.len() {
                check(&bytes[..end], None);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_and_more_bytes_never_change_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut verdict = None;
            for end in 0..=bytes.len() {
                let now = detect(&bytes[..end]);
                if verdict.is_some() { prop_assert_eq!(&now, &verdict); }
                verdict = now;
            }
        }
    }
}
