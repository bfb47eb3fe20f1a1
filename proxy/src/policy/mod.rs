//! Stub: policy.
