//! The way to one service of the control plane: connections, and a gate that keeps a thousand streams from knocking at
//! once when it is away.
//!
//! While the service is unreachable one stream at a time tries, after a wait that grows for all of them together; the
//! first success lets everybody through.

use crate::config::Service;
use gossamer_api::defaults;
use gossamer_api::process::grpc::{ClientIdentity, ClientTls, Connector, CredentialsWatch, usable};
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub(super) struct Link {
    name: &'static str,
    address: String,
    connector: Connector,
    /// Set when the service is asked with a certificate.
    credentials: Option<CredentialsWatch>,
    connections: Mutex<Vec<Arc<Channel>>>,
    health: Mutex<Health>,
    /// Held by the one that tries while the service is away.
    trial: tokio::sync::Mutex<Backoff>,
    outages: AtomicU64,
}

#[derive(Default)]
struct Health {
    /// Why the service is away.
    down: Option<Arc<str>>,
    /// Counts the times that it went: who was connected before cannot say anything about now.
    generation: u64,
    /// Since when it has been away, and when that was last seen.
    away: Option<(Instant, Instant)>,
    /// It has answered since the start.
    heard: bool,
}

/// Whether a service of the control plane answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reachability {
    /// `destination` or `policy`.
    pub service: &'static str,
    /// Why not; `None`: it does, as far as we know.
    pub down: Option<Arc<str>>,
    /// How often it went away since the start.
    pub outages: u64,
    /// It has answered since the start.
    pub heard: bool,
    /// It has been away for [`defaults::CONTROL_AWAY`], and somebody still tries.
    pub missed: bool,
}

/// A place on a connection; given back on drop.
pub(super) struct Lease {
    connection: Arc<Channel>,
    generation: u64,
}

impl Link {
    /// With an identity, mutual TLS under `credentials`; without one, plaintext.
    pub(super) fn new(name: &'static str, service: &Service, credentials: CredentialsWatch) -> Self {
        let tls = service
            .identity
            .clone()
            .map(|server| ClientTls { server, client: ClientIdentity::Credentials(credentials.clone()) });
        Link {
            name,
            address: service.addr.clone(),
            credentials: tls.is_some().then_some(credentials),
            connector: Connector::new(&service.addr, tls),
            connections: Mutex::default(),
            health: Mutex::default(),
            trial: tokio::sync::Mutex::new(Backoff::default()),
            outages: AtomicU64::new(0),
        }
    }

