//! Stub: net.
