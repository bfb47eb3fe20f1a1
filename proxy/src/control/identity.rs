//! Our own certificate: asks for it, renews it in time, and takes over new trust anchors at once.
//!
//! The key is made here for each certificate and never leaves this process's memory. The identity service is verified
//! (anchors and name) before it sees the token, which is read anew each time, as Kubernetes replaces it.
//!
//! **Invariant:** fail closed. What is published was verified, and is taken back when it ends.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gossamer_api::defaults;
use gossamer_api::process::grpc::{ClientIdentity, ClientTls, Connector, CredentialsWatch};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::{Anchors, Credentials, TlsError};
use gossamer_api::wire::mesh::WatchAnchors;
use gossamer_api::wire::mesh::anchors_client::AnchorsClient;
use gossamer_api::workload::Identity;
use linkerd2_proxy_api::identity::CertifyRequest;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::config::Service;

/// Whose certificate to get, and where.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// The identity service.
    pub service: Service,
    /// Ours.
    pub identity: Identity,
    /// What proves it.
    pub token_file: PathBuf,
    /// Whom to believe until the service says otherwise.
    pub anchors: Anchors,
}

/// Keeps a certificate for as long as the process lives. `None` until there is the first, and again should one end
/// before the next is there. Must be called inside a runtime.
pub fn spawn(config: IdentityConfig, stop: Stop) -> CredentialsWatch {
    let (anchors_sender, anchors) = watch::channel(config.anchors.clone());
    let (sender, receiver) = watch::channel(None);
    let tls = config.service.identity.clone().map(|server| ClientTls {
        server,
        // Without our certificate, also later: an ended one must not be in the way of the next.
        client: ClientIdentity::Anonymous(anchors.clone()),
    });
    let channel = Connector::new(&config.service.addr, tls).channel();
    // Not tracked: needed while the process drains, so they end when it is killed.
    tokio::spawn(until_killed(stop.clone(), watch_anchors(channel.clone(), anchors_sender)));
    let keeper = Keeper { config, client: IdentityClient::new(channel), anchors, sender };
    tokio::spawn(until_killed(stop, keeper.run()));
    receiver
}

struct Keeper {
    config: IdentityConfig,
    client: IdentityClient<Channel>,
    anchors: watch::Receiver<Anchors>,
    sender: watch::Sender<Option<Arc<Credentials>>>,
}

