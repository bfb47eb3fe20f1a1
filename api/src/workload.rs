//! Who: a workload and its identity, in the two spellings that a certificate carries.
//!
//! An identity is `SA.NS.serviceaccount.identity.CONTROL-NS.TRUST-DOMAIN` as a DNS-like name (what linkerd2-proxy
//! reads and sends as SNI) and `spiffe://TRUST-DOMAIN/ns/NS/sa/SA` as a SPIFFE ID.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A DNS-like identity name; cheap to clone. Lower case, without a final dot.
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

    /// The DNS-like name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Service account, namespace, control-plane namespace and trust domain, if the name has that form.
    pub fn parts(&self) -> Option<(&str, &str, &str, &str)> {
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

    /// True when `pattern` is this name, `*`, or `*.suffix` of it.
    pub fn matches(&self, pattern: &str) -> bool {
        match pattern.strip_prefix('*') {
            None => self.as_str() == pattern,
            Some("") => true,
            Some(suffix) => suffix.starts_with('.') && self.0.len() > suffix.len() && self.0.ends_with(suffix),
        }
    }
}

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
    fn bad_names_say_why() {
        for (name, reason) in
            [("", "1 to 253"), ("a..b", "1 to 63"), ("a b", "letters"), ("-a", "hyphen"), ("ä", "letters")]
        {
            assert!(name.parse::<Identity>().unwrap_err().to_string().contains(reason), "{name}");
        }
    }
}
