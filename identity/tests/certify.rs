//! The client of certificates (`gossamer_api::process::certify`) against the real service, over loopback.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gossamer_api::process::certify::{self, CertifyConfig, Token, TrustAnchors};
use gossamer_api::process::grpc::{self, CredentialsWatch, ServerTls};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::{self, Anchors, ClientAuth, Credentials};
use gossamer_identity::token::{JoinTokens, TokenCheck};
use gossamer_identity::{Authority, Config, issuer};
use linkerd2_proxy_api::identity::identity_server::IdentityServer;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tonic::service::Routes;

struct Mesh {
    folder: tempfile::TempDir,
    authority: Authority,
    tokens: JoinTokens,
    config: CertifyConfig,
    stop: Stop,
}

impl Mesh {
    /// `linkerd`: a service without the stream of anchors.
    async fn start(prepare: impl FnOnce(&Path), linkerd: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        prepare(&state);
        let tokens = JoinTokens::new();
        let mut config = Config::new(state, TokenCheck::JoinTokens(tokens.clone()));
        config.poll = Duration::from_millis(10);
        let stop = Stop::new();
        let authority = Authority::start(&config, &stop).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = config.server_identity().unwrap();
        let service = authority.service.clone();
        let routes = match linkerd {
            true => Routes::new(IdentityServer::new(service.clone())),
            false => service.add_to(Routes::default()),
        };
        let credentials = service.keep_issued(server.clone()).unwrap();
        let tls = ServerTls { credentials, auth: ClientAuth::Optional };
        stop.spawn(grpc::serve(routes, listener, Some(tls), stop.clone()));
        let config = CertifyConfig {
            address,
            server: Some(server),
            identity: WEB.parse().unwrap(),
            token: Token::File(folder.path().join("token")),
            anchors: TrustAnchors::Given(authority.service.anchors()),
        };
        Mesh { folder, authority, tokens, config, stop }
    }

    fn write_token(&self) {
        let token = self.tokens.issue(&self.config.identity, None).unwrap().keep();
        std::fs::write(self.folder.path().join("token"), token).unwrap();
    }

    fn spawn(&self) -> CredentialsWatch {
        certify::start(self.config.clone(), self.stop.clone()).unwrap()
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.authority.service.metrics();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }
}

async fn wait_for(
    credentials: &mut CredentialsWatch,
    what: impl Fn(&Option<Arc<Credentials>>) -> bool,
) -> Option<Arc<Credentials>> {
    let found = tokio::time::timeout(Duration::from_secs(20), credentials.wait_for(|present| what(present)));
    found.await.expect("in time").unwrap().clone()
}

const WEB: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";

#[tokio::test]
async fn gets_a_certificate_that_others_accept() {
    let mesh = Mesh::start(|_| {}, false).await;
    mesh.write_token();
    let ours = wait_for(&mut mesh.spawn(), Option::is_some).await.unwrap();
    assert_eq!(ours.identity.as_str(), WEB);
    let other = Arc::new(mesh.authority.service.self_issue(&WEB.replace("web", "api").parse().unwrap()).unwrap());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (client, server) = tokio::try_join!(
        tls::connect(ours.client_config(&[]), &other.identity, near),
        tls::accept(other.server_config(&[], ClientAuth::Required), far),
    )
    .unwrap();
    let peer = |certificates: Option<&[CertificateDer<'static>]>| tls::peer_identity(certificates.unwrap()).unwrap();
    assert_eq!(peer(server.get_ref().1.peer_certificates()), ours.identity);
    assert_eq!(peer(client.get_ref().1.peer_certificates()), other.identity);
}

#[tokio::test]
async fn reads_the_token_anew_until_it_is_good() {
    let mesh = Mesh::start(|_| {}, false).await;
    let mut credentials = mesh.spawn();
    std::fs::write(mesh.folder.path().join("token"), "wrong").unwrap();
    let refused = async {
        while mesh.metric("identity_certificates_refused_total{reason=\"unknown_token\"}") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), refused).await.expect("it asks");
    assert!(credentials.borrow().is_none());
    mesh.write_token();
    wait_for(&mut credentials, Option::is_some).await;
}

#[tokio::test]
async fn nobody_else_sees_the_token() {
    let mesh = Mesh::start(|_| {}, false).await;
    mesh.write_token();
    // The right anchors, the wrong name; then the right name and other anchors.
    let mut wrong_name = mesh.config.clone();
    wrong_name.server = Some(WEB.parse().unwrap());
    let mut wrong_root = mesh.config.clone();
    let root = issuer::new_root("cluster.local", SystemTime::now()).unwrap();
    wrong_root.anchors = TrustAnchors::Given(Anchors::from_pem(&root.certificate).unwrap());
    for config in [wrong_name, wrong_root] {
        let error = certify::certify(config).await.unwrap_err().to_string();
        assert!(error.contains("invalid peer certificate"), "{error}");
    }
    let text = mesh.authority.service.metrics();
    let asked = text.lines().filter(|line| line.starts_with("identity_certificates_") && !line.ends_with(" 0"));
    assert_eq!(asked.count(), 0, "no request arrived: {text}");
}

