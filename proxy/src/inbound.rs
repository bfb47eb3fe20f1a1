//! The story of a connection TO our workload: mesh TLS or not → for which port → who may → requests, or bytes.
//!
//! **Invariant:** bytes reach the workload only after its port's policy let the client in; without a policy nobody is
//! let in. Mesh TLS is what carries our own name as SNI; any other TLS is the workload's and passes untouched.

use crate::accept::Lasting;
use crate::balance::Wants;
use crate::balance::transport::{Header, Session};
use crate::detect::{Protocol, detect};
use crate::error::Error;
use crate::metrics::Direction;
use crate::net::{self, Stream};
use crate::patience::Patience;
use crate::policy::authorize::{self, Peer, PeerTls};
use crate::record::{ConnectionMetrics, Record};
use crate::request::{Connection, Side, client_name, serve};
use crate::shard::{Declared, PortPolicy, Shard};
use crate::tcp;
use crate::tls::{self, Tls};
use bytes::{Bytes, BytesMut};
use gossamer_api::defaults::{DETECT_BYTES, DISCOVERY_TIMEOUT, HANDSHAKE_TIMEOUT};
use gossamer_api::keys::ALPN_TRANSPORT;
use gossamer_api::process::grpc::usable;
use gossamer_api::process::tls::{ClientAuth, Credentials, peer_identity};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

