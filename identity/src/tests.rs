//! The service over loopback with TLS, its files changing beneath it.

use super::*;
use crate::token::JoinTokens;
use gossamer_api::process::grpc::{ClientIdentity, ClientTls, Connector};
use gossamer_api::process::tls::Anchors;
use gossamer_api::wire::mesh::WatchAnchors;
use gossamer_api::wire::mesh::anchors_client::AnchorsClient;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use rustls_pki_types::CertificateDer;
use tonic::transport::Channel;
use tonic::{Code, Status};

struct Mesh {
    _folder: tempfile::TempDir,
    authority: Authority,
    tokens: JoinTokens,
    channel: Channel,
    stop: Stop,
    /// What the client trusts.
    _anchors: watch::Sender<Anchors>,
}

impl Mesh {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tokens = JoinTokens::new();
        let mut config = Config::new(folder.path().to_owned(), TokenCheck::JoinTokens(tokens.clone()));
        config.poll = Duration::from_millis(10);
        let stop = Stop::new();
        let authority = Authority::start(&config, &stop).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (anchors, trusted) = watch::channel(authority.service.anchors());
        let tls = ClientTls { server: config.server_identity().unwrap(), client: ClientIdentity::Anonymous(trusted) };
        let channel = Connector::new(&address, Some(tls)).channel();
        let server = Authority { service: authority.service.clone(), state: authority.state.clone() };
        let inner = stop.clone();
        stop.spawn(async move { server.serve(&config, listener, inner).await.unwrap() });
        Mesh { _folder: folder, authority, tokens, channel, stop, _anchors: anchors }
    }

    async fn certify(&self, identity: &str, token: &str, csr_of: &str) -> Result<CertifyResponse, Status> {
        let request = CertifyRequest {
            identity: identity.to_owned(),
            token: token.as_bytes().to_vec(),
            certificate_signing_request: csr(csr_of),
        };
        IdentityClient::new(self.channel.clone()).certify(request).await.map(|answer| answer.into_inner())
    }

    fn token(&self, identity: &str) -> String {
        self.tokens.issue(&identity.parse().unwrap(), None).unwrap().keep()
    }

    fn metric(&self, line: &str) -> bool {
        self.authority.service.metrics().lines().any(|each| each == line)
    }
}

fn csr(name: &str) -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::new([name.to_owned()])
        .map(|mut params| {
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.serialize_request(&key).unwrap().der().to_vec()
        })
        .unwrap()
}

const WEB: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";
const API: &str = "api.demo.serviceaccount.identity.gossamer.cluster.local";
const DEADLINE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_token_gets_its_own_identitys_certificate_and_no_other() {
    let mesh = Mesh::start().await;
    let token = mesh.token(WEB);
    let answer = mesh.certify(WEB, &token, WEB).await.unwrap();
    let chain: Vec<_> = std::iter::once(answer.leaf_certificate)
        .chain(answer.intermediate_certificates)
        .map(CertificateDer::from)
        .collect();
    mesh.authority.service.anchors().verify(&chain, &WEB.parse().unwrap(), SystemTime::now()).unwrap();
    let until = SystemTime::try_from(answer.valid_until.unwrap()).unwrap();
    assert_eq!(gossamer_api::process::tls::not_after_of(&chain[0]).unwrap(), until);
    assert_eq!(chain.len(), 2, "leaf and issuer, not the root");

    let foreign = "web.demo.serviceaccount.identity.linkerd.cluster.local";
    let cases = [
        (API, &*token, API, Code::PermissionDenied, "others_token"),
        (WEB, "guessed", WEB, Code::PermissionDenied, "unknown_token"),
        (WEB, "", WEB, Code::PermissionDenied, "unknown_token"),
        (WEB, &token, API, Code::PermissionDenied, "csr_name"),
        (foreign, &token, foreign, Code::InvalidArgument, "foreign_identity"),
        ("localhost", &token, "localhost", Code::InvalidArgument, "foreign_identity"),
        ("a b", &token, WEB, Code::InvalidArgument, "bad_identity"),
    ];
    for (identity, token, csr, code, reason) in cases {
        let status = mesh.certify(identity, token, csr).await.unwrap_err();
        assert_eq!(status.code(), code, "{identity} {reason}: {status:?}");
        assert!(!status.message().is_empty());
        let counted = mesh.authority.service.metrics();
        let line = counted.lines().find(|line| line.contains(&format!("\"{reason}\""))).unwrap();
        assert!(!line.ends_with(" 0"), "{line}");
    }
    assert!(mesh.metric("identity_certificates_issued_total 1"));
    assert!(mesh.metric("identity_trust_anchors 1"));
}

