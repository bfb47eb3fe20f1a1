//! The admin page, over real sockets.

use axum::body::Body;
use axum::http::Request;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::*;

fn admin() -> (Admin, Arc<AtomicBool>) {
    let ready = Arc::new(AtomicBool::new(false));
    let seen = ready.clone();
    let admin = Admin {
        ready: Arc::new(move || seen.load(Relaxed).then_some(()).ok_or_else(|| "no certificate yet".to_owned())),
        metrics: Arc::new(|| "up 1\n".to_owned()),
        shutdown: true,
        ..Admin::new(LogLevel::detached("info"), Stop::new())
    };
    (admin, ready)
}

async fn ask(admin: &Admin, method: &str, path: &str, body: &str, from: &str) -> (u16, String) {
    let router = admin.clone().router(Router::new().route("/config", get(|| async { "config\n" })));
    let peer: SocketAddr = from.parse().unwrap();
    let request = Request::builder().method(method).uri(path).extension(ConnectInfo(peer));
    let response = router
        .layer(Extension(ConnectInfo(peer)))
        .oneshot(request.body(Body::from(body.to_owned())).unwrap())
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

const NEAR: &str = "127.0.0.1:9";
const FAR: &str = "10.0.0.1:9";

#[tokio::test]
async fn answers_probes_and_scrapes() {
    let (admin, ready) = admin();
    assert_eq!(ask(&admin, "GET", "/live", "", FAR).await, (200, "live\n".into()));
    assert_eq!(ask(&admin, "GET", "/ready", "", FAR).await, (503, "not ready: no certificate yet\n".into()));
    ready.store(true, Relaxed);
    assert_eq!(ask(&admin, "GET", "/ready", "", FAR).await.0, 200);
    assert_eq!(ask(&admin, "GET", "/metrics", "", FAR).await, (200, "up 1\n".into()));
    assert_eq!(ask(&admin, "GET", "/config", "", FAR).await.1, "config\n");
    let (status, hint) = ask(&admin, "GET", "/nothing", "", FAR).await;
    assert!(status == 404 && hint.contains("/metrics"), "{hint}");
}

#[tokio::test]
async fn a_warning_goes_to_the_kubelets_event_and_changes_nothing_else() {
    let (mut admin, ready) = admin();
    admin.warning = Arc::new(|| Some("discovery is away".into()));
    assert_eq!(ask(&admin, "GET", "/ready", "", FAR).await.0, 503);
    ready.store(true, Relaxed);
    assert_eq!(ask(&admin, "GET", "/ready", "", FAR).await, (200, "ready, but: discovery is away\n".into()));
    let probe = Request::builder().uri("/ready").header("user-agent", "kube-probe/1.34").body(Body::empty()).unwrap();
    let answer = admin.router(Router::new()).oneshot(probe).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (302, NOWHERE));
    let body = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
    assert_eq!(&body[..], b"discovery is away");
}

#[tokio::test]
async fn only_loopback_changes_the_process() {
    let (mut admin, _) = admin();
    assert_eq!(ask(&admin, "PUT", "/log-level", "debug", FAR).await.0, 403);
    assert_eq!(ask(&admin, "GET", "/log-level", "", FAR).await.1, "info\n");
    assert_eq!(ask(&admin, "PUT", "/log-level", "debug", NEAR).await.0, 204);
    assert_eq!(ask(&admin, "GET", "/log-level", "", "[::ffff:127.0.0.1]:9").await.1, "debug\n");
    assert_eq!(ask(&admin, "POST", "/shutdown", "", FAR).await.0, 403);
    assert!(!admin.stop.is_stopping());
    admin.shutdown = false;
    assert_eq!(ask(&admin, "POST", "/shutdown", "", NEAR).await.0, 404);
    admin.shutdown = true;
    assert_eq!(ask(&admin, "POST", "/shutdown", "", NEAR).await.0, 200);
    assert!(admin.stop.is_stopping());
    assert_eq!(ask(&admin, "GET", "/ready", "", NEAR).await, (503, "stopping\n".into()));
}

#[tokio::test]
async fn answers_while_draining_and_ends_when_killed() {
    let (admin, _) = admin();
    let stop = admin.stop.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(admin.serve(listener, Router::new()));
    stop.stop();
    let mut io = tokio::net::TcpStream::connect(address).await.unwrap();
    io.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"up 1\n") {
        assert_ne!(io.read_buf(&mut answer).await.unwrap(), 0);
    }
    assert!(stop.wait(Duration::from_secs(5)).await);
    server.await.unwrap();
    assert_eq!(io.read_buf(&mut answer).await.unwrap_or(0), 0, "closed");
}
