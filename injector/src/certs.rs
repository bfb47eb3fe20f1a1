//! The webhooks' serving certificate: made, shared by the replicas through a Secret, renewed in time.
//!
//! The API server believes what `caBundle` of the webhook configurations says. Each certificate has an authority of its
//! own, whose key is forgotten once it has signed; the bundle holds the newest and the one before, so that a renewal is
//! never noticed: a replica first sees to it that the new authority is believed, waits, and only then shows the new
//! certificate.
//!
//! **Invariant:** replicas never fight. Who is second to write the Secret takes what the first has written.

use anyhow::{Context, Result};
use gossamer_api::process::tls;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The Secret's name.
pub const SECRET: &str = "gossamer-injector-tls";

/// A certificate with its key, and who vouches for it, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serving {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The newest authority first.
    pub authorities: String,
}

impl Serving {
    /// Makes a certificate for these names. An earlier one's newest authority stays in the bundle.
    pub fn new(names: &[String], earlier: Option<&Serving>, now: SystemTime) -> Result<Self> {
        let (from, until) = (now - SKEW, now + LIFETIME);
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        authority.distinguished_name.push(DnType::CommonName, "gossamer-injector authority");
        (authority.not_before, authority.not_after) = (from.into(), until.into());
        let authority_key = KeyPair::generate()?;
        let authority_pem = authority.self_signed(&authority_key)?.pem();

        let mut leaf = CertificateParams::new(names)?;
        leaf.distinguished_name.push(DnType::CommonName, names.first().context("a name is needed")?.as_str());
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        (leaf.not_before, leaf.not_after) = (from.into(), until.into());
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, &Issuer::new(authority, authority_key))?.pem();
        let before = earlier.and_then(|earlier| CertificateDer::from_pem_slice(earlier.authorities.as_bytes()).ok());
        let before = before.map(|der| tls::to_pem("CERTIFICATE", &der)).unwrap_or_default();
        Ok(Serving {
            certificate,
            key: key.serialize_pem(),
            authorities: authority_pem.replace("\r\n", "\n") + &before,
        })
    }

    /// Reads it from the Secret; fails with what is missing or broken there.
    pub fn read(secret: &Secret) -> Result<Self> {
        let text = |key: &str| -> Result<String> {
            let data =
                secret.data.as_ref().and_then(|data| data.get(key)).with_context(|| format!("{key} is missing"))?;
            String::from_utf8(data.0.clone()).with_context(|| format!("{key} is no text"))
        };
        let serving = Serving { certificate: text("tls.crt")?, key: text("tls.key")?, authorities: text("ca.crt")? };
        serving.config()?;
        serving.ends()?;
        CertificateDer::from_pem_slice(serving.authorities.as_bytes()).context("ca.crt")?;
        Ok(serving)
    }

    /// The secret that replicas share; `version`: of the one that it replaces.
    pub fn write(&self, namespace: &str, version: Option<String>) -> Secret {
        let data = [("tls.crt", &self.certificate), ("tls.key", &self.key), ("ca.crt", &self.authorities)];
        let labels =
            [("app.kubernetes.io/part-of", "gossamer"), (gossamer_api::keys::CONTROL_PLANE_COMPONENT, "injector")];
        Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.into()),
                namespace: Some(namespace.into()),
                labels: Some(labels.map(|(key, value)| (key.to_string(), value.to_string())).into()),
                resource_version: version,
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".into()),
            data: Some(
                data.map(|(key, text)| (key.to_string(), ByteString(text.clone().into_bytes())))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>(),
            ),
            ..Secret::default()
        }
    }

    /// To serve with: TLS 1.3, HTTP/1.1.
    pub fn config(&self) -> Result<Arc<ServerConfig>> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<_, _>>().context("tls.crt")?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("tls.key")?;
        let mut config = ServerConfig::builder_with_provider(tls::provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// When the certificate ends.
    pub fn ends(&self) -> Result<SystemTime> {
        Ok(tls::not_after_of(&CertificateDer::from_pem_slice(self.certificate.as_bytes()).context("tls.crt")?)?)
    }

    /// True when it is time for the next one.
    pub fn is_due(&self, now: SystemTime) -> bool {
        self.ends().map_or(true, |ends| now + LIFETIME / 3 >= ends)
    }

    /// True when it is a certificate of these names, so that a Secret of other names is replaced.
    fn is_of(&self, names: &[String]) -> bool {
        let Ok(der) = CertificateDer::from_pem_slice(self.certificate.as_bytes()) else { return false };
        let Ok((_, certificate)) = x509_parser::parse_x509_certificate(&der) else { return false };
        let Ok(Some(present)) = certificate.subject_alternative_name() else { return false };
        names.iter().all(|name| {
            present.value.general_names.iter().any(|one| match one {
                x509_parser::extensions::GeneralName::DNSName(dns) => dns == name,
                x509_parser::extensions::GeneralName::IPAddress(bytes) => {
                    name.parse::<std::net::IpAddr>().is_ok_and(|ip| match ip {
                        std::net::IpAddr::V4(ip) => ip.octets() == *bytes,
                        std::net::IpAddr::V6(ip) => ip.octets() == *bytes,
                    })
                }
                _ => false,
            })
        })
    }
}

