//! Every replica of a service is replaced, one after the other, under load.

use crate::load::{Load, get, post};
use gossamer_tests::app;
use gossamer_tests::expect::eventually;
use gossamer_tests::mesh::{Mesh, Proxy};
use std::collections::VecDeque;

const REPLICAS: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_replicas_are_replaced_without_a_failed_request() {
    let mesh = Mesh::start().await;
    let mut old = VecDeque::new();
    for _ in 0..REPLICAS {
        old.push_back(mesh.workload("web").serve(8080, app::http("web").handler()).start().await);
    }
    let shop = mesh.workload("shop").calls("web:8080").start().await;
    let gets = Load::start(shop.to("web:8080"), 2, get);
    // These may not be repeated, so a replica has to finish what it has begun.
    let posts = Load::start(shop.to("web:8080"), 2, post);
    posts.more(200).await;
    let mut new: Vec<Proxy> = Vec::new();
    while let Some(mut leaving) = old.pop_front() {
        let app = app::http("web");
        new.push(mesh.workload("web").serve(8080, app.handler()).start().await);
        eventually("the new replica is used", || async { (app.count() > 0).then_some(()) }).await;
        // As Kubernetes does it: told to stop at the same moment as others are told of it.
        leaving.deregister();
        leaving.terminate();
        assert!(leaving.ended().await.success(), "it has finished everything within its grace period");
        drop(leaving);
        posts.more(20).await;
        gets.more(20).await;
    }
    assert_eq!(new.len(), REPLICAS);
    gets.unharmed();
    posts.unharmed();
}
