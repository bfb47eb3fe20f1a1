//! Listeners: one task per connection, a bound on their number, and the drain.

use crate::net::{Arrivals, Plain};
use crate::shard::Shard;
use crate::{inbound, outbound};
use gossamer_api::defaults::MAX_CONNECTIONS;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// What a listener's connections are.
#[derive(Clone, Debug)]
pub enum Kind {
    /// From the workload, redirected.
    Outbound,
    /// From the workload, to an explicit port for this target.
    Explicit(String),
    /// To the workload.
    Inbound,
}

/// Accepts until the process stops; connections are tracked so that they can be waited for.
pub async fn accept(shard: Rc<Shard>, arrivals: Arrivals, kind: Kind, tasks: TaskTracker) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = shard.stop.stopping() => return,
            accepted = arrivals.next() => accepted,
        };
        match accepted {
            Ok((io, client)) => {
                // What was needed to find out what is spoken is gone by the time that it is spoken.
                let beginning = Box::pin(begin(shard.clone(), io, client, kind.clone()));
                tasks.spawn_local(async move {
                    if let Some(lasting) = beginning.await {
                        lasting.await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                if !is_of_one_connection(&error) {
                    // Out of file descriptors, mostly: closing connections mends it, spinning does not.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

/// The long part of a connection: HTTP, request after request. `None` when the connection is over.
pub type Lasting = Option<Pin<Box<dyn Future<Output = ()>>>>;

async fn begin(shard: Rc<Shard>, io: Plain, client: SocketAddr, kind: Kind) -> Lasting {
    match kind {
        Kind::Outbound => outbound::serve(shard, io, client, None).await,
        Kind::Explicit(target) => outbound::serve(shard, io, client, Some(target)).await,
        Kind::Inbound => inbound::serve(shard, io.into_tcp().ok()?, client).await,
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::control::Control;
    use crate::metrics::Metrics;
    use crate::tap::Taps;
    use gossamer_api::process::stop::Stop;
    use gossamer_api::settings::Values;
    use std::sync::Arc;
    use tokio::net::TcpStream;
    use tokio::sync::watch;

    /// A connection's future is what an idle connection costs: a careless step inflates it unseen.
    #[tokio::test]
    async fn a_connection_stays_small() {
        let metrics = Metrics::new();
        let taps = Taps::new(metrics.tap_dropped());
        let config = Arc::new(Config::new(&Values::default()).unwrap());
        let credentials = watch::channel(None).1;
        let shard = Shard::new(config, Control::offline(), metrics, taps, credentials, Stop::new());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let client = io.local_addr().unwrap();
        let future = begin(shard.clone(), io.into(), client, Kind::Outbound);
        let bytes = std::mem::size_of_val(&future);
        assert!(bytes <= 2048, "beginning: {bytes} bytes");

        let io = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let lasting = async { std::mem::size_of_val(&outbound::http1_of_test(shard, io, client)) };
        let bytes = tokio::task::LocalSet::new().run_until(lasting).await;
        assert!(bytes <= 1024, "HTTP/1: {bytes} bytes");
    }
}
