//! Reads a certificate signing request as an enemy's: nothing but its public key is taken over into a certificate.
//!
//! Pure. **Invariant:** a request that passes asks for exactly one name, the caller's, and was signed by its own key.

use gossamer_api::workload::Identity;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::der_parser::oid::Oid;
use x509_parser::oid_registry::{
    OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};

use crate::refusal::Refusal;

/// The public key of a request (DER) for `identity`'s certificate.
///
/// Keys are ECDSA P-256 (what proxies make) or P-384: every TLS 1.3 peer verifies both, also one limited to FIPS.
pub fn check(der: &[u8], identity: &Identity) -> Result<SubjectPublicKeyInfo, Refusal> {
    if der.is_empty() || der.len() > MAX_CSR_BYTES {
        return Err(Refusal::CsrSize { bytes: der.len(), limit: MAX_CSR_BYTES });
    }
    let (rest, csr) = X509CertificationRequest::from_der(der)
        .map_err(|_| Refusal::CsrMalformed("it is no PKCS #10 request in DER"))?;
    if !rest.is_empty() {
        return Err(Refusal::CsrMalformed("it is followed by other bytes"));
    }
    check_key(&csr)?;
    check_names(&csr, identity)?;
    // Last: the only costly one.
    csr.verify_signature().map_err(|_| Refusal::CsrSignature)?;
    SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .map_err(|_| Refusal::CsrKey("its key can't be read"))
}

fn check_key(csr: &X509CertificationRequest<'_>) -> Result<(), Refusal> {
    let algorithm = &csr.certification_request_info.subject_pki.algorithm;
    if algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(Refusal::CsrKey("only ECDSA keys (P-256, P-384) are signed"));
    }
    let curve: Oid<'_> = algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok())
        .ok_or(Refusal::CsrKey("its key names no curve"))?;
    let signature = match () {
        () if curve == OID_EC_P256 => OID_SIG_ECDSA_WITH_SHA256,
        () if curve == OID_NIST_EC_P384 => OID_SIG_ECDSA_WITH_SHA384,
        () => return Err(Refusal::CsrKey("only the curves P-256 and P-384 are signed")),
    };
    match csr.signature_algorithm.algorithm == signature {
        true => Ok(()),
        false => Err(Refusal::CsrKey("its signature's hash doesn't belong to its curve")),
    }
}

fn check_names(csr: &X509CertificationRequest<'_>, identity: &Identity) -> Result<(), Refusal> {
    let is_callers = |name: &str| name.parse::<Identity>().is_ok_and(|name| name == *identity);
    let info = &csr.certification_request_info;
    // Linkerd's proxy-identity repeats the name as the common name.
    for attribute in info.subject.iter_attributes() {
        let common_name = attribute.attr_type() == &x509_parser::oid_registry::OID_X509_COMMON_NAME;
        if !common_name || !attribute.as_str().is_ok_and(is_callers) {
            return Err(Refusal::CsrName("its subject is not the caller's name"));
        }
    }
    let mut names = 0;
    for attribute in info.attributes() {
        let ParsedCriAttribute::ExtensionRequest(request) = attribute.parsed_attribute() else { continue };
        for extension in &request.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(asked) => {
                    for name in &asked.general_names {
                        match name {
                            GeneralName::DNSName(name) if is_callers(name) => names += 1,
                            _ => return Err(Refusal::CsrName("it asks for a name that is not the caller's")),
                        }
                    }
                }
                ParsedExtension::BasicConstraints(basic) if basic.ca => {
                    return Err(Refusal::CsrName("it asks to be an authority"));
                }
                // Usages and the rest are the issuer's to decide.
                _ => {}
            }
        }
    }
    match names {
        1 => Ok(()),
        0 => Err(Refusal::CsrName("it asks for no DNS name")),
        _ => Err(Refusal::CsrName("it asks for more than one name")),
    }
}

