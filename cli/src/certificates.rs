//! Looks at the certificate that a proxy presents: connects as a stranger and reads it out of the handshake. Nothing is
//! sent or believed.

use crate::error::causes;
use gossamer_api::process::tls::{Anchors, provider};
use gossamer_api::workload::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A handshake with a loaded proxy takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What a workload's certificate says.
#[derive(Clone, Debug)]
pub struct Presented {
    /// DNS names and URIs.
    pub names: Vec<String>,
    /// Hexadecimal.
    pub serial: String,
    /// Who signed it.
    pub issuer: String,
    /// As seconds since the epoch.
    pub not_before: i64,
    /// As seconds since the epoch.
    pub not_after: i64,
    /// Why it does not prove the workload's identity, if it does not.
    pub problem: Option<String>,
}

/// Asks the proxy at the other end of a connection to its inbound port, which should be `identity`.
pub async fn of(
    io: impl AsyncRead + AsyncWrite + Unpin,
    identity: &str,
    anchors: Option<&Anchors>,
) -> Result<Presented, String> {
    let identity: Identity = identity.parse().map_err(|e| format!("{e}"))?;
    let name = ServerName::try_from(identity.as_str().to_string()).map_err(|e| e.to_string())?;
    let seen = Arc::new(Seen::default());
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let shake = async {
        // It ends with an alert, for we have no certificate; what we came for has arrived by then.
        TlsConnector::from(Arc::new(config)).connect(name, io).await.map(drop).map_err(|e| causes(&e))
    };
    let ended = tokio::time::timeout(TIMEOUT, shake).await.unwrap_or_else(|_| Err("no answer to a handshake".into()));
    let chain = seen.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(leaf) = chain.first() else {
        return Err(ended.err().unwrap_or_else(|| "no certificate".into()));
    };
    let mut presented = read(leaf)?;
    if let Some(anchors) = anchors {
        presented.problem = anchors.verify(&chain, &identity, SystemTime::now()).err().map(|e| e.to_string());
    }
    Ok(presented)
}

fn read(der: &[u8]) -> Result<Presented, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|extension| &extension.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::URI(name) => Some(name.to_string()),
        _ => None,
    });
    Ok(Presented {
        names: names.collect(),
        serial: certificate.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect(),
        issuer: certificate.issuer().to_string(),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        problem: None,
    })
}

/// Keeps what it is shown.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<CertificateDer<'static>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(leaf).chain(others).map(|c| c.clone().into_owned()).collect();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
