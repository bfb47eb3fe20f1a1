//! Decodes header blocks. Any error is final for the connection: both sides' tables would differ from then on.
//!
//! Fields are handed out one by one as slices and are classified already; the decoder judges encoding, not meaning.

use std::collections::VecDeque;

use super::table::{Kind, STATIC, STATIC_KINDS, kind_of, value_ok};
use super::{DEFAULT_TABLE, ENTRY_OVERHEAD, huffman};

/// One decoded field.
pub(crate) struct Field<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) kind: Kind,
    /// The value holds no control characters.
    pub(crate) value_ok: bool,
    /// The sender forbids to index this field (RFC 7541 section 6.2.3), here and further on.
    pub(crate) sensitive: bool,
}

/// The block cannot be decoded (COMPRESSION_ERROR).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Undecodable(pub(crate) &'static str);

struct Entry {
    text: Box<[u8]>,
    name: usize,
    kind: Kind,
    value_ok: bool,
}

/// The receiving end of one direction of a connection.
pub(crate) struct Decoder {
    entries: VecDeque<Entry>,
    size: usize,
    /// The bound in force, chosen by the peer's encoder.
    max: usize,
    /// What our settings allow the peer to choose.
    allowed: usize,
    /// Huffman-coded strings of the field at hand.
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Decoder {
            entries: VecDeque::new(),
            size: 0,
            max: DEFAULT_TABLE,
            allowed: DEFAULT_TABLE,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// Decodes a whole block and hands every field to `take`.
    pub(crate) fn decode(&mut self, block: &[u8], mut take: impl FnMut(Field<'_>)) -> Result<(), Undecodable> {
        let mut rest = block;
        let mut first = true;
        while let Some(&byte) = rest.first() {
            if byte & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                take(self.at(index)?);
            } else if byte & 0xe0 == 0x20 {
                if !first {
                    return Err(Undecodable("table size update after a field"));
                }
                let max = integer(&mut rest, 5)?;
                if max > self.allowed {
                    return Err(Undecodable("table size update above the setting"));
                }
                self.max = max;
                self.evict(max);
                continue;
            } else if byte & 0x40 != 0 {
                self.literal(&mut rest, 6, true, &mut take)?;
            } else {
                self.literal(&mut rest, 4, false, &mut take)?;
            }
            first = false;
        }
        // A single huge field must not be kept for the life of the connection.
        for scratch in [&mut self.name, &mut self.value] {
            if scratch.capacity() > 1024 {
                *scratch = Vec::new();
            }
        }
        Ok(())
    }

    fn at(&self, index: usize) -> Result<Field<'_>, Undecodable> {
        if index == 0 {
            return Err(Undecodable("index 0"));
        }
        if let Some((name, value)) = STATIC.get(index - 1) {
            let kind = STATIC_KINDS[index - 1];
            return Ok(Field {
                name: name.as_bytes(),
                value: value.as_bytes(),
                kind,
                value_ok: true,
                sensitive: false,
            });
        }
        let entry = self.entries.get(index - 1 - STATIC.len()).ok_or(Undecodable("index beyond the table"))?;
        let (name, value) = entry.text.split_at(entry.name);
        Ok(Field { name, value, kind: entry.kind, value_ok: entry.value_ok, sensitive: false })
    }

