//! The server side over scripted streams.

use super::*;
use crate::h1::testing::{Script, now, poll};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn server<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Server<Script> {
    Server::new(Script::new(pieces), Bytes::new(), Limits::default())
}

/// The next request's head; panics if there is none.
fn next(server: &mut Server<Script>) -> RequestHead {
    let mut head = RequestHead::default();
    now(|cx| server.poll_request(cx, &mut head)).expect("a request").expect("a valid request");
    head
}

fn no_more(server: &mut Server<Script>) -> bool {
    now(|cx| server.poll_request(cx, &mut RequestHead::default())).is_none()
}

fn flush(server: &mut Server<Script>) {
    now(|cx| server.poll_flush(cx)).unwrap();
}

fn body(server: &mut Server<Script>) -> Result<Vec<u8>, Error> {
    let mut all = Vec::new();
    while let Some(data) = now(|cx| server.poll_data(cx)) {
        all.extend_from_slice(&data?);
    }
    Ok(all)
}

/// What is written for a request with that head, when it is answered with `status`, `length` and `data`.
fn answer(request: &str, status: u16, fields: &[(&str, &str)], length: Length, data: &'static str) -> (String, bool) {
    let mut server = server([request.as_bytes()]);
    next(&mut server);
    let mut head = ResponseHead::new(status);
    for (name, value) in fields {
        head.headers.append(name, value);
    }
    server.send_response(&head, length);
    server.send_data(Bytes::from_static(data.as_bytes()));
    server.send_end(None);
    let keep = server.keep_alive();
    flush(&mut server);
    assert_eq!(server.io().writes, 1, "head and body leave in one write");
    (server.io().text().to_owned(), keep)
}

