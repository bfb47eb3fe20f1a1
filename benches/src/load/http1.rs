//! HTTP/1.1 requests: over kept connections, over a new connection each, and none.

use super::State;
use anyhow::{Context, Result, bail, ensure};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection and what it needs.
pub(crate) struct Connection {
    io: TcpStream,
    buffer: Vec<u8>,
    request: Vec<u8>,
}

impl Connection {
    /// Opens one.
    pub(crate) async fn open(target: SocketAddr, path: &str, last: bool) -> Result<Connection> {
        let io = TcpStream::connect(target).await.context("connect")?;
        io.set_nodelay(true)?;
        // About what a client library sends.
        let close = if last { "connection: close\r\n" } else { "" };
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {target}\r\nuser-agent: bench/1.0\r\naccept: */*\r\n\
             accept-encoding: gzip, deflate\r\n{close}\r\n"
        );
        Ok(Connection { io, buffer: vec![0; 64 * 1024], request: request.into_bytes() })
    }

    /// One request and its whole answer.
    pub(crate) async fn exchange(&mut self) -> Result<()> {
        self.io.write_all(&self.request).await.context("send")?;
        let mut filled = 0;
        let (status, head, length) = loop {
            let read = self.io.read(&mut self.buffer[filled..]).await.context("receive")?;
            ensure!(read > 0, "closed before the answer");
            filled += read;
            if let Some(head) = parse(&self.buffer[..filled])? {
                break head;
            }
        };
        ensure!(status == 200, "status {status}");
        let mut left = (head + length).checked_sub(filled).context("more than the answer")?;
        while left > 0 {
            let room = left.min(self.buffer.len());
            let read = self.io.read(&mut self.buffer[..room]).await.context("receive")?;
            ensure!(read > 0, "closed within the answer");
            left -= read;
        }
        Ok(())
    }
}

/// Status, length of the head, length of the body.
fn parse(bytes: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes)? else { return Ok(None) };
    let length = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let Some(length) = length else { bail!("no content-length") };
    let length = std::str::from_utf8(length.value)?.parse()?;
    Ok(Some((response.code.unwrap_or(0), head, length)))
}

/// Requests one after the other on every connection.
pub(crate) async fn keep(state: &Rc<State>) -> Result<()> {
    for number in 0..state.args.connections {
        let target = nth(state.args.target, number % state.args.spread.max(1));
        let mut connection = Connection::open(target, &state.args.path, false).await?;
        let state = state.clone();
        tokio::task::spawn_local(async move {
            while !state.stopping() {
                let began = Instant::now();
                match connection.exchange().await {
                    Ok(()) => state.answered(began),
                    Err(error) => return state.failed(&error),
                }
            }
        });
    }
    Ok(())
}

/// The address so many behind.
fn nth(first: SocketAddr, number: usize) -> SocketAddr {
    match first.ip() {
        IpAddr::V4(ip) => SocketAddr::from((Ipv4Addr::from_bits(ip.to_bits() + number as u32), first.port())),
        IpAddr::V6(_) => first,
    }
}

/// A connection for every request.
pub(crate) fn connect(state: &Rc<State>) {
    for _ in 0..state.args.connections {
        let state = state.clone();
        tokio::task::spawn_local(async move {
            while !state.stopping() {
                let began = Instant::now();
                let exchange =
                    async { Connection::open(state.args.target, &state.args.path, true).await?.exchange().await };
                match exchange.await {
                    Ok(()) => state.answered(began),
                    Err(error) => state.failed(&error),
                }
            }
        });
    }
}

/// Connections that have been used once.
pub(crate) async fn idle(state: &Rc<State>) -> Result<Vec<Connection>> {
    let mut held = Vec::new();
    for _ in 0..state.args.connections {
        let mut connection = Connection::open(state.args.target, &state.args.path, false).await?;
        connection.exchange().await?;
        connection.buffer = Vec::new();
        held.push(connection);
    }
    Ok(held)
}

/// Asks until there is an answer, again every few milliseconds: a connection that was tried before the redirection
/// stood waits a second for its kernel to try again, and says nothing about the proxies.
pub(crate) async fn first(target: SocketAddr) -> Result<()> {
    let mut attempts = tokio::task::JoinSet::new();
    let mut next = tokio::time::interval(AGAIN);
    loop {
        tokio::select! {
            _ = next.tick() => if attempts.len() < ATTEMPTS {
                attempts.spawn_local(async move {
                    let attempt = async { Connection::open(target, "/", true).await?.exchange().await };
                    tokio::time::timeout(Duration::from_secs(2), attempt).await?
                });
            },
            Some(Ok(Ok(()))) = attempts.join_next() => return Ok(()),
        }
    }
}

const AGAIN: Duration = Duration::from_millis(5);
/// At the same moment.
const ATTEMPTS: usize = 400;
