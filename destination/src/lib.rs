//! Tells proxies where services are and how to reach them.
//!
//! [`index`] is what is known, [`registry`] who tells and who asks, [`watch`], [`file`] and [`standalone`] are sources,
//! [`serve`] speaks to proxies, [`run`] puts them together, [`command`] makes a process of it.

pub mod admit;
pub mod command;
pub mod file;
pub mod index;
pub mod pool;
pub mod registry;
pub mod serve;
pub mod standalone;
pub mod watch;

use gossamer_api::process::grpc::{self, ServerTls};
use gossamer_api::process::stop::Stop;
use std::path::PathBuf;
use tokio::net::TcpListener;

/// What the service is told at its start.
#[derive(Clone, Default)]
pub struct Config {
    /// A folder of YAML objects to watch.
    pub files: Option<PathBuf>,
    /// Who may ask for what; `None`: everybody for everything.
    pub admit: Option<serve::Admit>,
}

/// Serves what `registry` knows on each listener until `stop`; `None` is plaintext. Returns when nothing new is accepted;
/// `stop` waits for the streams, which end by themselves.
pub async fn run(
    config: Config,
    registry: registry::Registry,
    listeners: Vec<TcpListener>,
    tls: Option<ServerTls>,
    stop: Stop,
) {
    if let Some(folder) = config.files {
        let mut files = file::Files::new(folder, registry.clone());
        // Once before the first question, so that nobody sees a half-filled registry.
        for problem in files.look() {
            tracing::error!("{problem}");
        }
        stop.spawn(files.watch(stop.clone()));
    }
    let state = serve::State { registry, admit: config.admit, stop: stop.clone() };
    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        serving.spawn(grpc::serve(serve::services(state.clone()), listener, tls.clone(), stop.clone()));
    }
    while serving.join_next().await.is_some() {}
}
