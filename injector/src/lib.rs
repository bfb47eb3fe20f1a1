//! Puts the proxy into pods.
//!
//! Empty so far: the mesh runs on one machine, where `meshctl run` puts proxies beside workloads. This room is kept for
//! the webhook and for `meshctl inject`.
