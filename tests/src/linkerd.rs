//! A workload beside which a real linkerd2-proxy stands: as in a pod, in a network namespace of its own whose connections
//! are redirected to it. Needs root, for that and for a user of the proxy's own.
//!
//! Run everything inside of [`privately`].

use crate::expect::eventually;
use crate::mesh::{Mesh, NAMESPACE, identity_of, service_identity};
use crate::{app, client};
use gossamer_api::defaults::{ADMIN_PORT, INBOUND_PORT, OUTBOUND_PORT, PROXY_UID, TAP_PORT};
use gossamer_api::workload::Workload;
use gossamer_destination::standalone::{PortSpec, Registration, WorkloadSpec};
use gossamer_identity::token::JoinToken;
use gossamer_proxy::redirect::Redirect;
use meshctl::sandbox::cell::{Cell, Files};
use meshctl::sandbox::{enter, network};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// An address for one of our own proxies, which stand in the test's namespace.
pub fn address(number: u8) -> Ipv4Addr {
    let address = Ipv4Addr::new(10, 77, 2, number);
    network::add_address(address).unwrap();
    address
}

/// Runs a test in a network of its own, in which a bridge connects all workloads.
pub fn privately<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F + Send + 'static) {
    let inside = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root may");
        enter::keep_mounts_private().unwrap();
        network::make_bridge().unwrap();
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    };
    if let Err(panic) = std::thread::spawn(inside).join() {
        std::panic::resume_unwind(panic);
    }
}

/// A workload to be started.
#[must_use]
pub struct Spec<'a> {
    mesh: &'a Mesh,
    name: String,
    address: Ipv4Addr,
    ports: Vec<PortSpec>,
    apps: Vec<(u16, app::Handler)>,
    annotations: BTreeMap<String, String>,
}

/// A workload with that name and address.
pub fn workload<'a>(mesh: &'a Mesh, name: &str, address: Ipv4Addr) -> Spec<'a> {
    let (ports, apps, annotations) = Default::default();
    Spec { mesh, name: name.into(), address, ports, apps, annotations }
}

