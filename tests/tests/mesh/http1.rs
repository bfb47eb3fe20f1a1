//! HTTP/1 through a pair of proxies, which carry it as HTTP/2 between them.

use crate::{WEB, http_pair};
use futures_util::future::join_all;
use gossamer_tests::app::{self, channel, empty, full};
use gossamer_tests::client::{self, H1, Raw, get_request, post_request};
use gossamer_tests::expect::{becomes, within};
use gossamer_tests::loopback;
use gossamer_tests::mesh::{Mesh, authority};
use http::{HeaderMap, Request};
use std::net::{Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_request_passes_through_both_proxies() {
    let (pair, _) = http_pair().await;
    let answer = client::get(pair.entry(), "web", "/head?q=1").await;
    assert_eq!((answer.status, answer.header("x-app")), (200, "web"), "{answer:?}");
    let head = answer.text();
    assert!(head.starts_with("GET /head?q=1 HTTP/1.1\n"), "{head}");
    assert!(head.contains("\nhost: web\n") && head.contains("\nl5d-client-id: shop.test."), "{head}");
    let metrics = pair.web.metrics().await;
    assert_eq!(metrics.sum("request_total", &[("direction", "inbound"), ("tls", "true")]), 1.0);
}

/// A client whose local port is one of IPv6.
#[tokio::test]
async fn an_explicit_port_may_be_one_of_ipv6() {
    let entry = SocketAddr::from((Ipv6Addr::LOCALHOST, loopback::quiet_port()));
    let Ok(listener) = std::net::TcpListener::bind(entry) else {
        assert!(std::env::var_os("CI").is_none(), "this machine has no IPv6");
        // Not by a macro, whose words are only shown when a test fails.
        let _ = std::io::Write::write_all(&mut std::io::stderr(), b"SKIPPED: this machine has no IPv6\n");
        return;
    };
    drop(listener);
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let forward = format!("{entry}={}", authority(WEB));
    let _shop = mesh.workload("shop").set("forward", &forward).start().await;
    let answer = H1::connect(entry).await.get("web", "/head").await;
    assert!(answer.status == 200 && answer.text().contains("l5d-client-id: shop.test."), "{answer:?}");
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let (pair, app) = http_pair().await;
    let mut client = H1::connect(pair.entry()).await;
    for n in 0..5 {
        let answer = client.send(post_request("web", "/echo", format!("body {n}"))).await.unwrap();
        assert_eq!(answer.text(), format!("body {n}"));
    }
    assert_eq!(app.count(), 5);
    let accepted = pair.shop.metrics().await.sum("tcp_open_total", &[("direction", "outbound"), ("peer", "src")]);
    assert_eq!(accepted, 1.0);
    assert_eq!(pair.web.apps[0].accepted(), 1, "the workload's connection is reused, too");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    let request = |n| format!("POST /slow/{n} HTTP/1.1\r\nhost: web\r\ncontent-length: 2\r\n\r\nab");
    let echo = |n| format!("POST /echo HTTP/1.1\r\nhost: web\r\ncontent-length: 1\r\n\r\n{n}");
    raw.send([request(30), echo(1), echo(2), echo(3)].concat()).await;
    assert_eq!(raw.answer().await.text(), "slow\n");
    for n in 1..=3 {
        assert_eq!(raw.answer().await.text(), n.to_string());
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(
        "POST /echo HTTP/1.1\r\nhost: web\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-checksum\r\n\r\n",
    )
    .await;
    raw.send("5;ext=1\r\nhello\r\n").await;
    raw.send("6\r\n world\r\n0\r\nx-checksum: 42\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello world"));
    assert_eq!(answer.trailers.get("x-checksum").map(|value| value.as_bytes()), Some(&b"42"[..]), "{answer:?}");
    // The connection is in step afterwards.
    raw.send("GET /bytes/3 HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert_eq!(raw.answer().await.text(), "xxx");
}

#[tokio::test]
async fn a_body_is_streamed_as_it_comes() {
    let (pair, _) = http_pair().await;
    let (sender, body) = channel();
    let request = Request::post("/echo").header("host", "web").body(body).unwrap();
    let mut client = H1::connect(pair.entry()).await;
    sender.data("first").await;
    let mut response = within("the head before the request's end", client.start(request)).await.unwrap();
    for word in ["first", "second", "third"] {
        if word != "first" {
            sender.data(word).await;
        }
        let frame = within("an echo", http_body_util::BodyExt::frame(response.body_mut())).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    drop(sender);
    assert!(within("the end", http_body_util::BodyExt::frame(response.body_mut())).await.is_none());
}

#[tokio::test]
async fn responses_without_a_body_keep_the_connection_in_step() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    for (method, path, status) in
        [("HEAD", "/bytes/10", 200), ("GET", "/status/204", 204), ("GET", "/status/304", 304), ("GET", "/bytes/0", 200)]
    {
        raw.send(format!("{method} {path} HTTP/1.1\r\nhost: web\r\n\r\n")).await;
        let answer = raw.answer_to(method).await;
        assert_eq!((answer.status, answer.body.len()), (status, 0), "{method} {path}");
        if method == "HEAD" {
            assert_eq!(answer.header("content-length"), "10");
        }
    }
    raw.send("GET /bytes/2 HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert_eq!(raw.answer().await.text(), "xx");
}

#[tokio::test]
async fn expect_100_continue_is_the_workloads_to_answer() {
    let (pair, _) = http_pair().await;
    let head =
        |path: &str| format!("POST {path} HTTP/1.1\r\nhost: web\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n");
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(head("/read")).await;
    assert_eq!(raw.head().await.0, 100);
    raw.send("body").await;
    assert_eq!(raw.answer().await.text(), "body");
    // One that does not want the body says so at once, and no 100 is made up on the way.
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(head("/early")).await;
    assert_eq!(raw.head().await.0, 413);
}

#[tokio::test]
async fn http_1_0_gets_no_chunks_and_a_close() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send("GET /trailers HTTP/1.0\r\nhost: web\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "body"));
    assert!(answer.headers.get("transfer-encoding").is_none(), "{answer:?}");
    assert!(raw.ends().await);
}

#[tokio::test]
async fn connection_close_is_kept() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send("GET /bytes/2 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.text().as_str(), answer.header("connection")), ("xx", "close"));
    assert!(raw.ends().await);
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send("GET /upgrade HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly").await;
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.header("upgrade")), (101, "websocket"), "{answer:?}");
    assert!(answer.header("connection").eq_ignore_ascii_case("upgrade"), "{answer:?}");
    assert_eq!(raw.exactly(5).await, "early");
    raw.send([0x81, 0x00, 0xff]).await;
    assert_eq!(raw.exactly(3).await[..], [0x81, 0x00, 0xff]);
    raw.finish().await;
    assert!(raw.ends().await);
}

#[tokio::test]
async fn connect_opens_a_tunnel() {
    let (pair, app) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send("CONNECT web:8080 HTTP/1.1\r\nhost: web:8080\r\n\r\n").await;
    let answer = raw.answer_to("CONNECT").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    raw.send("through the tunnel").await;
    assert_eq!(raw.exactly(18).await, "through the tunnel");
    assert_eq!((app.seen()[0].method.as_str(), app.seen()[0].uri.as_str()), ("CONNECT", "web:8080"));
}

#[tokio::test]
async fn absolute_form_reaches_the_workload_with_its_host() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    // The target's host counts, not the field (RFC 9112 section 3.2.2).
    raw.send("GET http://web.example/head?q HTTP/1.1\r\nhost: other\r\n\r\n").await;
    let head = raw.answer().await.text();
    assert!(head.starts_with("GET ") && head.contains("/head?q HTTP/1.1\n"), "{head}");
    assert!(head.contains("\nhost: web.example\n") && !head.contains("other"), "{head}");
}

