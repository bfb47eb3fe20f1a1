//! The control plane of a plain machine in this process: identity and destination on the node's address, a registry on
//! a Unix socket. [`Directory`] is what is left of it without a mesh: addresses and names.

use crate::error::{CommandError, Context, Result};
use crate::node::Node;
use crate::replica;
use crate::sandbox::dns::Resolve;
use crate::sandbox::network;
use gossamer_api::defaults::{self, CLUSTER_DOMAIN};
use gossamer_api::process::grpc::{self, PeerIdentity, ServerTls};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::ClientAuth;
use gossamer_api::settings;
use gossamer_api::wire::mesh::{Port, RegisterWorkload, Registered, WorkloadInfo};
use gossamer_api::workload::{Identity, Workload};
use gossamer_destination::pool::Pool;
use gossamer_destination::registry::Registry;
use gossamer_destination::standalone::{PortSpec, Registration, Standalone, WorkloadSpec};
use gossamer_identity::token::{JoinToken, JoinTokens, TokenCheck};
use gossamer_identity::{Authority, Config};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tonic::Status;

/// The first replica's address; those before it are the node's.
const FIRST: u32 = 10;
/// Replicas at once. A bridge has at most 1,024 ports.
const REPLICAS: u32 = 1000;

/// Addresses of replicas; each belongs to one until it is given back.
#[derive(Default)]
pub(crate) struct Addresses {
    taken: BTreeSet<u32>,
    last: u32,
}

impl Addresses {
    /// One that has not been used for as long as possible.
    pub(crate) fn take(&mut self) -> Result<Ipv4Addr> {
        for _ in 0..REPLICAS {
            self.last = (self.last + 1) % REPLICAS;
            if self.taken.insert(self.last) {
                return Ok(Ipv4Addr::from_bits((network::NODE.to_bits() & 0xffff_0000) + FIRST + self.last));
            }
        }
        Err(CommandError::failed(format!("{REPLICAS} replicas run already")))
    }

    /// This one, if nobody has it.
    fn claim(&mut self, address: Ipv4Addr) -> bool {
        let number = (address.to_bits() & 0xffff).checked_sub(FIRST).filter(|number| *number < REPLICAS);
        let here = address.to_bits() >> 16 == network::NODE.to_bits() >> 16;
        here && number.is_some_and(|number| self.taken.insert(number))
    }

    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&((address.to_bits() & 0xffff) - FIRST));
    }
}

/// The control plane in this process. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Plane(Arc<Inner>);

struct Inner {
    registry: Registry,
    standalone: Standalone,
    tokens: JoinTokens,
    objects: Option<PathBuf>,
    stop: Stop,
    addresses: Mutex<Addresses>,
    /// How many workloads there are, for whoever ends with the last.
    count: watch::Sender<usize>,
    /// Replicas of an earlier control plane that have not come back yet, and their addresses, which are taken.
    awaited: watch::Sender<BTreeMap<(String, String), Ipv4Addr>>,
    /// The mesh's folder, where taps are reached.
    folder: Mutex<PathBuf>,
    /// What proxies are told, once there is something to tell.
    proxy_env: Mutex<BTreeMap<String, String>>,
}

/// A workload's registration, its address and its token, for as long as this lives.
pub struct Lease {
    plane: Plane,
    address: Ipv4Addr,
    // Dropped before the address is given back.
    held: Option<(Registration, Option<JoinToken>)>,
}

/// The destination service's account; the identity service has its own.
const DESTINATION_ACCOUNT: &str = "gossamer-destination";
/// Addresses of services. They are on no interface: connections to them are redirected to the proxy before they leave.
const SERVICES: &str = "10.78.0.0/16";
/// Workloads notice within a tenth of a second that there is a new control plane.
const RETURN: Duration = Duration::from_secs(3);

