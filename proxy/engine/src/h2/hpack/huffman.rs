//! The Huffman code of RFC 7541 appendix B.
//!
//! The code is canonical: the lengths alone define it, so the tables are computed from them at compile time. Decoding
//! looks nine bits up at once, which covers every common character; longer codes compare against the first code of
//! each length.

/// Lengths in bits of the codes of the symbols 0 to 255 and of EOS.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const EOS: u16 = 256;
const LONGEST: usize = 30;
/// Bits of the first lookup.
const FIRST_BITS: u32 = 9;

struct Tables {
    /// Indexed by the next nine bits: symbol in the low byte, length in the high byte; 0 when the code is longer.
    first: [u16; 1 << FIRST_BITS],
    /// All symbols in order of their codes.
    symbols: [u16; 257],
    /// For each length: one past its last code, left-aligned to 32 bits (equal to that of the shorter length when
    /// there is no code of this length).
    end: [u64; LONGEST + 1],
    /// For each length: its first code, and the place of that code's symbol in `symbols`.
    start: [(u32, u16); LONGEST + 1],
    #[cfg(test)]
    codes: [u32; 257],
}

static TABLES: Tables = build();

const fn build() -> Tables {
    let mut tables = Tables {
        first: [0; 1 << FIRST_BITS],
        symbols: [0; 257],
        end: [0; LONGEST + 1],
        start: [(0, 0); LONGEST + 1],
        #[cfg(test)]
        codes: [0; 257],
    };
    let mut code: u32 = 0;
    let mut place = 0;
    let mut length = 1;
    while length <= LONGEST {
        code <<= 1;
        tables.start[length] = (code, place as u16);
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                if length <= FIRST_BITS as usize {
                    let shift = FIRST_BITS as usize - length;
                    let mut low = 0;
                    while low < 1 << shift {
                        tables.first[((code as usize) << shift) | low] = symbol as u16 | (length as u16) << 8;
                        low += 1;
                    }
                }
                #[cfg(test)]
                {
                    tables.codes[symbol] = code;
                }
                tables.symbols[place] = symbol as u16;
                place += 1;
                code += 1;
            }
            symbol += 1;
        }
        tables.end[length] = (code as u64) << (32 - length);
        length += 1;
    }
    tables
}

/// Appends the decoded text to `out`. False when it contains EOS, or ends in anything but fewer than eight one-bits.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> bool {
    // The shortest code has five bits.
    out.reserve(input.len() * 8 / 5 + 1);
    let mut bits: u64 = 0; // left-aligned
    let mut have: u32 = 0;
    let mut rest = input;
    loop {
        while have <= 56 {
            let Some((&byte, tail)) = rest.split_first() else { break };
            rest = tail;
            bits |= u64::from(byte) << (56 - have);
            have += 8;
        }
        let entry = TABLES.first[(bits >> (64 - FIRST_BITS)) as usize];
        let (symbol, length) = match entry {
            0 => long(bits),
            entry => (entry & 0xff, u32::from(entry >> 8)),
        };
        if length > have {
            // Less than a code is left: it must be padding. The bits beyond `have` are zero.
            return have < 8 && (bits >> 56) as u8 == !(0xffu16 >> have) as u8;
        }
        if symbol == EOS {
            return false;
        }
        out.push(symbol as u8);
        bits <<= length;
        have -= length;
    }
}

#[cold]
fn long(bits: u64) -> (u16, u32) {
    let top = bits >> 32;
    for length in FIRST_BITS as usize + 1..=LONGEST {
        if top < TABLES.end[length] {
            let (first, place) = TABLES.start[length];
            let code = (top >> (32 - length)) as u32;
            return (TABLES.symbols[place as usize + (code - first) as usize], length as u32);
        }
    }
    // Thirty ones are EOS, and larger than that thirty bits cannot be.
    (EOS, LONGEST as u32)
}

/// Appends the encoded text to `out`. Only tests send Huffman code: on a fast link the bytes it saves cost more time
/// than they take.
#[cfg(test)]
pub(crate) fn encode(input: &[u8], out: &mut Vec<u8>) {
    let mut bits: u64 = 0;
    let mut have = 0;
    for &byte in input {
        bits = (bits << LENGTHS[byte as usize]) | u64::from(TABLES.codes[byte as usize]);
        have += u32::from(LENGTHS[byte as usize]);
        while have >= 8 {
            have -= 8;
            out.push((bits >> have) as u8);
        }
    }
    if have > 0 {
        out.push(((bits << (8 - have)) as u8) | (0xff >> have));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(input, &mut out).then_some(out)
    }

    #[test]
    fn the_code_is_that_of_the_rfc() {
        // Spot checks of appendix B at every kind of length.
        for (symbol, code) in [(b'0', 0x0), (b'a', 0x3), (b' ', 0x14), (b'?', 0x3fc), (b'{', 0x7ffe), (0, 0x1ff8)] {
            assert_eq!(TABLES.codes[symbol as usize], code, "{symbol}");
        }
        assert_eq!(TABLES.codes[22], 0x3fff_fffe);
        assert_eq!(TABLES.codes[256], 0x3fff_ffff);
    }

    #[test]
    fn examples_of_the_rfc_decode() {
        assert_eq!(
            decoded(b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff").as_deref(),
            Some(&b"www.example.com"[..])
        );
        assert_eq!(decoded(b"").as_deref(), Some(&b""[..]));
    }

    #[test]
    fn padding_is_fewer_than_eight_ones() {
        let mut zeros = Vec::new();
        encode(b"0", &mut zeros); // 00000 and three bits of padding
        assert_eq!(zeros, [0b0000_0111]);
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Some(&b"0"[..]));
        assert_eq!(decoded(&[0b0000_0110]), None, "not all ones");
        assert_eq!(decoded(&[0b0000_0111, 0xff]), None, "a whole octet of padding");
        assert_eq!(decoded(&[0xff]), None, "nothing but padding");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None, "EOS");
    }

    proptest! {
        #[test]
        fn text_survives(text: Vec<u8>) {
            let mut code = Vec::new();
            encode(&text, &mut code);
            prop_assert_eq!(decoded(&code), Some(text));
        }

        #[test]
        fn whatever_decodes_is_what_would_be_sent(code: Vec<u8>) {
            if let Some(text) = decoded(&code) {
                let mut again = Vec::new();
                encode(&text, &mut again);
                prop_assert_eq!(again, code);
            }
        }
    }
}
