//! The access log: a line of JSON for each request, written by a thread of its own.
//!
//! **Invariant:** a reader of standard output that is slow or gone never delays a request; lines that do not fit are
//! dropped, and how many is logged.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines waiting to be written: some 4 MiB at most.
const QUEUE: usize = 8192;

static LINES: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Queues a line.
pub fn log(line: String) {
    let sender = LINES.get_or_init(|| {
        let (sender, receiver) = sync_channel(QUEUE);
        std::thread::Builder::new().name("access-log".into()).spawn(move || write(&receiver)).ok().map(|_| sender)
    });
    if sender.as_ref().is_none_or(|sender| sender.try_send(line).is_err()) {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
}

fn write(lines: &Receiver<String>) {
    let mut out = std::io::stdout();
    while let Ok(line) = lines.recv() {
        let _ = writeln!(out, "{line}");
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(dropped, "access log lines did not fit");
        }
    }
}
