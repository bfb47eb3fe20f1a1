//! Stub: outbound.
