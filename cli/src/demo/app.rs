//! `meshctl demo-app NAME`: one program of the demo.

use super::client::{Caller, frame};
use super::figures::Figures;
use super::serve::{self, Body, text};
use super::{ledger, traffic, vault};
use crate::error::{Context, Result};
use bytes::Bytes;
use gossamer_api::defaults;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use prost::Message;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Mutex;

/// Where HTTP/1 programs listen.
pub(crate) const HTTP_PORT: u16 = 8080;
/// Where the gRPC program listens.
pub(crate) const GRPC_PORT: u16 = 9000;
/// Where the TCP program listens; not among the ports known as opaque.
pub(crate) const LEDGER_PORT: u16 = 7070;
/// Where the program with TLS listens.
pub(crate) const VAULT_PORT: u16 = 8443;

/// Run one program of the demo
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Which one
    pub program: Program,
    /// Wait before every answer
    #[arg(long, value_parser = duration, default_value = "0ms")]
    pub slow: Duration,
    /// Share of requests answered with 503
    #[arg(long, default_value_t = 0.0)]
    pub fail: f64,
    /// Requests per second (traffic)
    #[arg(long, default_value_t = 20.0)]
    pub rate: f64,
    /// Count for itself: there is no proxy
    #[arg(long)]
    pub unmeshed: bool,
}

/// The programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Program {
    Web,
    Catalog,
    Orders,
    Prices,
    Ledger,
    Vault,
    Traffic,
}

/// Reads `50ms`, `1s`, `5m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    gossamer_api::settings::parse_duration(text).ok_or_else(|| "expected a duration: 500ms, 30s, 5m".into())
}

#[derive(Clone, PartialEq, Message)]
struct Quote {
    #[prost(string, tag = "1")]
    item: String,
    #[prost(uint32, tag = "2")]
    cents: u32,
}

const QUOTE: &str = "/demo.Prices/Quote";

/// Serves until it is told to end; then no new connection is taken, and requests that are here get their answers. In a pod
/// this is the first process, which SIGTERM does not end by itself: the kubelet would wait half a minute and kill it.
pub async fn run(args: Args) -> Result<()> {
    let mut end = signal(SignalKind::terminate()).context("signals")?;
    tokio::select! {
        served = serve(args) => served,
        _ = end.recv() => {
            tokio::time::sleep(LAST_ANSWERS).await;
            Ok(())
        }
    }
}

/// The slowest program takes a tenth of that for an answer.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

async fn serve(args: Args) -> Result<()> {
    let direction = if args.program == Program::Traffic { "outbound" } else { "inbound" };
    let figures = Arc::new(Figures::new(direction));
    if args.unmeshed {
        tokio::spawn(serve::metrics(defaults::ADMIN_PORT, figures.clone()));
    }
    let (slow, fail) = (args.slow, args.fail);
    let plain = move |body: fn() -> String| {
        move |_: Request<Incoming>| async move {
            tokio::time::sleep(slow + Duration::from_micros(fastrand::u64(200..2000))).await;
            if fastrand::f64() < fail { text(503, "out of order\n") } else { text(200, body()) }
        }
    };
    match args.program {
        Program::Catalog => serve::http(HTTP_PORT, figures, plain(|| "lamp\nchair\ntable\n".into())).await,
        Program::Web => {
            let caller = Caller::new();
            serve::http(HTTP_PORT, figures, move |_| web(caller.clone())).await
        }
        Program::Orders => {
            let ledger = Arc::new(Mutex::new(ledger::Client::default()));
            // In a cluster there may be none: its certificate would have to be in the example's YAML.
            let vault = std::env::var_os(vault::CERTIFICATE).map(|_| vault::Client::from_env()).transpose()?;
            let take = move |_: Request<Incoming>| {
                let (ledger, vault) = (ledger.clone(), vault.clone());
                async move {
                    if fastrand::f64() < fail { text(503, "out of order\n") } else { orders(&ledger, &vault).await }
                }
            };
            serve::http(HTTP_PORT, figures, take).await
        }
        Program::Prices => serve::http(GRPC_PORT, figures, prices).await,
        Program::Ledger => ledger::server(LEDGER_PORT, figures).await,
        Program::Vault => vault::server(VAULT_PORT, figures).await,
        Program::Traffic => traffic::run(args.rate, figures).await,
    }
}

/// The front: asks three others at once.
async fn web(caller: Caller) -> Response<Body> {
    let quote = Quote { item: "lamp".into(), cents: 0 };
    let (items, orders, price) = tokio::join!(
        caller.call(Method::GET, "http://catalog:8080/items"),
        caller.call(Method::GET, "http://orders:8080/orders"),
        caller.unary::<_, Quote>("prices:9000", QUOTE, &quote),
    );
    let failed = |what: &str, why: String| {
        tracing::debug!(what, why, "a backend failed");
        text(502, format!("{what}: {why}\n"))
    };
    for (what, answer) in [("catalog", &items), ("orders", &orders)] {
        match answer {
            Err(error) => return failed(what, error.clone()),
            Ok((status, body)) if !status.is_success() => {
                return failed(what, format!("{status} {}", String::from_utf8_lossy(body).trim()));
            }
            Ok(_) => {}
        }
    }
    match price {
        Ok(price) => text(200, format!("a {} costs {}.{:02}\n", price.item, price.cents / 100, price.cents % 100)),
        Err(error) => failed("prices", error),
    }
}

/// Writes into the ledger for every order, and sometimes needs a secret.
async fn orders(ledger: &Mutex<ledger::Client>, vault: &Option<vault::Client>) -> Response<Body> {
    let entry = ledger.lock().await.add(&format!("ledger:{LEDGER_PORT}"), "lamp 12.50").await;
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => return text(500, format!("ledger: {error}\n")),
    };
    if fastrand::u8(..) < 26
        && let Some(vault) = vault
        && let Err(error) = vault.secret(&format!("vault:{VAULT_PORT}")).await
    {
        return text(500, format!("vault: {error}\n"));
    }
    text(200, entry)
}

async fn prices(request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_string();
    let asked = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let quote = Quote::decode(asked.slice(asked.len().min(5)..)).ok();
    let (frames, status) = match quote {
        Some(quote) if path == QUOTE => (vec![frame(&Quote { cents: 1250, ..quote })], "0"),
        Some(_) => (vec![], "12"),
        None => (vec![], "3"),
    };
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))]);
    let frames = frames.into_iter().map(Frame::data).chain([Frame::trailers(trailers)]);
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<Frame<Bytes>, Infallible>)));
    let mut response = Response::new(BodyExt::boxed(body));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}
