//! Encodes header blocks.
//!
//! A field enters the dynamic table when it is seen for the second time within a short while: what repeats on a
//! connection (authority, user agent, content type, the paths of RPCs) costs one byte from then on, and what never
//! repeats (dates, ids of requests and traces) never pushes it out. Credentials are never indexed. Strings are sent
//! plain: Huffman code would save bytes that a mesh's links have, and cost time that a proxy has not.

use std::collections::VecDeque;

use super::table::{Kind, STATIC, kind_of, static_name};
use super::{DEFAULT_TABLE, ENTRY_OVERHEAD};

struct Entry {
    text: Box<[u8]>,
    name: usize,
}

/// A place of the index from hashes to entries. `number` 0 is a free place.
#[derive(Clone, Copy, Default)]
struct Place {
    hash: u32,
    number: u32,
}

/// Places of the index: twice the entries that fit into a table of 4 KiB.
const PLACES: usize = 256;
/// How far from its own place an entry may lie.
const PROBES: usize = 8;
/// Hashes of fields seen once; a newer field takes an older one's slot.
const SEEN: usize = 128;

/// The tables, allocated with the first field that is worth remembering.
struct Tables {
    entries: VecDeque<Entry>,
    places: [Place; PLACES],
    seen: [u32; SEEN],
}

/// The sending end of one direction of a connection.
pub(crate) struct Encoder {
    tables: Option<Box<Tables>>,
    size: usize,
    max: usize,
    /// Smallest and last bound set since the last block: both must be announced (RFC 7541 section 4.2).
    announce: Option<(usize, usize)>,
    /// The number of the newest entry; the first is 1.
    newest: u32,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Encoder { tables: None, size: 0, max: DEFAULT_TABLE, announce: None, newest: 0 }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. More than 4 KiB is not made use of.
    pub(crate) fn set_peer_max(&mut self, max: u32) {
        let max = (max as usize).min(DEFAULT_TABLE);
        if max == self.max && self.announce.is_none() {
            return;
        }
        let lowest = self.announce.map_or(max, |(lowest, _)| lowest.min(max));
        self.announce = Some((lowest, max));
        self.max = max;
        self.evict(max);
    }

