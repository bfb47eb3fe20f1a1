//! Turns public keys into certificates. Pure: no I/O, the clock is an argument.
//!
//! **Invariant:** a leaf carries what is decided here and nothing that the caller asked for but its key: first the DNS
//! name, then exactly one SPIFFE ID, both usages, and an end that is not later than that of any authority above it.

use std::time::{Duration, SystemTime};

use gossamer_api::defaults;
use gossamer_api::process::tls::{self, Anchors, Credentials};
use gossamer_api::workload::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Signs leaves.
pub struct Issuer {
    signer: rcgen::Issuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
    anchors: Anchors,
    not_after: SystemTime,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// When it ends.
    pub not_after: SystemTime,
}

/// Why an authority can't be made or used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IssuerError(String);

impl Issuer {
    /// Checks that the issuer may sign, has not expired, leads to an anchor and belongs to the key: the best proof is
    /// a leaf, which is made and verified. `pem` has the issuer's certificate, then those between it and the root.
    pub fn new(pem: &str, key_pem: &str, anchors: Anchors, now: SystemTime) -> Result<Self, IssuerError> {
        let mut chain = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_CHAIN) {
            let certificate = certificate.map_err(|error| fail(format!("issuer: not valid PEM: {error}")))?;
            // A root in the chain is only weight in each handshake.
            if !anchors.certificates().contains(&certificate) {
                chain.push(certificate);
            }
        }
        let Some(issuer) = chain.first().cloned() else {
            return Err(fail("issuer: there is no certificate below the trust anchors".to_owned()));
        };
        // Alone: what openssl writes has parameters before it.
        let key_pem = private_key_pem(key_pem).ok_or_else(|| fail("issuer key: there is none".to_owned()))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| fail(format!("issuer key: {error}")))?;
        let not_after = ends_of(&chain, &anchors)?;
        if now >= not_after {
            return Err(fail(format!("issuer: it (or an authority above it) expired at {}", rfc3339(not_after))));
        }
        let signer = rcgen::Issuer::from_ca_cert_der(&issuer, key).map_err(|error| fail(format!("issuer: {error}")))?;
        let this = Issuer { signer, chain, anchors, not_after };
        this.self_issue(&probe(), now)?;
        Ok(this)
    }

    /// The same from a Secret of kubernetes.io/tls. cert-manager puts the issuer's chain into `tls.crt`; others put what is
    /// above the issuer into `ca.crt` alone.
    pub fn of_secret(
        certificate: &str,
        key: &str,
        ca: &str,
        anchors: Anchors,
        now: SystemTime,
    ) -> Result<Self, IssuerError> {
        let alone = Issuer::new(certificate, key, anchors.clone(), now);
        if alone.is_ok() || ca.is_empty() {
            return alone;
        }
        Issuer::new(&format!("{certificate}\n{ca}"), key, anchors, now).or(alone)
    }

    /// Those of the anchors that this issuer leads to: the others may be dropped.
    pub fn roots(&self, now: SystemTime) -> Vec<CertificateDer<'static>> {
        let probe = probe();
        let Ok(credentials) = self.self_issue(&probe, now) else { return Vec::new() };
        let leads = |root: &&CertificateDer<'static>| {
            let alone = Anchors::from_der(vec![(*root).clone()]);
            alone.is_ok_and(|alone| alone.verify(&credentials.chain, &probe, now).is_ok())
        };
        self.anchors.certificates().iter().filter(leads).cloned().collect()
    }

    /// Signs a certificate of `identity` for `key`.
    pub fn issue(&self, identity: &Identity, key: &impl PublicKeyData, now: SystemTime) -> Result<Leaf, IssuerError> {
        let not_after = (now + defaults::CERTIFICATE_LIFETIME + defaults::CLOCK_SKEW).min(self.not_after);
        if not_after <= now {
            return Err(fail(format!("it expired at {}", rfc3339(self.not_after))));
        }
        // Seconds are all that a certificate holds; cut, so that `valid_until` is not later than it.
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(not_after));
        let spiffe_id = identity.spiffe_id().ok_or_else(|| fail(format!("{identity} is no service account's")))?;
        let invalid = |error: rcgen::Error| fail(format!("{identity}: {error}"));

        let mut params = template(now - defaults::CLOCK_SKEW, not_after);
        params.subject_alt_names = vec![
            SanType::DnsName(identity.as_str().try_into().map_err(invalid)?),
            SanType::URI(spiffe_id.try_into().map_err(invalid)?),
        ];
        // Says CA:FALSE and brings the subject key identifier.
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        // TLS 1.3 only signs; keyEncipherment and keyAgreement are for older key exchanges.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = params.signed_by(key, &self.signer).map_err(invalid)?;
        Ok(Leaf { der: leaf.der().clone(), not_after })
    }

    /// Credentials for a process that holds this issuer, with a new key.
    pub fn self_issue(&self, identity: &Identity, now: SystemTime) -> Result<Credentials, IssuerError> {
        let key = KeyPair::generate().map_err(|error| fail(error.to_string()))?;
        let leaf = self.issue(identity, &key, now)?;
        let mut chain = vec![leaf.der];
        chain.extend(self.chain.iter().cloned());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Credentials::new(identity.clone(), chain, key, self.anchors.clone())
            .map_err(|error| fail(format!("issuer: what it signs does not verify: {error}")))
    }

    /// The issuer's certificate, then those between it and the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// [`tls::fingerprint`] of the issuer's certificate.
    pub fn fingerprint(&self) -> String {
        self.chain.first().map(|issuer| tls::fingerprint(issuer)).unwrap_or_default()
    }

    /// Whom those trust that this issuer serves.
    pub fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// When it can't sign any more.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// An authority's certificate and key as PEM, one after the other, so that one file holds both and neither is ever
