//! Accepts connections: a bounded number at once, each in a tracked task, until the process stops.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::stop::Stop;
use crate::defaults;

/// Listens where an option says. The error is one line that says what to do.
pub async fn bind(option: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let what = format!("cannot listen on {address} ({option})");
        match error.kind() {
            io::ErrorKind::AddrInUse => anyhow::anyhow!("{what}; is another process using port {}?", address.port()),
            io::ErrorKind::AddrNotAvailable => anyhow::anyhow!("{what}; {} is no address of this host", address.ip()),
            io::ErrorKind::PermissionDenied => {
                anyhow::anyhow!("{what}; ports below 1024 need the privilege CAP_NET_BIND_SERVICE")
            }
            _ => anyhow::anyhow!("{what}: {error}"),
        }
    })
}

/// Hands each accepted connection to `serve`, at most `limit` at once; further ones wait in the system's queue.
/// Returns when the process stops; connections go on, `stop` waits for them.
pub async fn accept<F, R>(listener: TcpListener, limit: usize, stop: &Stop, serve: F)
where
    F: Fn(TcpStream, SocketAddr) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let serve = |(io, peer): (TcpStream, SocketAddr)| {
        set_options(&io);
        serve(io, peer)
    };
    let spawn = |connection| {
        stop.spawn(connection);
    };
    each(limit, stop.stopping(), || listener.accept(), serve, spawn).await;
}

/// The loop beneath every listener, until `end`.
pub(super) async fn each<C, A, R>(
    limit: usize,
    end: impl Future<Output = ()>,
    accept: impl Fn() -> A,
    serve: impl Fn(C) -> R,
    spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>),
) where
    A: Future<Output = io::Result<C>>,
    R: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limit));
    let mut end = std::pin::pin!(end);
    loop {
        // The place is taken first: a connection that nobody serves is better left in the queue.
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = &mut end => return,
            next = next => next,
        };
        match accepted {
            Ok(accepted) => {
                let connection = serve(accepted);
                spawn(Box::pin(async move {
                    connection.await;
                    drop(place);
                }));
            }
            Err(error) => {
                // Out of files, or the peer is gone already; the former needs a moment.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What every socket between processes of the mesh has: no delay, and a kernel that notices when the peer is gone.
pub fn set_options(io: &TcpStream) {
    let socket = socket2::SockRef::from(io);
    // Fails only where the peer is gone already, which the first read will tell.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive());
    let _ = socket.set_tcp_user_timeout(Some(defaults::CONTROL_USER_TIMEOUT));
}

/// When the kernel asks a silent peer whether it is there.
pub fn keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new().with_time(defaults::TCP_KEEPALIVE).with_interval(defaults::TCP_KEEPALIVE_INTERVAL)
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn who_can_t_listen_is_told_in_one_line_what_to_do() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = other.local_addr().unwrap();
        let said = async |address: &str| format!("{:#}", bind("--admin", address.parse().unwrap()).await.unwrap_err());
        let expected = format!("cannot listen on {taken} (--admin); is another process using port {}?", taken.port());
        assert_eq!(said(&taken.to_string()).await, expected);
        assert_eq!(
            said("192.0.2.1:80").await,
            "cannot listen on 192.0.2.1:80 (--admin); 192.0.2.1 is no address of this host"
        );
        assert!(bind("--admin", "127.0.0.1:0".parse().unwrap()).await.is_ok());
    }

    #[tokio::test]
    async fn the_kernel_watches_the_peer() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        set_options(&io);
        let socket = socket2::SockRef::from(&io);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), defaults::TCP_KEEPALIVE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), defaults::TCP_KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(defaults::CONTROL_USER_TIMEOUT));
    }

    #[tokio::test]
    async fn serves_at_most_so_many_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, gate) = (Stop::new(), Arc::new(Semaphore::new(0)));
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (done, mut finished) = mpsc::channel(8);
        let (accepting, gated, highest) = (stop.clone(), gate.clone(), most.clone());
        stop.spawn(async move {
            accept(listener, 2, &accepting, |_io, _peer| {
                let (gate, running, most, done) = (gated.clone(), running.clone(), highest.clone(), done.clone());
                async move {
                    most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                    let _ = gate.acquire().await.map(|permit| permit.forget());
                    running.fetch_sub(1, SeqCst);
                    let _ = done.send(()).await;
                }
            })
            .await;
        });
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..5 {
            gate.add_permits(1);
            finished.recv().await.unwrap();
        }
        assert_eq!(most.load(SeqCst), 2);
        stop.stop();
        assert!(stop.wait(Duration::from_secs(5)).await);
    }
}