/// A P-384 request with two names of 253 bytes has about 1 KiB.
const MAX_CSR_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, PublicKeyData, SanType};

    use super::*;

    const WEB: &str = "web.demo.serviceaccount.identity.gossamer.cluster.local";

    fn web() -> Identity {
        WEB.parse().unwrap()
    }

    fn csr(key: &KeyPair, change: impl Fn(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::new([WEB.to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        params.serialize_request(key).unwrap().der().to_vec()
    }

    fn name(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    #[test]
    fn accepts_what_proxies_send() {
        let key = KeyPair::generate().unwrap();
        let spki = check(&csr(&key, |_| {}), &web()).unwrap();
        assert_eq!(spki.der_bytes(), key.der_bytes());
        // As Linkerd's proxy-identity: the name twice.
        check(&csr(&key, |p| p.distinguished_name.push(DnType::CommonName, WEB)), &web()).unwrap();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        check(&csr(&key, |_| {}), &web()).unwrap();
    }

    /// From linkerd2-proxy's integration tests (linkerd/app/integration/src/data/foo-ns1).
    #[test]
    fn accepts_a_request_of_linkerd() {
        let der = include_bytes!("testdata/linkerd-foo-ns1.csr.der");
        let foo = "foo.ns1.serviceaccount.identity.linkerd.cluster.local".parse().unwrap();
        check(der, &foo).unwrap();
        assert_eq!(check(der, &web()).unwrap_err().reason(), "csr_name");
    }

    #[test]
    fn refuses_everything_else() {
        let key = KeyPair::generate().unwrap();
        let p256 = |change: &dyn Fn(&mut CertificateParams)| csr(&key, change);
        let mut forged = p256(&|_| {});
        *forged.last_mut().unwrap() ^= 1;
        let key_of = |algorithm| KeyPair::generate_for(algorithm).unwrap();
        let ed25519 = key_of(&rcgen::PKCS_ED25519);
        let cases = [
            (Vec::new(), "csr_size"),
            (vec![0x30; MAX_CSR_BYTES + 1], "csr_size"),
            (b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(), "csr_malformed"),
            ([p256(&|_| {}), vec![0]].concat(), "csr_malformed"),
            (forged, "csr_signature"),
            (csr(&ed25519, |_| {}), "csr_key"),
            (csr(&key_of(&rcgen::PKCS_ECDSA_P521_SHA512), |_| {}), "csr_key"),
            (csr(&key_of(&rcgen::PKCS_RSA_SHA256), |_| {}), "csr_key"),
            (p256(&|p| p.subject_alt_names.clear()), "csr_name"),
            (
                p256(&|p| {
                    p.subject_alt_names = vec![name("other.demo.serviceaccount.identity.gossamer.cluster.local")]
                }),
                "csr_name",
            ),
            (p256(&|p| p.subject_alt_names.push(name("localhost"))), "csr_name"),
            (p256(&|p| p.subject_alt_names.push(name(WEB))), "csr_name"),
            (p256(&|p| p.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()))), "csr_name"),
            (p256(&|p| p.subject_alt_names.push(SanType::URI("spiffe://a/b".try_into().unwrap()))), "csr_name"),
            (p256(&|p| p.subject_alt_names.push(SanType::Rfc822Name("a@b".try_into().unwrap()))), "csr_name"),
            (
                p256(&|p| p.subject_alt_names = vec![name("*.demo.serviceaccount.identity.gossamer.cluster.local")]),
                "csr_name",
            ),
            (p256(&|p| p.distinguished_name.push(DnType::CommonName, "root")), "csr_name"),
            (p256(&|p| p.distinguished_name.push(DnType::OrganizationName, WEB)), "csr_name"),
            (p256(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "csr_name"),
        ];
        for (at, (der, reason)) in cases.into_iter().enumerate() {
            assert_eq!(check(&der, &web()).err().map(|r| r.reason()), Some(reason), "case {at}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(der in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(check(&der, &web()).is_err());
        }

        #[test]
        fn a_changed_byte_never_changes_the_key(at in 0usize..400, change in 1u8..) {
            let key = KeyPair::generate().unwrap();
            let mut der = csr(&key, |_| {});
            let at = at % der.len();
            der[at] ^= change;
            // A few bits of the outer shell mean nothing and are not signed.
            if let Ok(passed) = check(&der, &web()) {
                prop_assert_eq!(passed.der_bytes(), key.der_bytes());
            }
        }
    }
}
