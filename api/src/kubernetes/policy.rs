//! `AuthorizationPolicy` of `policy.gossamer.io/v1alpha1`: who may reach what.
//!
//! Unknown fields are errors here, unlike in the objects of others: a misspelt restriction must not become permission.

use super::{IntOrString, Key, Kind, LabelSelector, Metadata, Name};
use ipnet::IpNet;
use serde::Deserialize;

/// The API group of our own policy objects.
pub const POLICY_GROUP: &str = "policy.gossamer.io";

/// Says who may reach the selected workloads.
///
/// As soon as one `Allow` or `Audit` policy selects a port, only those whom such a policy lists get in. `Deny` takes
/// away from what is allowed, by policies or by default, and always wins.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AuthorizationPolicy {
    /// Name; the namespace is that of the workloads.
    pub metadata: Metadata,
    /// What it says.
    pub spec: AuthorizationPolicySpec,
}

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Workloads by labels; empty: all of the namespace.
    pub selector: LabelSelector,
    /// Workloads by the name of a service that selects them, in addition to `selector`.
    pub service: Option<String>,
    /// Ports of the workload by number or container port name; empty: all.
    pub ports: Vec<IntOrString>,
    /// What happens.
    pub action: Action,
    /// Any of these clients; empty: nobody.
    pub from: Vec<Client>,
    /// Only these HTTP requests; empty: everything, also what is not HTTP.
    pub to: Vec<Request>,
}

impl AuthorizationPolicySpec {
    /// What stands for a policy that can't be read, until a version of it can: it selects what it says, or more where that
    /// can't be read, and lets nobody in. One that denies, or does not tell what it does, denies everybody.
    pub fn closed(spec: &serde_json::Value) -> Self {
        fn read<T: serde::de::DeserializeOwned>(from: &serde_json::Value) -> Option<T> {
            T::deserialize(from).ok()
        }
        let allows = match read::<Action>(&spec["action"]) {
            Some(action) => action != Action::Deny,
            None => spec["action"].is_null(),
        };
        AuthorizationPolicySpec {
            selector: read(&spec["selector"]).unwrap_or_default(),
            service: read(&spec["service"]),
            ports: read(&spec["ports"]).unwrap_or_default(),
            action: if allows { Action::Allow } else { Action::Deny },
            from: if allows { Vec::new() } else { vec![Client::default()] },
            to: Vec::new(),
        }
    }
}

/// What happens to clients that are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Action {
    /// They get in.
    #[default]
    Allow,
    /// They don't, whatever else says so.
    Deny,
    /// They get in, and so does everybody else, but recorded as `audit`.
    Audit,
}

/// A set of clients: any of the given names, from any of the given networks; an empty one is everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Client {
    /// Service accounts.
    pub service_accounts: Vec<ServiceAccountRef>,
    /// All service accounts of these namespaces.
    pub namespaces: Vec<String>,
    /// Identities; `*` is everybody with a certificate, `*.suffix` all below.
    pub identities: Vec<String>,
    /// Only from these networks; empty: from anywhere.
    pub networks: Vec<ClientNetwork>,
}

/// A service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceAccountRef {
    /// Name.
    pub name: String,
    /// Missing: the policy's.
    pub namespace: Option<String>,
}

/// A network without some of its parts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientNetwork {
    /// All of this.
    pub cidr: IpNet,
    /// But not these.
    #[serde(default)]
    pub except: Vec<IpNet>,
}

/// A set of HTTP requests: any of the methods with any of the paths, or what a route matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Empty: all.
    pub methods: Vec<String>,
    /// Whole paths, or `/prefix/*`; empty: all.
    pub paths: Vec<String>,
    /// The requests that a route of the policy's namespace matches. Nothing else may be said beside it.
    pub route: Option<RouteRef>,
}

/// A route, by whose matches requests are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RouteRef {
    /// `HTTPRoute` or `GRPCRoute`.
    pub kind: RouteKind,
    /// Its name.
    pub name: String,
}

/// A kind of route that has matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum RouteKind {
    /// By path, method, headers and query.
    #[default]
    #[serde(rename = "HTTPRoute")]
    Http,
    /// By gRPC service, method and headers.
    #[serde(rename = "GRPCRoute")]
    Grpc,
}

impl RouteRef {
    /// The route, for a policy of this namespace.
    pub fn key(&self, namespace: &str) -> Key {
        let kind = match self.kind {
            RouteKind::Http => Kind::HttpRoute,
            RouteKind::Grpc => Kind::GrpcRoute,
        };
        Key { kind, name: Name::new(namespace, &self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_cannot_be_read_lets_nobody_in() {
        let bad = json!([{ "networks": [{ "cidr": "10.0.0.0/99" }] }]);
        let closed = |spec: serde_json::Value| {
            assert!(AuthorizationPolicySpec::deserialize(&spec).is_err(), "{spec}");
            AuthorizationPolicySpec::closed(&spec)
        };
        let allow = closed(json!({ "service": "web", "ports": [80], "from": bad }));
        assert_eq!((allow.action, allow.service.as_deref(), allow.ports.len()), (Action::Allow, Some("web"), 1));
        assert!(allow.from.is_empty());
        let deny = closed(json!({ "service": "web", "action": "Deny", "from": bad }));
        assert_eq!(
            (deny.action, deny.service.as_deref(), deny.from),
            (Action::Deny, Some("web"), vec![Client::default()])
        );
        let unclear = closed(json!({ "service": "web", "action": "Refuse" }));
        assert_eq!((unclear.action, unclear.from.len()), (Action::Deny, 1));
        // More is selected than may have been meant.
        for unclear in [json!({ "service": 7 }), json!({ "servise": "web" }), json!("web")] {
            let spec = closed(unclear.clone());
            assert_eq!((spec.action, spec.service, spec.from.len()), (Action::Allow, None, 0), "{unclear}");
        }
    }
}
