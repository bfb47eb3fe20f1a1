//! Dial → mutual TLS → transport header: a connection to an endpoint, ready for what is spoken on it.
//!
//! **Invariant:** an endpoint with an identity is reached by mutual TLS with exactly that identity, or not at all.

use super::transport::{Header, Session};
use crate::error::Error;
use crate::net::{self, Stream};
use crate::tls;
use gossamer_api::endpoint::Endpoint;
use gossamer_api::keys::ALPN_TRANSPORT;
use gossamer_api::process::grpc::usable;
use gossamer_api::process::tls::{Credentials, server_name};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::time::timeout;

/// What every connection of one direction has in common.
#[derive(Clone, Debug)]
pub struct Connector {
    /// Mark on sockets; 0: none.
    pub mark: u32,
    /// TCP connect.
    pub timeout: Duration,
    /// Our certificate; `None` while there is none.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
}

impl Connector {
    /// Connects to an endpoint for a session (`None`: bytes).
    pub async fn connect(&self, endpoint: &Endpoint, session: Option<Session>) -> Result<Stream, Error> {
        let Some(expected) = &endpoint.tls else {
            return Ok(self.dial(endpoint.addr).await?.into());
        };
        let credentials = usable(&self.credentials).ok_or(Error::NoIdentity)?;
        let port = endpoint.transport_port.unwrap_or(endpoint.addr.port());
        let addr = SocketAddr::new(endpoint.addr.ip(), port);
        let failed = |error: std::io::Error| handshake_error(addr, expected.server_name.as_str(), &error);
        let name = server_name(&expected.server_name).map_err(|error| failed(std::io::Error::other(error)))?;
        let config = credentials.client_config(&[ALPN_TRANSPORT]);
        let io = self.dial(addr).await?;
        let connect = tls::connect(config, name, io, |session| session.alpn_protocol() == Some(ALPN_TRANSPORT));
        let (mut io, transport) = connect.await.map_err(failed)?;
        if transport {
            let (name, target) = alternate(endpoint);
            let header = Header { port: target, name, session };
            io.write_all(&header.encode()).await.map_err(|error| Error::Connect(addr, error.kind()))?;
        }
        Ok(io.into())
    }

    async fn dial(&self, addr: SocketAddr) -> Result<tokio::net::TcpStream, Error> {
        match timeout(self.timeout, net::dial(addr, self.mark)).await {
            Ok(Ok(io)) => Ok(io),
            Ok(Err(error)) => Err(Error::Connect(addr, error.kind())),
            Err(_) => Err(Error::Connect(addr, std::io::ErrorKind::TimedOut)),
        }
    }
}

/// The name and port in the header: those of a service behind a gateway, or only the endpoint's own port.
fn alternate(endpoint: &Endpoint) -> (Option<String>, u16) {
    let own = endpoint.addr.port();
    match endpoint.authority_override.as_deref().and_then(|authority| authority.rsplit_once(':')) {
        Some((name, port)) => (Some(name.to_string()), port.parse().unwrap_or(own)),
        None => (None, own),
    }
}

fn handshake_error(addr: SocketAddr, name: &str, error: &std::io::Error) -> Error {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(
            rustls::CertificateError::NotValidForName | rustls::CertificateError::NotValidForNameContext { .. },
        )) => Error::WrongIdentity(addr, name.to_string()),
        Some(tls) => Error::Handshake(addr, tls.to_string().into()),
        None => Error::Handshake(addr, error.kind().to_string().into()),
    }
}