/// Serves a connection to one of the workload's ports, or to the proxy itself on behalf of one.
pub async fn serve(shard: Rc<Shard>, mut io: TcpStream, client: SocketAddr) -> Lasting {
    let local = io.local_addr().ok()?;
    // Without redirection, or when it is we who were meant: the transport header names the port.
    let original = net::original_destination(&io, client).filter(|addr| *addr != local && !shard.config.is_own(*addr));
    let mut first = BytesMut::new();
    let protocol = match original {
        Some(addr) => match first_bytes(&shard, addr, &mut io, &mut first).await {
            Ok(protocol) => protocol,
            Err(()) => return None,
        },
        None => match timeout(HANDSHAKE_TIMEOUT, whole_hello(&mut io, &mut first)).await {
            Ok(protocol) => protocol,
            Err(_) => return None,
        },
    };
    let ours = shard.config.local_identity.as_ref().map(|identity| identity.as_str());
    match protocol {
        Some(Protocol::Tls(hello)) if hello.sni.is_some() && hello.sni.as_deref() == ours => {
            Box::pin(meshed(shard, io, first, client, original, local)).await
        }
        protocol => match original {
            Some(target) => {
                let peer = Peer { ip: client.ip(), tls: PeerTls::None };
                let session = match protocol {
                    Some(Protocol::Http1) => Spoken::Http1,
                    Some(Protocol::Http2) => Spoken::Http2,
                    Some(_) => Spoken::Bytes,
                    None => Spoken::Nothing,
                };
                spoken(shard, io.into(), first.freeze(), peer, client, target, session).await
            }
            None => {
                super::outbound::refuse(&shard, Direction::Inbound, &io, &Error::Loop);
                None
            }
        },
    }
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spoken {
    Http1,
    Http2,
    Bytes,
    /// The client is silent.
    Nothing,
    /// To be found out inside of TLS.
    Unknown,
}

/// Mesh TLS: handshake, transport header, then what is inside.
async fn meshed(
    shard: Rc<Shard>,
    io: TcpStream,
    first: BytesMut,
    client: SocketAddr,
    original: Option<SocketAddr>,
    local: SocketAddr,
) -> Lasting {
    let Some(credentials) = Box::pin(certificate(&shard)).await else {
        super::outbound::refuse(&shard, Direction::Inbound, &io, &Error::NoIdentity);
        return None;
    };
    let config = credentials.server_config(&[ALPN_TRANSPORT], ClientAuth::Optional);
    let see = |session: &rustls::CommonState| {
        let identity = session.peer_certificates().and_then(peer_identity);
        (identity, session.alpn_protocol() == Some(ALPN_TRANSPORT))
    };
    let (mut io, (identity, transport)) = match Box::pin(tls::accept(config, io, first, see)).await {
        Ok(accepted) => accepted,
        Err(error) => {
            count(&shard, "handshake");
            tracing::info!(%client, %error, "TLS handshake of a client failed");
            return None;
        }
    };
    let proved = identity.map_or(PeerTls::Anonymous, PeerTls::Identity);
    let peer = Peer { ip: client.ip(), tls: proved };
    let mut first = BytesMut::new();
    let (target, spoken_as) = if transport {
        let header = match timeout(HANDSHAKE_TIMEOUT, header(&mut io, &mut first)).await {
            Ok(Ok(header)) => header,
            Ok(Err(reason)) => {
                count(&shard, "bad-request");
                tracing::info!(%client, reason, "connection refused");
                return None;
            }
            Err(_) => return None,
        };
        if header.name.is_some() {
            // A name that is not ours would make us a gateway.
            count(&shard, "no-route");
            return None;
        }
        let spoken_as = match header.session {
            Some(Session::Http1) => Spoken::Http1,
            Some(Session::Http2) => Spoken::Http2,
            None => Spoken::Bytes,
        };
        (SocketAddr::new(original.unwrap_or(local).ip(), header.port), spoken_as)
    } else {
        match original {
            Some(target) => (target, Spoken::Unknown),
            None => {
                count(&shard, "bad-request");
                return None;
            }
        }
    };
    // Nor may others reach the tap API by us, wherever it listens: it sees the requests of everybody.
    let tap = shard.config.tap_listen.iter();
    if shard.config.inbound_listen.iter().chain(tap).any(|own| own.port() == target.port()) {
        count(&shard, "loop");
        return None;
    }
    spoken(shard, io.into(), first.freeze(), peer, client, target, spoken_as).await
}

/// Our certificate. A client that comes while the process has just started waits for it, for a moment.
async fn certificate(shard: &Shard) -> Option<Arc<Credentials>> {
    if let Some(credentials) = usable(&shard.credentials) {
        return Some(credentials);
    }
    let mut published = shard.credentials.clone();
    let wait = async {
        while published.changed().await.is_ok() {
            if let Some(credentials) = usable(&published) {
                return Some(credentials);
            }
        }
        None
    };
    timeout(DISCOVERY_TIMEOUT, wait).await.ok().flatten()
}

fn count(shard: &Shard, reason: &'static str) {
    shard.metrics.tcp_errors(Direction::Inbound).count(reason);
}

async fn header(io: &mut Tls, first: &mut BytesMut) -> Result<Header, &'static str> {
    loop {
        if let Some(header) = Header::decode(first)? {
            return Ok(header);
        }
        first.reserve(2048);
        if io.read_buf(first).await.map_err(|_| "connection broke before its header")? == 0 {
            return Err("connection ended before its header");
        }
    }
}

/// Serves what is spoken to a port, if the port's policy lets the client in.
async fn spoken(
    shard: Rc<Shard>,
    mut io: Stream,
    first: Bytes,
    peer: Peer,
    client: SocketAddr,
    target: SocketAddr,
    mut session: Spoken,
) -> Lasting {
    let port = shard.port(target.port());
    let policy = match port.current() {
        Some(policy) => Ok(policy),
        None => Box::pin(port.policy()).await,
    };
    let mut first = BytesMut::from(first);
    // What is declared to be bytes is not looked at, nor waited for.
    if policy.as_ref().is_ok_and(|policy| carries_bytes(policy.protocol)) {
        session = Spoken::Bytes;
    }
    if session == Spoken::Unknown {
        session = inside(&shard, &mut io, &mut first).await;
    }
    let conn = Rc::new(Connection {
        metrics: ConnectionMetrics::inbound(&shard, policy.as_deref().ok(), &peer, target),
        client,
        peer,
        target,
        side: Side::Inbound(port, shard.local(target)),
        shard,
    });
    io.measure(conn.metrics.tcp().open(), first.len());
    match session {
        // Requests are answered one by one, also those that must be refused.
        Spoken::Http1 => return Some(Box::pin(serve::http1(conn, io, first.freeze()))),
        Spoken::Http2 => return Some(Box::pin(serve::http2(conn, io, first.freeze()))),
        Spoken::Nothing => return Box::pin(silent(conn, policy, io)).await,
        _ => Box::pin(bytes(conn, policy, io, first.freeze())).await,
    }
    None
}

