//! Who this process is on the wire, and whom it believes: anchors, credentials and the TLS configurations made of them.
//!
//! TLS 1.3 only, mutual where there are credentials, post-quantum key exchange first. A configuration is made once per
//! credentials and protocol list, with session stores of its own, so nothing that was trusted under older anchors or an
//! older certificate is resumed.
//!
//! **Invariant:** an expired certificate and a wrong name are never accepted. Resumption skips the verifiers of rustls,
//! so handshakes go through [`accept`] and [`connect`], which look at the expiry again.

use std::io;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, HandshakeKind, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::defaults;
use crate::workload::Identity;

/// The roots that are trusted. Cheap to clone; equal when they trust the same certificates in the same order.
#[derive(Clone)]
pub struct Anchors(Arc<AnchorsInner>);

struct AnchorsInner {
    pem: String,
    certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    client: LazyLock<Arc<ClientConfig>, Box<dyn FnOnce() -> Arc<ClientConfig> + Send>>,
}

/// Why a bundle, a certificate or a key can't be used. The text says which one and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(String);

impl Anchors {
    /// Reads a bundle of certificates in PEM. Text between them is ignored; one that is no authority is refused.
    pub fn from_pem(pem: &str) -> Result<Self, TlsError> {
        if pem.len() > MAX_BUNDLE_BYTES {
            return fail(format!("trust anchors: {} bytes, at most {MAX_BUNDLE_BYTES} are read", pem.len()));
        }
        let mut certificates = Vec::new();
        for (at, certificate) in CertificateDer::pem_slice_iter(pem.as_bytes()).enumerate() {
            let nth = at + 1;
            if nth > MAX_ANCHORS {
                return fail(format!("trust anchors: more than {MAX_ANCHORS} certificates"));
            }
            let certificate =
                certificate.map_err(|error| TlsError(format!("trust anchor {nth} is not valid PEM: {error}")))?;
            if !certificates.contains(&certificate) {
                certificates.push(certificate);
            }
        }
        Self::from_der(certificates)
    }

    /// The same from certificates in DER.
    pub fn from_der(certificates: Vec<CertificateDer<'static>>) -> Result<Self, TlsError> {
        if certificates.is_empty() {
            return fail("trust anchors: there is no certificate".to_owned());
        }
        let mut roots = RootCertStore::empty();
        let mut pem = String::new();
        for (at, der) in certificates.iter().enumerate() {
            let nth = at + 1;
            let certificate = parse(der).map_err(|error| TlsError(format!("trust anchor {nth}: {error}")))?;
            if !certificate.is_ca() {
                return fail(format!("trust anchor {nth} ({}) is no certificate authority", certificate.subject()));
            }
            roots.add(der.clone()).map_err(|error| TlsError(format!("trust anchor {nth}: {error}")))?;
            pem.push_str(&to_pem("CERTIFICATE", der));
        }
        let roots = Arc::new(roots);
        let for_client = roots.clone();
        let client = LazyLock::new(Box::new(move || anonymous_client(for_client)) as Box<dyn FnOnce() -> _ + Send>);
        Ok(Anchors(Arc::new(AnchorsInner { pem, certificates, roots, client })))
    }

    /// The bundle as PEM, without anything but the certificates.
    pub fn pem(&self) -> &str {
        &self.0.pem
    }

    /// The certificates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.0.certificates
    }

    /// Checks that `chain` (leaf first) leads to one of the anchors, is valid at `now` and is the certificate of `name`.
    pub fn verify(&self, chain: &[CertificateDer<'_>], name: &Identity, now: SystemTime) -> Result<(), TlsError> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return fail("there is no certificate".to_owned());
        };
        let name = server_name(name)?;
        let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        verifier(self.0.roots.clone())
            .verify_server_cert(leaf, intermediates, &name, &[], now)
            .map(|_| ())
            .map_err(|error| TlsError(error.to_string()))
    }
}

impl PartialEq for Anchors {
    fn eq(&self, other: &Self) -> bool {
        self.0.certificates == other.0.certificates
    }
}

impl Eq for Anchors {}

