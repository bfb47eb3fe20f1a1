//! The way out of the private network, to this machine's own services and the internet. No privilege is needed: one
//! process stays behind in the machine's network, and the mesh hands it, through a pair of Unix sockets, the listeners
//! where connections that leave arrive. So those that stand do not break when the control plane dies: the process outside
//! takes no new ones then, and ends with the last.
//!
//! **Invariant:** whoever holds the other end of the pair, the mesh's own process, is the only one who can ask; the
//! process outside never outlives both that and the last workload. Addresses of the mesh itself never lead out.

use super::{network, state};
use crate::error::{Context, Result};
use gossamer_proxy::net::{dial, listen, original_destination, reset_on_close};
use gossamer_proxy::redirect::{Chain, Match, Rule, Verdict, apply_rules};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// This machine as programs of the mesh name it.
pub const HOST: &str = "host.mesh.internal";
/// Where that is: a link-local address of which nobody else can be meant.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 77, 1);
/// Told to the process inside whose standard input leads out.
pub const VARIABLE: &str = "MESHCTL_OUTSIDE";

/// Where the kernel brings connections that leave the private network; on the node, next to the proxy's ports.
const PORT: u16 = 4189;
/// Connections at once, in all.
const CONNECTIONS: usize = 4096;
/// Questions that are being answered at once; each has a thread.
const QUESTIONS: usize = 256;
/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// A name has at most 253 bytes, the path of the mesh's folder some hundred.
const MESSAGE: usize = 1024;
/// Listeners handed over: IPv4 and IPv6.
const LISTENERS: usize = 2;
/// Without a control plane, how often it is looked whether there are workloads.
const LOOK: Duration = Duration::from_secs(1);

/// Starts the process that stays outside. Given back is the end that its questions come from.
pub fn start() -> Result<OwnedFd> {
    let (inside, outside) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)
        .context("a way out of the private network")?;
    Command::new("/proc/self/exe")
        .arg0("meshctl")
        .arg("outside")
        .stdin(Stdio::from(outside))
        // It may outlive this command, and whoever reads what that says must see the end of it.
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // The terminal's Ctrl-C is not for it: it ends when nobody can ask any more.
        .process_group(0)
        .spawn()
        .context("the process that stays outside of the private network")?;
    Ok(inside)
}

/// The process outside: answers until nobody can ask any more, and relays for a while longer.
pub fn serve() -> Result<ExitCode> {
    let socket = Arc::new(io::stdin().as_fd().try_clone_to_owned().context("standard input")?);
    let places = Arc::new(Semaphore::new(QUESTIONS));
    let ended = CancellationToken::new();
    let mut relays = Vec::new();
    loop {
        let (question, passed) = receive(&socket).context("standard input, which is meant for meshctl itself")?;
        let Some((id, question)) = question.split_once(' ') else { break };
        let (id, socket) = (id.to_string(), socket.clone());
        if let Some(mesh) = question.strip_prefix("relay ") {
            let (mesh, ended) = (PathBuf::from(mesh), ended.clone());
            relays.push(std::thread::spawn(move || relay(passed, &mesh, &socket, ended)));
            continue;
        }
        let Ok(place) = places.clone().try_acquire_owned() else {
            send(&socket, &format!("{id} error too many at once"), &[]);
            continue;
        };
        let question = question.to_string();
        std::thread::spawn(move || {
            match answer(&question) {
                Ok(text) => send(&socket, &format!("{id} {text}"), &[]),
                Err(error) => send(&socket, &format!("{id} error {error}"), &[]),
            }
            drop(place);
        });
    }
    ended.cancel();
    for relay in relays {
        // What went wrong was told while somebody listened.
        let _ = relay.join();
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(question: &str) -> io::Result<String> {
    let name = question.strip_prefix("resolve ").ok_or(ErrorKind::InvalidInput)?;
    let found: Vec<_> = (name, 0).to_socket_addrs()?.map(|addr| addr.ip().to_string()).collect();
    Ok(format!("addresses {}", found.join(" ")))
}

/// Continues the connections that arrive at these sockets. When the mesh's control plane has `ended`, those that stand go
/// on, until they end or there is no workload in the mesh's folder.
fn relay(passed: Vec<OwnedFd>, mesh: &Path, socket: &Arc<OwnedFd>, ended: CancellationToken) {
    let told = |error: io::Error| send(socket, &format!("{TOLD} {error}"), &[]);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(error),
    };
    runtime.block_on(async {
        let (open, places) = (TaskTracker::new(), Arc::new(Semaphore::new(CONNECTIONS)));
        for listener in passed {
            match tokio::net::TcpListener::from_std(TcpListener::from(listener)) {
                Ok(listener) => {
                    let (socket, places, open) = (socket.clone(), places.clone(), open.clone());
                    tokio::spawn(ended.clone().run_until_cancelled_owned(accept(listener, socket, places, open)));
                }
                Err(error) => told(error),
            }
        }
        ended.cancelled().await;
        open.close();
        while !state::survivors(mesh).is_empty() {
            if tokio::time::timeout(LOOK, open.wait()).await.is_ok() {
                return;
            }
        }
    });
}

async fn accept(listener: tokio::net::TcpListener, socket: Arc<OwnedFd>, places: Arc<Semaphore>, open: TaskTracker) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((mut from, client)) = listener.accept().await else {
            // Out of file descriptors: others have to end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let socket = socket.clone();
        open.spawn(async move {
            let target = original_destination(&from, client);
            match connect(target).await {
                Ok(mut to) => {
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                }
                Err(error) => {
                    let target = target.map_or_else(|| "an unknown address".into(), |target| target.to_string());
                    send(&socket, &format!("{TOLD} {target}: {error}"), &[]);
                    reset_on_close(&from);
                }
            }
            drop(place);
        });
    }
}

