//! A mesh on loopback: the control plane in this process, each proxy a process of its own.
//!
//! A workload has an address of 127.0.0.0/8 for itself. Its application listens there, its proxy at the same address on
//! 4143, 4191 and 4190, and on one explicit port for each service that it calls; so neither redirection nor privilege is
//! needed, and everything between the sockets is as in production: real tokens, certificates, discovery, mutual TLS.
//!
//! **Invariant:** nothing outlives the test; what the proxies said is printed if it fails.

use crate::app::{App, Handler};
use crate::expect::{self, Metrics, within};
use crate::{client, loopback};
use gossamer_api::kubernetes::parse_yaml;
use gossamer_api::process::grpc::ServerTls;
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::{ClientAuth, Credentials};
use gossamer_api::workload::{Identity, Workload};
use gossamer_api::{defaults, keys};
use gossamer_destination::index::Cluster;
use gossamer_destination::pool::Pool;
use gossamer_destination::registry::{Change, Origin, Registry};
use gossamer_destination::standalone::{PortSpec, Registration, Standalone, WorkloadSpec};
use gossamer_identity::Authority;
use gossamer_identity::token::{JoinToken, JoinTokens, TokenCheck};
use nix::sys::signal::{self, Signal};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;

/// The namespace of workloads.
pub const NAMESPACE: &str = "test";

/// How long proxies wait for a client to say something. Clients here speak first, and a busy machine may keep them from
/// it for longer than the default, after which they have a connection to the workload, and no answers to requests. What
/// tests silence sets [`Spec::impatient`].
const PATIENCE: &str = "2s";

/// A control plane and what its proxies need to know of it.
pub struct Mesh {
    /// What the control plane knows; survives it, like the API server of a cluster.
    pub registry: Registry,
    /// Registers workloads.
    pub standalone: Standalone,
    tokens: JoinTokens,
    folder: TempDir,
    identity: SocketAddr,
    destination: SocketAddr,
    /// The control plane is a process of its own.
    apart: bool,
    running: Mutex<Option<Plane>>,
    anchors: Mutex<String>,
    count: AtomicUsize,
}

/// The running part of the control plane: threads of its own, or a process.
enum Plane {
    Threads { runtime: Runtime, authority: Authority },
    Process(std::process::Child),
}