impl std::fmt::Debug for Anchors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Anchors({})", self.0.certificates.len())
    }
}

/// A certificate with its key, and the anchors that its owner believes.
pub struct Credentials {
    /// Whose certificate it is.
    pub identity: Identity,
    /// Leaf first, then the intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whom to believe.
    pub anchors: Anchors,
    /// From then on the chain is worth nothing: the earliest end of its certificates.
    pub not_after: SystemTime,
    key: PrivateKeyDer<'static>,
    configs: Mutex<Configs>,
}

#[derive(Default)]
struct Configs {
    client: Vec<(Vec<Vec<u8>>, Arc<ClientConfig>)>,
    server: Vec<(Vec<Vec<u8>>, ClientAuth, Arc<ServerConfig>)>,
}

/// What a server asks of its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A certificate is asked for; a client without one is served and has no identity, a bad one is refused.
    Optional,
    /// No certificate, no connection.
    Required,
}

impl Credentials {
    /// Checks that the chain is `identity`'s, leads to an anchor, is valid now and belongs to the key (DER).
    pub fn new(
        identity: Identity,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        anchors: Anchors,
    ) -> Result<Self, TlsError> {
        if chain.len() > MAX_CHAIN {
            return fail(format!("a chain has at most {MAX_CHAIN} certificates"));
        }
        anchors
            .verify(&chain, &identity, SystemTime::now())
            .map_err(|error| TlsError(format!("certificate of {identity}: {error}")))?;
        Self::unverified(identity, chain, key, anchors)
    }

    /// The same certificate and key under other anchors; fails if it doesn't lead to one of them.
    pub fn with_anchors(&self, anchors: Anchors) -> Result<Self, TlsError> {
        Self::new(self.identity.clone(), self.chain.clone(), self.key.clone_key(), anchors)
    }

    fn unverified(
        identity: Identity,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        anchors: Anchors,
    ) -> Result<Self, TlsError> {
        let mut not_after = None;
        for certificate in &chain {
            let end = not_after_of(certificate)?;
            not_after = Some(not_after.map_or(end, |earliest: SystemTime| earliest.min(end)));
        }
        let not_after = not_after.ok_or_else(|| TlsError("there is no certificate".to_owned()))?;
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), provider())
            .map_err(|error| TlsError(format!("key of {identity}: {error}")))?;
        Ok(Credentials { identity, chain, anchors, not_after, key, configs: Mutex::default() })
    }

    /// [`fingerprint`] of the certificate that signed ours; `None` if it isn't part of the chain (then it is a root).
    pub fn issuer_fingerprint(&self) -> Option<String> {
        self.chain.get(1).map(|issuer| fingerprint(issuer))
    }

    /// True once they are worth nothing.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }

    /// To connect with: presents the certificate; believes a server that leads to an anchor and has the name given to
    /// [`connect`]. `alpn` in order of preference. Made once and kept.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = configs.client.iter().find(|(known, _)| known == alpn) {
            return config.clone();
        }
        let mut config = client_builder(self.anchors.0.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .expect("the key was matched with the certificate when the credentials were made");
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config.resumption = rustls::client::Resumption::in_memory_sessions(CLIENT_SESSIONS);
        // The proxy seals its own records.
        config.enable_secret_extraction = true;
        let config = Arc::new(config);
        if configs.client.len() < MAX_CONFIGS {
            configs.client.push((config.alpn_protocols.clone(), config.clone()));
        }
        config
    }

    /// The same, to believe a server that proves to be `expected`, whatever name [`connect`] asks for. Neither kept nor
    /// with sessions to resume, which are found by the name alone: only few servers are asked for by another name.
    pub fn client_config_expecting(&self, alpn: &[&[u8]], expected: &Identity) -> Arc<ClientConfig> {
        let mut config = (*self.client_config(alpn)).clone();
        config.resumption = rustls::client::Resumption::disabled();
        let verifier = Expecting { anchors: self.anchors.clone(), expected: expected.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::new(config)
    }

    /// To accept with. `alpn` in order of preference; empty: any client, also one that asks for a protocol.
    /// Made once and kept.
    pub fn server_config(&self, alpn: &[&[u8]], auth: ClientAuth) -> Arc<ServerConfig> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, config)) = configs.server.iter().find(|(known, asked, _)| known == alpn && *asked == auth) {
            return config.clone();
        }
        // Without hints: a list of our roots tells strangers about us and costs bytes in each handshake.
        let clients = WebPkiClientVerifier::builder_with_provider(self.anchors.0.roots.clone(), provider().clone())
            .clear_root_hint_subjects();
        let clients = match auth {
            ClientAuth::Optional => clients.allow_unauthenticated(),
            ClientAuth::Required => clients,
        };
        let mut config = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(VERSIONS)
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(clients.build().expect("anchors are never empty"))
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .expect("the key was matched with the certificate when the credentials were made");
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config.session_storage = rustls::server::ServerSessionMemoryCache::new(SERVER_SESSIONS);
        // One per handshake: each resumption brings the next.
        config.send_tls13_tickets = 1;
        // The proxy seals its own records.
        config.enable_secret_extraction = true;
        let config = Arc::new(config);
        if configs.server.len() < MAX_CONFIGS {
            configs.server.push((config.alpn_protocols.clone(), auth, config.clone()));
        }
        config
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the key.
        f.debug_struct("Credentials")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .field("anchors", &self.anchors)
            .finish_non_exhaustive()
    }
}

