//! Accepts connections: a bounded number at once, each in a tracked task, until the process stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::stop::Stop;
use crate::defaults;

/// Hands each accepted connection to `serve`, at most `limit` at once; further ones wait in the system's queue.
/// Returns when the process stops; connections go on, `stop` waits for them.
pub async fn accept<F, R>(listener: TcpListener, limit: usize, stop: &Stop, serve: F)
where
    F: Fn(TcpStream, SocketAddr) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(limit));
    loop {
        // The place is taken first: a connection that nobody serves is better left in the queue.
        let next = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            biased;
            () = stop.stopping() => return,
            next = next => next,
        };
        match accepted {
            Ok((io, peer)) => {
                set_options(&io);
                let connection = serve(io, peer);
                stop.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of files, or the peer is gone already; the former needs a moment.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What every socket of the mesh has: no delay, keep-alive.
pub fn set_options(io: &TcpStream) {
    // Fails only where the peer is gone already, which the first read will tell.
    let _ = io.set_nodelay(true);
    let keepalive = socket2::TcpKeepalive::new().with_time(defaults::TCP_KEEPALIVE);
    let _ = socket2::SockRef::from(io).set_tcp_keepalive(&keepalive);
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