impl Plane {
    fn kill(self) {
        match self {
            // Gone when this returns: on a busy machine it would go on answering for a while. Not here, where tasks run.
            Plane::Threads { runtime, .. } => {
                let _ = std::thread::spawn(move || runtime.shutdown_timeout(expect::DEADLINE)).join();
            }
            Plane::Process(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

impl Mesh {
    /// Starts a control plane.
    pub async fn start() -> Mesh {
        Mesh::with(Cluster::default()).await
    }

    /// Starts a control plane with other settings than the default.
    pub async fn with(cluster: Cluster) -> Mesh {
        Mesh::at(loopback::address(), cluster).await
    }

    /// Starts a control plane that is a process of its own.
    pub async fn apart() -> Mesh {
        Mesh::new(loopback::address(), Cluster::default(), true).await
    }

    /// Starts a control plane at an address of this network namespace.
    pub async fn at(node: Ipv4Addr, cluster: Cluster) -> Mesh {
        Mesh::new(node, cluster, false).await
    }

    async fn new(node: Ipv4Addr, cluster: Cluster, apart: bool) -> Mesh {
        let pool = Pool::new("10.96.0.0/16".parse().unwrap());
        let registry = Registry::new(cluster, Some(pool));
        let folder = tempfile::Builder::new().prefix("mesh-test-").tempdir().unwrap();
        std::fs::create_dir(folder.path().join("objects")).unwrap();
        let [identity, destination] = loopback::free_ports(node);
        let mesh = Mesh {
            standalone: Standalone::new(registry.clone()),
            registry,
            tokens: JoinTokens::new(),
            folder,
            identity,
            destination,
            apart,
            running: Mutex::default(),
            anchors: Mutex::default(),
            count: AtomicUsize::new(0),
        };
        mesh.start_control_plane().await;
        mesh
    }

    /// Starts it again, where and as it was.
    pub async fn start_control_plane(&self) {
        if self.apart {
            return self.start_process().await;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (identity, destination) = (self.identity, self.destination);
        let mut config = gossamer_identity::Config::new(
            self.folder.path().join("identity"),
            TokenCheck::JoinTokens(self.tokens.clone()),
        );
        config.listen = identity;
        let registry = self.registry.clone();
        let files = Some(self.objects());
        let started = runtime.spawn(async move {
            let stop = Stop::new();
            let authority = Authority::start(&config, &stop).unwrap();
            let credentials = authority.service.keep_issued(service_identity("gossamer-destination")).unwrap();
            let identity = bind(identity).await;
            let destination = bind(destination).await;
            let tls = ServerTls { credentials, auth: ClientAuth::Required };
            let settings = gossamer_destination::Config { files, admit: None };
            let listeners = vec![destination];
            tokio::spawn(gossamer_destination::run(settings, registry, listeners, Some(tls), stop.clone()));
            let embedded = Authority { service: authority.service.clone(), state: authority.state.clone() };
            tokio::spawn(async move { authority.serve(&config, identity, stop).await });
            embedded
        });
        let authority = within("the control plane starts", started).await.unwrap();
        *self.anchors.lock().unwrap() = authority.service.anchors().pem().to_string();
        *self.running.lock().unwrap() = Some(Plane::Threads { runtime, authority });
    }

    async fn start_process(&self) {
        let anchors = self.folder.path().join("anchors.pem");
        let _ = std::fs::remove_file(&anchors);
        let mut command = std::process::Command::new(program().with_file_name("plane"));
        command.args([self.identity.to_string(), self.destination.to_string()]).arg(self.folder.path());
        let log = std::fs::File::options().create(true).append(true).open(self.plane_log()).unwrap();
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        *self.running.lock().unwrap() = Some(Plane::Process(command.spawn().unwrap()));
        let text = expect::eventually("the control plane starts", || async { std::fs::read_to_string(&anchors).ok() });
        let text = text.await;
        *self.anchors.lock().unwrap() = text;
    }

    /// Lets the process know a workload as well.
    fn tell_process(&self, spec: &WorkloadSpec, token: Option<(&Identity, &JoinToken)>) {
        use std::fmt::Write;
        let WorkloadSpec { namespace, name, replica, ip, .. } = spec;
        let (mut of_service, mut of_pod) = (String::new(), String::new());
        for port in &spec.ports {
            let port = port.port;
            write!(of_service, "{{ port: {port}, targetPort: {port} }}, ").unwrap();
            write!(of_pod, "{{ containerPort: {port} }}, ").unwrap();
        }
        let meshed = if spec.meshed { ", gossamer.io/control-plane-ns: gossamer" } else { "" };
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: {name}, namespace: {namespace} }}\n\
             spec: {{ selector: {{ app: {name} }}, ports: [{of_service}] }}\n"
        );
        let pod = format!(
            "apiVersion: v1\nkind: Pod\n\
             metadata: {{ name: {replica}, namespace: {namespace}, labels: {{ app: {name}{meshed} }} }}\n\
             spec: {{ serviceAccountName: {name}, containers: [{{ name: {name}, ports: [{of_pod}] }}] }}\n\
             status: {{ podIP: {ip} }}\n"
        );
        if !spec.ports.is_empty() {
            self.write(&format!("service-{name}.yaml"), &service);
        }
        self.write(&format!("{replica}.yaml"), &pod);
        let Some((identity, token)) = token else { return };
        let path = self.folder.path().join("tokens");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(path, format!("{text}{identity} {}\n", token.secret())).unwrap();
    }

    /// Ends identity and destination at once, as a crash would: their connections break.
    pub fn kill_control_plane(&self) {
        self.running.lock().unwrap().take().expect("it runs").kill();
    }

    /// What a control plane that is a process has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.plane_log()).unwrap_or_default()
    }

    fn plane_log(&self) -> PathBuf {
        self.folder.path().join("plane.log")
    }

    /// The folder of YAML objects that the control plane watches.
    pub fn objects(&self) -> PathBuf {
        self.folder.path().join("objects")
    }

    /// Puts a file into that folder, whole: the control plane may look at any moment, and half of it, or nothing, is another
    /// state.
    pub fn write(&self, file: &str, yaml: &str) {
        // Hidden ones are left out.
        let new = self.objects().join(format!(".{file}"));
        std::fs::write(&new, yaml).unwrap();
        std::fs::rename(new, self.objects().join(file)).unwrap();
    }

    /// Takes objects at once, without the folder. The same `file` again replaces objects of the same name.
    pub fn apply(&self, file: &str, yaml: &str) {
        let objects = parse_yaml(yaml).unwrap_or_else(|errors| panic!("{errors:?}\n{yaml}"));
        let changes: Vec<_> = objects.into_iter().map(|(_, object)| object).collect();
        let keys: Vec<_> = changes.iter().map(|object| object.key()).collect();
        self.registry.change(&Origin::File(file.into()), changes.into_iter().map(Change::Apply));
        for key in keys {
            let problems = self.registry.read(|index| index.problems(&key).to_vec());
            assert!(problems.is_empty(), "{key}: {problems:?}");
        }
    }

    /// The same for objects that are meant to have problems.
    pub fn apply_unchecked(&self, yaml: &str) {
        let objects = parse_yaml(yaml).unwrap_or_else(|errors| panic!("{errors:?}\n{yaml}"));
        self.registry.change(&Origin::File("unchecked".into()), objects.into_iter().map(|(_, o)| Change::Apply(o)));
    }

    /// A workload to be started.
    pub fn workload(&self, name: &str) -> Spec<'_> {
        Spec {
            mesh: self,
            name: name.to_string(),
            ip: loopback::address(),
            listed: None,
            ports: Vec::new(),
            env: BTreeMap::new(),
            annotations: BTreeMap::new(),
            targets: Vec::new(),
            apps: Vec::new(),
            meshed: true,
            identity: None,
        }
    }

