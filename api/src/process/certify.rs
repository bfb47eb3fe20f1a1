//! A process's own certificate: asks for it, renews it in time, and takes over new trust anchors at once. The same for
//! proxies and for the control plane's other processes.
//!
//! The key is made here for each certificate and never leaves this process's memory. The identity service is verified
//! (anchors and name) before it sees the token, which is read anew each time, as Kubernetes replaces it.
//!
//! **Invariant:** fail closed. What is published was verified, and is taken back when it ends.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use linkerd2_proxy_api::identity::CertifyRequest;
use linkerd2_proxy_api::identity::identity_client::IdentityClient;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::grpc::{ClientIdentity, ClientTls, Connector, CredentialsWatch};
use super::stop::Stop;
use super::tls::{self, Anchors, Credentials, TlsError};
use crate::defaults;
use crate::wire::mesh::WatchAnchors;
use crate::wire::mesh::anchors_client::AnchorsClient;
use crate::workload::Identity;

/// Whose certificate to get, and where.
#[derive(Clone, Debug)]
pub struct CertifyConfig {
    /// `host:port` of the identity service.
    pub address: String,
    /// The identity that it must show; `None`: plain text (tests).
    pub server: Option<Identity>,
    /// Ours.
    pub identity: Identity,
    /// What proves it.
    pub token: Token,
    /// Whom to believe until the service says otherwise.
    pub anchors: TrustAnchors,
}

/// What proves an identity.
#[derive(Clone)]
pub enum Token {
    /// Read anew for each certificate.
    File(PathBuf),
    /// The token itself.
    Inline(String),
}

/// Whom to believe.
#[derive(Clone, Debug)]
pub enum TrustAnchors {
    /// These.
    Given(Anchors),
    /// Those of a PEM bundle, which is taken over again when it changes (a mounted ConfigMap).
    File(PathBuf),
}

/// Keeps a certificate for as long as the process lives. `None` until there is the first, and again should one end
/// before the next is there. Fails only when the trust anchors can't be read. Must be called inside a runtime.
pub fn start(config: CertifyConfig, stop: Stop) -> Result<CredentialsWatch, CertifyError> {
    let (first, file) = config.anchors.read()?;
    let (anchors_sender, anchors) = watch::channel(first.clone());
    let (issuer_sender, issuer) = watch::channel(None);
    let (sender, receiver) = watch::channel(None);
    let (channel, anchors_sender) = (config.channel(&anchors), Arc::new(anchors_sender));
    // Not tracked: needed while the process drains, so they end when it is killed.
    if let Some(file) = file {
        tokio::spawn(until_killed(stop.clone(), follow_file(file, first, anchors_sender.clone())));
    }
    tokio::spawn(until_killed(stop.clone(), watch_anchors(channel.clone(), anchors_sender, issuer_sender)));
    let keeper = Keeper { config, client: IdentityClient::new(channel), anchors, issuer, sender };
    tokio::spawn(until_killed(stop, keeper.run()));
    Ok(receiver)
}

/// Gets one certificate, once.
pub async fn certify(config: CertifyConfig) -> Result<Credentials, CertifyError> {
    let (_anchors, anchors) = watch::channel(config.anchors.read()?.0);
    let ((_issuer, issuer), (sender, _)) = (watch::channel(None), watch::channel(None));
    let client = IdentityClient::new(config.channel(&anchors));
    Keeper { config, client, anchors, issuer, sender }.certify().await
}

/// Which roots a process trusts and who signed its certificate, as Prometheus text: the same metrics as a proxy's, which
/// a rotation of the roots waits for.
pub fn metrics(credentials: &CredentialsWatch) -> String {
    let Some(credentials) = credentials.borrow().clone() else { return String::new() };
    let mut text = String::from("# TYPE control_identity_cert_issuer_info gauge\n");
    if let Some(issuer) = credentials.issuer_fingerprint() {
        text.push_str(&format!("control_identity_cert_issuer_info{{fingerprint=\"{issuer}\"}} 1\n"));
    }
    text.push_str("# TYPE control_identity_trust_anchor_info gauge\n");
    for anchor in credentials.anchors.certificates() {
        let fingerprint = tls::fingerprint(anchor);
        text.push_str(&format!("control_identity_trust_anchor_info{{fingerprint=\"{fingerprint}\"}} 1\n"));
    }
    text
}

