//! Reaches a mesh that runs on this machine: joins its network, asks its registry who is there, and its proxies what
//! they do. No component beyond the proxies is asked for figures.

use crate::error::{CommandError, Result};
use crate::registry::Client;
use crate::sandbox::enter;
use crate::sandbox::state::{self, Mesh};
use crate::scrape::{self, Sample};
use gossamer_api::wire::mesh::WorkloadInfo;

/// Which mesh, and what of it.
#[derive(clap::Args, Clone, Debug)]
pub struct Scope {
    /// The mesh, if several run here
    #[arg(long, env = "MESHCTL_MESH")]
    pub mesh: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    pub namespace: Option<String>,
}

impl Scope {
    /// Moves this process into the mesh's network. Called before there are threads.
    pub fn join(&self) -> Result<Mesh> {
        // Inside, this user looks like root: the folder is looked up before.
        let mesh = state::find(self.mesh.as_deref())?;
        enter::join(mesh.pid)?;
        Ok(mesh)
    }

    /// The workloads of this scope that one of `names` means: a service, or a replica of it. No names: all.
    pub async fn workloads(&self, mesh: &Mesh, names: &[String]) -> Result<Vec<WorkloadInfo>> {
        let mut all = Client::connect(mesh).await?.list().await?;
        all.retain(|w| self.namespace.as_ref().is_none_or(|namespace| *namespace == w.namespace));
        for name in names {
            if !all.iter().any(|w| is_meant(w, name)) {
                let mut services: Vec<&str> = all.iter().map(|w| w.name.as_str()).collect();
                services.dedup();
                let error = CommandError::failed(format!("no workload called {name:?} in this mesh"));
                return Err(match services.is_empty() {
                    true => error.hint("start one with `meshctl run`"),
                    false => error.hint(format!("there are: {}", services.join(", "))),
                });
            }
        }
        if !names.is_empty() {
            all.retain(|w| names.iter().any(|name| is_meant(w, name)));
        }
        Ok(all)
    }
}

/// `web`, `web-1`, `web.demo`, `web-1.demo`, and kubectl's habit of `deploy/web`.
fn is_meant(workload: &WorkloadInfo, name: &str) -> bool {
    let name = name.rsplit_once('/').map_or(name, |(_, name)| name);
    let (name, namespace) = name.split_once('.').unwrap_or((name, &workload.namespace));
    namespace == workload.namespace && (name == workload.name || name == workload.replica)
}

/// Every workload's samples; None where nobody answered.
pub async fn scrape(workloads: &[WorkloadInfo]) -> Vec<Option<Vec<Sample>>> {
    let meshed = workloads.iter().filter(|w| w.meshed).map(|w| w.admin.clone()).collect();
    let mut answers = scrape::all(meshed).await.into_iter();
    workloads.iter().map(|w| if w.meshed { answers.next()?.ok() } else { None }).collect()
}

/// From which side a workload's figures are seen: a server's from inside, a mere client's from outside.
pub fn direction(workload: &WorkloadInfo) -> &'static str {
    if workload.ports.is_empty() { "outbound" } else { "inbound" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_meant_by_service_replica_and_whole_name() {
        let web = WorkloadInfo {
            namespace: "demo".into(),
            name: "web".into(),
            replica: "web-1".into(),
            ..Default::default()
        };
        for name in ["web", "web-1", "web.demo", "deploy/web", "pod/web-1.demo"] {
            assert!(is_meant(&web, name), "{name}");
        }
        for name in ["we", "web-2", "web.default"] {
            assert!(!is_meant(&web, name), "{name}");
        }
    }
}
