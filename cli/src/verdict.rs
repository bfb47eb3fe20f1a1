//! Whether a client may reach a port of a workload, and which object decides. Pure: the destination service's index says
//! what it would tell the workload's proxy, the proxy's own functions judge by that.

use gossamer_api::authorization::{Authorization, InboundHttp, InboundProtocol, Server};
use gossamer_api::kubernetes::{Action, AuthorizationPolicy, Client, Key, Kind, Name, Request};
use gossamer_api::policy::Meta;
use gossamer_destination::index::Index;
use gossamer_engine::RequestHead;
use gossamer_proxy::policy::authorize::{Peer, authorize};
use gossamer_proxy::policy::route::Router;

/// What a proxy would do, and why.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// This permission lets the client in.
    Allowed(Meta),
    /// These `Deny` policies keep out a client that would be let in without them.
    Denied(Vec<Name>),
    /// No permission is for this client; these policies could have been.
    NotAllowed(Vec<Name>),
}

/// Judges a request, or a connection that carries none.
pub fn judge(index: &Index, name: &Name, port: u16, peer: &Peer, request: Option<&RequestHead>) -> Option<Verdict> {
    let server = index.server(name, port)?;
    if let Some(by) = allowed(&server, peer, request) {
        return Some(Verdict::Allowed(by));
    }
    let policies = index.policies(name, port);
    let (denials, others): (Vec<_>, Vec<_>) =
        policies.iter().partition(|(_, policy)| policy.spec.action == Action::Deny);
    let names =
        |policies: &[&(&Name, &AuthorizationPolicy)]| policies.iter().map(|(name, _)| (*name).clone()).collect();
    let without = |denials: &[&(&Name, &AuthorizationPolicy)]| {
        let mut index = index.clone();
        for (name, _) in denials {
            index.delete(&Key { kind: Kind::AuthorizationPolicy, name: (*name).clone() });
        }
        index.server(name, port).and_then(|server| allowed(&server, peer, request)).is_some()
    };
    if denials.is_empty() || !without(&denials) {
        return Some(Verdict::NotAllowed(names(&others)));
    }
    // One that decides alone, if there is one.
    let alone: Vec<_> = denials.iter().copied().filter(|denial| without(&[*denial])).collect();
    Some(Verdict::Denied(names(if alone.is_empty() { &denials } else { &alone })))
}

/// The permission that a proxy would find.
fn allowed(server: &Server, peer: &Peer, request: Option<&RequestHead>) -> Option<Meta> {
    let by =
        |authorizations: &[Authorization]| authorize(authorizations, peer).map(|at| authorizations[at].meta.clone());
    let (Some(http), Some(head)) = (http(&server.protocol), request) else { return by(&server.authorizations) };
    if http.routes.is_empty() {
        return by(&server.authorizations);
    }
    let routes = http
        .routes
        .iter()
        .map(|route| (route.hosts.as_slice(), route.rules.iter().map(|rule| rule.matches.as_slice())));
    let router = Router::new(routes);
    let route = &http.routes[router.find(head)?.route];
    by(&[&route.authorizations[..], &server.authorizations].concat())
}

/// The routes of a port that may carry requests.
pub fn http(protocol: &InboundProtocol) -> Option<&InboundHttp> {
    match protocol {
        InboundProtocol::Detect { http, .. }
        | InboundProtocol::Http1(http)
        | InboundProtocol::Http2(http)
        | InboundProtocol::Grpc(http) => Some(http),
        InboundProtocol::Opaque | InboundProtocol::Tls => None,
    }
}