impl Plane {
    /// Everything that needs no socket. `objects`: a folder of YAML objects to watch.
    pub fn prepare(objects: Option<PathBuf>, stop: Stop) -> Result<Plane> {
        if let Some(folder) = objects.as_deref().filter(|folder| !folder.is_dir()) {
            return Err(CommandError::usage(format!("{} is no folder", folder.display())));
        }
        let pool = Pool::new(SERVICES.parse().context("the network of services")?);
        let registry = Registry::new(Default::default(), Some(pool));
        Ok(Plane(Arc::new(Inner {
            standalone: Standalone::new(registry.clone()),
            registry,
            tokens: JoinTokens::new(),
            objects,
            stop,
            addresses: Mutex::default(),
            count: watch::channel(0).0,
            awaited: watch::channel(BTreeMap::new()).0,
            folder: Mutex::default(),
            proxy_env: Mutex::default(),
        })))
    }

    /// Answers for names of services and replicas.
    pub fn resolver(&self) -> Resolve {
        let standalone = self.0.standalone.clone();
        Arc::new(move |name| {
            // A replica has an IPv6 address as well, but most programs listen on IPv4 alone, and a client that took
            // the other first would get the proxy's 504: the proxy accepts before it knows.
            Some(vec![standalone.resolve(name, "")?])
        })
    }

    /// Starts identity, destination and registry on the node. Where workloads have outlived an earlier control plane
    /// they are waited for before anybody is answered: half a mesh would look like services without replicas.
    pub async fn serve(&self, node: &Node) -> Result<()> {
        let inner = &self.0;
        *lock(&inner.folder) = node.state.file("");
        self.expect(node.state.survivors().into_iter().flat_map(|survivor| survivor.replicas));
        let folder = node.state.file("identity");
        let mut config = Config::new(folder, TokenCheck::JoinTokens(inner.tokens.clone()));
        config.listen = (network::NODE, defaults::IDENTITY_PORT).into();
        let authority = Authority::start(&config, &inner.stop).map_err(anyhow_error)?;
        let destination = service_account(DESTINATION_ACCOUNT)?;
        let identity = config.server_identity().map_err(anyhow_error)?;
        let credentials =
            authority.service.keep_issued(destination.clone()).context("the control plane's certificate")?;

        let listen = |port| TcpListener::bind((network::NODE, port));
        let identity_listener = listen(defaults::IDENTITY_PORT).await.context("the identity service's port")?;
        *lock(&inner.proxy_env) = proxy_env(&identity, &destination, authority.service.anchors().pem());

        let stop = inner.stop.clone();
        inner.stop.spawn(async move {
            if let Err(error) = authority.serve(&config, identity_listener, stop).await {
                tracing::error!("identity has stopped: {error:#}");
            }
        });
        crate::registry::serve(self.clone(), node.state.file("registry.sock"), inner.stop.clone())?;
        self.returned().await;

        let destination_listener =
            listen(defaults::DESTINATION_PORT).await.context("the destination service's port")?;
        let admit = self.clone();
        let settings = gossamer_destination::Config {
            files: inner.objects.clone(),
            admit: Some(Arc::new(move |peer, workload| admit.admit(peer, workload))),
        };
        let tls = ServerTls { credentials, auth: ClientAuth::Required };
        let listeners = vec![destination_listener];
        let (registry, stop) = (inner.registry.clone(), inner.stop.clone());
        inner.stop.spawn(gossamer_destination::run(settings, registry, listeners, Some(tls), stop));
        // For `meshctl diagnostics`; like the registry's, the folder lets only its owner in.
        let asked = gossamer_destination::serve::State {
            registry: inner.registry.clone(),
            admit: None,
            stop: inner.stop.clone(),
        };
        let socket = UnixListener::bind(node.state.file("query.sock")).context("the mesh's socket for questions")?;
        inner.stop.spawn(grpc::serve_unix(gossamer_destination::serve::services(asked), socket, inner.stop.clone()));
        Ok(())
    }

    /// Keeps names and addresses for replicas that will come back.
    fn expect(&self, replicas: impl Iterator<Item = (String, String, Ipv4Addr)>) {
        let mut addresses = lock(&self.0.addresses);
        let expected = replicas.filter(|(.., address)| addresses.claim(*address));
        let expected = expected.map(|(namespace, name, address)| ((namespace, name), address)).collect();
        self.0.awaited.send_replace(expected);
    }

