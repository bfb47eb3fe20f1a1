//! Who: a workload and its identity, in the two spellings that a certificate carries.
//!
//! A workload of this mesh is `SA.NS.serviceaccount.identity.CONTROL-NS.TRUST-DOMAIN` as a DNS-like name (what linkerd2-proxy
//! reads and sends as SNI) and `spiffe://TRUST-DOMAIN/ns/NS/sa/SA` as a SPIFFE ID. Workloads of others, which a control
//! plane may name and a certificate may prove, can have a SPIFFE ID alone.
//!
//! **Invariant:** only [`Identity::spiffe`] makes an identity that is no host name: what is parsed can be sent as SNI and
//! be issued.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Who somebody is: a DNS-like name, in lower case and without a final dot, or a SPIFFE ID. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<str>);

/// Why a text is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid identity {name:?}: {reason}")]
pub struct InvalidIdentity {
    /// The text.
    pub name: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl Identity {
    /// The identity of a service account.
    pub fn service_account(
        account: &str,
        namespace: &str,
        control_namespace: &str,
        trust_domain: &str,
    ) -> Result<Self, InvalidIdentity> {
        format!("{account}.{namespace}.serviceaccount.identity.{control_namespace}.{trust_domain}").parse()
    }

    /// A SPIFFE ID of a workload, `spiffe://TRUST-DOMAIN/PATH`. Source: SPIFFE-ID sections 2.1 to 2.4.
    pub fn spiffe(id: &str) -> Result<Self, InvalidIdentity> {
        let fail = |reason| Err(InvalidIdentity { name: id.chars().take(300).collect(), reason });
        if id.len() > 2048 {
            return fail("a SPIFFE ID has at most 2048 bytes");
        }
        let Some((domain, path)) = id.strip_prefix(SPIFFE).and_then(|rest| rest.split_once('/')) else {
            return fail("a workload's SPIFFE ID is spiffe://TRUST-DOMAIN/PATH");
        };
        let of_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        if domain.is_empty() || domain.len() > 255 || !domain.bytes().all(of_domain) {
            return fail("a trust domain has 1 to 255 lower-case letters, digits, dots, hyphens and underscores");
        }
        let of_path = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        for segment in path.split('/') {
            if matches!(segment, "" | "." | "..") || !segment.bytes().all(of_path) {
                return fail("a path's segments have letters, digits, dots, hyphens and underscores");
            }
        }
        Ok(Identity(id.into()))
    }

    /// True for a SPIFFE ID.
    pub fn is_spiffe(&self) -> bool {
        self.0.starts_with(SPIFFE)
    }

    /// The name or the ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Service account, namespace, control-plane namespace and trust domain, if this is a DNS-like name of that form.
    pub fn parts(&self) -> Option<(&str, &str, &str, &str)> {
        if self.is_spiffe() {
            return None;
        }
        let (head, tail) = self.0.split_once(".serviceaccount.identity.")?;
        // A service account's name may contain dots, a namespace's may not.
        let (account, namespace) = head.rsplit_once('.')?;
        let (control, domain) = tail.split_once('.')?;
        Some((account, namespace, control, domain))
    }

    /// `spiffe://TRUST-DOMAIN/ns/NS/sa/SA`, if this is the identity of a service account.
    pub fn spiffe_id(&self) -> Option<String> {
        let (account, namespace, _, domain) = self.parts()?;
        Some(format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))
    }

    /// True when `pattern` is this name, `*`, or `*.suffix` of it. A SPIFFE ID is below no suffix.
    pub fn matches(&self, pattern: &str) -> bool {
        match pattern.strip_prefix('*') {
            None => self.as_str() == pattern,
            Some("") => true,
            Some(suffix) => {
                suffix.starts_with('.') && self.0.len() > suffix.len() && self.0.ends_with(suffix) && !self.is_spiffe()
            }
        }
    }
}

const SPIFFE: &str = "spiffe://";