/// Why there is no certificate this time.
#[derive(Debug, thiserror::Error)]
enum CertifyError {
    #[error("token file {0}: {1}")]
    Token(String, std::io::Error),
    #[error("can't make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the identity service answered {}: {}", .0.code(), text(.0))]
    Service(#[from] Box<Status>),
    #[error("the identity service did not answer within {CERTIFY_TIMEOUT:?}")]
    Timeout,
    #[error("the identity service's answer is of no use: {0}")]
    Answer(#[from] TlsError),
}

impl Keeper {
    async fn run(mut self) {
        let mut renew_at = SystemTime::UNIX_EPOCH;
        let mut failures = 0;
        let mut told = String::new();
        // Set when the present certificate leads to no anchor that is still trusted.
        let mut orphaned = false;
        loop {
            let now = SystemTime::now();
            self.end_expired(now);
            if now < renew_at {
                tokio::select! {
                    () = tokio::time::sleep(self.pause(now, renew_at)) => {}
                    Ok(()) = self.anchors.changed() => {
                        orphaned = !self.take_anchors();
                        if orphaned {
                            renew_at = now;
                        }
                    }
                }
                continue;
            }
            match self.certify().await {
                Ok(credentials) => {
                    let now = SystemTime::now();
                    renew_at = renewal(now, credentials.not_after, fastrand::f64());
                    let seconds = credentials.not_after.duration_since(now).unwrap_or_default().as_secs();
                    tracing::info!(identity = %credentials.identity, seconds, "certified");
                    self.sender.send_replace(Some(Arc::new(credentials)));
                    (failures, orphaned) = (0, false);
                    told.clear();
                }
                Err(error) => {
                    let refused = matches!(&error, CertifyError::Service(status) if is_refusal(status));
                    renew_at = SystemTime::now() + backoff(failures, refused, fastrand::f64());
                    failures += 1;
                    let error = error.to_string();
                    if error != told {
                        tracing::warn!(identity = %self.config.identity, error, "not certified; trying again");
                        told = error;
                    }
                    if orphaned {
                        self.sender.send_replace(None);
                    }
                }
            }
        }
    }

    /// Takes back what has ended.
    fn end_expired(&self, now: SystemTime) {
        if self.sender.borrow().as_ref().is_some_and(|present| present.is_expired(now)) {
            tracing::error!(identity = %self.config.identity, "the certificate has expired; meshed traffic stops");
            self.sender.send_replace(None);
        }
    }

    /// Until something is due. Short, since the clock of sleeps stands still while a machine is suspended.
    fn pause(&self, now: SystemTime, renew_at: SystemTime) -> Duration {
        let until = |time: SystemTime| time.duration_since(now).unwrap_or_default();
        let end = self.sender.borrow().as_ref().map_or(MAX_PAUSE, |present| until(present.not_after));
        until(renew_at).min(end).min(MAX_PAUSE)
    }

    /// Publishes the present certificate under the newest anchors. False if they don't trust it.
    fn take_anchors(&mut self) -> bool {
        let anchors = self.anchors.borrow_and_update().clone();
        let Some(present) = self.sender.borrow().clone() else { return true };
        match present.with_anchors(anchors) {
            Ok(credentials) => {
                tracing::info!("trust anchors changed");
                self.sender.send_replace(Some(Arc::new(credentials)));
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the new trust anchors don't trust the present certificate; asking for another");
                false
            }
        }
    }

    async fn certify(&mut self) -> Result<Credentials, CertifyError> {
        let identity = &self.config.identity;
        let token = self.read_token()?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([identity.to_string()])?;
        params.distinguished_name = DistinguishedName::new();
        let request = CertifyRequest {
            identity: identity.to_string(),
            token,
            // DER, whatever the proto's comment says.
            certificate_signing_request: params.serialize_request(&key)?.der().to_vec(),
        };
        let answer = tokio::time::timeout(CERTIFY_TIMEOUT, self.client.certify(request))
            .await
            .map_err(|_| CertifyError::Timeout)?
            .map_err(Box::new)?
            .into_inner();
        let mut chain = vec![CertificateDer::from(answer.leaf_certificate)];
        chain.extend(answer.intermediate_certificates.into_iter().map(CertificateDer::from));
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        // The newest, which may have come in the meantime. Marked as seen, since they are in force with this.
        let anchors = self.anchors.borrow_and_update().clone();
        Ok(Credentials::new(identity.clone(), chain, key, anchors)?)
    }

    /// Not asynchronously: it is a kilobyte of a file in memory, and another thread would cost more than it takes.
    fn read_token(&self) -> Result<Vec<u8>, CertifyError> {
        let path = &self.config.token_file;
        let failed = |error| CertifyError::Token(path.display().to_string(), error);
        let mut token = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_TOKEN_BYTES).read_to_end(&mut token).map_err(failed)?;
        match token.is_empty() {
            true => Err(failed(std::io::Error::other("it is empty"))),
            false => Ok(token),
        }
    }
}

/// Follows the bundle for as long as the service has that stream; Linkerd's has none, then the anchors are fixed.
async fn watch_anchors(channel: Channel, sender: watch::Sender<Anchors>) {
    let mut client = AnchorsClient::new(channel);
    let mut failures = 0;
    loop {
        match follow(&mut client, &sender, &mut failures).await {
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::debug!("the identity service doesn't tell trust anchors; they are fixed");
                // The sender stays: a closed channel would read as a change.
                return std::future::pending().await;
            }
            Err(status) => tracing::debug!(error = text(&status), "no trust anchors are told now"),
            Ok(()) => {}
        }
        tokio::time::sleep(backoff(failures, true, fastrand::f64())).await;
        failures += 1;
    }
}

async fn follow(
    client: &mut AnchorsClient<Channel>,
    sender: &watch::Sender<Anchors>,
    failures: &mut u32,
) -> Result<(), Status> {
    let mut bundles = client.watch(WatchAnchors {}).await?.into_inner();
    while let Some(bundle) = bundles.message().await? {
        *failures = 0;
        match Anchors::from_pem(&bundle.pem) {
            Ok(anchors) => {
                sender.send_if_modified(|present| {
                    let news = *present != anchors;
                    *present = anchors;
                    news
                });
            }
            Err(error) => tracing::warn!(%error, "unusable trust anchors were told; the present ones stay"),
        }
    }
    Ok(())
}

async fn until_killed(stop: Stop, task: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.killed() => {}
        () = task => {}
    }
}

/// When to renew: at 70 % of what is left, 5 % sooner or later, so that what started together parts ways.
fn renewal(now: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    let share = defaults::CERTIFICATE_REFRESH_RATIO * (0.95 + 0.1 * random);
    now + left.mul_f64(share).max(MIN_RENEWAL)
}

/// The wait after `failures` in a row. Longer when the service said no, as it will mostly say so again.
fn backoff(failures: u32, refused: bool, random: f64) -> Duration {
    let longest = if refused { MAX_REFUSED_BACKOFF } else { defaults::CONTROL_BACKOFF_MAX };
    let wait = defaults::CONTROL_BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(longest);
    wait.mul_f64(0.5 + random / 2.0)
}

fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::PermissionDenied | Code::InvalidArgument | Code::Unauthenticated | Code::ResourceExhausted
    )
}

/// What went wrong, down to its cause: tonic's own text is "transport error".
fn text(status: &Status) -> String {
    let mut source = std::error::Error::source(status);
    let mut text = status.message().to_owned();
    while let Some(error) = source {
        text = error.to_string();
        source = error.source();
    }
    text
}

/// Connect, handshake, and a TokenReview by the service.
const CERTIFY_TIMEOUT: Duration = Duration::from_secs(15);
/// A certificate with hardly any life left is renewed, but not in a tight loop.
const MIN_RENEWAL: Duration = Duration::from_millis(500);
const MAX_REFUSED_BACKOFF: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A service-account token has about 1 KiB.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests;