    /// Begins a block: says what has to be said about the table's size.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((lowest, last)) = self.announce.take() {
            if lowest < last {
                integer(lowest, 5, 0x20, out);
            }
            integer(last, 5, 0x20, out);
        }
    }

    /// A static entry, by its index.
    pub(crate) fn indexed(&mut self, index: u8, out: &mut Vec<u8>) {
        debug_assert!((1..=61).contains(&index));
        out.push(0x80 | index);
    }

    /// A pseudo-header whose name has that static index (or `:protocol`, with 0).
    pub(crate) fn pseudo(&mut self, index: u8, value: &[u8], out: &mut Vec<u8>) {
        let name = match index {
            0 => &b":protocol"[..],
            index => STATIC[index as usize - 1].0.as_bytes(),
        };
        self.remembered(name, index, value, out);
    }

    /// A status code.
    pub(crate) fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        let index = match status {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                let digits = [100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8);
                return self.remembered(b":status", 8, &digits, out);
            }
        };
        self.indexed(index, out);
    }

    /// A field. Fields that speak about an HTTP/1 connection are left out, and so is what cannot be said in HTTP/2.
    pub(crate) fn field(&mut self, name: &[u8], value: &[u8], sensitive: bool, out: &mut Vec<u8>) {
        match kind_of(name) {
            Kind::Ordinary | Kind::ContentLength => (),
            Kind::Cookie => return literal(0x10, 4, 32, name, value, out),
            Kind::Te if value.eq_ignore_ascii_case(b"trailers") => (),
            _ => return,
        }
        let index = static_name(name);
        let secret = sensitive || matches!(name, b"authorization" | b"proxy-authorization" | b"set-cookie");
        match (secret, name) {
            (true, _) => literal(0x10, 4, index, name, value, out),
            // These hardly ever repeat.
            (_, b"content-length" | b"date" | b"age" | b"etag" | b"last-modified" | b"traceparent") => {
                literal(0, 4, index, name, value, out);
            }
            (_, b"accept-encoding") if value == b"gzip, deflate" => self.indexed(16, out),
            _ => self.remembered(name, index, value, out),
        }
    }

    /// From the dynamic table, or into it when it is seen again.
    fn remembered(&mut self, name: &[u8], index: u8, value: &[u8], out: &mut Vec<u8>) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        // One field must not push out most of the others.
        if size > self.max / 4 {
            return literal(0, 4, index, name, value, out);
        }
        let hash = hash(name, value);
        let oldest = self.oldest();
        let tables = self.tables.get_or_insert_with(|| {
            Box::new(Tables { entries: VecDeque::new(), places: [Place::default(); PLACES], seen: [0; SEEN] })
        });
        for probe in 0..PROBES {
            let place = tables.places[(hash as usize + probe) % PLACES];
            if place.number == 0 {
                break;
            }
            if place.hash == hash && place.number >= oldest {
                let entry = &tables.entries[(place.number - oldest) as usize];
                if entry.name == name.len() && entry.text.starts_with(name) && entry.text[entry.name..] == *value {
                    let age = (self.newest - place.number) as usize;
                    return integer(STATIC.len() + 1 + age, 7, 0x80, out);
                }
            }
        }
        let seen = &mut tables.seen[(hash >> 16) as usize % SEEN];
        if *seen != hash {
            *seen = hash;
            return literal(0, 4, index, name, value, out);
        }
        literal(0x40, 6, index, name, value, out);
        self.insert(hash, name, value, size);
    }

    fn oldest(&self) -> u32 {
        self.newest + 1 - self.tables.as_ref().map_or(0, |tables| tables.entries.len() as u32)
    }

    fn insert(&mut self, hash: u32, name: &[u8], value: &[u8], size: usize) {
        self.evict(self.max - size);
        if self.newest == u32::MAX {
            // After four thousand million entries: stop adding, keep using.
            return;
        }
        let oldest = self.oldest();
        let Some(tables) = &mut self.tables else { return };
        self.newest += 1;
        self.size += size;
        tables.entries.push_back(Entry { text: [name, value].concat().into_boxed_slice(), name: name.len() });
        place(&mut tables.places, hash, self.newest, oldest);
    }

    fn evict(&mut self, target: usize) {
        let Some(tables) = &mut self.tables else { return };
        while self.size > target {
            let Some(entry) = tables.entries.pop_front() else { return };
            self.size -= entry.text.len() + ENTRY_OVERHEAD;
        }
        if tables.entries.is_empty() {
            tables.places = [Place::default(); PLACES];
        }
    }
}

/// Writes down where an entry is: in a place that is free or whose entry is gone, else in that of the oldest nearby,
/// which is then not found any more and will be added anew if it still repeats.
fn place(places: &mut [Place; PLACES], hash: u32, number: u32, oldest: u32) {
    let nearby = (0..PROBES).map(|probe| (hash as usize + probe) % PLACES);
    let best = nearby.min_by_key(|&at| if places[at].number < oldest { 0 } else { places[at].number });
    if let Some(at) = best {
        places[at] = Place { hash, number };
    }
}

/// Multiplies words in, as FxHash does. Collisions cost a comparison, or an entry that is added early.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = (name.len() as u64) << 32 | value.len() as u64;
    for text in [name, value] {
        let mut words = text.chunks_exact(8);
        for word in &mut words {
            let word = word.try_into().map(u64::from_le_bytes).unwrap_or_default();
            state = (state.rotate_left(5) ^ word).wrapping_mul(K);
        }
        let mut last = 0;
        for &byte in words.remainder() {
            last = last << 8 | u64::from(byte);
        }
        state = (state.rotate_left(5) ^ last).wrapping_mul(K);
    }
    (state >> 32) as u32 | 1
}