/// TLS that comes here is the workload's own: the mesh's was taken off before.
fn carries_bytes(declared: Declared) -> bool {
    match declared {
        Declared::Opaque | Declared::Tls => true,
        Declared::Unknown | Declared::Http => false,
    }
}

/// Bytes to the workload.
async fn bytes(conn: Rc<Connection>, policy: Result<Rc<PortPolicy>, Error>, mut near: Stream, first: Bytes) {
    let mut record = Record::connection(&conn);
    match dial(&conn, policy, &mut record).await {
        Ok(mut far) => {
            relay(&conn, record, &mut near, &mut far, first, Bytes::new()).await;
        }
        Err(error) => {
            record.failed(&error);
            near.reset_on_close();
        }
    }
}

/// A silent client without TLS: the workload may speak first, or the client late.
async fn silent(conn: Rc<Connection>, policy: Result<Rc<PortPolicy>, Error>, mut near: Stream) -> Lasting {
    let mut record = Record::connection(&conn);
    let mut far = match dial(&conn, policy, &mut record).await {
        Ok(far) => far,
        Err(error) => {
            record.failed(&error);
            near.reset_on_close();
            return None;
        }
    };
    let mut greeting = BytesMut::with_capacity(2048);
    let mut first = BytesMut::with_capacity(2048);
    tokio::select! {
        biased;
        read = near.read_buf(&mut first) => {
            if !matches!(read, Ok(count) if count > 0) {
                return None;
            }
            drop(far);
            record.forget();
            return late(conn, near, first).await;
        }
        read = far.read_buf(&mut greeting) => {
            if matches!(read, Ok(count) if count > 0) {
                conn.shard.learn_speaks_first(conn.target);
            }
        }
    }
    relay(&conn, record, &mut near, &mut far, first.freeze(), greeting.freeze()).await;
    None
}

/// Copies until both sides have ended, or policy no longer lets the client in.
async fn relay(
    conn: &Connection,
    mut record: Record<'_>,
    near: &mut Stream,
    far: &mut Stream,
    first: Bytes,
    greeting: Bytes,
) {
    let Side::Inbound(port, _) = &conn.side else { return };
    let moved = tokio::select! {
        biased;
        moved = tcp::relay(near, far, first, greeting) => Some(moved),
        () = port.revoked(&conn.peer) => None,
    };
    match moved {
        Some(moved) => record.closed(moved),
        None => {
            record.terminated();
            near.reset_on_close();
            far.reset_on_close();
        }
    }
}

/// A client that speaks first after all, late.
async fn late(conn: Rc<Connection>, mut near: Stream, mut first: BytesMut) -> Lasting {
    let shard = conn.shard.clone();
    let Side::Inbound(port, _) = &conn.side else { return None };
    let policy = Box::pin(port.policy()).await;
    if policy.as_ref().is_ok_and(|policy| carries_bytes(policy.protocol)) {
        bytes(conn, policy, near, first.freeze()).await;
        return None;
    }
    match inside(&shard, &mut near, &mut first).await {
        Spoken::Http1 => return Some(Box::pin(serve::http1(conn, near, first.freeze()))),
        Spoken::Http2 => return Some(Box::pin(serve::http2(conn, near, first.freeze()))),
        _ => bytes(conn, policy, near, first.freeze()).await,
    }
    None
}

