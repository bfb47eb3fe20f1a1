//! Stub: tap.
