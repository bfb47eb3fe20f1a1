//! Decides who may use a port or a route. An unknown peer is never allowed, and an empty list allows nobody.
//!
//! As in linkerd2-proxy (`inbound/src/policy`, `server-policy/src/authz.rs`): bytes (opaque, TLS passed through, or
//! detection that found no HTTP) need one of the server's authorizations, once per connection and again when the policy
//! changes. HTTP needs no permission to connect; each request needs one of its route's *or* of the server's (whoever
//! compiles the routes puts the server's behind each route's), and a request that no route matches is answered with 404,
//! allowed by nobody. Where the control plane sent no routes at all, the server's authorizations decide.

use gossamer_api::authorization::{Authentication, Authorization};
use gossamer_api::workload::Identity;
use std::net::IpAddr;

/// What is known about a client when its connection is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is.
    pub ip: IpAddr,
    /// What it proved.
    pub tls: PeerTls,
}

/// What a client proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerTls {
    /// No mesh TLS.
    None,
    /// Mesh TLS without a client certificate.
    Anonymous,
    /// Mesh TLS with a verified certificate.
    Identity(Identity),
}

impl PeerTls {
    /// The verified identity.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            PeerTls::Identity(identity) => Some(identity),
            PeerTls::None | PeerTls::Anonymous => None,
        }
    }
}

/// The index of the first authorization that lets the peer in; `None`: deny.
pub fn authorize(authorizations: &[Authorization], peer: &Peer) -> Option<usize> {
    // A socket that accepts both families shows IPv4 clients as mapped IPv6 addresses.
    let ip = peer.ip.to_canonical();
    authorizations.iter().position(|authorization| {
        authorization.networks.iter().any(|network| network.contains(ip))
            && proves(&authorization.authentication, &peer.tls)
    })
}

fn proves(demanded: &Authentication, tls: &PeerTls) -> bool {
    match (demanded, tls) {
        (Authentication::Unauthenticated, _) => true,
        (Authentication::Tls, PeerTls::Anonymous | PeerTls::Identity(_)) => true,
        (Authentication::Tls, PeerTls::None) => false,
        (Authentication::Identities { names, suffixes }, PeerTls::Identity(identity)) => {
            names.iter().any(|name| is_named(identity, name))
                || suffixes.iter().any(|suffix| is_below(identity, suffix))
        }
        (Authentication::Identities { .. }, PeerTls::None | PeerTls::Anonymous) => false,
    }
}

/// Compares with a DNS-like name or a SPIFFE ID. A workload of the mesh has both.
fn is_named(identity: &Identity, name: &str) -> bool {
    match name.strip_prefix("spiffe://") {
        _ if identity.is_spiffe() => identity.as_str() == name,
        None => identity.as_str().eq_ignore_ascii_case(name.strip_suffix('.').unwrap_or(name)),
        Some(id) => identity.parts().is_some_and(|(account, namespace, _, domain)| {
            id.strip_prefix(domain)
                .and_then(|id| id.strip_prefix("/ns/"))
                .and_then(|id| id.strip_prefix(namespace))
                .and_then(|id| id.strip_prefix("/sa/"))
                == Some(account)
        }),
    }
}

