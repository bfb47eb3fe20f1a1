//! The story of a connection FROM our workload: where to → what is spoken → requests, or bytes to one endpoint.
//!
//! **Invariant:** no client waits for a detection timeout. One that is silent for a moment is connected to its
//! endpoint, and whichever side speaks first decides.

use crate::accept::Lasting;
use crate::control::Target;
use crate::detect::{Protocol, detect};
use crate::error::Error;
use crate::metrics::Direction;
use crate::net::{self, Stream};
use crate::patience::Patience;
use crate::policy::authorize::{Peer, PeerTls};
use crate::record::{ConnectionMetrics, Record};
use crate::request::{Connection, Side, serve};
use crate::shard::{Declared, Destination, Policy, Shard};
use crate::tcp;
use bytes::{Bytes, BytesMut};
use gossamer_api::defaults::DETECT_BYTES;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

/// Serves a connection that was redirected here, or that came to an explicit local port.
pub async fn serve(shard: Rc<Shard>, io: TcpStream, client: SocketAddr, explicit: Option<String>) -> Lasting {
    let (target, addr) = match explicit {
        Some(authority) => (Target::Authority(authority), client),
        None => match net::original_destination(&io, client) {
            Some(addr) if !shard.config.is_own(addr) => (Target::Addr(addr), addr),
            _ => {
                refuse(&shard, Direction::Outbound, &io, &Error::Loop);
                return None;
            }
        },
    };
    let destination = shard.destination(&target);
    let policy = match destination.current() {
        Some(policy) => Ok(policy),
        None => Box::pin(destination.policy()).await,
    };
    match policy {
        // Nothing may pass: an HTTP client gets to know why.
        Ok(policy) if policy.refuses_all() => {
            let error = Error::Forbidden(target.to_string());
            Box::pin(explain(shard, destination, io, client, addr, error)).await
        }
        Ok(policy) => connection(shard, destination, &policy, io, client, addr).await,
        // HTTP clients get to know why; others see the connection end.
        Err(error) => Box::pin(explain(shard, destination, io, client, addr, error)).await,
    }
}

/// Finds out what is spoken and serves it.
async fn connection(
    shard: Rc<Shard>,
    destination: Rc<Destination>,
    policy: &Rc<Policy>,
    mut io: TcpStream,
    client: SocketAddr,
    target: SocketAddr,
) -> Lasting {
    let skip = match policy.protocol {
        Declared::Opaque => true,
        Declared::Unknown => shard.config.opaque_ports.contains(target.port()) || shard.speaks_first(target),
        Declared::Http | Declared::Tls => false,
    };
    let mut first = BytesMut::new();
    let protocol = if skip { Some(Protocol::Opaque) } else { first_bytes(&shard, policy, &mut io, &mut first).await };
    let conn = Rc::new(Connection {
        metrics: ConnectionMetrics::outbound(&shard, &destination, target),
        peer: Peer { ip: client.ip(), tls: PeerTls::None },
        client,
        target,
        side: Side::Outbound(destination),
        shard,
    });
    match protocol {
        Some(Protocol::Http1) if policy.protocol != Declared::Tls => return http1(conn, io, first),
        Some(Protocol::Http2) if policy.protocol != Declared::Tls => return http2(conn, io, first),
        Some(Protocol::Tls(hello)) => Box::pin(opaque(conn, policy, io, first, hello.sni.as_deref())).await,
        Some(_) => Box::pin(opaque(conn, policy, io, first, None)).await,
        None => return Box::pin(silent(conn, policy, io)).await,
    }
    None
}

