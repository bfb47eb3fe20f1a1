//! The mesh on loopback: each file is a feature in users' words.

#![allow(clippy::unwrap_used)]

mod http1;