    /// Opens a stream, once there is a certificate and the service is not known to be away. The lease has to live as
    /// long as the stream. Cancel safe.
    pub(super) async fn open<S, F>(&self, ask: impl FnOnce(Channel) -> F) -> Result<(S, Lease), Status>
    where
        F: Future<Output = Result<S, Status>>,
    {
        self.authenticated().await;
        let mut trial = None;
        if self.down().is_some() {
            let mut held = self.trial.lock().await;
            if self.down().is_some() {
                tokio::time::sleep(held.wait()).await;
                self.authenticated().await;
                trial = Some(held);
            }
        }
        let lease = self.lease();
        let answer = ask((*lease.connection).clone());
        let answer = match &trial {
            None => answer.await,
            // The others wait for this one, so it may not wait for ever.
            Some(_) => match tokio::time::timeout(TRIAL_TIMEOUT, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    let status = Status::deadline_exceeded("no answer");
                    self.away(&lease, "no answer");
                    return Err(status);
                }
            },
        };
        match answer {
            Err(status) if is_transport(&status) => {
                self.broken(&lease, &status);
                Err(status)
            }
            // Any word of the service itself means that it is there.
            answer => {
                self.health().heard = true;
                if let Some(mut trial) = trial {
                    trial.reset();
                    let mut health = self.health();
                    (health.down, health.away) = (None, None);
                    drop(health);
                    tracing::info!(service = self.name, address = %self.address, "control plane reached");
                }
                answer.map(|stream| (stream, lease))
            }
        }
    }

    /// A stream ended with `status`: when the connection broke, the service is away for everybody.
    pub(super) fn broken(&self, lease: &Lease, status: &Status) {
        if is_transport(status) {
            self.away(lease, &cause(status));
        }
    }

    fn away(&self, lease: &Lease, cause: &str) {
        let mut health = self.health();
        if health.generation != lease.generation {
            return;
        }
        // "10.0.0.1:8086: connection refused": the address is said once.
        let cause = cause.strip_prefix(self.address.as_str()).map_or(cause, |rest| rest.trim_start_matches([':', ' ']));
        if health.down.is_none() {
            self.outages.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(service = self.name, address = %self.address, cause, "control plane unreachable");
        }
        let now = Instant::now();
        health.away = Some((health.away.map_or(now, |(since, _)| since), now));
        health.down = Some(format!("{} service {} unreachable: {cause}", self.name, self.address).into());
        health.generation += 1;
    }

    /// Why there is no answer, for people.
    pub(super) fn complaint(&self) -> Arc<str> {
        let Link { name, address, .. } = self;
        if self.credentials.as_ref().is_some_and(|credentials| usable(credentials).is_none()) {
            return format!("{name} service {address} not asked: no valid certificate of our own").into();
        }
        self.down().unwrap_or_else(|| {
            format!("{name} service {address} did not answer within {:?}", defaults::DISCOVERY_TIMEOUT).into()
        })
    }

    pub(super) fn reachability(&self) -> Reachability {
        let health = self.health();
        // An attempt follows the other while anybody asks. Without one, nobody knows, and nobody misses it.
        let missed = health
            .away
            .is_some_and(|(since, seen)| since.elapsed() >= defaults::CONTROL_AWAY && seen.elapsed() < STALE);
        Reachability {
            service: self.name,
            down: health.down.clone(),
            outages: self.outages.load(Ordering::Relaxed),
            heard: health.heard,
            missed,
        }
    }

    /// Waits for a certificate where one is needed.
    async fn authenticated(&self) {
        let Some(mut credentials) = self.credentials.clone() else { return };
        while usable(&credentials).is_none() {
            if credentials.changed().await.is_err() {
                // Nobody will ever issue one.
                std::future::pending::<()>().await;
            }
        }
    }

    /// A place on the first connection that has one. Servers allow at least 100 streams each as a rule (RFC 9113 section
    /// 6.5.2), tonic's 200; more would wait unseen.
    fn lease(&self) -> Lease {
        let generation = self.health().generation;
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        // The first stays, the others go with their last stream.
        let mut first = true;
        connections.retain(|connection| std::mem::take(&mut first) || Arc::strong_count(connection) > 1);
        let free = connections.iter().find(|connection| Arc::strong_count(connection) <= STREAMS_PER_CONNECTION);
        let connection = match free {
            Some(connection) => connection.clone(),
            None => {
                let connection = Arc::new(self.connector.clone().channel());
                connections.push(connection.clone());
                connection
            }
        };
        Lease { connection, generation }
    }

    fn down(&self) -> Option<Arc<str>> {
        self.health().down.clone()
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits that double, with jitter; see [`defaults::CONTROL_BACKOFF_MIN`].
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(super) fn wait(&mut self) -> Duration {
        let base = defaults::CONTROL_BACKOFF_MIN.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        base.min(defaults::CONTROL_BACKOFF_MAX).mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// True when the connection failed, false when the service answered or ended this one stream. A status of the service
/// has no source; tonic gives resets of a stream other codes.
fn is_transport(status: &Status) -> bool {
    status.source().is_some() && matches!(status.code(), Code::Unavailable | Code::Unknown)
}

/// The innermost reason: `Connection refused (os error 111)`, not `transport error`.
fn cause(status: &Status) -> String {
    let mut innermost: &dyn Error = status;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

const STREAMS_PER_CONNECTION: usize = 100;
/// An attempt that takes longer than connect and handshake is none.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the longest wait and the longest attempt together.
const STALE: Duration = Duration::from_secs(30);
