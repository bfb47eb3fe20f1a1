//! Stub: error.
