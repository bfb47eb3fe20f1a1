//! Who may use a port of a workload: policies that select it, else the default, health checks always.
//!
//! The wire knows only permissions, so a `Deny` is compiled into what remains:
//! - networks are cut out of every permission;
//! - identities are taken from permissions that list them; a permission for a whole suffix or for everybody with a
//!   certificate becomes the list of all identities known to this control plane but those. One that asks for nothing
//!   becomes the same list: who must be told apart must show a certificate.
//! - HTTP requests (`to`) become a route without those clients. Such a port takes no connections that are not HTTP.
//!
//! **Invariant:** what can't be expressed is denied.

use super::Index;
use super::routes::Rule;
use super::workloads::{Probe, Workload};
use gossamer_api::authorization::{
    Authentication, Authorization, InboundHttp, InboundProtocol, InboundRoute, InboundRule, Network, Server,
};
use gossamer_api::endpoint::Labels;
use gossamer_api::kubernetes::{Action, AuthorizationPolicy, Client, Key, Name, POLICY_GROUP, Request, RouteRef};
use gossamer_api::policy::{Meta, PathMatch, RequestMatch};
use gossamer_api::workload::Identity;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// Who may reach a port that no policy selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DefaultPolicy {
    /// Everybody.
    #[default]
    AllUnauthenticated,
    /// Everybody with a certificate.
    AllAuthenticated,
    /// Everybody in the cluster's networks.
    ClusterUnauthenticated,
    /// Everybody with a certificate in the cluster's networks.
    ClusterAuthenticated,
    /// Nobody.
    Deny,
    /// Everybody, recorded as `audit`.
    Audit,
}

impl DefaultPolicy {
    /// As in the annotation.
    pub fn as_str(self) -> &'static str {
        match self {
            DefaultPolicy::AllUnauthenticated => "all-unauthenticated",
            DefaultPolicy::AllAuthenticated => "all-authenticated",
            DefaultPolicy::ClusterUnauthenticated => "cluster-unauthenticated",
            DefaultPolicy::ClusterAuthenticated => "cluster-authenticated",
            DefaultPolicy::Deny => "deny",
            DefaultPolicy::Audit => "audit",
        }
    }

    /// The same for clients with an identity alone.
    fn authenticated(self) -> Self {
        match self {
            DefaultPolicy::AllUnauthenticated | DefaultPolicy::Audit => DefaultPolicy::AllAuthenticated,
            DefaultPolicy::ClusterUnauthenticated => DefaultPolicy::ClusterAuthenticated,
            other => other,
        }
    }

    const ALL: [Self; 6] = [
        DefaultPolicy::AllUnauthenticated,
        DefaultPolicy::AllAuthenticated,
        DefaultPolicy::ClusterUnauthenticated,
        DefaultPolicy::ClusterAuthenticated,
        DefaultPolicy::Deny,
        DefaultPolicy::Audit,
    ];
}

impl FromStr for DefaultPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = DefaultPolicy::ALL.into_iter().find(|policy| policy.as_str() == text);
        found.ok_or_else(|| format!("one of {}", DefaultPolicy::ALL.map(DefaultPolicy::as_str).join(", ")))
    }
}

impl fmt::Display for DefaultPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A permission, and the requests that it is for; `None`: everything, also what is not HTTP.
struct Grant {
    authorization: Authorization,
    to: Option<Vec<RequestMatch>>,
}

impl Index {
    /// The policies that select a port of a workload, by name.
    pub fn policies(&self, name: &Name, port: u16) -> Vec<(&Name, &AuthorizationPolicy)> {
        let Some(workload) = self.workloads.get(name) else { return Vec::new() };
        super::in_namespace(&self.policies, &name.namespace)
            .filter_map(|policy| Some((policy, self.policies.get(policy)?)))
            .filter(|(_, policy)| self.selects(policy, name, workload) && selects_port(policy, workload, port))
            .collect()
    }

