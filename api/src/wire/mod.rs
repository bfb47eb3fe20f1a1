//! Domain types as messages of `linkerd2-proxy-api`, and back: translation only, total functions.

/// Our own messages and services.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod mesh {
    tonic::include_proto!("gossamer.v1");
}