#[tokio::test]
async fn hop_by_hop_fields_stay_behind() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(
        "GET /head HTTP/1.1\r\nhost: web\r\nconnection: x-hop, keep-alive, l5d-x\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
         proxy-connection: keep-alive\r\nte: gzip\r\nx-end: 1\r\nx-end: 2\r\n\r\n",
    )
    .await;
    let head = raw.answer().await.text();
    for gone in ["x-hop", "keep-alive", "proxy-connection", "te:", "connection"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    assert!(head.contains("x-end: 1\nx-end: 2\n"), "{head}");
}

#[tokio::test]
async fn ten_megabytes_pass_both_ways() {
    let (pair, _) = http_pair().await;
    let body: Vec<u8> = (0..10 << 20).map(|n: u32| (n ^ (n >> 8)) as u8).collect();
    let mut client = H1::connect(pair.entry()).await;
    let answer = client.send(post_request("web", "/echo", body.clone())).await.unwrap();
    assert!(answer.body == body, "{} bytes", answer.body.len());
}

#[tokio::test]
async fn an_early_response_does_not_wait_for_the_body() {
    let (pair, _) = http_pair().await;
    let (_sender, body) = channel();
    let request = Request::post("/early").header("host", "web").body(body).unwrap();
    let response = within("the answer", H1::connect(pair.entry()).await.start(request)).await.unwrap();
    assert_eq!(response.status(), 413);
}

