//! HTTP/1.0 and 1.1 (RFC 9112): a [`Server`] towards the application that calls, a [`Client`] towards an endpoint.
//!
//! Both are driven by polling on one thread. `send_*` only gathers bytes: nothing leaves before `poll_flush` or
//! `poll_capacity`, so a head and the first bytes of its body share a write. A connection that waits with nothing in
//! hand holds no buffer.
//!
//! **Invariant:** a message whose end two readers could see at different places is refused, never repaired, and what
//! leaves is framed here from [`Length`] alone, never from fields that came in.

mod chars;
mod client;
mod conn;
mod encode;
mod framing;
mod parse;
mod server;
#[cfg(test)]
mod testing;
mod write;

pub use client::Client;
pub use server::Server;

/// Bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest head, in bytes; a larger one is [`crate::Error::HeadTooLarge`].
    pub head_bytes: usize,
    /// The most fields of a head or of trailers; more are [`crate::Error::HeadTooLarge`].
    pub fields: usize,
    /// `poll_capacity` waits while more bytes than these are unsent.
    pub write_buffer: usize,
}

impl Default for Limits {
    /// 64 KiB of head, as linkerd2-proxy and nginx's large buffers come to; 128 fields, where hyper and Envoy stop at
    /// 100, so that no application notices this proxy first; 64 KiB unsent, a few round trips inside a cluster.
    fn default() -> Self {
        Limits { head_bytes: 64 * 1024, fields: 128, write_buffer: 64 * 1024 }
    }
}

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// There is no body.
    Empty,
    /// Exactly that many bytes.
    Known(u64),
    /// Not known before its end.
    Unknown,
}
