//! The webhooks as the API server sees them: HTTPS on loopback, reviews in and out.

use super::*;
use crate::certs::Serving;
use gossamer_api::kubernetes::Map;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NAME: &str = "gossamer-injector.gossamer.svc";

struct Server {
    address: std::net::SocketAddr,
    certificates: watch::Sender<Arc<ServerConfig>>,
    serving: Serving,
    values: watch::Sender<Option<Arc<Values>>>,
    metrics: Arc<Metrics>,
    news: tokio::sync::mpsc::Receiver<News>,
    stop: Stop,
}

async fn server() -> Server {
    let serving = Serving::new(&[NAME.into()], None, SystemTime::now()).unwrap();
    let (certificates, config) = watch::channel(serving.config().unwrap());
    let (values, receiver) = watch::channel(Some(Arc::new(Values::default())));
    let asking: Map = Map::from([(gossamer_api::keys::INJECT.into(), "enabled".into())]);
    let mut half = asking.clone();
    half.insert("config.gossamer.io/acces-log".into(), "json".into());
    let typo = Map::from([("gossamer.io/injet".into(), "enabled".into())]);
    let known = [("demo", asking), ("plain", Map::new()), ("typo", typo), ("half", half)];
    let namespaces = Namespaces::fixed(known.map(|(name, annotations)| (name.into(), annotations)));
    let (events, news) = Events::new();
    let metrics = Arc::new(Metrics::default());
    let webhooks = Webhooks { values: receiver, namespaces, metrics: metrics.clone(), events };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), Stop::new());
    stop.spawn(serve(webhooks, listener, config, stop.clone()));
    Server { address, certificates, serving, values, metrics, news, stop }
}

impl Server {
    /// Status and body of the answer. The certificate must lead to `authorities`.
    async fn post_as(&self, authorities: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let config = rustls::ClientConfig::builder_with_provider(tls::provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let io = TcpStream::connect(self.address).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut io = connector.connect(ServerName::try_from(NAME).unwrap(), io).await?;
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\nconnection: close\r\n");
        io.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
        let mut answer = String::new();
        // The server ends without close_notify when it closes.
        let _ = io.read_to_string(&mut answer).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        Ok((head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_string()))
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.post_as(&self.serving.authorities, path, &body.to_string()).await.unwrap();
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    async fn inject(&self, namespace: &str, pod: Value) -> Value {
        let (status, body) = self.post("/inject", &review("Pod", namespace, pod)).await;
        assert_eq!(status, 200, "{body}");
        body["response"].clone()
    }
}

fn review(kind: &str, namespace: &str, object: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": { "uid": "u1", "operation": "CREATE", "kind": { "kind": kind }, "namespace": namespace, "object": object },
    })
}

fn pod() -> Value {
    json!({
        "metadata": { "generateName": "web-", "ownerReferences": [{ "kind": "StatefulSet", "name": "web", "uid": "7" }] },
        "spec": { "containers": [{ "name": "web", "image": "web:1" }] },
    })
}

#[tokio::test]
async fn a_pod_is_patched_over_https() {
    let mut server = server().await;
    let response = server.inject("demo", pod()).await;
    assert_eq!(
        (&response["uid"], &response["allowed"], &response["patchType"]),
        (&json!("u1"), &json!(true), &json!("JSONPatch"))
    );
    let ByteString(patch) = serde_json::from_value(response["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut pod = pod();
    json_patch::patch(&mut pod, &patch).unwrap();
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "gossamer-proxy");
    assert_eq!(server.news.try_recv().unwrap(), News::of(&pod, "demo", false, "Injected", "pods get the proxy".into()));
    let metric =
        "responses_total{owner_kind=\"statefulset\",namespace=\"demo\",annotation_at=\"namespace\",skip=\"false\"";
    assert!(server.metrics.text().contains(metric), "{}", server.metrics.text());
}

#[tokio::test]
async fn who_did_not_ask_hears_nothing() {
    let mut server = server().await;
    let response = server.inject("plain", pod()).await;
    assert_eq!(response, json!({ "uid": "u1", "allowed": true }));
    assert!(server.news.try_recv().is_err());
}

#[tokio::test]
async fn a_pod_that_can_have_no_proxy_is_made_with_a_warning() {
    let server = server().await;
    let mut pod = pod();
    pod["spec"]["hostNetwork"] = true.into();
    let response = server.inject("demo", pod).await;
    assert_eq!((&response["allowed"], &response["patch"]), (&json!(true), &Value::Null));
    assert!(response["warnings"][0].as_str().unwrap().contains("uses its node's network"), "{response}");
}

#[tokio::test]
async fn a_misspelt_annotation_is_a_warning_and_a_bad_value_a_refusal() {
    let server = server().await;
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({ "config.gossamer.io/opaque-port": "80" });
    let response = server.inject("demo", pod.clone()).await;
    assert!(response["warnings"][0].as_str().unwrap().ends_with("did you mean \"config.gossamer.io/opaque-ports\"?"));
    pod["metadata"]["annotations"] = json!({ "config.gossamer.io/opaque-ports": "http" });
    let response = server.inject("demo", pod).await;
    assert_eq!(response["allowed"], false);
    assert!(response["status"]["message"].as_str().unwrap().ends_with("\"http\" is no port"), "{response}");
}

/// What the owner of a pod is told, in the order in which it is.
fn told(server: &mut Server) -> Vec<(&'static str, String)> {
    std::iter::from_fn(|| server.news.try_recv().ok()).map(|news| (news.reason, news.note)).collect()
}

#[tokio::test]
async fn a_misspelt_request_for_the_proxy_is_a_warning_and_an_event() {
    let mut server = server().await;
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({ "gossamer.io/injcet": "enabled" });
    let response = server.inject("plain", pod).await;
    let warning =
        "annotation \"gossamer.io/injcet\" is not known and has no effect; did you mean \"gossamer.io/inject\"?";
    assert_eq!((&response["patch"], &response["warnings"]), (&Value::Null, &json!([warning])));
    assert_eq!(told(&mut server), [("InjectionWarning", warning.to_string())]);
}

#[tokio::test]
async fn a_namespaces_typo_is_told_with_each_of_its_pods() {
    let mut server = server().await;
    let response = server.inject("typo", pod()).await;
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("on the namespace: annotation \"gossamer.io/injet\""), "{warning}");
    assert_eq!(told(&mut server)[0].0, "InjectionWarning");
    let response = server.inject("half", pod()).await;
    assert!(response["warnings"][0].as_str().unwrap().contains("config.gossamer.io/access-log"), "{response}");
    let told = told(&mut server);
    assert_eq!((told[0].0, told[1].0), ("Injected", "InjectionWarning"), "{told:?}");
}

