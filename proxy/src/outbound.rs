//! The story of a connection FROM our workload: where to → what is spoken → requests, or bytes to one endpoint.
//!
//! **Invariant:** no client waits for a detection timeout. One that is silent for a moment is connected to its
//! endpoint, and whichever side speaks first decides.

use crate::accept::Lasting;
use crate::balance::Wants;
use crate::control::Target;
use crate::detect::{Protocol, detect};
use crate::error::Error;
use crate::metrics::Direction;
use crate::net::{self, Plain, Stream};
use crate::patience::Patience;
use crate::policy::authorize::{Peer, PeerTls};
use crate::record::{ConnectionMetrics, Record};
use crate::request::{Connection, Side, serve};
use crate::shard::{Declared, Destination, Policy, Shard};
use crate::tcp;
use bytes::{Bytes, BytesMut};
use gossamer_api::defaults::DETECT_BYTES;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Serves a connection that was redirected here, or that came to an explicit local port.
pub async fn serve(shard: Rc<Shard>, io: Plain, client: SocketAddr, explicit: Option<String>) -> Lasting {
    let accepted = Instant::now();
    let (target, addr) = match explicit {
        Some(authority) => (Target::Authority(authority), client),
        None => match net::original_destination(&io.fd().ok()?, client) {
            Some(addr) if !shard.config.is_own(addr) => (Target::Addr(addr), addr),
            _ => {
                refuse(&shard, Direction::Outbound, &io.fd().ok()?, &Error::Loop);
                return None;
            }
        },
    };
    let destination = shard.destination(&target);
    let policy = match destination.current() {
        Some(policy) => Ok(policy),
        None => Box::pin(destination.policy()).await,
    };
    let conn = Connection::outbound(shard, destination, client, addr);
    match policy {
        // Nothing may pass: an HTTP client gets to know why.
        Ok(policy) if policy.refuses_all() => {
            let error = Error::Forbidden(target.to_string());
            Box::pin(explain(conn, io, error)).await
        }
        Ok(policy) => connection(conn, &policy, io, accepted).await,
        // HTTP clients get to know why; others see the connection end.
        Err(error) => Box::pin(explain(conn, io, error)).await,
    }
}

/// Finds out what is spoken and serves it.
async fn connection(conn: Rc<Connection>, policy: &Rc<Policy>, io: Plain, accepted: Instant) -> Lasting {
    let skip = match policy.protocol {
        Declared::Opaque => true,
        Declared::Unknown => {
            let (place, port) = server(&conn, &io.fd().ok()?);
            conn.shard.config.opaque_ports.contains(port) || conn.shard.speaks_first(place)
        }
        Declared::Http | Declared::Tls => false,
    };
    if skip {
        return spoken(conn, policy, io.into_tcp().ok()?, BytesMut::new(), Protocol::Opaque).await;
    }
    let mut first = at_once(&io);
    if policy.protocol != Declared::Tls && detect(&first) == Some(Protocol::Http1) {
        return http1(conn, io.into(), first);
    }
    let mut io = io.into_tcp().ok()?;
    // A declared HTTP port has clients that speak first: an idle one of a pool is left alone.
    let waits = policy.protocol == Declared::Http;
    let patience = Patience::since(accepted, conn.shard.config.detect_patience);
    match first_bytes(patience, waits, &mut io, &mut first).await {
        Some(protocol) => spoken(conn, policy, io, first, protocol).await,
        None if waits => None,
        None => Box::pin(silent(conn, policy, io)).await,
    }
}

/// What the client has said already.
fn at_once(io: &Plain) -> BytesMut {
    let mut room = [MaybeUninit::uninit(); 2048];
    io.receive(&mut room).map(BytesMut::from).unwrap_or_default()
}

/// By what the server is remembered, and its port: the address that the client asked for, or the explicit local port that
/// leads to a name.
fn server(conn: &Connection, io: &impl AsFd) -> (SocketAddr, u16) {
    if let Side::Outbound(destination) = &conn.side
        && let Target::Authority(name) = &destination.target
    {
        let port = name.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        return (net::local_addr(io).unwrap_or(conn.target), port.unwrap_or_default());
    }
    (conn.target, conn.target.port())
}