/// To connect with before there is a certificate: the first question to the identity service. The server is verified
/// as by [`Credentials::client_config`]. ALPN h2.
pub fn anchors_client_config(anchors: &Anchors) -> Arc<ClientConfig> {
    LazyLock::force(&anchors.0.client).clone()
}

/// Accepts TLS on `io` within [`defaults::HANDSHAKE_TIMEOUT`]. The peer's identity is [`peer_identity`] of
/// `stream.get_ref().1.peer_certificates()`. Dropping the future closes the connection.
pub async fn accept<I>(config: Arc<ServerConfig>, io: I) -> io::Result<tokio_rustls::server::TlsStream<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let stream = within(tokio_rustls::TlsAcceptor::from(config).accept(io)).await?;
    check_resumed(stream.get_ref().1)?;
    Ok(stream)
}

/// Connects TLS over `io` to the server that is called `name`, within [`defaults::HANDSHAKE_TIMEOUT`].
/// Whether it must have the certificate of that name, the configuration says. Dropping the future closes the connection.
pub async fn connect<I>(
    config: Arc<ClientConfig>,
    name: &Identity,
    io: I,
) -> io::Result<tokio_rustls::client::TlsStream<I>>
where
    I: AsyncRead + AsyncWrite + Unpin,
{
    let name = server_name(name).map_err(io::Error::other)?;
    let stream = within(tokio_rustls::TlsConnector::from(config).connect(name, io)).await?;
    check_resumed(stream.get_ref().1)?;
    Ok(stream)
}

/// Whose certificate a verified chain is: the first of its names that is an identity. Source: linkerd2-proxy
/// (`meshtls/verifier`).
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Option<Identity> {
    identities(certificates.first()?).into_iter().next()
}

/// All that a certificate says its owner is, DNS-like names and SPIFFE IDs.
fn identities(certificate: &CertificateDer<'_>) -> Vec<Identity> {
    let Ok(leaf) = parse(certificate) else { return Vec::new() };
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let identity = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => name.parse().ok(),
        GeneralName::URI(id) => Identity::spiffe(id).ok(),
        _ => None,
    };
    names.value.general_names.iter().filter_map(identity).collect()
}

/// Believes a server that proves one identity, whatever name it was asked for by.
#[derive(Debug)]
struct Expecting {
    anchors: Anchors,
    expected: Identity,
}

impl ServerCertVerifier for Expecting {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = &self.anchors.0.roots;
        if let Ok(name) = server_name(&self.expected) {
            return verifier(roots.clone()).verify_server_cert(leaf, intermediates, &name, ocsp, now);
        }
        // webpki knows no URIs: the chain is verified by it, the name here.
        let algorithms = provider().signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, algorithms)?;
        match identities(leaf).contains(&self.expected) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::CertificateError::NotValidForName.into()),
        }
    }

    /// Never asked: TLS 1.3 only.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verifier(self.anchors.0.roots.clone()).verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verifier(self.anchors.0.roots.clone()).verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// When a certificate ends.