    /// Who may use a port; `None` for a workload that is not known.
    pub fn server(&self, name: &Name, port: u16) -> Option<Server> {
        let workload = self.workloads.get(name)?;
        let policies = self.policies(name, port);
        let allows = || policies.iter().filter(|(_, policy)| policy.spec.action != Action::Deny);
        let default = self.default_policy(name, workload, port);
        let mut grants = Vec::new();
        for (name, policy) in allows() {
            let to = (!policy.spec.to.is_empty()).then(|| self.requests(name, policy));
            let clients = policy.spec.from.iter().filter_map(|from| self.authorization(name, from));
            grants.extend(clients.map(|authorization| Grant { authorization, to: to.clone() }));
        }
        if allows().next().is_none() {
            grants.extend(self.default_authorization(default).map(|authorization| Grant { authorization, to: None }));
        } else if allows().any(|(_, policy)| policy.spec.action == Action::Audit) {
            grants
                .extend(self.default_authorization(DefaultPolicy::Audit).map(|a| Grant { authorization: a, to: None }));
        }
        let denials: Vec<_> = policies.iter().filter(|(_, policy)| policy.spec.action == Action::Deny).collect();
        for (name, policy) in denials.iter().filter(|(_, policy)| policy.spec.to.is_empty()) {
            grants =
                grants.into_iter().filter_map(|grant| self.deny(grant, &name.namespace, &policy.spec.from)).collect();
        }
        let partial: Vec<_> = denials.into_iter().filter(|(_, policy)| !policy.spec.to.is_empty()).copied().collect();

        let first = allows().next().or(policies.first());
        let meta = first.map_or_else(|| Meta::named(default.as_str()), |(name, _)| policy_meta(name));
        let opaque = self.is_opaque(name, workload, port);
        let all =
            |grants: &[Grant]| grants.iter().filter(|g| g.to.is_none()).map(|g| g.authorization.clone()).collect();
        let routed = !partial.is_empty();
        let routes = if opaque { Vec::new() } else { self.routes(workload, port, &grants, &partial) };
        Some(Server {
            labels: labels(&meta),
            meta,
            protocol: match opaque {
                true => InboundProtocol::Opaque,
                false => {
                    InboundProtocol::Detect { timeout: DETECT_TIMEOUT, http: InboundHttp { routes, rate_limit: None } }
                }
            },
            ips: workload.ips.to_vec(),
            // The server's permissions hold for all of its routes: with a route that someone is denied, they must
            // all be the routes'.
            authorizations: if routed { Vec::new() } else { all(&grants) },
        })
    }

    /// Health checks; what single policies speak of; the rest.
    fn routes(
        &self,
        workload: &Workload,
        port: u16,
        grants: &[Grant],
        denials: &[(&Name, &AuthorizationPolicy)],
    ) -> Vec<InboundRoute> {
        let mut routes = Vec::new();
        let mut probes = workload.probes(port).peekable();
        if probes.peek().is_some() {
            let request = |probe: &Probe| {
                let (path, method) = match probe {
                    Probe::Get(path) => (&**path, "GET"),
                    Probe::Grpc => (GRPC_HEALTH, "POST"),
                };
                let path = Some(PathMatch::Exact(path.into()));
                RequestMatch { path, method: Some(method.into()), ..RequestMatch::default() }
            };
            let authorization = Authorization {
                meta: Meta::named("probe"),
                networks: networks(&self.cluster.probe_networks),
                authentication: Authentication::Unauthenticated,
                labels: labels(&Meta::named("probe")),
            };
            let matches = probes.map(request).collect();
            routes.push(route(Meta::named("probe"), matches, vec![authorization]));
        }
        let denials: Vec<_> =
            denials.iter().map(|(name, policy)| (name, policy, self.requests(name, policy))).collect();
        let denied = denials.iter().flat_map(|(_, _, requests)| requests);
        let allowed = grants.iter().flat_map(|grant| grant.to.iter().flatten());
        let mut parts: Vec<RequestMatch> = Vec::new();
        for part in denied.chain(allowed) {
            if !parts.contains(part) {
                parts.push(part.clone());
            }
        }
        for part in parts {
            let own = |grant: &&Grant| match denials.is_empty() {
                // The server's own permissions are added by the proxy.
                true => grant.to.iter().flatten().any(|to| covers(to, &part)),
                false => grant.to.as_ref().is_none_or(|to| to.iter().any(|to| covers(to, &part))),
            };
            let mut left: Vec<_> =
                grants.iter().filter(own).map(|g| Grant { authorization: g.authorization.clone(), to: None }).collect();
            // A denial counts where it may concern any of these requests.
            for (name, policy, requests) in &denials {
                if requests.iter().any(|to| overlaps(to, &part)) {
                    left = left.into_iter().filter_map(|g| self.deny(g, &name.namespace, &policy.spec.from)).collect();
                }
            }
            let authorizations = left.into_iter().map(|grant| grant.authorization).collect();
            routes.push(route(Meta::named("restricted"), vec![part], authorizations));
        }
        let rest = match denials.is_empty() {
            true => Vec::new(),
            false => grants.iter().filter(|g| g.to.is_none()).map(|g| g.authorization.clone()).collect(),
        };
        routes.push(route(Meta::named("default"), vec![everything()], rest));
        routes
    }

