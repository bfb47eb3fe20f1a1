//! A server with TLS of its own, which a mesh passes through as it is.

use super::figures::{Figures, PATIENCE};
use super::serve;
use crate::error::{CommandError, Context, Result};
use gossamer_api::process::tls::provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The certificate and the key, for the server; the certificate alone for its clients.
pub(crate) const CERTIFICATE: &str = "DEMO_VAULT_CERTIFICATE";
pub(crate) const KEY: &str = "DEMO_VAULT_KEY";

/// A certificate for `vault` and its key, as PEM.
pub(crate) fn make_certificate() -> Result<(String, String)> {
    let made = rcgen::generate_simple_self_signed(["vault".to_string()]).context("a certificate for vault")?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}

fn from_env(name: &str) -> Result<String> {
    std::env::var(name).map_err(|_| CommandError::failed(format!("{name} is not set")))
}

fn certificate() -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(from_env(CERTIFICATE)?.as_bytes()).context(CERTIFICATE)
}

/// Answers every line with a secret of 32 digits.
pub(crate) async fn server(port: u16, figures: Arc<Figures>) -> Result<()> {
    let key = PrivateKeyDer::from_pem_slice(from_env(KEY)?.as_bytes()).context(KEY)?;
    let config = ServerConfig::builder_with_provider(provider().clone())
        .with_safe_default_protocol_versions()
        .context("TLS")?
        .with_no_client_auth()
        .with_single_cert(vec![certificate()?], key)
        .context("TLS")?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = serve::listen(port).await?;
    let serve_one = move |stream: TcpStream| {
        let (acceptor, figures) = (acceptor.clone(), figures.clone());
        async move {
            let _open = figures.connection();
            let started = Instant::now();
            let exchange = async {
                let mut stream = acceptor.accept(stream).await?;
                let mut question = [0; 64];
                while stream.read(&mut question).await? > 0 {
                    stream.write_all(format!("{:032x}\n", fastrand::u128(..)).as_bytes()).await?;
                    stream.flush().await?;
                }
                stream.shutdown().await
            };
            let result: std::io::Result<()> = exchange.await;
            figures.count(started, result.is_ok());
        }
    };
    serve::connections(listener, serve_one).await;
    Ok(())
}

/// Fetches secrets, one connection each.
#[derive(Clone)]
pub(crate) struct Client(TlsConnector);

impl Client {
    pub(crate) fn from_env() -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate()?).context(CERTIFICATE)?;
        let config = ClientConfig::builder_with_provider(provider().clone())
            .with_safe_default_protocol_versions()
            .context("TLS")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Client(TlsConnector::from(Arc::new(config))))
    }

    pub(crate) async fn secret(&self, server: &str) -> std::io::Result<usize> {
        let exchange = async {
            let tcp = TcpStream::connect(server).await?;
            let name = ServerName::try_from("vault").map_err(std::io::Error::other)?;
            let mut stream = self.0.connect(name, tcp).await?;
            stream.write_all(b"secret\n").await?;
            stream.flush().await?;
            let mut answer = [0; 64];
            let length = stream.read(&mut answer).await?;
            stream.shutdown().await?;
            Ok(length)
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
    }
}