async fn connect(target: Option<SocketAddr>) -> io::Result<TcpStream> {
    let target = target.and_then(outside_target).ok_or(ErrorKind::AddrNotAvailable)?;
    tokio::time::timeout(CONNECT, dial(target, 0)).await?
}

/// In place of a question's number: told without having been asked.
const TOLD: &str = "told";

fn send(socket: &OwnedFd, text: &str, passed: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(passed));
    }
    // Whoever asked may be gone.
    let _ = sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL);
}

/// One message, and the sockets that came with it. Empty: the other end is closed.
fn receive(socket: &OwnedFd) -> io::Result<(String, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(LISTENERS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MESSAGE];
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut passed = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            passed.extend(sockets);
        }
    }
    Ok((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), passed))
}

/// Who waits for which answer.
type Waiting = HashMap<u64, oneshot::Sender<String>>;

/// The end inside.
pub struct Outside {
    socket: OwnedFd,
    number: AtomicU64,
    waiting: Mutex<Waiting>,
}

impl Outside {
    /// The way out, if this process was given one.
    pub fn open() -> Result<Option<Arc<Outside>>> {
        if std::env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let socket = io::stdin().as_fd().try_clone_to_owned().context("the way out")?;
        let outside = Arc::new(Outside { socket, number: AtomicU64::new(0), waiting: Mutex::default() });
        let reader = outside.clone();
        std::thread::Builder::new().name("outside".into()).spawn(move || reader.read()).context("a thread")?;
        Ok(Some(outside))
    }

    fn read(&self) {
        while let Ok((answer, _)) = receive(&self.socket) {
            let Some((id, answer)) = answer.split_once(' ') else { break };
            if id == TOLD {
                tracing::info!("outside of the mesh: {answer}");
                continue;
            }
            let asked = id.parse().ok().and_then(|id: u64| self.waiting().remove(&id));
            // Whoever asked may have given up.
            let _ = asked.map(|asked| asked.send(answer.to_string()));
        }
        // Nobody gets an answer any more.
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, question: &str) -> io::Result<String> {
        let id = self.number.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = oneshot::channel();
        self.waiting().insert(id, sender);
        send(&self.socket, &format!("{id} {question}"), &[]);
        let answer = tokio::time::timeout(CONNECT + Duration::from_secs(5), answered).await;
        self.waiting().remove(&id);
        match answer {
            Ok(Ok(text)) if text.starts_with("error ") => Err(io::Error::other(text)),
            Ok(Ok(text)) => Ok(text),
            Ok(Err(_)) => Err(ErrorKind::BrokenPipe.into()),
            Err(_) => Err(ErrorKind::TimedOut.into()),
        }
    }

    /// Lets connections leave: those that the kernel brings to the node's port, taken outside from now on. `mesh` is its
    /// folder. Called on the node.
    pub fn relay(&self, mesh: &Path) -> Result<()> {
        // A machine may have IPv6 switched off.
        let addresses = [IpAddr::V4(network::NODE), IpAddr::V6(network::v6_of(network::NODE))];
        let [v4, v6] = addresses.map(|address| listen((address, PORT).into()));
        let listeners: Vec<_> = [Some(v4.context("the way out")?), v6.ok()].into_iter().flatten().collect();
        let passed: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
        send(&self.socket, &format!("{TOLD} relay {}", mesh.display()), &passed);
        apply_rules(&rules()).context("the way out")
    }

