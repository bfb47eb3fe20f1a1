//! First bytes that come in pieces, with pauses: a request line, a preface, the ClientHello of an application and that of
//! the mesh.

use crate::{Pair, WEB};
use gossamer_api::defaults::INBOUND_PORT;
use gossamer_tests::app::{self, App, handler};
use gossamer_tests::client::{H1, H2, Raw, post_request};
use gossamer_tests::expect::within;
use gossamer_tests::loopback;
use gossamer_tests::mesh::Mesh;
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than the silence after which a connection is forwarded as it is.
const PAUSE: Duration = Duration::from_millis(60);

/// Sends a client's first bytes one by one in segments of their own, with a pause now and then, and everything else as
/// it comes. The first flight's size is kept.
async fn slow_link(at: SocketAddr, to: SocketAddr, segment: usize) -> (App, Arc<AtomicUsize>) {
    let flight = Arc::<AtomicUsize>::default();
    let kept = flight.clone();
    let relay = handler(move |mut near| {
        let kept = kept.clone();
        async move {
            let mut far = TcpStream::connect(to).await.unwrap();
            far.set_nodelay(true).unwrap();
            let mut first = Vec::new();
            // A flight is what comes without a break, whenever it begins.
            if !matches!(near.read_buf(&mut first).await, Ok(1..)) {
                return;
            }
            while let Ok(Ok(1..)) = tokio::time::timeout(PAUSE, near.read_buf(&mut first)).await {}
            kept.store(first.len(), Ordering::Relaxed);
            for (n, bytes) in first.chunks(segment).enumerate() {
                far.write_all(bytes).await.unwrap();
                // Segments that follow each other at once would be read as one.
                let pause = if n % (first.len() / segment / 4 + 1) == 0 { PAUSE } else { Duration::from_micros(100) };
                tokio::time::sleep(pause).await;
            }
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        }
    });
    (App::start(at, relay).await, flight)
}

#[tokio::test]
async fn half_a_request_line_is_waited_for() {
    let app = app::http("web");
    // The first byte has to come before this is over, also on a busy machine; the others come later than that.
    let patience = Duration::from_millis(700);
    let pair = Pair::with(app.handler(), |spec| spec.set("detect-patience", "700ms")).await;
    let mut raw = Raw::connect(pair.entry()).await;
    for part in ["G", "ET /head HTTP/1.1\r", "\nhost: web\r\n", "\r\n"] {
        raw.send(part).await;
        tokio::time::sleep(patience + PAUSE).await;
    }
    let answer = raw.answer().await;
    assert!(answer.status == 200 && answer.text().contains("l5d-client-id: shop.test."), "{answer:?}");
    assert_eq!((app.count(), pair.web.apps[0].accepted()), (1, 1), "no connection was made for bytes");
    assert_eq!(pair.shop.metrics().await.sum("request_total", &[("direction", "outbound")]), 1.0);
}

#[tokio::test]
async fn half_a_preface_is_waited_for() {
    let pair = Pair::impatient(app::http("web").handler()).await;
    let at = SocketAddr::from((loopback::address(), 80));
    let (_link, _) = slow_link(at, pair.entry(), 7).await;
    let answer = H2::connect(at).await.get("web", "/head").await;
    assert!(answer.status == 200 && answer.text().contains("l5d-client-id: shop.test."), "{answer:?}");
}

#[tokio::test]
async fn bytes_that_are_no_request_wait_for_nothing() {
    let pair = Pair::impatient(app::echo()).await;
    for bytes in ["hello", "EHLO there", "\x01"] {
        let start = std::time::Instant::now();
        let mut raw = Raw::connect(pair.entry()).await;
        raw.send(bytes).await;
        assert_eq!(raw.exactly(bytes.len()).await, bytes);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(2), "{bytes:?}: {took:?}");
    }
}

/// The hop's handshake is post-quantum, so its hello has two segments even on fast links.
#[tokio::test]
async fn the_meshs_own_hello_may_come_in_pieces() {
    for segment in [1, 100, 1200] {
        let mesh = Mesh::start().await;
        let app = app::http("web");
        let wire = loopback::address();
        let spec = mesh.workload("web").serve(8080, app.handler()).listed_at(wire);
        let inbound = SocketAddr::from((spec.ip(), INBOUND_PORT));
        let (_link, flight) = slow_link((wire, INBOUND_PORT).into(), inbound, segment).await;
        let _web = spec.start().await;
        let shop = mesh.workload("shop").calls(WEB).start().await;
        let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/head", "x")).await.unwrap();
        assert!(answer.status == 200 && answer.text().contains("l5d-client-id: shop.test."), "{segment}: {answer:?}");
        let size = flight.load(Ordering::Relaxed);
        assert!(size > 1400, "a hello with a post-quantum key share, not {size} bytes");
    }
}

/// A TLS server of the application behind the mesh, and a client that offers this many protocols.
async fn application_tls(segment: usize, protocols: usize) -> usize {
    let key = rcgen::generate_simple_self_signed(["db.example".to_string()]).unwrap();
    let certificate = key.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()).into())
        .unwrap();
    server.alpn_protocols = vec![b"p-0000".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let pair = Pair::impatient(handler(move |io| {
        let acceptor = acceptor.clone();
        async move {
            // One comes to nothing: it was made while the client was silent.
            let Ok(mut io) = acceptor.accept(io).await else { return };
            io.write_all(b"hello").await.unwrap();
            io.shutdown().await.unwrap();
        }
    }))
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = (0..protocols.max(1)).map(|n| format!("p-{n:04}").into_bytes()).collect();
    let at = SocketAddr::from((loopback::address(), 443));
    let (_link, flight) = slow_link(at, pair.entry(), segment).await;
    let name = ServerName::try_from("db.example").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
    let io = TcpStream::connect(at).await.unwrap();
    let mut io = within("the handshake", connector.connect(name, io)).await.unwrap();
    let mut got = String::new();
    within("the greeting", io.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "hello");
    flight.load(Ordering::Relaxed)
}

#[tokio::test]
async fn an_applications_hello_may_come_in_many_segments() {
    let size = application_tls(1, 1).await;
    assert!(size > 1400, "with a post-quantum key share, not {size} bytes");
}

#[tokio::test]
async fn an_applications_hello_may_be_large() {
    let size = application_tls(900, 1500).await;
    assert!(size > 11_000, "{size} bytes");
}
