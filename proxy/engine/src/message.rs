//! Heads of messages: one buffer and an index into it, no allocation per header.
//!
//! The heads are what policy, routing and the record look at. They are the same for HTTP/1 and HTTP/2: names are
//! lower case, `Host` and `:authority` are both the authority, pseudo-headers are fields of the struct.

use std::cell::RefCell;
use std::ops::Range;

pub use http::Method;

/// The protocol that a head came in with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    #[default]
    Http11,
    /// HTTP/2
    Http2,
}

/// The scheme of a request's target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// A range of a head's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn range(self) -> Range<usize> {
        self.start as usize..self.start as usize + self.len as usize
    }
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: Span,
    value: Span,
    sensitive: bool,
}

/// Header fields in order of arrival. Names are lower case; a name may occur several times.
///
/// Removing leaves the bytes in the buffer until [`Headers::clear`]; a head's size is bounded where it is parsed.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    bytes: Vec<u8>,
    fields: Vec<Field>,
}

thread_local! {
    /// Memory of heads that were released: as much as requests commonly need at the same moment.
    static SPARE: RefCell<Vec<Headers>> = const { RefCell::new(Vec::new()) };
}
const SPARES: usize = 64;
const SPARE_BYTES: usize = 4096;

/// Gives half of the released heads' memory back: see [`crate::buffer::sweep`].
pub(crate) fn sweep() {
    let _ = SPARE.try_with(|spare| crate::buffer::halve(&mut spare.borrow_mut()));
}

impl Headers {
    /// An empty list that holds no memory.
    pub const fn new() -> Self {
        Headers { bytes: Vec::new(), fields: Vec::new() }
    }

    /// Forgets all fields and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// True when there is no field.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// The bytes held, including those of removed fields.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Forgets all fields and lends the memory to whoever needs some next on this thread.
    pub fn release(&mut self) {
        let mut released = std::mem::take(self);
        released.clear();
        // One that grew large is let go: its memory would stay for ever.
        if (1..=SPARE_BYTES).contains(&released.bytes.capacity()) {
            let _ = SPARE.try_with(|spare| {
                let mut spare = spare.borrow_mut();
                if spare.len() < SPARES {
                    spare.push(released);
                }
            });
        }
    }

    fn hold(&mut self) {
        if self.bytes.capacity() == 0 {
            if self.fields.capacity() == 0
                && let Ok(Some(spare)) = SPARE.try_with(|spare| spare.borrow_mut().pop())
            {
                *self = spare;
            }
            // An ordinary head fits at once.
            self.reserve(384, 12);
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Span {
        self.hold();
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }

    fn at(&self, span: Span) -> &[u8] {
        &self.bytes[span.range()]
    }

    /// Makes room for `bytes` bytes and `fields` fields.
    pub fn reserve(&mut self, bytes: usize, fields: usize) {
        self.bytes.reserve(bytes);
        self.fields.reserve(fields);
    }

    /// Adds a field after those that are there. The name is stored in lower case.
    pub fn append(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let name = self.push(name.as_ref());
        self.bytes[name.range()].make_ascii_lowercase();
        let value = self.push(value.as_ref());
        self.fields.push(Field { name, value, sensitive: false });
    }

    /// As [`append`](Self::append), of a name that is in lower case.
    pub(crate) fn append_lower(&mut self, name: &[u8], value: &[u8]) {
        debug_assert!(!name.iter().any(u8::is_ascii_uppercase));
        self.hold();
        self.bytes.reserve(name.len() + value.len());
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        let name = Span { start, len: name.len() as u32 };
        let value = Span { start: start + name.len, len: value.len() as u32 };
        self.fields.push(Field { name, value, sensitive: false });
    }

    /// Marks the last field as one that no hop may keep in a compression table (RFC 7541 section 6.2.3).
    pub fn mark_sensitive(&mut self) {
        if let Some(field) = self.fields.last_mut() {
            field.sensitive = true;
        }
    }

    /// Replaces all fields of that name by one.
    pub fn set(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.remove(name);
        self.append(name, value);
    }

    /// The first value of a lower-case name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        let name = name.as_bytes();
        self.fields
            .iter()
            .find(|f| f.name.len as usize == name.len() && self.at(f.name) == name)
            .map(|f| self.at(f.value))
    }

    /// The first value of a lower-case name, if it is UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// All values of a lower-case name, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let name = name.as_bytes();
        self.fields
            .iter()
            .filter(move |f| f.name.len as usize == name.len() && self.at(f.name) == name)
            .map(|f| self.at(f.value))
    }

    /// True when there is a field of that lower-case name.
    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Removes all fields of that lower-case name and says how many there were.
    pub fn remove(&mut self, name: &str) -> usize {
        let name = name.as_bytes();
        self.retain(|n, _| n != name)
    }

    /// Keeps the fields for which `keep(name, value)` holds and says how many went.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) -> usize {
        let bytes = &self.bytes;
        let before = self.fields.len();
        self.fields.retain(|f| keep(&bytes[f.name.range()], &bytes[f.value.range()]));
        before - self.fields.len()
    }

    /// Name, value and sensitivity of every field, in order.
    pub(crate) fn iter_marked(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        self.fields.iter().map(|f| (self.at(f.name), self.at(f.value), f.sensitive))
    }

    /// Name and value of every field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|f| (self.at(f.name), self.at(f.value)))
    }
}

