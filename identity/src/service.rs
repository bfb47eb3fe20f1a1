//! The certificate service: token → limits → request → leaf. And the stream of trust anchors.
//!
//! **Invariant:** whoever gets a certificate has proved that identity with a token; every refusal is counted, logged
//! and told with its reason.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use gossamer_api::defaults;
use gossamer_api::process::grpc::{CredentialsWatch, PeerIdentity};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::{Anchors, Credentials};
use gossamer_api::wire::mesh::anchors_server::{self, AnchorsServer};
use gossamer_api::wire::mesh::{AnchorBundle, WatchAnchors};
use gossamer_api::workload::Identity;
use linkerd2_proxy_api::identity::identity_server::{self, IdentityServer};
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::csr;
use crate::issuer::{Issuer, IssuerError, Leaf, rfc3339};
use crate::limit::{Limits, OVERALL, PER_IDENTITY};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::token::{Caller, TokenCheck};

/// The certificate authority of one mesh. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    issuer: watch::Receiver<Arc<Issuer>>,
    tokens: TokenCheck,
    /// `serviceaccount.identity.CONTROL-NS.TRUST-DOMAIN`.
    suffix: String,
    control_namespace: String,
    trust_domain: String,
    limits: Mutex<Limits>,
    metrics: Metrics,
    /// Streams of anchors that are open.
    watchers: AtomicUsize,
    failures: Option<mpsc::Sender<Failure>>,
    stop: Stop,
}

/// A certificate that was not issued, for who tells people.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was asked for; not proved.
    pub identity: Identity,
    /// Who asked, as far as the token proves it.
    pub caller: Option<Caller>,
    /// Why not.
    pub refusal: Refusal,
}

impl Service {
    /// Issues identities of `control_namespace` and `trust_domain` to whom `tokens` knows, with the newest issuer.
    pub fn new(
        issuer: watch::Receiver<Arc<Issuer>>,
        tokens: TokenCheck,
        control_namespace: &str,
        trust_domain: &str,
        stop: Stop,
    ) -> Self {
        Service(Arc::new(Inner {
            issuer,
            tokens,
            suffix: format!("serviceaccount.identity.{control_namespace}.{trust_domain}"),
            control_namespace: control_namespace.to_owned(),
            trust_domain: trust_domain.to_owned(),
            limits: Mutex::new(Limits::new(PER_IDENTITY, OVERALL)),
            metrics: Metrics::default(),
            watchers: AtomicUsize::new(0),
            failures: None,
            stop,
        }))
    }

    /// The same, which hands on each failure to issue a certificate. What doesn't fit into the channel is dropped.
    pub fn telling(self, failures: mpsc::Sender<Failure>) -> Self {
        let mut inner = Arc::into_inner(self.0).expect("called before there is a clone");
        inner.failures = Some(failures);
        Service(Arc::new(inner))
    }

    /// The gRPC services, to be served or to be joined with others.
    pub fn add_to(&self, routes: Routes) -> Routes {
        routes.add_service(IdentityServer::new(self.clone())).add_service(AnchorsServer::new(self.clone()))
    }

    /// Credentials of a process that runs together with the authority.
    pub fn self_issue(&self, identity: &Identity) -> Result<Credentials, IssuerError> {
        self.issuer().self_issue(identity, SystemTime::now())
    }

    /// The same, renewed before they end and whenever issuer or anchors change.
    pub fn keep_issued(&self, identity: Identity) -> Result<CredentialsWatch, IssuerError> {
        let (sender, receiver) = watch::channel(Some(Arc::new(self.self_issue(&identity)?)));
        let this = self.clone();
        self.0.stop.spawn(async move { this.renew(identity, sender).await });
        Ok(receiver)
    }

    /// The newest anchors.
    pub fn anchors(&self) -> Anchors {
        self.issuer().anchors().clone()
    }

    /// Prometheus text.
    pub fn metrics(&self) -> String {
        let issuer = self.issuer();
        self.0.metrics.text(&issuer, SystemTime::now())
    }

    fn issuer(&self) -> Arc<Issuer> {
        self.0.issuer.borrow().clone()
    }

    async fn renew(&self, identity: Identity, sender: watch::Sender<Option<Arc<Credentials>>>) {
        let mut issuer = self.0.issuer.clone();
        issuer.mark_changed();
        let mut failed = false;
        loop {
            let not_after = sender.borrow().as_ref().map_or(SystemTime::UNIX_EPOCH, |now| now.not_after);
            let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
            let due = if failed { RETRY } else { left.mul_f64(defaults::CERTIFICATE_REFRESH_RATIO).max(RETRY) };
            tokio::select! {
                // The last ones outlive any drain.
                () = self.0.stop.stopping() => return,
                changed = issuer.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(due) => {}
            }
            match self.self_issue(&identity) {
                Ok(credentials) => {
                    failed = false;
                    sender.send_replace(Some(Arc::new(credentials)));
                }
                Err(error) => {
                    failed = true;
                    tracing::error!(%identity, %error, "can't renew the own certificate");
                    if sender.borrow().as_ref().is_some_and(|now| now.is_expired(SystemTime::now())) {
                        sender.send_replace(None);
                    }
                }
            }
        }
    }

