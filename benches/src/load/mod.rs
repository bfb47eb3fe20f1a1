//! The load generator: one process, one thread, its own cost not counted.
//!
//! It prints `start` when the warm-up is over and `stop {figures}` at the end, so that the bench reads the clocks of the
//! proxies at the same moments. A closed loop sends the next request when the answer to the last is there; the open
//! loop sends at a fixed rate and counts latency from the moment at which the request was due.

mod bulk;
mod http1;
mod http2;
mod open;

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What it sends, where, for how long.
#[derive(clap::Args, Clone)]
pub(crate) struct Args {
    /// What is sent.
    #[arg(long, value_enum)]
    pub kind: Kind,
    /// Where.
    #[arg(long)]
    pub target: SocketAddr,
    /// HTTP/1.1 connections go to so many addresses in turn, of which the target is the first.
    #[arg(long, default_value_t = 1)]
    pub spread: usize,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Streams on each connection.
    #[arg(long, default_value_t = 32)]
    pub streams: usize,
    /// The request's path.
    #[arg(long, default_value = "/")]
    pub path: String,
    /// Requests per second of the open loop.
    #[arg(long, default_value_t = 1000)]
    pub rate: u64,
    /// Before it counts.
    #[arg(long, default_value_t = 500)]
    pub warm_ms: u64,
    /// While it counts.
    #[arg(long, default_value_t = 2000)]
    pub ms: u64,
}

/// What is sent.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// One request, again and again until it is answered.
    First,
    /// HTTP/1.1 over kept connections.
    Http1,
    /// HTTP/1.1, a new connection for each.
    Connect,
    /// HTTP/1.1 at a fixed rate.
    Open,
    /// HTTP/2.
    Http2,
    /// gRPC, a stream for each message.
    Unary,
    /// gRPC, messages in turn on lasting streams.
    Streaming,
    /// Bytes.
    Bulk,
    /// HTTP/1.1 connections that do nothing after one request.
    Idle,
}

/// What came of it.
#[derive(Serialize, Deserialize, Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Requests answered as they should be, or messages, or MiB.
    pub done: u64,
    /// Others.
    pub failed: u64,
    /// The first failure.
    pub failure: String,
    /// Time counted.
    pub seconds: f64,
    /// Latencies in microseconds.
    pub p50: f64,
    /// See above.
    pub p99: f64,
    /// See above.
    pub p999: f64,
}

/// Shared by the tasks of this thread.
pub(crate) struct State {
    pub args: Args,
    latencies: RefCell<Histogram<u64>>,
    done: Cell<u64>,
    failed: Cell<u64>,
    failure: RefCell<String>,
    stopping: Cell<bool>,
}

impl State {
    /// A request that was due then has been answered.
    pub(crate) fn answered(&self, due: Instant) {
        self.done.set(self.done.get() + 1);
        self.latencies.borrow_mut().saturating_record(due.elapsed().as_nanos() as u64 / 100);
    }

    /// So much has come, where there are no requests.
    pub(crate) fn moved(&self, amount: u64) {
        self.done.set(self.done.get() + amount);
    }

    /// One has failed.
    pub(crate) fn failed(&self, error: &anyhow::Error) {
        if self.failed.replace(self.failed.get() + 1) == 0 {
            *self.failure.borrow_mut() = format!("{error:#}");
        }
    }

    /// True when no more is to be sent.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.get()
    }

    fn figures(&self, seconds: f64) -> Figures {
        let latencies = self.latencies.borrow();
        let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 10.0;
        Figures {
            done: self.done.get(),
            failed: self.failed.get(),
            failure: self.failure.borrow().clone(),
            seconds,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
        }
    }
}

/// Generates load as asked.
pub(crate) async fn run(args: &Args) -> Result<()> {
    if args.kind == Kind::First {
        return http1::first(args.target).await;
    }
    // Tenths of microseconds up to a minute, three digits.
    let latencies = RefCell::new(Histogram::new_with_bounds(1, 600_000_000, 3)?);
    let state = Rc::new(State {
        args: args.clone(),
        latencies,
        done: Cell::default(),
        failed: Cell::default(),
        failure: RefCell::default(),
        stopping: Cell::default(),
    });
    match args.kind {
        Kind::First => {}
        Kind::Http1 => http1::keep(&state).await?,
        Kind::Connect => http1::connect(&state),
        Kind::Open => open::run(&state).await?,
        Kind::Http2 | Kind::Unary | Kind::Streaming => http2::run(&state).await?,
        Kind::Bulk => bulk::run(&state),
        Kind::Idle => {
            let held = http1::idle(&state).await?;
            ensure!(state.failed.get() == 0, "{}", state.failure.borrow());
            say("start");
            // Until the bench closes our input, by ending us.
            std::future::pending::<()>().await;
            drop(held);
        }
    }
    tokio::time::sleep(Duration::from_millis(args.warm_ms)).await;
    // What failed while warming up counts: nothing may fail.
    state.done.set(0);
    state.latencies.borrow_mut().reset();
    let began = Instant::now();
    say("start");
    tokio::time::sleep(Duration::from_millis(args.ms)).await;
    state.stopping.set(true);
    let figures = state.figures(began.elapsed().as_secs_f64());
    say(&format!("stop {}", serde_json::to_string(&figures)?));
    Ok(())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // If the bench is gone so are we, soon.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
