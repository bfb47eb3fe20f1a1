//! Where a body ends (RFC 9112 sections 6 and 7). Pure: takes bytes off the front of a buffer, never waits.
//!
//! **Invariant:** every byte of chunked framing is checked, and data is handed on without being copied.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::Error;
use crate::h1::{Length, Limits, parse};
use crate::message::Headers;

/// Bytes of extensions that the chunks of one body may have together. They are dropped; hyper allows as many.
const EXTENSION_BYTES: u32 = 16 * 1024;
/// The longest extension of one chunk.
const EXTENSION_LINE: u32 = 256;
/// The largest trailer section. hyper allows as many bytes.
const TRAILER_BYTES: usize = 16 * 1024;

/// What the next bytes of a body are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There are none: the body is at its end.
    End,
    /// So many bytes of a body of known length.
    Known(u64),
    /// All bytes until the peer closes.
    UntilClose,
    /// A chunk's size, of which so many digits were read.
    Size {
        value: u64,
        digits: u8,
    },
    /// A chunk's extension, of which so many bytes were read.
    Extension {
        value: u64,
        bytes: u32,
    },
    /// The line feed after a chunk's size.
    SizeLf(u64),
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line break after a chunk's data.
    DataCr,
    DataLf,
    /// The trailer section, of which so many bytes were looked at.
    Trailers {
        scanned: usize,
    },
    /// The framing was broken.
    Failed(&'static str),
}

/// A step of decoding.
#[derive(Debug)]
pub(super) enum Step {
    /// Bytes of the body.
    Data(Bytes),
    /// More bytes have to be read first.
    More,
    /// The body is at its end.
    End,
}

/// Finds the end of one body.
#[derive(Debug)]
pub(super) struct Decoder {
    state: State,
    extensions: u32,
    trailers: Headers,
}

impl Decoder {
    /// No body.
    pub(super) const fn end() -> Self {
        Decoder { state: State::End, extensions: 0, trailers: Headers::new() }
    }

    fn start(&mut self, state: State) {
        self.state = state;
        self.extensions = 0;
        self.trailers.clear();
    }

    /// Begins a message without a body.
    pub(super) fn start_empty(&mut self) {
        self.start(State::End);
    }

    /// Begins a body of that many bytes.
    pub(super) fn start_known(&mut self, length: u64) {
        self.start(if length == 0 { State::End } else { State::Known(length) });
    }

    /// Begins a chunked body.
    pub(super) fn start_chunked(&mut self) {
        self.start(State::Size { value: 0, digits: 0 });
    }

    /// Begins a body that ends with the connection.
    pub(super) fn start_until_close(&mut self) {
        self.start(State::UntilClose);
    }

    /// True after the last byte of the body, and of its trailers, was taken.
    pub(super) fn is_end(&self) -> bool {
        self.state == State::End
    }

    /// How much of the body is left.
    pub(super) fn length(&self) -> Length {
        match self.state {
            State::End => Length::Empty,
            State::Known(length) => Length::Known(length),
            _ => Length::Unknown,
        }
    }

    /// At least so many bytes follow that are nothing but data.
    pub(super) fn data_ahead(&self) -> u64 {
        match self.state {
            State::Known(left) | State::Chunk(left) => left,
            State::UntilClose => u64::MAX,
            _ => 0,
        }
    }

    /// The trailers that came after the last chunk, once.
    pub(super) fn take_trailers(&mut self) -> Option<Headers> {
        (self.is_end() && !self.trailers.is_empty()).then(|| std::mem::take(&mut self.trailers))
    }

