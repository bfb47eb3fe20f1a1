//! Against the real identity service, over loopback.

use std::path::Path;

use gossamer_api::process::grpc::{self, ServerTls};
use gossamer_api::process::tls::{self, ClientAuth};
use gossamer_identity::token::{JoinTokens, TokenCheck};
use gossamer_identity::{Authority, Config, issuer};
use linkerd2_proxy_api::identity::identity_server::IdentityServer;
use rcgen::{BasicConstraints, IsCa, KeyUsagePurpose};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::*;

struct Mesh {
    folder: tempfile::TempDir,
    authority: Authority,
    tokens: JoinTokens,
    config: IdentityConfig,
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
        let addr = listener.local_addr().unwrap().to_string();
        let server = config.server_identity().unwrap();
        let service = authority.service.clone();
        let routes = match linkerd {
            true => Routes::new(IdentityServer::new(service.clone())),
            false => service.add_to(Routes::default()),
        };
        let credentials = service.keep_issued(server.clone()).unwrap();
        let tls = ServerTls { credentials, auth: ClientAuth::Optional };
        stop.spawn(grpc::serve(routes, listener, Some(tls), stop.clone()));
        let config = IdentityConfig {
            service: Service { addr, identity: Some(server) },
            identity: WEB.parse().unwrap(),
            token_file: folder.path().join("token"),
            anchors: authority.service.anchors(),
        };
        Mesh { folder, authority, tokens, config, stop }
    }

    fn write_token(&self) {
        let token = self.tokens.issue(&self.config.identity, None).unwrap().keep();
        std::fs::write(self.folder.path().join("token"), token).unwrap();
    }

    fn spawn(&self) -> CredentialsWatch {
        spawn(self.config.clone(), self.stop.clone())
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
    std::fs::write(&mesh.config.token_file, "wrong").unwrap();
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
    wrong_name.service.identity = Some(WEB.parse().unwrap());
    let mut wrong_root = mesh.config.clone();
    let root = issuer::new_root("cluster.local", SystemTime::now()).unwrap();
    wrong_root.anchors = Anchors::from_pem(&root.certificate).unwrap();
    for config in [wrong_name, wrong_root] {
        let (_, anchors) = watch::channel(config.anchors.clone());
        let server = config.service.identity.clone().unwrap();
        let tls = ClientTls { server, client: ClientIdentity::Anonymous(anchors.clone()) };
        let channel = Connector::new(&config.service.addr, Some(tls)).channel();
        let (sender, _) = watch::channel(None);
        let mut keeper = Keeper { config, client: IdentityClient::new(channel), anchors, sender };
        let error = keeper.certify().await.unwrap_err().to_string();
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
    assert_eq!(ours.anchors, mesh.config.anchors);
}

/// The issuer's end caps the leaves': renewed while it lives, taken back when nothing more comes.
#[tokio::test]
async fn renews_in_time_and_ends_closed() {
    let mesh = Mesh::start(|state| short_lived(state, Duration::from_secs(4)), false).await;
    mesh.write_token();
    let mut credentials = mesh.spawn();
    let first = wait_for(&mut credentials, Option::is_some).await.unwrap();
    let second = wait_for(&mut credentials, |now| now.as_ref().is_some_and(|now| now.chain != first.chain)).await;
    assert!(!second.unwrap().is_expired(SystemTime::now()), "renewed before the end");
    wait_for(&mut credentials, Option::is_none).await;
    assert!(first.is_expired(SystemTime::now()));
}

#[test]
fn renewals_and_retries_are_spread_and_bounded() {
    let now = SystemTime::now();
    let day = Duration::from_secs(24 * 3600);
    let at = |random| renewal(now, now + day, random).duration_since(now).unwrap().as_secs_f64() / day.as_secs_f64();
    assert!((at(0.0) - 0.665).abs() < 1e-6 && (at(1.0) - 0.735).abs() < 1e-6);
    assert_eq!(renewal(now, now - day, 0.5), now + MIN_RENEWAL);
    assert_eq!(backoff(0, false, 1.0), defaults::CONTROL_BACKOFF_MIN);
    assert_eq!(backoff(0, false, 0.0), defaults::CONTROL_BACKOFF_MIN / 2);
    assert_eq!(backoff(1000, false, 1.0), defaults::CONTROL_BACKOFF_MAX);
    assert_eq!(backoff(1000, true, 1.0), MAX_REFUSED_BACKOFF);
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
