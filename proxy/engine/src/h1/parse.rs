//! Bytes to heads (RFC 9112 sections 2 to 6). Pure: no I/O, no state between calls.
//!
//! Each byte of a head that arrives whole is looked at once. **Invariant:** what is given out has one meaning: a head
//! that another reader could frame or route differently is refused with the rule it broke.

use crate::error::Error;
use crate::h1::Limits;
use crate::h1::chars::{self, NAME, lower_token, text_len, token_len, trim};
use crate::message::{Headers, Method, RequestHead, ResponseHead, Scheme, Version};

/// The longest method: the registry's longest is 17.
const METHOD_BYTES: usize = 32;

/// What the fields of a head say about the message itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// `content-length`.
    pub(super) length: Option<u64>,
    /// `transfer-encoding: chunked`.
    pub(super) chunked: bool,
    /// The sender keeps the connection after this exchange.
    pub(super) keep_alive: bool,
    /// `expect: 100-continue`.
    pub(super) expects_continue: bool,
}

/// Which grammar a field section follows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Request,
    Response,
    Trailers,
}

/// What was seen while reading fields, before the version decides what it means.
#[derive(Default)]
struct Seen<'a> {
    length: Option<u64>,
    encodings: usize,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    host: Option<&'a [u8]>,
}

fn refuse<T>(rule: &'static str) -> Result<T, Error> {
    Err(Error::Malformed(rule))
}