    /// The requests that a policy speaks of, where it has `to`. A route that is not there matches nothing, so nobody gets in
    /// by it; one that denies, or whose matches are not all understood, denies all requests until it is.
    fn requests(&self, name: &Name, policy: &AuthorizationPolicy) -> Vec<RequestMatch> {
        let denies = policy.spec.action == Action::Deny;
        let of_route = |to: &Request, reference: &RouteRef| {
            let known = self.routes.get(&reference.key(&name.namespace));
            let known = known.filter(|_| denies || (to.methods.is_empty() && to.paths.is_empty()));
            // A host is not part of a match: it would be let through, or not, whatever the request says.
            match known.filter(|route| if denies { route.whole } else { route.hosts.is_empty() }) {
                Some(route) => route.rules.iter().flat_map(rule_requests).collect(),
                None if denies => vec![everything()],
                None => Vec::new(),
            }
        };
        let to = policy.spec.to.iter();
        to.flat_map(|to| to.route.as_ref().map_or_else(|| requests(to), |route| of_route(to, route))).collect()
    }

    fn default_policy(&self, name: &Name, workload: &Workload, port: u16) -> DefaultPolicy {
        let namespace = self.namespace(&name.namespace);
        let policy = workload.inbound_policy.or(namespace.and_then(|namespace| namespace.inbound_policy));
        let policy = policy.unwrap_or(self.cluster.inbound_policy);
        let required = namespace.and_then(|namespace| namespace.require_identity.as_ref());
        let required = workload.require_identity.as_ref().or(required).unwrap_or(&self.cluster.require_identity);
        if required.contains(port) { policy.authenticated() } else { policy }
    }

    fn default_authorization(&self, policy: DefaultPolicy) -> Option<Authorization> {
        use DefaultPolicy::{
            AllAuthenticated, AllUnauthenticated, Audit, ClusterAuthenticated, ClusterUnauthenticated,
        };
        let nets = match policy {
            AllUnauthenticated | AllAuthenticated | Audit => anywhere(),
            ClusterUnauthenticated | ClusterAuthenticated => networks(&self.cluster.networks),
            DefaultPolicy::Deny => return None,
        };
        let authentication = match policy {
            AllAuthenticated | ClusterAuthenticated => {
                Authentication::Identities { names: Vec::new(), suffixes: vec![String::new()] }
            }
            _ => Authentication::Unauthenticated,
        };
        let meta = Meta::named(policy.as_str());
        Some(Authorization { labels: labels(&meta), meta, networks: nets, authentication })
    }

