//! The access log: a line for each request, as JSON or as Apache writes it, written by a thread of its own.
//!
//! **Invariant:** a reader of standard output that is slow or gone never delays a request; lines that do not fit are
//! dropped, and how many is logged.

use gossamer_engine::Version;
use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Lines waiting to be written: some 4 MiB at most.
const QUEUE: usize = 8192;

static LINES: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// A request in Apache's common log format; where that has the client's user, its identity.
pub struct Apache<'a> {
    /// Who sent it.
    pub client: SocketAddr,
    /// As whom, if it has proved that.
    pub identity: Option<&'a str>,
    /// When it was answered.
    pub at: time::OffsetDateTime,
    /// What it asked for.
    pub method: &'a str,
    /// Of what.
    pub path: &'a str,
    /// In which protocol.
    pub version: Version,
    /// What came back.
    pub status: u16,
    /// Of what length.
    pub bytes: u64,
}

impl fmt::Display for Apache<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Apache { client, identity, at, method, path, version, status, bytes } = self;
        let version = match version {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
            Version::Http2 => "HTTP/2.0",
        };
        let (day, month, year) = (at.day(), &at.month().to_string()[..3], at.year());
        let (hour, minute, second) = at.to_hms();
        write!(f, "{} - {} ", client.ip(), identity.unwrap_or("-"))?;
        write!(f, "[{day:02}/{month}/{year}:{hour:02}:{minute:02}:{second:02} +0000] ")?;
        // A quote would end the field.
        write!(f, "\"{method} {} {version}\" {status} {bytes}", path.replace('"', "%22"))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_in_the_common_log_format() {
        let line = Apache {
            client: "10.0.0.9:4711".parse().unwrap(),
            identity: Some("web.demo.serviceaccount.identity.gossamer.cluster.local"),
            at: time::OffsetDateTime::from_unix_timestamp(1_775_091_723).unwrap(),
            method: "GET",
            path: "/a\"b",
            version: Version::Http11,
            status: 200,
            bytes: 17,
        };
        assert_eq!(
            line.to_string(),
            "10.0.0.9 - web.demo.serviceaccount.identity.gossamer.cluster.local [02/Apr/2026:01:02:03 +0000] \
             \"GET /a%22b HTTP/1.1\" 200 17"
        );
        let unknown = Apache { identity: None, ..line };
        assert!(unknown.to_string().starts_with("10.0.0.9 - - ["));
    }
}