/// The certificate of the Secret, made or renewed if need be. Several replicas may call this at once.
pub async fn ensure(secrets: &Api<Secret>, namespace: &str, names: &[String], now: SystemTime) -> Result<Serving> {
    for _ in 0..ATTEMPTS {
        let present = secrets.get_opt(SECRET).await.with_context(|| format!("read Secret {namespace}/{SECRET}"))?;
        let readable = present.as_ref().map(Serving::read).and_then(|read| {
            read.map_err(|error| tracing::warn!("Secret {namespace}/{SECRET} is made anew: {error:#}")).ok()
        });
        if let Some(serving) = readable.as_ref().filter(|one| !one.is_due(now) && one.is_of(names)) {
            return Ok(serving.clone());
        }
        let serving = Serving::new(names, readable.as_ref(), now)?;
        let written = match present {
            None => secrets.create(&PostParams::default(), &serving.write(namespace, None)).await,
            // The version makes the write fail where another replica was faster.
            Some(old) => {
                let new = serving.write(namespace, old.metadata.resource_version);
                secrets.replace(SECRET, &PostParams::default(), &new).await
            }
        };
        match written {
            Ok(_) => {
                tracing::info!("made a serving certificate");
                return Ok(serving);
            }
            Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_conflict() => continue,
            Err(error) => return Err(error).with_context(|| format!("write Secret {namespace}/{SECRET}")),
        }
    }
    anyhow::bail!("Secret {namespace}/{SECRET} is written by somebody else all the time")
}

/// A year, as Linkerd's; a third of it is left when it is renewed.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// For clocks that differ.
const SKEW: Duration = Duration::from_secs(3600);
const ATTEMPTS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls_pki_types::{ServerName, UnixTime};

    fn names() -> Vec<String> {
        vec!["gossamer-injector.gossamer.svc".into(), "10.64.0.1".into()]
    }

    fn believed(serving: &Serving, bundle: &str, name: &str) -> bool {
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(authority.unwrap()).unwrap();
        }
        let leaf = CertificateDer::from_pem_slice(serving.certificate.as_bytes()).unwrap();
        let name = ServerName::try_from(name.to_string()).unwrap();
        WebPkiServerVerifier::builder_with_provider(roots.into(), tls::provider().clone())
            .build()
            .unwrap()
            .verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
            .is_ok()
    }

    #[test]
    fn old_and_new_are_believed_while_it_is_renewed() {
        let now = SystemTime::now();
        let first = Serving::new(&names(), None, now).unwrap();
        let second = Serving::new(&names(), Some(&first), now).unwrap();
        let third = Serving::new(&names(), Some(&second), now).unwrap();
        for (serving, bundle, expect) in [
            (&first, &first, true),
            (&first, &second, true),
            (&second, &second, true),
            (&second, &first, false),
            (&first, &third, false),
        ] {
            assert_eq!(believed(serving, &bundle.authorities, "gossamer-injector.gossamer.svc"), expect);
        }
        assert!(believed(&first, &first.authorities, "10.64.0.1"));
        assert!(!believed(&first, &first.authorities, "gossamer-injector.other.svc"));
    }

    #[test]
    fn it_is_renewed_when_a_third_is_left_and_for_other_names() {
        let now = SystemTime::now();
        let serving = Serving::new(&names(), None, now).unwrap();
        assert!(!serving.is_due(now) && serving.is_due(now + LIFETIME * 3 / 4));
        assert!(
            serving.is_of(&names()) && !serving.is_of(&["other.svc".into()]) && !serving.is_of(&["10.0.0.1".into()])
        );
    }

    #[test]
    fn the_secret_reads_back_and_a_broken_one_does_not() {
        let serving = Serving::new(&names(), None, SystemTime::now()).unwrap();
        let mut secret = serving.write("gossamer", None);
        assert_eq!(Serving::read(&secret).unwrap(), serving);
        secret.data.as_mut().unwrap().insert("tls.key".into(), ByteString(b"x".to_vec()));
        assert!(Serving::read(&secret).unwrap_err().to_string().contains("tls.key"));
        secret.data.as_mut().unwrap().remove("ca.crt");
        assert_eq!(Serving::read(&secret).unwrap_err().to_string(), "ca.crt is missing");
    }
}
