//! The objects that people and clusters write: exactly the fields that the mesh reads.
//!
//! Own structs instead of `k8s-openapi`: some 20 fields of three thousand, which compile in a second and cost a few
//! hundred bytes per object in memory. What is not listed here is ignored, as Kubernetes clients do.
//!
//! **Invariant:** plain data; reading an object never fails for a field that nobody here looks at.

mod core;
mod parse;
mod policy;
mod route;
#[cfg(feature = "kubernetes")]
mod served;
mod status;
pub mod validate;

pub use self::core::*;
pub use parse::*;
pub use policy::*;
pub use route::*;
#[cfg(feature = "kubernetes")]
pub use served::*;
pub use status::*;

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Labels or annotations.
pub type Map = BTreeMap<String, String>;

/// A namespaced name; cheap to clone, and as large as a pointer: an index holds each of them many times.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<NameParts>);

/// What a [`Name`] consists of. The namespace of an object that has none is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NameParts {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Name {
    /// `NAMESPACE/NAME`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Name(Arc::new(NameParts { namespace: namespace.into(), name: name.into() }))
    }
}

impl From<Arc<NameParts>> for Name {
    fn from(parts: Arc<NameParts>) -> Self {
        Name(parts)
    }
}

impl Deref for Name {
    type Target = NameParts;

    fn deref(&self) -> &NameParts {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What every object has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Unique among its kind in its namespace.
    pub name: String,
    /// Empty for objects of the cluster; `default` where a file does not say.
    pub namespace: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: Map,
    /// Annotations.
    #[serde(deserialize_with = "or_default")]
    pub annotations: Map,
    /// RFC 3339; older routes win over younger ones.
    pub creation_timestamp: Option<String>,
    /// Present once it is ending.
    pub deletion_timestamp: Option<String>,
    /// Who made it (a ReplicaSet, a StatefulSet...).
    #[serde(deserialize_with = "or_default")]
    pub owner_references: Vec<Owner>,
    /// Counts the changes of `spec`.
    pub generation: Option<i64>,
    /// Tells it from others that had its name before.
    pub uid: String,
    /// Changes with every change. Empty for most kinds: of use to who writes only.
    pub resource_version: String,
}

/// What is written as `null` is as good as not there: Go's lists are when they are empty.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Metadata {
    /// Its name.
    pub fn key(&self) -> Name {
        Name::new(&self.namespace, &self.name)
    }
}

/// The object that made another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// `ReplicaSet`, `StatefulSet`, `DaemonSet`, `Job`...
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Kind {
    Namespace,
    Node,
    Service,
    Pod,
    EndpointSlice,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    AuthorizationPolicy,
}

impl Kind {
    /// API group (`core` for the core group) and kind, as they are written.
    pub fn group_kind(self) -> (&'static str, &'static str) {
        const GATEWAY: &str = "gateway.networking.k8s.io";
        match self {
            Kind::Namespace => ("core", "Namespace"),
            Kind::Node => ("core", "Node"),
            Kind::Service => ("core", "Service"),
            Kind::Pod => ("core", "Pod"),
            Kind::EndpointSlice => ("discovery.k8s.io", "EndpointSlice"),
            Kind::HttpRoute => (GATEWAY, "HTTPRoute"),
            Kind::GrpcRoute => (GATEWAY, "GRPCRoute"),
            Kind::TcpRoute => (GATEWAY, "TCPRoute"),
            Kind::TlsRoute => (GATEWAY, "TLSRoute"),
            Kind::AuthorizationPolicy => (POLICY_GROUP, "AuthorizationPolicy"),
        }
    }

    /// True for kinds without a namespace.
    pub fn is_cluster_wide(self) -> bool {
        matches!(self, Kind::Namespace | Kind::Node)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.group_kind().1)
    }
}

/// Names one object of the registry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Kind.
    pub kind: Kind,
    /// Namespace and name.
    pub name: Name,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An object of the registry.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Object {
    Namespace(Namespace),
    Node(Node),
    Service(Service),
    Pod(Pod),
    EndpointSlice(EndpointSlice),
    HttpRoute(HttpRoute),
    GrpcRoute(GrpcRoute),
    TcpRoute(TcpRoute),
    TlsRoute(TcpRoute),
    AuthorizationPolicy(AuthorizationPolicy),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::Node(_) => Kind::Node,
            Object::Service(_) => Kind::Service,
            Object::Pod(_) => Kind::Pod,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::HttpRoute(_) => Kind::HttpRoute,
            Object::GrpcRoute(_) => Kind::GrpcRoute,
            Object::TcpRoute(_) => Kind::TcpRoute,
            Object::TlsRoute(_) => Kind::TlsRoute,
            Object::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
        }
    }

    /// What every object has.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Object::Namespace(object) => &object.metadata,
            Object::Node(object) => &object.metadata,
            Object::Service(object) => &object.metadata,
            Object::Pod(object) => &object.metadata,
            Object::EndpointSlice(object) => &object.metadata,
            Object::HttpRoute(object) => &object.metadata,
            Object::GrpcRoute(object) => &object.metadata,
            Object::TcpRoute(object) | Object::TlsRoute(object) => &object.metadata,
            Object::AuthorizationPolicy(object) => &object.metadata,
        }
    }

    /// The same, to be changed.
    pub fn metadata_mut(&mut self) -> &mut Metadata {
        match self {
            Object::Namespace(object) => &mut object.metadata,
            Object::Node(object) => &mut object.metadata,
            Object::Service(object) => &mut object.metadata,
            Object::Pod(object) => &mut object.metadata,
            Object::EndpointSlice(object) => &mut object.metadata,
            Object::HttpRoute(object) => &mut object.metadata,
            Object::GrpcRoute(object) => &mut object.metadata,
            Object::TcpRoute(object) | Object::TlsRoute(object) => &mut object.metadata,
            Object::AuthorizationPolicy(object) => &mut object.metadata,
        }
    }

    /// Its kind and name.
    pub fn key(&self) -> Key {
        Key { kind: self.kind(), name: self.metadata().key() }
    }
}
