//! Ports of workloads on this machine's own addresses. The listeners are bound before this process leaves the machine's
//! network and stay there; connections from them are continued inside, where the process is by then.

use super::state::Mesh;
use crate::error::{CommandError, Context, Result};
use crate::output::paint_err;
use crate::registry::Client;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Connections at once through one published port.
const CONNECTIONS: usize = 1024;

/// `[ADDRESS:]PORT[:PORT-OF-THE-WORKLOAD]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Where this machine listens.
    pub listen: SocketAddr,
    /// Where the workload does.
    pub port: u16,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let port = |text: &str| match text.parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("{text:?} is no port; expected [ADDRESS:]PORT[:PORT-OF-THE-WORKLOAD]")),
        };
        let ip = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| format!("{text:?} is no IPv4 address"));
        let parts: Vec<&str> = text.split(':').collect();
        let (address, outer, inner) = match parts[..] {
            [outer] => (Ipv4Addr::LOCALHOST, outer, outer),
            [first, second] if first.contains('.') => (ip(first)?, second, second),
            [outer, inner] => (Ipv4Addr::LOCALHOST, outer, inner),
            [address, outer, inner] => (ip(address)?, outer, inner),
            _ => return Err(format!("{text:?} is not [ADDRESS:]PORT[:PORT-OF-THE-WORKLOAD]")),
        };
        Ok(Publish { listen: SocketAddr::new(IpAddr::V4(address), port(outer)?), port: port(inner)? })
    }
}

/// Listens. Called in the machine's own network.
pub fn bind(wanted: &[Publish]) -> Result<Vec<(TcpListener, u16)>> {
    let bind = |publish: &Publish| {
        let listener = TcpListener::bind(publish.listen).map_err(|error| {
            let failed = CommandError::failed(format!("cannot publish on {}: {error}", publish.listen));
            match error.kind() {
                ErrorKind::AddrInUse => failed.hint("another process uses that port; choose another with --publish"),
                ErrorKind::PermissionDenied => failed.hint("choose a port above 1023, as --publish 8080:80"),
                _ => failed,
            }
        })?;
        listener.set_nonblocking(true).context("a published port")?;
        Ok((listener, publish.port))
    };
    wanted.iter().map(bind).collect()
}

/// Relays to the replicas of a service, for ever. Called in the mesh's network, on a thread of its own.
pub fn relay(listeners: Vec<(TcpListener, u16)>, mesh: Mesh, namespace: String, service: String) {
    let relay = async {
        let mut tasks = tokio::task::JoinSet::new();
        for (listener, port) in listeners {
            tasks.spawn(relay_one(listener, port, mesh.clone(), namespace.clone(), service.clone()));
        }
        tasks.join_all().await;
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(relay),
        Err(error) => eprintln!("{} nothing is published: {error}", paint_err("error:", "1;31")),
    }
}

async fn relay_one(listener: TcpListener, port: u16, mesh: Mesh, namespace: String, service: String) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // What the control plane said last, while there is none.
    let known = Arc::new(Mutex::new(Vec::new()));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((mut from, _)) = listener.accept().await else {
            // Out of file descriptors: others have to end first.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (mesh, namespace, service, known) = (mesh.clone(), namespace.clone(), service.clone(), known.clone());
        tokio::spawn(async move {
            let addresses = addresses(&mesh, &namespace, &service, &known).await;
            if let Some(mut to) = connect(addresses, port).await {
                let _ = from.set_nodelay(true).and(to.set_nodelay(true));
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            }
            drop(place);
        });
    }
}

/// Of the service's replicas.
async fn addresses(mesh: &Mesh, namespace: &str, service: &str, known: &Mutex<Vec<String>>) -> Vec<String> {
    let asked = async { Client::connect(mesh).await?.list().await };
    let mut known = match asked.await {
        Ok(all) => {
            let here = all.into_iter().filter(|w| w.namespace == namespace && w.name == service);
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            *known = here.map(|workload| workload.address).collect();
            known.clone()
        }
        Err(_) => known.lock().unwrap_or_else(PoisonError::into_inner).clone(),
    };
    fastrand::shuffle(&mut known);
    known
}

/// To the first that answers.
async fn connect(addresses: Vec<String>, port: u16) -> Option<TcpStream> {
    for address in addresses {
        if let Ok(stream) = TcpStream::connect(format!("{address}:{port}")).await {
            return Some(stream);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_published_on_loopback_unless_told_otherwise() {
        let check = |text: &str, listen: &str, port| {
            assert_eq!(text.parse(), Ok(Publish { listen: listen.parse().unwrap(), port }), "{text}");
        };
        check("8080", "127.0.0.1:8080", 8080);
        check("8000:80", "127.0.0.1:8000", 80);
        check("0.0.0.0:8080", "0.0.0.0:8080", 8080);
        check("0.0.0.0:8000:80", "0.0.0.0:8000", 80);
        for bad in ["", "0", "x", "1:2:3", "1.2.3.4:1:2:3", "8080:70000"] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }
}