    /// The permission for a set of clients; `None` when it can be nobody.
    fn authorization(&self, policy: &Name, from: &Client) -> Option<Authorization> {
        let (names, suffixes) = self.clients(from, &policy.namespace);
        let authentication = if !is_named(from) {
            Authentication::Unauthenticated
        } else if names.is_empty() && suffixes.is_empty() {
            return None;
        } else {
            Authentication::Identities { names, suffixes }
        };
        let networks = match from.networks.as_slice() {
            [] => anywhere(),
            some => some.iter().map(|n| Network { net: n.cidr, except: n.except.clone() }).collect(),
        };
        let meta = policy_meta(policy);
        Some(Authorization { labels: labels(&meta), meta, networks, authentication })
    }

    /// Whole names and suffixes of the identities that are listed.
    fn clients(&self, from: &Client, namespace: &str) -> (Vec<String>, Vec<String>) {
        let (mut names, mut suffixes) = (BTreeSet::new(), BTreeSet::new());
        for account in &from.service_accounts {
            let namespace = account.namespace.as_deref().unwrap_or(namespace);
            names.extend(self.cluster.identity(&account.name, namespace).map(|id| id.to_string()));
        }
        for namespace in &from.namespaces {
            let (control, domain) = (&self.cluster.control_namespace, &self.cluster.trust_domain);
            suffixes.insert(format!(".{namespace}.serviceaccount.identity.{control}.{domain}"));
        }
        for pattern in &from.identities {
            match pattern.strip_prefix('*') {
                Some(suffix) if suffix.is_empty() || suffix.starts_with('.') => suffixes.extend([suffix.to_string()]),
                Some(_) => {}
                None => names.extend(pattern.parse::<Identity>().map(|id| id.to_string())),
            }
        }
        (names.into_iter().collect(), suffixes.into_iter().collect())
    }

    /// What remains of a permission; `None`: nothing.
    fn deny(&self, mut grant: Grant, namespace: &str, from: &[Client]) -> Option<Grant> {
        for client in from {
            let authorization = &mut grant.authorization;
            if !is_named(client) {
                if client.networks.is_empty() {
                    return None;
                }
                cut(&mut authorization.networks, client);
                if authorization.networks.is_empty() {
                    return None;
                }
                continue;
            }
            // Some clients, from some networks: denied from everywhere, because a permission can't say both.
            let (names, suffixes) = self.clients(client, namespace);
            let denied = |identity: &str| {
                names.iter().any(|name| name == identity) || suffixes.iter().any(|suffix| ends_with(identity, suffix))
            };
            let known = |pattern: &dyn Fn(&str) -> bool| -> Vec<String> {
                let all = self.identities.keys().map(Identity::as_str);
                all.filter(|id| pattern(id) && !denied(id)).map(str::to_string).collect()
            };
            let remaining = match &authorization.authentication {
                Authentication::Identities { names, suffixes } => {
                    let mut left: BTreeSet<_> = names.iter().filter(|name| !denied(name)).cloned().collect();
                    left.extend(known(&|id| suffixes.iter().any(|suffix| ends_with(id, suffix))));
                    left.into_iter().collect()
                }
                Authentication::Unauthenticated | Authentication::Tls => known(&|_| true),
            };
            if remaining.is_empty() {
                return None;
            }
            authorization.authentication = Authentication::Identities { names: remaining, suffixes: Vec::new() };
        }
        Some(grant)
    }

    pub(super) fn selects(&self, policy: &AuthorizationPolicy, name: &Name, workload: &Workload) -> bool {
        if !policy.spec.selector.selects(|key| workload.labels.get(key)) {
            return false;
        }
        let Some(service) = &policy.spec.service else { return true };
        let service = Name::new(&policy.metadata.namespace, service);
        self.services_with(name).any(|with| *with == service)
    }
}

