//! Stub: tcp.
