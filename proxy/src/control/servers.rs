//! Inbound: who may use the ports of the workload.

use super::Discovered;
use super::discovery::{MESSAGE_BYTES, replace};
use super::follow::Question;
use gossamer_api::authorization::{InboundHttp, InboundProtocol, Server};
use gossamer_api::defaults;
use gossamer_api::endpoint::Labels;
use gossamer_api::policy::Meta;
use gossamer_api::wire;
use linkerd2_proxy_api::inbound::{self, inbound_server_policies_client::InboundServerPoliciesClient};
use std::sync::Arc;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// `InboundServerPolicies.WatchPort`.
#[derive(Clone)]
pub(super) struct Ports {
    pub(super) workload: Arc<str>,
}

impl Question for Ports {
    type Key = u16;
    type Message = inbound::Server;
    type Answer = Server;
    /// A control plane that has just started and does not know the workload yet must not open a port that was closed.
    const FORGETS: bool = false;

    async fn ask(&self, port: &u16, channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = InboundServerPoliciesClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok(client.watch_port(wire::port_spec_to_proto(&self.workload, *port)).await?.into_inner())
    }

    fn take(&self, port: &u16, message: Self::Message, _: bool, state: &watch::Sender<Discovered<Server>>) -> bool {
        let server = wire::server_from_proto(message).unwrap_or_else(|error| {
            tracing::warn!(%port, %error, "policy not understood: nobody may use the port");
            closed()
        });
        state.send_if_modified(|state| replace(state, server));
        true
    }
}

/// What stands for a policy that is not understood: it may have taken a permission back. Source: linkerd2-proxy
/// (`ServerPolicy::invalid`).
fn closed() -> Server {
    let labels = [("group", ""), ("kind", "default"), ("name", "invalid")];
    Server {
        meta: Meta::named("invalid"),
        protocol: InboundProtocol::Detect { timeout: defaults::DETECT_PATIENCE, http: InboundHttp::default() },
        ips: Vec::new(),
        authorizations: Vec::new(),
        labels: labels.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect::<Labels>(),
    }
}
