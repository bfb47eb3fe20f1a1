//! Puts the proxy into pods.
//!
//! Read in this order: [`inject`] (a pod and what surrounds it in, additions or a reason to leave it alone out; pure),
//! [`container`] (what is added), [`settings`] (annotations, checked), [`linkerd`] (what Linkerd's mean here), [`written`]
//! (objects that pods are made from); `meshctl inject` uses the same. Then [`webhook`] (what the API server asks), [`certs`]
//! (what it is answered with), [`cluster`] (what is followed there), [`events`] (who
//! is told), [`command`] (the process).

pub mod certs;
pub mod cluster;
pub mod command;
pub mod container;
pub mod events;
pub mod inject;
pub mod linkerd;
pub mod metrics;
pub mod settings;
pub mod webhook;
pub mod written;
