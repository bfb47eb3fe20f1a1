//! Stub: accept.