/// Serves a connection of which is known what is spoken.
async fn spoken(conn: Rc<Connection>, policy: &Policy, io: TcpStream, first: BytesMut, protocol: Protocol) -> Lasting {
    match protocol {
        Protocol::Http1 if policy.protocol != Declared::Tls => return http1(conn, io.into(), first),
        Protocol::Http2 if policy.protocol != Declared::Tls => return http2(conn, io.into(), first),
        Protocol::Tls(hello) => Box::pin(opaque(conn, policy, io, first, hello.sni.as_deref())).await,
        _ => Box::pin(opaque(conn, policy, io, first, None)).await,
    }
    None
}

/// Reads until the protocol is known. `None` when the client says nothing for a moment, or, where it is waited for
/// (`waits`), leaves without a word.
async fn first_bytes(
    mut patience: Patience,
    waits: bool,
    io: &mut TcpStream,
    first: &mut BytesMut,
) -> Option<Protocol> {
    loop {
        if let Some(protocol) = detect(first) {
            return Some(protocol);
        }
        let forever = waits && first.is_empty();
        let read =
            if forever { Ok(more(io, first).await) } else { timeout_at(patience.until(first), more(io, first)).await };
        match read {
            Ok(Ok(0) | Err(_)) if forever => return None,
            Ok(Ok(0) | Err(_)) => return Some(Protocol::Opaque),
            Ok(Ok(_)) if first.len() >= DETECT_BYTES => return Some(detect(first).unwrap_or(Protocol::Opaque)),
            Ok(Ok(_)) => {}
            Err(_) if first.is_empty() => return None,
            // A word and then silence: not ours to interpret.
            Err(_) => return Some(Protocol::Opaque),
        }
    }
}

/// Reads some bytes more. Nothing is allocated before they are there.
async fn more(io: &mut TcpStream, first: &mut BytesMut) -> std::io::Result<usize> {
    io.readable().await?;
    first.reserve(2048);
    io.read_buf(first).await
}

/// Bytes to one endpoint.
async fn opaque(conn: Rc<Connection>, policy: &Policy, io: TcpStream, first: BytesMut, sni: Option<&str>) {
    let mut record = Record::connection(&conn);
    let mut near = measured(&conn, io.into(), &first);
    match dial(&conn, policy, sni, &mut record).await {
        Ok(mut far) => {
            let moved = tcp::relay(&mut near, &mut far, first.freeze(), Bytes::new()).await;
            record.closed(moved);
        }
        Err(error) => {
            record.failed(&error);
            near.reset_on_close();
        }
    }
}

/// The client is silent: dial, and let whoever speaks first decide.
async fn silent(conn: Rc<Connection>, policy: &Rc<Policy>, io: TcpStream) -> Lasting {
    let mut record = Record::connection(&conn);
    let Ok(choice) = policy.tcp.choose(None, &conn.target.to_string()).map(|(backend, _)| backend.balancer.clone())
    else {
        // Only HTTP has routes here: wait for the client.
        record.forget();
        return patient(conn, policy, io).await;
    };
    let far = dial_balancer(&choice, &mut record).await;
    let mut far = match far {
        Ok(far) => far,
        Err(error) => {
            record.failed(&error);
            net::reset_on_close(&io);
            return None;
        }
    };
    let mut greeting = BytesMut::with_capacity(2048);
    tokio::select! {
        biased;
        ready = io.readable() => {
            if ready.is_err() {
                return None;
            }
            // The client was only slow. Nothing was sent to the endpoint: start over with what it says.
            drop(far);
            record.forget();
            return patient(conn, policy, io).await;
        }
        read = far.read_buf(&mut greeting) => {
            if matches!(read, Ok(count) if count > 0) {
                conn.shard.learn_speaks_first(server(&conn, &io).0);
            }
        }
    }
    let mut near = measured(&conn, io.into(), &BytesMut::new());
    let moved = tcp::relay(&mut near, &mut far, Bytes::new(), greeting.freeze()).await;
    record.closed(moved);
    None
}

