//! What controllers say of a route: one entry per parent and controller.

use super::{ParentRef, or_default};
use serde::{Deserialize, Serialize};

/// A route's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct RouteStatus {
    /// One per parent and controller.
    #[serde(deserialize_with = "or_default")]
    pub parents: Vec<RouteParentStatus>,
}

/// What a controller says of a route with regard to one of its parents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteParentStatus {
    /// Exactly as in the route's `spec`.
    pub parent_ref: ParentRef,
    /// Who says so.
    pub controller_name: String,
    /// What holds.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<StatusCondition>,
}

/// Something that holds of an object, or does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusCondition {
    /// `Accepted`, `ResolvedRefs`...
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False`, `Unknown`.
    pub status: String,
    /// In one word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The generation of the object that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` changed last, RFC 3339.
    pub last_transition_time: String,
}
