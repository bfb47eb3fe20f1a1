//! The roots of trust and the issuer under them: given, kept from the cluster, or made.
//!
//! **Invariant:** what is in the cluster is never replaced by something new: that would cut every running proxy off. The
//! private key of a root that is made here is thrown away with this process.

use crate::error::{CommandError, Context, Result};
use gossamer_api::process::tls::Anchors;
use gossamer_identity::issuer::{Issuer, new_issuer, new_root};
use std::path::PathBuf;
use std::time::SystemTime;

/// Where to take them from, if people have their own.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Files {
    /// Trust anchors of your own (PEM, one or more)
    #[arg(long, value_name = "FILE", help_heading = "Identity")]
    trust_anchors: Option<PathBuf>,
    /// The issuer's certificate, then those between it and the trust anchor (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["issuer_key", "trust_anchors"], help_heading = "Identity")]
    issuer_certificate: Option<PathBuf>,
    /// The issuer's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "issuer_certificate", help_heading = "Identity")]
    issuer_key: Option<PathBuf>,
}

/// What the mesh trusts, and who signs.
#[derive(Clone, Debug, PartialEq)]
pub struct Authority {
    /// PEM.
    pub anchors: String,
    /// None where others look after the secret.
    pub issuer: Option<IssuerPem>,
}

/// As in the secret `gossamer-identity-issuer`.
#[derive(Clone, PartialEq)]
pub struct IssuerPem {
    /// `tls.crt`.
    pub certificate: String,
    /// `tls.key`.
    pub key: String,
    /// `ca.crt`.
    pub anchors: String,
}

impl std::fmt::Debug for IssuerPem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("IssuerPem").finish_non_exhaustive()
    }
}

/// What a cluster has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Kept {
    /// The trust anchors.
    pub anchors: Option<String>,
    /// The issuer, if it is ours to print.
    pub issuer: Option<IssuerPem>,
    /// There is one that somebody else's controller writes.
    pub issuer_is_anothers: bool,
}

/// Decides: given files first, then what is kept, then new ones.
pub fn decide(files: &Files, kept: Kept, external: bool, trust_domain: &str, now: SystemTime) -> Result<Authority> {
    let read = |path: &Option<PathBuf>| match path {
        Some(path) => std::fs::read_to_string(path).context(path.display()).map(Some),
        None => Ok(None),
    };
    let given = read(&files.trust_anchors)?;
    if let (Some(certificate), Some(key)) = (read(&files.issuer_certificate)?, read(&files.issuer_key)?) {
        let anchors = given.unwrap_or_default();
        return checked(
            Authority { issuer: Some(IssuerPem { certificate, key, anchors: anchors.clone() }), anchors },
            now,
        );
    }
    // Who gave the secret to cert-manager after the installation need not say so again.
    if external || kept.issuer_is_anothers {
        // A bundle that somebody else maintains may still be empty when the mesh is installed.
        let anchors = given.or(kept.anchors).ok_or_else(|| {
            CommandError::usage("externalIssuer=true: there are no trust anchors yet")
                .hint("give the issuer's root with --trust-anchors FILE")
        })?;
        return Ok(Authority { anchors, issuer: None });
    }
    match (given, kept) {
        (None, Kept { anchors: Some(anchors), issuer: Some(issuer), .. }) => {
            checked(Authority { anchors, issuer: Some(issuer) }, now)
        }
        (Some(_), kept) if kept.issuer.is_none() => {
            Err(CommandError::usage("--trust-anchors: there is no issuer under them yet")
                .hint("give one with --issuer-certificate and --issuer-key, or --set externalIssuer=true"))
        }
        // More roots beside an issuer that stays: a step of a rotation.
        (Some(anchors), kept) => checked(Authority { anchors, issuer: kept.issuer }, now),
        (None, Kept { anchors: Some(_), issuer: None, .. }) => {
            Err(CommandError::failed("the cluster has trust anchors, but no issuer under them").hint(
                "give it with --issuer-certificate, --issuer-key and --trust-anchors; or, to start anew and cut off \
                 what runs, delete the ConfigMap gossamer-trust-anchors first",
            ))
        }
        (None, Kept { anchors: None, .. }) => fresh(trust_domain, now),
    }
}

/// A root and an issuer under it.
fn fresh(trust_domain: &str, now: SystemTime) -> Result<Authority> {
    let root = new_root(trust_domain, now).context("a root of trust")?;
    let issuer = new_issuer(&root.pem(), trust_domain, now).context("an issuer")?;
    Ok(Authority {
        issuer: Some(IssuerPem { certificate: issuer.certificate, key: issuer.key, anchors: root.certificate.clone() }),
        anchors: root.certificate,
    })
}

/// Refuses what proxies could not use; an issuer that expired years ago is better found here.
fn checked(authority: Authority, now: SystemTime) -> Result<Authority> {
    let anchors = Anchors::from_pem(&authority.anchors).context("trust anchors")?;
    if let Some(issuer) = &authority.issuer {
        Issuer::new(&issuer.certificate, &issuer.key, anchors, now).map_err(|error| {
            CommandError::failed(format!("the issuer can't be used: {error}"))
                .hint("give another one with --issuer-certificate, --issuer-key and --trust-anchors")
        })?;
    }
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(authority: &Authority) -> Kept {
        Kept { anchors: Some(authority.anchors.clone()), issuer: authority.issuer.clone(), issuer_is_anothers: false }
    }

    #[test]
    fn what_the_cluster_has_is_kept() {
        let now = SystemTime::now();
        let made = decide(&Files::default(), Kept::default(), false, "cluster.local", now).unwrap();
        let again = decide(&Files::default(), kept(&made), false, "cluster.local", now).unwrap();
        assert_eq!(made, again);
        let other = decide(&Files::default(), Kept::default(), false, "cluster.local", now).unwrap();
        assert_ne!(made.anchors, other.anchors);
    }

    #[test]
    fn an_expired_issuer_is_found_before_it_is_applied() {
        let now = SystemTime::now();
        let made = decide(&Files::default(), Kept::default(), false, "cluster.local", now).unwrap();
        let later = now + 2 * gossamer_api::defaults::ISSUER_LIFETIME;
        let error = decide(&Files::default(), kept(&made), false, "cluster.local", later).unwrap_err();
        assert!(error.message.contains("expired"), "{error}");
    }

    #[test]
    fn a_lost_issuer_is_never_replaced_in_silence() {
        let now = SystemTime::now();
        let made = decide(&Files::default(), Kept::default(), false, "cluster.local", now).unwrap();
        let lost = Kept { issuer: None, ..kept(&made) };
        assert!(decide(&Files::default(), lost.clone(), false, "cluster.local", now).is_err());
        // With cert-manager it is not ours to print.
        let external = decide(&Files::default(), lost, true, "cluster.local", now).unwrap();
        assert_eq!((external.anchors, external.issuer), (made.anchors, None));
    }

    #[test]
    fn the_key_is_not_in_debug_output() {
        let made = decide(&Files::default(), Kept::default(), false, "cluster.local", SystemTime::now()).unwrap();
        assert!(!format!("{made:?}").contains("PRIVATE KEY"));
    }
}