    /// `caller` is set as soon as it is known, for who tells of failures.
    async fn issue(
        &self,
        request: &CertifyRequest,
        caller: &mut Option<Caller>,
    ) -> Result<(Leaf, Arc<Issuer>), Refusal> {
        let identity: Identity = request.identity.parse()?;
        // By its parts: a service account may be called "x.serviceaccount.identity.y", so that a name ends as ours do
        // and is read as another's.
        let ours = identity.parts().is_some_and(|(_, _, namespace, domain)| {
            (namespace, domain) == (&self.0.control_namespace, &self.0.trust_domain)
        });
        if !ours {
            return Err(Refusal::ForeignIdentity { identity, suffix: self.0.suffix.clone() });
        }
        let proved = caller.insert(self.0.tokens.check(&request.token).await?);
        if proved.identity != identity {
            return Err(Refusal::OthersToken(identity));
        }
        // After the token, so that nobody can use up another's share.
        self.0.limits.lock().unwrap_or_else(PoisonError::into_inner).take(&identity, Instant::now())?;
        let key = csr::check(&request.certificate_signing_request, &identity)?;
        let issuer = self.issuer();
        let leaf =
            issuer.issue(&identity, &key, SystemTime::now()).map_err(|error| Refusal::Issuer(error.to_string()))?;
        Ok((leaf, issuer))
    }

    fn tell(&self, identity: &str, caller: Option<Caller>, refusal: &Refusal) {
        let (Some(failures), Ok(identity)) = (&self.0.failures, identity.parse()) else { return };
        // Full: then enough is told already.
        let _ = failures.try_send(Failure { identity, caller, refusal: refusal.clone() });
    }

    fn bundle(&self, issuer: &Issuer) -> AnchorBundle {
        let within = RENEW_WITHIN + RENEW_WITHIN_EACH * self.0.watchers.load(Relaxed) as u32;
        AnchorBundle {
            pem: issuer.anchors().pem().to_owned(),
            issuer: issuer.fingerprint(),
            renew_within_ms: within.as_millis() as u32,
        }
    }
}

/// A stream of anchors that is open.
struct Watching(Service);

impl Watching {
    fn new(service: &Service) -> Self {
        service.0.watchers.fetch_add(1, Relaxed);
        Watching(service.clone())
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.0.watchers.fetch_sub(1, Relaxed);
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Service {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let client = request.extensions().get::<PeerIdentity>().and_then(|peer| peer.address);
        let request = request.into_inner();
        let mut caller = None;
        match self.issue(&request, &mut caller).await {
            Ok((leaf, issuer)) => {
                self.0.metrics.issued();
                tracing::info!(identity = request.identity, until = rfc3339(leaf.not_after), "certificate issued");
                Ok(Response::new(CertifyResponse {
                    leaf_certificate: leaf.der.to_vec(),
                    intermediate_certificates: issuer.chain().iter().map(|der| der.to_vec()).collect(),
                    valid_until: Some(leaf.not_after.into()),
                }))
            }
            Err(refusal) => {
                self.0.metrics.refused(&refusal);
                let identity: String = request.identity.chars().take(253).collect();
                let proved = caller.as_ref().map(|caller| tracing::field::display(&caller.identity));
                tracing::warn!(identity, proved, ?client, reason = refusal.reason(), "certificate refused: {refusal}");
                self.tell(&identity, caller, &refusal);
                Err(refusal.status())
            }
        }
    }
}

#[tonic::async_trait]
impl anchors_server::Anchors for Service {
    type WatchStream = ReceiverStream<Result<AnchorBundle, Status>>;

    async fn watch(&self, _: Request<WatchAnchors>) -> Result<Response<Self::WatchStream>, Status> {
        let (sender, receiver) = mpsc::channel(1);
        let mut issuer = self.0.issuer.clone();
        let watching = Watching::new(self);
        self.0.stop.spawn(async move {
            let this = &watching.0;
            let mut sent = None;
            loop {
                let present = issuer.borrow_and_update().clone();
                let news = Some((present.anchors().clone(), present.fingerprint()));
                if sent != news {
                    if sender.send(Ok(this.bundle(&present))).await.is_err() {
                        return;
                    }
                    sent = news;
                }
                tokio::select! {
                    // Ends the stream, so that the connection can drain.
                    () = this.0.stop.stopping() => return,
                    () = sender.closed() => return,
                    changed = issuer.changed() => if changed.is_err() { return },
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Least wait between two attempts to renew the own certificate, which needs no network.
const RETRY: Duration = Duration::from_secs(5);
/// After a change of the issuer all ask for new certificates within this and [`RENEW_WITHIN_EACH`] of them: 250 a second
/// at most, half of what the limits allow, and little for Kubernetes' API, which looks at each token.
const RENEW_WITHIN: Duration = Duration::from_secs(1);
const RENEW_WITHIN_EACH: Duration = Duration::from_millis(4);
