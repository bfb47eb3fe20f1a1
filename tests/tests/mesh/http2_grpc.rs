//! HTTP/2 and gRPC through a pair of proxies.

use crate::{Pair, http_pair};
use futures_util::future::join_all;
use gossamer_tests::app::{self, FLOOD, channel, empty, full};
use gossamer_tests::client::{H2, grpc_frame, grpc_request};
use gossamer_tests::expect::{becomes, eventually, within};
use http::Request;
use http_body_util::BodyExt;
use std::cell::Cell;
use std::time::Duration;

#[tokio::test]
async fn a_unary_call_has_its_trailers() {
    let (pair, app) = http_pair().await;
    let answer = H2::connect(pair.entry()).await.grpc("web", "/echo", b"hello").await;
    assert_eq!((answer.status, answer.grpc()), (200, Some(0)), "{answer:?}");
    assert_eq!(answer.body, grpc_frame(b"hello"));
    let seen = app.seen();
    assert_eq!((seen[0].version.as_str(), seen[0].headers["te"].to_str().unwrap()), ("HTTP/2.0", "trailers"));
    assert!(seen[0].headers["l5d-client-id"].to_str().unwrap().starts_with("shop.test."));
    assert!(!answer.trailers.is_empty(), "in trailers, not in the head: {answer:?}");
}

#[tokio::test]
async fn both_sides_stream_at_the_same_time() {
    let (pair, _) = http_pair().await;
    let (sender, body) = channel();
    let client = H2::connect(pair.entry()).await;
    let mut response = within("the head", client.start(grpc_request("web", "/echo", body))).await.unwrap().into_body();
    for n in 0..20u8 {
        sender.data(grpc_frame(&[n])).await;
        let frame = within("its echo", response.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), grpc_frame(&[n]));
    }
    drop(sender);
    let trailers = within("the trailers", response.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

/// A workload that takes few requests at once: others wait their turn, and not for ever.
#[tokio::test]
async fn requests_beyond_all_streams_of_a_workload_queue_and_fail_in_time() {
    let app = app::http("web").streams(1);
    let pair = Pair::new(app.handler()).await;
    let client = H2::connect(pair.entry()).await;
    let slow = |path: &'static str| client.grpc("web", path, b"x");
    // Nine connections would be one too many: the ninth request waits for the first to be over.
    let answers = join_all((0..24).map(|_| slow("/slow/100"))).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.reason().is_empty()), "{answers:?}");
    assert!(pair.web.apps[0].accepted() <= 8, "{} connections", pair.web.apps[0].accepted());

    let start = std::time::Instant::now();
    let hanging = join_all((0..8).map(|_| client.start(grpc_request("web", "/hang", empty()))));
    let others = async {
        becomes(24 + 8, || async { app.count() }).await;
        join_all((0..4).map(|_| slow("/echo"))).await
    };
    let answers = tokio::select! {
        _ = hanging => panic!("they hang"),
        answers = others => answers,
    };
    for answer in answers {
        assert_eq!((answer.grpc(), answer.reason()), (Some(14), "overloaded"), "{answer:?}");
    }
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(6), "{took:?}");
    // There is room again as soon as somebody leaves.
    becomes(8, || async { app.given_up() }).await;
    assert_eq!(client.grpc("web", "/echo", b"x").await.grpc(), Some(0));
}

#[tokio::test]
async fn a_reset_of_the_client_reaches_the_workload() {
    let (pair, app) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    let call = tokio::spawn({
        let client = client.clone();
        async move { client.start(grpc_request("web", "/hang", empty())).await.map(drop) }
    });
    becomes(1, || async { app.count() }).await;
    call.abort();
    becomes(1, || async { app.given_up() }).await;
    // The connection, and its other streams, live.
    assert_eq!(client.get("web", "/bytes/1").await.status, 200);
}

#[tokio::test]
async fn a_reset_of_the_workload_reaches_the_client() {
    let (pair, _) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    let error = client.send(Request::post("http://web/cut").body(empty()).unwrap()).await;
    assert!(error.is_err(), "{error:?}");
    let error = client.send(Request::post("http://web/drop").body(empty()).unwrap()).await.unwrap();
    assert_eq!((error.status, error.reason()), (502, "upstream"), "{error:?}");
    assert_eq!(client.get("web", "/bytes/1").await.status, 200);
}

#[tokio::test]
async fn a_workload_that_says_goodbye_loses_no_request() {
    let app = app::http("web").goodbye_after(7);
    let pair = Pair::new(app.handler()).await;
    let client = H2::connect(pair.entry()).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        // What may not be repeated, so only what nobody has taken is sent elsewhere.
        calls.spawn(async move {
            for n in 0..25 {
                let answer = client.grpc("web", "/echo", b"x").await;
                assert_eq!(answer.grpc(), Some(0), "{n}: {answer:?}");
            }
        });
    }
    within("all calls", calls.join_all()).await;
    assert_eq!(app.count(), 200);
    assert!(pair.web.apps[0].accepted() > 10, "{} connections", pair.web.apps[0].accepted());
}