    /// The peer has closed: an end only for a body that has no other.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        match self.state {
            State::End | State::UntilClose => {
                self.state = State::End;
                Ok(())
            }
            _ => Err(Error::Io(std::io::ErrorKind::UnexpectedEof)),
        }
    }

    /// Takes the next data off `buffer`, and the framing around it: after the last data the end is seen at once if
    /// its bytes are there.
    pub(super) fn next(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<Step, Error> {
        self.skip_framing(buffer, limits);
        let left = match self.state {
            State::End => return Ok(Step::End),
            State::Failed(rule) => return Err(Error::Malformed(rule)),
            State::Known(left) | State::Chunk(left) => left,
            State::UntilClose => u64::MAX,
            _ => return Ok(Step::More),
        };
        if buffer.is_empty() {
            return Ok(Step::More);
        }
        let len = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let data = buffer.split_to(len).freeze();
        let left = left - len as u64;
        self.state = match self.state {
            State::Known(_) if left == 0 => State::End,
            State::Known(_) => State::Known(left),
            State::Chunk(_) if left == 0 => State::DataCr,
            State::Chunk(_) => State::Chunk(left),
            other => other,
        };
        // A broken rule here is told by the next call, after the data.
        self.skip_framing(buffer, limits);
        Ok(Step::Data(data))
    }

    /// Goes on to where data, the end or more bytes are due.
    fn skip_framing(&mut self, buffer: &mut BytesMut, limits: &Limits) {
        if let Err(rule) = self.read_framing(buffer, limits) {
            self.state = State::Failed(rule);
        }
    }

    fn read_framing(&mut self, buffer: &mut BytesMut, limits: &Limits) -> Result<(), &'static str> {
        let mut at = 0;
        let done = loop {
            if let State::Trailers { scanned } = &mut self.state {
                buffer.advance(at);
                return match read_trailers(buffer, scanned, limits, &mut self.trailers)? {
                    true => {
                        self.state = State::End;
                        Ok(())
                    }
                    false => Ok(()),
                };
            }
            if matches!(
                self.state,
                State::End | State::Known(_) | State::UntilClose | State::Chunk(_) | State::Failed(_)
            ) {
                break Ok(());
            }
            let Some(&byte) = buffer.get(at) else { break Ok(()) };
            at += 1;
            match self.after(byte) {
                Ok(state) => self.state = state,
                Err(rule) => break Err(rule),
            }
        };
        buffer.advance(at);
        done
    }

    /// The state after one byte of chunked framing.
    fn after(&mut self, byte: u8) -> Result<State, &'static str> {
        match (self.state, byte) {
            (State::Size { value, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if digits == 16 {
                    return Err("chunk size is too large");
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                Ok(State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 })
            }
            (State::Size { digits: 0, .. }, _) => Err("chunk size is not a hexadecimal number"),
            (State::Size { value, .. } | State::Extension { value, .. }, b'\r') => Ok(State::SizeLf(value)),
            (State::Size { value, .. }, b';') => self.extend(value, 0),
            (State::Size { .. }, _) => Err("chunk size is not a hexadecimal number"),
            (State::Extension { .. }, 0..=8 | 10..=31 | 127) => Err("control character in a chunk extension"),
            (State::Extension { value, bytes }, _) => self.extend(value, bytes),
            (State::SizeLf(0), b'\n') => Ok(State::Trailers { scanned: 0 }),
            (State::SizeLf(value), b'\n') => Ok(State::Chunk(value)),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size { value: 0, digits: 0 }),
            (State::DataCr | State::DataLf, _) => Err("chunk data does not end with CR LF"),
            _ => Err("chunk size does not end with CR LF"),
        }
    }

    fn extend(&mut self, value: u64, bytes: u32) -> Result<State, &'static str> {
        self.extensions += 1;
        if bytes == EXTENSION_LINE || self.extensions > EXTENSION_BYTES {
            return Err("chunk extensions are too long");
        }
        Ok(State::Extension { value, bytes: bytes + 1 })
    }
}