/// Reads the head of a request at the start of `buffer`. `None`: it is not there to its end.
///
/// Gives the number of bytes that the head takes. `head` holds nothing of use unless there is one.
pub(super) fn request(buffer: &[u8], limits: &Limits, head: &mut RequestHead) -> Result<Option<(usize, Facts)>, Error> {
    head.clear();
    // Old clients end a body with a line break that they do not count (RFC 9112 section 2.2).
    let start = if buffer.starts_with(b"\r\n") { 2 } else { 0 };
    let line = &buffer[start..];
    if matches!(line, [b'\r' | b'\n', ..]) {
        return if buffer == b"\r" { Ok(None) } else { refuse("empty line before the request") };
    }

    let method_len = token_len(line);
    match line.get(method_len) {
        None if method_len <= METHOD_BYTES => return Ok(None),
        Some(b' ') if (1..=METHOD_BYTES).contains(&method_len) => {}
        _ => return refuse("invalid method"),
    }
    let Ok(method) = Method::from_bytes(&line[..method_len]) else { return refuse("invalid method") };
    head.method = method;

    let rest = &line[method_len + 1..];
    let target_len = chars::target_len(rest);
    match rest.get(target_len) {
        None => return Ok(None),
        Some(b' ') if target_len > 0 => {}
        _ => return refuse("invalid request target"),
    }
    let Ok(target) = std::str::from_utf8(&rest[..target_len]) else { return refuse("request target is not UTF-8") };

    let rest = &rest[target_len + 1..];
    let Some(version) = version(rest)? else { return Ok(None) };
    head.version = version;
    match &rest[8..] {
        [] | [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => {}
        _ => return refuse("request line does not end after the version"),
    }

    set_target(head, target)?;
    let fields_at = start + method_len + 1 + target_len + 1 + 10;
    let mut seen = Seen::default();
    let Some(end) = fields(buffer, fields_at, Section::Request, limits.fields, &mut head.headers, &mut seen)? else {
        return Ok(None);
    };
    set_host(head, seen.host)?;
    let facts = facts(&seen, head.version)?;
    if head.method == Method::CONNECT && (facts.chunked || facts.length.is_some_and(|length| length > 0)) {
        return refuse("CONNECT with a body");
    }
    Ok(Some((end, facts)))
}

/// Reads the head of a response at the start of `buffer`. `None`: it is not there to its end.
pub(super) fn response(
    buffer: &[u8],
    limits: &Limits,
    head: &mut ResponseHead,
) -> Result<Option<(usize, Facts)>, Error> {
    head.clear();
    let Some(version) = version(buffer)? else { return Ok(None) };
    head.version = version;
    let status = match &buffer[8..] {
        [] | [b' '] | [b' ', _] | [b' ', _, _] => return Ok(None),
        [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', ..] => {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        _ => return refuse("invalid status"),
    };
    head.status = status;
    // Servers are known to leave out the reason, and the space before it.
    let reason = match &buffer[12..] {
        [] => return Ok(None),
        [b' ', reason @ ..] => reason,
        none @ [b'\r', ..] => none,
        _ => return refuse("invalid status"),
    };
    let reason_len = text_len(reason);
    match &reason[reason_len..] {
        [] | [b'\r'] => return Ok(None),
        [b'\r', b'\n', ..] => {}
        _ => return refuse("invalid reason phrase"),
    }
    let fields_at = buffer.len() - reason.len() + reason_len + 2;
    let mut seen = Seen::default();
    let Some(end) = fields(buffer, fields_at, Section::Response, limits.fields, &mut head.headers, &mut seen)? else {
        return Ok(None);
    };
    Ok(Some((end, facts(&seen, head.version)?)))
}

/// Reads a trailer section, from after the last chunk's line to the empty line that ends it.
pub(super) fn trailers(buffer: &[u8], max_fields: usize, into: &mut Headers) -> Result<Option<usize>, Error> {
    into.clear();
    fields(buffer, 0, Section::Trailers, max_fields, into, &mut Seen::default())
}

/// Looks for the empty line that ends a field section, from `scanned` on, which it moves: each byte is looked at once
/// however slowly a head arrives. True when the section is there to its end.
pub(super) fn section_ends(buffer: &[u8], scanned: &mut usize) -> Result<bool, Error> {
    while let Some(at) = memchr::memchr(b'\n', &buffer[*scanned..]) {
        let line_end = *scanned + at;
        if line_end == 0 || buffer[line_end - 1] != b'\r' {
            return refuse("line ends without a carriage return");
        }
        *scanned = line_end + 1;
        if line_end >= 3 && buffer[..line_end - 1].ends_with(b"\r\n") {
            return Ok(true);
        }
    }
    *scanned = buffer.len();
    Ok(false)
}

fn version(bytes: &[u8]) -> Result<Option<Version>, Error> {
    match bytes.first_chunk::<8>() {
        Some(b"HTTP/1.1") => Ok(Some(Version::Http11)),
        Some(b"HTTP/1.0") => Ok(Some(Version::Http10)),
        None if b"HTTP/1.".starts_with(bytes) => Ok(None),
        _ => refuse("not HTTP/1.0 or HTTP/1.1"),
    }
}

/// Takes the request target apart (RFC 9112 section 3.2).
fn set_target(head: &mut RequestHead, target: &str) -> Result<(), Error> {
    if head.method == Method::CONNECT {
        let has_port = target.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && !port.ends_with(']'));
        if !has_port || !chars::is_authority(target.as_bytes()) {
            return refuse("CONNECT without a valid host and port");
        }
        head.set_authority(target);
        return Ok(());
    }
    if target.contains('#') {
        return refuse("fragment in the request target");
    }
    if target.starts_with('/') {
        head.set_path(target);
        return Ok(());
    }
    if target == "*" {
        if head.method != Method::OPTIONS {
            return refuse("asterisk as the target of another method than OPTIONS");
        }
        head.set_path(target);
        return Ok(());
    }
    let (scheme, rest) = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
        _ => return refuse("request target is neither a path nor an http URI"),
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !chars::is_authority(authority.as_bytes()) {
        return refuse("invalid authority in the request target");
    }
    head.scheme = scheme;
    head.absolute_form = true;
    head.set_authority(authority);
    match path.as_bytes().first() {
        Some(b'/') => head.set_path(path),
        Some(_) => head.set_path(&format!("/{path}")),
        None if head.method == Method::OPTIONS => head.set_path("*"),
        None => head.set_path("/"),
    }
    Ok(())
}

/// `Host` becomes the authority, unless the target already said it (RFC 9112 section 3.2.2 and 3.2.3).
fn set_host(head: &mut RequestHead, host: Option<&[u8]>) -> Result<(), Error> {
    match host {
        None if head.version == Version::Http11 => return refuse("no host"),
        None | Some([]) => {}
        Some(host) => match std::str::from_utf8(host) {
            Ok(host) if chars::is_authority(host.as_bytes()) => {
                if head.authority().is_none() {
                    head.set_authority(host);
                }
            }
            _ => return refuse("invalid host"),
        },
    }
    Ok(())
}

/// Reads fields from `at` to the empty line, and gives where the next byte after it is.
fn fields<'a>(
    buffer: &'a [u8],
    mut at: usize,
    section: Section,
    max_fields: usize,
    headers: &mut Headers,
    seen: &mut Seen<'a>,
) -> Result<Option<usize>, Error> {
    let first = at;
    let mut count = 0;
    let mut lower = [0; NAME];
    loop {
        let line = &buffer[at..];
        match line {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => return Ok(Some(at + 2)),
            [b' ' | b'\t', ..] if at == first => return refuse("whitespace before the first field"),
            [b' ' | b'\t', ..] => return refuse("folded field"),
            [b'\r' | b'\n', ..] => return refuse("line ends without both of CR LF"),
            _ => {}
        }
        if count == max_fields {
            return Err(Error::HeadTooLarge);
        }
        count += 1;

        let name_len = lower_token(line, &mut lower);
        let value_at = match &line[name_len..] {
            [] => return Ok(None),
            [b':', ..] if name_len > 0 => name_len + 1,
            // A proxy removes it from responses (RFC 9112 section 5.1).
            [b' ' | b'\t', rest @ ..] if section == Section::Response && name_len > 0 => {
                let blank = rest.iter().take_while(|&&byte| matches!(byte, b' ' | b'\t')).count();
                match rest.get(blank) {
                    None => return Ok(None),
                    Some(b':') => name_len + 1 + blank + 1,
                    Some(_) => return refuse("invalid field name"),
                }
            }
            [b' ' | b'\t', ..] => return refuse("whitespace before the colon"),
            _ => return refuse("invalid field name"),
        };
        let value_len = text_len(&line[value_at..]);
        let value_end = value_at + value_len;
        match &line[value_end..] {
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] => {}
            [b'\r' | b'\n', ..] => return refuse("line ends without both of CR LF"),
            _ => return refuse("control character in a field"),
        }
        let name = lower.get(..name_len).unwrap_or(&line[..name_len]);
        field(section, name, trim(&line[value_at..value_end]), headers, seen)?;
        at += value_end + 2;
    }
}

