//! Our control plane, in this process: identity, destination and policy over the real API, with real certificates.
//!
//! Two workloads: `client` and `server`, as `meshctl run` would register them. The server has an authorization policy
//! that names the client's identity, and the service has routes, so that nothing is measured with its work left out.

use crate::driver::Driver;
use crate::network::{self, CONTROL, Pair};
use crate::server::{BULK, GRPC, HTTP, HTTP2};
use anyhow::{Context, Result, anyhow};
use gossamer_api::defaults;
use gossamer_api::process::grpc::ServerTls;
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::ClientAuth;
use gossamer_api::workload::{Identity, Workload};
use gossamer_destination::pool::Pool;
use gossamer_destination::registry::Registry;
use gossamer_destination::standalone::{PortSpec, Registration, Standalone, WorkloadSpec};
use gossamer_identity::token::{JoinToken, JoinTokens, TokenCheck};
use gossamer_identity::{Authority, Config};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use tokio::net::TcpListener;

/// It runs for as long as this lives.
pub(crate) struct Control {
    standalone: Standalone,
    tokens: JoinTokens,
    identity: Identity,
    destination: Identity,
    anchors: String,
    folder: PathBuf,
    stop: Stop,
}

/// One side of a pair in the mesh.
pub(crate) struct Meshed {
    /// Who it is.
    pub identity: Identity,
    /// Where its service is reached.
    pub service: IpAddr,
    /// The file with its token.
    pub token: PathBuf,
    /// Name and namespace, as the proxy is told.
    pub workload: Workload,
    _held: (Registration, JoinToken),
}

const NAMESPACE: &str = "bench";

impl Control {
    /// Starts it. `folder`: for keys, tokens and objects.
    pub(crate) async fn start(folder: &Path) -> Result<Control> {
        let stop = Stop::new();
        let tokens = JoinTokens::new();
        let mut config = Config::new(folder.join("identity"), TokenCheck::JoinTokens(tokens.clone()));
        config.listen = (CONTROL, defaults::IDENTITY_PORT).into();
        let authority = Authority::start(&config, &stop)?;
        let destination = account("gossamer-destination", defaults::CONTROL_NAMESPACE)?;
        let identity = config.server_identity()?;
        let credentials = authority.service.keep_issued(destination.clone())?;
        let anchors = authority.service.anchors().pem().to_string();

        let listener = TcpListener::bind(config.listen).await.context("the identity service")?;
        let until = stop.clone();
        stop.spawn(async move { authority.serve(&config, listener, until).await });

        let objects = folder.join("objects");
        std::fs::create_dir_all(&objects)?;
        std::fs::write(objects.join("bench.yaml"), OBJECTS)?;
        std::fs::write(objects.join("services.yaml"), services())?;
        let pool = Pool::new("10.97.0.0/16".parse()?);
        let registry = Registry::new(Default::default(), Some(pool));
        let standalone = Standalone::new(registry.clone());
        let listener = TcpListener::bind((CONTROL, defaults::DESTINATION_PORT)).await.context("destination")?;
        let tls = ServerTls { credentials, auth: ClientAuth::Required };
        let settings = gossamer_destination::Config { files: Some(objects), admit: None };
        stop.spawn(gossamer_destination::run(settings, registry, vec![listener], Some(tls), stop.clone()));
        Ok(Control { standalone, tokens, identity, destination, anchors, folder: folder.into(), stop })
    }

    /// Registers both sides of a pair: client, server.
    pub(crate) fn register(&self, pair: &Pair) -> Result<[Meshed; 2]> {
        let client = self.register_one(pair, "client", pair.client_ip().into())?;
        let server = self.register_one(pair, "server", pair.server_ip().into())?;
        Ok([client, server])
    }

    /// More endpoints of a pair's server, all of them its one proxy, for as long as the answer is held.
    pub(crate) fn endpoints(&self, pair: &Pair, count: usize) -> Result<Vec<Registration>> {
        (0..count).map(|number| self.endpoint(pair, "server", number + 1, pair.endpoint_ip(number).into())).collect()
    }

    fn endpoint(&self, pair: &Pair, side: &str, number: usize, ip: IpAddr) -> Result<Registration> {
        // Every pair has a service of its own.
        let (name, replica) = (format!("{side}-{}", pair.name), format!("{side}-{}-{number}", pair.name));
        let port = |port: u16, name: &str| PortSpec { port, name: name.into(), app_protocol: String::new() };
        let ports = match side {
            "server" => vec![port(HTTP, "http"), port(HTTP2, "http2"), port(GRPC, "grpc"), port(BULK, "tcp")],
            _ => Vec::new(),
        };
        // The many services are for the first one only: else each would have as many endpoints.
        let own = if number == 0 { format!("{side}-{}", pair.number) } else { String::new() };
        let labels = [("side", side.to_string()), ("pair", own)];
        Ok(self.standalone.register(WorkloadSpec {
            namespace: NAMESPACE.into(),
            name,
            replica,
            ip,
            other_ips: Vec::new(),
            ports,
            labels: labels.map(|(name, value)| (name.to_string(), value)).into(),
            annotations: [(format!("{}/opaque-ports", gossamer_api::keys::CONFIG_PREFIX), BULK.to_string())].into(),
            meshed: true,
        })?)
    }

    fn register_one(&self, pair: &Pair, side: &str, ip: IpAddr) -> Result<Meshed> {
        let replica = format!("{side}-{}-0", pair.name);
        let registration = self.endpoint(pair, side, 0, ip)?;
        let identity = registration.identity.clone().context("a meshed workload has an identity")?;
        let token = self.tokens.issue(&identity, None).map_err(|_| anyhow!("too many tokens"))?;
        let file = self.folder.join(format!("{replica}.token"));
        std::fs::write(&file, token.secret())?;
        let workload = Workload { ns: NAMESPACE.into(), pod: replica, node_name: String::new() };
        Ok(Meshed {
            identity,
            service: registration.service_address,
            token: file,
            workload,
            _held: (registration, token),
        })
    }

