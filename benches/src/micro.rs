//! What the hot small parts cost in instructions, which are the same on a busy machine: head, route, pick, record.
//!
//! Each part runs in a process of its own under valgrind's cachegrind, once with a few rounds and once with more; the
//! difference is the part's own. **Invariant:** [`AT_MOST`] is only raised with a reason in the commit.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use gossamer_api::endpoint::Endpoint;
use gossamer_api::policy::{HostMatch, Meta, PathMatch, RequestMatch};
use gossamer_engine::h1::{Length, Limits, Server};
use gossamer_engine::io::Io;
use gossamer_engine::{RequestHead, ResponseHead};
use gossamer_proxy::balance::{Balancer, Rules, connect::Connector};
use gossamer_proxy::control::{Discovered, EndpointSet};
use gossamer_proxy::metrics::Metrics;
use gossamer_proxy::metrics::labels::{Direction, RequestLabels, TlsLabel};
use gossamer_proxy::policy::route::Router;
use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as Cx, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

/// Instructions of one round, and what it is. Measured with Rust 1.95 on x86-64, and a tenth above that.
const AT_MOST: [(&str, u64, &str); 5] = [
    ("head", 7_300, "HTTP/1.1 request head of 8 fields read, answer's head of 6 fields written"),
    ("route", 3_300, "a request among 20 routes with hosts, paths and methods, the last matches"),
    ("route-any", 27, "a request where nothing is configured"),
    ("pick", 1_120, "one of 100 endpoints, and its latency learned"),
    ("record", 68, "an answer's status and latency"),
];

const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

/// Prints the table; true when a part costs more than it may.
pub(crate) fn run() -> Result<bool> {
    let mut missed = false;
    println!("| part | instructions | at most | |\n|---|---|---|---|");
    for (name, at_most, what) in AT_MOST {
        let each = (instructions(name, MANY)?.saturating_sub(instructions(name, FEW)?)) / (MANY - FEW);
        let verdict = if each > at_most { "MISSED" } else { "holds" };
        missed |= each > at_most;
        println!("| {name}: {what} | {each} | {at_most} | {verdict} |");
    }
    Ok(missed)
}

fn instructions(part: &str, rounds: u64) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]);
    command.arg(std::env::current_exe()?).args(["part", part, &rounds.to_string()]);
    let output = command.output().context("valgrind (a package of that name)")?;
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find_map(|line| line.split_once("refs:")).map(|(_, count)| count.replace(',', ""));
    match line.and_then(|count| count.trim().parse().ok()) {
        Some(count) if output.status.success() => Ok(count),
        _ => bail!("{part} under valgrind: {text}"),
    }
}

/// Does one of the parts, so many times.
pub(crate) fn part(name: &str, rounds: u64) -> Result<()> {
    match name {
        "head" => head(rounds),
        "route" => route(&routes(20), rounds),
        "route-any" => route(&Router::new([(&[][..], [&[][..]])]), rounds),
        "pick" => pick(rounds),
        "record" => record(rounds),
        _ => bail!("no part {name:?}"),
    }
}

const REQUEST: &[u8] = b"GET /api/v1/items/1234?fields=name,price HTTP/1.1\r\nhost: items.shop.svc.cluster.local\r\n\
    user-agent: shop/1.0\r\naccept: application/json\r\naccept-encoding: gzip, deflate\r\n\
    x-request-id: 0c8f3f0e-8e0f-4b5d-9d39-2a3f3f0e8e0f\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\
    cookie: session=0123456789abcdef\r\nauthorization: Bearer abcdef\r\n\r\n";

/// A client that sends the same request for ever.
struct Client;

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, _: &mut Cx<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        buf.put_slice(REQUEST);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, _: &mut Cx<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(black_box(bytes).len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Io for Client {}

fn head(rounds: u64) -> Result<()> {
    let mut cx = Cx::from_waker(Waker::noop());
    let mut server = Server::new(Client, Bytes::new(), Limits::default());
    let mut request = RequestHead::default();
    let mut response = ResponseHead::new(200);
    for (name, value) in [
        ("content-type", "application/json"),
        ("date", "Sat, 21 Nov 2026 20:00:00 GMT"),
        ("server", "items"),
        ("cache-control", "no-store"),
        ("vary", "accept-encoding"),
        ("x-request-id", "0c8f3f0e-8e0f-4b5d-9d39-2a3f3f0e8e0f"),
    ] {
        response.headers.append(name, value);
    }
    for _ in 0..rounds {
        let Poll::Ready(Some(Ok(()))) = server.poll_request(&mut cx, &mut request) else { bail!("no request") };
        black_box(&request);
        server.send_response(&response, Length::Known(0));
        server.send_end(None);
        let Poll::Ready(Ok(())) = server.poll_flush(&mut cx) else { bail!("not flushed") };
    }
    Ok(())
}

fn routes(count: usize) -> Router {
    let hosts = [HostMatch::Exact("items.shop.svc.cluster.local".into())];
    let rules: Vec<[RequestMatch; 1]> = (0..count)
        .map(|number| {
            let path = if number + 1 == count { "/api/v1".into() } else { format!("/api/v1/other/{number}") };
            [RequestMatch {
                path: Some(PathMatch::Prefix(path)),
                method: Some("GET".into()),
                ..RequestMatch::default()
            }]
        })
        .collect();
    Router::new(rules.iter().map(|rule| (&hosts[..], [&rule[..]])))
}

fn route(router: &Router, rounds: u64) -> Result<()> {
    let mut head = RequestHead::default();
    head.set_path("/api/v1/items/1234?fields=name,price");
    head.set_authority("items.shop.svc.cluster.local:8080");
    for _ in 0..rounds {
        black_box(black_box(router).find(black_box(&head)).context("no route")?);
    }
    Ok(())
}

fn pick(rounds: u64) -> Result<()> {
    let connector = Connector { mark: 0, timeout: Duration::from_secs(1), credentials: watch::channel(None).1 };
    let balancer =
        Rc::new(Balancer::new(Meta::named("items"), "items:80".into(), Rules::default(), Rc::new(connector)));
    let endpoint = |number: u8| -> (SocketAddr, Arc<Endpoint>) {
        let address = SocketAddr::from(([10, 0, 0, number], 80));
        (address, Arc::new(Endpoint::new(address)))
    };
    let set = EndpointSet { endpoints: (1..=100).map(endpoint).collect(), exists: true };
    let (publish, discovered) = watch::channel(Discovered::Known(Arc::new(set)));
    drop(publish);
    tokio::runtime::Builder::new_current_thread().build()?.block_on(balancer.clone().follow(discovered));
    let now = Instant::now();
    for round in 0..rounds {
        let now = now + Duration::from_micros(round * 100);
        let pick = balancer.pick(now, &[]).context("no endpoint")?;
        pick.observe(200, None, now + Duration::from_micros(500 + round % 7));
    }
    Ok(())
}

fn record(rounds: u64) -> Result<()> {
    let metrics = Metrics::new();
    let handle = metrics.request_scope(RequestLabels::new(Direction::Outbound, TlsLabel::Disabled));
    for round in 0..rounds {
        handle.request();
        handle.response(200, None, true, Duration::from_micros(black_box(300 + round % 1000)));
    }
    Ok(())
}
