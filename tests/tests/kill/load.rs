//! Clients that ask without a pause, and remember each request that failed.

use bytes::Bytes;
use gossamer_tests::app::{Body, empty, full};
use gossamer_tests::client::{H1, H2};
use gossamer_tests::expect::DEADLINE;
use http::Request;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Running clients. They end when this is dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    _clients: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    done: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// What a client asks.
pub(crate) type Ask = fn(&str) -> Request<Body>;

/// A GET, which may be repeated.
pub(crate) fn get(authority: &str) -> Request<Body> {
    Request::get(format!("http://{authority}/bytes/100")).header("host", authority).body(empty()).unwrap()
}

/// A POST, which must not be repeated once an endpoint may have seen it.
pub(crate) fn post(authority: &str) -> Request<Body> {
    let body = full(Bytes::from_static(&[b'x'; 1000]));
    Request::post(format!("http://{authority}/echo")).header("host", authority).body(body).unwrap()
}

impl Load {
    /// `clients` connections of HTTP/1 to that address, each with one request at a time, and one of HTTP/2 with as many.
    pub(crate) fn start(addr: SocketAddr, clients: usize, ask: Ask) -> Load {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            tasks.spawn(http1(addr, ask, shared.clone()));
        }
        tasks.spawn(http2(addr, clients, ask, shared.clone()));
        Load { shared, _clients: tasks }
    }

    /// How many requests were answered as they should be.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.load(Relaxed)
    }

    /// Waits until that many more are done, and fails if one has failed.
    pub(crate) async fn more(&self, count: u64) {
        let (goal, deadline) = (self.done() + count, Instant::now() + DEADLINE);
        while self.done() < goal {
            self.unharmed();
            assert!(Instant::now() < deadline, "{} of {goal} requests after {DEADLINE:?}", self.done());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        self.unharmed();
    }

    /// Fails if a request has failed.
    pub(crate) fn unharmed(&self) {
        let failures = self.shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "{} failed, {} did not: {:#?}", failures.len(), self.done(), &failures[..1]);
    }
}

impl Shared {
    fn note(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.done.fetch_add(1, Relaxed);
            }
            Err(why) => self.failures.lock().unwrap().push(why),
        }
    }
}

async fn http1(addr: SocketAddr, ask: Ask, shared: Arc<Shared>) {
    let mut client = H1::connect(addr).await;
    loop {
        let outcome = match client.send(ask("web")).await {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(format!("HTTP/1: {} {:?}", answer.status, answer.headers)),
            Err(error) => Err(format!("HTTP/1: {error:?}")),
        };
        if outcome.is_err() {
            client = H1::connect(addr).await;
        }
        shared.note(outcome);
    }
}

async fn http2(addr: SocketAddr, streams: usize, ask: Ask, shared: Arc<Shared>) {
    let client = H2::connect(addr).await;
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let (client, shared) = (client.clone(), shared.clone());
        tasks.spawn(async move {
            loop {
                let outcome = match client.send(ask("web")).await {
                    Ok(answer) if answer.status == 200 => Ok(()),
                    Ok(answer) => Err(format!("HTTP/2: {} {:?}", answer.status, answer.headers)),
                    Err(error) => Err(format!("HTTP/2: {error:?}")),
                };
                let failed = outcome.is_err();
                shared.note(outcome);
                if failed {
                    return;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}
