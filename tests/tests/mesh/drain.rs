//! How a proxy ends: it finishes what it has, takes nothing new, and does not linger.

use crate::{WEB, http_pair};
use gossamer_tests::app::{self, channel};
use gossamer_tests::client::{H1, H2, Raw, get_request, grpc_request, post_request};
use gossamer_tests::expect::{becomes, eventually, within};
use gossamer_tests::loopback;
use gossamer_tests::mesh::{Mesh, program};
use http::Request;
use http_body_util::BodyExt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn requests_in_flight_are_finished_and_the_exit_code_is_0() {
    let (mut pair, app) = http_pair().await;
    let entry = pair.entry();
    // Answered once all of it is there.
    let (rest, body) = channel();
    let request = Request::post("/read").header("host", "web").body(body).unwrap();
    let asked = tokio::spawn(async move { H1::connect(entry).await.send(request).await });
    becomes(1, || async { app.count() }).await;
    pair.shop.terminate();
    pair.web.terminate();
    eventually("it takes nothing new", || async { TcpStream::connect(entry).await.is_err().then_some(()) }).await;
    rest.data("all of it").await;
    drop(rest);
    let answer = asked.await.unwrap().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "all of it"));
    assert_eq!(answer.header("connection"), "close", "{answer:?}");
    assert_eq!(pair.shop.ended().await.code(), Some(0));
    assert_eq!(pair.web.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_stream_in_flight_is_finished() {
    let (mut pair, _) = http_pair().await;
    let client = H2::connect(pair.entry()).await;
    let (sender, body) = channel();
    let mut response = within("the head", client.start(grpc_request("web", "/echo", body))).await.unwrap().into_body();
    sender.data("before").await;
    assert_eq!(within("an echo", response.frame()).await.unwrap().unwrap().into_data().unwrap(), "before");
    pair.shop.terminate();
    pair.web.terminate();
    let entry = pair.entry();
    eventually("it takes nothing new", || async { TcpStream::connect(entry).await.is_err().then_some(()) }).await;
    // Nor on this connection: its client was told by GOAWAY, and would send new requests elsewhere.
    let refused = || async { client.start(get_request("web", "/bytes/1")).await.err().map(drop) };
    eventually("the client is told", refused).await;
    sender.data("after").await;
    assert_eq!(within("an echo", response.frame()).await.unwrap().unwrap().into_data().unwrap(), "after");
    drop(sender);
    let trailers = within("trailers", response.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert_eq!(pair.shop.ended().await.code(), Some(0));
    assert_eq!(pair.web.ended().await.code(), Some(0));
}

#[tokio::test]
async fn its_admin_page_ends_it_as_a_signal_does() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let mut shop = mesh.workload("shop").calls(WEB).set("admin-shutdown", "enabled").start().await;
    let entry = shop.to(WEB);
    let slow = tokio::spawn(async move { H1::connect(entry).await.send(get_request("web", "/slow/500")).await });
    becomes(1, || async { app.count() }).await;
    let answer = H1::connect(shop.admin()).await.send(post_request("proxy", "/shutdown", "")).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(slow.await.unwrap().unwrap().text(), "slow\n");
    assert_eq!(shop.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_in_one_line() {
    let ip = loopback::address();
    let other = TcpListener::bind((ip, 0)).await.unwrap();
    let taken = other.local_addr().unwrap();
    let free = SocketAddr::from((ip, 0)).to_string();
    let mut command = tokio::process::Command::new(program());
    command.arg("proxy").env_clear().stdin(std::process::Stdio::null()).kill_on_drop(true);
    command.env("MESH_ADMIN_LISTEN", taken.to_string());
    for listener in ["MESH_OUTBOUND_LISTEN", "MESH_INBOUND_LISTEN", "MESH_TAP_LISTEN"] {
        command.env(listener, &free);
    }
    // Neither for a certificate nor for anything else does it wait first.
    let output = within("its end", command.output()).await.unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), words.lines().count()), (Some(1), 1), "{words}");
    assert!(
        words.contains(&format!("cannot listen on {taken}; is another process using port {}?", taken.port())),
        "{words}"
    );
}

#[tokio::test]
async fn an_idle_proxy_ends_at_once() {
    let (mut pair, _) = http_pair().await;
    // Idle connections hold nothing up.
    let mut idle = H1::connect(pair.entry()).await;
    assert_eq!(idle.get("web", "/bytes/1").await.status, 200);
    let start = Instant::now();
    pair.shop.terminate();
    assert_eq!(pair.shop.ended().await.code(), Some(0));
    pair.web.terminate();
    assert_eq!(pair.web.ended().await.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(idle.closed().await);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let (mut pair, app) = http_pair().await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send("GET /hang HTTP/1.1\r\nhost: web\r\n\r\n").await;
    becomes(1, || async { app.count() }).await;
    pair.shop.terminate();
    let entry = pair.entry();
    eventually("it takes nothing new", || async { TcpStream::connect(entry).await.is_err().then_some(()) }).await;
    assert!(pair.shop.lives(), "it waits for the request");
    pair.shop.terminate();
    assert_eq!(pair.shop.ended().await.code(), Some(143));
    assert!(raw.ends().await);
}

#[tokio::test]
async fn the_grace_period_bounds_the_wait() {
    let mesh = gossamer_tests::mesh::Mesh::start().await;
    let app = gossamer_tests::app::http("web");
    let _web = mesh.workload("web").serve(8080, app.handler()).start().await;
    let spec = mesh.workload("shop").calls(crate::WEB).set("shutdown-grace-period", "300ms");
    let mut shop = spec.start().await;
    let mut raw = Raw::connect(shop.to(crate::WEB)).await;
    raw.send("GET /hang HTTP/1.1\r\nhost: web\r\n\r\n").await;
    becomes(1, || async { app.count() }).await;
    shop.terminate();
    let answer = raw.answer().await;
    assert_eq!((answer.status, answer.reason()), (503, "shutting-down"), "{answer:?}");
    assert!(raw.ends().await);
    assert_eq!(shop.ended().await.code(), Some(0));
}