/// Who a policy speaks of, as it is written.
pub fn clients(policy: &AuthorizationPolicy) -> Vec<String> {
    let one = |client: &Client| {
        let mut parts = Vec::new();
        for account in &client.service_accounts {
            let namespace = account.namespace.as_deref().unwrap_or(&policy.metadata.namespace);
            parts.push(format!("sa/{}.{namespace}", account.name));
        }
        parts.extend(client.namespaces.iter().map(|namespace| format!("ns/{namespace}")));
        parts.extend(client.identities.iter().cloned());
        let networks = client.networks.iter().map(|network| match network.except.as_slice() {
            [] => network.cidr.to_string(),
            except => {
                let except: Vec<_> = except.iter().map(ToString::to_string).collect();
                format!("{} except {}", network.cidr, except.join(" "))
            }
        });
        let networks: Vec<_> = networks.collect();
        match (parts.is_empty(), networks.is_empty()) {
            (true, true) => "everybody".to_string(),
            (true, false) => format!("from {}", networks.join(", ")),
            (false, true) => parts.join(", "),
            (false, false) => format!("{} from {}", parts.join(", "), networks.join(", ")),
        }
    };
    policy.spec.from.iter().map(one).collect()
}

/// Which requests a policy speaks of; none: everything.
pub fn requests(policy: &AuthorizationPolicy) -> Vec<String> {
    let one = |request: &Request| {
        let (methods, paths) = (request.methods.join(","), request.paths.join(","));
        match (methods.is_empty(), paths.is_empty()) {
            (true, true) => "everything".to_string(),
            (true, false) => paths,
            (false, true) => methods,
            (false, false) => format!("{methods} {paths}"),
        }
    };
    policy.spec.to.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_api::kubernetes::parse_yaml;
    use gossamer_proxy::policy::authorize::PeerTls;

    const OBJECTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: api-1, namespace: shop, labels: {app: api, gossamer.io/control-plane-ns: gossamer}}
spec: {serviceAccountName: api, containers: [{ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /ready, port: 8080}}}]}
status: {phase: Running, podIP: 10.0.0.9}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, gossamer.io/control-plane-ns: gossamer}}
spec: {serviceAccountName: web}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: members, namespace: shop}
spec: {selector: {matchLabels: {app: api}}, from: [{namespaces: [shop]}]}
---
apiVersion: policy.gossamer.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec: {selector: {matchLabels: {app: api}}, action: Deny, from: [{serviceAccounts: [{name: web}]}], to: [{paths: [/admin/*]}]}
";

    fn index() -> Index {
        let mut index = Index::default();
        for (_, object) in parse_yaml(OBJECTS).unwrap() {
            index.apply(object);
        }
        index
    }

    fn peer(account: Option<&str>) -> Peer {
        let identity =
            account.map(|account| format!("{account}.serviceaccount.identity.gossamer.cluster.local").parse().unwrap());
        Peer { ip: "10.0.0.1".parse().unwrap(), tls: identity.map_or(PeerTls::None, PeerTls::Identity) }
    }

    fn verdict(account: Option<&str>, path: &str) -> String {
        let mut head = RequestHead::default();
        head.set_path(path);
        let api = Name::new("shop", "api-1");
        match judge(&index(), &api, 8080, &peer(account), Some(&head)).unwrap() {
            Verdict::Allowed(by) => format!("allowed by {}", by.name()),
            Verdict::Denied(by) => format!("denied by {by:?}"),
            Verdict::NotAllowed(by) => format!("not allowed by {by:?}"),
        }
    }

    #[test]
    fn the_object_that_decides_is_named() {
        assert_eq!(verdict(Some("web.shop"), "/orders"), "allowed by members");
        assert_eq!(verdict(Some("web.shop"), "/admin/x"), "denied by [shop/no-admin]");
        assert_eq!(verdict(Some("job.other"), "/orders"), "not allowed by [shop/members]");
        assert_eq!(verdict(None, "/orders"), "not allowed by [shop/members]");
        assert_eq!(verdict(None, "/ready"), "allowed by probe");
        assert_eq!(judge(&index(), &Name::new("shop", "gone"), 80, &peer(None), None), None);
    }

    #[test]
    fn policies_are_shown_as_they_are_written() {
        let index = index();
        let api = Name::new("shop", "api-1");
        let text = |at: usize| {
            let policy = index.policies(&api, 8080)[at].1.clone();
            (clients(&policy).join("; "), requests(&policy).join("; "))
        };
        assert_eq!(text(0), ("ns/shop".into(), String::new()));
        assert_eq!(text(1), ("sa/web.shop".into(), "/admin/*".into()));
    }
}