fn literal(pattern: u8, prefix: u32, index: u8, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    integer(index as usize, prefix, pattern, out);
    if index == 0 {
        string(name, out);
    }
    string(value, out);
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    integer(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}

/// RFC 7541 section 5.1.
fn integer(value: usize, prefix: u32, pattern: u8, out: &mut Vec<u8>) {
    let mask = (1usize << prefix) - 1;
    if value < mask {
        return out.push(pattern | value as u8);
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::hpack::Decoder;
    use proptest::prelude::*;

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn block(encoder: &mut Encoder, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        for (name, value) in fields {
            encoder.field(name.as_bytes(), value.as_bytes(), false, &mut out);
        }
        out
    }

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Fields {
        let mut fields = Vec::new();
        decoder.decode(block, |field| fields.push((field.name.to_vec(), field.value.to_vec()))).unwrap();
        fields
    }

    #[test]
    fn integers_are_those_of_appendix_c_1() {
        for (value, prefix, expect) in [(10, 5, &[10][..]), (1337, 5, &[31, 154, 10]), (42, 8, &[42])] {
            let mut out = Vec::new();
            integer(value, prefix, 0, &mut out);
            assert_eq!(out, expect);
        }
    }

    #[test]
    fn what_repeats_costs_one_byte_from_the_third_time() {
        let mut encoder = Encoder::new();
        let mut decoder = Decoder::new();
        let fields = [("user-agent", "grpc-rust/1"), ("x-custom", "same"), ("content-type", "application/grpc")];
        let sizes: Vec<usize> = (0..4)
            .map(|_| {
                let block = block(&mut encoder, &fields);
                assert_eq!(decoded(&mut decoder, &block).len(), 3);
                block.len()
            })
            .collect();
        assert!(sizes[0] > 40 && sizes[1] > 40, "{sizes:?}");
        assert_eq!(sizes[2..], [3, 3]);
    }

    #[test]
    fn what_never_repeats_never_enters_the_table() {
        let mut encoder = Encoder::new();
        for id in 0..1000 {
            block(&mut encoder, &[("x-request-id", &id.to_string()), ("user-agent", "a")]);
        }
        assert_eq!(encoder.newest, 1);
    }

    #[test]
    fn credentials_are_never_indexed() {
        let mut encoder = Encoder::new();
        for _ in 0..3 {
            for name in ["authorization", "cookie", "set-cookie", "proxy-authorization"] {
                assert_eq!(block(&mut encoder, &[(name, "secret")])[0] & 0xf0, 0x10, "{name}");
            }
            let mut out = Vec::new();
            encoder.field(b"x-api-key", b"k", true, &mut out);
            assert_eq!(out[0], 0x10);
        }
        assert_eq!(encoder.newest, 0);
    }

    #[test]
    fn connection_fields_are_left_out() {
        let mut encoder = Encoder::new();
        let fields = [("connection", "close"), ("transfer-encoding", "chunked"), ("te", "gzip"), ("upgrade", "h2c")];
        assert_eq!(block(&mut encoder, &fields), []);
        assert_ne!(block(&mut encoder, &[("te", "trailers")]), []);
    }

    #[test]
    fn a_smaller_table_is_announced_with_its_lowest_size() {
        let mut encoder = Encoder::new();
        encoder.set_peer_max(0);
        encoder.set_peer_max(100);
        assert_eq!(block(&mut encoder, &[]), [0x20, 0x3f, 100 - 31]);
        assert_eq!(block(&mut encoder, &[]), []);
    }

    proptest! {
        #[test]
        fn any_sequence_is_understood(
            blocks in proptest::collection::vec(
                (proptest::option::of(0..6000u32), proptest::collection::vec((0..12usize, 0..40usize), 0..12)),
                0..60,
            )
        ) {
            let mut encoder = Encoder::new();
            let mut decoder = Decoder::new();
            for (max, fields) in blocks {
                if let Some(max) = max {
                    encoder.set_peer_max(max);
                }
                let fields: Vec<(String, String)> = fields
                    .into_iter()
                    .map(|(name, value)| (format!("x-{name}"), "v".repeat(value * 7)))
                    .collect();
                let borrowed: Vec<_> = fields.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                let block = block(&mut encoder, &borrowed);
                let expect: Fields =
                    fields.iter().map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
                prop_assert_eq!(decoded(&mut decoder, &block), expect);
                prop_assert_eq!(decoder.table_size(), encoder.size);
            }
        }
    }
}
