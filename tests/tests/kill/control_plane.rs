//! The control plane dies under load and comes back.

use crate::load::{Load, get};
use gossamer_tests::app;
use gossamer_tests::client::H1;
use gossamer_tests::expect::eventually;
use gossamer_tests::mesh::Mesh;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_the_control_plane_is_gone_and_back() {
    let mesh = Mesh::start().await;
    let first = app::http("web");
    let mut web = mesh.workload("web").serve(8080, first.handler()).start().await;
    let _more = mesh.workload("web").serve(8080, app::http("web").handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let load = Load::start(shop.to("web:8080"), 4, get);
    load.more(500).await;
    mesh.kill_control_plane();
    load.more(2000).await;
    mesh.start_control_plane().await;
    load.more(500).await;

    // The proxies hear the new one: who joins gets requests, who leaves gets none.
    let joined = app::http("web");
    let _joined = mesh.workload("web").serve(8080, joined.handler()).start().await;
    eventually("the new replica is used", || async { (joined.count() > 0).then_some(()) }).await;
    web.deregister();
    eventually("the old replica is not used", || async {
        let before = first.count();
        load.more(200).await;
        (first.count() == before).then_some(())
    })
    .await;
    load.unharmed();
}

/// As a process of its own, killed as the kernel kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_notices_that_the_control_planes_process_is_killed_and_started_again() {
    let mesh = Mesh::apart().await;
    let _web = mesh.workload("web").serve(8080, app::http("web").handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    // It reads its folder in its own time; afterwards it must not forget.
    eventually("the service is known", || async {
        (H1::connect(shop.to("web:8080")).await.get("web", "/bytes/1").await.status == 200).then_some(())
    })
    .await;
    let load = Load::start(shop.to("web:8080"), 4, get);
    load.more(500).await;
    for _ in 0..3 {
        mesh.kill_control_plane();
        load.more(1000).await;
        mesh.start_control_plane().await;
        load.more(500).await;
    }
    let joined = app::http("web");
    let _joined = mesh.workload("web").serve(8080, joined.handler()).start().await;
    eventually("the new replica is used", || async { (joined.count() > 0).then_some(()) }).await;
    load.unharmed();
}
