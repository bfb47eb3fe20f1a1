//! Stub: identity.
