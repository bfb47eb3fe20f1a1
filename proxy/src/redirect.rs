//! Stub: redirect.
