//! The static table of RFC 7541 appendix A, and what a field's name means to HTTP/2.
//!
//! Names are classified once: for the static table at compile time, for the dynamic table when an entry is added. A
//! field that repeats is never looked at twice.

/// What a name means to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `:method`
    Method,
    /// `:scheme`
    Scheme,
    /// `:path`
    Path,
    /// `:authority`
    Authority,
    /// `:protocol` (RFC 8441)
    Protocol,
    /// `:status`
    Status,
    /// `host`
    Host,
    /// `content-length`
    ContentLength,
    /// `te`: only `trailers` may be said
    Te,
    /// `cookie`: may come in several fields
    Cookie,
    /// Anything else that is well formed.
    Ordinary,
    /// A field that speaks about an HTTP/1 connection (RFC 9113 section 8.2.2).
    Connection,
    /// Not a lower-case token, or an unknown pseudo-header.
    Invalid,
}

/// The kind of a name.
pub(crate) const fn kind_of(name: &[u8]) -> Kind {
    match name {
        b":method" => Kind::Method,
        b":scheme" => Kind::Scheme,
        b":path" => Kind::Path,
        b":authority" => Kind::Authority,
        b":protocol" => Kind::Protocol,
        b":status" => Kind::Status,
        b"host" => Kind::Host,
        b"content-length" => Kind::ContentLength,
        b"te" => Kind::Te,
        b"cookie" => Kind::Cookie,
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => Kind::Connection,
        b"" => Kind::Invalid,
        _ => {
            let mut at = 0;
            while at < name.len() {
                if !TOKEN[name[at] as usize] {
                    return Kind::Invalid;
                }
                at += 1;
            }
            Kind::Ordinary
        }
    }
}

/// The characters of a lower-case field name (RFC 9110 section 5.6.2 without upper case).
static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 256 {
        table[at] = matches!(at as u8, b'a'..=b'z' | b'0'..=b'9' | b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*'
            | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~');
        at += 1;
    }
    table
};

/// False when a value holds a control character other than a tab: such a value could split an HTTP/1 message.
pub(crate) fn value_ok(value: &[u8]) -> bool {
    // Without an early exit the loop is vectorized.
    let mut bad = 0u8;
    for &byte in value {
        bad |= u8::from((byte < 0x20) & (byte != b'\t')) | u8::from(byte == 0x7f);
    }
    bad == 0
}

/// Entries 1 to 61.
#[rustfmt::skip]
pub(crate) static STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

/// The kinds of the static names.
pub(crate) static STATIC_KINDS: [Kind; 61] = {
    let mut kinds = [Kind::Ordinary; 61];
    let mut at = 0;
    while at < 61 {
        kinds[at] = kind_of(STATIC[at].0.as_bytes());
        at += 1;
    }
    kinds
};

/// The index of a static entry of that name, for the ordinary names; 0 when there is none.
pub(crate) fn static_name(name: &[u8]) -> u8 {
    match name {
        b"accept-charset" => 15,
        b"accept-encoding" => 16,
        b"accept-language" => 17,
        b"accept-ranges" => 18,
        b"accept" => 19,
        b"access-control-allow-origin" => 20,
        b"age" => 21,
        b"allow" => 22,
        b"authorization" => 23,
        b"cache-control" => 24,
        b"content-disposition" => 25,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-length" => 28,
        b"content-location" => 29,
        b"content-range" => 30,
        b"content-type" => 31,
        b"cookie" => 32,
        b"date" => 33,
        b"etag" => 34,
        b"expect" => 35,
        b"expires" => 36,
        b"from" => 37,
        b"if-match" => 39,
        b"if-modified-since" => 40,
        b"if-none-match" => 41,
        b"if-range" => 42,
        b"if-unmodified-since" => 43,
        b"last-modified" => 44,
        b"link" => 45,
        b"location" => 46,
        b"max-forwards" => 47,
        b"proxy-authenticate" => 48,
        b"proxy-authorization" => 49,
        b"range" => 50,
        b"referer" => 51,
        b"refresh" => 52,
        b"retry-after" => 53,
        b"server" => 54,
        b"set-cookie" => 55,
        b"strict-transport-security" => 56,
        b"user-agent" => 58,
        b"vary" => 59,
        b"via" => 60,
        b"www-authenticate" => 61,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_at_their_place() {
        for (at, (name, _)) in STATIC.iter().enumerate() {
            let index = static_name(name.as_bytes());
            let left_out = name.starts_with(':') || matches!(*name, "host" | "transfer-encoding");
            assert_eq!(index as usize, if left_out { 0 } else { at + 1 }, "{name}");
        }
    }

    #[test]
    fn names_and_values_are_judged() {
        assert_eq!(kind_of(b"x-a"), Kind::Ordinary);
        for name in [&b"X-a"[..], b"", b"a b", b":x", b"a:b", b"a\x7f", b"\xc3\xa4"] {
            assert_eq!(kind_of(name), Kind::Invalid, "{name:?}");
        }
        assert!(value_ok(b"a\tb \xff") && value_ok(b""));
        for value in [&b"a\0"[..], b"a\r\nb", b"\x7f", b"\n"] {
            assert!(!value_ok(value), "{value:?}");
        }
    }
}
