//! Stub: detect.