/// True for a name below `.suffix`; the empty suffix is above everything. A SPIFFE ID is below nothing else: its path
/// may end like any name.
fn is_below(identity: &Identity, suffix: &str) -> bool {
    let suffix = suffix.strip_prefix('.').unwrap_or(suffix);
    if suffix.is_empty() {
        return true;
    }
    let (name, suffix) = (identity.as_str().as_bytes(), suffix.as_bytes());
    !identity.is_spiffe()
        && name.len() > suffix.len() + 1
        && name[name.len() - suffix.len() - 1] == b'.'
        && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_api::authorization::Network;
    use gossamer_api::endpoint::Labels;
    use gossamer_api::policy::Meta;
    use proptest::prelude::*;

    const WEB: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";

    fn allow(networks: &[&str], except: &[&str], authentication: Authentication) -> Authorization {
        let except: Vec<_> = except.iter().map(|net| net.parse().unwrap()).collect();
        let networks =
            networks.iter().map(|net| Network { net: net.parse().unwrap(), except: except.clone() }).collect();
        Authorization { meta: Meta::named("test"), networks, authentication, labels: Labels::new() }
    }

    fn identities(names: &[&str], suffixes: &[&str]) -> Authentication {
        Authentication::Identities {
            names: names.iter().map(|n| n.to_string()).collect(),
            suffixes: suffixes.iter().map(|s| s.to_string()).collect(),
        }
    }

    fn peer(ip: &str, tls: PeerTls) -> Peer {
        Peer { ip: ip.parse().unwrap(), tls }
    }

    fn web() -> PeerTls {
        PeerTls::Identity(WEB.parse().unwrap())
    }

    #[test]
    fn a_client_must_be_in_a_network() {
        for (networks, except, ip, expect) in [
            (&["10.0.0.0/8"][..], &[][..], "10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "::ffff:10.1.2.3", true),
            (&["10.0.0.0/8"], &[], "11.1.2.3", false),
            (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.2.3", false),
            (&["10.0.0.0/8", "11.0.0.0/8"], &[], "11.1.2.3", true),
            (&["0.0.0.0/0"], &[], "fd00::1", false),
            (&["::/0"], &[], "fd00::1", true),
            (&[], &[], "10.1.2.3", false),
        ] {
            let list = [allow(networks, except, Authentication::Unauthenticated)];
            assert_eq!(authorize(&list, &peer(ip, PeerTls::None)).is_some(), expect, "{networks:?} {ip}");
        }
    }

    #[test]
    fn a_client_must_prove_what_is_demanded() {
        let spiffe = "spiffe://cluster.local/ns/demo/sa/web";
        for (demanded, none, anonymous, identity) in [
            (Authentication::Unauthenticated, true, true, true),
            (Authentication::Tls, false, true, true),
            (identities(&[], &[]), false, false, false),
            (identities(&[WEB], &[]), false, false, true),
            (identities(&[&format!("{WEB}.")], &[]), false, false, true),
            (identities(&[spiffe], &[]), false, false, true),
            (identities(&["spiffe://cluster.local/ns/demo/sa/we"], &[]), false, false, false),
            (identities(&["spiffe://cluster.local/ns/demo/sa/web2"], &[]), false, false, false),
            (identities(&["other"], &[]), false, false, false),
            (identities(&["*"], &[]), false, false, false),
            (identities(&[""], &[]), false, false, false),
            (identities(&[], &[""]), false, false, true),
            (identities(&[], &[".demo.serviceaccount.identity.gossamer.cluster.local"]), false, false, true),
            (identities(&[], &[".emo.serviceaccount.identity.gossamer.cluster.local"]), false, false, false),
            (identities(&[], &["emo.serviceaccount.identity.gossamer.cluster.local"]), false, false, false),
            (identities(&[], &[&format!(".{WEB}")]), false, false, false),
            (identities(&[], &[WEB]), false, false, false),
        ] {
            let list = [allow(&["0.0.0.0/0"], &[], demanded.clone())];
            for (tls, expect) in [(PeerTls::None, none), (PeerTls::Anonymous, anonymous), (web(), identity)] {
                let got = authorize(&list, &peer("10.0.0.1", tls.clone())).is_some();
                assert_eq!(got, expect, "{demanded:?} {tls:?}");
            }
        }
    }

    #[test]
    fn a_client_with_a_spiffe_id_alone_is_known_by_exactly_that() {
        let vm = PeerTls::Identity(Identity::spiffe("spiffe://root/any/web.demo.svc").unwrap());
        for (demanded, expect) in [
            (Authentication::Tls, true),
            (identities(&["spiffe://root/any/web.demo.svc"], &[]), true),
            (identities(&["spiffe://root/any/web.demo"], &[]), false),
            (identities(&["web.demo.svc"], &[]), false),
            (identities(&[], &[""]), true),
            (identities(&[], &[".svc"]), false),
            (identities(&[], &[".demo.svc"]), false),
        ] {
            let list = [allow(&["0.0.0.0/0"], &[], demanded.clone())];
            assert_eq!(authorize(&list, &peer("10.0.0.1", vm.clone())).is_some(), expect, "{demanded:?}");
        }
    }

    #[test]
    fn the_first_that_allows_is_named() {
        let no = allow(&["10.0.0.0/8"], &[], identities(&["other"], &[]));
        let yes = allow(&["10.0.0.0/8"], &[], Authentication::Unauthenticated);
        let peer = peer("10.0.0.1", web());
        assert_eq!(authorize(&[no.clone(), yes.clone(), yes], &peer), Some(1));
        assert_eq!(authorize(&[no.clone(), no], &peer), None);
    }

    proptest! {
        #[test]
        fn an_empty_list_never_allows(ip: [u8; 16], tls in 0..3) {
            let tls = match tls { 0 => PeerTls::None, 1 => PeerTls::Anonymous, _ => web() };
            prop_assert_eq!(authorize(&[], &Peer { ip: ip.into(), tls }), None);
        }

        #[test]
        fn nobody_without_a_certificate_passes_for_an_identity(name in "[a-z.*]{0,12}", suffix in "[a-z.*]{0,12}", tls: bool) {
            let list = [allow(&["0.0.0.0/0"], &[], identities(&[&name], &[&suffix]))];
            let tls = if tls { PeerTls::Anonymous } else { PeerTls::None };
            prop_assert_eq!(authorize(&list, &peer("10.0.0.1", tls)), None);
        }

        #[test]
        fn a_suffix_admits_only_names_below_it(suffix in "[a-z]{1,3}(\\.[a-z]{1,3}){0,2}", name in "[a-z]{1,3}(\\.[a-z]{1,3}){0,4}") {
            let below = name.ends_with(&format!(".{suffix}"));
            let list = [allow(&["0.0.0.0/0"], &[], identities(&[], &[&format!(".{suffix}")]))];
            let tls = PeerTls::Identity(name.parse().unwrap());
            prop_assert_eq!(authorize(&list, &peer("10.0.0.1", tls)).is_some(), below);
        }
    }
}
