//! The mesh on loopback: each file is a feature in users' words.

#![allow(clippy::unwrap_used)]

mod authorization;
mod balancing;
mod control_plane_gone;
mod drain;
mod errors;
mod extensions;
mod floods;
mod http1;
mod http2_grpc;
mod loops;
mod metrics;
mod mtls;
mod opaque_tcp;
mod policy_service;
mod rate_limit;
mod retries;
mod routes;
mod slow_links;
mod smuggling;
mod tap;
mod timeouts;

use gossamer_tests::app::{self, Handler, Http};
use gossamer_tests::mesh::{Mesh, Proxy, Spec};
use std::net::SocketAddr;

/// The smallest mesh: `shop` calls `web` on port 8080. Fields are dropped in this order.
struct Pair {
    shop: Proxy,
    web: Proxy,
    mesh: Mesh,
}

impl Pair {
    async fn new(handler: Handler) -> Pair {
        Pair::with(handler, |spec| spec).await
    }

    /// Whose proxies wait for silent clients as they do by default.
    async fn impatient(handler: Handler) -> Pair {
        Pair::with(handler, |spec| spec.impatient()).await
    }

    async fn with(handler: Handler, set: impl Fn(Spec<'_>) -> Spec<'_>) -> Pair {
        let mesh = Mesh::start().await;
        let web = set(mesh.workload("web").serve(8080, handler)).start().await;
        let shop = set(mesh.workload("shop").calls(WEB)).start().await;
        Pair { shop, web, mesh }
    }

    /// The local port that leads to `web`.
    fn entry(&self) -> SocketAddr {
        self.shop.to(WEB)
    }
}

const WEB: &str = "web:8080";

/// A pair with the HTTP application.
async fn http_pair() -> (Pair, Http) {
    let app = app::http("web");
    (Pair::new(app.handler()).await, app)
}
