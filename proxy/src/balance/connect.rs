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
        let failed = |error: std::io::Error| handshake_error(addr, expected.identity.as_str(), &error);
        let name = server_name(&expected.server_name).map_err(|error| failed(std::io::Error::other(error)))?;
        let config = match expected.identity == expected.server_name {
            true => credentials.client_config(&[ALPN_TRANSPORT]),
            false => credentials.client_config_expecting(&[ALPN_TRANSPORT], &expected.identity),
        };
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

/// The name and port in the header: those of a service behind a gateway, or only the endpoint's own port. As in
/// linkerd2-proxy an authority without a port names none, and an address is no name.
fn alternate(endpoint: &Endpoint) -> (Option<String>, u16) {
    let authority = endpoint.authority_override.as_deref().and_then(|authority| authority.rsplit_once(':'));
    match authority.and_then(|(name, port)| Some((name, port.parse().ok()?))) {
        Some((name, port)) => ((!name.starts_with('[')).then(|| name.to_string()), port),
        None => (None, endpoint.addr.port()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_told_the_name_and_port_behind_it() {
        for (authority, name, port) in [
            (None, None, 4143),
            (Some("web.demo.svc:8080"), Some("web.demo.svc"), 8080),
            (Some("web.demo.svc"), None, 4143),
            (Some("web.demo.svc:99999"), None, 4143),
            (Some("[fd00::1]"), None, 4143),
            (Some("[fd00::1]:8080"), None, 8080),
        ] {
            let mut endpoint = Endpoint::new("10.0.0.1:4143".parse().unwrap());
            endpoint.authority_override = authority.map(str::to_string);
            assert_eq!(alternate(&endpoint), (name.map(str::to_string), port), "{authority:?}");
        }
    }
}
