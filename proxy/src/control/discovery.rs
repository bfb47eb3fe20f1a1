//! Outbound: how targets are treated and where the replicas of a name are.

use super::Discovered;
use super::follow::Question;
use gossamer_api::endpoint::{Endpoint, EndpointUpdate, Labels};
use gossamer_api::policy::{OutboundPolicy, Target};
use gossamer_api::wire;
use linkerd2_proxy_api::destination::{self, destination_client::DestinationClient};
use linkerd2_proxy_api::outbound::{self, outbound_policies_client::OutboundPoliciesClient};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// The replicas of a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EndpointSet {
    /// By address, so that a change is found by comparing `Arc`s.
    pub endpoints: BTreeMap<SocketAddr, Arc<Endpoint>>,
    /// False: the control plane knows no such service.
    pub exists: bool,
}

/// `OutboundPolicies.Watch`.
#[derive(Clone)]
pub(super) struct Policies {
    pub(super) workload: Arc<str>,
}

impl Question for Policies {
    type Key = Target;
    type Message = outbound::OutboundPolicy;
    type Answer = OutboundPolicy;
    const FORGETS: bool = true;

    async fn ask(&self, target: &Target, channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = OutboundPoliciesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok(client.watch(wire::traffic_spec_to_proto(&self.workload, target)).await?.into_inner())
    }

    fn take(
        &self,
        key: &Target,
        message: Self::Message,
        _: bool,
        state: &watch::Sender<Discovered<OutboundPolicy>>,
    ) -> bool {
        match wire::outbound_policy_from_proto(message) {
            Ok(policy) => {
                state.send_if_modified(|state| replace(state, policy));
            }
            // What was known is better than nothing, and nothing here lets anybody in.
            Err(error) => {
                tracing::warn!(%key, %error, "policy not understood");
                state.send_if_modified(|state| {
                    let change = !matches!(state, Discovered::Known(_));
                    if change {
                        *state = Discovered::Failed(format!("the policy for {key} is not understood: {error}").into());
                    }
                    change
                });
            }
        }
        true
    }
}

/// `Destination.Get`.
#[derive(Clone)]
pub(super) struct Endpoints {
    pub(super) context: Arc<str>,
}

impl Question for Endpoints {
    type Key = String;
    type Message = destination::Update;
    type Answer = EndpointSet;
    const FORGETS: bool = true;

    async fn ask(&self, authority: &String, channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = DestinationClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok(client.get(wire::get_destination_to_proto(authority, &self.context)).await?.into_inner())
    }

    fn take(
        &self,
        key: &String,
        message: Self::Message,
        first: bool,
        state: &watch::Sender<Discovered<EndpointSet>>,
    ) -> bool {
        match wire::endpoint_update_from_proto(message) {
            Ok(update) => {
                let counts = !matches!(update, EndpointUpdate::Remove(_));
                state.send_if_modified(|state| apply(state, update, first));
                counts
            }
            Err(error) => {
                tracing::warn!(%key, %error, "endpoints not understood");
                false
            }
        }
    }
}

/// Takes a change over; true when something changed. The first one of a stream replaces what an earlier stream said.
fn apply(state: &mut Discovered<EndpointSet>, update: EndpointUpdate, first: bool) -> bool {
    if first || !matches!(state, Discovered::Known(_)) {
        let mut fresh = EndpointSet { exists: true, ..EndpointSet::default() };
        match update {
            EndpointUpdate::Add(endpoints, labels) => _ = insert(&mut fresh, endpoints, &labels),
            EndpointUpdate::Empty { exists } => fresh.exists = exists,
            // Says nothing about what there is.
            EndpointUpdate::Remove(_) => return false,
        }
        if let Discovered::Known(old) = &*state {
            // The same replica stays the same `Arc`, so that a reconnect is nobody's concern.
            for (addr, endpoint) in &mut fresh.endpoints {
                if let Some(same) = old.endpoints.get(addr).filter(|old| *old == endpoint) {
                    *endpoint = same.clone();
                }
            }
        }
        return replace(state, fresh);
    }
    let Discovered::Known(known) = state else { return false };
    // In place unless somebody reads it right now; then a copy of the pointers.
    match update {
        EndpointUpdate::Add(endpoints, labels) => {
            let known = Arc::make_mut(known);
            let appeared = !std::mem::replace(&mut known.exists, true);
            insert(known, endpoints, &labels) || appeared
        }
        EndpointUpdate::Remove(addrs) => {
            let known = Arc::make_mut(known);
            let before = known.endpoints.len();
            for addr in &addrs {
                known.endpoints.remove(addr);
            }
            known.endpoints.len() != before
        }
        EndpointUpdate::Empty { exists } => replace(state, EndpointSet { exists, ..EndpointSet::default() }),
    }
}

/// An endpoint's own labels win over those of the set.
fn insert(set: &mut EndpointSet, endpoints: Vec<Endpoint>, labels: &Labels) -> bool {
    let mut changed = false;
    for mut endpoint in endpoints {
        for (key, value) in labels {
            if !endpoint.labels.contains_key(key) {
                endpoint.labels.insert(key.clone(), value.clone());
            }
        }
        if set.endpoints.get(&endpoint.addr).is_none_or(|old| **old != endpoint) {
            set.endpoints.insert(endpoint.addr, Arc::new(endpoint));
            changed = true;
        }
    }
    changed
}

/// A new answer, unless it says the same.
pub(super) fn replace<T: PartialEq>(state: &mut Discovered<T>, answer: T) -> bool {
    if matches!(state, Discovered::Known(old) if **old == answer) {
        return false;
    }
    *state = Discovered::Known(Arc::new(answer));
    true
}

/// A service of 10,000 replicas takes about 5 MiB in one message.
pub(super) const MESSAGE_BYTES: usize = 16 * 1024 * 1024;
