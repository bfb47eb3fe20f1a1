//! Which bytes may stand where (RFC 9110 section 5.6.2, 5.5; RFC 3986), and scans over them, many bytes at a time.

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = ONES << 7;

/// Letters, digits and `marks`.
const fn table(marks: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
}

/// Bytes of a token: method, field name.
static TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
/// Bytes of a host's name.
static HOST: [bool; 256] = table(b"-._~%!$&'()*+,;=");
/// The lower case of bytes of a token, 0 for others.
static LOWER: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        if TOKEN[byte] {
            table[byte] = (byte as u8).to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// The number of leading bytes that belong to a token.
pub(super) fn token_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| !TOKEN[byte as usize]).unwrap_or(bytes.len())
}

/// Names of fields up to this length are read and put in lower case in one go; hardly any is longer.
pub(super) const NAME: usize = 32;

/// The number of leading bytes that belong to a token, with those of the first [`NAME`] in lower case in `lower`.
pub(super) fn lower_token(bytes: &[u8], lower: &mut [u8; NAME]) -> usize {
    for (at, &byte) in bytes.iter().take(NAME).enumerate() {
        let byte = LOWER[byte as usize];
        if byte == 0 {
            return at;
        }
        lower[at % NAME] = byte;
    }
    if bytes.len() > NAME { NAME + token_len(&bytes[NAME..]) } else { bytes.len() }
}

/// True for a token of at least one byte.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && token_len(bytes) == bytes.len()
}

/// The first byte that is below `LEAST` or DEL. `LEAST` is at most 0x80.
fn first_control<const LEAST: u8>(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    // Sixteen at a time while there is none: the compiler makes a few vector instructions of it.
    while let Some((chunk, after)) = rest.split_first_chunk::<16>() {
        if chunk.iter().fold(false, |found, &byte| found | (byte < LEAST) | (byte == 0x7f)) {
            break;
        }
        rest = after;
    }
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        // A borrow can only mark bytes above one that is truly marked, so the lowest mark is exact.
        let below = word.wrapping_sub(ONES * LEAST as u64) & !word;
        let flipped = word ^ (ONES * 0x7f);
        let delete = flipped.wrapping_sub(ONES) & !flipped;
        let marks = (below | delete) & HIGH;
        if marks != 0 {
            return bytes.len() - rest.len() + marks.trailing_zeros() as usize / 8;
        }
        rest = after;
    }
    let found = rest.iter().position(|&byte| byte < LEAST || byte == 0x7f).unwrap_or(rest.len());
    bytes.len() - rest.len() + found
}

/// The number of leading bytes that may stand in a field value: all but control characters; tab is none.
pub(super) fn text_len(bytes: &[u8]) -> usize {
    let mut at = first_control::<0x20>(bytes);
    while bytes.get(at) == Some(&b'\t') {
        at += 1;
        at += first_control::<0x20>(&bytes[at..]);
    }
    at
}

/// True when all bytes may stand in a field value.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    text_len(bytes) == bytes.len()
}

/// The number of leading bytes that may stand in a request target: neither space nor control characters.
pub(super) fn target_len(bytes: &[u8]) -> usize {
    first_control::<0x21>(bytes)
}

/// `bytes` without spaces and tabs at both ends.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// True for `uri-host [ ":" port ]`: a name, an IPv4 address or a bracketed IPv6 address, and digits. No user
/// information: what stands before an `@` could be taken for the host by a less careful reader.
pub(super) fn is_authority(bytes: &[u8]) -> bool {
    let port = match bytes {
        [b'[', rest @ ..] => {
            let Some(end) = rest.iter().position(|&byte| byte == b']') else { return false };
            let (host, port) = (&rest[..end], &rest[end + 1..]);
            if host.is_empty() || !host.iter().all(|&b| b.is_ascii_hexdigit() || matches!(b, b':' | b'.')) {
                return false;
            }
            port
        }
        _ => {
            // What ends the name is looked at as the port.
            match bytes.iter().position(|&byte| !HOST[byte as usize]).unwrap_or(bytes.len()) {
                0 => return false,
                end => &bytes[end..],
            }
        }
    };
    match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_found_at_every_place() {
        for place in 0..45 {
            for byte in 0..=255u8 {
                let mut text = vec![b'a'; 45];
                text[place] = byte;
                let control = byte < 0x20 || byte == 0x7f;
                assert_eq!(text_len(&text), if control && byte != b'\t' { place } else { 45 }, "{byte} at {place}");
                assert_eq!(target_len(&text), if control || byte == b' ' { place } else { 45 }, "{byte} at {place}");
            }
        }
        assert_eq!(text_len(b"\t\t12345678\t\x01"), 11);
    }

    #[test]
    fn names_are_read_in_lower_case() {
        for byte in 0..=255u8 {
            for place in [0, 1, 31, 32, 33, 40] {
                let mut name = [b'N'; 41];
                name[place] = byte;
                let mut lower = [0; NAME];
                let len = lower_token(&name, &mut lower);
                assert_eq!(len, token_len(&name), "{byte} at {place}");
                assert_eq!(lower[..len.min(NAME)], name[..len.min(NAME)].to_ascii_lowercase());
            }
        }
        assert_eq!(lower_token(b"", &mut [0; NAME]), 0);
        assert_eq!(lower_token(&[b'a'; NAME], &mut [0; NAME]), NAME);
    }

    #[test]
    fn authorities() {
        for good in ["a", "a.b:80", "127.0.0.1:8080", "[::1]", "[::1]:443", "a_b-c.d", "a:", "%41"] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in ["", ":80", "a:b", "a:123456", "u@h", "a b", "[::1", "[]", "[::1]x", "a/b", "a:80:80", "a\\b", "é"]
        {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }
}