    /// Waits for them, for a while.
    async fn returned(&self) {
        let mut awaited = self.0.awaited.subscribe();
        let all = awaited.wait_for(|awaited| awaited.is_empty());
        if tokio::time::timeout(RETURN, all).await.is_err() {
            tracing::warn!("some workloads of the earlier control plane have not come back");
        }
    }

    /// An address for a replica; one that comes back has had it before.
    fn address(&self, namespace: &str, replica: &str, had: &str) -> Result<Ipv4Addr> {
        let inner = &self.0;
        if had.is_empty() {
            return lock(&inner.addresses).take();
        }
        let had: Ipv4Addr = had.parse().context(format!("address {had:?}"))?;
        let (key, mut kept) = ((namespace.to_string(), replica.to_string()), false);
        inner.awaited.send_if_modified(|awaited| {
            kept = awaited.get(&key) == Some(&had);
            kept && awaited.remove(&key).is_some()
        });
        match kept || lock(&inner.addresses).claim(had) {
            true => Ok(had),
            false => Err(CommandError::failed(format!("address {had} belongs to another workload"))),
        }
    }

    /// A proxy is told what concerns its own workload only.
    fn admit(&self, peer: Option<&PeerIdentity>, workload: &Workload) -> Result<(), Status> {
        let peer = peer.and_then(|peer| peer.identity.as_ref());
        let (account, namespace) = peer
            .and_then(|identity| identity.parts())
            .map(|(account, namespace, _, _)| (account, namespace))
            .ok_or_else(|| Status::unauthenticated("no workload's certificate"))?;
        let own = |spec: &WorkloadSpec| spec.namespace == namespace && spec.name == account;
        let all = self.0.standalone.list();
        let same = |spec: &&WorkloadSpec| spec.namespace == workload.ns && spec.replica == workload.pod;
        match all.iter().find(same) {
            Some(spec) if own(spec) => Ok(()),
            _ => {
                Err(Status::permission_denied(format!("{account}.{namespace} is not {}/{}", workload.ns, workload.pod)))
            }
        }
    }

    /// Registers a workload until the lease is dropped.
    pub fn register(&self, workload: RegisterWorkload) -> Result<(Registered, Lease)> {
        let inner = &self.0;
        let namespace = if workload.namespace.is_empty() { "default".into() } else { workload.namespace };
        let replica =
            if workload.replica.is_empty() { self.new_name(&namespace, &workload.name) } else { workload.replica };
        let ports = workload.ports.iter().map(port).collect::<Result<Vec<_>>>()?;
        let address = self.address(&namespace, &replica, &workload.address)?;
        // From here on dropping it gives the address back.
        let mut lease = Lease { plane: self.clone(), address, held: None };
        let registration = inner.standalone.register(WorkloadSpec {
            namespace: namespace.clone(),
            name: workload.name,
            replica: replica.clone(),
            ip: address.into(),
            other_ips: vec![network::v6_of(address).into()],
            ports,
            labels: workload.labels.into_iter().collect(),
            annotations: workload.annotations.clone().into_iter().collect(),
            meshed: !workload.unmeshed,
        });
        let registration = registration.map_err(CommandError::failed)?;
        let identity = registration.identity.clone();
        let token = match &identity {
            Some(identity) => Some(inner.tokens.issue(identity, None).context("a token for the workload")?),
            None => None,
        };
        let proxy_env = match &identity {
            Some(identity) => self.env_of(identity, &namespace, &replica, address, &workload.annotations)?,
            None => Default::default(),
        };
        let registered = Registered {
            replica,
            address: address.to_string(),
            service_address: registration.service_address.to_string(),
            service_name: registration.service_name.clone(),
            proxy_env,
            token: token.as_ref().map(|token| token.secret().to_string()).unwrap_or_default(),
        };
        lease.held = Some((registration, token));
        inner.count.send_modify(|count| *count += 1);
        Ok((registered, lease))
    }

