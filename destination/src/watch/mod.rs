//! The Kubernetes API as a source of objects: one watch per kind, into the registry.
//!
//! **Invariant:** nobody is answered before the first list of every kind is complete, and a list that has to be repeated
//! (410 Gone, a restarted apiserver) replaces what is known as a difference, with nothing missing in between.
//!
//! What the service account needs (ClusterRole `gossamer-destination`):
//!
//! | API group | resources | verbs |
//! |---|---|---|
//! | (core) | `namespaces`, `nodes`, `pods`, `services` | list, watch |
//! | `discovery.k8s.io` | `endpointslices` | list, watch |
//! | `gateway.networking.k8s.io` | `httproutes`, `grpcroutes`, `tlsroutes`, `tcproutes` | list, watch |
//! | `gateway.networking.k8s.io` | `httproutes/status`, `grpcroutes/status` | patch |
//! | `policy.gossamer.io` | `authorizationpolicies` | list, watch |
//! | `events.k8s.io` | `events` | create |
//!
//! and in its own namespace (Role): `coordination.k8s.io` `leases`, verbs get, create, update.

mod follow;
mod known;

use crate::registry::Registry;
use follow::Follow;
use gossamer_api::kubernetes::{
    AuthorizationPolicy, EndpointSlice, GrpcRoute, HttpRoute, Kind, Namespace, Node, Pod, Served, Service, TcpRoute,
    TlsRoute,
};
use gossamer_api::process::stop::Stop;
use std::collections::BTreeSet;
use tokio::sync::watch;

/// Follows the Kubernetes API until `stop`. Returns at once; [`Progress::complete`] tells when everything is known.
pub fn start(client: kube::Client, registry: Registry, stop: &Stop) -> Progress {
    let progress = Progress(watch::channel(BTreeSet::new()).0);
    let watches = Watches { client, registry, progress, stop };
    watches.follow::<Namespace>();
    watches.follow::<Node>();
    watches.follow::<Service>();
    watches.follow::<EndpointSlice>();
    watches.follow::<Pod>();
    watches.follow::<AuthorizationPolicy>();
    watches.follow::<HttpRoute>();
    watches.follow::<GrpcRoute>();
    watches.follow::<TlsRoute>();
    watches.follow::<TcpRoute>();
    watches.progress
}

struct Watches<'a> {
    client: kube::Client,
    registry: Registry,
    progress: Progress,
    stop: &'a Stop,
}

impl Watches<'_> {
    fn follow<T: Served>(&self) {
        self.progress.expect(T::KIND);
        let follow = Follow::<T>::new(self.client.clone(), self.registry.clone(), self.progress.clone());
        let stop = self.stop.clone();
        self.stop.spawn(async move {
            tokio::select! {
                () = follow.run() => {}
                () = stop.stopping() => {}
            }
        });
    }
}

/// Which kinds are not known completely yet. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Progress(watch::Sender<BTreeSet<Kind>>);

impl Progress {
    fn expect(&self, kind: Kind) {
        self.0.send_modify(|missing| drop(missing.insert(kind)));
    }

    /// A kind is known, or known to be absent.
    fn done(&self, kind: Kind) {
        self.0.send_if_modified(|missing| missing.remove(&kind));
    }

    /// `Err` names the kinds that are missing.
    pub fn check(&self) -> Result<(), String> {
        let missing: Vec<_> = self.0.borrow().iter().map(Kind::to_string).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("the first list is not complete of {}", missing.join(", "))) }
    }

    /// Returns when everything is known. Cancel safe.
    pub async fn complete(&self) {
        // The sender lives in `self`.
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }
}
