//! The certificate service: token → limits → request → leaf. And the stream of trust anchors.
//!
//! **Invariant:** whoever gets a certificate has proved that identity with a token; every refusal is counted, logged
//! and told with its reason.

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
use crate::token::TokenCheck;

/// The certificate authority of one mesh. Cheap to clone.
#[derive(Clone)]
pub struct Service(Arc<Inner>);

struct Inner {
    issuer: watch::Receiver<Arc<Issuer>>,
    tokens: TokenCheck,
    /// `serviceaccount.identity.CONTROL-NS.TRUST-DOMAIN`.
    suffix: String,
    limits: Mutex<Limits>,
    metrics: Metrics,
    stop: Stop,
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
            limits: Mutex::new(Limits::new(PER_IDENTITY, OVERALL)),
            metrics: Metrics::default(),
            stop,
        }))
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
        self.0.metrics.text(issuer.not_after(), issuer.anchors().certificates().len(), SystemTime::now())
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

    async fn issue(&self, request: &CertifyRequest) -> Result<(Leaf, Arc<Issuer>), Refusal> {
        let identity: Identity = request.identity.parse()?;
        let ours = identity.as_str().strip_suffix(&self.0.suffix).is_some_and(|head| head.ends_with('.'));
        if !ours || identity.spiffe_id().is_none() {
            return Err(Refusal::ForeignIdentity { identity, suffix: self.0.suffix.clone() });
        }
        self.0.tokens.check(&request.token, &identity).await?;
        // After the token, so that nobody can use up another's share.
        self.0.limits.lock().unwrap_or_else(PoisonError::into_inner).take(&identity, Instant::now())?;
        let key = csr::check(&request.certificate_signing_request, &identity)?;
        let issuer = self.issuer();
        let leaf =
            issuer.issue(&identity, &key, SystemTime::now()).map_err(|error| Refusal::Issuer(error.to_string()))?;
        Ok((leaf, issuer))
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Service {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let client = request.extensions().get::<PeerIdentity>().and_then(|peer| peer.address);
        let request = request.into_inner();
        match self.issue(&request).await {
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
                tracing::warn!(identity, ?client, reason = refusal.reason(), "certificate refused: {refusal}");
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
        let stop = self.0.stop.clone();
        self.0.stop.spawn(async move {
            let mut sent: Option<Anchors> = None;
            loop {
                let anchors = issuer.borrow_and_update().anchors().clone();
                // A new issuer under the same anchors is no news.
                if sent.as_ref() != Some(&anchors) {
                    let bundle = AnchorBundle { pem: anchors.pem().to_owned() };
                    if sender.send(Ok(bundle)).await.is_err() {
                        return;
                    }
                    sent = Some(anchors);
                }
                tokio::select! {
                    // Ends the stream, so that the connection can drain.
                    () = stop.stopping() => return,
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
