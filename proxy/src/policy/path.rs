//! Paths that mean one thing to the proxy and another to the workload.
//!
//! A rule for `/public/` must not let `/public/../admin` through. What a server makes of dot segments differs from
//! server to server, so where policy looks at paths they are refused rather than resolved.

/// True when a path has a segment `.` or `..`, also with dots or separators percent-encoded, or with backslashes.
pub fn has_dot_segments(path: &str) -> bool {
    // Nearly every path: no dot beside a separator, nothing encoded.
    if !path.contains('.') && !path.contains('%') {
        return false;
    }
    let mut segment = Segment::Empty;
    let mut rest = path.as_bytes();
    while let Some((byte, tail)) = next(rest) {
        rest = tail;
        if byte == b'/' || byte == b'\\' {
            if segment.is_dots() {
                return true;
            }
            segment = Segment::Empty;
        } else {
            segment = match (segment, byte) {
                (Segment::Empty, b'.') => Segment::Dots(1),
                (Segment::Dots(count), b'.') => Segment::Dots(count.saturating_add(1)),
                _ => Segment::Other,
            };
        }
    }
    segment.is_dots()
}

#[derive(Clone, Copy)]
enum Segment {
    Empty,
    Dots(u8),
    Other,
}

impl Segment {
    fn is_dots(self) -> bool {
        matches!(self, Segment::Dots(1 | 2))
    }
}

/// The first byte, with `%2e`, `%2f` and `%5c` decoded, and what follows it.
fn next(path: &[u8]) -> Option<(u8, &[u8])> {
    let encoded = match path {
        [b'%', b'2', b'e' | b'E', ..] => b'.',
        [b'%', b'2', b'f' | b'F', ..] => b'/',
        [b'%', b'5', b'c' | b'C', ..] => b'\\',
        [byte, rest @ ..] => return Some((*byte, rest)),
        [] => return None,
    };
    Some((encoded, &path[3..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dot_segments_are_found_however_they_are_written() {
        for path in ["/a/../b", "/..", "/./a", "/a/.", "/%2e%2E/a", "/a%2f..%2Fb", "/a\\..\\b", "/a/.%2e/b", ".."] {
            assert!(has_dot_segments(path), "{path}");
        }
        for path in ["/", "/a.b/c", "/.well-known/x", "/...", "/a..b", "/a%2fb", "/%2e%2e%2e", "*", "", "/a/..b"] {
            assert!(!has_dot_segments(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_path_gives_an_answer(path in "\\PC{0,40}") {
            let _ = has_dot_segments(&path);
        }
    }
}
