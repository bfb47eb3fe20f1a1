//! What a mesh is for: parts of it die, come back and are replaced, and nobody who calls a service notices.

#![allow(clippy::unwrap_used)]

mod control_plane;
mod endpoint;
mod load;
mod rollout;
mod soak;
