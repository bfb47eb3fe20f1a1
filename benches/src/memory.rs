//! Memory of a pair at rest, holding idle connections, busy, and after everything is gone.

use crate::driver::{Driver, Running};
use crate::process::{self, Memory};
use crate::rounds;
use crate::workload::{ALL, Workload};
use anyhow::{Context, Result};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

/// Figures of a driver.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Footprint {
    /// Milliseconds from the start of both proxies to the first answer.
    pub start_ms: f64,
    /// Resident MiB at rest: outbound, inbound.
    pub rest: [f64; 2],
    /// The most that was seen at rest.
    pub rest_most: [f64; 2],
    /// The part of it that is the process's own.
    pub rest_anon: [f64; 2],
    /// Idle connections, and KiB that each adds to both proxies together.
    pub idle: Vec<(usize, f64)>,
    /// Under 256 busy connections.
    pub busy: [f64; 2],
    /// When all connections are gone, the idle or the busy ones: the larger.
    pub after: [f64; 2],
    /// MiB of the stripped binary.
    pub binary: Option<f64>,
}

/// How long memory has to come back: ours, and others', for which there is no bound.
const COME_BACK: [Duration; 2] = [Duration::from_secs(12), Duration::from_secs(2)];

/// How long ours is watched at rest: what comes and goes by itself, such as pings, shall not hide between two looks.
const WATCHED: [Duration; 2] = [Duration::from_secs(12), Duration::ZERO];

/// Measures a pair that has just been started.
pub(crate) async fn measure(running: &Running, idle: &[usize], ms: u64, binary: Option<PathBuf>) -> Result<Footprint> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rest = both(running);
    let rest_most =
        most_until(running, tokio::time::sleep(WATCHED[usize::from(running.driver != Driver::Gossamer)])).await;
    let mut per_idle = Vec::new();
    for &connections in idle {
        let mut load = running.load()?;
        load.args(["--kind", "idle", "--target", &running.target(crate::server::HTTP).to_string()]);
        load.args(["--connections", &connections.to_string()]);
        let mut load = load.spawn()?;
        let mut lines = BufReader::new(load.stdout.take().context("piped")?).lines();
        let started = lines.next_line().await?;
        anyhow::ensure!(
            started.as_deref() == Some("start"),
            "{}: {connections} idle connections failed",
            running.driver
        );
        // What was needed for the requests may go.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let held = both(running);
        let grown = (held[0].rss + held[1].rss).saturating_sub(rest[0].rss + rest[1].rss);
        per_idle.push((connections, grown as f64 / connections as f64));
        load.kill().await?;
    }
    // What held the idle ones is no part of what the busy ones need.
    let after_idle = come_back(running, rest).await;
    let busy_row = ALL.iter().find(|workload| workload.name == "h1-256").copied().context("a row of the table")?;
    let busy = busy(running, &busy_row, ms).await?;
    let mut after = come_back(running, rest).await;
    for (after, other) in after.iter_mut().zip(after_idle) {
        after.rss = after.rss.max(other.rss);
    }
    let size = |path: PathBuf| stripped_size(&path).ok();
    Ok(Footprint {
        start_ms: running.start.as_secs_f64() * 1000.0,
        rest: mib(rest),
        rest_most: mib(rest_most.1),
        rest_anon: [rest[0].anon as f64 / 1024.0, rest[1].anon as f64 / 1024.0],
        idle: per_idle,
        busy: mib(busy),
        after: mib(after),
        binary: binary.and_then(size),
    })
}

/// Waits until memory is that at rest and a quarter, or for as long as it has for it.
async fn come_back(running: &Running, rest: [Memory; 2]) -> [Memory; 2] {
    let deadline = tokio::time::Instant::now() + COME_BACK[usize::from(running.driver != Driver::Gossamer)];
    loop {
        let now = both(running);
        if tokio::time::Instant::now() >= deadline || (0..2).all(|i| now[i].rss * 4 <= rest[i].rss * 5) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// The most that was seen while the load ran.
async fn busy(running: &Running, workload: &Workload, ms: u64) -> Result<[Memory; 2]> {
    let (sample, most) = most_until(running, rounds::measure(running, workload, ms)).await;
    sample.map(|_| most)
}

/// The most that is seen until something ends.
async fn most_until<T>(running: &Running, end: impl Future<Output = T>) -> (T, [Memory; 2]) {
    let mut most = both(running);
    tokio::pin!(end);
    loop {
        tokio::select! {
            output = &mut end => return (output, most),
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                for (most, now) in most.iter_mut().zip(both(running)) {
                    most.rss = most.rss.max(now.rss);
                    most.anon = most.anon.max(now.anon);
                }
            }
        }
    }
}

fn both(running: &Running) -> [Memory; 2] {
    [process::memory(&running.outbound), process::memory(&running.inbound)]
}

fn mib(memory: [Memory; 2]) -> [f64; 2] {
    memory.map(|memory| memory.rss as f64 / 1024.0)
}

fn stripped_size(binary: &PathBuf) -> Result<f64> {
    let copy = tempfile::NamedTempFile::new()?;
    let status = std::process::Command::new("strip").arg("-s").arg("-o").arg(copy.path()).arg(binary).status();
    // Without binutils: as it is.
    let file = if status.is_ok_and(|status| status.success()) { copy.path() } else { binary.as_path() };
    Ok(std::fs::metadata(file)?.len() as f64 / 1024.0 / 1024.0)
}

/// True for drivers whose memory says something.
pub(crate) fn counts(driver: Driver) -> bool {
    !matches!(driver, Driver::Direct | Driver::Relay)
}