    fn literal(
        &mut self,
        rest: &mut &[u8],
        prefix: u32,
        index: bool,
        take: &mut impl FnMut(Field<'_>),
    ) -> Result<(), Undecodable> {
        let sensitive = !index && rest[0] & 0x10 != 0;
        let name_index = integer(rest, prefix)?;
        // Taken out, so that the strings decoded into them outlive a change of the table.
        let mut name_text = std::mem::take(&mut self.name);
        let mut value_text = std::mem::take(&mut self.value);
        let done = self.literal_parts(rest, name_index, index, sensitive, &mut name_text, &mut value_text, take);
        self.name = name_text;
        self.value = value_text;
        done
    }

    #[allow(clippy::too_many_arguments)]
    fn literal_parts(
        &mut self,
        rest: &mut &[u8],
        name_index: usize,
        index: bool,
        sensitive: bool,
        name_text: &mut Vec<u8>,
        value_text: &mut Vec<u8>,
        take: &mut impl FnMut(Field<'_>),
    ) -> Result<(), Undecodable> {
        let (name, kind) = if name_index == 0 {
            let name = string(rest, name_text)?;
            (name, kind_of(name))
        } else {
            let field = self.at(name_index)?;
            (field.name, field.kind)
        };
        let value = string(rest, value_text)?;
        let value_ok = value_ok(value);
        take(Field { name, value, kind, value_ok, sensitive });
        if !index {
            return Ok(());
        }
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        if size > self.max {
            // An entry larger than the table empties it (RFC 7541 section 4.4).
            self.evict(0);
            return Ok(());
        }
        let text = [name, value].concat().into_boxed_slice();
        let entry = Entry { name: name.len(), text, kind, value_ok };
        self.evict(self.max - size);
        self.size += size;
        self.entries.push_front(entry);
        Ok(())
    }

    /// Drops the oldest entries until at most `target` is used.
    fn evict(&mut self, target: usize) {
        while self.size > target {
            let Some(entry) = self.entries.pop_back() else { return };
            self.size -= entry.text.len() + ENTRY_OVERHEAD;
        }
    }

    #[cfg(test)]
    pub(crate) fn table_size(&self) -> usize {
        self.size
    }
}

/// Reads an integer with a prefix of that many bits (RFC 7541 section 5.1), at most 2^28: nothing here is larger.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Undecodable> {
    let Some((&byte, mut tail)) = rest.split_first() else { return Err(Undecodable("truncated")) };
    let mask = (1usize << prefix) - 1;
    let mut value = byte as usize & mask;
    if value == mask {
        let mut shift = 0;
        loop {
            let Some((&byte, after)) = tail.split_first() else { return Err(Undecodable("truncated")) };
            tail = after;
            if shift > 21 {
                return Err(Undecodable("integer too large"));
            }
            value += (byte as usize & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = tail;
    Ok(value)
}

/// Reads a string (RFC 7541 section 5.2): a slice of the block, or decoded into `scratch`.
fn string<'a, 'b: 'a>(rest: &mut &'b [u8], scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Undecodable> {
    let huffman_coded = rest.first().is_some_and(|byte| byte & 0x80 != 0);
    let len = integer(rest, 7)?;
    if len > rest.len() {
        return Err(Undecodable("truncated"));
    }
    let (text, tail) = rest.split_at(len);
    *rest = tail;
    if !huffman_coded {
        return Ok(text);
    }
    scratch.clear();
    if !huffman::decode(text, scratch) {
        return Err(Undecodable("bad Huffman code"));
    }
    Ok(scratch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fields(decoder: &mut Decoder, hex: &str) -> Result<Vec<String>, Undecodable> {
        let hex: String = hex.split_whitespace().collect();
        let block: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let mut all = Vec::new();
        decoder.decode(&block, |field| {
            all.push(format!("{}: {}", String::from_utf8_lossy(field.name), String::from_utf8_lossy(field.value)));
        })?;
        Ok(all)
    }

    fn check(decoder: &mut Decoder, hex: &str, expect: &[&str], table: usize) {
        assert_eq!(fields(decoder, hex).unwrap(), expect);
        assert_eq!(decoder.table_size(), table);
    }

    #[test]
    fn appendix_c_2_single_fields() {
        check(
            &mut Decoder::new(),
            "400a637573746f6d2d6b65790d637573746f6d2d686561646572",
            &["custom-key: custom-header"],
            55,
        );
        check(&mut Decoder::new(), "040c2f73616d706c652f70617468", &[":path: /sample/path"], 0);
        check(&mut Decoder::new(), "100870617373776f726406736563726574", &["password: secret"], 0);
        check(&mut Decoder::new(), "82", &[":method: GET"], 0);
    }

    const REQUESTS: [(&[&str], usize); 3] = [
        (&[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"], 57),
        (&[":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com", "cache-control: no-cache"], 110),
        (
            &[
                ":method: GET",
                ":scheme: https",
                ":path: /index.html",
                ":authority: www.example.com",
                "custom-key: custom-value",
            ],
            164,
        ),
    ];

    #[test]
    fn appendix_c_3_and_4_requests() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::new();
            for (block, (expect, table)) in blocks.iter().zip(REQUESTS) {
                check(&mut decoder, block, expect, table);
            }
        }
    }

    #[test]
    fn appendix_c_5_and_6_responses_with_eviction() {
        let date1 = "date: Mon, 21 Oct 2013 20:13:21 GMT";
        let date2 = "date: Mon, 21 Oct 2013 20:13:22 GMT";
        let place = "location: https://www.example.com";
        let cookie = "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
        let expect: [(&[&str], usize); 3] = [
            (&[":status: 302", "cache-control: private", date1, place], 222),
            (&[":status: 307", "cache-control: private", date1, place], 222),
            (&[":status: 200", "cache-control: private", date2, place, "content-encoding: gzip", cookie], 215),
        ];
        let plain = [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 \
             474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 \
             666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 \
             3630 303b 2076 6572 7369 6f6e 3d31",
        ];
        let coded = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
             63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
             b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::new();
            decoder.max = 256;
            decoder.allowed = 256;
            for (block, (expect, table)) in blocks.iter().zip(expect) {
                check(&mut decoder, block, expect, table);
            }
        }
    }

    #[test]
    fn what_the_rfc_forbids_is_an_error() {
        for (block, why) in [
            ("80", "index 0"),
            ("be", "index beyond the table"),
            ("ffffffffff7f", "integer too large"),
            ("3fe21f", "table size update above the setting"), // 4097
            ("8220", "table size update after a field"),
            ("40", "truncated"),
            ("4005", "truncated"),
            ("00016180", "truncated"),
            ("0081ff0161", "bad Huffman code"),
        ] {
            // "00016180": a value of zero Huffman octets is in fact whole.
            let got = fields(&mut Decoder::new(), block);
            if block == "00016180" {
                assert_eq!(got.unwrap(), ["a: "]);
            } else {
                assert_eq!(got, Err(Undecodable(why)), "{block}");
            }
        }
    }

    #[test]
    fn a_size_update_evicts() {
        let mut decoder = Decoder::new();
        check(&mut decoder, "4001610162", &["a: b"], 34);
        check(&mut decoder, "20", &[], 0);
        assert_eq!(fields(&mut decoder, "be"), Err(Undecodable("index beyond the table")));
        check(&mut decoder, "4001610162", &["a: b"], 0);
    }

    proptest! {
        #[test]
        fn random_blocks_never_panic_and_the_table_stays_bounded(blocks: Vec<Vec<u8>>) {
            let mut decoder = Decoder::new();
            for block in blocks {
                if decoder.decode(&block, |_| ()).is_err() {
                    break;
                }
                prop_assert!(decoder.table_size() <= DEFAULT_TABLE);
            }
        }
    }
}
