//! Who may ask: a proxy is told what concerns the workload that its certificate is for.
//!
//! **Invariant:** a peer without a verified certificate of this mesh is told nothing.

use crate::registry::Registry;
use crate::serve::Admit;
use gossamer_api::kubernetes::Name;
use gossamer_api::process::grpc::PeerIdentity;
use gossamer_api::workload::Workload;
use std::sync::Arc;
use tonic::Status;

/// Compares the certificate's service account with the one of the workload that is asked for.
pub fn own_workload(registry: Registry) -> Admit {
    Arc::new(move |peer, workload| decide(&registry, peer, workload))
}

fn decide(registry: &Registry, peer: Option<&PeerIdentity>, workload: &Workload) -> Result<(), Status> {
    let identity = peer.and_then(|peer| peer.identity.as_ref());
    let (account, namespace, _, _) = identity
        .and_then(|identity| identity.parts())
        .ok_or_else(|| Status::unauthenticated("no workload's certificate"))?;
    let name = Name::new(&workload.ns, &workload.pod);
    let known = registry.read(|index| index.account(&name).map(str::to_string));
    let own = namespace == workload.ns && known.as_deref().is_none_or(|known| known == account);
    match own {
        // A pod that has just started may be ahead of our watch: its namespace has to do until then.
        true => Ok(()),
        false => Err(Status::permission_denied(format!("{account}.{namespace} is not the workload {name}"))),
    }
}
