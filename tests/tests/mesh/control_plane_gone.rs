//! Without a control plane what is known goes on, what is not fails soon with a reason, and all is well when it returns.

use crate::WEB;
use gossamer_tests::app;
use gossamer_tests::client::{self, H1, Raw, post_request};
use gossamer_tests::expect::becomes;
use gossamer_tests::mesh::Mesh;
use std::time::{Duration, Instant};

const UNKNOWN: &str = "other:8080";

#[tokio::test]
async fn known_services_go_on_and_unknown_ones_fail_soon() {
    let mesh = Mesh::start().await;
    let (app, other) = (app::http("web"), app::http("other"));
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let _other = mesh.workload("other").serve(8080, other.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).calls(UNKNOWN).start().await;
    let mut open = H1::connect(shop.to(WEB)).await;
    assert_eq!(open.get("web", "/bytes/1").await.status, 200);

    mesh.kill_control_plane();
    for _ in 0..20 {
        assert_eq!(open.get("web", "/bytes/1").await.status, 200);
        assert_eq!(client::get(shop.to(WEB), "web", "/bytes/1").await.status, 200, "on a new connection");
    }
    let start = Instant::now();
    let request = post_request("other", "/bytes/1", "x");
    let answer = H1::connect(shop.to(UNKNOWN)).await.send(request).await.unwrap();
    let took = start.elapsed();
    assert_eq!((answer.status, answer.reason()), (503, "discovery"), "{answer:?}");
    // A second, and what a busy machine adds; not the three that others wait.
    assert!(took < Duration::from_millis(2900), "{took:?}");
    assert_eq!(other.count(), 0, "not without mutual TLS");
    let mut raw = Raw::connect(shop.to(UNKNOWN)).await;
    raw.send(b"\x00bytes").await;
    assert!(raw.ends().await);
    assert_eq!(client::get(shop.admin(), "proxy", "/ready").await.status, 200, "what it knows, it knows still");

    mesh.start_control_plane().await;
    let entry = shop.to(UNKNOWN);
    becomes(200, || async move { client::get(entry, "other", "/bytes/1").await.status }).await;
    assert_eq!(open.get("web", "/bytes/1").await.status, 200);
}

#[tokio::test]
async fn a_proxy_that_starts_without_a_control_plane_is_ready_once_that_is_there() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let spec = mesh.workload("shop").calls(WEB);
    mesh.kill_control_plane();
    let shop = spec.start_unready().await;
    becomes(Some(503), || async { Some(client::try_get(shop.admin(), "proxy", "/ready").await.ok()?.status) }).await;
    mesh.start_control_plane().await;
    shop.ready().await;
    assert_eq!(client::get(shop.to(WEB), "web", "/bytes/1").await.status, 200);
}

#[tokio::test]
async fn changes_made_meanwhile_are_seen_after_its_return() {
    let mesh = Mesh::start().await;
    let (first, second) = (app::http("first"), app::http("second"));
    let mut old = mesh.workload("web").serve(8080, first.handler()).start().await;
    let new = mesh.workload("web").serve(8080, second.handler()).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    assert_eq!(client::get(shop.to(WEB), "web", "/bytes/1").await.status, 200);
    mesh.kill_control_plane();
    old.deregister();
    mesh.start_control_plane().await;
    let entry = shop.to(WEB);
    // Twenty in a row that all go to the one that is left.
    becomes(true, || async {
        let before = second.count();
        for _ in 0..20 {
            assert_eq!(client::get(entry, "web", "/bytes/1").await.status, 200);
        }
        second.count() == before + 20
    })
    .await;
    drop(new);
}
