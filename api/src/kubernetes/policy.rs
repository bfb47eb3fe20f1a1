//! `AuthorizationPolicy` of `policy.gossamer.io/v1alpha1`: who may reach what.
//!
//! Unknown fields are errors here, unlike in the objects of others: a misspelt restriction must not become permission.

use super::{IntOrString, LabelSelector, Metadata};
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

/// A set of HTTP requests: any of the methods with any of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// Empty: all.
    pub methods: Vec<String>,
    /// Whole paths, or `/prefix/*`; empty: all.
    pub paths: Vec<String>,
}