    /// The credentials of a workload, to be it without a proxy.
    pub fn credentials(&self, name: &str) -> Arc<Credentials> {
        let running = self.running.lock().unwrap();
        let Some(Plane::Threads { runtime, authority }) = &*running else { panic!("it does not run in this process") };
        let _inside = runtime.enter();
        let issued = authority.service.keep_issued(identity_of(name)).unwrap();
        let credentials = issued.borrow().clone();
        credentials.expect("issued at once")
    }

    /// A token that proves to be a workload of that name.
    pub fn token(&self, name: &str) -> JoinToken {
        self.tokens.issue(&identity_of(name), None).unwrap()
    }

    /// Where certificates are issued, and where everything else is asked for.
    pub fn control_plane(&self) -> [SocketAddr; 2] {
        [self.identity, self.destination]
    }

    /// A folder that others may look into, gone with the mesh.
    pub fn folder(&self, name: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for path in [self.folder.path(), folder.as_path()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        folder
    }

    /// The PEM of the trust anchors; they outlive the control plane.
    pub fn anchors(&self) -> String {
        self.anchors.lock().unwrap().clone()
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if self.apart && std::thread::panicking() {
            eprintln!("---- log of the control plane ----\n{}", self.log());
        }
        if let Some(plane) = self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            plane.kill();
        }
    }
}

/// One that was killed a moment ago may not have let go of its ports yet.
async fn bind(addr: SocketAddr) -> TcpListener {
    expect::eventually("the control plane's port", || async { TcpListener::bind(addr).await.ok() }).await
}

/// The identity of a workload of that name.
pub fn identity_of(name: &str) -> Identity {
    Identity::service_account(name, NAMESPACE, defaults::CONTROL_NAMESPACE, defaults::TRUST_DOMAIN).unwrap()
}

/// The identity of a service of the control plane.
pub fn service_identity(account: &str) -> Identity {
    let namespace = defaults::CONTROL_NAMESPACE;
    Identity::service_account(account, namespace, namespace, defaults::TRUST_DOMAIN).unwrap()
}

/// The name under which a service of the mesh is called, `NAME:PORT` made whole.
pub fn authority(target: &str) -> String {
    match target.rsplit_once(':') {
        Some((name, port)) if !name.contains('.') => format!("{name}.{NAMESPACE}.svc.cluster.local:{port}"),
        _ => target.to_string(),
    }
}

/// A workload to be started: its application, its proxy, what it calls.
#[must_use]
pub struct Spec<'a> {
    mesh: &'a Mesh,
    name: String,
    ip: Ipv4Addr,
    listed: Option<Ipv4Addr>,
    ports: Vec<PortSpec>,
    env: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    targets: Vec<String>,
    apps: Vec<(u16, Handler)>,
    meshed: bool,
    identity: Option<Identity>,
}

