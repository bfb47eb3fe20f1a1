//! What every process of the mesh has in common.
//!
//! Read in this order: [`defaults`] (every number), [`keys`] (every label, annotation and header), [`workload`] (who),
//! [`endpoint`] (where), [`policy`] (how a request is treated on its way out), [`authorization`] (who may come in),
//! [`kubernetes`] (the objects that people write), [`wire`] (all of this as `linkerd2-proxy-api` messages), [`settings`] (every knob), [`process`] (the shell of every
//! binary).
//!
//! **Invariant:** outside of [`process`] nothing here does I/O or spawns. [`wire`] alone names generated types.

pub mod authorization;
pub mod defaults;
pub mod endpoint;
pub mod keys;
pub mod kubernetes;
pub mod policy;
pub mod process;
pub mod request_id;
pub mod settings;
pub mod wire;
pub mod workload;