    /// What one of our proxies is told.
    pub(crate) fn environment(&self, side: &Meshed, ip: IpAddr) -> Result<Vec<(String, String)>> {
        let at = |port: u16| SocketAddr::from((CONTROL, port)).to_string();
        let env = [
            ("MESH_IDENTITY_ADDR", at(defaults::IDENTITY_PORT)),
            ("MESH_IDENTITY_NAME", self.identity.to_string()),
            ("MESH_DESTINATION_ADDR", at(defaults::DESTINATION_PORT)),
            ("MESH_DESTINATION_NAME", self.destination.to_string()),
            ("MESH_POLICY_NAME", self.destination.to_string()),
            ("MESH_TRUST_ANCHORS", self.anchors.clone()),
            ("MESH_LOCAL_IDENTITY", side.identity.to_string()),
            ("MESH_WORKLOAD", serde_json::to_string(&side.workload)?),
            ("MESH_INBOUND_IPS", ip.to_string()),
            ("MESH_TOKEN_FILE", side.token.display().to_string()),
            ("MESH_REDIRECT", "true".into()),
            ("MESH_SOCKET_MARK", defaults::SOCKET_MARK.to_string()),
        ];
        Ok(env.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
    }

    /// What linkerd2-proxy is told: the same in its words, with its own key and signing request in a folder.
    pub(crate) fn linkerd_environment(&self, side: &Meshed, ip: IpAddr) -> Result<Vec<(String, String)>> {
        let at = |port: u16| SocketAddr::from((CONTROL, port)).to_string();
        let folder = self.folder.join(format!("{}-key", side.workload.pod));
        std::fs::create_dir_all(&folder)?;
        let key = rcgen::KeyPair::generate()?;
        let name = side.identity.to_string();
        let mut params = rcgen::CertificateParams::new(vec![name.clone()])?;
        // Else it would carry a name of the library's, which the identity service refuses.
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name.clone());
        let request = params.serialize_request(&key)?;
        std::fs::write(folder.join("key.p8"), key.serialize_der())?;
        std::fs::write(folder.join("csr.der"), request.der())?;
        let (destination, workload) = (self.destination.to_string(), serde_json::to_string(&side.workload)?);
        let networks = "10.0.0.0/8";
        let env = [
            ("CORES", "1".into()),
            ("LOG", "warn".into()),
            ("IDENTITY_SVC_ADDR", at(defaults::IDENTITY_PORT)),
            ("IDENTITY_SVC_NAME", self.identity.to_string()),
            ("DESTINATION_SVC_ADDR", at(defaults::DESTINATION_PORT)),
            ("DESTINATION_SVC_NAME", destination.clone()),
            ("POLICY_SVC_ADDR", at(defaults::DESTINATION_PORT)),
            ("POLICY_SVC_NAME", destination),
            ("DESTINATION_PROFILE_NETWORKS", networks.into()),
            ("POLICY_CLUSTER_NETWORKS", networks.into()),
            ("DESTINATION_PROFILE_SUFFIXES", "svc.cluster.local.".into()),
            ("DESTINATION_CONTEXT", workload.clone()),
            ("POLICY_WORKLOAD", workload),
            ("INBOUND_DEFAULT_POLICY", "all-unauthenticated".into()),
            ("CONTROL_LISTEN_ADDR", "0.0.0.0:4190".into()),
            ("ADMIN_LISTEN_ADDR", "0.0.0.0:4191".into()),
            ("OUTBOUND_LISTEN_ADDR", "127.0.0.1:4140".into()),
            ("INBOUND_LISTEN_ADDR", "0.0.0.0:4143".into()),
            ("INBOUND_IPS", ip.to_string()),
            ("INBOUND_PORTS", [HTTP, HTTP2, GRPC, BULK].map(|p| p.to_string()).join(",")),
            ("INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION", BULK.to_string()),
            ("IDENTITY_DIR", folder.display().to_string()),
            ("IDENTITY_TOKEN_FILE", side.token.display().to_string()),
            ("IDENTITY_TRUST_ANCHORS", self.anchors.clone()),
            ("IDENTITY_LOCAL_NAME", name.clone()),
            ("IDENTITY_SERVER_ID", name.clone()),
            ("IDENTITY_SERVER_NAME", name),
        ];
        Ok(env.into_iter().map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), value)).collect())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

fn account(name: &str, namespace: &str) -> Result<Identity> {
    Ok(Identity::service_account(name, namespace, defaults::CONTROL_NAMESPACE, defaults::TRUST_DOMAIN)?)
}

/// Services in use at once, in the row that has many.
pub(crate) const SERVICES: usize = 200;

/// Many services for the server of each pair.
fn services() -> String {
    let mut text = String::new();
    for pair in 1..=Driver::ALL.len() {
        for number in 0..SERVICES {
            let address = network::service_ip(pair as u8, number);
            text += &format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: many-{pair}-{number}, namespace: {NAMESPACE}}}\n\
                 spec: {{clusterIP: {address}, ports: [{{name: http, port: {HTTP}}}], selector: {{pair: server-{pair}}}}}\n"
            );
        }
    }
    text
}

/// Only the namespace's own workloads may use the server, and only with a certificate.
const OBJECTS: &str = r#"
apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: clients
  namespace: bench
spec:
  selector: { matchLabels: { side: server } }
  from:
    - namespaces: [bench]
"#;
