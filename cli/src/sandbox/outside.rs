//! The way out of the private network, to this machine's own services and the internet. No privilege is needed: one
//! process stays behind in the machine's network and connects when it is asked to; what comes in through a pair of Unix
//! sockets is the connected socket itself, so that its bytes go no detour.
//!
//! **Invariant:** whoever holds the other end of the pair, the mesh's own process, is the only one who can ask; the
//! process outside ends with it. Addresses of the mesh itself never lead out.

use super::network;
use crate::error::{Context, Result};
use gossamer_proxy::net::{original_destination, reset_on_close};
use gossamer_proxy::redirect::{Chain, Match, Rule, Verdict, apply_rules};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::collections::HashMap;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};

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
/// A name has at most 253 bytes.
const MESSAGE: usize = 1024;

/// Starts the process that stays outside. Given back is the end that its questions come from.
pub fn start() -> Result<OwnedFd> {
    let (inside, outside) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)
        .context("a way out of the private network")?;
    Command::new("/proc/self/exe")
        .arg0("meshctl")
        .arg("outside")
        .stdin(Stdio::from(outside))
        // The terminal's Ctrl-C is not for it: it ends when nobody can ask any more.
        .process_group(0)
        .spawn()
        .context("the process that stays outside of the private network")?;
    Ok(inside)
}

/// The process outside: answers until nobody can ask any more.
pub fn serve() -> Result<ExitCode> {
    let socket = Arc::new(io::stdin().as_fd().try_clone_to_owned().context("standard input")?);
    let places = Arc::new(Semaphore::new(QUESTIONS));
    loop {
        let (question, _) = receive(&socket).context("standard input, which is meant for meshctl itself")?;
        let Some((id, question)) = question.split_once(' ') else { return Ok(ExitCode::SUCCESS) };
        let (id, question, socket) = (id.to_string(), question.to_string(), socket.clone());
        let Ok(place) = places.clone().try_acquire_owned() else {
            send(&socket, &format!("{id} error too many at once"), None);
            continue;
        };
        std::thread::spawn(move || {
            match answer(&question) {
                Ok((text, connected)) => send(&socket, &format!("{id} {text}"), connected.as_ref()),
                Err(error) => send(&socket, &format!("{id} error {error}"), None),
            }
            drop(place);
        });
    }
}

fn answer(question: &str) -> io::Result<(String, Option<TcpStream>)> {
    let invalid = || io::Error::from(ErrorKind::InvalidInput);
    match question.split_once(' ') {
        Some(("connect", target)) => {
            let target = target.parse().map_err(|_| invalid())?;
            Ok(("connected".into(), Some(TcpStream::connect_timeout(&target, CONNECT)?)))
        }
        Some(("resolve", name)) => {
            let found: Vec<_> = (name, 0).to_socket_addrs()?.map(|addr| addr.ip().to_string()).collect();
            Ok((format!("addresses {}", found.join(" ")), None))
        }
        _ => Err(invalid()),
    }
}

fn send(socket: &OwnedFd, text: &str, passed: Option<&TcpStream>) {
    let passed = passed.map(|stream| [stream.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(passed) = &passed {
        control.push(SendAncillaryMessage::ScmRights(passed));
    }
    // Whoever asked may be gone.
    let _ = sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL);
}

/// One message, and the socket that came with it. Empty: the other end is closed.
fn receive(socket: &OwnedFd) -> io::Result<Answer> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; MESSAGE];
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let passed = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut passed) => passed.next(),
        _ => None,
    });
    Ok((String::from_utf8_lossy(&bytes[..received.bytes]).into_owned(), passed))
}

/// A line, and the socket that came with it.
type Answer = (String, Option<OwnedFd>);
/// Who waits for which answer.
type Waiting = HashMap<u64, oneshot::Sender<Answer>>;

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
        while let Ok((answer, passed)) = receive(&self.socket) {
            let Some((id, answer)) = answer.split_once(' ') else { break };
            let asked = id.parse().ok().and_then(|id: u64| self.waiting().remove(&id));
            // Whoever asked may have given up; the socket is closed then.
            let _ = asked.map(|asked| asked.send((answer.to_string(), passed)));
        }
        // Nobody gets an answer any more.
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, question: &str) -> io::Result<Answer> {
        let id = self.number.fetch_add(1, Ordering::Relaxed);
        let (sender, answered) = oneshot::channel();
        self.waiting().insert(id, sender);
        send(&self.socket, &format!("{id} {question}"), None);
        let answer = tokio::time::timeout(CONNECT + Duration::from_secs(5), answered).await;
        self.waiting().remove(&id);
        match answer {
            Ok(Ok((text, _))) if text.starts_with("error ") => Err(io::Error::other(text)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ErrorKind::BrokenPipe.into()),
            Err(_) => Err(ErrorKind::TimedOut.into()),
        }
    }

    /// A connection made outside. [`HOST_ADDRESS`] is the machine itself.
    pub async fn connect(&self, target: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let target = outside_target(target).ok_or(ErrorKind::AddrNotAvailable)?;
        let (_, connected) = self.ask(&format!("connect {target}")).await?;
        let connected = TcpStream::from(connected.ok_or(ErrorKind::InvalidData)?);
        connected.set_nonblocking(true)?;
        tokio::net::TcpStream::from_std(connected)
    }

    /// The addresses of a name: those of IPv4 if it has any, since fewer machines can reach the others.
    pub async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let (answer, _) = self.ask(&format!("resolve {name}")).await?;
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

/// Takes connections that leave the private network, and continues them outside. Called on the node.
pub async fn relay(outside: Arc<Outside>) -> Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let v4 = TcpListener::bind((network::NODE, PORT)).await.context("the way out")?;
    tokio::spawn(accept(v4, outside.clone(), places.clone()));
    // A machine may have IPv6 switched off.
    if let Ok(v6) = TcpListener::bind((network::v6_of(network::NODE), PORT)).await {
        tokio::spawn(accept(v6, outside, places));
    }
    apply_rules(&rules()).context("the way out")
}

async fn accept(listener: TcpListener, outside: Arc<Outside>, places: Arc<Semaphore>) {
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((mut from, client)) = listener.accept().await else {
            // Out of file descriptors: others have to end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let outside = outside.clone();
        tokio::spawn(async move {
            let target = original_destination(&from, client);
            let connected = match target {
                Some(target) => outside.connect(target).await,
                None => Err(ErrorKind::AddrNotAvailable.into()),
            };
            match connected {
                Ok(mut to) => {
                    let _ = from.set_nodelay(true).and(to.set_nodelay(true));
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                }
                Err(error) => {
                    tracing::info!(?target, %error, "nobody outside of the mesh");
                    reset_on_close(&from);
                }
            }
            drop(place);
        });
    }
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
    fn a_connection_is_handed_over() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (text, connected) = answer(&format!("connect {}", listener.local_addr().unwrap())).unwrap();
        send(&theirs, &format!("7 {text}"), connected.as_ref());
        drop((theirs, connected));
        let (text, passed) = receive(&ours).unwrap();
        assert_eq!(text, "7 connected");
        let passed = TcpStream::from(passed.unwrap());
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), passed.local_addr().unwrap());
        assert_eq!(receive(&ours).unwrap().0, "", "the other end is closed");
        assert!(answer("shutdown 1").is_err() && answer("connect nowhere").is_err());
    }
}
