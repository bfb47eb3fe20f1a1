//! What is tried again, what never is, and how often at most.

use crate::{WEB, http_pair};
use gossamer_tests::app::{self, Http};
use gossamer_tests::client::{H1, H2, get_request, post_request};
use gossamer_tests::mesh::{Mesh, Proxy};

async fn annotated(annotations: &[(&str, &str)]) -> (Mesh, Proxy, Proxy, Http) {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let mut spec = mesh.workload("web").serve(8080, app.handler());
    if annotations.iter().any(|(key, _)| key.ends_with("/grpc")) {
        spec = spec.speaks("grpc");
    }
    for (key, value) in annotations {
        spec = spec.annotate(key, value);
    }
    let web = spec.start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    (mesh, web, shop, app)
}

#[tokio::test]
async fn a_get_that_gets_503_is_tried_again() {
    let (pair, app) = http_pair().await;
    let answer = H1::connect(pair.entry()).await.get("web", "/fail/1").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "attempt 2\n"));
    assert_eq!(app.count(), 2);
    let metrics = pair.shop.metrics().await;
    assert_eq!(metrics.sum("outbound_http_route_retry_requests_total", &[]), 1.0);
    assert_eq!(metrics.sum("outbound_http_route_retry_successes_total", &[]), 1.0);
}

/// Proxies on both sides that retried on their own would multiply.
#[tokio::test]
async fn a_get_that_always_gets_503_is_tried_three_times_in_all() {
    let (pair, app) = http_pair().await;
    let answer = H1::connect(pair.entry()).await.get("web", "/fail/99").await;
    assert_eq!((answer.status, answer.header("x-app")), (503, "web"), "the workload's last answer");
    assert_eq!(app.count(), 3);
}

#[tokio::test]
async fn a_post_is_not_tried_again() {
    let (pair, app) = http_pair().await;
    let mut client = H1::connect(pair.entry()).await;
    assert_eq!(client.send(post_request("web", "/fail/1", "x")).await.unwrap().status, 503);
    assert_eq!(client.send(post_request("web", "/drop", "x")).await.unwrap().status, 502);
    assert_eq!(app.count(), 2);
}

#[tokio::test]
async fn a_post_is_tried_again_where_the_service_says_so() {
    let (_mesh, _web, shop, app) = annotated(&[("retry.gossamer.io/http", "5xx")]).await;
    let body = vec![b'b'; 10_000];
    let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/fail/1", body)).await.unwrap();
    assert_eq!((answer.status, app.count()), (200, 2));
}

#[tokio::test]
async fn a_body_too_large_to_keep_is_sent_once() {
    let (_mesh, _web, shop, app) = annotated(&[("retry.gossamer.io/http", "5xx")]).await;
    let body = vec![b'b'; 200_000];
    let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/fail/1", body)).await.unwrap();
    assert_eq!((answer.status, app.count()), (503, 1));
}

#[tokio::test]
async fn a_grpc_call_is_known_by_its_content_type() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    // Nothing is said about what the port speaks.
    let spec = mesh.workload("web").serve(8080, app.handler()).annotate("retry.gossamer.io/grpc", "unavailable");
    let _web = spec.start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let client = H2::connect(shop.to(WEB)).await;
    let answer = client.grpc("web", "/unavailable/1", b"x").await;
    assert_eq!((answer.grpc(), app.count()), (Some(0), 2), "{answer:?}");
    let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/fail/1", "x")).await.unwrap();
    assert_eq!((answer.status, app.count()), (503, 3), "other requests are as they were");
}

#[tokio::test]
async fn a_grpc_call_is_tried_again_where_the_service_says_so() {
    let (_mesh, _web, shop, app) = annotated(&[("retry.gossamer.io/grpc", "unavailable")]).await;
    let answer = H2::connect(shop.to(WEB)).await.grpc("web", "/unavailable/1", b"x").await;
    assert_eq!((answer.grpc(), app.count()), (Some(0), 2), "{answer:?}");
}