/// without the other.
pub struct Authority {
    /// `CERTIFICATE`.
    pub certificate: String,
    /// `PRIVATE KEY`.
    pub key: String,
}

impl Authority {
    /// Both in one text.
    pub fn pem(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }
}

/// A new root.
pub fn new_root(trust_domain: &str, now: SystemTime) -> Result<Authority, IssuerError> {
    let (params, key) = authority(format!("root.{trust_domain}"), now, defaults::ANCHOR_LIFETIME, 1)?;
    let certificate = params.self_signed(&key).map_err(|error| fail(error.to_string()))?;
    Ok(Authority { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A new issuer under `root` (PEM of certificate and key), not longer-lived than it.
pub fn new_issuer(root: &str, trust_domain: &str, now: SystemTime) -> Result<Authority, IssuerError> {
    let wrong = |error: &dyn std::fmt::Display| fail(format!("root: {error}"));
    let certificate = CertificateDer::from_pem_slice(root.as_bytes()).map_err(|error| wrong(&error))?;
    let root_key = KeyPair::from_pem(&private_key_pem(root).ok_or_else(|| wrong(&"there is no private key"))?)
        .map_err(|error| wrong(&error))?;
    let end = tls::not_after_of(&certificate).map_err(|error| wrong(&error))?;
    if now >= end {
        return Err(fail(format!("root: it expired at {}", rfc3339(end))));
    }
    let signer = rcgen::Issuer::from_ca_cert_der(&certificate, root_key).map_err(|error| wrong(&error))?;
    let life = defaults::ISSUER_LIFETIME.min(end.duration_since(now).unwrap_or_default());
    let (mut params, key) = authority(format!("issuer.{trust_domain}"), now, life, 0)?;
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &signer).map_err(|error| fail(error.to_string()))?;
    Ok(Authority { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The private key of a PEM text that also has certificates, as PEM of its own.
pub fn private_key_pem(pem: &str) -> Option<String> {
    let start = pem
        .match_indices("-----BEGIN ")
        .find(|(at, _)| pem[*at..].lines().next().is_some_and(|line| line.trim_end().ends_with("PRIVATE KEY-----")));
    let text = &pem[start?.0..];
    let end = text.find("-----END ")?;
    let line = text[end..].find('\n').unwrap_or(text.len() - end);
    Some(format!("{}\n", &text[..end + line]))
}

/// Nobody's.
fn probe() -> Identity {
    "probe.probe.serviceaccount.identity.probe.probe".parse().expect("a valid name")
}

fn authority(
    name: String,
    now: SystemTime,
    life: Duration,
    path_length: u8,
) -> Result<(CertificateParams, KeyPair), IssuerError> {
    let key = KeyPair::generate().map_err(|error| fail(error.to_string()))?;
    let mut params = template(now - defaults::CLOCK_SKEW, now + life);
    params.distinguished_name.push(DnType::OrganizationName, "gossamer");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok((params, key))
}

fn template(not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // A common name has at most 64 characters, an identity 253: the subject stays empty, the names are in the SAN.
    params.distinguished_name = DistinguishedName::new();
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    let mut serial = [0; 16];
    // Fails only where the system has no randomness, when no key can be made either.
    aws_lc_rs::rand::fill(&mut serial).expect("the system has randomness");
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

/// The earliest end of the chain and of the anchor that it leads to (of several with that name, the latest).
fn ends_of(chain: &[CertificateDer<'static>], anchors: &Anchors) -> Result<SystemTime, IssuerError> {
    let unreadable = |error: &dyn std::fmt::Display| fail(format!("issuer: {error}"));
    let mut end: Option<SystemTime> = None;
    let mut top = None;
    for certificate in chain {
        let own = tls::not_after_of(certificate).map_err(|error| unreadable(&error))?;
        end = Some(end.map_or(own, |end| end.min(own)));
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| unreadable(&error))?;
        if !parsed.is_ca() {
            return Err(fail(format!("issuer: {} is no certificate authority", parsed.subject())));
        }
        top = Some(parsed);
    }
    let (Some(end), Some(top)) = (end, top) else { return Err(fail("issuer: there is no certificate".to_owned())) };
    let mut root_end = None;
    for anchor in anchors.certificates() {
        let (_, parsed) = X509Certificate::from_der(anchor).map_err(|error| unreadable(&error))?;
        if parsed.subject().as_raw() == top.issuer().as_raw() {
            root_end = root_end.max(tls::not_after_of(anchor).ok());
        }
    }
    let root_end = root_end.ok_or_else(|| {
        fail(format!("issuer: {} is signed by {}, which is no trust anchor", top.subject(), top.issuer()))
    })?;
    Ok(end.min(root_end))
}

/// A time as people and logs read it.
pub fn rfc3339(time: SystemTime) -> String {
    time::OffsetDateTime::from(time)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| format!("{time:?}"))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn fail(reason: String) -> IssuerError {
    IssuerError(reason)
}

/// The issuer and what is between it and the root.
const MAX_CHAIN: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use x509_parser::prelude::{GeneralName, ParsedExtension};

    const WEB: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";

    fn web() -> Identity {
        WEB.parse().unwrap()
    }

    fn mesh(now: SystemTime) -> (Issuer, Authority, Authority) {
        let root = new_root("cluster.local", now).unwrap();
        let issuer = new_issuer(&root.pem(), "cluster.local", now).unwrap();
        let anchors = Anchors::from_pem(&root.certificate).unwrap();
        (Issuer::new(&issuer.certificate, &issuer.key, anchors, now).unwrap(), root, issuer)
    }

    #[test]
    fn a_leaf_has_two_names_both_usages_and_a_day() {
        let now = SystemTime::now();
        let (issuer, ..) = mesh(now);
        let key = KeyPair::generate().unwrap();
        let leaf = issuer.issue(&web(), &key, now).unwrap();
        let (_, parsed) = X509Certificate::from_der(&leaf.der).unwrap();
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        let spiffe_id = "spiffe://cluster.local/ns/demo/sa/web";
        assert_eq!(names[..], [GeneralName::DNSName(WEB), GeneralName::URI(spiffe_id)]);
        let usages = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usages.server_auth && usages.client_auth && usages.other.is_empty());
        let usage = parsed.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        assert!(!parsed.is_ca());
        assert!(parsed.raw_serial().len() >= 14);
        let has = |which: fn(&ParsedExtension<'_>) -> bool| {
            parsed.extensions().iter().any(|extension| which(extension.parsed_extension()))
        };
        assert!(has(|e| matches!(e, ParsedExtension::SubjectKeyIdentifier(_))));
        assert!(has(|e| matches!(e, ParsedExtension::AuthorityKeyIdentifier(_))));
        let life = parsed.validity().time_to_expiration().unwrap().whole_seconds();
        assert!((24 * 3600..=24 * 3600 + 20).contains(&life), "{life}");
        // Whoever's clock is as far off as is allowed takes it at once, and to the end of its day.
        let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
        let validity = parsed.validity();
        assert_eq!(unix(now) - validity.not_before.timestamp(), defaults::CLOCK_SKEW.as_secs() as i64);
        assert_eq!(validity.not_after.timestamp() - unix(now), 24 * 3600 + defaults::CLOCK_SKEW.as_secs() as i64);
        assert_eq!(tls::not_after_of(&leaf.der).unwrap(), leaf.not_after);
        let other = issuer.issue(&web(), &key, now).unwrap();
        assert_ne!(other.der, leaf.der, "serial numbers are random");
    }

    #[test]
    fn a_leaf_never_outlives_its_issuer() {
        let now = SystemTime::now();
        let root = new_root("cluster.local", now).unwrap();
        let (mut params, key) = authority("short".to_owned(), now, Duration::from_secs(3600), 0).unwrap();
        params.use_authority_key_identifier_extension = true;
        let signer = rcgen::Issuer::from_ca_cert_pem(&root.certificate, KeyPair::from_pem(&root.key).unwrap()).unwrap();
        let short = params.signed_by(&key, &signer).unwrap();
        let anchors = Anchors::from_pem(&root.certificate).unwrap();
        let issuer = Issuer::new(&short.pem(), &key.serialize_pem(), anchors, now).unwrap();
        let subject = KeyPair::generate().unwrap();
        assert_eq!(issuer.issue(&web(), &subject, now).unwrap().not_after, issuer.not_after());
        let later = now + Duration::from_secs(3601);
        assert!(issuer.issue(&web(), &subject, later).unwrap_err().to_string().contains("expired at 20"));
    }

    #[test]
    fn a_useless_issuer_says_why() {
        let now = SystemTime::now();
        let (_, root, issuer) = mesh(now);
        let (_, other_root, other_issuer) = mesh(now);
        let new = |certificate: &str, key: &str, anchors: &str, now| {
            Issuer::new(certificate, key, Anchors::from_pem(anchors).unwrap(), now)
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        let year = defaults::ISSUER_LIFETIME;
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = mesh(now).0.issue(&web(), &leaf_key, now).unwrap();
        let leaf = tls::to_pem("CERTIFICATE", &leaf.der);
        let cases = [
            (new(&issuer.certificate, &issuer.key, &root.certificate, now + year), "expired at"),
            (new(&issuer.certificate, &other_issuer.key, &root.certificate, now), "does not verify"),
            (new(&issuer.certificate, &issuer.key, &other_root.certificate, now), "does not verify"),
            (new(&root.certificate, &root.key, &root.certificate, now), "no certificate below the trust anchors"),
            (new("", &issuer.key, &root.certificate, now), "no certificate"),
            (new(&issuer.certificate, "", &root.certificate, now), "issuer key"),
            (new(&leaf, &leaf_key.serialize_pem(), &root.certificate, now), "no certificate authority"),
        ];
        for (at, (result, reason)) in cases.into_iter().enumerate() {
            let error = result.expect_err("must fail");
            assert!(error.contains(reason), "case {at}: {error} lacks {reason}");
        }
    }

    #[test]
    fn the_key_is_found_among_certificates() {
        let (_, root, _) = mesh(SystemTime::now());
        assert_eq!(private_key_pem(&root.pem()).unwrap().trim(), root.key.trim());
        assert_eq!(private_key_pem(&root.certificate), None);
        assert_eq!(private_key_pem("-----BEGIN PRIVATE KEY-----"), None);
    }

    /// Not our own libraries alone should find a leaf good.
    #[test]
    fn openssl_verifies_a_leaf_for_both_purposes() {
        let now = SystemTime::now();
        let (issuer, root, intermediate) = mesh(now);
        let leaf = issuer.issue(&web(), &KeyPair::generate().unwrap(), now).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let root = file("root.pem", &root.certificate);
        let intermediate = file("issuer.pem", &intermediate.certificate);
        let leaf = file("leaf.pem", &tls::to_pem("CERTIFICATE", &leaf.der));
        for purpose in ["sslserver", "sslclient"] {
            let command = Command::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", purpose, "-verify_hostname", WEB, "-CAfile"])
                .arg(&root)
                .arg("-untrusted")
                .arg(&intermediate)
                .arg(&leaf)
                .output();
            let Ok(output) = command else {
                assert!(std::env::var_os("CI").is_none(), "openssl is not installed");
                return eprintln!("SKIPPED: openssl is not installed");
            };
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(output.status.success() && text.contains("OK"), "{purpose}: {text}");
        }
    }
}