/// A client that speaks first after all, late.
async fn patient(conn: Rc<Connection>, policy: &Rc<Policy>, mut io: TcpStream) -> Lasting {
    let mut first = BytesMut::new();
    let protocol = first_bytes(Patience::new(conn.shard.config.detect_patience), true, &mut io, &mut first).await?;
    spoken(conn, policy, io, first, protocol).await
}

/// A connection to an endpoint for bytes.
async fn dial(conn: &Connection, policy: &Policy, sni: Option<&str>, record: &mut Record<'_>) -> Result<Stream, Error> {
    let (backend, _) = policy.tcp.choose(sni, &conn.target.to_string())?;
    dial_balancer(&backend.balancer.clone(), record).await
}

/// Tries endpoints until one accepts: a connection that sent nothing yet can go anywhere.
async fn dial_balancer(balancer: &Rc<crate::balance::Balancer>, record: &mut Record<'_>) -> Result<Stream, Error> {
    let mut tried = Vec::new();
    loop {
        let pick = balancer.ready(Wants::Connection, &tried).await?;
        record.connecting(balancer, &pick);
        match pick.pool.bytes().await {
            Ok(far) => {
                let now = tokio::time::Instant::now();
                pick.connected();
                pick.observe(0, None, now);
                pick.succeed(now);
                balancer.alive();
                record.connected(pick);
                return Ok(far);
            }
            Err(error @ Error::NoIdentity) => return Err(error),
            Err(error) => {
                let now = tokio::time::Instant::now();
                balancer.refused(&pick, &error, now);
                pick.fail(now);
                tried.push(pick.info.addr);
                if tried.len() >= balancer.len() {
                    return Err(error);
                }
            }
        }
    }
}

/// Discovery failed: an HTTP client is told why, any other connection ends.
async fn explain(conn: Rc<Connection>, io: Plain, error: Error) -> Lasting {
    let mut io = io.into_tcp().ok()?;
    let mut first = BytesMut::new();
    match first_bytes(Patience::new(conn.shard.config.detect_patience), false, &mut io, &mut first).await {
        // Each request asks again, so that the connection recovers with the control plane.
        Some(Protocol::Http1) => http1(conn, io.into(), first),
        Some(Protocol::Http2) => http2(conn, io.into(), first),
        _ => {
            Record::connection(&conn).failed(&error);
            net::reset_on_close(&io);
            None
        }
    }
}

impl Connection {
    /// A connection of our workload.
    fn outbound(shard: Rc<Shard>, destination: Rc<Destination>, client: SocketAddr, target: SocketAddr) -> Rc<Self> {
        Rc::new(Connection {
            metrics: ConnectionMetrics::outbound(&shard, &destination, target),
            peer: Peer { ip: client.ip(), tls: PeerTls::None },
            client,
            target,
            side: Side::Outbound(destination),
            shard,
        })
    }
}

fn http1(conn: Rc<Connection>, io: Stream, first: BytesMut) -> Lasting {
    let io = measured(&conn, io, &first);
    Some(Box::pin(serve::http1(conn, io, first.freeze())))
}

fn http2(conn: Rc<Connection>, io: Stream, first: BytesMut) -> Lasting {
    let io = measured(&conn, io, &first);
    Some(Box::pin(serve::http2(conn, io, first.freeze())))
}

/// The client's connection, counted from its first byte.
fn measured(conn: &Connection, mut io: Stream, first: &BytesMut) -> Stream {
    io.measure(conn.metrics.tcp().open(), first.len());
    io
}

/// Nothing can be done with this connection.
pub fn refuse(shard: &Shard, direction: Direction, io: &impl AsFd, error: &Error) {
    shard.metrics.tcp_errors(direction).count(error.reason());
    tracing::warn!(reason = error.reason(), "connection refused: {error}");
    net::reset_on_close(io);
}

/// What a connection of idle HTTP/1 runs, for its size.
#[cfg(test)]
pub fn http1_of_test(shard: Rc<Shard>, io: TcpStream, client: SocketAddr) -> impl Future<Output = ()> {
    let destination = shard.destination(&Target::Addr(client));
    let conn = Connection::outbound(shard, destination, client, client);
    serve::http1(conn, io.into(), Bytes::new())
}