    /// All workloads, by name.
    pub fn workloads(&self) -> Vec<WorkloadInfo> {
        let folder = lock(&self.0.folder).clone();
        let info = |spec: WorkloadSpec| {
            let identity = if spec.meshed { service_account_in(&spec.name, &spec.namespace).ok() } else { None };
            let at = |port: u16| format!("{}:{port}", spec.ip);
            let port =
                |p: &PortSpec| Port { port: p.port.into(), name: p.name.clone(), app_protocol: p.app_protocol.clone() };
            WorkloadInfo {
                address: spec.ip.to_string(),
                identity: identity.map(|identity| identity.to_string()).unwrap_or_default(),
                meshed: spec.meshed,
                admin: at(defaults::ADMIN_PORT),
                tap: replica::tap_socket(&folder, &spec.namespace, &spec.replica).display().to_string(),
                ports: spec.ports.iter().map(port).collect(),
                labels: spec.all_labels().into_iter().collect(),
                namespace: spec.namespace,
                name: spec.name,
                replica: spec.replica,
            }
        };
        self.0.standalone.list().into_iter().map(info).collect()
    }

    /// Returns when there has been no workload for this long.
    pub async fn idle(&self, patience: std::time::Duration) {
        let mut count = self.0.count.subscribe();
        loop {
            // The sender lives as long as the plane.
            let _ = count.wait_for(|count| *count == 0).await;
            let busy = tokio::time::timeout(patience, count.wait_for(|count| *count > 0)).await;
            if busy.is_err() {
                return;
            }
        }
    }

    /// The lowest number that is free.
    fn new_name(&self, namespace: &str, service: &str) -> String {
        let known = self.0.standalone.list().into_iter().map(|spec| (spec.namespace, spec.replica));
        let awaited: Vec<_> = self.0.awaited.borrow().keys().cloned().collect();
        let taken: BTreeSet<String> =
            known.chain(awaited).filter(|(its, _)| its == namespace).map(|(_, replica)| replica).collect();
        (1..).map(|n| format!("{service}-{n}")).find(|name| !taken.contains(name)).unwrap_or_default()
    }

    /// A workload's annotations are settings of its proxy, where they may be.
    fn env_of(
        &self,
        identity: &Identity,
        ns: &str,
        pod: &str,
        address: Ipv4Addr,
        annotations: &std::collections::HashMap<String, String>,
    ) -> Result<std::collections::HashMap<String, String>> {
        let workload = Workload { ns: ns.into(), pod: pod.into(), node_name: String::new() };
        let mut env: std::collections::HashMap<_, _> = lock(&self.0.proxy_env).clone().into_iter().collect();
        env.insert("MESH_LOCAL_IDENTITY".into(), identity.to_string());
        env.insert("MESH_WORKLOAD".into(), serde_json::to_string(&workload).context("the workload's name")?);
        env.insert("MESH_INBOUND_IPS".into(), format!("{address},{}", network::v6_of(address)));
        for setting in settings::PROXY.iter().filter(|setting| setting.annotation) {
            let key = format!("{}/{}", gossamer_api::keys::CONFIG_PREFIX, setting.name);
            env.extend(annotations.get(&key).map(|value| (setting.env(), value.clone())));
        }
        Ok(env)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let inner = &self.plane.0;
        if self.held.take().is_some() {
            inner.count.send_modify(|count| *count -= 1);
        }
        lock(&inner.addresses).give_back(self.address);
    }
}