impl Spec<'_> {
    /// Serves a port with an application.
    pub fn serve(mut self, port: u16, handler: Handler) -> Self {
        self.apps.push((port, handler));
        self.port(port)
    }

    /// Has a port, on which nothing listens yet.
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(PortSpec { port, ..PortSpec::default() });
        self
    }

    /// What the last port speaks, as a Service's `appProtocol`.
    pub fn speaks(mut self, protocol: &str) -> Self {
        self.ports.last_mut().expect("a port").app_protocol = protocol.to_string();
        self
    }

    /// Calls a service: `NAME:PORT`. See [`Proxy::to`].
    pub fn calls(mut self, target: &str) -> Self {
        self.targets.push(target.to_string());
        self
    }

    /// A setting of its proxy, by its name.
    pub fn set(mut self, setting: &str, value: &str) -> Self {
        self.env.insert(format!("MESH_{}", setting.to_uppercase().replace('-', "_")), value.to_string());
        self
    }

    /// Its proxy waits as long for silent clients as it does by default.
    pub fn impatient(self) -> Self {
        self.set("detect-patience", &format!("{}ms", defaults::DETECT_PATIENCE.as_millis()))
    }

    /// An annotation of the pod.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_string(), value.to_string());
        self
    }

    /// Has this address.
    pub fn at(mut self, ip: Ipv4Addr) -> Self {
        self.ip = ip;
        self
    }

    /// Others find it at that address instead of its own: something stands between.
    pub fn listed_at(mut self, ip: Ipv4Addr) -> Self {
        self.listed = Some(ip);
        self
    }

    /// Has no proxy.
    pub fn unmeshed(mut self) -> Self {
        self.meshed = false;
        self
    }

    /// Its proxy has another identity than discovery tells others.
    pub fn really(mut self, name: &str) -> Self {
        self.identity = Some(identity_of(name));
        self
    }

    /// Its address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Starts it and waits until its proxy has a certificate.
    pub async fn start(self) -> Proxy {
        let proxy = self.start_unready().await;
        proxy.ready().await;
        proxy
    }

    /// Starts it without waiting for the proxy.
    pub async fn start_unready(self) -> Proxy {
        let mesh = self.mesh;
        let number = mesh.count.fetch_add(1, Ordering::Relaxed);
        let replica = format!("{}-{number}", self.name);
        let mut apps = Vec::new();
        for (port, handler) in self.apps {
            apps.push(App::start((self.ip, port).into(), handler).await);
        }
        let spec = WorkloadSpec {
            namespace: NAMESPACE.into(),
            name: self.name.clone(),
            replica: replica.clone(),
            ip: self.listed.unwrap_or(self.ip).into(),
            other_ips: Vec::new(),
            ports: self.ports,
            labels: Default::default(),
            annotations: self.annotations.into_iter().collect(),
            meshed: self.meshed,
        };
        let registration = mesh.standalone.register(spec.clone());
        let mut proxy = Proxy {
            name: replica.clone(),
            ip: self.ip,
            apps,
            targets: BTreeMap::new(),
            registration: Some(registration.unwrap()),
            child: None,
            token: None,
            log: mesh.folder.path().join(format!("{replica}.log")),
        };
        if !self.meshed {
            if mesh.apart {
                mesh.tell_process(&spec, None);
            }
            return proxy;
        }
        let identity = self.identity.unwrap_or_else(|| identity_of(&self.name));
        let token = mesh.tokens.issue(&identity, None).unwrap();
        let token_file = mesh.folder.path().join(format!("{replica}.token"));
        std::fs::write(&token_file, token.secret()).unwrap();
        if mesh.apart {
            mesh.tell_process(&spec, Some((&identity, &token)));
        }
        proxy.token = Some(token);
        for (n, target) in self.targets.iter().enumerate() {
            proxy.targets.insert(target.clone(), (self.ip, 10_000 + n as u16).into());
        }
        let forward: Vec<_> =
            proxy.targets.iter().map(|(target, listen)| format!("{listen}={}", authority(target))).collect();
        let mut env = mesh.proxy_env();
        let at = |port: u16| format!("{}:{port}", self.ip);
        let workload = Workload { ns: NAMESPACE.into(), pod: replica, node_name: String::new() };
        env.extend([
            ("MESH_LOCAL_IDENTITY".into(), identity.to_string()),
            ("MESH_WORKLOAD".into(), serde_json::to_string(&workload).unwrap()),
            ("MESH_INBOUND_IPS".into(), self.ip.to_string()),
            ("MESH_TOKEN_FILE".into(), token_file.display().to_string()),
            ("MESH_OUTBOUND_LISTEN".into(), at(defaults::OUTBOUND_PORT)),
            ("MESH_INBOUND_LISTEN".into(), at(defaults::INBOUND_PORT)),
            ("MESH_ADMIN_LISTEN".into(), at(defaults::ADMIN_PORT)),
            ("MESH_TAP_LISTEN".into(), at(defaults::TAP_PORT)),
            ("MESH_FORWARD".into(), forward.join(",")),
        ]);
        env.extend(self.env);
        proxy.child = Some(spawn(&env, &proxy.log));
        proxy
    }
}