pub fn not_after_of(certificate: &CertificateDer<'_>) -> Result<SystemTime, TlsError> {
    let end = parse(certificate)?.validity().not_after.timestamp();
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap_or(0)))
}

/// The name that a client puts into SNI and demands of the server's certificate.
pub fn server_name(identity: &Identity) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(identity.as_str().to_owned())
        .map_err(|_| TlsError(format!("{identity} can't be the name of a TLS server")))
}

/// The cryptography of every connection of the mesh.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            // AES-128 first, as Linkerd: the fastest with AES instructions, and strong enough.
            cipher_suites: vec![
                aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
                aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
                aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            // What is recorded today must stay secret when there are quantum computers.
            kx_groups: vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
                aws_lc_rs::kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// SHA-256 of a certificate in lower-case hex: how people, metrics and the identity service name one.
pub fn fingerprint(der: &[u8]) -> String {
    let digest = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, der);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// DER as PEM.
pub fn to_pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for triple in line.chunks(3) {
            let bits = triple.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - triple.len()));
            for at in 0..4 {
                let letter = ALPHABET[(bits >> (18 - 6 * at) & 63) as usize] as char;
                pem.push(if at <= triple.len() { letter } else { '=' });
            }
        }
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn anonymous_client(roots: Arc<RootCertStore>) -> Arc<ClientConfig> {
    let mut config = client_builder(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Asked once in a while; a session would only tie the requests together.
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

fn client_builder(roots: Arc<RootCertStore>) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(VERSIONS)
        .expect("the provider has suites of TLS 1.3")
        .with_webpki_verifier(verifier(roots))
}

fn verifier(roots: Arc<RootCertStore>) -> Arc<WebPkiServerVerifier> {
    WebPkiServerVerifier::builder_with_provider(roots, provider().clone()).build().expect("anchors are never empty")
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(defaults::HANDSHAKE_TIMEOUT, handshake)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake timed out"))?
}

/// For who does the handshake without [`accept`] or [`connect`]: fails when the session was resumed and the peer's
/// certificate has ended since it was verified. Costs nothing after a full handshake.
pub fn check_resumed(session: &rustls::CommonState) -> io::Result<()> {
    match session.handshake_kind() {
        Some(HandshakeKind::Resumed) => {
            check_expiry(session.peer_certificates().unwrap_or_default(), SystemTime::now())
        }
        _ => Ok(()),
    }
}

fn check_expiry(chain: &[CertificateDer<'_>], now: SystemTime) -> io::Result<()> {
    for certificate in chain {
        if now >= not_after_of(certificate).map_err(io::Error::other)? {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the peer's certificate has expired"));
        }
    }
    Ok(())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, TlsError> {
    let (rest, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| TlsError(format!("the certificate can't be read: {error}")))?;
    if !rest.is_empty() {
        return fail("the certificate is followed by other bytes".to_owned());
    }
    Ok(parsed)
}

fn fail<T>(reason: String) -> Result<T, TlsError> {
    Err(TlsError(reason))
}

static VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// A bundle in PEM; one root has about 600 bytes (ECDSA) to 2 KiB (RSA-4096).
const MAX_BUNDLE_BYTES: usize = 256 * 1024;
/// During a rotation there are two; each costs a comparison per handshake.
const MAX_ANCHORS: usize = 64;
/// Leaf and intermediates.
const MAX_CHAIN: usize = 8;
/// Lists of protocols that are asked for in one process: a handful; more are served without being kept.
const MAX_CONFIGS: usize = 16;
/// Servers whose sessions a client keeps.
const CLIENT_SESSIONS: usize = 256;
/// Sessions that a server keeps, about 1.5 KiB each with the client's certificate.
const SERVER_SESSIONS: usize = 512;

#[cfg(test)]
pub(super) mod tests;
