//! Who is believed and who is not; resumption; expiry.

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::{CipherSuite, NamedGroup, ProtocolVersion};
use rustls_pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;
use tokio::io::DuplexStream;

use super::*;

/// A root that signs leaves for tests.
pub(in crate::process) struct Root {
    issuer: Issuer<'static, KeyPair>,
    pub(in crate::process) anchors: Anchors,
}

impl Root {
    pub(in crate::process) fn test() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let anchors = Anchors::from_pem(&certificate.pem()).unwrap();
        Root { issuer: Issuer::new(params, key), anchors }
    }

    /// Credentials of `name` that ended or will end `seconds` from now; not checked.
    pub(in crate::process) fn issue(&self, name: &str, seconds: i64) -> Arc<Credentials> {
        self.issue_for(name, &[dns(name), uri(SPIFFE)], seconds)
    }

    fn issue_for(&self, name: &str, names: &[SanType], seconds: i64) -> Arc<Credentials> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        params.not_before = OffsetDateTime::now_utc() - time::Duration::days(2);
        params.not_after = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let chain = vec![leaf.der().clone()];
        Arc::new(Credentials::unverified(name.parse().unwrap(), chain, key, self.anchors.clone()).unwrap())
    }
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

const SPIFFE: &str = "spiffe://cluster.local/ns/demo/sa/x";

type Pair = (tokio_rustls::client::TlsStream<DuplexStream>, tokio_rustls::server::TlsStream<DuplexStream>);

/// A handshake in memory, with a byte each way so that refusals and tickets arrive.
async fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> io::Result<Pair> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = name.parse().unwrap();
    let client = async {
        let mut io = connect(client, &name, near).await?;
        io.write_all(b"c").await?;
        io.flush().await?;
        let mut byte = [0];
        io.read_exact(&mut byte).await?;
        Ok::<_, io::Error>(io)
    };
    let server = async {
        let mut io = accept(server, far).await?;
        let mut byte = [0];
        io.read_exact(&mut byte).await?;
        io.write_all(b"s").await?;
        io.flush().await?;
        Ok::<_, io::Error>(io)
    };
    tokio::try_join!(client, server)
}

pub(in crate::process) const WEB: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";
pub(in crate::process) const API: &str = "api.demo.serviceaccount.identity.gossamer.cluster.local";

