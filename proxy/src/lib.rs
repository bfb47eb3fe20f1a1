//! The data plane: one process beside one workload.
//!
//! A connection's story is in [`outbound`] (from the workload) and [`inbound`] (to it): original destination, detect,
//! discover, authorize, then [`request`] (HTTP) or [`tcp`] (bytes), which route, balance, connect, forward, record.

pub mod accept;
pub mod balance;
pub mod config;
pub mod control;
pub mod detect;
pub mod error;
pub mod inbound;
pub mod metrics;
pub mod net;
pub mod outbound;
pub mod policy;
pub mod record;
pub mod redirect;
pub mod request;
pub mod shard;
pub mod tap;
pub mod tcp;
