//! Stub: request.
