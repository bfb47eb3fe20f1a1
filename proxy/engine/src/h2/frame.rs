//! Frames (RFC 9113 section 4 and 6): their heads, flags, and how the small ones are written. No state.

use crate::h2::hpack::Encoder;
use crate::h2::out::Out;

/// What a client says first.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of a frame's head.
pub(super) const HEAD: usize = 9;
/// Smallest SETTINGS_MAX_FRAME_SIZE, and the one in force until told otherwise.
pub(super) const MIN_MAX_FRAME: u32 = 16_384;
/// Largest SETTINGS_MAX_FRAME_SIZE.
pub(super) const MAX_MAX_FRAME: u32 = (1 << 24) - 1;
/// Every window at the start of a connection.
pub(super) const DEFAULT_WINDOW: u32 = 65_535;
/// The largest window, and the largest stream id.
pub(super) const MAX_31: u32 = (1 << 31) - 1;

pub(super) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PUSH_PROMISE: u8 = 5;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(super) mod flag {
    pub(crate) const END_STREAM: u8 = 0x1;
    pub(crate) const ACK: u8 = 0x1;
    pub(crate) const END_HEADERS: u8 = 0x4;
    pub(crate) const PADDED: u8 = 0x8;
    pub(crate) const PRIORITY: u8 = 0x20;
}

pub(super) mod setting {
    pub(crate) const HEADER_TABLE_SIZE: u16 = 1;
    pub(crate) const ENABLE_PUSH: u16 = 2;
    pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
    pub(crate) const MAX_FRAME_SIZE: u16 = 5;
    pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub(crate) const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// The head of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHead {
    pub(super) len: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl FrameHead {
    pub(super) fn read(bytes: &[u8]) -> Option<FrameHead> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<HEAD>()?;
        Some(FrameHead {
            len: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & MAX_31,
        })
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The bytes of a frame's head.
pub(super) fn head(len: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEAD] {
    let [_, l0, l1, l2] = (len as u32).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [l0, l1, l2, kind, flags, s0, s1, s2, s3]
}

/// Removes padding (RFC 9113 section 6.1); `None` when there is more padding than frame.
pub(super) fn unpad(head: FrameHead, payload: &[u8]) -> Option<&[u8]> {
    if !head.has(flag::PADDED) {
        return Some(payload);
    }
    let (&pad, rest) = payload.split_first()?;
    rest.len().checked_sub(pad as usize).map(|len| &rest[..len])
}

/// The first four bytes as a number.
pub(super) fn word(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

pub(super) fn write_settings(out: &mut Out, settings: &[(u16, u32)]) {
    let buffer = out.small();
    buffer.extend_from_slice(&head(settings.len() * 6, kind::SETTINGS, 0, 0));
    for (name, value) in settings {
        buffer.extend_from_slice(&name.to_be_bytes());
        buffer.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn write_settings_ack(out: &mut Out) {
    out.small().extend_from_slice(&head(0, kind::SETTINGS, flag::ACK, 0));
}

pub(super) fn write_ping(out: &mut Out, ack: bool, payload: [u8; 8]) {
    let buffer = out.small();
    buffer.extend_from_slice(&head(8, kind::PING, if ack { flag::ACK } else { 0 }, 0));
    buffer.extend_from_slice(&payload);
}

pub(super) fn write_goaway(out: &mut Out, last: u32, code: u32) {
    let buffer = out.small();
    buffer.extend_from_slice(&head(8, kind::GOAWAY, 0, 0));
    buffer.extend_from_slice(&last.to_be_bytes());
    buffer.extend_from_slice(&code.to_be_bytes());
}

pub(super) fn write_reset(out: &mut Out, stream: u32, code: u32) {
    let buffer = out.small();
    buffer.extend_from_slice(&head(4, kind::RST_STREAM, 0, stream));
    buffer.extend_from_slice(&code.to_be_bytes());
}

pub(super) fn write_window_update(out: &mut Out, stream: u32, by: u32) {
    let buffer = out.small();
    buffer.extend_from_slice(&head(4, kind::WINDOW_UPDATE, 0, stream));
    buffer.extend_from_slice(&by.to_be_bytes());
}

/// Writes HEADERS, and CONTINUATION when the block is larger than the peer's frames. The block is encoded in place.
pub(super) fn write_headers(
    out: &mut Out,
    encoder: &mut Encoder,
    stream: u32,
    end_stream: bool,
    max_frame: usize,
    encode: impl FnOnce(&mut Encoder, &mut Vec<u8>),
) {
    let buffer = out.small();
    let start = buffer.len();
    buffer.extend_from_slice(&[0; HEAD]);
    encoder.begin(buffer);
    encode(encoder, buffer);
    let len = buffer.len() - start - HEAD;
    let end_stream = if end_stream { flag::END_STREAM } else { 0 };
    if len <= max_frame {
        let written = head(len, kind::HEADERS, end_stream | flag::END_HEADERS, stream);
        buffer[start..start + HEAD].copy_from_slice(&written);
        return;
    }
    let block = buffer.split_off(start + HEAD);
    buffer.truncate(start);
    let last = block.len().div_ceil(max_frame) - 1;
    for (at, part) in block.chunks(max_frame).enumerate() {
        let kind = if at == 0 { kind::HEADERS } else { kind::CONTINUATION };
        let end_headers = if at == last { flag::END_HEADERS } else { 0 };
        let flags = end_headers | if at == 0 { end_stream } else { 0 };
        buffer.extend_from_slice(&head(part.len(), kind, flags, stream));
        buffer.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_as_written() {
        let bytes = head(0x01_0203, kind::DATA, flag::PADDED, 0x7fff_fffe);
        let read = FrameHead::read(&bytes).unwrap();
        assert_eq!((read.len, read.kind, read.flags, read.stream), (0x01_0203, 0, flag::PADDED, 0x7fff_fffe));
        assert!(FrameHead::read(&bytes[..8]).is_none());
    }

    #[test]
    fn padding_must_fit() {
        let padded = |payload: &'static [u8]| {
            let bytes = head(payload.len(), kind::DATA, flag::PADDED, 1);
            unpad(FrameHead::read(&bytes).unwrap(), payload)
        };
        assert_eq!(padded(b"\x01ab"), Some(&b"a"[..]));
        assert_eq!(padded(b"\x02ab"), Some(&b""[..]));
        assert_eq!(padded(b"\x03ab"), None);
        assert_eq!(padded(b""), None);
    }

    #[test]
    fn a_block_larger_than_a_frame_continues() {
        let mut out = Out::default();
        write_headers(&mut out, &mut Encoder::new(), 1, true, 10, |_, buffer| buffer.extend_from_slice(&[7; 25]));
        let bytes = out.contiguous();
        let mut rest = &bytes[..];
        let mut frames = Vec::new();
        while let Some(head) = FrameHead::read(rest) {
            frames.push((head.kind, head.flags, head.len));
            rest = &rest[HEAD + head.len..];
        }
        assert_eq!(frames, [(1, flag::END_STREAM, 10), (9, 0, 10), (9, flag::END_HEADERS, 5)]);
    }
}
