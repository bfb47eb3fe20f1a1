//! The authority on Kubernetes: who asks is checked by the API server ([`review`]), issuer and trust anchors are objects
//! that it watches ([`source`]), and what was refused is told where people look for it ([`events`]).
//!
//! Stateless: several replicas serve side by side, since issuer and anchors are shared and nothing else is remembered.
//!
//! What it may do in the cluster, and nothing else:
//!
//! | where | what | verbs |
//! |---|---|---|
//! | everywhere | `authentication.k8s.io` tokenreviews | create |
//! | everywhere | `events.k8s.io` events | create, patch |
//! | control namespace | secret `gossamer-identity-issuer`, by name | get, list, watch |
//! | control namespace | configmap `gossamer-trust-anchors`, by name | get, list, watch |
//!
//! Without the last two it goes by the mounted files, which Kubernetes replaces up to a minute later.

pub mod events;
pub mod review;
pub mod source;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use gossamer_api::process::stop::Stop;
use gossamer_api::workload::Identity;
use kube::Client;
use tokio::sync::{mpsc, watch};

use crate::issuer::Issuer;
use crate::service::Service;
use crate::token::TokenCheck;
use review::TokenReviews;
use source::Source;

/// Everything that the authority has to know on Kubernetes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where its objects are; in every identity that it issues.
    pub control_namespace: String,
    /// In every identity that it issues.
    pub trust_domain: String,
    /// What a token must be for.
    pub audience: String,
    /// The mounted Secret, for as long as the API server doesn't tell it.
    pub issuer_dir: Option<PathBuf>,
    /// The mounted trust anchors (a file, or a folder of them), for as long as the API server doesn't tell them.
    pub anchors: Option<PathBuf>,
}

/// A running authority.
pub struct Authority {
    /// Issues; there once issuer and anchors are known.
    pub service: Service,
    /// Whose certificate it presents.
    pub identity: Identity,
}

impl Authority {
    /// Waits for issuer and anchors, at most until the process stops (`None`), and keeps watching them. `waiting` is told
    /// what is missing.
    pub async fn start(
        config: &Config,
        service_account: &str,
        client: Client,
        waiting: watch::Sender<String>,
        stop: &Stop,
    ) -> anyhow::Result<Option<Self>> {
        let (namespace, domain) = (&config.control_namespace, &config.trust_domain);
        let identity = Identity::service_account(service_account, namespace, namespace, domain)?;
        let (sender, mut issuers) = watch::channel(None);
        let recorder = events::recorder(client.clone());
        let source = Source::new(config, client.clone(), recorder.clone(), sender, waiting);
        stop.spawn(source.run(stop.clone()));
        let first: Option<Arc<Issuer>> = tokio::select! {
            // The source ends too when the process stops: that is no failure.
            biased;
            () = stop.stopping() => None,
            issuer = issuers.wait_for(Option::is_some) => issuer.context("the source of the issuer has ended")?.clone(),
        };
        let Some(first) = first else { return Ok(None) };
        let (sender, receiver) = watch::channel(first);
        stop.spawn(async move {
            while issuers.changed().await.is_ok() {
                if let Some(issuer) = issuers.borrow_and_update().clone() {
                    sender.send_replace(issuer);
                }
            }
        });
        let (failures, told) = mpsc::channel(FAILURES);
        stop.spawn(events::tell(recorder, told, stop.clone()));
        let reviews = TokenReviews::new(client, &config.audience, namespace, domain);
        let service = Service::new(receiver, TokenCheck::Review(reviews), namespace, domain, stop.clone());
        Ok(Some(Authority { service: service.telling(failures), identity }))
    }
}

/// For the API server: `read_timeout` is what a watch waits at most without a word of it.
pub fn client_config(mut config: kube::Config) -> kube::Config {
    config.connect_timeout = Some(Duration::from_secs(5));
    config
}

/// Failures that wait to become events; more are only logged.
const FAILURES: usize = 64;
