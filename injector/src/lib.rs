//! Puts the proxy into pods.
//!
//! Read in this order: [`inject`] (a pod and what surrounds it in, additions or a reason to leave it alone out; pure),
//! [`container`] (what is added), [`settings`] (annotations, checked). `meshctl inject` and the webhook use the same.

pub mod container;
pub mod inject;
pub mod settings;
