//! Programs that others wrote, against our proxies: each file is one of them.
//!
//! They are Go programs of the module `tests/peers`, built here with `go`, or found in the folder `MESH_PEERS_BIN`.

#![allow(clippy::unwrap_used)]

mod api;
mod grpc_interop;
mod h2spec;
mod linkerd;
mod nats;
mod promtool;
mod spiffe;
mod tools;
