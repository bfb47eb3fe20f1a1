//! Bytes that are no HTTP: forwarded as they come, from whichever side, with the ends of both directions.

use crate::{Pair, WEB};
use gossamer_tests::app::{self, handler};
use gossamer_tests::client::Raw;
use gossamer_tests::expect::{becomes, within};
use gossamer_tests::mesh::Mesh;
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use socket2::SockRef;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_client_that_ends_first_still_reads_the_answer() {
    let pair = Pair::impatient(app::echo()).await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(b"\x01\x02 not http").await;
    raw.finish().await;
    assert_eq!(&raw.rest().await.unwrap()[..], b"\x01\x02 not http");
}

#[tokio::test]
async fn a_server_that_ends_first_still_hears_the_client() {
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = heard.clone();
    let pair = Pair::impatient(handler(move |mut io| {
        let kept = kept.clone();
        async move {
            io.write_all(b"bye").await.unwrap();
            io.shutdown().await.unwrap();
            let mut got = Vec::new();
            io.read_to_end(&mut got).await.unwrap();
            *kept.lock().unwrap() = got;
        }
    }))
    .await;
    let mut raw = Raw::connect(pair.entry()).await;
    assert_eq!(raw.rest().await.unwrap(), "bye");
    raw.send("still here").await;
    raw.finish().await;
    becomes(b"still here".to_vec(), || async { heard.lock().unwrap().clone() }).await;
}

#[tokio::test]
async fn a_reset_of_the_server_is_a_reset_for_the_client() {
    let pair = Pair::impatient(handler(|mut io| async move {
        let _ = io.read(&mut [0; 16]).await;
        SockRef::from(&io).set_linger(Some(Duration::ZERO)).unwrap();
    }))
    .await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(b"\x01 not http").await;
    let error = raw.rest().await.expect_err("a reset, not an end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_for_the_server() {
    let resets = Arc::new(AtomicUsize::new(0));
    let counted = resets.clone();
    let pair = Pair::impatient(handler(move |mut io| {
        let counted = counted.clone();
        async move {
            io.write_all(b"welcome").await.unwrap();
            let mut got = Vec::new();
            if matches!(io.read_to_end(&mut got).await, Err(error) if error.kind() == ErrorKind::ConnectionReset) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    }))
    .await;
    let mut raw = Raw::connect(pair.entry()).await;
    raw.send(b"\x01 not http").await;
    assert_eq!(raw.exactly(7).await, "welcome");
    SockRef::from(&raw.io).set_linger(Some(Duration::ZERO)).unwrap();
    drop(raw);
    becomes(1, || async { resets.load(Ordering::Relaxed) }).await;
}

/// The default of other meshes is to wait seconds for a client that waits for the server.
#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let pair = Pair::impatient(app::speaks_first(b"220 mail.test ESMTP\r\n")).await;
    for round in 0..3 {
        let start = Instant::now();
        let mut raw = Raw::connect(pair.entry()).await;
        assert_eq!(raw.line().await, "220 mail.test ESMTP");
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "round {round}: {took:?}");
        raw.send("EHLO me\r\n").await;
        assert_eq!(raw.line().await, "EHLO me");
    }
    assert_eq!(pair.web.apps[0].accepted(), 3, "one connection each");
}

#[tokio::test]
async fn a_client_that_speaks_http_late_is_served_as_http() {
    let app = app::http("web");
    let pair = Pair::impatient(app.handler()).await;
    let mut raw = Raw::connect(pair.entry()).await;
    // The client's silence has made the proxy connect, to hear whether the server speaks.
    becomes(1, || async { pair.web.apps[0].accepted() }).await;
    raw.send("GET /head HTTP/1.1\r\nhost: web\r\n\r\n").await;
    let answer = raw.answer().await;
    assert!(answer.status == 200 && answer.text().contains("l5d-client-id: shop.test."), "{answer:?}");
    assert_eq!(pair.shop.metrics().await.sum("request_total", &[("direction", "outbound")]), 1.0);
}