#[tokio::test]
async fn too_many_requests_of_one_identity_are_refused() {
    let mesh = Mesh::start().await;
    let token = mesh.token(WEB);
    // Requests that fail later count as well; these are cheap.
    let mut refused = None;
    for _ in 0..2 * limit::PER_IDENTITY.burst {
        let status = mesh.certify(WEB, &token, "localhost").await.unwrap_err();
        if status.code() == Code::ResourceExhausted {
            refused = Some(status);
            break;
        }
    }
    let status = refused.expect("a limit");
    assert!(status.message().contains("by this identity"), "{status:?}");
    let api = mesh.token(API);
    mesh.certify(API, &api, API).await.unwrap();
}

#[tokio::test]
async fn roots_rotate_while_everything_runs() {
    let mesh = Mesh::start().await;
    let own = mesh.authority.service.keep_issued(API.parse().unwrap()).unwrap();
    let first = own.borrow().clone().unwrap();
    let mut bundles = AnchorsClient::new(mesh.channel.clone()).watch(WatchAnchors {}).await.unwrap().into_inner();
    let mut told = None;
    // The same bundle is told again when the issuer changes.
    let mut next = async || loop {
        let bundle = tokio::time::timeout(DEADLINE, bundles.message()).await.expect("in time").unwrap().unwrap();
        let bundle = Anchors::from_pem(&bundle.pem).unwrap();
        if told.replace(bundle.clone()).as_ref() != Some(&bundle) {
            return bundle;
        }
    };
    let old = next().await;
    assert_eq!(old, mesh.authority.service.anchors());

    mesh.authority.state.add_root().unwrap();
    let both = next().await;
    assert_eq!(both.certificates().len(), 2);

    // Issuing goes on throughout; a leaf of the new issuer leads to the new root.
    mesh.authority.state.reissue().unwrap();
    let token = mesh.token(WEB);
    let fresh = async || {
        let answer = mesh.certify(WEB, &token, WEB).await.unwrap();
        let chain = [answer.leaf_certificate, answer.intermediate_certificates[0].clone()].map(CertificateDer::from);
        both.verify(&chain, &WEB.parse().unwrap(), SystemTime::now()).unwrap();
        old.verify(&chain, &WEB.parse().unwrap(), SystemTime::now()).is_err()
    };
    tokio::time::timeout(DEADLINE, async {
        while !fresh().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the new issuer is taken over");

    mesh.authority.state.drop_old_roots().unwrap();
    let last = next().await;
    assert_eq!(last.certificates().len(), 1);
    assert_ne!(last, old);
    let mut own = own;
    let renewed =
        tokio::time::timeout(DEADLINE, own.wait_for(|own| own.as_ref().is_some_and(|own| own.anchors == last)));
    let renewed = renewed.await.expect("in time").unwrap().clone().unwrap();
    assert_ne!(renewed.chain, first.chain, "the service's own certificate follows");
}

#[test]
fn a_broken_file_changes_nothing_until_it_is_mended() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = |folder: &tempfile::TempDir| State::open(folder.path(), "cluster.local", None).unwrap();
    let (state, foreign) = (open(&folder), open(&other));
    let (mut known, present) = (state.read().unwrap(), state.load().unwrap());
    let path = folder.path().join("issuer.pem");
    let good = std::fs::read_to_string(&path).unwrap();
    let mut look =
        || look(&state, &mut known, &present).map(|news| news.is_some()).map_err(|error| format!("{error:#}"));
    assert_eq!(look(), Ok(false));
    foreign.load().unwrap();
    std::fs::copy(other.path().join("issuer.pem"), &path).unwrap();
    for _ in 0..2 {
        assert!(look().unwrap_err().contains("does not verify"), "an issuer of another root");
    }
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(look().is_err(), "half a file");
    std::fs::write(&path, good).unwrap();
    assert_eq!(look(), Ok(false), "mended");
    state.reissue().unwrap();
    assert_eq!(look(), Ok(true));
}

#[tokio::test]
async fn stops_although_somebody_watches() {
    let mesh = Mesh::start().await;
    let mut bundles = AnchorsClient::new(mesh.channel.clone()).watch(WatchAnchors {}).await.unwrap().into_inner();
    assert!(bundles.message().await.unwrap().is_some());
    mesh.stop.stop();
    assert!(mesh.stop.wait(DEADLINE).await, "everything ended by itself");
    assert!(!matches!(bundles.message().await, Ok(Some(_))), "the stream has ended");
}