/// Says what in a policy has no effect, or more than one may expect.
pub(super) fn check(policy: &AuthorizationPolicy, problems: &mut Vec<String>) {
    for (at, client) in policy.spec.from.iter().enumerate() {
        for pattern in &client.identities {
            let bad = match pattern.strip_prefix('*') {
                Some(suffix) => !suffix.is_empty() && !suffix.starts_with('.'),
                None => pattern.parse::<Identity>().is_err(),
            };
            if bad {
                problems.push(format!("spec.from[{at}].identities: {pattern:?} is no identity and matches nobody"));
            }
        }
        if policy.spec.action == Action::Deny && is_named(client) && !client.networks.is_empty() {
            problems.push(format!("spec.from[{at}]: names with networks are denied from all networks"));
        }
        if policy.spec.action == Action::Deny && client.networks.iter().any(|network| !network.except.is_empty()) {
            problems.push(format!("spec.from[{at}].networks: except has no effect, all of the network is denied"));
        }
    }
    let requests = policy.spec.to.iter().flat_map(|to| &to.paths);
    for path in requests.filter(|path| !path.starts_with('/')) {
        problems.push(format!("spec.to.paths: {path:?} does not begin with / and matches nothing"));
    }
    for (at, to) in policy.spec.to.iter().enumerate() {
        if to.route.is_some() && !(to.methods.is_empty() && to.paths.is_empty()) {
            problems.push(format!(
                "spec.to[{at}].route: methods or paths beside it are not understood; nobody is let in by it"
            ));
        }
    }
    if policy.spec.action == Action::Audit && !policy.spec.to.is_empty() {
        problems.push("spec.to: an Audit policy lets everybody do everything, recorded as audit".into());
    }
}

/// True when a policy speaks of a route's requests.
pub(super) fn names(policy: &AuthorizationPolicy, route: &Key) -> bool {
    let mut routes = policy.spec.to.iter().filter_map(|to| to.route.as_ref());
    routes
        .any(|reference| *reference.name == *route.name.name && reference.key(&route.name.namespace).kind == route.kind)
}

/// True when what others are allowed depends on which identities exist.
pub(super) fn denies_identities(policy: &AuthorizationPolicy) -> bool {
    policy.spec.action == Action::Deny && policy.spec.from.iter().any(is_named)
}

fn is_named(client: &Client) -> bool {
    !(client.service_accounts.is_empty() && client.namespaces.is_empty() && client.identities.is_empty())
}

fn selects_port(policy: &AuthorizationPolicy, workload: &Workload, port: u16) -> bool {
    policy.spec.ports.is_empty() || policy.spec.ports.iter().any(|selected| workload.port(selected) == Some(port))
}

fn ends_with(identity: &str, suffix: &str) -> bool {
    identity.len() > suffix.len() && identity.ends_with(suffix)
}

/// Takes networks out of networks. What lies inside a cut goes whole, what contains it gets an exception.
fn cut(networks: &mut Vec<Network>, client: &Client) {
    for denied in &client.networks {
        // A hole in what is denied would be allowed: an exception has none, so it is denied too.
        networks.retain(|network| !denied.cidr.contains(&network.net));
        for network in networks.iter_mut().filter(|network| network.net.contains(&denied.cidr)) {
            if !network.except.contains(&denied.cidr) {
                network.except.push(denied.cidr);
            }
        }
    }
}

/// Any of the methods with any of the paths.
fn requests(from: &Request) -> Vec<RequestMatch> {
    let paths: Vec<_> = match from.paths.as_slice() {
        [] => vec![PathMatch::Prefix("/".into())],
        some => some.iter().filter(|path| path.starts_with('/')).map(|path| path_match(path)).collect(),
    };
    let methods: Vec<_> = match from.methods.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let pair = |path: &PathMatch| {
        let path = path.clone();
        methods.iter().map(move |method| RequestMatch {
            path: Some(path.clone()),
            method: method.clone(),
            ..RequestMatch::default()
        })
    };
    paths.iter().flat_map(pair).collect()
}