impl CertifyConfig {
    fn channel(&self, anchors: &watch::Receiver<Anchors>) -> Channel {
        let tls = self.server.clone().map(|server| ClientTls {
            server,
            // Without our certificate, also later: an ended one must not be in the way of the next.
            client: ClientIdentity::Anonymous(anchors.clone()),
        });
        Connector::new(&self.address, tls).channel()
    }
}

impl TrustAnchors {
    fn read(&self) -> Result<(Anchors, Option<PathBuf>), CertifyError> {
        match self {
            TrustAnchors::Given(anchors) => Ok((anchors.clone(), None)),
            TrustAnchors::File(path) => {
                let pem = std::fs::read_to_string(path)
                    .map_err(|error| CertifyError::AnchorsFile(path.display().to_string(), error))?;
                Ok((Anchors::from_pem(&pem)?, Some(path.clone())))
            }
        }
    }
}

impl Token {
    /// Not asynchronously: it is a kilobyte of a file in memory, and another thread would cost more than it takes.
    fn read(&self) -> Result<Vec<u8>, CertifyError> {
        let path = match self {
            Token::Inline(token) => return Ok(token.clone().into_bytes()),
            Token::File(path) => path,
        };
        let failed = |error| CertifyError::TokenFile(path.display().to_string(), error);
        let mut token = Vec::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_TOKEN_BYTES).read_to_end(&mut token).map_err(failed)?;
        match token.is_empty() {
            true => Err(failed(std::io::Error::other("it is empty"))),
            false => Ok(token),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::File(path) => f.debug_tuple("File").field(path).finish(),
            // Never the token.
            Token::Inline(_) => f.write_str("Inline"),
        }
    }
}

struct Keeper {
    config: CertifyConfig,
    client: IdentityClient<Channel>,
    anchors: watch::Receiver<Anchors>,
    issuer: watch::Receiver<Option<IssuerNews>>,
    sender: watch::Sender<Option<Arc<Credentials>>>,
}

/// Who signs certificates now.
#[derive(Clone, Debug, PartialEq)]
struct IssuerNews {
    fingerprint: String,
    /// Whose certificate another one signed asks for a new one within that time.
    renew_within: Duration,
}