#[tokio::test]
async fn every_skip_that_was_asked_for_is_an_event() {
    let mut server = server().await;
    let mut injected = pod();
    injected["spec"]["containers"] = json!([{ "name": "web" }, { "name": "gossamer-proxy" }]);
    server.inject("demo", injected).await;
    assert_eq!(told(&mut server), [("Injected", "pods stay as they are: it has the proxy already".into())]);
    let mut host = pod();
    host["spec"]["hostNetwork"] = true.into();
    server.inject("demo", host).await;
    let [("InjectionSkipped", note)] = &told(&mut server)[..] else { panic!() };
    assert!(note.starts_with("pods stay without proxy: it uses its node's network"), "{note}");
    let mut bad = pod();
    bad["metadata"]["annotations"] = json!({ "config.gossamer.io/workers": "many" });
    server.inject("demo", bad).await;
    assert_eq!(told(&mut server)[0].0, "InjectionRefused");
}

#[tokio::test]
async fn who_writes_a_workload_is_warned_and_never_refused() {
    let server = server().await;
    let template = json!({ "metadata": { "annotations": { "config.gossamer.io/opaque-ports": "http" } } });
    let deployment = json!({ "kind": "Deployment", "metadata": {}, "spec": { "template": template } });
    let (_, answer) = server.post("/validate", &review("Deployment", "demo", deployment)).await;
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("will be refused"), "{answer}");
}

#[tokio::test]
async fn what_cannot_be_decided_is_an_error() {
    let server = server().await;
    assert_eq!(server.post("/inject", &review("Pod", "unknown", pod())).await.0, 503);
    server.values.send_replace(None);
    let (status, body) = server.post("/inject", &review("Pod", "demo", pod())).await;
    assert_eq!((status, body), (503, json!("the trust anchors are not known yet\n")));
    assert_eq!(server.post("/inject", &json!({ "apiVersion": "v1" })).await.0, 400);
    let large = "x".repeat(MAX_BODY_BYTES + 1);
    assert_eq!(server.post_as(&server.serving.authorities, "/inject", &large).await.unwrap().0, 413);
}

#[tokio::test]
async fn broken_policy_is_refused() {
    let server = server().await;
    let policy = |spec: Value| {
        let object =
            json!({ "apiVersion": "policy.gossamer.io/v1alpha1", "kind": "AuthorizationPolicy", "spec": spec });
        review("AuthorizationPolicy", "demo", object)
    };
    let (_, good) = server.post("/validate", &policy(json!({ "from": [{}] }))).await;
    assert_eq!(good["response"], json!({ "uid": "u1", "allowed": true }));
    let (_, bad) = server.post("/validate", &policy(json!({ "form": [{}] }))).await;
    let message = bad["response"]["status"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("spec.form: unknown field") && message.ends_with("(hint: did you mean \"from\"?)"),
        "{message}"
    );
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections() {
    let server = server().await;
    let next = Serving::new(&[NAME.into()], Some(&server.serving), SystemTime::now()).unwrap();
    let body = review("Pod", "plain", pod()).to_string();
    // Who believes the new bundle is served before and after the change.
    assert_eq!(server.post_as(&next.authorities, "/inject", &body).await.unwrap().0, 200);
    server.certificates.send_replace(next.config().unwrap());
    assert_eq!(server.post_as(&next.authorities, "/inject", &body).await.unwrap().0, 200);
    assert!(server.post_as(&server.serving.authorities, "/inject", &body).await.is_err());
}

#[tokio::test]
async fn it_stops_when_asked_to() {
    let server = server().await;
    server.inject("plain", pod()).await;
    server.stop.stop();
    assert!(server.stop.wait(Duration::from_secs(5)).await);
}