/// Of a DNS-like name alone.
impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(name: &str) -> Result<Self, InvalidIdentity> {
        let fail = |reason| Err(InvalidIdentity { name: name.chars().take(300).collect(), reason });
        let trimmed = name.strip_suffix('.').unwrap_or(name);
        if trimmed.is_empty() || trimmed.len() > 253 {
            return fail("a name has 1 to 253 characters");
        }
        for label in trimmed.split('.') {
            if label.is_empty() || label.len() > 63 {
                return fail("a label has 1 to 63 characters");
            }
            if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
                return fail("a label has letters, digits and hyphens");
            }
            if label.starts_with('-') || label.ends_with('-') {
                return fail("a label neither starts nor ends with a hyphen");
            }
        }
        Ok(Identity(trimmed.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which workload a proxy stands beside; sent to the control plane as JSON, as Linkerd's proxies do
/// (`{"ns":"...","pod":"..."}`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Workload {
    /// Namespace.
    #[serde(default)]
    pub ns: String,
    /// Name of the pod, or of the replica on a plain machine.
    #[serde(default)]
    pub pod: String,
    /// Node, for zone-aware balancing.
    #[serde(default, rename = "nodeName", skip_serializing_if = "String::is_empty")]
    pub node_name: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_service_account_has_both_spellings() {
        let id = Identity::service_account("web", "demo", "gossamer", "cluster.local").unwrap();
        assert_eq!(id.as_str(), "web.demo.serviceaccount.identity.gossamer.cluster.local");
        assert_eq!(id.spiffe_id().unwrap(), "spiffe://cluster.local/ns/demo/sa/web");
        assert_eq!(id.parts(), Some(("web", "demo", "gossamer", "cluster.local")));
    }

    #[test]
    fn patterns_match_whole_labels() {
        let id: Identity = "web.demo.serviceaccount.identity.gossamer.cluster.local".parse().unwrap();
        assert!(id.matches("*"));
        assert!(id.matches("*.demo.serviceaccount.identity.gossamer.cluster.local"));
        assert!(!id.matches("*emo.serviceaccount.identity.gossamer.cluster.local"));
        assert!(!id.matches("*.web.demo.serviceaccount.identity.gossamer.cluster.local"));
    }

    #[test]
    fn a_spiffe_id_is_read_as_it_is_written_and_is_no_host_name() {
        let id = Identity::spiffe("spiffe://root.example/ns/demo/sa/web").unwrap();
        assert_eq!(id.to_string(), "spiffe://root.example/ns/demo/sa/web");
        assert!(id.is_spiffe() && id.to_string().parse::<Identity>().is_err());
        assert!(id.matches("*") && id.matches("spiffe://root.example/ns/demo/sa/web"));
        // A path may look like the name of somebody else.
        let sly = Identity::spiffe("spiffe://evil/web.demo.serviceaccount.identity.gossamer.cluster.local").unwrap();
        assert_eq!((sly.parts(), sly.spiffe_id()), (None, None));
        assert!(!sly.matches("*.demo.serviceaccount.identity.gossamer.cluster.local"));
        let long = format!("spiffe://root/{}", "a".repeat(2048));
        for bad in [
            "root/a",
            "http://root/a",
            "SPIFFE://root/a",
            "spiffe://",
            "spiffe://root",
            "spiffe://root/",
            "spiffe:///a",
            "spiffe://Root/a",
            "spiffe://root:80/a",
            "spiffe://user@root/a",
            "spiffe://root/a/",
            "spiffe://root//a",
            "spiffe://root/../a",
            "spiffe://root/./a",
            "spiffe://root/a?b",
            "spiffe://root/a#b",
            "spiffe://root/a%20",
            "spiffe://root/ä",
            &long,
        ] {
            assert!(Identity::spiffe(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        /// Identities come out of certificates and tokens.
        #[test]
        fn any_text_is_an_identity_or_none(text in "(spiffe://)?[a-zA-Z0-9._/:*@%?#é-]{0,80}", other in "\\PC{0,80}") {
            for text in [text, other] {
                if let Ok(id) = text.parse::<Identity>() {
                    prop_assert!(!id.is_spiffe() && id.as_str().parse() == Ok(id.clone()));
                    prop_assert_eq!(id.parts().is_some(), id.spiffe_id().is_some());
                }
                if let Ok(id) = Identity::spiffe(&text) {
                    prop_assert_eq!(id.as_str(), &text);
                    prop_assert!(id.is_spiffe() && id.parts().is_none());
                }
            }
        }
    }

    #[test]
    fn bad_names_say_why() {
        for (name, reason) in
            [("", "1 to 253"), ("a..b", "1 to 63"), ("a b", "letters"), ("-a", "hyphen"), ("ä", "letters")]
        {
            assert!(name.parse::<Identity>().unwrap_err().to_string().contains(reason), "{name}");
        }
    }
}