/// Reads until the protocol is known; `None` when the client says nothing for a moment.
async fn first_bytes(shard: &Shard, policy: &Policy, io: &mut TcpStream, first: &mut BytesMut) -> Option<Protocol> {
    let mut patience = Patience::new(shard.config.detect_patience);
    loop {
        if let Some(protocol) = detect(first) {
            return Some(protocol);
        }
        // A declared HTTP port has clients that speak first: an idle one of a pool is left alone.
        let declared = policy.protocol == Declared::Http && first.is_empty();
        let read =
            if declared { Ok(more(io, first).await) } else { timeout_at(patience.until(first), more(io, first)).await };
        match read {
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
    let mut near = measured(&conn, io, &first);
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
        return patient(conn, policy, io, BytesMut::new()).await;
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
    let mut first = BytesMut::new();
    tokio::select! {
        biased;
        ready = io.readable() => {
            if ready.is_err() {
                return None;
            }
            // The client was only slow. Nothing was sent to the endpoint: start over with what it says.
            drop(far);
            record.forget();
            return patient(conn, policy, io, first).await;
        }
        read = far.read_buf(&mut greeting) => {
            if matches!(read, Ok(count) if count > 0) {
                conn.shard.learn_speaks_first(conn.target);
            }
        }
    }
    let mut near = measured(&conn, io, &first);
    let moved = tcp::relay(&mut near, &mut far, first.split().freeze(), greeting.freeze()).await;
    record.closed(moved);
    None
}

/// A client that speaks first after all, late.
async fn patient(conn: Rc<Connection>, policy: &Rc<Policy>, mut io: TcpStream, mut first: BytesMut) -> Lasting {
    let mut patience = Patience::new(conn.shard.config.detect_patience);
    let protocol = loop {
        if let Some(protocol) = detect(&first) {
            break protocol;
        }
        let read = if first.is_empty() {
            Ok(more(&mut io, &mut first).await)
        } else {
            timeout_at(patience.until(&first), more(&mut io, &mut first)).await
        };
        match read {
            Ok(Ok(0) | Err(_)) if first.is_empty() => return None,
            Ok(Ok(0) | Err(_)) | Err(_) => break Protocol::Opaque,
            Ok(Ok(_)) if first.len() >= DETECT_BYTES => break detect(&first).unwrap_or(Protocol::Opaque),
            Ok(Ok(_)) => {}
        }
    };
    match protocol {
        Protocol::Http1 => return http1(conn, io, first),
        Protocol::Http2 => return http2(conn, io, first),
        Protocol::Tls(hello) => opaque(conn, policy, io, first, hello.sni.as_deref()).await,
        Protocol::Opaque => opaque(conn, policy, io, first, None).await,
    }
    None
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
        let pick = balancer.ready(&tried).await?;
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
async fn explain(
    shard: Rc<Shard>,
    destination: Rc<Destination>,
    mut io: TcpStream,
    client: SocketAddr,
    target: SocketAddr,
    error: Error,
) -> Lasting {
    let mut first = BytesMut::new();
    let mut patience = Patience::new(shard.config.detect_patience);
    let protocol = loop {
        match detect(&first) {
            None if first.len() < DETECT_BYTES => {}
            protocol => break protocol,
        }
        match timeout_at(patience.until(&first), more(&mut io, &mut first)).await {
            Ok(Ok(count)) if count > 0 => {}
            _ => break None,
        }
    };
    let conn = Rc::new(Connection {
        metrics: ConnectionMetrics::outbound(&shard, &destination, target),
        peer: Peer { ip: client.ip(), tls: PeerTls::None },
        client,
        target,
        side: Side::Outbound(destination),
        shard,
    });
    match protocol {
        // Each request asks again, so that the connection recovers with the control plane.
        Some(Protocol::Http1) => http1(conn, io, first),
        Some(Protocol::Http2) => http2(conn, io, first),
        _ => {
            Record::connection(&conn).failed(&error);
            net::reset_on_close(&io);
            None
        }
    }
}

fn http1(conn: Rc<Connection>, io: TcpStream, first: BytesMut) -> Lasting {
    let io = measured(&conn, io, &first);
    Some(Box::pin(serve::http1(conn, io, first.freeze())))
}

fn http2(conn: Rc<Connection>, io: TcpStream, first: BytesMut) -> Lasting {
    let io = measured(&conn, io, &first);
    Some(Box::pin(serve::http2(conn, io, first.freeze())))
}

/// The client's connection, counted from its first byte.
fn measured(conn: &Connection, io: TcpStream, first: &BytesMut) -> Stream {
    let mut io = Stream::from(io);
    io.measure(conn.metrics.tcp().open(), first.len());
    io
}

/// Nothing can be done with this connection.
pub fn refuse(shard: &Shard, direction: Direction, io: &TcpStream, error: &Error) {
    shard.metrics.tcp_errors(direction).count(error.reason());
    tracing::warn!(reason = error.reason(), "connection refused: {error}");
    net::reset_on_close(io);
}

/// What a connection of idle HTTP/1 runs, for its size.
#[cfg(test)]
pub fn http1_of_test(shard: Rc<Shard>, io: TcpStream, client: SocketAddr) -> impl Future<Output = ()> {
    let destination = shard.destination(&Target::Addr(client));
    let conn = Rc::new(Connection {
        metrics: ConnectionMetrics::outbound(&shard, &destination, client),
        peer: Peer { ip: client.ip(), tls: PeerTls::None },
        client,
        target: client,
        side: Side::Outbound(destination),
        shard,
    });
    serve::http1(conn, io.into(), Bytes::new())
}
