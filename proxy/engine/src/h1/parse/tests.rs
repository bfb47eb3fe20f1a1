//! Heads: what is taken and what is refused, cut anywhere.

use proptest::prelude::*;

use super::*;
use crate::h1::encode;

fn parse_request(input: &[u8]) -> Result<Option<(usize, Facts, RequestHead)>, Error> {
    let mut head = RequestHead::default();
    Ok(request(input, &Limits::default(), &mut head)?.map(|(len, facts)| (len, facts, head)))
}

fn parse_response(input: &[u8]) -> Result<Option<(usize, Facts, ResponseHead)>, Error> {
    let mut head = ResponseHead::default();
    Ok(response(input, &Limits::default(), &mut head)?.map(|(len, facts)| (len, facts, head)))
}

fn fields_text(headers: &Headers) -> String {
    headers
        .iter()
        .map(|(name, value)| format!("{}={};", String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
        .collect()
}

/// The parts of a request, as `METHOD authority path fields`.
fn request_parts(input: &[u8]) -> Result<String, &'static str> {
    match parse_request(input) {
        Ok(Some((len, _, head))) => {
            assert_eq!(len, input.len());
            let authority = head.authority().unwrap_or("-");
            Ok(format!("{} {authority} {} {}", head.method, head.path(), fields_text(&head.headers)))
        }
        Ok(None) => Err("incomplete"),
        Err(Error::Malformed(rule)) => Err(rule),
        Err(Error::HeadTooLarge) => Err("too large"),
        Err(other) => panic!("{other}"),
    }
}

/// A piece of a valid head is never refused, and never complete.
fn check_incomplete(input: &[u8], parse: impl Fn(&[u8]) -> Result<bool, Error>) {
    for end in 0..input.len() {
        assert!(matches!(parse(&input[..end]), Ok(false)), "{:?}", String::from_utf8_lossy(&input[..end]));
    }
}

#[test]
fn requests() {
    let check = |input: &str, expect: &str| {
        assert_eq!(request_parts(input.as_bytes()).as_deref(), Ok(expect), "{input:?}");
        check_incomplete(input.as_bytes(), |input| Ok(parse_request(input)?.is_some()));
    };
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET a / ");
    check("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET a / ");
    check("GET /a?b=c HTTP/1.1\r\nhost:a:80\r\n\r\n", "GET a:80 /a?b=c ");
    check("GET /é|{}\"<> HTTP/1.1\r\nHost: a\r\n\r\n", "GET a /é|{}\"<> ");
    check("GET / HTTP/1.0\r\n\r\n", "GET - / ");
    check("GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET - / ");
    check("get / HTTP/1.1\r\nHost: a\r\n\r\n", "get a / ");
    check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS a * ");
    check("GET http://b:1/x HTTP/1.1\r\nHost: a\r\n\r\n", "GET b:1 /x ");
    check("GET HTTPS://b HTTP/1.1\r\nHost: a\r\n\r\n", "GET b / ");
    check("GET http://b?x HTTP/1.1\r\nHost: a\r\n\r\n", "GET b /?x ");
    check("OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS b * ");
    check("CONNECT b:443 HTTP/1.1\r\nHost: a\r\n\r\n", "CONNECT b:443  ");
    check("CONNECT [::1]:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", "CONNECT [::1]:443  content-length=0;");
    check("GET / HTTP/1.1\r\nHost: a\r\nX-A: \t b c\t \r\nX-B:\r\nX-A:é\t2\r\n\r\n", "GET a / x-a=b c;x-b=;x-a=é\t2;");
    check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 007\r\n\r\n", "POST a / content-length=7;");
    check("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nA: b\r\n\r\n", "POST a / a=b;");
}

#[test]
fn requests_that_two_readers_could_see_differently_are_refused() {
    let check = |input: &str, expect: &str| {
        assert_eq!(request_parts(input.as_bytes()), Err(expect), "{input:?}");
    };
    for input in ["\n", "\r\n\n", "\r\n\r\n", "\rG", "\nGET / HTTP/1.1\r\n\r\n", "\r\n\r\nGET / HTTP/1.1\r\n\r\n"] {
        check(input, "empty line before the request");
    }
    for input in [" GET / ", "GE\tT / ", "G@T / ", "GET\r\n", "\0", "\u{16}\u{3}\u{1}", "GET\t/ ", &"A".repeat(33)] {
        check(input, "invalid method");
    }
    for target in ["", " /", "/a\tb", "/\r\n", "/\n", "/\0", "/\x7f", "/\x0b"] {
        check(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), "invalid request target");
    }
    for line in [
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET / HTTP/1.",
        "GET / HTTP/0.9",
        "GET / x",
        "GET /  HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET / HTTP/01.1",
    ] {
        check(&format!("{line}\r\nHost: a\r\n\r\n"), "not HTTP/1.0 or HTTP/1.1");
    }
    for line in ["GET / HTTP/1.1 ", "GET / HTTP/1.10", "GET / HTTP/1.1\n", "GET / HTTP/1.1\rX"] {
        check(&format!("{line}\r\nHost: a\r\n\r\n"), "request line does not end after the version");
    }
    check("GET / HTTP/1.1\nHost: a\n\n", "request line does not end after the version");
    check("GET * HTTP/1.1\r\nHost: a\r\n\r\n", "asterisk as the target of another method than OPTIONS");
    check("GET /#f HTTP/1.1\r\nHost: a\r\n\r\n", "fragment in the request target");
    for target in ["a", "a/b", "ftp://a/", "a:80", "mailto:a"] {
        let expect = "request target is neither a path nor an http URI";
        check(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), expect);
    }
    for target in ["http://", "http:///a", "http://u@a/", "http://a:b/", "http://a\\b/"] {
        check(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), "invalid authority in the request target");
    }
    for target in ["a", "a:", "/", "http://a:80/", "[::1]", "u@a:80"] {
        let expect = "CONNECT without a valid host and port";
        check(&format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n"), expect);
    }
    check("CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n", "CONNECT with a body");
    check("CONNECT a:1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "CONNECT with a body");

    let field = |field: &str, expect: &str| check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"), expect);
    check("GET / HTTP/1.1\r\n\r\n", "no host");
    check("GET http://a/ HTTP/1.1\r\n\r\n", "no host");
    field("Host: a", "more than one host");
    check("GET / HTTP/1.1\r\nHost: a\r\nhOST:\r\n\r\n", "more than one host");
    for host in ["a b", "u@a", "a/b", "a:x", "a#", "a, b", "[", "é", "a\tb", "\""] {
        check(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), "invalid host");
        check(&format!("GET http://a/ HTTP/1.1\r\nHost: {host}\r\n\r\n"), "invalid host");
    }
    check("GET / HTTP/1.1\r\n Host: a\r\n\r\n", "whitespace before the first field");
    check("GET / HTTP/1.1\r\n\tx\r\nHost: a\r\n\r\n", "whitespace before the first field");
    field("A: b\r\n c", "folded field");
    field("A: b\r\n\tContent-Length: 5", "folded field");
    for fold in [" ", "\t"] {
        field(fold, "folded field");
    }
    for name in ["Content-Length ", "A ", "A\t", "A B"] {
        field(&format!("{name}: 1"), "whitespace before the colon");
    }
    for name in ["", "A", "A\r", "A\n", "A\0", "A\x0b", "é", "A(", "A/", "\"A\"", "A\u{a0}"] {
        let tail = if name == "A" { "" } else { ": 1" };
        field(&format!("{name}{tail}"), "invalid field name");
    }
    for value in ["a\0b", "\x01", "a\x0bb", "\x7f", "a\x1f", "\x08"] {
        field(&format!("A: {value}"), "control character in a field");
    }
    for value in ["a\nb", "a\rb", "\n", "a\r", "a\r\r\nb: c", "a\nContent-Length: 5"] {
        field(&format!("A: {value}"), "line ends without both of CR LF");
    }
    for value in ["", "+5", "-5", "5 5", "5,5", "5, 5", "0x5", "5a", "5;", "٥", "1e3", "5.0"] {
        field(&format!("Content-Length: {value}"), "content-length is not one number");
    }
    field("Content-Length: 18446744073709551616", "content-length is too large");
    field("Content-Length: 99999999999999999999999", "content-length is too large");
    field("Content-Length: 5\r\nContent-Length: 6", "more than one content-length");
    field("Content-Length: 5\r\ncontent-length: 5", "more than one content-length");
    for value in [
        "",
        "gzip",
        "gzip, chunked",
        "chunked, chunked",
        "chunked;a",
        "identity",
        "xchunked",
        "chunked,",
        "chunked\x0b",
    ] {
        let expect = if value.contains('\x0b') {
            "control character in a field"
        } else {
            "transfer-encoding is not chunked alone"
        };
        field(&format!("Transfer-Encoding: {value}"), expect);
    }
    field("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "more than one transfer-encoding");
    field("Transfer-Encoding: chunked\r\nContent-Length: 5", "both transfer-encoding and content-length");
    field("Content-Length: 0\r\nTransfer-Encoding: chunked", "both transfer-encoding and content-length");
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding in HTTP/1.0");
    assert_eq!(request_parts(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"), Err("request target is not UTF-8"));
    assert_eq!(request_parts(b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n"), Err("invalid host"));
}

#[test]
fn as_many_fields_as_allowed_and_no_more() {
    let head = |count: usize| format!("GET / HTTP/1.0\r\n{}\r\n", "A: b\r\n".repeat(count));
    assert!(matches!(parse_request(head(128).as_bytes()), Ok(Some(_))));
    assert!(matches!(parse_request(head(129).as_bytes()), Err(Error::HeadTooLarge)));
}

#[test]
fn what_fields_say_about_the_message() {
    let check = |version: &str, fields: &str, expect: Facts| {
        let input = format!("POST / {version}\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(parse_request(input.as_bytes()).unwrap().unwrap().1, expect, "{input:?}");
    };
    let keep = Facts { keep_alive: true, ..Facts::default() };
    check("HTTP/1.1", "", keep);
    check("HTTP/1.1", "Connection: close\r\n", Facts::default());
    check("HTTP/1.1", "Connection: x, CLOSE ,y\r\n", Facts::default());
    check("HTTP/1.1", "Connection: x\r\nConnection: close\r\n", Facts::default());
    check("HTTP/1.1", "Connection: keep-alive, close\r\n", Facts::default());
    check("HTTP/1.1", "Connection: closed\r\n", keep);
    check("HTTP/1.0", "", Facts::default());
    check("HTTP/1.0", "Connection: Keep-Alive\r\n", keep);
    check("HTTP/1.1", "Content-Length: 18446744073709551615\r\n", Facts { length: Some(u64::MAX), ..keep });
    check("HTTP/1.1", "Transfer-Encoding: chunked\r\n", Facts { chunked: true, ..keep });
    check("HTTP/1.1", "Expect: 100-Continue\r\n", Facts { expects_continue: true, ..keep });
    check("HTTP/1.0", "Expect: 100-continue\r\n", Facts::default());
    check("HTTP/1.1", "Expect: something\r\n", keep);
}

#[test]
fn responses() {
    let check = |input: &str, status: u16, fields: &str| {
        let (len, _, head) = parse_response(input.as_bytes()).unwrap().expect(input);
        assert_eq!((len, head.status, fields_text(&head.headers).as_str()), (input.len(), status, fields));
        check_incomplete(input.as_bytes(), |input| Ok(parse_response(input)?.is_some()));
    };
    check("HTTP/1.1 200 OK\r\n\r\n", 200, "");
    check("HTTP/1.1 200 \r\n\r\n", 200, "");
    check("HTTP/1.1 200\r\n\r\n", 200, "");
    check("HTTP/1.0 999 é \t reason\r\nA: b\r\n\r\n", 999, "a=b;");
    check("HTTP/1.1 200 OK\r\nContent-Length \t: 5\r\n\r\n", 200, "content-length=5;");
    check("HTTP/1.1 200 OK\r\nHost: a\r\nHost: b\r\n\r\n", 200, "host=a;host=b;");
}

#[test]
fn responses_that_two_readers_could_see_differently_are_refused() {
    let check = |input: &str, expect: &str| match parse_response(input.as_bytes()) {
        Err(Error::Malformed(rule)) => assert_eq!(rule, expect, "{input:?}"),
        other => panic!("{input:?}: {other:?}"),
    };
    for input in ["HTTP/1.2 200 OK\r\n", "HTTP/2 200 OK\r\n", "ICY 200 OK\r\n", "\r\nHTTP/1.1 200", "<html>"] {
        check(input, "not HTTP/1.0 or HTTP/1.1");
    }
    for status in [" 099", " 20", " 2000", "  200", " +20", " 2x0", "\t200", " 200\t"] {
        check(&format!("HTTP/1.1{status}\r\n\r\n"), "invalid status");
    }
    check("HTTP/1.1 200 O\nK\r\n\r\n", "invalid reason phrase");
    check("HTTP/1.1 200 O\rK\r\n\r\n", "invalid reason phrase");
    check("HTTP/1.1 200 \0\r\n\r\n", "invalid reason phrase");
    let field = |field: &str, expect: &str| check(&format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\n"), expect);
    field("A: b\r\n c", "folded field");
    field("A: b\nc: d", "line ends without both of CR LF");
    field("A b: c", "invalid field name");
    field("Content-Length: 5, 5", "content-length is not one number");
    field("Content-Length: 5\r\nContent-Length: 5", "more than one content-length");
    field("Content-Length: 5\r\nTransfer-Encoding: chunked", "both transfer-encoding and content-length");
    field("Transfer-Encoding: gzip, chunked", "transfer-encoding is not chunked alone");
    check("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer-encoding in HTTP/1.0");
}

#[test]
fn the_end_of_a_head_is_found_from_wherever_the_last_look_ended() {
    let input = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nmore";
    let head = input.len() - b"more".len();
    for first in 0..input.len() {
        let mut scanned = 0;
        let early = section_ends(&input[..first], &mut scanned).unwrap();
        assert_eq!(early, first >= head, "{first}");
        assert!(early || section_ends(input, &mut scanned).unwrap(), "{first}");
        assert_eq!(scanned, head);
    }
    assert!(section_ends(b"a\n", &mut 0).is_err());
    assert!(section_ends(b"\n", &mut 0).is_err());
}

/// Bytes that are nearly a head.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "GET ",
        "POST ",
        "CONNECT ",
        "/",
        "*",
        "http://",
        "a:80",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        "HTTP/1.1 ",
        "200 ",
        "OK",
        "\r\n",
        "\r",
        "\n",
        " ",
        "\t",
        ":",
        ": ",
        "Host: a\r\n",
        "Content-Length: 5\r\n",
        "Content-Length",
        "Transfer-Encoding: chunked\r\n",
        "chunked",
        "Connection: close\r\n",
        "\0",
        "é",
        ",",
        "5",
        "\r\n\r\n",
    ]);
    let valid = prop::sample::select(vec![
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET http://a/b HTTP/1.1\r\nhost: c:1\r\nX: \t y \r\n\r\n",
        "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nA: b\r\n\r\nhello",
        "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\nHost: a\r\nB:\r\n\r\n",
        "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 404\r\nC : d\r\n\r\n",
    ]);
    // Zero to three pieces put somewhere, over what is there or between.
    let edits = prop::collection::vec((any::<prop::sample::Index>(), piece.clone(), any::<bool>()), 0..4);
    let edited = (valid, edits).prop_map(|(valid, edits)| {
        let mut bytes = valid.as_bytes().to_vec();
        for (at, piece, over) in edits {
            let at = at.index(bytes.len());
            let end = if over { bytes.len().min(at + piece.len()) } else { at };
            bytes.splice(at..end, piece.bytes());
        }
        bytes
    });
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat().into_bytes()),
        6 => edited,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_input_is_too_odd(input in nearly()) {
        let limits = Limits::default();
        let _ = request(&input, &limits, &mut RequestHead::default());
        let _ = response(&input, &limits, &mut ResponseHead::default());
        let _ = trailers(&input, 10, &mut Headers::new());
        let _ = section_ends(&input, &mut 0);
    }

    /// More bytes never change what was already decided.
    #[test]
    fn a_decision_holds(input in nearly(), more in nearly()) {
        let longer = [&input[..], &more[..]].concat();
        match parse_request(&input) {
            Ok(None) => {}
            Ok(Some((len, facts, _))) => {
                let (again, facts_again, _) = parse_request(&longer).unwrap().unwrap();
                prop_assert_eq!((len, facts), (again, facts_again));
            }
            Err(_) => prop_assert!(parse_request(&longer).is_err()),
        }
    }

    /// What the engine writes, it reads back as the same.
    #[test]
    fn a_request_round_trips(
        method in "[A-Z]{1,6}",
        path in "/[!\"$-~]{0,40}",
        authority in "[a-z0-9.-]{1,20}(:[0-9]{1,5})?",
        fields in prop::collection::vec(("[a-z0-9-]{1,15}", "[!-~]([ -~\t]{0,20}[!-~])?"), 0..20),
        length in prop::option::of(any::<u64>()),
    ) {
        let mut head = RequestHead::default();
        head.method = Method::from_bytes(method.as_bytes()).unwrap();
        head.set_path(&path);
        head.set_authority(&authority);
        for (name, value) in &fields {
            prop_assume!(!matches!(name.as_str(), "te" | "host" | "upgrade" | "expect" | "connection" | "keep-alive"));
            head.headers.append(name, value);
        }
        let framing = length.map_or(encode::Framing::Chunked, encode::Framing::Length);
        let mut out = Vec::new();
        encode::request(&mut out, &head, framing).unwrap();
        let (len, facts, mut again) = parse_request(&out).unwrap().expect("a whole head");
        prop_assert_eq!(len, out.len());
        prop_assert_eq!((facts.length, facts.chunked), (length, length.is_none()));
        again.headers.remove("content-length");
        prop_assert_eq!((again.method.as_str(), again.path(), again.authority()), (method.as_str(), path.as_str(), Some(authority.as_str())));
        prop_assert_eq!(fields_text(&again.headers), fields_text(&head.headers));
    }
    /// What is accepted here, hyper's parser accepts with the same end and the same fields. (It refuses bytes beyond
    /// ASCII in some places.)
    #[test]
    fn nothing_is_accepted_that_httparse_sees_differently(input in nearly()) {
        if !input.is_ascii() {
            return Ok(());
        }
        let mut fields = [httparse::EMPTY_HEADER; 128];
        if let Ok(Some((len, _, head))) = parse_request(&input) {
            let mut theirs = httparse::Request::new(&mut fields);
            prop_assert_eq!(theirs.parse(&input), Ok(httparse::Status::Complete(len)));
            prop_assert_eq!(theirs.method, Some(head.method.as_str()));
            let kept = |field: &&httparse::Header| !matches!(&*field.name.to_ascii_lowercase(), "host" | "transfer-encoding");
            let values: Vec<_> = theirs.headers.iter().filter(kept).map(|field| field.value).collect();
            prop_assert_eq!(head.headers.iter().map(|(_, value)| value).collect::<Vec<_>>(), values);
        }
        if let Ok(Some((len, _, head))) = parse_response(&input) {
            let mut theirs = httparse::Response::new(&mut fields);
            let mut config = httparse::ParserConfig::default();
            config.allow_spaces_after_header_name_in_responses(true);
            prop_assert_eq!(config.parse_response(&mut theirs, &input), Ok(httparse::Status::Complete(len)));
            prop_assert_eq!(theirs.code, Some(head.status));
        }
    }
}
