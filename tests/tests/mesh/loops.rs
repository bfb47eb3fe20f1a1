//! A connection that would come back to the proxy is refused.

use crate::http_pair;
use gossamer_api::defaults::{INBOUND_PORT, OUTBOUND_PORT, TAP_PORT};
use gossamer_api::keys::ALPN_TRANSPORT;
use gossamer_tests::client::{self, Raw};
use gossamer_tests::expect::becomes;
use gossamer_tests::mesh::{Proxy, identity_of};
use std::net::SocketAddr;
use tokio::net::TcpStream;

async fn loops(proxy: &Proxy, direction: &str) -> f64 {
    proxy.metrics().await.sum(&format!("{direction}_tcp_errors_total"), &[("error", "loop")])
}

#[tokio::test]
async fn the_outbound_listener_is_no_destination() {
    let (pair, _) = http_pair().await;
    // The reset may come before the connect has returned.
    if let Ok(io) = TcpStream::connect(SocketAddr::from((pair.shop.ip, OUTBOUND_PORT))).await {
        assert!(Raw::from(io).ends().await);
    }
    assert_eq!(loops(&pair.shop, "outbound").await, 1.0);
}

#[tokio::test]
async fn the_inbound_listener_is_no_destination_without_mesh_tls() {
    let (pair, app) = http_pair().await;
    let mut raw = Raw::connect(pair.web.inbound()).await;
    raw.send("GET / HTTP/1.1\r\nhost: web\r\n\r\n").await;
    assert!(raw.ends().await);
    assert_eq!((loops(&pair.web, "inbound").await, app.count()), (1.0, 0));
}

#[tokio::test]
async fn the_inbound_listener_is_no_destination_within_mesh_tls() {
    refused_within_mesh_tls(INBOUND_PORT).await;
}

#[tokio::test]
async fn the_tap_api_is_no_destination_within_mesh_tls() {
    refused_within_mesh_tls(TAP_PORT).await;
}

async fn refused_within_mesh_tls(port: u16) {
    let (pair, _) = http_pair().await;
    let config = pair.mesh.credentials("shop").client_config(&[ALPN_TRANSPORT]);
    let mut io = client::meshed(pair.web.inbound(), config, &identity_of("web"), port, None).await.unwrap();
    let got = client::rest(&mut io).await;
    assert!(got.is_err() || got.is_ok_and(|bytes| bytes.is_empty()));
    becomes(1.0, || loops(&pair.web, "inbound")).await;
}
