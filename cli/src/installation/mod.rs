//! The control plane as objects of a cluster: the YAML of `manifests/`, with typed fields set.
//!
//! [`values`] is what can be set, [`objects`] the manifests as types and what is put into them, [`authority`] the roots
//! of trust and their issuer, [`present`] what a cluster has already.
//!
//! **Invariant:** no text templates. `manifests/` is what `kubectl apply -f` takes as it is.

pub mod authority;
pub mod objects;
pub mod present;
pub mod values;

use crate::error::Result;
use authority::Authority;
use objects::Object;
use present::Present;
use values::{Crds, Overrides, Values};

/// The label that everything of an installation has.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "gossamer");

/// Our own kinds.
const CRDS: &[&str] = &[include_str!("../../../manifests/crds/authorizationpolicy.yaml")];
/// Gateway API's routes, by the name of their definition.
const GATEWAY_CRDS: &[(&str, &str)] = &[
    ("httproutes.gateway.networking.k8s.io", include_str!("../../../manifests/crds/gateway-api/httproutes.yaml")),
    ("grpcroutes.gateway.networking.k8s.io", include_str!("../../../manifests/crds/gateway-api/grpcroutes.yaml")),
];

/// Everything to apply as YAML, in an order in which one `kubectl apply -f -` on an empty cluster succeeds: definitions,
/// namespace, accounts, configuration, programs, webhooks.
pub fn render(values: &Values, stored: &Overrides, authority: &Authority, present: &Present) -> Result<String> {
    let mut text = String::new();
    for crd in CRDS.iter().copied().chain(gateway_crds(values, present)) {
        push(&mut text, crd);
    }
    for object in objects::render(values, &stored.to_yaml()?, authority)? {
        push(&mut text, &object.to_yaml()?);
    }
    Ok(text)
}

/// Those that are part of this installation.
fn gateway_crds(values: &Values, present: &Present) -> impl Iterator<Item = &'static str> {
    let wanted = |name: &str| match values.gateway_api_crds {
        Crds::Always => true,
        Crds::Never => false,
        Crds::Auto => !present.foreign_crds.contains(name),
    };
    let wanted: Vec<_> = GATEWAY_CRDS.iter().filter(|(name, _)| wanted(name)).map(|(_, text)| *text).collect();
    wanted.into_iter()
}

/// Everything of an installation that lives outside of its namespace, and that namespace; without a look at a cluster.
pub fn outside(namespace: &str) -> Result<Vec<Object>> {
    let mut objects = objects::parse_all(true)?;
    objects.retain(|object| object.metadata().namespace.is_none());
    for object in &mut objects {
        objects::set_namespace(object, namespace);
    }
    Ok(objects)
}

/// The definitions that an installation may have made: ours, and Gateway API's.
pub fn crd_names() -> impl Iterator<Item = &'static str> {
    std::iter::once("authorizationpolicies.policy.gossamer.io").chain(GATEWAY_CRDS.iter().map(|(name, _)| *name))
}

fn push(text: &mut String, document: &str) {
    text.push_str("---\n");
    text.push_str(document.trim_end());
    text.push('\n');
}