#[tokio::test]
async fn uploads_to_a_slow_reader_do_not_grow_memory() {
    let (pair, _) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    client.get("web", "/bytes/1").await;
    let before = (pair.shop.memory(), pair.web.memory());
    let block = bytes::Bytes::from(vec![b'u'; 64 * 1024]);
    let mut uploads = Vec::new();
    let mut taken = 0;
    for _ in 0..20 {
        let (sender, body) = channel();
        let client = client.clone();
        // The workload never reads it.
        let asked = tokio::spawn(async move { client.start(grpc_request("web", "/hang", body)).await });
        // Until nobody takes more of it.
        while tokio::time::timeout(Duration::from_millis(300), sender.data(block.clone())).await.is_ok() {
            taken += block.len();
            assert!(taken < 512 << 20, "somebody takes all of it");
        }
        uploads.push((sender, asked));
    }
    for (proxy, before) in [(&pair.shop, before.0), (&pair.web, before.1)] {
        let grown = proxy.memory().saturating_sub(before);
        assert!(grown < 24 << 20, "{}: {} MiB after {} MiB of uploads", proxy.name, grown >> 20, taken >> 20);
    }
    // Others pass meanwhile.
    assert_eq!(client.get("web", "/bytes/1000").await.body.len(), 1000);
}

#[tokio::test]
async fn a_slow_reader_does_not_grow_memory() {
    let (pair, app) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    assert_eq!(client.get("web", "/bytes/1").await.status, 200);
    let before = (pair.shop.memory(), pair.web.memory());
    let chunks = 128 << 20 >> FLOOD.trailing_zeros();
    let request = Request::get(format!("http://web/flood/{chunks}")).body(empty()).unwrap();
    let response = within("the head", client.start(request)).await.unwrap();
    // Nothing is read. The workload stops when all windows and socket buffers between are full.
    let last = Cell::new((0, 0));
    eventually("the workload is held back", || async {
        let produced = app.produced();
        let (seen, times) = last.get();
        last.set(if produced == seen && produced > 0 { (seen, times + 1) } else { (produced, 0) });
        (last.get().1 >= 30).then_some(())
    })
    .await;
    let produced = app.produced();
    assert!(produced < 24 << 20, "{produced} bytes were taken from the workload");
    for (proxy, before) in [(&pair.shop, before.0), (&pair.web, before.1)] {
        let grown = proxy.memory().saturating_sub(before);
        assert!(grown < 12 << 20, "{} grew by {grown} bytes", proxy.name);
    }
    // Other streams of the same connection are not held back.
    assert_eq!(client.get("web", "/bytes/100000").await.body.len(), 100_000);
    let body = within("the rest", response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(body.len(), 128 << 20);
}

#[tokio::test]
async fn messages_of_megabytes_pass() {
    let (pair, _) = http_pair().await;
    let message = vec![7; 8 << 20];
    let answer = H2::connect(pair.entry()).await.grpc("web", "/echo", &message).await;
    assert_eq!((answer.grpc(), answer.body.len()), (Some(0), message.len() + 5));
}

#[tokio::test]
async fn two_hundred_streams_at_once() {
    let (pair, app) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    // At most a hundred requests may wait for the first word of discovery.
    assert_eq!(client.get("web", "/bytes/1").await.status, 200);
    let calls = (0..200u8).map(|n| {
        let client = client.clone();
        async move {
            let answer = client.grpc("web", "/echo", &[n; 100]).await;
            assert_eq!((answer.grpc(), &answer.body[5..]), (Some(0), &[n; 100][..]));
        }
    });
    join_all(calls).await;
    assert_eq!(app.count(), 201);
    let opened = pair.shop.metrics().await.sum("tcp_open_total", &[("direction", "outbound"), ("peer", "dst")]);
    assert_eq!(opened, 1.0, "they share one connection between the proxies");
}

#[tokio::test]
async fn trailers_of_a_request_pass() {
    let (pair, _) = http_pair().await;
    let (sender, body) = channel();
    let client = H2::connect(pair.entry()).await;
    let request = Request::post("http://web/echo").body(body).unwrap();
    let call = tokio::spawn(async move { client.send(request).await });
    sender.data("x").await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", "42".parse().unwrap());
    sender.trailers(trailers).await;
    drop(sender);
    let answer = call.await.unwrap().unwrap();
    assert_eq!((answer.text().as_str(), answer.trailers["x-checksum"].as_bytes()), ("x", &b"42"[..]));
}

#[tokio::test]
async fn plain_http2_requests_are_no_grpc() {
    let (pair, _) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    let request = Request::post("http://web/echo").header("x-a", "1").body(full("hello")).unwrap();
    let answer = client.send(request).await.unwrap();
    assert_eq!((answer.text().as_str(), answer.grpc()), ("hello", None));
}
