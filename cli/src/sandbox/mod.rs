//! A mesh's private network on this machine: namespaces made by the kernel for whoever asks, root or not.
//!
//! [`enter`] moves the process into them before it has threads; [`network`] has the bridge; a [`cell`] is one replica's
//! part; [`dns`] answers for names; [`publish`] lets the machine in; [`state`] is where others find the mesh.
//! **Invariant:** everything lives in the PID namespace of its `meshctl`; when that dies, however, nothing is left.

pub mod cell;
pub mod dns;
pub mod enter;
pub mod network;
pub mod outside;
pub mod publish;
pub mod state;
