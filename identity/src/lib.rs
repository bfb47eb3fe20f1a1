//! Signs the certificates of workloads.
//!
//! Read in this order: [`service`] (what is asked and answered), [`token`] (who asks), [`csr`] (what may be asked for),
//! [`issuer`] (what is signed), [`state`] (keys on disk, rotation), [`kubernetes`] (keys and tokens of a cluster),
//! [`limit`], [`refusal`], [`metrics`].
//!
//! [`command`] is the whole process; [`Authority::start`] is for a process that embeds it.

pub mod command;
pub mod csr;
pub mod issuer;
pub mod kubernetes;
pub mod limit;
pub mod metrics;
pub mod refusal;
pub mod service;
pub mod state;
pub mod token;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use gossamer_api::defaults;
use gossamer_api::process::grpc::{self, ServerTls};
use gossamer_api::process::stop::Stop;
use gossamer_api::process::tls::ClientAuth;
use gossamer_api::workload::Identity;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::Routes;

use crate::issuer::Issuer;
use crate::service::Service;
use crate::state::{Files, State};
use crate::token::TokenCheck;

/// Everything that the authority has to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its keys; made on first start.
    pub state_dir: PathBuf,
    /// The trust anchors, if not in there: a file, or a folder of `*.pem` and `*.crt`.
    pub anchors: Option<PathBuf>,
    /// Where it is asked.
    pub listen: SocketAddr,
    /// In every identity that it issues.
    pub control_namespace: String,
    /// In every identity that it issues.
    pub trust_domain: String,
    /// Its own service account: clients expect its certificate.
    pub service_account: String,
    /// Who may ask.
    pub tokens: TokenCheck,
    /// How often its files are looked at.
    pub poll: Duration,
}

impl Config {
    /// The defaults.
    pub fn new(state_dir: PathBuf, tokens: TokenCheck) -> Self {
        Config {
            state_dir,
            anchors: None,
            listen: SocketAddr::from(([0, 0, 0, 0], defaults::IDENTITY_PORT)),
            control_namespace: defaults::CONTROL_NAMESPACE.to_owned(),
            trust_domain: defaults::TRUST_DOMAIN.to_owned(),
            service_account: SERVICE_ACCOUNT.to_owned(),
            tokens,
            poll: POLL,
        }
    }

    /// Whose certificate the service itself presents.
    pub fn server_identity(&self) -> anyhow::Result<Identity> {
        let (namespace, domain) = (&self.control_namespace, &self.trust_domain);
        Ok(Identity::service_account(&self.service_account, namespace, namespace, domain)?)
    }
}

/// A running authority, to be embedded: its keys are loaded and watched.
pub struct Authority {
    /// Issues.
    pub service: Service,
    /// Its files, to rotate roots.
    pub state: State,
}

impl Authority {
    /// Loads (or makes) the keys and keeps watching them. Must be called inside a runtime.
    pub fn start(config: &Config, stop: &Stop) -> anyhow::Result<Self> {
        let state = State::open(&config.state_dir, &config.trust_domain, config.anchors.clone())?;
        let files = state.read()?;
        let issuer = files.issuer().context("the certificate authority can't be used")?;
        let (sender, receiver) = watch::channel(Arc::new(issuer));
        stop.spawn(keep_loaded(state.clone(), files, sender, config.poll, stop.clone()));
        let (namespace, domain) = (&config.control_namespace, &config.trust_domain);
        let service = Service::new(receiver, config.tokens.clone(), namespace, domain, stop.clone());
        Ok(Authority { service, state })
    }

    /// Serves on `listener` until the process stops.
    pub async fn serve(&self, config: &Config, listener: TcpListener, stop: Stop) -> anyhow::Result<()> {
        serve(&self.service, config.server_identity()?, listener, stop).await
    }
}

/// Serves on `listener` as `identity` until the process stops.
async fn serve(service: &Service, identity: Identity, listener: TcpListener, stop: Stop) -> anyhow::Result<()> {
    let credentials = service.keep_issued(identity)?;
    // Optional: a workload asks for its first certificate without one.
    let tls = ServerTls { credentials, auth: ClientAuth::Optional };
    grpc::serve(service.add_to(Routes::default()), listener, Some(tls), stop).await;
    Ok(())
}

/// Takes over what changes in the files; what can't be used is told, and the last good issuer stays.
async fn keep_loaded(state: State, mut known: Files, sender: watch::Sender<Arc<Issuer>>, poll: Duration, stop: Stop) {
    let mut told = String::new();
    loop {
        tokio::select! {
            () = stop.stopping() => return,
            () = tokio::time::sleep(poll) => {}
        }
        // The files are small and local: not worth a thread.
        let present = sender.borrow().clone();
        match look(&state, &mut known, &present) {
            Ok(None) => told.clear(),
            Ok(Some(issuer)) => {
                told.clear();
                let (until, anchors) = (issuer::rfc3339(issuer.not_after()), issuer.anchors().certificates().len());
                tracing::info!(until, anchors, "took over a changed issuer or trust anchors");
                sender.send_replace(Arc::new(issuer));
            }
            Err(error) => {
                let error = format!("{error:#}");
                // Once per mistake, not once per look.
                if error != told {
                    tracing::error!(error, "the changed authority files can't be used; going on with the last good");
                    told = error;
                }
            }
        }
    }
}

/// The issuer that the files make, if they have changed. What can't be used stays unknown, so it is judged again.
fn look(state: &State, known: &mut Files, present: &Issuer) -> anyhow::Result<Option<Issuer>> {
    state.renew_issuer(present, SystemTime::now())?;
    let files = state.read()?;
    if files == *known {
        return Ok(None);
    }
    let issuer = files.issuer()?;
    *known = files;
    Ok(Some(issuer))
}

/// The service account of the identity service.
pub const SERVICE_ACCOUNT: &str = "gossamer-identity";
/// A rotation should be seen within seconds; three small files are read.
const POLL: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
