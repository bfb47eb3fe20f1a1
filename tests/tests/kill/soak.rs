//! At full speed the memory of both proxies stays flat.

use crate::load::{Load, get, post};
use gossamer_tests::app;
use gossamer_tests::mesh::Mesh;
use std::time::Duration;
use tokio::time::sleep;

/// Allocators keep some of what was freed, and the system counts in pages. Two minutes are 700,000 requests even of a
/// debug build on a busy machine: a leak of three bytes per request shows.
const SLACK: u64 = 2 << 20;

async fn stays_flat(warm_up: Duration, measured: Duration) {
    let mesh = Mesh::start().await;
    let web = mesh.workload("web").serve(8080, app::http("web").handler()).start().await;
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let gets = Load::start(shop.to("web:8080"), 16, get);
    let posts = Load::start(shop.to("web:8080"), 16, post);
    sleep(warm_up).await;
    let (before, done) = ([&web, &shop].map(|proxy| proxy.memory()), gets.done() + posts.done());
    sleep(measured).await;
    let after = [&web, &shop].map(|proxy| proxy.memory());
    let requests = gets.done() + posts.done() - done;
    eprintln!("{requests} requests; resident bytes before {before:?}, after {after:?}");
    gets.unharmed();
    posts.unharmed();
    assert!(requests > 1000, "{requests} requests are no load");
    for (before, after) in before.into_iter().zip(after) {
        assert!(after <= before + SLACK, "{before} bytes have become {after} after {requests} requests");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_for_ten_seconds() {
    stays_flat(Duration::from_secs(4), Duration::from_secs(6)).await;
}

/// `cargo test -p gossamer-tests --release --test kill -- --ignored`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes; .ci/run does it alone"]
async fn memory_stays_flat_for_two_minutes() {
    stays_flat(Duration::from_secs(10), Duration::from_secs(110)).await;
}
