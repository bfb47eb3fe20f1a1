//! Our objects as `kube` knows them: where the API serves them, and an envelope for what comes from there.
//!
//! **Invariant:** one object that can't be read never hides the others. It arrives with its name and the reason.

use super::{
    AuthorizationPolicy, AuthorizationPolicySpec, EndpointSlice, GrpcRoute, HttpRoute, Key, Kind, Metadata, Name,
    Namespace, Node, Object, Pod, Service, TcpRoute,
};
use k8s_openapi::ClusterResourceScope;
use kube::api::ObjectMeta;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error};
use std::borrow::Cow;
use std::fmt::Debug;

/// A kind of object that the Kubernetes API serves.
pub trait Served: DeserializeOwned + Clone + Debug + Send + Sync + 'static {
    /// Which.
    const KIND: Kind;
    /// As in its path.
    const PLURAL: &'static str;
    /// The versions that are understood, the best first. Which of them is served depends on who installed the CRD.
    const VERSIONS: &'static [&'static str] = &["v1"];
    /// True when it may be absent, and when what is in it was checked by a schema only that may be older than ours.
    const CUSTOM: bool;

    /// Its metadata, to be changed.
    fn metadata_mut(&mut self) -> &mut Metadata;
    /// As an object of the registry.
    fn into_object(self) -> Object;
    /// What stands for one that can't be read and was never known; `None`: nothing does.
    fn closed(_metadata: Metadata, _object: &serde_json::Value) -> Option<Self> {
        None
    }
}

macro_rules! served {
    ($($kind:ident: $type:ty, $plural:literal, $versions:expr, $custom:literal, |$object:ident| $into:expr;)*) => {$(
        impl Served for $type {
            const KIND: Kind = Kind::$kind;
            const PLURAL: &'static str = $plural;
            const VERSIONS: &'static [&'static str] = &$versions;
            const CUSTOM: bool = $custom;

            fn metadata_mut(&mut self) -> &mut Metadata {
                &mut self.metadata
            }

            fn into_object(self) -> Object {
                let $object = self;
                $into
            }
        }
    )*};
}

served! {
    Namespace: Namespace, "namespaces", ["v1"], false, |o| Object::Namespace(o);
    Node: Node, "nodes", ["v1"], false, |o| Object::Node(o);
    Service: Service, "services", ["v1"], false, |o| Object::Service(o);
    Pod: Pod, "pods", ["v1"], false, |o| Object::Pod(o);
    EndpointSlice: EndpointSlice, "endpointslices", ["v1"], false, |o| Object::EndpointSlice(o);
    HttpRoute: HttpRoute, "httproutes", ["v1", "v1beta1"], true, |o| Object::HttpRoute(o);
    GrpcRoute: GrpcRoute, "grpcroutes", ["v1"], true, |o| Object::GrpcRoute(o);
    TcpRoute: TcpRoute, "tcproutes", ["v1", "v1alpha2"], true, |o| Object::TcpRoute(o);
}

impl Served for AuthorizationPolicy {
    const KIND: Kind = Kind::AuthorizationPolicy;
    const PLURAL: &'static str = "authorizationpolicies";
    const VERSIONS: &'static [&'static str] = &["v1alpha1"];
    const CUSTOM: bool = true;

    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.metadata
    }

    fn into_object(self) -> Object {
        Object::AuthorizationPolicy(self)
    }

    fn closed(metadata: Metadata, object: &serde_json::Value) -> Option<Self> {
        Some(AuthorizationPolicy { metadata, spec: AuthorizationPolicySpec::closed(&object["spec"]) })
    }
}

/// A TLSRoute, which reads as a TCPRoute does.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct TlsRoute(pub TcpRoute);

impl Served for TlsRoute {
    const KIND: Kind = Kind::TlsRoute;
    const PLURAL: &'static str = "tlsroutes";
    const VERSIONS: &'static [&'static str] = &["v1", "v1alpha3", "v1alpha2"];
    const CUSTOM: bool = true;

    fn metadata_mut(&mut self) -> &mut Metadata {
        &mut self.0.metadata
    }

    fn into_object(self) -> Object {
        Object::TlsRoute(self.0)
    }
}

/// An object as it comes from the API.
#[derive(Clone, Debug)]
pub struct Watched<T> {
    /// Only what `kube` itself looks at: name, namespace and resource version.
    meta: ObjectMeta,
    /// The object, or why it can't be read.
    pub object: Result<T, Unreadable<T>>,
}

/// An object that can't be read.
#[derive(Clone, Debug)]
pub struct Unreadable<T> {
    /// Why.
    pub reason: String,
    /// What stands for it as long as nothing else is known of it.
    pub closed: Option<T>,
}

