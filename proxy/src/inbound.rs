//! Stub: inbound.