#[test]
fn responses_are_framed_as_the_client_needs_it() {
    let check = |request: &str, status, fields: &[(&str, &str)], length, data, expect: &str, keep| {
        assert_eq!(answer(request, status, fields, length, data), (expect.to_owned(), keep), "{request:?} {status}");
    };
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";
    let close = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let old = "GET / HTTP/1.0\r\n\r\n";
    let old_keep = "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    let connect = "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n";
    use Length::{Empty, Known, Unknown};

    check(get, 200, &[], Known(2), "hi", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", true);
    check(get, 200, &[], Empty, "", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true);
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    check(get, 200, &[], Unknown, "hi", chunked, true);
    check(get, 200, &[("content-length", "7"), ("connection", "close")], Unknown, "hi", chunked, true);
    check(get, 404, &[("a", "b")], Empty, "", "HTTP/1.1 404 Not Found\r\na: b\r\ncontent-length: 0\r\n\r\n", true);
    check(get, 799, &[], Empty, "", "HTTP/1.1 799 \r\ncontent-length: 0\r\n\r\n", true);
    check(get, 204, &[("content-length", "0")], Empty, "", "HTTP/1.1 204 No Content\r\n\r\n", true);
    check(get, 204, &[], Unknown, "lost", "HTTP/1.1 204 No Content\r\n\r\n", true);
    let not_modified = "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n";
    check(get, 304, &[("content-length", "9")], Empty, "lost", not_modified, true);
    check(
        get,
        101,
        &[("upgrade", "x")],
        Empty,
        "",
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        false,
    );

    check(head, 200, &[("content-length", "9")], Empty, "", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", true);
    check(
        head,
        200,
        &[("content-length", "9")],
        Known(9),
        "lost",
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        true,
    );
    check(head, 200, &[], Known(9), "lost", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", true);
    check(head, 200, &[], Unknown, "lost", "HTTP/1.1 200 OK\r\n\r\n", true);

    check(
        close,
        200,
        &[],
        Known(2),
        "hi",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
        false,
    );
    check(old, 200, &[], Known(2), "hi", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi", false);
    check(old, 200, &[], Unknown, "hi", "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhi", false);
    check(
        old_keep,
        200,
        &[],
        Known(2),
        "hi",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nhi",
        true,
    );
    check(old_keep, 200, &[], Unknown, "hi", "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhi", false);

    check(connect, 200, &[("content-length", "0")], Empty, "", "HTTP/1.1 200 OK\r\n\r\n", false);
    check(
        connect,
        403,
        &[],
        Empty,
        "",
        "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        false,
    );
}

#[test]
fn requests_follow_each_other_on_one_connection() {
    let input = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloPOST /2 HTTP/1.1\r\nHost: a\r\n\
        Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\nGET /3 HTTP/1.0\r\n\r\nignored";
    for cut in 0..=input.len() {
        let (first, second) = input.split_at(cut);
        let pieces = [first, second, b""].into_iter().filter(|piece| !piece.is_empty());
        let mut server = server(pieces);
        for (path, length, sent, trailers) in [
            ("/1", Length::Known(5), "hello", false),
            ("/2", Length::Unknown, "hello", true),
            ("/3", Length::Empty, "", false),
        ] {
            assert_eq!(next(&mut server).path(), path, "cut at {cut}");
            assert_eq!(server.body_length(), length);
            assert_eq!(body(&mut server).unwrap(), sent.as_bytes());
            assert!(server.is_end());
            assert_eq!(server.take_trailers().is_some(), trailers);
            server.send_response(&ResponseHead::new(200), Length::Empty);
        }
        assert!(no_more(&mut server));
        assert_eq!(server.io().text().matches("HTTP/1.1 200 OK").count(), 3);
    }
}

#[test]
fn a_head_of_a_byte_at_a_time_is_the_same() {
    let mut server = server(GET.chunks(1));
    assert_eq!(next(&mut server).authority(), Some("a"));
}

#[test]
fn the_next_request_waits_for_the_end_of_the_response() {
    let mut server = server([GET, GET]);
    next(&mut server);
    server.send_response(&ResponseHead::new(200), Length::Known(2));
    server.send_data(Bytes::from_static(b"hi"));
    server.conn.io.window = Some(10);
    assert!(poll(|cx| server.poll_request(cx, &mut RequestHead::default())).is_pending());
    server.conn.io.window = None;
    next(&mut server);
    // Given up in the middle: the client cannot be told where the response would have ended.
    server.send_response(&ResponseHead::new(200), Length::Unknown);
    assert!(no_more(&mut server));
}

#[test]
fn a_response_that_ends_too_early_ends_the_connection() {
    let mut server = server([GET, GET]);
    next(&mut server);
    server.send_response(&ResponseHead::new(200), Length::Known(9));
    server.send_end(None);
    assert!(!server.keep_alive());
    assert!(no_more(&mut server));
}

#[test]
fn a_body_that_nobody_read_is_dropped_if_it_is_small() {
    let head = |length| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    let small = [head(1000).into_bytes(), vec![b'x'; 1000], GET.to_vec()].concat();
    let mut server_small = server([&small[..]]);
    next(&mut server_small);
    server_small.send_response(&ResponseHead::new(200), Length::Empty);
    assert!(server_small.keep_alive());
    next(&mut server_small);

    let large = [head(1_000_000).into_bytes(), vec![b'x'; 1_000_000], GET.to_vec()].concat();
    let mut server_large = server([&large[..]]);
    next(&mut server_large);
    server_large.send_response(&ResponseHead::new(200), Length::Empty);
    assert!(no_more(&mut server_large));
}

#[test]
fn a_final_answer_to_a_body_that_is_held_back_closes() {
    let expects = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let mut refusing = server([&expects[..]]);
    next(&mut refusing);
    assert!(refusing.expects_continue());
    refusing.send_response(&ResponseHead::new(403), Length::Empty);
    assert!(!refusing.keep_alive());
    flush(&mut refusing);
    assert!(refusing.io().text().contains("connection: close"));

    let mut willing = server([&expects[..]]);
    next(&mut willing);
    willing.send_informational(&ResponseHead::new(100));
    flush(&mut willing);
    willing.conn.io.input.push_back(b"hi".to_vec());
    assert_eq!(body(&mut willing).unwrap(), b"hi");
    willing.send_response(&ResponseHead::new(200), Length::Empty);
    flush(&mut willing);
    assert!(willing.keep_alive());
    assert!(willing.io().text().starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));
}

#[test]
fn clients_of_http_1_0_get_no_informational_heads() {
    let mut server = server([&b"GET / HTTP/1.0\r\n\r\n"[..]]);
    next(&mut server);
    server.send_informational(&ResponseHead::new(103));
    server.send_response(&ResponseHead::new(200), Length::Empty);
    flush(&mut server);
    assert!(server.io().text().starts_with("HTTP/1.1 200 OK\r\n"));
}

#[test]
fn a_refused_head_may_be_answered_and_ends_the_connection() {
    let mut server = server([&b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"[..], GET]);
    let refused = now(|cx| server.poll_request(cx, &mut RequestHead::default()));
    assert!(matches!(refused, Some(Err(Error::Malformed("more than one host")))));
    server.send_response(&ResponseHead::new(400), Length::Empty);
    flush(&mut server);
    assert_eq!(server.io().text(), "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    assert!(no_more(&mut server));
}

#[test]
fn a_broken_chunk_may_be_answered_and_ends_the_connection() {
    let mut server =
        server([&b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n"[..], GET]);
    next(&mut server);
    assert!(matches!(body(&mut server), Err(Error::Malformed("chunk data does not end with CR LF"))));
    server.send_response(&ResponseHead::new(400), Length::Empty);
    flush(&mut server);
    assert!(server.io().text().contains("connection: close"));
    assert!(no_more(&mut server));
}

#[test]
fn heads_are_bounded() {
    let endless = [&b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..], &[b'x'; 70_000][..]].concat();
    for size in [100, 16_384, 100_000] {
        let mut server = server(endless.chunks(size));
        let got = now(|cx| server.poll_request(cx, &mut RequestHead::default()));
        assert!(matches!(got, Some(Err(Error::HeadTooLarge))), "{size}");
        assert!(server.conn.input.len() < 128 * 1024);
    }
    let large = [&b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..], &[b'x'; 60_000][..], b"\r\n\r\n"].concat();
    assert_eq!(next(&mut server(large.chunks(1000))).headers.get("x").map(<[u8]>::len), Some(60_000));
}

#[test]
fn a_client_that_closes() {
    assert!(no_more(&mut server([&b""[..]])));
    assert!(no_more(&mut server([&b"\r\n"[..], b""])));
    let cut = |pieces: [&'static [u8]; 2]| now(|cx| server(pieces).poll_request(cx, &mut RequestHead::default()));
    assert!(matches!(cut([&GET[..10], b""]), Some(Err(Error::Io(io::ErrorKind::UnexpectedEof)))));

    let mut awaiting = server([GET]);
    next(&mut awaiting);
    assert!(poll(|cx| awaiting.poll_closed(cx)).is_pending());
    awaiting.conn.io.input.extend([GET.to_vec(), vec![]]);
    assert!(poll(|cx| awaiting.poll_closed(cx)).is_ready());
    assert!(!awaiting.keep_alive());

    let mut cut_body = server([&b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel"[..], b""]);
    next(&mut cut_body);
    assert!(matches!(body(&mut cut_body), Err(Error::Io(io::ErrorKind::UnexpectedEof))));
}

#[test]
fn pipelined_bytes_are_kept_up_to_a_bound() {
    let many = GET.repeat(10_000);
    let mut server = server([&many[..]]);
    next(&mut server);
    assert!(poll(|cx| server.poll_closed(cx)).is_pending());
    assert!(server.conn.input.len() < 4 * PIPELINED);
    for _ in 1..10_000 {
        server.send_response(&ResponseHead::new(200), Length::Empty);
        next(&mut server);
    }
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let mut server = server([GET]);
    next(&mut server);
    server.send_response(&ResponseHead::new(200), Length::Empty);
    assert!(!server.is_idle());
    assert!(poll(|cx| server.poll_request(cx, &mut RequestHead::default())).is_pending());
    assert!(server.is_idle());
    assert_eq!(server.conn.held(), 0);
}

#[test]
fn bytes_after_a_switch_of_protocols_are_not_lost() {
    let upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nafter";
    let mut server = server([&upgrade[..]]);
    next(&mut server);
    let mut head = ResponseHead::new(101);
    head.headers.append("upgrade", "x");
    server.send_response(&head, Length::Empty);
    flush(&mut server);
    assert!(no_more(&mut server));
    assert_eq!(&server.into_parts().1[..], b"after");
}

#[test]
fn bytes_read_by_detection_come_first() {
    let mut server = Server::new(Script::new([&GET[5..]]), Bytes::copy_from_slice(&GET[..5]), Limits::default());
    assert_eq!(next(&mut server).path(), "/");
}

#[test]
fn a_slow_reader_makes_the_sender_wait() {
    let mut server = server([GET]);
    server.conn.io.window = Some(0);
    next(&mut server);
    server.send_response(&ResponseHead::new(200), Length::Unknown);
    let mut sent = 0;
    while poll(|cx| server.poll_capacity(cx)).is_ready() {
        server.send_data(Bytes::from(vec![b'x'; 10_000]));
        sent += 10_000;
    }
    assert!((64 * 1024..80 * 1024).contains(&sent), "{sent}");
    server.conn.io.window = None;
    server.send_end(None);
    flush(&mut server);
    assert_eq!(server.io().output.iter().filter(|&&byte| byte == b'x').count(), sent);
}

#[test]
fn a_head_that_cannot_be_sent_leaves_room_for_another() {
    let mut server = server([GET]);
    next(&mut server);
    let mut head = ResponseHead::new(200);
    head.headers.append("a", "b\r\nc: d");
    server.send_response(&head, Length::Empty);
    assert!(matches!(now(|cx| server.poll_flush(cx)), Err(Error::Malformed(_))));
    server.send_response(&ResponseHead::new(502), Length::Empty);
    flush(&mut server);
    assert!(server.io().text().starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
}

#[tokio::test]
async fn the_last_response_is_not_cut_off_by_what_the_client_still_sends() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut server = Server::new(listener.accept().await.unwrap().0, Bytes::new(), Limits::default());
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n").await.unwrap();
    server.request(&mut RequestHead::default()).await.unwrap().unwrap();
    server.set_close();
    server.send_response(&ResponseHead::new(413), Length::Empty);
    let upload = async {
        client.write_all(&vec![b'x'; 500_000]).await.unwrap();
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        drop(client);
        got
    };
    let (got, ()) = tokio::join!(upload, server.close());
    assert!(got.starts_with("HTTP/1.1 413 ") && got.contains("connection: close"), "{got}");
}

#[tokio::test]
async fn a_body_cut_off_does_not_look_complete() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut server = Server::new(listener.accept().await.unwrap().0, Bytes::new(), Limits::default());
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    server.request(&mut RequestHead::default()).await.unwrap().unwrap();
    server.send_response(&ResponseHead::new(200), Length::Unknown);
    server.send_data(Bytes::from_static(b"half"));
    server.flush().await.unwrap();
    server.close().await;
    assert!(client.read_to_end(&mut Vec::new()).await.is_err());
}

/// All that a server sees of `pieces` and then the end of the stream, up to the first error.
fn transcript<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
    let pieces: Vec<_> = pieces.into_iter().filter(|piece| !piece.is_empty()).chain([&b""[..]]).collect();
    let (mut server, mut seen, mut head) = (server(pieces), Vec::new(), RequestHead::default());
    while let Some(request) = now(|cx| server.poll_request(cx, &mut head)) {
        if request.is_err() {
            seen.push("error".to_owned());
            break;
        }
        seen.push(format!("{} {} {:?} {:?}", head.method, head.path(), head.authority(), server.body_length()));
        seen.extend(head.headers.iter().map(|(name, value)| format!("{name:?}: {value:?}")));
        match body(&mut server) {
            Ok(body) => seen.push(format!("{body:?}")),
            Err(_) => seen.push("error".to_owned()),
        }
        server.send_response(&ResponseHead::new(200), Length::Unknown);
        server.send_end(None);
    }
    seen
}

/// Streams of pieces of requests, many of them valid.
fn stream() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
    use proptest::prelude::*;
    let piece = prop::sample::select(vec![
        "GET /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        "POST /d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "hello",
        "5\r\nhello\r\n",
        "0\r\n\r\n",
        "0\r\nx: y\r\n\r\n",
        "3;x=y\r\nabc\r\n",
        "\r\n",
        "\n",
        "x",
        "Content-Length: 5\r\n",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(512))]

    /// However a stream is cut into reads, the same requests are seen.
    #[test]
    fn cuts_change_nothing(input in stream(), cuts in proptest::collection::vec(1usize..60, 1..20)) {
        let whole = transcript([&input[..]]);
        let (mut pieces, mut rest, mut cuts) = (Vec::new(), &input[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            pieces.push(piece);
            rest = later;
        }
        proptest::prop_assert_eq!(transcript(pieces), whole.clone());
        proptest::prop_assert_eq!(transcript(input.chunks(1)), whole);
    }
}

#[test]
fn a_connection_is_small() {
    assert!(size_of::<Server<tokio::net::TcpStream>>() <= 384, "{}", size_of::<Server<tokio::net::TcpStream>>());
}

#[test]
fn the_last_bytes_may_leave_with_the_end() {
    let held = |request: &str, complete: bool| {
        let mut server = server([request.as_bytes()]);
        next(&mut server);
        server.send_response(&ResponseHead::new(200), Length::Known(2));
        server.send_data(Bytes::from_static(b"h"));
        flush(&mut server);
        assert_eq!(server.io().held, None, "more is to come");
        if complete {
            server.send_data(Bytes::from_static(b"i"));
        } else {
            server.send_end(None);
        }
        now(|cx| server.poll_last(cx)).unwrap();
        server.io().held
    };
    let close = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert_eq!(held(close, true), Some(1), "before the second write");
    assert_eq!(held("GET / HTTP/1.0\r\n\r\n", true), Some(1));
    assert_eq!(held("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true), None, "the connection is kept");
    assert_eq!(held(close, false), None, "what was broken off is no end");
    // Who still sends is listened to for a while, and shall have the response meanwhile.
    assert_eq!(held("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\ncontent-length: 9\r\n\r\n", true), None);
    assert_eq!(held(&format!("{close}{close}"), true), None);
}