/// What a rule of a route matches; without matches: everything. gRPC methods as the paths that they are, so that they can be
/// compared with other paths.
fn rule_requests(rule: &Rule) -> Vec<RequestMatch> {
    let as_path = |one: &RequestMatch| {
        let path = match one.path.clone() {
            None => PathMatch::Prefix("/".into()),
            Some(PathMatch::Rpc { service, method }) if method.is_empty() => PathMatch::Prefix(format!("/{service}")),
            Some(PathMatch::Rpc { service, method }) if !service.is_empty() => {
                PathMatch::Exact(format!("/{service}/{method}"))
            }
            Some(path) => path,
        };
        RequestMatch { path: Some(path), ..one.clone() }
    };
    if rule.matches.is_empty() { vec![everything()] } else { rule.matches.iter().map(as_path).collect() }
}

fn everything() -> RequestMatch {
    RequestMatch { path: Some(PathMatch::Prefix("/".into())), ..RequestMatch::default() }
}

fn path_match(path: &str) -> PathMatch {
    match path.strip_suffix("/*") {
        Some("") => PathMatch::Prefix("/".into()),
        Some(prefix) => PathMatch::Prefix(prefix.to_string()),
        None => PathMatch::Exact(path.to_string()),
    }
}

/// True when every request of `part` is one of `whole`, as far as that can be told.
fn covers(whole: &RequestMatch, part: &RequestMatch) -> bool {
    let path = match (&whole.path, &part.path) {
        (None, _) => true,
        (Some(PathMatch::Prefix(whole)), _) if whole == "/" => true,
        (Some(PathMatch::Prefix(whole)), Some(PathMatch::Prefix(part) | PathMatch::Exact(part))) => {
            is_below(part, whole)
        }
        (whole, part) => whole == part,
    };
    let conditions = whole.headers.iter().all(|one| part.headers.contains(one))
        && whole.query.iter().all(|one| part.query.contains(one));
    path && conditions && (whole.method.is_none() || whole.method == part.method)
}

/// True when a request may be of both. Headers and queries never tell that it can't.
fn overlaps(one: &RequestMatch, other: &RequestMatch) -> bool {
    let path = match (&one.path, &other.path) {
        (Some(PathMatch::Prefix(a)), Some(PathMatch::Prefix(b))) => is_below(a, b) || is_below(b, a),
        (Some(PathMatch::Prefix(whole)), Some(PathMatch::Exact(part)))
        | (Some(PathMatch::Exact(part)), Some(PathMatch::Prefix(whole))) => is_below(part, whole),
        (Some(PathMatch::Exact(a)), Some(PathMatch::Exact(b))) => a == b,
        // Whatever path, an expression, a gRPC method.
        _ => true,
    };
    path && (one.method.is_none() || other.method.is_none() || one.method == other.method)
}

fn is_below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn route(meta: Meta, matches: Vec<RequestMatch>, authorizations: Vec<Authorization>) -> InboundRoute {
    let rules = vec![InboundRule { matches, filters: Vec::new() }];
    InboundRoute { meta, hosts: Vec::new(), authorizations, rules, grpc: false }
}

fn policy_meta(name: &Name) -> Meta {
    Meta::Resource {
        group: POLICY_GROUP.into(),
        // Lower case, as Linkerd's labels have it.
        kind: "authorizationpolicy".into(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        section: String::new(),
        port: 0,
    }
}

/// Linkerd's labels of a server or authorization.
fn labels(meta: &Meta) -> Labels {
    let (group, kind) = match meta {
        Meta::Default(_) => ("", "default"),
        Meta::Resource { group, kind, .. } => (group.as_str(), kind.as_str()),
    };
    let pairs = [("group", group), ("kind", kind), ("name", meta.name())];
    pairs.map(|(key, value)| (key.to_string(), value.to_string())).into()
}

fn networks(from: &[IpNet]) -> Vec<Network> {
    from.iter().map(|net| Network { net: *net, except: Vec::new() }).collect()
}

fn anywhere() -> Vec<Network> {
    networks(&[IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())])
}

/// What the kubelet calls for a gRPC health check (it could not be told another service's path).
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";
/// For proxies that wait; Linkerd's.
const DETECT_TIMEOUT: Duration = Duration::from_secs(10);
