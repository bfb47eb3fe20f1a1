//! Which endpoint a request goes to: fast ones more, broken ones not, and none of them is needed for ever.

use crate::WEB;
use futures_util::future::join_all;
use gossamer_tests::app::{self, Http, full};
use gossamer_tests::client::{H1, H2, post_request};
use gossamer_tests::expect::{becomes, eventually};
use gossamer_tests::mesh::{Mesh, Proxy};
use http::Request;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

async fn replica(mesh: &Mesh, app: &Http) -> Proxy {
    mesh.workload("web").serve(8080, app.handler()).start().await
}

async fn post(client: &mut H1) -> u16 {
    client.send(post_request("web", "/bytes/1", "x")).await.expect("an answer").status
}

#[tokio::test]
async fn a_faster_endpoint_gets_more() {
    let mesh = Mesh::start().await;
    // Far slower than what a busy machine makes of the fast one.
    let (fast, slow) = (app::http("fast"), app::http("slow").slow(Duration::from_millis(400)));
    let _replicas = (replica(&mesh, &fast).await, replica(&mesh, &slow).await);
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let entry = shop.to(WEB);
    join_all((0..8).map(|_| async move {
        let mut client = H1::connect(entry).await;
        for _ in 0..40 {
            assert_eq!(post(&mut client).await, 200);
        }
    }))
    .await;
    assert_eq!(fast.count() + slow.count(), 320);
    assert!(fast.count() > 4 * slow.count(), "fast {}, slow {}", fast.count(), slow.count());
    assert!(slow.count() > 0, "the slow one is measured, too");
}

#[tokio::test]
async fn requests_of_one_connection_go_to_all_endpoints() {
    let mesh = Mesh::start().await;
    let apps = [app::http("a"), app::http("b"), app::http("c")];
    let _replicas = join_all(apps.iter().map(|app| replica(&mesh, app))).await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let client = H2::connect(shop.to(WEB)).await;
    // Ten at a time: the first answers are slow, and one after the other they would tell the endpoints apart for long. An
    // answer that a busy machine has held up is forgotten within seconds.
    eventually("all are asked", || async {
        join_all((0..10).map(|_| client.get("web", "/bytes/1"))).await;
        apps.iter().all(|app| app.count() > 20).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_that_only_fails_is_ejected() {
    let mesh = Mesh::start().await;
    // The one that fails looks the better one, also when its first answer was held up.
    let (good, bad) = (app::http("good").slow(Duration::from_millis(30)), app::http("bad").broken());
    let _replicas = (replica(&mesh, &good).await, replica(&mesh, &bad).await);
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let client = H2::connect(shop.to(WEB)).await;
    let mut failures = 0;
    for _ in 0..40 {
        let post = || Request::post("http://web/bytes/1").body(full("x")).unwrap();
        let answers = join_all((0..10).map(|_| client.send(post()))).await;
        failures += answers.into_iter().filter(|answer| answer.as_ref().unwrap().status != 200).count();
    }
    // Seven in a row, what was in flight, and a probe after each probation, of which the first is a second long.
    assert!((7..40).contains(&failures), "{failures} of 400 failed");
    assert_eq!(failures, bad.count());
    let ejections = shop.metrics().await.sum("outbound_http_balancer_ejections_total", &[]);
    assert!(ejections >= 1.0, "{ejections}");
}

#[tokio::test]
async fn the_last_endpoint_is_never_ejected() {
    let mesh = Mesh::start().await;
    let bad = app::http("bad").broken();
    let _replica = replica(&mesh, &bad).await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    for _ in 0..30 {
        assert_eq!(post(&mut client).await, 500, "the workload's own answer, not the proxy's");
    }
    assert_eq!(bad.count(), 30);
}

#[tokio::test]
async fn endpoints_come_and_go_under_load_without_a_failure() {
    let mesh = Mesh::start().await;
    let apps = [app::http("a"), app::http("b")];
    let mut first = replica(&mesh, &apps[0]).await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let load = Load::start(shop.to(WEB), 4);
    eventually("the first gets requests", || async { (apps[0].count() > 50).then_some(()) }).await;
    let _second = replica(&mesh, &apps[1]).await;
    eventually("the second gets requests", || async { (apps[1].count() > 50).then_some(()) }).await;
    first.deregister();
    first.terminate();
    assert!(first.ended().await.success());
    let before = apps[1].count();
    eventually("the second gets all of them", || async { (apps[1].count() > before + 200).then_some(()) }).await;
    assert_eq!(load.stop().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_service_that_appears_later_is_reached() {
    let mesh = Mesh::start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let mut client = H1::connect(shop.to(WEB)).await;
    assert_eq!(post(&mut client).await, 503);
    let app = app::http("web");
    let _web = replica(&mesh, &app).await;
    let entry = shop.to(WEB);
    becomes(200, || async move { post(&mut H1::connect(entry).await).await }).await;
}

/// Clients that post one request after the other.
struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

impl Load {
    fn start(entry: SocketAddr, clients: usize) -> Load {
        let mut load = Load { stop: Arc::default(), sent: Arc::default(), clients: JoinSet::new() };
        for _ in 0..clients {
            let (stop, sent) = (load.stop.clone(), load.sent.clone());
            load.clients.spawn(async move {
                let mut failures = Vec::new();
                let mut client = H1::connect(entry).await;
                while !stop.load(Ordering::Relaxed) {
                    match client.send(post_request("web", "/bytes/1", "x")).await {
                        Ok(answer) if answer.status == 200 => {}
                        other => failures.push(format!("{other:?}")),
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                failures
            });
        }
        load
    }

    /// What went wrong.
    async fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await.concat()
    }
}