/// Keeps one field, or what it says if it is about the message's framing. A name of up to [`NAME`] bytes is in lower
/// case already.
fn field<'a>(
    section: Section,
    name: &[u8],
    value: &'a [u8],
    headers: &mut Headers,
    seen: &mut Seen<'a>,
) -> Result<(), Error> {
    let is = |known: &[u8]| name == known;
    if section == Section::Trailers {
        if forbidden_in_trailers(name) {
            return refuse("field that must not be a trailer");
        }
    } else {
        match name.len() {
            4 if section == Section::Request && is(b"host") => {
                if seen.host.replace(value).is_some() {
                    return refuse("more than one host");
                }
                return Ok(());
            }
            6 if section == Section::Request && is(b"expect") => {
                seen.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
            }
            10 if is(b"connection") => {
                for option in value.split(|&byte| byte == b',').map(trim) {
                    seen.close |= option.eq_ignore_ascii_case(b"close");
                    seen.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if is(b"content-length") => {
                let length = content_length(value)?;
                if seen.length.replace(length).is_some() {
                    return refuse("more than one content-length");
                }
                headers.append_lower(b"content-length", itoa::Buffer::new().format(length).as_bytes());
                return Ok(());
            }
            17 if is(b"transfer-encoding") => {
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return refuse("transfer-encoding is not chunked alone");
                }
                seen.encodings += 1;
                return Ok(());
            }
            _ => {}
        }
    }
    if name.len() <= NAME {
        headers.append_lower(name, value);
    } else {
        headers.append(name, value);
    }
    Ok(())
}

/// Fields that say how a message is framed, routed or authorized: in trailers they come too late (RFC 9110 6.5.1).
pub(super) fn forbidden_in_trailers(name: &[u8]) -> bool {
    let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
    match name.len() {
        2 => is(b"te"),
        4 => is(b"host"),
        6 => is(b"expect"),
        7 => is(b"trailer") || is(b"upgrade"),
        10 => is(b"connection") || is(b"keep-alive"),
        13 => is(b"authorization") || is(b"content-range"),
        14 => is(b"content-length"),
        16 => is(b"content-encoding") || is(b"proxy-connection"),
        17 => is(b"transfer-encoding"),
        _ => false,
    }
}

fn content_length(value: &[u8]) -> Result<u64, Error> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return refuse("content-length is not one number");
    }
    let add = |sum: u64, digit: &u8| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'));
    match value.iter().try_fold(0u64, add) {
        Some(length) => Ok(length),
        None => refuse("content-length is too large"),
    }
}

/// What the fields mean together (RFC 9112 sections 6.1, 6.3 and 9.3).
fn facts(seen: &Seen<'_>, version: Version) -> Result<Facts, Error> {
    if seen.encodings > 1 {
        return refuse("more than one transfer-encoding");
    }
    if seen.encodings > 0 && seen.length.is_some() {
        return refuse("both transfer-encoding and content-length");
    }
    if seen.encodings > 0 && version == Version::Http10 {
        return refuse("transfer-encoding in HTTP/1.0");
    }
    Ok(Facts {
        length: seen.length,
        chunked: seen.encodings > 0,
        keep_alive: !seen.close && (version == Version::Http11 || seen.keep_alive),
        expects_continue: seen.expects_continue && version == Version::Http11,
    })
}

#[cfg(test)]
mod tests;