/// Redis, as an example of the ports where servers are known to speak first: nobody has to declare them.
#[tokio::test]
async fn a_well_known_port_is_not_looked_at() {
    let mesh = Mesh::start().await;
    let _cache = mesh.workload("cache").serve(6379, app::echo()).start().await;
    let shop = mesh.workload("shop").calls("cache:6379").impatient().start().await;
    let mut raw = Raw::connect(shop.to("cache:6379")).await;
    // What would wait for its rest if it were looked at, and be refused if it were HTTP.
    for bytes in ["GET key", "PRI * HTTP/2.0\r\n", "\x16\x03\x01\x02\x00"] {
        raw.send(bytes).await;
        assert_eq!(raw.exactly(bytes.len()).await, bytes);
    }
    assert_eq!(shop.metrics().await.sum("request_total", &[("direction", "outbound")]), 0.0);
}

#[tokio::test]
async fn a_port_declared_opaque_is_not_looked_at() {
    let mesh = Mesh::start().await;
    let (script, heard) = app::script(b"\n\n", b"whatever\n");
    let _web = mesh
        .workload("web")
        .serve(7000, script)
        .annotate(&gossamer_tests::mesh::config("opaque-ports"), "7000")
        .start()
        .await;
    let shop = mesh.workload("shop").calls("web:7000").impatient().start().await;
    let mut raw = Raw::connect(shop.to("web:7000")).await;
    // Looks like HTTP, and would be refused as such.
    raw.send("GET / HTTP/1.1\nbare: lf\n\n").await;
    assert_eq!(raw.rest().await.unwrap(), "whatever\n");
    assert_eq!(heard.text(), ["GET / HTTP/1.1\nbare: lf\n\n"]);
}

#[tokio::test]
async fn megabytes_pass_both_ways_at_once() {
    let pair = Pair::impatient(app::echo()).await;
    let io = TcpStream::connect(pair.entry()).await.unwrap();
    let sent: Vec<u8> = (0..16 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut read, mut write) = io.into_split();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    within("all of it", read.read_to_end(&mut got)).await.unwrap();
    writing.await.unwrap();
    assert!(got == expected, "{} bytes", got.len());
}

#[tokio::test]
async fn a_receiver_that_does_not_read_holds_the_sender_back() {
    let pair = Pair::impatient(handler(|io| async move {
        std::future::pending::<()>().await;
        drop(io);
    }))
    .await;
    let mut raw = Raw::connect(pair.entry()).await;
    let block = vec![1; 1 << 20];
    let mut sent = 0;
    // Sockets on loopback hold some MiB each; four are on the way.
    while sent < 256 && tokio::time::timeout(Duration::from_secs(1), raw.io.write_all(&block)).await.is_ok() {
        sent += 1;
    }
    assert!(sent < 64, "{sent} MiB were taken");
    for proxy in [&pair.shop, &pair.web] {
        assert!(proxy.memory() < 96 << 20, "{}: {}", proxy.name, proxy.memory());
    }
}

#[tokio::test]
async fn tls_of_the_application_passes_untouched() {
    let key = rcgen::generate_simple_self_signed(["db.example".to_string()]).unwrap();
    let certificate = key.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let pair = Pair::impatient(handler(move |io| {
        let acceptor = acceptor.clone();
        async move {
            let mut io = acceptor.accept(io).await.unwrap();
            let mut got = [0; 5];
            io.read_exact(&mut got).await.unwrap();
            io.write_all(&got).await.unwrap();
            io.shutdown().await.unwrap();
        }
    }))
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let io = TcpStream::connect(pair.shop.to(WEB)).await.unwrap();
    let name = ServerName::try_from("db.example").unwrap();
    // The workload's own certificate verifies end to end, so nobody on the way took part in the handshake.
    let mut io =
        within("the handshake", tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, io)).await.unwrap();
    assert_eq!(io.get_ref().1.peer_certificates().unwrap()[0], certificate);
    io.write_all(b"hello").await.unwrap();
    let mut got = String::new();
    within("the echo", io.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "hello");
    let metrics = pair.web.metrics().await;
    assert_eq!(metrics.sum("request_total", &[]), 0.0, "no request was seen in it");
}
