//! The authority on Kubernetes against an API server of our own making: reviews, watches and events.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::{self, to_pem};
use gossamer_identity::issuer::{self, Authority as Made};
use gossamer_identity::kubernetes::{Authority, Config};
use linkerd2_proxy_api::identity::identity_server::Identity as _;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status};

/// Objects by plural (there is one of each kind), their watchers, and the events that were written.
#[derive(Clone, Default)]
struct Api(Arc<Mutex<Objects>>);

#[derive(Default)]
struct Objects {
    version: u64,
    secrets: Option<Value>,
    configmaps: Option<Value>,
    watchers: Vec<(String, mpsc::Sender<String>)>,
    events: Vec<Value>,
}

impl Objects {
    fn slot(&mut self, plural: &str) -> &mut Option<Value> {
        match plural {
            "secrets" => &mut self.secrets,
            "configmaps" => &mut self.configmaps,
            other => panic!("nobody should ask for {other}"),
        }
    }
}

impl Api {
    fn put(&self, plural: &str, name: &str, mut object: Value) {
        let mut objects = self.0.lock().unwrap();
        objects.version += 1;
        object["metadata"] = json!({ "name": name, "namespace": "gossamer", "uid": "1",
            "resourceVersion": objects.version.to_string() });
        *objects.slot(plural) = Some(object.clone());
        let news = json!({ "type": "MODIFIED", "object": object }).to_string() + "\n";
        objects.watchers.retain(|(of, watcher)| of != plural || watcher.try_send(news.clone()).is_ok());
    }

    fn put_issuer(&self, certificate: &str, key: &str) {
        let encode = |text: &str| {
            // PEM's own base 64, without its frame.
            to_pem("X", text.as_bytes()).lines().filter(|line| !line.starts_with('-')).collect::<String>()
        };
        let data = json!({ "tls.crt": encode(certificate), "tls.key": encode(key) });
        self.put("secrets", "gossamer-identity-issuer", json!({ "apiVersion": "v1", "kind": "Secret", "data": data }));
    }

    fn put_anchors(&self, pem: &str) {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": { "ca-bundle.crt": pem } });
        self.put("configmaps", "gossamer-trust-anchors", map);
    }

    async fn event(&self, reason: &str) -> Value {
        let found = async {
            loop {
                if let Some(event) = self.0.lock().unwrap().events.iter().find(|event| event["reason"] == reason) {
                    return event.clone();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, found).await.expect("an event in time")
    }

    async fn serve(&self) -> kube::Client {
        let router = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .route("/api/v1/namespaces/gossamer/{plural}", get(list))
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
            .with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        kube::Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap()
    }
}

/// A token is `NAMESPACE/ACCOUNT/AUDIENCE`.
async fn review(Json(review): Json<Value>) -> Json<Value> {
    let token = review["spec"]["token"].as_str().unwrap();
    let parts: Vec<&str> = token.split('/').collect();
    let status = match parts[..] {
        [namespace, account, audience] if review["spec"]["audiences"][0] == audience => json!({
            "authenticated": true, "audiences": [audience],
            "user": { "username": format!("system:serviceaccount:{namespace}:{account}"), "extra": {
                "authentication.kubernetes.io/pod-name": [format!("{account}-1")],
                "authentication.kubernetes.io/pod-uid": ["42"],
            }},
        }),
        _ => json!({ "error": "[invalid bearer token, token audiences are invalid]" }),
    };
    Json(json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {}, "status": status }))
}

async fn list(
    State(api): State<Api>,
    Path(plural): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let has = |key: &str, value: &str| query.iter().any(|(k, v)| k == key && v.starts_with(value));
    assert!(has("fieldSelector", "metadata.name=gossamer-"), "RBAC allows one by its name alone: {query:?}");
    let mut objects = api.0.lock().unwrap();
    if has("watch", "t") || has("watch", "1") {
        let (sender, receiver) = mpsc::channel(16);
        // What happened between the list and the watch.
        let since = query.iter().find(|(key, _)| key == "resourceVersion").and_then(|(_, v)| v.parse::<u64>().ok());
        if let (Some(object), Some(since)) = (objects.slot(&plural).clone(), since)
            && object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > since
        {
            sender.try_send(json!({ "type": "MODIFIED", "object": object }).to_string() + "\n").unwrap();
        }
        objects.watchers.push((plural, sender));
        let lines = ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>);
        return axum::body::Body::from_stream(lines).into_response();
    }
    let version = objects.version.to_string();
    let items: Vec<Value> = objects.slot(&plural).iter().cloned().collect();
    let kind = if plural == "secrets" { "SecretList" } else { "ConfigMapList" };
    Json(json!({ "apiVersion": "v1", "kind": kind, "metadata": { "resourceVersion": version }, "items": items }))
        .into_response()
}

async fn event(State(api): State<Api>, Path(namespace): Path<String>, Json(event): Json<Value>) -> Json<Value> {
    assert_eq!(event["regarding"]["namespace"], namespace.as_str());
    api.0.lock().unwrap().events.push(event.clone());
    Json(event)
}

struct Mesh {
    api: Api,
    authority: Authority,
    root: Made,
    _stop: Stop,
}

fn made() -> (Made, Made) {
    let now = SystemTime::now();
    let root = issuer::new_root("cluster.local", now).unwrap();
    let issuer = issuer::new_issuer(&root.pem(), "cluster.local", now).unwrap();
    (root, issuer)
}

