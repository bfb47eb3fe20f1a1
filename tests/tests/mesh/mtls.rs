//! Mutual TLS between proxies, as it is seen on the wire.

use crate::{WEB, http_pair};
use gossamer_api::defaults::INBOUND_PORT;
use gossamer_api::keys::ALPN_TRANSPORT;
use gossamer_api::process::tls::{self, Anchors, ClientAuth};
use gossamer_proxy::balance::transport::Session;
use gossamer_tests::app::{self, App, handler};
use gossamer_tests::client::{self, H1, H2, Raw, post_request};
use gossamer_tests::expect::becomes;
use gossamer_tests::loopback;
use gossamer_tests::mesh::{Mesh, Proxy, config, identity_of};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Both directions of every connection.
type Tape = Arc<Mutex<[Vec<u8>; 2]>>;

/// Passes bytes on and keeps them.
async fn recorder(at: SocketAddr, to: SocketAddr) -> (App, Tape) {
    let tape = Tape::default();
    let kept = tape.clone();
    let relay = handler(move |io| {
        let tape = kept.clone();
        async move {
            let far = TcpStream::connect(to).await.unwrap();
            let ((near_read, near_write), (far_read, far_write)) = (io.into_split(), far.into_split());
            tokio::join!(pass(near_read, far_write, tape.clone(), 0), pass(far_read, near_write, tape, 1));
        }
    });
    (App::start(at, relay).await, tape)
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    tape: Tape,
    side: usize,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 {
            break;
        }
        tape.lock().unwrap()[side].extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

struct Tapped {
    shop: Proxy,
    _web: Proxy,
    _relay: App,
    tape: Tape,
    _mesh: Mesh,
}

/// `shop` calls `web` over a wire that is recorded.
async fn tapped(handler: app::Handler) -> Tapped {
    let mesh = Mesh::start().await;
    let wire = loopback::address();
    let spec = mesh.workload("web").serve(8080, handler).listed_at(wire);
    let (relay, tape) = recorder((wire, INBOUND_PORT).into(), (spec.ip(), INBOUND_PORT).into()).await;
    let web = spec.start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    Tapped { shop, _web: web, _relay: relay, tape, _mesh: mesh }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// The version that a ServerHello chose: its `supported_versions` extension (RFC 8446 section 4.2.1).
fn chosen_version(bytes: &[u8]) -> Option<u16> {
    let number = |at: usize| bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    // Record header 5, handshake header 4, legacy version 2, random 32, session id, cipher 2, compression 1.
    if bytes.first() != Some(&22) || bytes.get(5) != Some(&2) {
        return None;
    }
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(*bytes.get(at)?) + 2 + 1;
    let end = at + 2 + usize::from(number(at)?);
    at += 2;
    while at + 4 <= end {
        let (kind, length) = (number(at)?, usize::from(number(at + 2)?));
        if kind == 43 {
            return number(at + 4);
        }
        at += 4 + length;
    }
    None
}

#[tokio::test]
async fn nothing_of_a_request_or_response_is_readable_on_the_wire() {
    let app = app::http("plaintext-in-a-response");
    let mesh = tapped(app.handler()).await;
    let entry = mesh.shop.to(WEB);
    let body = "plaintext-in-a-body";
    let answer =
        H1::connect(entry).await.send(post_request("plaintext-host", "/echo/plaintext-path", body)).await.unwrap();
    assert_eq!(answer.text(), body);
    let answer = H2::connect(entry).await.grpc("plaintext-host", "/echo/plaintext-path", body.as_bytes()).await;
    assert_eq!(answer.grpc(), Some(0));
    let [sent, received] = mesh.tape.lock().unwrap().clone();
    assert!(sent.len() > 1000 && received.len() > 500, "the wire was used: {} {}", sent.len(), received.len());
    for bytes in [&sent, &received] {
        for word in ["plaintext", "HTTP/1.1", "PRI * HTTP/2", "l5d-", "shop.test", "content-type"] {
            assert!(!contains(bytes, word.as_bytes()), "{word} is readable");
        }
    }
    assert_eq!(chosen_version(&received), Some(0x0304), "TLS 1.3");
    // What is meant to be seen: who is called.
    assert!(contains(&sent, b"web.test.serviceaccount.identity.gossamer.cluster.local"));
}

#[tokio::test]
async fn opaque_bytes_are_encrypted_as_well() {
    let mesh = tapped(app::echo()).await;
    let mut raw = Raw::connect(mesh.shop.to(WEB)).await;
    raw.send(b"\x00plaintext of a database").await;
    raw.finish().await;
    assert_eq!(&raw.rest().await.unwrap()[..], b"\x00plaintext of a database");
    let [sent, received] = mesh.tape.lock().unwrap().clone();
    assert!(!contains(&sent, b"plaintext") && !contains(&received, b"plaintext"));
    assert_eq!(chosen_version(&received), Some(0x0304));
}

#[tokio::test]
async fn a_changed_byte_on_the_wire_is_never_served() {
    let mesh = Mesh::start().await;
    let wire = loopback::address();
    let app = app::http("web");
    let spec = mesh.workload("web").serve(8080, app.handler()).listed_at(wire);
    let to = SocketAddr::from((spec.ip(), INBOUND_PORT));
    let relay = handler(move |mut io| async move {
        let mut far = TcpStream::connect(to).await.unwrap();
        let mut moved = 0;
        let (mut up, mut down) = (vec![0; 8192], vec![0; 8192]);
        loop {
            tokio::select! {
                read = io.read(&mut up) => {
                    let Ok(count) = read else { return };
                    if count == 0 { return }
                    // The first flight passes; afterwards one bit is flipped.
                    if moved > 0 { up[count - 1] ^= 1; }
                    moved += count;
                    if far.write_all(&up[..count]).await.is_err() { return }
                }
                read = far.read(&mut down) => {
                    let Ok(count) = read else { return };
                    if count == 0 || io.write_all(&down[..count]).await.is_err() { return }
                }
            }
        }
    });
    let _relay = App::start((wire, INBOUND_PORT).into(), relay).await;
    let _web = spec.start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/echo", "x")).await.unwrap();
    assert!(answer.status >= 500, "{answer:?}");
    assert_eq!(app.count(), 0);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_policy_wants_one() {
    let mesh = Mesh::start().await;
    let app = app::http("web");
    let spec = mesh.workload("web").serve(8080, app.handler());
    let web = spec.annotate(&config("default-inbound-policy"), "all-authenticated").start().await;
    let name = identity_of("web");
    let ask = |config| {
        let name = name.clone();
        let inbound = web.inbound();
        async move {
            let mut io = client::meshed(inbound, config, &name, 8080, Some(Session::Http1)).await.unwrap();
            io.write_all(b"GET /bytes/1 HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&client::rest(&mut io).await.unwrap()).into_owned()
        }
    };
    // The same bytes with a certificate are served.
    let answer = ask(mesh.credentials("shop").client_config(&[ALPN_TRANSPORT])).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut anonymous = (*tls::anchors_client_config(&Anchors::from_pem(&mesh.anchors()).unwrap())).clone();
    anonymous.alpn_protocols = vec![ALPN_TRANSPORT.to_vec()];
    let answer = ask(Arc::new(anonymous)).await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("l5d-proxy-error: denied"), "{answer}");
    assert_eq!(app.count(), 1);
}

#[tokio::test]
async fn a_certificate_of_strangers_is_refused() {
    let (mesh, strangers) = (Mesh::start().await, Mesh::start().await);
    let app = app::http("web");
    let web = mesh.workload("web").serve(8080, app.handler()).start().await;
    // Their certificate is in order, but not of a root that this mesh trusts.
    let mut config = (*strangers.credentials("shop").client_config(&[ALPN_TRANSPORT])).clone();
    config.dangerous().set_certificate_verifier(Arc::new(TrustsAnybody));
    let config = Arc::new(config);
    let refused = async {
        let mut io = client::meshed(web.inbound(), config, &identity_of("web"), 8080, Some(Session::Http1)).await?;
        io.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await?;
        client::rest(&mut io).await
    };
    // In TLS 1.3 the client learns it with its first read.
    let refused = refused.await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(app.count(), 0);
    // The alert is on its way before the failure is counted.
    let counted = || async { web.metrics().await.sum("inbound_tcp_errors_total", &[("error", "handshake")]) };
    becomes(1.0, counted).await;
}

/// Someone else took over the address: it has a good certificate, of another workload.
#[tokio::test]
async fn a_server_with_another_identity_is_never_talked_to() {
    let mesh = Mesh::start().await;
    let spec = mesh.workload("web").port(8080);
    let credentials = mesh.credentials("impostor");
    let heard = Arc::new(Mutex::new(0));
    let count = heard.clone();
    let impostor = handler(move |io| {
        let (credentials, count) = (credentials.clone(), count.clone());
        async move {
            let config = credentials.server_config(&[ALPN_TRANSPORT], ClientAuth::Optional);
            if let Ok(mut io) = tls::accept(config, io).await {
                let mut got = Vec::new();
                let _ = io.read_to_end(&mut got).await;
                *count.lock().unwrap() += got.len();
            }
        }
    });
    let wire = loopback::address();
    let _impostor = App::start((wire, INBOUND_PORT).into(), impostor).await;
    let _web = spec.listed_at(wire).start().await;
    let shop = mesh.workload("shop").calls(WEB).start().await;
    let answer = H1::connect(shop.to(WEB)).await.send(post_request("web", "/secret", "secret")).await.unwrap();
    assert_eq!((answer.status, answer.reason()), (502, "wrong-identity"), "{answer:?}");
    assert!(answer.header("l5d-proxy-error").contains("web.test."), "it says whom it expected: {answer:?}");
    assert_eq!(*heard.lock().unwrap(), 0, "not a byte was sent to it");
}

#[tokio::test]
async fn without_a_certificate_nothing_is_sent_and_the_proxy_is_not_ready() {
    let (pair, app) = http_pair().await;
    let spec = pair.mesh.workload("stranger").calls(WEB).set("token-file", "/dev/null");
    let stranger = spec.start_unready().await;
    let entry = stranger.to(WEB);
    let answer = gossamer_tests::expect::eventually("its listener", || async {
        let mut client = H1::try_connect(entry).await.ok()?;
        client.send(post_request("web", "/echo", "x")).await.ok()
    })
    .await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(["no-identity", "discovery"].contains(&answer.reason()), "{answer:?}");
    let ready = client::get(stranger.admin(), "proxy", "/ready").await;
    assert_eq!(ready.status, 503, "{ready:?}");
    assert_eq!(app.count(), 0);
    gossamer_tests::expect::eventually("its log says why", || async { stranger.log().contains("token").then_some(()) })
        .await;
}

#[tokio::test]
async fn a_token_of_somebody_else_is_refused_and_both_logs_say_why() {
    let mesh = Mesh::apart().await;
    let wanted = identity_of("admin").to_string();
    let thief = mesh.workload("thief").calls(WEB).set("local-identity", &wanted).start_unready().await;
    let why = gossamer_tests::expect::eventually("the control plane's log says why", || async {
        let log = mesh.log();
        let (_, line) = log.split_once("certificate refused: ")?;
        Some(line.lines().next()?.split(" identity=").next()?.to_string())
    })
    .await;
    assert!(!why.is_empty() && mesh.log().contains(&wanted), "{}", mesh.log());
    gossamer_tests::expect::eventually("the proxy's log says why", || async {
        thief.log().contains(&why).then_some(())
    })
    .await;
    let ready = client::get(thief.admin(), "proxy", "/ready").await;
    assert_eq!(ready.status, 503, "{ready:?}");
}

/// A client that does not care whom it talks to.
#[derive(Debug)]
struct TrustsAnybody;

impl ServerCertVerifier for TrustsAnybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