#[tokio::test]
async fn a_response_cut_short_is_never_passed_off_as_complete() {
    let (pair, _) = http_pair().await;
    let error = H1::connect(pair.entry()).await.send(get_request("web", "/cut")).await;
    assert!(error.is_err(), "{error:?}");
}

#[tokio::test]
async fn a_broken_connection_of_the_workload_is_a_502() {
    let (pair, _) = http_pair().await;
    let answer = H1::connect(pair.entry()).await.send(post_request("web", "/drop", "x")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (502, "upstream"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_gives_up_cancels_its_request() {
    let (pair, app) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send("GET /hang HTTP/1.1\r\nhost: web\r\n\r\n").await;
    becomes(1, || async { app.count() }).await;
    drop(raw);
    becomes(1, || async { app.given_up() }).await;
}

#[tokio::test]
async fn many_connections_at_once() {
    let (pair, app) = http_pair().await;
    let entry = pair.entry();
    let clients = (0..50).map(|n| async move {
        let mut client = H1::connect(entry).await;
        for _ in 0..4 {
            let answer = client.send(post_request("web", "/echo", vec![n as u8; 1000])).await.unwrap();
            assert!(answer.status == 200 && answer.body.iter().all(|byte| *byte == n as u8));
        }
    });
    join_all(clients).await;
    assert_eq!(app.count(), 200);
}

#[tokio::test]
async fn trailers_of_an_http1_response_are_kept() {
    let (pair, _) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send("GET /trailers HTTP/1.1\r\nhost: web\r\nte: trailers\r\n\r\n").await;
    let answer = raw.answer().await;
    assert_eq!((answer.text().as_str(), answer.trailers.len()), ("body", 1), "{answer:?}");
}

#[tokio::test]
async fn a_service_that_speaks_plain_http1_only_is_reached_unmeshed() {
    let mesh = gossamer_tests::mesh::Mesh::start().await;
    let app = gossamer_tests::app::http("plain");
    let _web = mesh.workload("web").serve(8080, app.handler()).unmeshed().start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let request = Request::get("/head").header("host", "web").body(empty()).unwrap();
    let answer = H1::connect(shop.to("web:8080")).await.send(request).await.unwrap();
    assert_eq!((answer.status, answer.header("x-app")), (200, "plain"));
    assert!(!answer.text().contains("l5d-"), "{}", answer.text());
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "1".parse().unwrap());
    let request = Request::post("/echo").header("host", "web").body(full("hi")).unwrap();
    assert_eq!(H1::connect(shop.to("web:8080")).await.send(request).await.unwrap().text(), "hi");
}

#[tokio::test]
async fn a_head_in_many_pieces_is_one_request() {
    let (pair, _) = http_pair().await;
    let mut io = tokio::net::TcpStream::connect(pair.entry()).await.unwrap();
    io.set_nodelay(true).unwrap();
    for byte in b"GET /bytes/1 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n" {
        io.write_all(&[*byte]).await.unwrap();
        io.flush().await.unwrap();
    }
    let mut text = String::new();
    within("the answer", io.read_to_string(&mut text)).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 ") && text.ends_with("\r\n\r\nx"), "{text}");
}