impl<T: Served> Watched<T> {
    /// Its kind and name.
    pub fn key(&self) -> Key {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Key { kind: T::KIND, name: Name::new(&text(&self.meta.namespace), &text(&self.meta.name)) }
    }
}

impl<T: Served> From<T> for Watched<T> {
    fn from(mut object: T) -> Self {
        let metadata = object.metadata_mut();
        let version = match T::CUSTOM {
            // Statuses are written to what was read.
            true => metadata.resource_version.clone(),
            false => std::mem::take(&mut metadata.resource_version),
        };
        let meta = meta(metadata, version);
        Watched { meta, object: Ok(object) }
    }
}

fn meta(metadata: &Metadata, version: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(metadata.name.clone()),
        namespace: (!metadata.namespace.is_empty()).then(|| metadata.namespace.clone()),
        resource_version: Some(version),
        ..ObjectMeta::default()
    }
}

impl<'de, T: Served> Deserialize<'de> for Watched<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !T::CUSTOM {
            return T::deserialize(deserializer).map(Watched::from);
        }
        #[derive(Deserialize)]
        struct Head {
            metadata: Metadata,
        }
        let value = serde_json::Value::deserialize(deserializer)?;
        match serde_path_to_error::deserialize::<_, T>(&value) {
            Ok(object) => Ok(Watched::from(object)),
            Err(error) => {
                let Head { metadata } = Head::deserialize(&value).map_err(D::Error::custom)?;
                let meta = meta(&metadata, metadata.resource_version.clone());
                let reason = format!("{}: {}", error.path(), error.inner());
                Ok(Watched { meta, object: Err(Unreadable { reason, closed: T::closed(metadata, &value) }) })
            }
        }
    }
}

impl<T: Served> kube::Resource for Watched<T> {
    /// The version that the API serves.
    type DynamicType = &'static str;
    // Watches are over all namespaces.
    type Scope = ClusterResourceScope;

    fn kind(_: &Self::DynamicType) -> Cow<'_, str> {
        T::KIND.group_kind().1.into()
    }

    fn group(_: &Self::DynamicType) -> Cow<'_, str> {
        match T::KIND.group_kind().0 {
            "core" => "".into(),
            group => group.into(),
        }
    }

    fn version<'a>(version: &'a Self::DynamicType) -> Cow<'a, str> {
        (*version).into()
    }

    fn plural(_: &Self::DynamicType) -> Cow<'_, str> {
        T::PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::ObjectList;

    #[test]
    fn lists_as_the_api_writes_them() {
        // A service without pods has a slice with null for both lists.
        let text = r#"{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"7"},
            "items":[{"metadata":{"name":"web-x","namespace":"demo","resourceVersion":"5","labels":null},
            "addressType":"IPv4","endpoints":null,"ports":null}]}"#;
        let list: ObjectList<Watched<EndpointSlice>> = serde_json::from_str(text).unwrap();
        let slice = &list.items[0];
        assert_eq!(slice.key().to_string(), "EndpointSlice demo/web-x");
        assert_eq!(kube::Resource::meta(slice).resource_version.as_deref(), Some("5"));
        assert_eq!(slice.object.as_ref().unwrap().metadata.resource_version, "", "not kept with the object");
    }

    #[test]
    fn one_bad_object_does_not_hide_the_others() {
        let policy = |name: &str, cidr: &str| {
            serde_json::json!({
                "metadata": {"name": name, "namespace": "demo", "resourceVersion": "5"},
                "spec": {"from": [{"networks": [{"cidr": cidr}]}]},
            })
        };
        let list = serde_json::json!({
            "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "7"},
            "items": [policy("bad", "10.0.0.0/99"), policy("good", "10.0.0.0/8")],
        });
        let list: ObjectList<Watched<AuthorizationPolicy>> = serde_json::from_value(list).unwrap();
        let Unreadable { reason, closed } = list.items[0].object.as_ref().unwrap_err();
        assert_eq!(closed.as_ref().unwrap().metadata.name, "bad");
        assert!(reason.starts_with("spec.from[0].networks[0].cidr: "), "{reason}");
        assert_eq!(list.items[0].key().to_string(), "AuthorizationPolicy demo/bad");
        assert!(list.items[1].object.is_ok());
    }

    #[test]
    fn paths() {
        let path = <Watched<HttpRoute> as kube::Resource>::url_path(&"v1", None);
        assert_eq!(path, "/apis/gateway.networking.k8s.io/v1/httproutes");
        assert_eq!(<Watched<Pod> as kube::Resource>::url_path(&"v1", None), "/api/v1/pods");
    }
}