#[tokio::test]
async fn a_grpc_status_in_trailers_alone_counts_as_well() {
    let (_mesh, _web, shop, app) = annotated(&[("retry.gossamer.io/grpc", "unavailable")]).await;
    let client = H2::connect(shop.to(WEB)).await;
    let answer = client.grpc("web", "/unavailable-late/1", b"x").await;
    assert_eq!((answer.grpc(), app.count()), (Some(0), 2), "{answer:?}");
    // Once more is allowed; the last answer is the client's, whole.
    let answer = client.grpc("web", "/unavailable-late/9", b"x").await;
    assert_eq!((answer.grpc(), answer.header("grpc-status"), app.count()), (Some(14), "", 4), "{answer:?}");
}

/// Nothing is lost where the trailers come together with the head.
#[tokio::test]
async fn trailers_without_content_reach_the_client() {
    let (pair, app) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    for path in ["/unavailable-late/1", "/unavailable-late/2"] {
        let answer = client.grpc("web", path, b"x").await;
        assert_eq!((answer.status, answer.grpc()), (200, Some(14)), "{path}: {answer:?}");
    }
    assert_eq!(app.count(), 2);
}

#[tokio::test]
async fn a_service_whose_only_endpoint_refuses_fails_within_a_second_and_says_why() {
    let mesh = Mesh::start().await;
    let _gone = mesh.workload("web").port(8080).unmeshed().start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    let start = std::time::Instant::now();
    let answer = client.send(post_request("web", "/", "x")).await.unwrap();
    let took = start.elapsed();
    assert_eq!((answer.status, answer.reason()), (502, "connect"), "{answer:?}");
    // A second, and what a busy machine adds; not the three of endpoints that do not refuse.
    assert!(took < std::time::Duration::from_millis(2900), "{took:?}");
    let mut fastest = took;
    for _ in 0..5 {
        let start = std::time::Instant::now();
        let answer = client.send(post_request("web", "/", "x")).await.unwrap();
        fastest = fastest.min(start.elapsed());
        assert!(answer.header("l5d-proxy-error").contains("refused"), "{answer:?}");
    }
    assert!(fastest < std::time::Duration::from_millis(900), "the next ones wait for nothing: {fastest:?}");
}

/// Nothing was sent yet, so even a POST may go elsewhere.
#[tokio::test]
async fn an_endpoint_that_refuses_connections_is_stepped_around() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _there = mesh.workload("web").serve(8080, app.handler()).start().await;
    let _gone = mesh.workload("web").port(8080).unmeshed().start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    for n in 0..40 {
        let answer = client.send(post_request("web", "/bytes/1", "x")).await.unwrap();
        assert_eq!(answer.status, 200, "{n}: {answer:?}");
    }
    assert_eq!(app.count(), 40);
}

/// The workload behind a living proxy is gone: its proxy answers for it, and another replica is asked.
#[tokio::test]
async fn a_workload_that_is_gone_is_stepped_around() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _there = mesh.workload("web").serve(8080, app.handler()).start().await;
    let _gone = mesh.workload("web").port(8080).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    let start = std::time::Instant::now();
    for n in 0..40 {
        let answer = client.get("web", "/bytes/1").await;
        assert_eq!(answer.status, 200, "{n}: {answer:?}");
    }
    let took = start.elapsed();
    assert!(took < std::time::Duration::from_secs(3), "a dead workload costs no wait: {took:?}");
}

#[tokio::test]
async fn a_budget_bounds_a_storm() {
    let (pair, app) = http_pair().await;
    let mut client = H1::connect(pair.entry()).await;
    let start = std::time::Instant::now();
    for _ in 0..400 {
        let answer = client.send(get_request("web", "/status/503")).await.unwrap();
        assert_eq!(answer.status, 503);
    }
    let retries = app.count() - 400;
    // A fifth of the requests, ten a second, and what the window of ten seconds held at the start.
    let allowed = 400 / 5 + 100 + 10 * (start.elapsed().as_secs() as usize + 1);
    assert!(retries > 20 && retries <= allowed, "{retries} retries, {allowed} allowed");
    let refused = pair.shop.metrics().await.sum("outbound_http_route_retry_overflow_total", &[]);
    assert!(refused > 100.0, "{refused}");
}
