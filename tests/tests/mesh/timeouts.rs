//! How long things may take.

use crate::WEB;
use gossamer_tests::app::{self, Http, channel};
use gossamer_tests::client::{Answer, H1, H2, grpc_request, post_request};
use gossamer_tests::expect::{becomes, within};
use gossamer_tests::mesh::{Mesh, Proxy};
use std::time::{Duration, Instant};

async fn with(annotations: &[(&str, &str)]) -> (Mesh, Proxy, Proxy, Http) {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let mut spec = mesh.workload("web").serve(8080, app.handler());
    for (key, value) in annotations {
        spec = spec.annotate(key, value);
    }
    let web = spec.start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    (mesh, web, shop, app)
}

async fn post(shop: &Proxy, path: &str) -> Answer {
    H1::connect(shop.to(WEB)).await.send(post_request("web", path, "x")).await.unwrap()
}

#[tokio::test]
async fn a_request_that_takes_too_long_gets_504_and_is_cancelled() {
    // Long enough for the request to reach the workload, also on a busy machine.
    let (_mesh, _web, shop, app) = with(&[("timeout.gossamer.io/request", "1s")]).await;
    let start = Instant::now();
    let answer = post(&shop, "/hang").await;
    let took = start.elapsed();
    assert_eq!((answer.status, answer.reason()), (504, "timeout"), "{answer:?}");
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "{took:?}");
    becomes(1, || async { app.given_up() }).await;
    assert_eq!(post(&shop, "/slow/1").await.status, 200);
}

#[tokio::test]
async fn a_grpc_client_gets_deadline_exceeded() {
    let (_mesh, _web, shop, _) = with(&[("timeout.gossamer.io/request", "200ms")]).await;
    let answer = H2::connect(shop.to(WEB)).await.grpc("web", "/hang", b"x").await;
    assert_eq!((answer.status, answer.grpc(), answer.reason()), (200, Some(4), "timeout"), "{answer:?}");
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_made_again() {
    // The second attempt has as much time, which is enough on a busy machine, too.
    let settings =
        [("retry.gossamer.io/timeout", "2s"), ("retry.gossamer.io/http", "5xx"), ("retry.gossamer.io/limit", "2")];
    let (_mesh, _web, shop, app) = with(&settings).await;
    let answer = post(&shop, "/slow-once/15000").await;
    assert_eq!((answer.status, app.count()), (200, 2), "{answer:?}");
}

#[tokio::test]
async fn silence_within_a_stream_ends_it() {
    let idle = Duration::from_secs(2);
    let (_mesh, _web, shop, _) = with(&[("timeout.gossamer.io/idle", "2s")]).await;
    let client = H2::connect(shop.to(WEB)).await;
    let (sender, body) = channel();
    let mut response = within("the head", client.start(grpc_request("web", "/echo", body))).await.unwrap();
    for _ in 0..4 {
        // Bytes now and then keep it alive, for longer than that in all.
        tokio::time::sleep(idle / 3).await;
        sender.data("x").await;
        let frame = within("an echo", http_body_util::BodyExt::frame(response.body_mut())).await.unwrap();
        assert!(frame.is_ok());
    }
    let end = within("the end", http_body_util::BodyExt::frame(response.body_mut())).await;
    assert!(matches!(end, Some(Err(_))), "{end:?}");
}

#[tokio::test]
async fn without_a_timeout_a_request_may_take_its_time() {
    let (_mesh, _web, shop, _) = with(&[]).await;
    assert_eq!(post(&shop, "/slow/1500").await.status, 200);
}
