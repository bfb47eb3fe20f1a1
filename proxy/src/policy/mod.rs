//! Decides about requests and connections: which route, what is changed, who may, how much.
//!
//! **Invariant:** pure. No I/O, no clock (time is an argument), no task; nothing allocates or compiles per request.

pub mod authorize;
pub mod filter;
pub mod limit;
pub mod path;
pub mod route;