/// Lets the client in, or not, and connects to the workload.
async fn dial(
    conn: &Connection,
    policy: Result<Rc<PortPolicy>, Error>,
    record: &mut Record<'_>,
) -> Result<Stream, Error> {
    let policy = policy?;
    let by = authorize::authorize(&policy.authorizations, &conn.peer).map(|by| &policy.authorizations[by]);
    record.connection_decided(&policy, by);
    if by.is_none() {
        return Err(Error::Denied { client: client_name(&conn.peer), server: policy.meta.to_string() });
    }
    let Side::Inbound(_, local) = &conn.side else { return Err(Error::Loop) };
    let pick = local.ready(Wants::Connection, &[]).await?;
    record.connecting(local, &pick);
    match pick.pool.bytes().await {
        Ok(far) => {
            pick.connected();
            local.alive();
            record.connected(pick);
            Ok(far)
        }
        Err(error) => {
            local.refused(&pick, &error, tokio::time::Instant::now());
            Err(error)
        }
    }
}

/// Reads a plain connection's first bytes. `Ok(None)`: silent. `Err`: gone.
async fn first_bytes(
    shard: &Shard,
    target: SocketAddr,
    io: &mut TcpStream,
    first: &mut BytesMut,
) -> Result<Option<Protocol>, ()> {
    let opaque = shard.config.opaque_ports.contains(target.port());
    let mut patience = Patience::new(shard.config.detect_patience);
    loop {
        match detect(first) {
            // Mesh TLS is recognized on every port; on an opaque one all else is bytes.
            Some(protocol @ Protocol::Tls(_)) => return Ok(Some(protocol)),
            Some(_) if opaque => return Ok(Some(Protocol::Opaque)),
            Some(protocol) => return Ok(Some(protocol)),
            None if opaque && first.first().is_some_and(|byte| *byte != 0x16) => return Ok(Some(Protocol::Opaque)),
            None => {}
        }
        if first.is_empty() && shard.speaks_first(target) {
            return Ok(None);
        }
        first.reserve(2048);
        match timeout_at(patience.until(first), io.read_buf(first)).await {
            Ok(Ok(0)) if first.is_empty() => return Err(()),
            Ok(Ok(0)) => return Ok(Some(Protocol::Opaque)),
            Ok(Err(_)) => return Err(()),
            Ok(Ok(_)) if first.len() >= DETECT_BYTES => return Ok(Some(detect(first).unwrap_or(Protocol::Opaque))),
            Ok(Ok(_)) => {}
            Err(_) if first.is_empty() => return Ok(None),
            Err(_) => return Ok(Some(Protocol::Opaque)),
        }
    }
}

async fn whole_hello(io: &mut TcpStream, first: &mut BytesMut) -> Option<Protocol> {
    loop {
        if let Some(protocol) = detect(first) {
            return Some(protocol);
        }
        first.reserve(2048);
        match io.read_buf(first).await {
            Ok(count) if count > 0 && first.len() < DETECT_BYTES => {}
            _ => return Some(detect(first).unwrap_or(Protocol::Opaque)),
        }
    }
}

/// What is spoken inside of TLS, or by a client of which some bytes were read.
async fn inside(shard: &Shard, io: &mut Stream, first: &mut BytesMut) -> Spoken {
    let mut patience = Patience::new(shard.config.detect_patience);
    loop {
        match detect(first) {
            Some(Protocol::Http1) => return Spoken::Http1,
            Some(Protocol::Http2) => return Spoken::Http2,
            Some(_) => return Spoken::Bytes,
            None => {}
        }
        first.reserve(2048);
        match timeout_at(patience.until(first), io.read_buf(first)).await {
            Ok(Ok(count)) if count > 0 && first.len() < DETECT_BYTES => {}
            Err(_) if first.is_empty() => return Spoken::Nothing,
            _ => return Spoken::Bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_declared_to_be_bytes_is_not_looked_at() {
        let looked_at = |declared: &Declared| !carries_bytes(*declared);
        let all = [Declared::Unknown, Declared::Http, Declared::Opaque, Declared::Tls];
        let kept: Vec<_> = all.iter().filter(|declared| looked_at(declared)).collect();
        assert_eq!(kept, [&Declared::Unknown, &Declared::Http]);
    }
}
