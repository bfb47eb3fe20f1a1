//! The machine's part of a mesh: its folder, its bridge, its names. The control plane and the replicas build on it.

use crate::error::{Context, Result};
use crate::sandbox::outside::{self, Outside};
use crate::sandbox::state::State;
use crate::sandbox::{dns, enter, network};
use gossamer_api::defaults;
use std::path::PathBuf;

/// A mesh's own folder, bridge and DNS, for as long as the process lives.
pub struct Node {
    /// The folder.
    pub state: State,
}

impl Node {
    /// Makes the bridge, answers for names and opens the way out, if there is one. This process must be inside a new
    /// private network.
    pub async fn start(state: State, resolve: dns::Resolve) -> Result<Node> {
        network::make_bridge()?;
        let outside = Outside::open()?;
        if let Some(outside) = &outside {
            outside::relay(outside.clone()).await?;
        }
        tokio::spawn(dns::serve(dns::bind(network::NODE).await?, resolve, outside));
        Ok(Node { state })
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
