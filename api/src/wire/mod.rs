//! Domain types as messages of `linkerd2-proxy-api`, and back: translation only, total functions.
//!
//! What is written obeys what linkerd2-proxy insists on, because one bad field makes it give up a whole policy. What is
//! read fails with the field's name where guessing could let somebody in or send something astray, and takes our
//! default otherwise.
//!
//! **Invariant:** decoding never panics, and nothing unknown becomes permission.

mod destination;
mod extension;
mod inbound;
mod net;
mod outbound;
mod route;

pub use destination::*;
pub use extension::*;
pub use inbound::*;
pub use net::*;
pub use outbound::*;

use std::fmt;

/// Our own messages and services.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod mesh {
    tonic::include_proto!("gossamer.v1");
}

/// A message that has no meaning for us, with the place of the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid {field}: {reason}")]
pub struct InvalidMessage {
    /// `protocol.http1.routes[0].rules[1].backends`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl InvalidMessage {
    fn new(field: impl Into<String>, reason: impl fmt::Display) -> Self {
        InvalidMessage { field: field.into(), reason: reason.to_string() }
    }

    fn missing(field: &str) -> Self {
        InvalidMessage::new(field, "missing, or of a kind that this version does not know")
    }

    /// The same, seen from the message around it.
    fn within(mut self, outer: &str) -> Self {
        self.field = if self.field.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.field) };
        self
    }
}

type Decoded<T> = Result<T, InvalidMessage>;

/// Names the field around a failure.
trait Within<T> {
    fn within(self, outer: &str) -> Decoded<T>;
}

impl<T> Within<T> for Decoded<T> {
    fn within(self, outer: &str) -> Decoded<T> {
        self.map_err(|error| error.within(outer))
    }
}

/// A required field.
fn required<T>(value: Option<T>, field: &str) -> Decoded<T> {
    value.ok_or_else(|| InvalidMessage::missing(field))
}

/// A repeated field; a failure names the element.
fn each<P, T>(list: Vec<P>, field: &str, decode: impl Fn(P) -> Decoded<T>) -> Decoded<Vec<T>> {
    let decode = |(at, item)| decode(item).map_err(|error| error.within(&format!("{field}[{at}]")));
    list.into_iter().enumerate().map(decode).collect()
}

fn narrow<T: TryFrom<u32>>(value: u32, field: &str) -> Decoded<T> {
    T::try_from(value).map_err(|_| InvalidMessage::new(field, format_args!("{value} is out of range")))
}

fn duration_to_proto(duration: std::time::Duration) -> prost_types::Duration {
    // Longer than the age of the universe is as good as the longest that can be said.
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: duration.subsec_nanos().cast_signed() }
}

fn duration_from_proto(duration: Option<prost_types::Duration>, field: &str) -> Decoded<Option<std::time::Duration>> {
    duration
        .map(|duration| std::time::Duration::try_from(duration).map_err(|error| InvalidMessage::new(field, error)))
        .transpose()
}

#[cfg(test)]
mod tests;
