//! The proxy's own certificate: asked for and renewed by `gossamer_api::process::certify`, counted here.

use std::path::{Path, PathBuf};
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
    let given = Anchors::from_pem(&config.trust_anchors).context("MESH_TRUST_ANCHORS")?;
    let kept = config.state_dir.as_ref().map(|folder| folder.join(KEPT_ANCHORS));
    // Newer than those that this pod was made with, or there would be none.
    let anchors = kept.as_deref().and_then(kept_anchors).unwrap_or(given);
    let config = CertifyConfig {
        address: service.addr.clone(),
        server: service.identity.clone(),
        identity: local.clone(),
        token: Token::File(config.token_file.clone()),
        anchors: TrustAnchors::Given(anchors),
    };
    let receiver = certify::start(config, stop.clone())?;
    tokio::spawn(count(receiver.clone(), metrics.identity()));
    if let Some(path) = kept {
        tokio::spawn(keep_anchors(receiver.clone(), path));
    }
    Ok(receiver)
}

fn kept_anchors(path: &Path) -> Option<Anchors> {
    // Bounded where it is parsed; only this program writes there.
    let pem = std::fs::read_to_string(path).ok()?;
    Anchors::from_pem(&pem).inspect_err(|error| tracing::warn!(%error, "kept trust anchors are of no use")).ok()
}

/// Keeps the roots under which we have a certificate, for the next process: the root that this one was started with may be
/// dropped by then. A folder that is not there is fine.
async fn keep_anchors(mut credentials: CredentialsWatch, path: PathBuf) {
    let mut kept = None;
    loop {
        let anchors = credentials.borrow_and_update().as_ref().map(|credentials| credentials.anchors.clone());
        if let Some(anchors) = anchors
            && kept.as_ref() != Some(&anchors)
        {
            let new = path.with_extension("new");
            let written = match tokio::fs::write(&new, anchors.pem()).await {
                Ok(()) => tokio::fs::rename(&new, &path).await,
                error => error,
            };
            if let Err(error) = written {
                tracing::debug!(%error, path = %path.display(), "trust anchors could not be kept");
            }
            kept = Some(anchors);
        }
        if credentials.changed().await.is_err() {
            return;
        }
    }
}

/// In the folder of [`Config::state_dir`].
const KEPT_ANCHORS: &str = "trust-anchors.pem";

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
