//! Netlink messages, as far as redirection and private networks need them: built in memory, sent at once, every one
//! acknowledged. Knows no family; says which message the kernel refused.

use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read};
use std::time::Duration;

const AF_NETLINK: i32 = 16;
/// Routes, links and addresses.
pub const ROUTE: i32 = 0;
/// Packet filters.
pub const NETFILTER: i32 = 12;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// Create what does not exist.
pub const CREATE: u16 = 0x400;
/// Fail if it exists.
pub const EXCLUSIVE: u16 = 0x200;
/// Add at the end.
pub const APPEND: u16 = 0x800;

const NESTED: u16 = 0x8000;
const MESSAGE_HEAD: usize = 16;
const KIND_ERROR: u16 = 2;
/// The kernel answers in microseconds; this only bounds the wait if it does not.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// One request to the kernel. Lengths are filled in as it grows, so it is valid at any moment.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
    what: String,
}

impl Message {
    /// A request of the given type. `what` names it in errors.
    pub fn new(kind: u16, flags: u16, what: impl Into<String>) -> Self {
        let mut bytes = vec![0; MESSAGE_HEAD];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST | ACK | flags).to_ne_bytes());
        Message { bytes, what: what.into() }
    }

    /// The kernel is not asked to acknowledge it.
    pub fn unacknowledged(mut self) -> Self {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & !ACK;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self
    }

    /// The family's fixed header.
    pub fn head(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// An attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.put(kind, value);
        self
    }

    /// A text attribute, with its final zero.
    pub fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// A number in network order, as netfilter has them.
    pub fn be32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_be_bytes())
    }

    /// Attributes within an attribute.
    pub fn nest(mut self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        let mut this = inner(self);
        let length = (this.bytes.len() - start) as u16;
        this.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        this
    }

    fn put(&mut self, kind: u16, value: &[u8]) {
        self.bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn sealed(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    fn wants_answer(&self) -> bool {
        u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) & ACK != 0
    }
}

/// The kernel refused, or could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct NetlinkError {
    /// Which request.
    pub what: String,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl NetlinkError {
    /// True when the thing that was to be removed is not there.
    pub fn is_missing(&self) -> bool {
        // ENOENT for tables and chains, ENODEV for links.
        matches!(self.source.raw_os_error(), Some(2 | 19))
    }
}

/// Sends all messages in one datagram and waits for each acknowledgement.
pub fn send(protocol: i32, messages: &[Message]) -> Result<(), NetlinkError> {
    let name = || messages.first().map_or_else(String::new, |m| m.what.clone());
    let fail = |source| NetlinkError { what: name(), source };
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(protocol))).map_err(fail)?;
    socket.set_read_timeout(Some(ANSWER_TIMEOUT)).map_err(fail)?;

    let datagram: Vec<u8> = messages.iter().zip(1..).flat_map(|(message, sequence)| message.sealed(sequence)).collect();
    socket.send(&datagram).map_err(fail)?;

    let mut missing = messages.iter().filter(|m| m.wants_answer()).count();
    let mut buffer = vec![0; 32 * 1024];
    while missing > 0 {
        let length = (&socket).read(&mut buffer).map_err(fail)?;
        for (sequence, code) in answers(&buffer[..length]) {
            if code != 0 {
                let what = messages.get(sequence.wrapping_sub(1) as usize).map_or_else(name, |m| m.what.clone());
                return Err(NetlinkError { what, source: io::Error::from_raw_os_error(code) });
            }
            missing -= 1;
        }
    }
    Ok(())
}

/// Sequence number and error code of every acknowledgement in a datagram. Never fails: a cut message ends the list.
fn answers(mut bytes: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    let word = |bytes: &[u8], at: usize| bytes.get(at..at + 4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    while let (Some(length), Some(sequence)) = (word(bytes, 0), word(bytes, 8)) {
        let length = length as usize;
        if length < MESSAGE_HEAD || length > bytes.len() {
            break;
        }
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        if let (KIND_ERROR, Some(code)) = (kind, word(bytes, MESSAGE_HEAD)) {
            found.push((sequence, (code as i32).saturating_neg()));
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nested_attributes_carry_their_lengths() {
        let message = Message::new(7, CREATE, "test").nest(1, |m| m.text(2, "ab").be32(3, 1)).sealed(9);
        assert_eq!(message.len(), MESSAGE_HEAD + 4 + 8 + 8);
        assert_eq!(message[..4], (message.len() as u32).to_ne_bytes());
        assert_eq!(message[8..12], 9u32.to_ne_bytes());
        assert_eq!(message[16..18], 20u16.to_ne_bytes());
        assert_eq!(&message[20..28], [7u16.to_ne_bytes(), 2u16.to_ne_bytes(), *b"ab", [0, 0]].concat());
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            answers(&bytes);
        }
    }
}
