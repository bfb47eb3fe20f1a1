//! Messages that two parsers could read differently are refused, counted, and never forwarded.

use crate::http_pair;
use gossamer_proxy::balance::transport::Session;
use gossamer_tests::app::{self, Http};
use gossamer_tests::client::{self, H2, Raw};
use gossamer_tests::mesh::{Mesh, identity_of};
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;

/// Requests whose heads are ambiguous or malformed, and what is wrong with each.
const HEADS: &[(&str, &str)] = &[
    (
        "both framings",
        "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "both, other order",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde"),
    ("a list of lengths", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4, 5\r\n\r\nabcde"),
    ("a signed length", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: +4\r\n\r\nabcd"),
    ("a negative length", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: -4\r\n\r\nabcd"),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 0x4\r\n\r\nabcd"),
    ("an empty length", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length:\r\n\r\nabcd"),
    ("a length with a space", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 4 4\r\n\r\nabcd"),
    ("a huge length", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 99999999999999999999\r\n\r\nabcd"),
    ("chunked twice", "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("chunked not last", "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
    ("an unknown coding", "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("identity", "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: identity\r\n\r\n"),
    (
        "two codings",
        "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("a vertical tab in a coding", "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n"),
    ("chunks in HTTP/1.0", "POST / HTTP/1.0\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a folded field", "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\r\n 2\r\n\r\n"),
    ("a folded coding", "POST / HTTP/1.1\r\nhost: web\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    ("a space before the colon", "POST / HTTP/1.1\r\nhost: web\r\ncontent-length : 4\r\n\r\nabcd"),
    ("a space before the first field", "GET / HTTP/1.1\r\n host: web\r\n\r\n"),
    ("bare LF after a field", "GET / HTTP/1.1\r\nhost: web\nx-a: 1\r\n\r\n"),
    ("bare LF everywhere", "GET / HTTP/1.1\nhost: web\n\n"),
    ("bare CR in a value", "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\r2\r\n\r\n"),
    ("NUL in a value", "GET / HTTP/1.1\r\nhost: web\r\nx-a: 1\x002\r\n\r\n"),
    ("a field without a name", "GET / HTTP/1.1\r\nhost: web\r\n: 1\r\n\r\n"),
    ("a field without a colon", "GET / HTTP/1.1\r\nhost: web\r\nx-a\r\n\r\n"),
    ("a field's name with a bad byte", "GET / HTTP/1.1\r\nhost: web\r\nx(a): 1\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\nx-a: 1\r\n\r\n"),
    ("two hosts", "GET / HTTP/1.1\r\nhost: web\r\nhost: other\r\n\r\n"),
    ("a bad host", "GET / HTTP/1.1\r\nhost: we b\r\n\r\n"),
    ("user info in the host", "GET / HTTP/1.1\r\nhost: a@web\r\n\r\n"),
    ("a space in the target", "GET /a b HTTP/1.1\r\nhost: web\r\n\r\n"),
    ("a control byte in the target", "GET /a\x01b HTTP/1.1\r\nhost: web\r\n\r\n"),
    ("a fragment's colon in CONNECT", "CONNECT /web HTTP/1.1\r\nhost: web\r\n\r\n"),
    ("asterisk with GET", "GET * HTTP/1.1\r\nhost: web\r\n\r\n"),
];

/// Bodies that go wrong after a good head.
const BODIES: &[(&str, &str)] = &[
    ("no chunk size", "\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size that is none", "zz\r\nabc\r\n0\r\n\r\n"),
    ("a prefixed chunk size", "0x3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size with a sign", "+3\r\nabc\r\n0\r\n\r\n"),
    ("a chunk size that overflows", "ffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
    ("bare LF after a chunk size", "3\nabc\r\n0\r\n\r\n"),
    ("bare LF in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n"),
    ("a chunk longer than it says", "3\r\nabcd\r\n0\r\n\r\n"),
    ("a chunk without its end", "3\r\nabc0\r\n\r\n"),
    ("a trailer that frames", "3\r\nabc\r\n0\r\ncontent-length: 9\r\nx y: 1\r\n\r\n"),
];

#[tokio::test]
async fn a_malformed_head_gets_400_and_a_close() {
    let (pair, app) = http_pair().await;
    let refused = || async { pair.shop.metrics().await.sum("outbound_http_errors_total", &[("error", "bad-request")]) };
    assert_eq!(refused().await, 0.0);
    let mut wrong = Vec::new();
    for (what, request) in HEADS {
        let result = refused_with_400(pair.entry(), request, &app).await;
        wrong.extend(result.err().map(|how| format!("{what}: {how}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(refused().await, HEADS.len() as f64, "each is counted");
    // The proxy goes on.
    assert_eq!(client::get(pair.entry(), "web", "/bytes/1").await.status, 200);
}

async fn refused_with_400(entry: SocketAddr, request: &str, app: &Http) -> Result<(), String> {
    let before = app.count();
    let mut raw = Raw::connect(entry).await;
    raw.send(request).await;
    let got = raw.rest().await.map_err(|error| format!("{error}"))?;
    let got = String::from_utf8_lossy(&got);
    if !got.starts_with("HTTP/1.1 400 ") || !got.contains("l5d-proxy-error: bad-request") {
        return Err(format!("answered {got:?}"));
    }
    if got.matches("HTTP/1.1 ").count() != 1 {
        return Err(format!("answered more than once: {got:?}"));
    }
    if app.count() != before {
        return Err("forwarded".into());
    }
    Ok(())
}

#[tokio::test]
async fn a_malformed_body_ends_the_connection_and_is_no_second_request() {
    let (pair, app) = http_pair().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: web\r\n\r\n";
    for (what, body) in BODIES {
        let mut raw = Raw::connect(pair.entry()).await;
        let head = "POST /echo HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n";
        raw.send(format!("{head}{body}{smuggled}")).await;
        // Cut, or told why; in no case two answers.
        let got = raw.rest().await.unwrap_or_default();
        let got = String::from_utf8_lossy(&got);
        assert!(got.matches("HTTP/1.1 ").count() <= 1, "{what}: {got:?}");
        assert!(!got.ends_with("\r\n0\r\n\r\n"), "{what}: passed off as complete: {got:?}");
    }
    assert!(app.seen().iter().all(|seen| seen.uri == "/echo"), "{:?}", app.seen());
    assert_eq!(client::get(pair.entry(), "web", "/bytes/1").await.status, 200);
}

#[tokio::test]
async fn the_inbound_proxy_is_as_strict() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let config = mesh.credentials("shop").client_config(&[gossamer_api::keys::ALPN_TRANSPORT]);
    for (what, request) in HEADS {
        let name = identity_of("web");
        let mut io = client::meshed(web.inbound(), config.clone(), &name, 8080, Some(Session::Http1)).await.unwrap();
        io.write_all(request.as_bytes()).await.unwrap();
        // An abrupt close after the answer is fine: the rest of the request was not read.
        let mut got = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut io, &mut got).await;
        assert!(got.starts_with(b"HTTP/1.1 400 "), "{what}: {:?}", String::from_utf8_lossy(&got));
    }
    assert_eq!(app.count(), 0, "{:?}", app.seen());
    let counted = web.metrics().await.sum("inbound_http_errors_total", &[("error", "bad-request")]);
    assert_eq!(counted, HEADS.len() as f64);
}

#[tokio::test]
async fn a_head_that_is_too_large_gets_431() {
    let (pair, app) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(format!("GET / HTTP/1.1\r\nhost: web\r\nx-a: {}\r\n\r\n", "a".repeat(70_000))).await;
    let got = raw.rest().await.unwrap_or_default();
    assert!(got.starts_with(b"HTTP/1.1 431 "), "{:?}", String::from_utf8_lossy(&got));
    assert!(String::from_utf8_lossy(&got).contains("l5d-proxy-error: head-too-large"));
    // HTTP/2 says the same.
    let mut request = client::grpc_request("web", "/", app::empty());
    request.headers_mut().insert("x-a", "a".repeat(70_000).try_into().unwrap());
    let client = H2::connect(pair.entry()).await;
    let answer = client.send(request).await.unwrap();
    assert_eq!((answer.status, answer.reason(), answer.grpc()), (200, "head-too-large", Some(8)), "{answer:?}");
    let get = http::Request::get("http://web/").header("x-a", "a".repeat(70_000)).body(app::empty()).unwrap();
    let answer = client.send(get).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (431, "head-too-large"), "{answer:?}");
    let metrics = pair.shop.metrics().await;
    assert_eq!(metrics.sum("outbound_http_errors_total", &[("error", "head-too-large")]), 3.0, "{}", metrics.text);
    let answered = [("direction", "outbound"), ("error", "head-too-large"), ("status_code", "431")];
    assert_eq!(metrics.sum("response_total", &answered), 3.0, "{}", metrics.text);
    assert_eq!(app.count(), 0);
}
