//! The client side over scripted streams.

use super::*;
use crate::h1::testing::{Script, now, poll};

fn request(method: Method) -> RequestHead {
    let mut head = RequestHead::default();
    head.method = method;
    head.set_path("/");
    head.set_authority("a");
    head
}

fn client<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Client<Script> {
    Client::new(Script::new(pieces), Limits::default())
}

/// A client that sent a request without a body, and what the endpoint sends.
fn asking<'a>(method: Method, pieces: impl IntoIterator<Item = &'a [u8]>) -> Client<Script> {
    let mut client = client(pieces);
    let mut head = request(method);
    head.headers.append("upgrade", "x");
    client.send_request(&head, Length::Empty);
    client
}

fn response(client: &mut Client<Script>) -> Result<ResponseHead, Error> {
    let mut head = ResponseHead::default();
    now(|cx| client.poll_response(cx, &mut head)).map(|()| head)
}

fn body(client: &mut Client<Script>) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(data) = now(|cx| client.poll_data(cx)) {
        all.extend_from_slice(&data?);
    }
    Ok(all)
}

#[test]
fn bodies_end_where_the_head_says() {
    let check = |method: Method, input: &str, length, expect: &str, reusable| {
        for cut in 0..=input.len() {
            let (first, second) = input.as_bytes().split_at(cut);
            let mut pieces: Vec<_> = [first, second].into_iter().filter(|piece| !piece.is_empty()).collect();
            if length == Length::Unknown && !input.contains("chunked") {
                pieces.push(b"");
            }
            let mut client = asking(method.clone(), pieces);
            response(&mut client).unwrap();
            assert_eq!(client.body_length(), length, "{input:?}");
            assert_eq!(body(&mut client).unwrap(), expect.as_bytes(), "{input:?} cut at {cut}");
            assert!(client.is_end());
            // Bytes beyond the end may not have come yet; if they have, the connection is of no more use.
            if cut == 0 || reusable {
                assert_eq!(client.is_reusable(), reusable, "{input:?}");
            }
        }
    };
    use Length::{Empty, Known, Unknown};
    check(Method::GET, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Known(2), "hi", true);
    check(Method::GET, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Empty, "", true);
    check(
        Method::GET,
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        Unknown,
        "hi",
        true,
    );
    check(Method::GET, "HTTP/1.1 200 OK\r\n\r\nhi", Unknown, "hi", false);
    check(Method::GET, "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", Known(2), "hi", false);
    check(
        Method::GET,
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi",
        Known(2),
        "hi",
        true,
    );
    check(Method::GET, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", Known(2), "hi", false);
    check(Method::GET, "HTTP/1.1 204 No Content\r\n\r\n", Empty, "", true);
    check(Method::GET, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", Empty, "", true);
    check(Method::GET, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", Empty, "", false);
    check(Method::GET, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Empty, "", true);
    check(Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Empty, "", true);
    check(Method::HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Empty, "", true);
    check(Method::GET, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1", Known(2), "hi", false);
}

#[test]
fn bodies_that_end_too_early_are_errors() {
    for input in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhi",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n",
    ] {
        let mut client = asking(Method::GET, [input.as_bytes(), b""]);
        response(&mut client).unwrap();
        assert!(matches!(body(&mut client), Err(Error::Io(io::ErrorKind::UnexpectedEof))), "{input:?}");
        assert!(!client.is_reusable() && !client.is_end());
    }
}

#[test]
fn informational_heads_come_first() {
    let input = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    let mut client = asking(Method::GET, [&input[..]]);
    let all: Vec<u16> = (0..3).map(|_| response(&mut client).unwrap().status).collect();
    assert_eq!(all, [103, 100, 200]);
    assert!(client.is_reusable());
    let mut cut = asking(Method::GET, [&b"HTTP/1.1 100 Continue\r\n\r\n"[..], b""]);
    response(&mut cut).unwrap();
    assert!(matches!(response(&mut cut), Err(Error::Io(io::ErrorKind::UnexpectedEof))));
    let mut odd = asking(Method::GET, [&b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\nhi"[..]]);
    assert!(matches!(response(&mut odd), Err(Error::Malformed("informational response with a body"))));
}

#[test]
fn a_switch_of_protocols_must_have_been_asked_for() {
    let input = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nafter";
    let mut asked = asking(Method::GET, [&input[..]]);
    assert_eq!(response(&mut asked).unwrap().status, 101);
    assert!(!asked.is_reusable());
    assert_eq!(&asked.into_parts().1[..], b"after");
    let mut unasked = client([&input[..]]);
    unasked.send_request(&request(Method::GET), Length::Empty);
    assert!(matches!(response(&mut unasked), Err(Error::Malformed(_))));
}

#[test]
fn a_tunnel_begins_after_connect() {
    let mut client = asking(Method::CONNECT, [&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nafter"[..]]);
    assert!(!response(&mut client).unwrap().headers.contains("content-length"));
    assert_eq!(&client.into_parts().1[..], b"after");
    let mut refused = asking(Method::CONNECT, [&b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno"[..]]);
    response(&mut refused).unwrap();
    assert_eq!(body(&mut refused).unwrap(), b"no");
}

#[test]
fn an_endpoint_that_closes_before_it_answers() {
    let mut closed = asking(Method::GET, [&b""[..]]);
    assert!(matches!(response(&mut closed), Err(Error::ClosedBeforeResponse)));
    let mut reset = asking(Method::GET, []);
    reset.conn.io.reset = true;
    assert!(matches!(response(&mut reset), Err(Error::ClosedBeforeResponse)));
    let mut cut = asking(Method::GET, [&b"HTTP/1.1 2"[..], b""]);
    assert!(matches!(response(&mut cut), Err(Error::Io(io::ErrorKind::UnexpectedEof))));
    assert!(!cut.is_reusable());
}

#[test]
fn an_answer_is_read_even_if_the_request_could_not_be_written() {
    let mut client = client([&b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"[..]]);
    client.send_request(&request(Method::POST), Length::Known(100));
    client.conn.io.reset = true;
    assert!(now(|cx| client.poll_flush(cx)).is_err());
    client.send_data(Bytes::from_static(b"more"));
    assert_eq!(response(&mut client).unwrap().status, 413);
    assert!(!client.is_reusable());
}

#[test]
fn requests_are_framed_by_their_length() {
    let check = |method: Method, length, data: &'static str, expect: &str| {
        let mut client = client([]);
        client.send_request(&request(method), length);
        client.send_data(Bytes::from_static(data.as_bytes()));
        client.send_end(None);
        now(|cx| client.poll_flush(cx)).unwrap();
        assert_eq!((client.io().text(), client.io().writes), (expect, 1));
        assert_eq!(client.conn.held(), 0);
    };
    check(Method::GET, Length::Empty, "", "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    check(Method::POST, Length::Empty, "", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");
    check(Method::GET, Length::Known(2), "hi", "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    check(Method::POST, Length::Unknown, "hi", chunked);
}

#[test]
fn a_request_that_is_not_complete_keeps_the_connection_from_reuse() {
    let mut client = client([&b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..]]);
    client.send_request(&request(Method::POST), Length::Known(2));
    response(&mut client).unwrap();
    assert!(client.is_end() && !client.is_reusable());
    client.send_data(Bytes::from_static(b"hi"));
    now(|cx| client.poll_flush(cx)).unwrap();
    assert!(client.is_reusable());
}

#[test]
fn a_head_that_cannot_be_sent_leaves_the_connection_as_it_was() {
    let mut client = client([]);
    let mut head = request(Method::GET);
    head.headers.append("a", "b\nc");
    client.send_request(&head, Length::Empty);
    assert!(matches!(response(&mut client), Err(Error::Malformed(_))));
    assert!(client.is_reusable() && client.io().output.is_empty());
}

#[test]
fn a_pooled_connection_tells_when_it_is_of_no_more_use() {
    for stray in [&b""[..], b"HTTP/1.1 408 Request Timeout\r\n\r\n"] {
        let mut client = asking(Method::GET, [&b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"[..]]);
        response(&mut client).unwrap();
        assert!(poll(|cx| client.poll_idle_closed(cx)).is_pending());
        assert_eq!(client.conn.held(), 0);
        client.conn.io.input.push_back(stray.to_vec());
        assert!(poll(|cx| client.poll_idle_closed(cx)).is_ready());
        assert!(!client.is_reusable());
    }
}

#[test]
fn large_bodies_pass_without_a_copy() {
    let (mut from, data) = (client([]), Bytes::from(vec![b'x'; 100_000]));
    from.send_request(&request(Method::POST), Length::Known(100_000));
    from.send_data(data.clone());
    assert_eq!(from.conn.output.len(), from.conn.output.gathered() + 100_000);
    assert!(from.conn.output.gathered() < 200);
    now(|cx| from.poll_flush(cx)).unwrap();
    assert!(from.io().output.ends_with(&data));
}
