//! Stub: balance.
