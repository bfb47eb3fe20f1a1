//! HTTP/1 through a pair of proxies.

use gossamer_tests::mesh::Mesh;
use gossamer_tests::{app, client};

#[tokio::test]
async fn a_request_passes_through_both_proxies() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let answer = client::get(shop.to("web:8080"), "web", "/head").await;
    assert_eq!((answer.status, answer.header("x-app")), (200, "web"), "{answer:?}");
    assert!(answer.text().contains("l5d-client-id: shop.test."), "{}", answer.text());
    assert_eq!(web.metrics().await.sum("request_total", &[("direction", "inbound"), ("tls", "true")]), 1.0);
}
