//! A replica dies under load without a word: its proxy and its application at once.

use crate::load::{Load, get};
use gossamer_tests::app;
use gossamer_tests::mesh::Mesh;

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
