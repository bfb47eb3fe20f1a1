//! The proxy's own certificate: asked for and renewed by `gossamer_api::process::certify`, counted here.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use gossamer_api::process::certify::{self, CertifyConfig, Token, TrustAnchors};
use gossamer_api::process::grpc::CredentialsWatch;
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::{self, Anchors};
use tokio::sync::watch;

use crate::config::Config;
use crate::metrics::{IdentityMetrics, Metrics};

/// Our certificate as it is renewed; without an identity service there is never one. Must be called inside a runtime.
pub fn start(config: &Config, metrics: &Metrics, stop: &Stop) -> anyhow::Result<CredentialsWatch> {
    let (Some(service), Some(local)) = (&config.identity, &config.local_identity) else {
        let (sender, receiver) = watch::channel(None);
        // Never changes, and never ends.
        std::mem::forget(sender);
        return Ok(receiver);
    };
    let anchors = Anchors::from_pem(&config.trust_anchors).context("MESH_TRUST_ANCHORS")?;
    let config = CertifyConfig {
        address: service.addr.clone(),
        server: service.identity.clone(),
        identity: local.clone(),
        token: Token::File(config.token_file.clone()),
        anchors: TrustAnchors::Given(anchors),
    };
    let receiver = certify::start(config, stop.clone())?;
    tokio::spawn(count(receiver.clone(), metrics.identity()));
    Ok(receiver)
}

async fn count(mut credentials: CredentialsWatch, metrics: Arc<IdentityMetrics>) {
    let mut leaf = None;
    loop {
        if let Some(credentials) = credentials.borrow_and_update().as_ref() {
            // New anchors are no new certificate.
            if leaf.as_ref() != credentials.chain.first() {
                leaf = credentials.chain.first().cloned();
                metrics.issued(SystemTime::now(), credentials.not_after);
            }
            let anchors = credentials.anchors.certificates().iter().map(|anchor| tls::fingerprint(anchor)).collect();
            metrics.trusts(anchors, credentials.issuer_fingerprint());
        }
        if credentials.changed().await.is_err() {
            return;
        }
    }
}
