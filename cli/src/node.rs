//! The machine's part of a mesh: its folder, its bridge, its names. The control plane and the replicas build on it.

use crate::error::{Context, Result};
use crate::sandbox::outside::Outside;
use crate::sandbox::state::State;
use crate::sandbox::{dns, enter, network};
use gossamer_api::defaults;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::UdpSocket;

/// A mesh's own folder, bridge and DNS, for as long as the process lives.
pub struct Node {
    /// The folder.
    pub state: State,
    /// Until names are answered for, questions wait in here.
    names: Option<UdpSocket>,
    outside: Option<Arc<Outside>>,
}

impl Node {
    /// Makes the bridge and opens the way out, if there is one. This process must be inside a private network.
    pub async fn start(state: State) -> Result<Node> {
        network::make_bridge()?;
        let outside = Outside::open()?;
        if let Some(outside) = &outside {
            outside.relay(&state.file(""))?;
        }
        Ok(Node { state, names: Some(dns::bind(network::NODE).await?), outside })
    }

    /// Answers for names, from now on.
    pub fn answer(&mut self, resolve: dns::Resolve) {
        if let Some(names) = self.names.take() {
            tokio::spawn(dns::serve(names, resolve, self.outside.clone()));
        }
    }

    /// Lets other commands find the mesh.
    pub fn publish(&self) -> Result<()> {
        self.state.publish(enter::outer_pid()?)
    }

    /// The `resolv.conf` for replicas of a namespace.
    pub fn resolv_conf(&self, namespace: &str) -> Result<PathBuf> {
        let path = self.state.file(&format!("resolv-{namespace}.conf"));
        let text = dns::resolv_conf(network::NODE, namespace, defaults::CLUSTER_DOMAIN);
        std::fs::write(&path, text).context(path.display())?;
        Ok(path)
    }
}