/// True when the trailer section was there to its end, and is taken.
fn read_trailers(
    buffer: &mut BytesMut,
    scanned: &mut usize,
    limits: &Limits,
    into: &mut Headers,
) -> Result<bool, &'static str> {
    if buffer.starts_with(b"\r\n") {
        buffer.advance(2);
        return Ok(true);
    }
    let rule = |error| match error {
        Error::Malformed(rule) => rule,
        _ => "trailers are too large",
    };
    let whole = parse::section_ends(buffer, scanned).map_err(rule)?;
    if *scanned > TRAILER_BYTES.min(limits.head_bytes) {
        return Err("trailers are too large");
    }
    if !whole {
        return Ok(false);
    }
    match parse::trailers(buffer, limits.fields, into).map_err(rule)? {
        Some(end) => {
            buffer.advance(end);
            Ok(true)
        }
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `input` in pieces of `size` bytes: data, what was left over, trailers.
    fn decode(start: impl Fn(&mut Decoder), input: &[u8], size: usize) -> Result<(Vec<u8>, Vec<u8>, bool), Error> {
        let mut decoder = Decoder::end();
        start(&mut decoder);
        let (mut buffer, mut data, mut input) = (BytesMut::new(), Vec::new(), input);
        loop {
            match decoder.next(&mut buffer, &Limits::default())? {
                Step::Data(bytes) => data.extend_from_slice(&bytes),
                Step::End => {
                    buffer.extend_from_slice(input);
                    return Ok((data, buffer.to_vec(), decoder.take_trailers().is_some()));
                }
                Step::More if input.is_empty() => {
                    decoder.close()?;
                }
                Step::More => {
                    let (now, later) = input.split_at(size.min(input.len()));
                    buffer.extend_from_slice(now);
                    input = later;
                }
            }
        }
    }

    fn check(input: &str, expect: Result<(&str, &str, bool), &'static str>) {
        for size in 1..=input.len().max(1) {
            match (decode(Decoder::start_chunked, input.as_bytes(), size), expect) {
                (Ok((data, rest, trailers)), Ok(expect)) => {
                    let (data, rest) = (String::from_utf8(data).unwrap(), String::from_utf8(rest).unwrap());
                    assert_eq!((data.as_str(), rest.as_str(), trailers), expect, "{input:?} by {size}");
                }
                (Err(Error::Malformed(rule)), Err(expect)) => assert_eq!(rule, expect, "{input:?} by {size}"),
                (Err(Error::Io(kind)), Err(expect)) => assert_eq!(kind.to_string(), expect, "{input:?} by {size}"),
                (got, _) => panic!("{input:?} by {size}: {got:?}"),
            }
        }
    }

    #[test]
    fn chunked_bodies() {
        check("0\r\n\r\n", Ok(("", "", false)));
        check("5\r\nhello\r\n0\r\n\r\nGET", Ok(("hello", "GET", false)));
        check("5;a=b\r\nhello\r\n00A\r\n0123456789\r\n0;x\r\n\r\n", Ok(("hello0123456789", "", false)));
        check("1;q=\"\t é\"\r\na\r\n0\r\n\r\n", Ok(("a", "", false)));
        check("1\r\na\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\nrest", Ok(("a", "rest", true)));
    }

    #[test]
    fn broken_chunks_are_refused() {
        let not_hex = Err("chunk size is not a hexadecimal number");
        for input in
            ["\r\n", "x\r\n", " 5\r\nhello", "5 \r\nhello", "+5\r\nhello", "0x5\r\nhello", "-1\r\n", "5\nhello"]
        {
            check(input, not_hex);
        }
        check("10000000000000000\r\n", Err("chunk size is too large"));
        check("00000000000000005\r\nhello\r\n0\r\n\r\n", Err("chunk size is too large"));
        check("5\rxhello", Err("chunk size does not end with CR LF"));
        check("5;a\nhello", Err("control character in a chunk extension"));
        check("5;a\0\r\nhello", Err("control character in a chunk extension"));
        check("5;a\rb\r\nhello", Err("chunk size does not end with CR LF"));
        check(&format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(300)), Err("chunk extensions are too long"));
        check("5\r\nhello0\r\n\r\n", Err("chunk data does not end with CR LF"));
        check("5\r\nhello\n0\r\n\r\n", Err("chunk data does not end with CR LF"));
        check("5\r\nhello\r0\r\n\r\n", Err("chunk data does not end with CR LF"));
        check("0\r\n\n", Err("line ends without a carriage return"));
        check("0\r\na: b\n\r\n", Err("line ends without a carriage return"));
        check("0\r\na : b\r\n\r\n", Err("whitespace before the colon"));
        check("0\r\na: b\r\n c\r\n\r\n", Err("folded field"));
        for name in ["content-length", "Transfer-Encoding", "HOST", "connection", "te", "trailer", "authorization"] {
            check(&format!("0\r\n{name}: 1\r\n\r\n"), Err("field that must not be a trailer"));
        }
        for cut in ["", "5", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "0\r\na: b\r\n", "0\r\n\r"] {
            check(cut, Err("unexpected end of file"));
        }
    }

    #[test]
    fn extensions_and_trailers_are_bounded_over_the_whole_body() {
        let chunks = format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(100);
        assert!(matches!(decode(Decoder::start_chunked, chunks.as_bytes(), 4096), Err(Error::Malformed(_))));
        let endless = format!("0\r\nx: {}", "y".repeat(TRAILER_BYTES));
        assert!(matches!(
            decode(Decoder::start_chunked, endless.as_bytes(), 4096),
            Err(Error::Malformed("trailers are too large"))
        ));
    }

    #[test]
    fn bodies_of_known_length_and_until_close() {
        for size in 1..8 {
            let got = decode(|d| d.start_known(5), b"helloGET", size).unwrap();
            assert_eq!(got, (b"hello".to_vec(), b"GET".to_vec(), false));
            let got = decode(Decoder::start_until_close, b"helloGET", size).unwrap();
            assert_eq!(got, (b"helloGET".to_vec(), Vec::new(), false));
            assert!(decode(|d| d.start_known(9), b"helloGET", size).is_err());
        }
    }

    #[test]
    fn the_end_is_seen_with_the_last_data() {
        let mut decoder = Decoder::end();
        decoder.start_chunked();
        let mut buffer = BytesMut::from(&b"2\r\nhi\r\n0\r\n\r\n"[..]);
        assert!(matches!(decoder.next(&mut buffer, &Limits::default()), Ok(Step::Data(_))));
        assert!(decoder.is_end());
    }
}
