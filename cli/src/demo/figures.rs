//! What a program of the demo counts about itself when no proxy stands beside it (`--unmeshed`), under the names that
//! a proxy uses, so that the same table shows both.

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Upper bounds in milliseconds. Source: linkerd2-proxy's `response_latency_ms`.
const BUCKETS_MS: &[u64] = &[
    1, 2, 3, 4, 5, 10, 20, 30, 40, 50, 100, 200, 300, 400, 500, 1000, 2000, 3000, 4000, 5000, 10_000, 20_000, 30_000,
    40_000, 50_000,
];

/// Requests of one direction.
pub(crate) struct Figures {
    direction: &'static str,
    success: AtomicU64,
    failure: AtomicU64,
    open: AtomicU64,
    latency: Mutex<Vec<u64>>,
}

impl Figures {
    pub(crate) fn new(direction: &'static str) -> Self {
        let latency = Mutex::new(vec![0; BUCKETS_MS.len() + 1]);
        Figures { direction, success: 0.into(), failure: 0.into(), open: 0.into(), latency }
    }

    /// A request has ended.
    pub(crate) fn count(&self, started: Instant, success: bool) {
        if success { &self.success } else { &self.failure }.fetch_add(1, Relaxed);
        let ms = started.elapsed().as_secs_f64() * 1000.0;
        let bucket = BUCKETS_MS.partition_point(|&bound| (bound as f64) < ms);
        self.latency.lock().unwrap_or_else(|e| e.into_inner())[bucket] += 1;
    }

    /// A connection, for as long as the guard lives.
    pub(crate) fn connection(&self) -> Open<'_> {
        self.open.fetch_add(1, Relaxed);
        Open(&self.open)
    }

    pub(crate) fn text(&self) -> String {
        let mut out = String::new();
        let direction = self.direction;
        for (class, count) in [("success", &self.success), ("failure", &self.failure)] {
            let count = count.load(Relaxed);
            let _ = writeln!(
                out,
                "response_total{{direction=\"{direction}\",classification=\"{class}\",tls=\"no_identity\"}} {count}"
            );
        }
        let mut sum = 0;
        let latency = self.latency.lock().unwrap_or_else(|e| e.into_inner());
        for (i, count) in latency.iter().enumerate() {
            sum += count;
            let le = BUCKETS_MS.get(i).map_or("+Inf".to_string(), u64::to_string);
            let _ = writeln!(out, "response_latency_ms_bucket{{direction=\"{direction}\",le=\"{le}\"}} {sum}");
        }
        let open = self.open.load(Relaxed);
        let _ =
            writeln!(out, "tcp_open_connections{{direction=\"{direction}\",peer=\"src\",tls=\"no_identity\"}} {open}");
        out
    }
}

/// An open connection.
pub(crate) struct Open<'a>(&'a AtomicU64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// How long a program waits for another.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
