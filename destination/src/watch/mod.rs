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
//! | `gateway.networking.k8s.io` | the same with `/status` | patch |
//! | `policy.gossamer.io` | `authorizationpolicies` | list, watch |
//! | `events.k8s.io` | `events` | create, patch |
//!
//! and in its own namespace (Role): `coordination.k8s.io` `leases`, verbs get, create, update.

mod follow;
mod known;
mod lease;
mod report;
#[cfg(test)]
mod tests;

use crate::registry::Registry;
use follow::Follow;
use gossamer_api::kubernetes::{
    AuthorizationPolicy, EndpointSlice, GrpcRoute, HttpRoute, Kind, Namespace, Node, Pod, Served, Service, TcpRoute,
    TlsRoute,
};
use gossamer_api::process::stop::Stop;
use lease::Holder;
use report::{Book, Writer};
use std::collections::BTreeSet;
use tokio::sync::watch;

/// Follows the Kubernetes API until `stop`. Returns at once; [`Progress::complete`] tells when everything is known.
/// `namespace` is the control plane's, `me` this replica's unique name.
pub fn start(client: kube::Client, registry: Registry, namespace: &str, me: &str, stop: &Stop) -> Progress {
    let (progress, book) = (Progress(watch::channel(BTreeSet::new()).0), Book::default());
    let watches = Watches { client: client.clone(), registry: registry.clone(), progress, book: book.clone(), stop };
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

    let (mut holder, held) = Holder::new(client.clone(), namespace, me);
    let writer = Writer::new(client, registry, book, held, me);
    let (progress, stopping) = (watches.progress, stop.clone());
    let complete = progress.clone();
    stop.spawn(async move {
        let work = async {
            // Of a half-known cluster nothing is said.
            complete.complete().await;
            tokio::join!(holder.run(), writer.run());
        };
        tokio::select! {
            () = work => {}
            () = stopping.stopping() => {}
        }
        let _ = tokio::time::timeout(RELEASE, holder.release()).await;
    });
    progress
}

struct Watches<'a> {
    client: kube::Client,
    registry: Registry,
    progress: Progress,
    book: Book,
    stop: &'a Stop,
}

impl Watches<'_> {
    fn follow<T: Served>(&self) {
        self.progress.expect(T::KIND);
        let (registry, progress) = (self.registry.clone(), self.progress.clone());
        let follow = Follow::<T>::new(self.client.clone(), registry, progress, self.book.clone());
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
        self.0.send_if_modified(|missing| missing.insert(kind));
    }

    /// A kind is known, or known to be absent.
    fn done(&self, kind: Kind) {
        self.0.send_if_modified(|missing| missing.remove(&kind));
    }

    /// `Err` names the kinds that are missing.
    pub fn check(&self) -> Result<(), String> {
        let missing: Vec<_> = self.0.borrow().iter().map(Kind::to_string).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("the first list is not complete of {}", missing.join(", ")))
        }
    }

    /// Returns when everything is known. Cancel safe.
    pub async fn complete(&self) {
        // The sender lives in `self`.
        let _ = self.0.subscribe().wait_for(BTreeSet::is_empty).await;
    }
}

/// To give the lease back when the process ends.
const RELEASE: std::time::Duration = std::time::Duration::from_secs(2);