impl Spec<'_> {
    /// Serves a port with an application.
    pub fn serve(mut self, port: u16, handler: app::Handler) -> Self {
        self.apps.push((port, handler));
        self.ports.push(PortSpec { port, ..PortSpec::default() });
        self
    }

    /// An annotation of the pod.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Starts it, and waits until the proxy has a certificate.
    pub async fn start(self, program: &Path) -> Linkerd {
        let Spec { mesh, name, address, ports, apps, annotations } = self;
        let [_, _, high, low] = address.octets();
        let cell = Cell::new(&format!("cell-{high}-{low}"), address, Files::default()).await.unwrap();
        let redirect = Redirect {
            outbound_port: OUTBOUND_PORT,
            inbound_port: INBOUND_PORT,
            exempt_uid: Some(PROXY_UID),
            own_ports: vec![INBOUND_PORT, ADMIN_PORT, TAP_PORT],
            ..Redirect::default()
        };
        cell.run(move || redirect.apply()).await.unwrap().unwrap();
        let replica = format!("{name}-linkerd");
        let numbers: Vec<_> = ports.iter().map(|port| port.port.to_string()).collect();
        let registration = mesh.standalone.register(WorkloadSpec {
            namespace: NAMESPACE.into(),
            name: name.clone(),
            replica: replica.clone(),
            ip: address.into(),
            other_ips: Vec::new(),
            ports,
            labels: Default::default(),
            annotations: annotations.into_iter().collect(),
            meshed: true,
        });
        let folder = mesh.folder(&replica);
        let token = mesh.token(&name);
        std::fs::write(folder.join("token"), token.secret()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        // As linkerd2's proxy-identity, which does this in a pod before the proxy starts.
        let mut request = rcgen::CertificateParams::new([identity_of(&name).to_string()]).unwrap();
        request.distinguished_name = rcgen::DistinguishedName::new();
        request.distinguished_name.push(rcgen::DnType::CommonName, identity_of(&name).to_string());
        std::fs::write(folder.join("key.p8"), key.serialize_der()).unwrap();
        std::fs::write(folder.join("csr.der"), request.serialize_request(&key).unwrap().der()).unwrap();
        let log = folder.join("log");
        let file = std::fs::File::create(&log).unwrap();
        let mut command = Command::new(program);
        command.env_clear().envs(environment(mesh, &name, &replica, address, &numbers.join(","), &folder));
        command.uid(PROXY_UID).gid(PROXY_UID).stdin(Stdio::null());
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child = cell.spawn(command).await.unwrap();
        let mut running = Linkerd {
            address,
            apps: Vec::new(),
            registration: registration.unwrap(),
            cell,
            log,
            _child: child,
            _token: token,
        };
        for (port, handler) in apps {
            let listener = running.listen(port).await;
            running.apps.push(app::App::on(listener, handler));
        }
        eventually("linkerd2-proxy is ready", || async {
            let answer = client::try_get(running.admin(), "proxy", "/ready").await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
        running
    }
}

/// What the injector sets. Source: linkerd2, charts/partials/templates/_proxy.tpl.
fn environment(
    mesh: &Mesh,
    name: &str,
    replica: &str,
    address: Ipv4Addr,
    ports: &str,
    folder: &Path,
) -> BTreeMap<String, String> {
    let [identity, destination] = mesh.control_plane().map(|addr| addr.to_string());
    let [identity_name, destination_name] = [gossamer_identity::SERVICE_ACCOUNT, "gossamer-destination"]
        .map(|account| service_identity(account).to_string());
    let workload = Workload { ns: NAMESPACE.into(), pod: replica.into(), node_name: String::new() };
    let workload = serde_json::to_string(&workload).unwrap();
    let at = |ip: &str, port: u16| format!("{ip}:{port}");
    let local = identity_of(name).to_string();
    let level = std::env::var("MESH_TEST_LOG").unwrap_or_else(|_| "warn,linkerd=info".into());
    [
        ("LOG", level),
        ("IDENTITY_SVC_ADDR", identity),
        ("IDENTITY_SVC_NAME", identity_name),
        ("DESTINATION_SVC_ADDR", destination.clone()),
        ("DESTINATION_SVC_NAME", destination_name.clone()),
        ("POLICY_SVC_ADDR", destination),
        ("POLICY_SVC_NAME", destination_name),
        ("DESTINATION_PROFILE_NETWORKS", "10.0.0.0/8".into()),
        ("DESTINATION_PROFILE_SUFFIXES", "svc.cluster.local.".into()),
        ("DESTINATION_CONTEXT", workload.clone()),
        ("POLICY_WORKLOAD", workload),
        ("POLICY_CLUSTER_NETWORKS", "10.0.0.0/8".into()),
        ("INBOUND_DEFAULT_POLICY", "all-unauthenticated".into()),
        ("INBOUND_IPS", address.to_string()),
        ("INBOUND_PORTS", ports.into()),
        ("INBOUND_LISTEN_ADDR", at("0.0.0.0", INBOUND_PORT)),
        ("OUTBOUND_LISTEN_ADDR", at("127.0.0.1", OUTBOUND_PORT)),
        ("ADMIN_LISTEN_ADDR", at("0.0.0.0", ADMIN_PORT)),
        ("CONTROL_LISTEN_ADDR", at("0.0.0.0", TAP_PORT)),
        ("IDENTITY_DIR", folder.display().to_string()),
        ("IDENTITY_TOKEN_FILE", folder.join("token").display().to_string()),
        ("IDENTITY_TRUST_ANCHORS", mesh.anchors()),
        ("IDENTITY_LOCAL_NAME", local.clone()),
        ("IDENTITY_SERVER_ID", local.clone()),
        ("IDENTITY_SERVER_NAME", local),
        ("CORES", "1".into()),
    ]
    .map(|(key, value)| (format!("LINKERD2_PROXY_{key}"), value))
    .into()
}

/// A running workload. Dropping it ends it.
pub struct Linkerd {
    /// Where it is.
    pub address: Ipv4Addr,
    /// Its applications, in the order of `serve`.
    pub apps: Vec<app::App>,
    /// Keeps it known, and says where its service is.
    pub registration: Registration,
    cell: Cell,
    log: PathBuf,
    _child: Child,
    _token: JoinToken,
}

impl Linkerd {
    /// A connection that the workload makes: it is redirected to the proxy.
    pub async fn connect(&self, to: SocketAddr) -> TcpStream {
        let connected = self.cell.run(move || std::net::TcpStream::connect(to)).await.unwrap();
        let io = connected.unwrap_or_else(|error| panic!("connect to {to}: {error}"));
        io.set_nonblocking(true).unwrap();
        TcpStream::from_std(io).unwrap()
    }

    async fn listen(&self, port: u16) -> TcpListener {
        let listener = self.cell.run(move || std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).await.unwrap();
        let listener = listener.unwrap();
        listener.set_nonblocking(true).unwrap();
        TcpListener::from_std(listener).unwrap()
    }

    /// The admin server.
    pub fn admin(&self) -> SocketAddr {
        (self.address, ADMIN_PORT).into()
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Lines of its metrics with that name and all of these texts.
    pub async fn metrics(&self, name: &str, with: &[&str]) -> Vec<String> {
        let text = client::get(self.admin(), "proxy", "/metrics").await.text();
        let lines = text.lines().filter(|line| line.starts_with(name) && with.iter().all(|part| line.contains(part)));
        lines.map(str::to_string).collect()
    }
}

impl Drop for Linkerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of linkerd2-proxy at {} ----\n{}", self.address, self.log());
        }
    }
}