fn config() -> Config {
    Config {
        control_namespace: "gossamer".into(),
        trust_domain: "cluster.local".into(),
        audience: "identity.gossamer.io".into(),
        issuer_dir: None,
        anchors: None,
    }
}

impl Mesh {
    async fn start() -> Self {
        let (root, issuer) = made();
        let api = Api::default();
        api.put_issuer(&issuer.certificate, &issuer.key);
        api.put_anchors(&root.certificate);
        let (client, stop) = (api.serve().await, Stop::new());
        let (waiting, _) = watch::channel(String::new());
        let config = config();
        let started = Authority::start(&config, "gossamer-identity", client, waiting, &stop);
        let authority = tokio::time::timeout(DEADLINE, started).await.expect("in time").unwrap().unwrap();
        Mesh { api, authority, root, _stop: stop }
    }

    async fn certify(&self, account: &str, token: &str) -> Result<CertifyResponse, Status> {
        let identity = format!("{account}.demo.serviceaccount.identity.gossamer.cluster.local");
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([identity.clone()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = CertifyRequest {
            identity,
            token: token.into(),
            certificate_signing_request: params.serialize_request(&key).unwrap().der().to_vec(),
        };
        self.authority.service.certify(Request::new(request)).await.map(|answer| answer.into_inner())
    }

    /// Waits until the issuer of that certificate signs.
    async fn signed_by(&self, certificate: &str) {
        use rustls_pki_types::pem::PemObject;
        let der = rustls_pki_types::CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let line = format!("identity_issuer_info{{fingerprint=\"{}\"}} 1", tls::fingerprint(&der));
        let taken = async {
            while !self.authority.service.metrics().contains(&line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, taken).await.expect("taken over in time");
    }
}

const WEB: &str = "demo/web/identity.gossamer.io";
const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_service_accounts_token_gets_its_certificate_and_no_other() {
    let mesh = Mesh::start().await;
    let answer = mesh.certify("web", WEB).await.unwrap();
    assert_eq!(answer.intermediate_certificates.len(), 1);
    for (account, token) in [("web", "demo/web/kubernetes"), ("api", WEB), ("web", "guessed"), ("web", "")] {
        let status = mesh.certify(account, token).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{account} {token}: {status:?}");
    }
    let told = mesh.api.event("CertificateRefused").await;
    assert_eq!(told["regarding"]["kind"], "ServiceAccount");
    assert!(told["note"].as_str().unwrap().contains("audiences are invalid"), "{told}");
}

#[tokio::test]
async fn issuer_and_anchors_change_while_it_runs() {
    let mesh = Mesh::start().await;
    let (root, issuer) = made();
    // Of a root that nobody trusts yet: told, and the old one goes on.
    mesh.api.put_issuer(&issuer.certificate, &issuer.key);
    let told = mesh.api.event("IssuerRefused").await;
    assert_eq!(told["regarding"]["name"], "gossamer-identity-issuer");
    mesh.certify("web", WEB).await.unwrap();
    // Trusted: taken over, without a further change of the Secret.
    mesh.api.put_anchors(&format!("{}{}", mesh.root.certificate, root.certificate));
    mesh.signed_by(&issuer.certificate).await;
    assert_eq!(mesh.authority.service.anchors().certificates().len(), 2);
    // Nonsense changes nothing.
    mesh.api.put_anchors("nonsense");
    let told = mesh.api.event("TrustAnchorsRefused").await;
    assert!(told["note"].as_str().unwrap().contains("going on with the last good"), "{told}");
    assert_eq!(mesh.authority.service.anchors().certificates().len(), 2);
    mesh.api.put_anchors(&root.certificate);
    let dropped = async {
        while mesh.authority.service.anchors().certificates().len() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, dropped).await.expect("dropped in time");
    mesh.certify("web", WEB).await.unwrap();
}

#[tokio::test]
async fn mounted_files_do_until_the_api_server_tells() {
    let (root, issuer) = made();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("tls.crt", &issuer.certificate);
    write("tls.key", &issuer.key);
    write("ca-bundle.crt", &root.certificate);
    let files = Config {
        issuer_dir: Some(folder.path().into()),
        anchors: Some(folder.path().join("ca-bundle.crt")),
        ..config()
    };
    // Nobody listens there.
    let client = kube::Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let (stop, (waiting, _)) = (Stop::new(), watch::channel(String::new()));
    let started = Authority::start(&files, "gossamer-identity", client, waiting, &stop);
    let authority = tokio::time::timeout(DEADLINE, started).await.expect("in time").unwrap().unwrap();
    assert_eq!(authority.service.anchors().certificates().len(), 1);
}

#[tokio::test]
async fn a_stop_ends_the_wait_for_an_issuer() {
    let (client, stop) = (Api::default().serve().await, Stop::new());
    let (waiting, mut missing) = watch::channel(String::new());
    let inner = stop.clone();
    let start = tokio::spawn(async move {
        Authority::start(&config(), "gossamer-identity", client, waiting, &inner).await.map(|started| started.is_none())
    });
    tokio::time::timeout(DEADLINE, missing.wait_for(|what| what.contains("missing"))).await.expect("told").unwrap();
    stop.stop();
    assert!(start.await.unwrap().unwrap());
    assert!(stop.wait(DEADLINE).await, "everything ended by itself");
}
