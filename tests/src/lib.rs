//! The harness: a mesh of real processes on loopback, applications and clients for it, and waits with deadlines.
//!
//! [`mesh`] starts a control plane in this process and proxies as processes of their own; it needs no privilege and no
//! namespace. [`cluster`] is a whole Kubernetes, [`linkerd`] puts a real linkerd2-proxy in the place of one of ours. [`app`] is
//! what is meshed, [`client`] who asks, [`expect`] how a test waits and counts.

// A failure in here is a failed test: it has to stop it, with a message.
#![allow(clippy::unwrap_used)]

pub mod app;
pub mod client;
pub mod cluster;
pub mod expect;
pub mod linkerd;
pub mod loopback;
pub mod mesh;
pub mod policy;