#[tokio::test]
async fn follows_a_rotation_of_the_roots() {
    let mesh = Mesh::start(|_| {}, false).await;
    mesh.write_token();
    let mut credentials = mesh.spawn();
    let first = wait_for(&mut credentials, Option::is_some).await.unwrap();

    mesh.authority.state.add_root().unwrap();
    let is_news = |count: usize| {
        move |present: &Option<Arc<Credentials>>| {
            present.as_ref().is_some_and(|present| present.anchors.certificates().len() == count)
        }
    };
    let both = wait_for(&mut credentials, is_news(2)).await.unwrap();
    assert_eq!(both.chain, first.chain, "the certificate is still good");
    assert!(!Arc::ptr_eq(&both.client_config(&[]), &first.client_config(&[])), "sessions are not carried over");

    mesh.authority.state.reissue().unwrap();
    mesh.authority.state.drop_old_roots().unwrap();
    let last = wait_for(&mut credentials, is_news(1)).await.unwrap();
    assert_ne!(last.chain, first.chain, "the old one leads to a root that is not trusted any more");
    assert_ne!(last.anchors, first.anchors);
}

#[tokio::test]
async fn a_service_that_tells_no_anchors_is_fine() {
    let mesh = Mesh::start(|_| {}, true).await;
    mesh.write_token();
    let mut credentials = mesh.spawn();
    let ours = wait_for(&mut credentials, Option::is_some).await.unwrap();
    assert_eq!(ours.anchors, mesh.authority.service.anchors());
}

#[tokio::test]
async fn one_certificate_with_a_token_at_hand_and_anchors_of_a_file() {
    let mesh = Mesh::start(|_| {}, false).await;
    let mut config = mesh.config.clone();
    config.token = Token::Inline(mesh.tokens.issue(&config.identity, None).unwrap().keep());
    let path = mesh.folder.path().join("ca-bundle.crt");
    config.anchors = TrustAnchors::File(path.clone());
    let missing = certify::certify(config.clone()).await.unwrap_err().to_string();
    assert!(missing.contains("ca-bundle.crt: No such file"), "{missing}");
    std::fs::write(&path, mesh.authority.service.anchors().pem()).unwrap();
    assert_eq!(certify::certify(config).await.unwrap().identity.as_str(), WEB);
}

/// The service's own root may be replaced at once; then only the file tells.
#[tokio::test]
async fn takes_over_a_changed_anchors_file() {
    let mesh = Mesh::start(|_| {}, false).await;
    mesh.write_token();
    let path = mesh.folder.path().join("ca-bundle.crt");
    let other = issuer::new_root("cluster.local", SystemTime::now()).unwrap();
    std::fs::write(&path, other.certificate).unwrap();
    let mut config = mesh.config.clone();
    config.anchors = TrustAnchors::File(path.clone());
    let mut credentials = certify::start(config, mesh.stop.clone()).unwrap();
    assert!(credentials.borrow_and_update().is_none());
    std::fs::write(&path, mesh.authority.service.anchors().pem()).unwrap();
    wait_for(&mut credentials, Option::is_some).await;
}

/// The issuer's end caps the leaves': renewed while it lives, taken back when nothing more comes. What is left for that on
/// a busy machine is the last third of its life, less the second to which certificates are rounded.
#[tokio::test]
async fn renews_in_time_and_ends_closed() {
    let mesh = Mesh::start(|state| short_lived(state, Duration::from_secs(12)), false).await;
    mesh.write_token();
    let mut credentials = mesh.spawn();
    let first = wait_for(&mut credentials, Option::is_some).await.unwrap();
    let second = wait_for(&mut credentials, |now| now.as_ref().is_some_and(|now| now.chain != first.chain)).await;
    assert!(!second.unwrap().is_expired(SystemTime::now()), "renewed before the end");
    wait_for(&mut credentials, Option::is_none).await;
    assert!(first.is_expired(SystemTime::now()));
}

/// An authority whose issuer ends soon, as a mounted secret.
fn short_lived(state: &Path, life: Duration) {
    let now = SystemTime::now();
    let root = issuer::new_root("cluster.local", now).unwrap();
    let root_key = KeyPair::from_pem(&root.key).unwrap();
    let root_issuer = rcgen::Issuer::from_ca_cert_pem(&root.certificate, root_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + life).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let issuer = params.signed_by(&key, &root_issuer).unwrap();
    std::fs::create_dir(state).unwrap();
    for (name, text) in [("tls.crt", issuer.pem()), ("tls.key", key.serialize_pem()), ("ca.crt", root.certificate)] {
        std::fs::write(state.join(name), text).unwrap();
    }
}