#[tokio::test]
async fn both_sides_know_each_other_and_the_exchange_is_post_quantum() {
    let root = Root::test();
    let client = root.issue(WEB, 60).client_config(&[b"transport.l5d.io/v1", b"h2"]);
    let server = root.issue(API, 60).server_config(&[b"h2"], ClientAuth::Required);
    let (client, server) = shake(client, server, API).await.unwrap();
    let session = client.get_ref().1;
    assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(session.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(session.negotiated_cipher_suite().unwrap().suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(peer_identity(session.peer_certificates().unwrap()).unwrap().as_str(), API);
    let session = server.get_ref().1;
    assert_eq!(peer_identity(session.peer_certificates().unwrap()).unwrap().as_str(), WEB);
    assert_eq!(session.server_name(), Some(API));
}

#[tokio::test]
async fn refuses_wrong_names_ends_and_roots() {
    let (root, other) = (Root::test(), Root::test());
    let client = || root.issue(WEB, 60).client_config(&[]);
    let server = || root.issue(API, 60).server_config(&[], ClientAuth::Optional);
    assert!(shake(client(), server(), API).await.is_ok(), "the ground that the refusals stand on");

    let expired_client = root.issue(WEB, -1).client_config(&[]);
    let expired_server = root.issue(API, -1).server_config(&[], ClientAuth::Optional);
    let foreign_client = other.issue(WEB, 60);
    // It believes our server, but is signed by a root that the server doesn't know.
    let foreign_client = Credentials::unverified(
        foreign_client.identity.clone(),
        foreign_client.chain.clone(),
        foreign_client.key.clone_key(),
        root.anchors.clone(),
    )
    .unwrap()
    .client_config(&[]);
    let foreign_server = other.issue(API, 60).server_config(&[], ClientAuth::Optional);
    let cases = [
        ("name", client(), server(), WEB, "not valid for name"),
        ("expired client", expired_client, server(), API, "expired"),
        ("expired server", client(), expired_server, API, "expired"),
        ("client of another root", foreign_client, server(), API, "BadSignature"),
        ("server of another root", client(), foreign_server, API, "BadSignature"),
    ];
    for (case, client, server, name, reason) in cases {
        let error = shake(client, server, name).await.expect_err(case).to_string();
        let matches = error.to_lowercase().contains(&reason.to_lowercase());
        // Both test roots have the same name, hence the signature. The side that didn't notice is told by an alert; either may come first.
        assert!(matches || error.contains("alert") || error.contains("Expired"), "{case}: {error}");
    }
}

#[tokio::test]
async fn a_server_is_believed_by_whom_it_proves_to_be_not_by_the_name_it_is_asked_for_by() {
    let (root, other) = (Root::test(), Root::test());
    let client = root.issue(WEB, 60);
    let spiffe = |id: &str| Identity::spiffe(id).unwrap();
    let server = root.issue(API, 60);
    let foreign = other.issue(API, 60);
    let expired = root.issue(API, -1);
    // As SPIRE makes them.
    let alone = root.issue_for(API, &[uri(SPIFFE)], 60);
    let cases = [
        (&server, API.parse().unwrap(), "gateway.example", true),
        (&server, WEB.parse().unwrap(), API, false),
        (&server, spiffe(SPIFFE), "gateway.example", true),
        (&server, spiffe("spiffe://cluster.local/ns/demo/sa/y"), API, false),
        (&alone, spiffe(SPIFFE), API, true),
        (&alone, API.parse().unwrap(), "gateway.example", false),
        (&foreign, spiffe(SPIFFE), API, false),
        (&expired, spiffe(SPIFFE), API, false),
    ];
    for (server, expected, asked, believed) in cases {
        // Twice: no session may stand in for the proof.
        for _ in 0..2 {
            let config = client.client_config_expecting(&[b"h2"], &expected);
            let result = shake(config, server.server_config(&[b"h2"], ClientAuth::Required), asked).await;
            assert_eq!(result.is_ok(), believed, "{expected} asked for as {asked}: {:?}", result.err());
        }
    }
    let credentials = root.issue_for(WEB, &[SanType::DnsName("*.x".try_into().unwrap()), uri(SPIFFE), dns(WEB)], 60);
    assert_eq!(peer_identity(&credentials.chain), Some(spiffe(SPIFFE)), "the first that is an identity");
    assert_eq!(peer_identity(&alone.chain), Some(spiffe(SPIFFE)));
    assert_eq!(peer_identity(&root.issue_for(WEB, &[uri("https://x/y")], 60).chain), None);
}

#[tokio::test]
async fn a_client_without_a_certificate_has_no_identity() {
    let root = Root::test();
    let client = anchors_client_config(&root.anchors);
    let credentials = root.issue(API, 60);
    let server = credentials.server_config(&[b"h2"], ClientAuth::Optional);
    let (_, server) = shake(client.clone(), server, API).await.unwrap();
    assert!(server.get_ref().1.peer_certificates().is_none());
    let server = credentials.server_config(&[b"h2"], ClientAuth::Required);
    assert!(shake(client, server, API).await.is_err());
}

#[tokio::test]
async fn sessions_are_resumed_but_never_across_credentials() {
    let root = Root::test();
    let (client, server) = (root.issue(WEB, 60), root.issue(API, 60));
    let kind = async |client: &Arc<Credentials>, server: &Arc<Credentials>| {
        let server = server.server_config(&[b"h2"], ClientAuth::Required);
        let (client, server) = shake(client.client_config(&[b"h2"]), server, API).await.unwrap();
        let identity = peer_identity(server.get_ref().1.peer_certificates().unwrap()).unwrap();
        assert_eq!(identity.as_str(), WEB, "a resumed client is still known");
        client.get_ref().1.handshake_kind().unwrap()
    };
    assert_eq!(kind(&client, &server).await, HandshakeKind::Full);
    assert_eq!(kind(&client, &server).await, HandshakeKind::Resumed);
    assert_eq!(kind(&client, &root.issue(API, 60)).await, HandshakeKind::Full);
    let renewed = client.with_anchors(root.anchors.clone()).unwrap();
    assert_eq!(kind(&Arc::new(renewed), &server).await, HandshakeKind::Full);
}

#[test]
fn a_resumed_peer_is_refused_once_its_certificate_has_expired() {
    let chain = Root::test().issue(WEB, 60).chain.clone();
    let now = SystemTime::now();
    assert!(check_expiry(&chain, now).is_ok());
    let error = check_expiry(&chain, now + Duration::from_secs(61)).unwrap_err();
    assert!(error.to_string().contains("expired"));
}

#[test]
fn configurations_are_made_once() {
    let credentials = Root::test().issue(WEB, 60);
    assert!(Arc::ptr_eq(&credentials.client_config(&[b"h2"]), &credentials.client_config(&[b"h2"])));
    assert!(!Arc::ptr_eq(&credentials.client_config(&[b"h2"]), &credentials.client_config(&[])));
    let server = |auth| credentials.server_config(&[b"h2"], auth);
    assert!(Arc::ptr_eq(&server(ClientAuth::Optional), &server(ClientAuth::Optional)));
    assert!(!Arc::ptr_eq(&server(ClientAuth::Optional), &server(ClientAuth::Required)));
}

#[test]
fn credentials_must_fit_together() {
    let (root, other) = (Root::test(), Root::test());
    let good = root.issue(WEB, 60);
    let check = |name: &str, from: &Credentials, key: &Credentials, anchors: &Anchors| {
        Credentials::new(name.parse().unwrap(), from.chain.clone(), key.key.clone_key(), anchors.clone())
            .map(|_| ())
            .map_err(|error| error.to_string())
    };
    assert_eq!(check(WEB, &good, &good, &root.anchors), Ok(()));
    let cases = [
        (check(API, &good, &good, &root.anchors), "not valid for name"),
        (check(WEB, &good, &root.issue(WEB, 60), &root.anchors), "key of web"),
        (check(WEB, &good, &good, &other.anchors), "BadSignature"),
        (check(WEB, &root.issue(WEB, -1), &good, &root.anchors), "expired"),
    ];
    for (result, reason) in cases {
        let error = result.unwrap_err();
        assert!(error.contains(reason), "{error} lacks {reason}");
    }
    assert!(!format!("{good:?}").contains("key"), "a key is never printed");
}

#[test]
fn bad_bundles_say_what_is_wrong() {
    let root = Root::test();
    let leaf = to_pem("CERTIFICATE", &root.issue(WEB, 60).chain[0]);
    let good = root.anchors.pem();
    let cases = [
        (String::new(), "no certificate"),
        ("hello".to_owned(), "no certificate"),
        (leaf, "no certificate authority"),
        (format!("{good}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "trust anchor 2"),
        (format!("{good}-----BEGIN CERTIFICATE-----\n????\n-----END CERTIFICATE-----\n"), "trust anchor 2"),
        (" ".repeat(MAX_BUNDLE_BYTES + 1), "at most"),
        (good.repeat(MAX_ANCHORS + 1), "more than 64"),
    ];
    for (pem, reason) in cases {
        let error = Anchors::from_pem(&pem).unwrap_err().to_string();
        assert!(error.contains(reason), "{error} lacks {reason}");
    }
    assert_eq!(Anchors::from_pem(&format!("comment\n{good}{good}")).unwrap(), root.anchors, "one is one");
}

proptest! {
    #[test]
    fn pem_is_read_back(der in prop::collection::vec(any::<u8>(), 1..300)) {
        let pem = to_pem("CERTIFICATE", &der);
        prop_assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec(), der);
    }

    #[test]
    fn a_broken_certificate_is_nobodys(at in 0usize..600, byte: u8) {
        // From a real one, so that the parser gets deep.
        static LEAF: LazyLock<CertificateDer<'static>> = LazyLock::new(|| Root::test().issue(WEB, 60).chain[0].clone());
        let mut der = LEAF.to_vec();
        let at = at % der.len();
        der[at] = byte;
        let _ = peer_identity(&[CertificateDer::from(der.clone())]);
        let _ = not_after_of(&CertificateDer::from(der.clone()));
        let _ = Anchors::from_pem(&to_pem("CERTIFICATE", &der));
    }
}