    /// The addresses of a name: those of IPv4 if it has any, since fewer machines can reach the others.
    pub async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let answer = self.ask(&format!("resolve {name}")).await?;
        let mut found: Vec<IpAddr> = answer.split(' ').skip(1).filter_map(|ip| ip.parse().ok()).collect();
        found.sort_unstable();
        found.dedup();
        if found.iter().any(IpAddr::is_ipv4) {
            found.retain(IpAddr::is_ipv4);
        }
        Ok(found)
    }
}

/// Where a connection goes outside; `None` where it must not.
fn outside_target(target: SocketAddr) -> Option<SocketAddr> {
    match target.ip() {
        IpAddr::V4(ip) if ip == HOST_ADDRESS => Some((Ipv4Addr::LOCALHOST, target.port()).into()),
        // A service without a proxy in front of the client, or nobody.
        IpAddr::V4(ip) if matches!(ip.octets(), [10, 77 | 78, ..]) => None,
        IpAddr::V6(ip) if ip.segments()[..4] == network::PREFIX_V6.segments()[..4] => None,
        ip if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() => None,
        _ => Some(target),
    }
}

/// True for names that this machine may know, and the mesh does not.
pub fn is_outside(name: &str, cluster_domain: &str) -> bool {
    let name = name.trim_end_matches('.');
    let ours = name.strip_suffix(cluster_domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    name.contains('.') && name.len() <= 253 && !ours && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What leaves the private network by way of the node comes to the relay. Cables of one bridge may pass here as well, so
/// what stays inside is left alone.
fn rules() -> Vec<Rule> {
    let [a, b, ..] = network::NODE.octets();
    let mut v6 = [0; 8];
    v6.copy_from_slice(&network::PREFIX_V6.octets()[..8]);
    let rule = |matches, verdict| Rule { chain: Chain::Prerouting, matches, verdict };
    vec![
        rule(vec![Match::FromLoopback], Verdict::Return),
        rule(vec![Match::ToV4([a, b])], Verdict::Return),
        rule(vec![Match::ToV6(v6)], Verdict::Return),
        rule(vec![Match::Tcp], Verdict::Redirect(PORT)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_itself_is_never_outside() {
        let out = |text: &str| outside_target(text.parse().unwrap()).map(|target| target.to_string());
        assert_eq!(out("93.184.216.34:443").as_deref(), Some("93.184.216.34:443"));
        assert_eq!(out("10.0.0.7:5432").as_deref(), Some("10.0.0.7:5432"));
        assert_eq!(out("169.254.77.1:5432").as_deref(), Some("127.0.0.1:5432"));
        for inside in ["10.77.0.9:80", "10.78.0.9:80", "127.0.0.1:80", "0.0.0.0:80", "[fd77:676f:7373::a4d:9]:80"] {
            assert_eq!(out(inside), None, "{inside}");
        }
    }

    #[test]
    fn names_of_the_mesh_are_not_asked_for_outside() {
        let out = |name| is_outside(name, "cluster.local");
        assert!(out("example.com") && out("db.lan."));
        for name in ["web", "web.demo.svc.cluster.local", "cluster.local", "example.com.svc.cluster.local", "a b.com"] {
            assert!(!out(name), "{name}");
        }
    }

    #[test]
    fn listeners_are_handed_over() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let listeners = [0; LISTENERS].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
        send(&theirs, "told relay /nowhere", &listeners.each_ref().map(AsFd::as_fd));
        drop((theirs, listeners));
        let (text, passed) = receive(&ours).unwrap();
        assert_eq!((text.as_str(), passed.len()), ("told relay /nowhere", LISTENERS));
        for (listener, address) in passed.into_iter().zip(addresses) {
            let near = std::net::TcpStream::connect(address).unwrap();
            assert_eq!(TcpListener::from(listener).accept().unwrap().1, near.local_addr().unwrap());
        }
        assert_eq!(receive(&ours).unwrap().0, "", "the other end is closed");
        assert!(answer("shutdown 1").is_err() && answer("connect 127.0.0.1:80").is_err());
    }

    /// The mesh's folder has no workload: nothing is left that could need it.
    #[test]
    fn without_a_control_plane_and_workloads_it_ends() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ended, folder) = (CancellationToken::new(), tempfile::tempdir().unwrap());
        let relaying = std::thread::spawn({
            let (ended, folder) = (ended.clone(), folder.path().to_path_buf());
            move || relay(vec![listener.into()], &folder, &Arc::new(theirs), ended)
        });
        // It was redirected by nobody, so it leads nowhere, and that is told.
        assert!(receive(&ours).unwrap().0.starts_with("told "));
        assert!(std::io::Read::read(&mut &near, &mut [0]).is_err(), "reset");
        ended.cancel();
        relaying.join().unwrap();
    }
}