impl Mesh {
    /// What all proxies are told.
    fn proxy_env(&self) -> BTreeMap<String, String> {
        let destination = service_identity("gossamer-destination").to_string();
        let level = std::env::var("MESH_TEST_LOG").unwrap_or_else(|_| "warn,gossamer=info".into());
        [
            ("MESH_IDENTITY_ADDR", self.identity.to_string()),
            ("MESH_IDENTITY_NAME", service_identity(gossamer_identity::SERVICE_ACCOUNT).to_string()),
            ("MESH_DESTINATION_ADDR", self.destination.to_string()),
            ("MESH_DESTINATION_NAME", destination.clone()),
            ("MESH_POLICY_NAME", destination),
            ("MESH_TRUST_ANCHORS", self.anchors()),
            ("MESH_LOG_LEVEL", level),
            ("MESH_DETECT_PATIENCE", PATIENCE.into()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_string(), value))
        .collect()
    }
}

/// The program under test: `target/PROFILE/mesh`, built beside the tests.
pub fn program() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.ancestors().find(|folder| folder.join("mesh").is_file());
    folder.expect("cargo builds the program of this crate for its integration tests").join("mesh")
}

fn spawn(env: &BTreeMap<String, String>, log: &Path) -> Child {
    let file = std::fs::File::options().create(true).append(true).open(log).unwrap();
    Command::new(program())
        .arg("proxy")
        .env_clear()
        .envs(env)
        .env("MESH_TEST_LEASH", "1")
        .stdin(Stdio::piped())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A workload: its application and its proxy's process. Dropping it ends both, at once.
pub struct Proxy {
    /// The replica's name.
    pub name: String,
    /// Where it is.
    pub ip: Ipv4Addr,
    /// Its applications, in the order of `serve`.
    pub apps: Vec<App>,
    /// Keeps it known to others; `None` makes it unknown.
    pub registration: Option<Registration>,
    targets: BTreeMap<String, SocketAddr>,
    child: Option<Child>,
    /// Proves its identity, for as long as it lives.
    pub token: Option<JoinToken>,
    log: PathBuf,
}

impl Proxy {
    /// The local port behind which a service is that it [calls](Spec::calls).
    pub fn to(&self, target: &str) -> SocketAddr {
        *self.targets.get(target).unwrap_or_else(|| panic!("{} was not told to call {target}", self.name))
    }

    /// The admin server.
    pub fn admin(&self) -> SocketAddr {
        (self.ip, defaults::ADMIN_PORT).into()
    }

    /// The tap API.
    pub fn tap(&self) -> SocketAddr {
        (self.ip, defaults::TAP_PORT).into()
    }

    /// Where others' proxies connect.
    pub fn inbound(&self) -> SocketAddr {
        (self.ip, defaults::INBOUND_PORT).into()
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Metrics {
        Metrics::of(self.admin()).await
    }

    /// Waits until it has a certificate.
    pub async fn ready(&self) {
        if self.child.is_none() {
            return;
        }
        expect::eventually(&format!("{} is ready", self.name), || async {
            let answer = client::try_get(self.admin(), "proxy", "/ready").await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Others forget it; it goes on.
    pub fn deregister(&mut self) {
        self.registration = None;
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().and_then(Child::id).expect("it runs") as i32
    }

    /// Sends a signal to the proxy.
    pub fn signal(&self, which: Signal) {
        signal::kill(nix::unistd::Pid::from_raw(self.pid()), which).unwrap();
    }

    /// Asks the proxy to finish.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends the proxy at once.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.ended().await;
    }

    /// Waits for the proxy's end.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it was started");
        // `wait` would close it, and the proxy end at once instead of draining.
        let _leash = child.stdin.take();
        within("the proxy ends", child.wait()).await.unwrap()
    }

    /// True while the process lives.
    pub fn lives(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Memory of the process that is resident and its own, in bytes. Not pages of the program's file: a proxy at rest gives
    /// them back, and then has them again, which of a debug build is 16 MiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a running process has one");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.name, self.log());
        }
    }
}

/// The annotation of a proxy's setting.
pub fn config(setting: &str) -> String {
    format!("{}/{setting}", keys::CONFIG_PREFIX)
}
