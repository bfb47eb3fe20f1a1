//! A replica dies under load without a word, its proxy and its application at once; or it is unwell.

use crate::load::{Load, get};
use gossamer_tests::mesh::Mesh;
use gossamer_tests::{app, client};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_when_an_endpoint_is_killed() {
    let mesh = Mesh::start().await;
    let mut doomed = mesh.workload("web").serve(8080, app::http("web").handler()).start().await;
    let rest = app::http("web");
    let _second = mesh.workload("web").serve(8080, rest.handler()).start().await;
    let _third = mesh.workload("web").serve(8080, rest.handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let load = Load::start(shop.to("web:8080"), 4, get);
    load.more(500).await;
    doomed.kill().await;
    doomed.apps.clear();
    // The control plane has not noticed: the dead one is still among the endpoints.
    load.more(2000).await;
    let before = rest.count();
    load.more(500).await;
    assert!(rest.count() >= before + 450, "the others do all the work");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_get_fails_when_only_the_application_is_killed() {
    let mesh = Mesh::start().await;
    let mut doomed = mesh.workload("web").serve(8080, app::http("web").handler()).start().await;
    let _second = mesh.workload("web").serve(8080, app::http("web").handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let load = Load::start(shop.to("web:8080"), 4, get);
    load.more(500).await;
    doomed.apps.clear();
    load.more(2000).await;
}

#[tokio::test]
async fn an_unwell_application_is_asked_again_by_its_clients_proxy_alone() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    // Two of three attempts fail.
    assert_eq!(client::get(shop.to("web:8080"), "web", "/fail/2/key").await.status, 200);
    assert_eq!(app.count(), 3);
    let failures = [("direction", "inbound"), ("classification", "failure")];
    assert_eq!(web.metrics().await.sum("response_total", &failures), 2.0, "its own proxy hides nothing");
}
