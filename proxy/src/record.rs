//! Stub: record.
