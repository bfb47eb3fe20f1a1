//! The application of `meshctl demo`: small real programs over real sockets, which know nothing of a mesh.
//!
//! traffic → web → catalog, orders, prices; orders → ledger, vault.

pub mod app;
mod client;
mod figures;
mod ledger;
mod serve;
pub mod services;
pub mod traffic;
mod vault;
