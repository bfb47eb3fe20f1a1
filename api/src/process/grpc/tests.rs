//! gRPC between processes: TLS, rotation, drain, limits.

use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use linkerd2_proxy_api::identity::identity_server::{Identity as Service, IdentityServer};
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use tonic::{Request, Response, Status};

use super::super::tls::tests::{API, Root, WEB};
use super::*;

/// Answers with the name of the one who asks; waits for `gate` when asked as "slow".
#[derive(Clone)]
struct Mirror {
    gate: Arc<tokio::sync::Semaphore>,
    asked: Arc<tokio::sync::Semaphore>,
}

#[tonic::async_trait]
impl Service for Mirror {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().unwrap().clone();
        self.asked.add_permits(1);
        if request.get_ref().identity == "slow" {
            let _ = self.gate.acquire().await;
        }
        let name = peer.identity.map(|i| i.to_string()).unwrap_or_default();
        Ok(Response::new(CertifyResponse { leaf_certificate: name.into(), ..CertifyResponse::default() }))
    }
}

struct Server {
    address: String,
    stop: Stop,
    mirror: Mirror,
}

impl Server {
    async fn start(tls: Option<ServerTls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = Stop::new();
        let none = || Arc::new(tokio::sync::Semaphore::new(0));
        let mirror = Mirror { gate: none(), asked: none() };
        let routes = Routes::new(IdentityServer::new(mirror.clone()));
        stop.spawn(serve(routes, listener, tls, stop.clone()));
        Server { address, stop, mirror }
    }

    fn client(&self, tls: Option<ClientTls>) -> IdentityClient<Channel> {
        IdentityClient::new(Connector::new(&self.address, tls).channel())
    }
}

async fn ask(client: &mut IdentityClient<Channel>, identity: &str) -> Result<String, String> {
    let request = CertifyRequest { identity: identity.to_owned(), ..CertifyRequest::default() };
    let answer = tokio::time::timeout(Duration::from_secs(10), client.certify(request)).await.expect("in time");
    answer.map(|a| String::from_utf8(a.into_inner().leaf_certificate).unwrap()).map_err(|status| format!("{status:?}"))
}

fn as_client(root: &Root, server: &str) -> (watch::Sender<Option<Arc<Credentials>>>, ClientTls) {
    let (sender, credentials) = watch::channel(Some(root.issue(WEB, 60)));
    (sender, ClientTls { server: server.parse().unwrap(), client: ClientIdentity::Credentials(credentials) })
}

#[tokio::test]
async fn services_know_who_asks() {
    let root = Root::test();
    let (_server, credentials) = watch::channel(Some(root.issue(API, 60)));
    let server = Server::start(Some(ServerTls { credentials, auth: ClientAuth::Optional })).await;
    let (_client, tls) = as_client(&root, API);
    assert_eq!(ask(&mut server.client(Some(tls)), "").await.unwrap(), WEB);
    let (_anchors, anchors) = watch::channel(root.anchors.clone());
    let tls = ClientTls { server: API.parse().unwrap(), client: ClientIdentity::Anonymous(anchors) };
    assert_eq!(ask(&mut server.client(Some(tls)), "").await.unwrap(), "", "nobody");
    let (_client, tls) = as_client(&root, WEB);
    let error = ask(&mut server.client(Some(tls)), "").await.unwrap_err();
    assert!(error.contains("not valid for name"), "{error}");
    assert!(ask(&mut server.client(None), "").await.is_err(), "no plaintext where TLS is meant");
}

#[tokio::test]
async fn new_connections_use_the_newest_credentials_and_none_means_closed() {
    let (root, next) = (Root::test(), Root::test());
    let (server_side, credentials) = watch::channel(None);
    let server = Server::start(Some(ServerTls { credentials, auth: ClientAuth::Required })).await;
    let (client_side, tls) = as_client(&root, API);
    assert!(ask(&mut server.client(Some(tls.clone())), "").await.is_err(), "the server has none yet");
    server_side.send_replace(Some(root.issue(API, 60)));
    assert_eq!(ask(&mut server.client(Some(tls.clone())), "").await.unwrap(), WEB);
    server_side.send_replace(Some(next.issue(API, 60)));
    assert!(ask(&mut server.client(Some(tls.clone())), "").await.is_err(), "another root");
    client_side.send_replace(Some(next.issue(WEB, 60)));
    let mut client = server.client(Some(tls));
    assert_eq!(ask(&mut client, "").await.unwrap(), WEB);
    client_side.send_replace(None);
    assert_eq!(ask(&mut client, "").await.unwrap(), WEB, "a connection that stands goes on");
    client_side.send_replace(Some(next.issue(WEB, -1)));
    let (_, tls) = (client, ClientIdentity::Credentials(client_side.subscribe()));
    let tls = ClientTls { server: API.parse().unwrap(), client: tls };
    let error = ask(&mut server.client(Some(tls)), "").await.unwrap_err();
    assert!(error.contains("no certificate yet"), "{error}");
}

#[tokio::test]
async fn finishes_what_is_in_flight() {
    let server = Server::start(None).await;
    let mut client = server.client(None);
    let mut slow = client.clone();
    let slow = tokio::spawn(async move { ask(&mut slow, "slow").await });
    let _ = server.mirror.asked.acquire().await.unwrap();
    server.stop.stop();
    server.mirror.gate.add_permits(1);
    assert!(slow.await.unwrap().is_ok());
    assert!(server.stop.wait(Duration::from_secs(5)).await, "all connections ended");
    assert!(ask(&mut client, "").await.is_err());
}

#[tokio::test]
async fn a_request_that_never_ends_is_killed() {
    let server = Server::start(None).await;
    let mut slow = server.client(None);
    let slow = tokio::spawn(async move { ask(&mut slow, "slow").await });
    let _ = server.mirror.asked.acquire().await.unwrap();
    server.stop.stop();
    assert!(!server.stop.wait(Duration::from_millis(50)).await);
    assert!(slow.await.unwrap().is_err());
}

#[tokio::test]
async fn an_unreachable_server_says_so() {
    let mut client = IdentityClient::new(Connector::new("no.such.host.invalid:1", None).channel());
    let error = ask(&mut client, "").await.unwrap_err();
    assert!(error.contains("no.such.host.invalid"), "{error}");
}

#[tokio::test]
async fn serves_on_a_unix_socket() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let none = || Arc::new(tokio::sync::Semaphore::new(0));
    let routes = Routes::new(IdentityServer::new(Mirror { gate: none(), asked: none() }));
    let stop = Stop::new();
    stop.spawn(serve_unix(routes, UnixListener::bind(&path).unwrap(), stop.clone()));
    let endpoint = Endpoint::from_shared(format!("unix:{}", path.display())).unwrap();
    assert_eq!(ask(&mut IdentityClient::new(endpoint.connect_lazy()), "").await.unwrap(), "");
    stop.stop();
    assert!(stop.wait(Duration::from_secs(5)).await);
}
