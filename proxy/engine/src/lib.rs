//! HTTP/1 and HTTP/2 on the wire: bytes to messages and back.
//!
//! This crate knows protocols and nothing else: no policy, no balancing, no metrics, no sockets of its own. A proxy
//! holds two ends of it, an [`h1`] or [`h2`] *server* side towards the client and an [`h1`] or [`h2`] *client* side
//! towards the endpoint, and moves [`message`] heads and body chunks between them.
//!
//! Everything here lives on one thread (`Rc`, no locks) and is driven by polling: a send is bounded by what
//! `poll_capacity` grants, a receive takes what `poll_data` gives, so a slow reader never makes memory grow.

pub mod buffer;
pub mod error;
pub mod h1;
pub mod h2;
pub mod io;
pub mod message;

pub use error::{Error, Fault};
pub use message::{Headers, RequestHead, ResponseHead, Scheme, Version};
