//! The shell of every binary: how it stops, logs, is watched from outside, and speaks gRPC over TLS.
//!
//! **Invariant:** every task that is spawned here is tracked by a [`stop::Stop`] and every wait has a bound.

pub mod admin;
pub mod certify;
pub mod grpc;
pub mod listen;
pub mod log;
pub mod memory;
pub mod stop;
pub mod tls;