fn proxy_env(identity: &Identity, destination: &Identity, anchors: &str) -> BTreeMap<String, String> {
    let at = |port: u16| format!("{}:{port}", network::NODE);
    let env = [
        ("MESH_IDENTITY_ADDR", at(defaults::IDENTITY_PORT)),
        ("MESH_IDENTITY_NAME", identity.to_string()),
        ("MESH_DESTINATION_ADDR", at(defaults::DESTINATION_PORT)),
        ("MESH_DESTINATION_NAME", destination.to_string()),
        ("MESH_POLICY_NAME", destination.to_string()),
        ("MESH_TRUST_ANCHORS", anchors.to_string()),
    ];
    env.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

fn service_account(account: &str) -> Result<Identity> {
    service_account_in(account, defaults::CONTROL_NAMESPACE)
}

fn service_account_in(account: &str, namespace: &str) -> Result<Identity> {
    Identity::service_account(account, namespace, defaults::CONTROL_NAMESPACE, defaults::TRUST_DOMAIN)
        .context("an identity")
}

fn port(port: &Port) -> Result<PortSpec> {
    let number = u16::try_from(port.port).ok().filter(|port| *port > 0);
    let number = number.ok_or_else(|| CommandError::failed(format!("{} is no port", port.port)))?;
    Ok(PortSpec { port: number, name: port.name.clone(), app_protocol: port.app_protocol.clone() })
}

fn anyhow_error(error: anyhow::Error) -> CommandError {
    CommandError::failed(format!("{error:#}"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Names without a mesh: a service's name leads to all of its replicas.
#[derive(Clone, Default)]
pub struct Directory(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    addresses: Addresses,
    replicas: BTreeMap<String, Vec<Ipv4Addr>>,
}

impl Directory {
    /// Gives a new replica its address and name.
    pub fn register(&self, name: &str, namespace: &str) -> Result<Registered> {
        let mut entries = self.entries();
        let address = entries.addresses.take()?;
        let replicas = entries.replicas.entry(format!("{name}.{namespace}")).or_default();
        replicas.push(address);
        let replica = format!("{name}-{}", replicas.len());
        Ok(Registered { replica, address: address.to_string(), ..Registered::default() })
    }

    /// The replicas' addresses, in an order that spreads clients which take the first.
    pub fn resolve(&self, name: &str) -> Option<Vec<IpAddr>> {
        let service = name.strip_suffix(CLUSTER_DOMAIN)?.strip_suffix(".svc.")?;
        let mut addresses = self.entries().replicas.get(service)?.clone();
        fastrand::shuffle(&mut addresses);
        Some(addresses.into_iter().map(IpAddr::V4).collect())
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_reused_as_late_as_possible() {
        let mut addresses = Addresses::default();
        let first = addresses.take().unwrap();
        addresses.give_back(first);
        for _ in 0..REPLICAS - 1 {
            assert_ne!(addresses.take().unwrap(), first);
        }
        assert_eq!(addresses.take().unwrap(), first);
        assert!(addresses.take().is_err());
    }

    #[test]
    fn who_comes_back_keeps_its_address_and_its_name() {
        let plane = Plane::prepare(None, Stop::new()).unwrap();
        let had: Ipv4Addr = "10.77.0.11".parse().unwrap();
        plane.expect([("default".to_string(), "web-1".to_string(), had)].into_iter());
        let register = |replica: &str, address: &str| {
            let (name, replica, address) = ("web".into(), replica.into(), address.into());
            plane.register(RegisterWorkload { name, replica, address, unmeshed: true, ..RegisterWorkload::default() })
        };
        let (new, _lease) = register("", "").unwrap();
        assert_ne!((new.replica.as_str(), new.address.as_str()), ("web-1", "10.77.0.11"));
        assert!(register("web-7", "10.77.0.11").is_err(), "it is somebody else's");
        let (back, lease) = register("web-1", "10.77.0.11").unwrap();
        assert_eq!((back.replica.as_str(), back.address.as_str()), ("web-1", "10.77.0.11"));
        drop(lease);
        assert!(register("web-1", "10.77.0.11").is_ok(), "its stream may have broken");
        for address in ["10.77.0.1", "10.99.0.20", "10.77.255.255", "nonsense"] {
            assert!(register("web-9", address).is_err(), "{address}");
        }
    }

    #[test]
    fn a_service_is_all_of_its_replicas() {
        let directory = Directory::default();
        directory.register("web", "demo").unwrap();
        directory.register("web", "demo").unwrap();
        assert_eq!(directory.resolve("web.demo.svc.cluster.local").unwrap().len(), 2);
        assert_eq!(directory.resolve("db.demo.svc.cluster.local"), None);
    }
}