/// Why there is no certificate this time.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// The trust anchors can't be read.
    #[error("trust anchors {0}: {1}")]
    AnchorsFile(String, std::io::Error),
    /// They are not usable.
    #[error(transparent)]
    Anchors(#[from] TlsError),
    /// The token can't be read.
    #[error("token file {0}: {1}")]
    TokenFile(String, std::io::Error),
    /// The system makes no keys.
    #[error("can't make a key: {0}")]
    Key(#[from] rcgen::Error),
    /// The service said no, or is not reached.
    #[error("the identity service answered {}: {}", .0.code(), text(.0))]
    Service(#[from] Box<Status>),
    /// The service took too long.
    #[error("the identity service did not answer within {CERTIFY_TIMEOUT:?}")]
    Timeout,
    /// What it answered does not verify.
    #[error("the identity service's answer is of no use: {0}")]
    Answer(TlsError),
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
                    Ok(()) = self.issuer.changed() => {
                        if let Some(within) = self.signed_by_another() {
                            tracing::info!(?within, "certificates are signed by another issuer now; asking for a new one");
                            renew_at = renew_at.min(now + within.mul_f64(fastrand::f64()));
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
                    // Two replicas of the service, of which one doesn't know the new issuer yet.
                    if let Some(within) = self.signed_by_another() {
                        renew_at = renew_at.min(now + within.max(MIN_REISSUE).mul_f64(0.5 + fastrand::f64() / 2.0));
                    }
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

    /// When the present certificate's issuer isn't the service's any more: within what time to renew.
    fn signed_by_another(&mut self) -> Option<Duration> {
        let news = self.issuer.borrow_and_update().clone()?;
        let present = self.sender.borrow().as_ref()?.issuer_fingerprint()?;
        (present != news.fingerprint).then_some(news.renew_within)
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
        let token = self.config.token.read()?;
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
        Credentials::new(identity.clone(), chain, key, anchors).map_err(CertifyError::Answer)
    }
}

/// Follows the bundle for as long as the service has that stream; Linkerd's has none, then the anchors are fixed.
async fn watch_anchors(
    channel: Channel,
    sender: Arc<watch::Sender<Anchors>>,
    issuer: watch::Sender<Option<IssuerNews>>,
) {
    let mut client = AnchorsClient::new(channel);
    let mut failures = 0;
    loop {
        match follow(&mut client, &sender, &issuer, &mut failures).await {
            Err(status) if status.code() == Code::Unimplemented => {
                tracing::debug!("the identity service doesn't tell trust anchors; they are fixed");
                // The senders stay: a closed channel would read as a change.
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
    issuer: &watch::Sender<Option<IssuerNews>>,
    failures: &mut u32,
) -> Result<(), Status> {
    let mut bundles = client.watch(WatchAnchors {}).await?.into_inner();
    while let Some(bundle) = bundles.message().await? {
        *failures = 0;
        match Anchors::from_pem(&bundle.pem) {
            Ok(anchors) => publish(sender, anchors),
            Err(error) => tracing::warn!(%error, "unusable trust anchors were told; the present ones stay"),
        }
        // After the anchors: what the new issuer signs may lead to a new one.
        if !bundle.issuer.is_empty() {
            let renew_within = Duration::from_millis(bundle.renew_within_ms.into()).min(MAX_RENEW_WITHIN);
            let news = Some(IssuerNews { fingerprint: bundle.issuer, renew_within });
            issuer.send_if_modified(|present| {
                *present != news && {
                    *present = news;
                    true
                }
            });
        }
    }
    Ok(())
}

/// Takes over what changes in the file. The service's stream is sooner; this is for when that is not reached, as after
/// a root was replaced at once. The last change wins, wherever it came from: both show the same bundle in the end.
async fn follow_file(path: PathBuf, mut known: Anchors, sender: Arc<watch::Sender<Anchors>>) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(ANCHORS_FILE_POLL).await;
        let pem = match tokio::fs::read_to_string(&path).await {
            Ok(pem) => Anchors::from_pem(&pem).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match pem {
            Ok(anchors) if anchors == known => told.clear(),
            Ok(anchors) => {
                told.clear();
                known = anchors.clone();
                publish(&sender, anchors);
            }
            Err(error) if error != told => {
                tracing::warn!(file = %path.display(), error, "unusable trust anchors; the present ones stay");
                told = error;
            }
            Err(_) => {}
        }
    }
}

fn publish(sender: &watch::Sender<Anchors>, anchors: Anchors) {
    sender.send_if_modified(|present| {
        let news = *present != anchors;
        *present = anchors;
        news
    });
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
/// Between two attempts to get a certificate of the right issuer.
const MIN_REISSUE: Duration = Duration::from_secs(10);
/// A rotation should not take longer, however many proxies there are.
const MAX_RENEW_WITHIN: Duration = Duration::from_secs(600);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// A small local file; Kubernetes itself takes up to a minute to write it.
const ANCHORS_FILE_POLL: Duration = Duration::from_secs(2);
/// A service-account token has about 1 KiB.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewals_and_retries_are_spread_and_bounded() {
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let at =
            |random| renewal(now, now + day, random).duration_since(now).unwrap().as_secs_f64() / day.as_secs_f64();
        assert!((at(0.0) - 0.665).abs() < 1e-6 && (at(1.0) - 0.735).abs() < 1e-6);
        assert_eq!(renewal(now, now - day, 0.5), now + MIN_RENEWAL);
        assert_eq!(backoff(0, false, 1.0), defaults::CONTROL_BACKOFF_MIN);
        assert_eq!(backoff(0, false, 0.0), defaults::CONTROL_BACKOFF_MIN / 2);
        assert_eq!(backoff(1000, false, 1.0), defaults::CONTROL_BACKOFF_MAX);
        assert_eq!(backoff(1000, true, 1.0), MAX_REFUSED_BACKOFF);
    }

    #[test]
    fn a_token_is_never_shown() {
        assert_eq!(format!("{:?}", Token::Inline("secret".into())), "Inline");
    }
}