/// The head of a request: method, target, fields.
///
/// All text lies in the header buffer, so a head that is reused allocates nothing.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method, case-sensitive.
    pub method: Method,
    /// The scheme of the target; `http` where the message did not say.
    pub scheme: Scheme,
    /// What the message came in with.
    pub version: Version,
    /// True for an HTTP/1 request in absolute form (`GET http://host/path`).
    pub absolute_form: bool,
    /// The fields. `host` is never among them: it is the authority.
    pub headers: Headers,
    path: Span,
    authority: Option<Span>,
    protocol: Option<Span>,
}

impl Default for RequestHead {
    fn default() -> Self {
        RequestHead {
            method: Method::GET,
            scheme: Scheme::Http,
            version: Version::Http11,
            absolute_form: false,
            headers: Headers::new(),
            path: Span::default(),
            authority: None,
            protocol: None,
        }
    }
}

impl RequestHead {
    /// Forgets everything and holds no memory: see [`Headers::release`].
    pub fn release(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.release();
        *self = RequestHead::default();
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        *self = RequestHead { headers, ..RequestHead::default() };
    }

    /// Path and query, as sent (`/a?b=c`, `*`; empty for CONNECT).
    pub fn path(&self) -> &str {
        text(self.headers.at(self.path))
    }

    /// The path without its query.
    pub fn path_only(&self) -> &str {
        self.path().split('?').next().unwrap_or_default()
    }

    /// The query without its question mark.
    pub fn query(&self) -> Option<&str> {
        self.path().split_once('?').map(|(_, query)| query)
    }

    /// Host and optional port, from `:authority`, an absolute target, or `Host`.
    pub fn authority(&self) -> Option<&str> {
        self.authority.map(|span| text(self.headers.at(span)))
    }

    /// `:protocol` of an extended CONNECT (RFC 8441).
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.map(|span| text(self.headers.at(span)))
    }

    /// Sets path and query.
    pub fn set_path(&mut self, path: &str) {
        self.path = self.headers.push(path.as_bytes());
    }

    /// Sets the authority.
    pub fn set_authority(&mut self, authority: &str) {
        self.authority = Some(self.headers.push(authority.as_bytes()));
    }

    /// Removes the authority.
    pub fn clear_authority(&mut self) {
        self.authority = None;
    }

    /// Sets `:protocol`.
    pub fn set_protocol(&mut self, protocol: &str) {
        self.protocol = Some(self.headers.push(protocol.as_bytes()));
    }

    /// True for gRPC, by its content type (`application/grpc`, `application/grpc+proto`...).
    pub fn is_grpc(&self) -> bool {
        self.headers.get("content-type").is_some_and(|value| {
            value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        })
    }
}

/// The head of a response: status and fields.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// 100 to 999.
    pub status: u16,
    /// What the message came in with.
    pub version: Version,
    /// The fields.
    pub headers: Headers,
}

impl Default for ResponseHead {
    fn default() -> Self {
        ResponseHead::new(200)
    }
}

impl ResponseHead {
    /// A head with that status and no field.
    pub fn new(status: u16) -> Self {
        ResponseHead { status, version: Version::Http11, headers: Headers::new() }
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.status = 200;
        self.headers.clear();
    }

    /// 1xx: more heads follow, except after 101.
    pub fn is_informational(&self) -> bool {
        (100..200).contains(&self.status)
    }
}

/// Parsers admit only UTF-8 into targets; anything else would be a bug there, and reads as empty here.
fn text(bytes: &[u8]) -> &str {
    debug_assert!(std::str::from_utf8(bytes).is_ok());
    std::str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_are_found_by_lower_case_name() {
        let mut headers = Headers::new();
        headers.append("X-A", "1");
        headers.append("b", "2");
        headers.append("x-a", "3");
        assert_eq!(headers.get("x-a"), Some(&b"1"[..]));
        assert_eq!(headers.get_all("x-a").count(), 2);
        headers.set("x-a", "4");
        let all: Vec<_> = headers.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
        assert_eq!(all, [(b"b".to_vec(), b"2".to_vec()), (b"x-a".to_vec(), b"4".to_vec())]);
    }

    #[test]
    fn released_memory_is_used_again() {
        let mut headers = Headers::new();
        headers.append("name", "value");
        let address = headers.bytes.as_ptr();
        headers.release();
        assert_eq!((headers.bytes.capacity(), headers.fields.capacity()), (0, 0));
        let mut other = Headers::new();
        other.append("other", "value");
        assert_eq!((other.bytes.as_ptr(), other.len(), other.get("name")), (address, 1, None));
    }

    #[test]
    fn released_memory_is_given_back_little_by_little() {
        let mut all = vec![Headers::new(); 5];
        all.iter_mut().for_each(|headers| headers.append("name", "value"));
        all.iter_mut().for_each(Headers::release);
        let left = || {
            sweep();
            SPARE.with_borrow(Vec::len)
        };
        assert_eq!([left(), left(), left(), left()], [2, 1, 0, 0]);
    }

    #[test]
    fn a_cleared_head_is_as_new() {
        let mut head = RequestHead::default();
        head.set_path("/a?b=c");
        head.set_authority("h:1");
        assert_eq!((head.path_only(), head.query(), head.authority()), ("/a", Some("b=c"), Some("h:1")));
        head.clear();
        assert_eq!((head.path(), head.authority(), head.headers.byte_len()), ("", None, 0));
    }
}
