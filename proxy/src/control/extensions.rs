//! What of a target's routes Linkerd's API cannot carry. Asked only for targets whose routes name an extension.

use super::Discovered;
use super::discovery::{MESSAGE_BYTES, replace};
use super::follow::Question;
use gossamer_api::policy::{Extensions, Target};
use gossamer_api::wire;
use gossamer_api::wire::mesh::{ExtensionSet, extensions_client::ExtensionsClient};
use std::sync::Arc;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// `Extensions.Watch`.
#[derive(Clone)]
pub(super) struct Extended {
    pub(super) workload: Arc<str>,
}

impl Question for Extended {
    type Key = Target;
    type Message = ExtensionSet;
    type Answer = Extensions;
    /// A route that needs none does not look; one that does is better off with what was known.
    const FORGETS: bool = false;

    async fn ask(&self, target: &Target, channel: Channel) -> Result<Streaming<Self::Message>, Status> {
        let mut client = ExtensionsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
        Ok(client.watch(wire::watch_extensions_to_proto(&self.workload, target)).await?.into_inner())
    }

    fn take(
        &self,
        key: &Target,
        message: Self::Message,
        _: bool,
        state: &watch::Sender<Discovered<Extensions>>,
    ) -> bool {
        let (known, problems) = wire::extensions_from_proto(message);
        for error in problems {
            tracing::warn!(%key, %error, "extension not understood: requests that need it fail");
        }
        state.send_if_modified(|state| replace(state, known));
        true
    }
}
