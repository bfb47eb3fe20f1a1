//! The order of things: start all drivers, measure memory, then rounds over all workloads and drivers in turn.
//!
//! The machine's speed drifts within minutes, so that a figure only means something beside those of the same round.

use crate::control::Control;
use crate::driver::{self, Driver, Running};
use crate::load::Figures;
use crate::memory::{self, Footprint};
use crate::peers::Certificates;
use crate::workload::{self, Unit, Workload};
use crate::{Args, network, process, report};
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// CPU-µs per request, or CPU-s per GiB: outbound proxy, inbound proxy.
    pub cost: [f64; 2],
    /// Requests (or MiB) per second.
    pub rate: f64,
    /// Latencies in microseconds: p50, p99, p99.9.
    pub latency: [f64; 3],
    /// Something else took more than a tenth of one processor.
    pub disturbed: bool,
}

impl Sample {
    /// Of the pair.
    pub(crate) fn pair(&self) -> f64 {
        self.cost[0] + self.cost[1]
    }
}

/// Everything measured.
#[derive(Default)]
pub(crate) struct Results {
    /// By workload's name and driver: one for each round.
    pub samples: BTreeMap<(&'static str, Driver), Vec<Option<Sample>>>,
    /// By driver.
    pub memory: BTreeMap<Driver, Footprint>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// Of one processor; more, and a measurement is disturbed.
const FOREIGN: f64 = 0.10;
/// How often a disturbed measurement is tried again.
const AGAIN: usize = 1;

/// Runs the bench; true when a bound is missed.
pub(crate) async fn run(args: &Args) -> Result<bool> {
    let folder = tempfile::Builder::new().prefix("gossamer-bench-").tempdir()?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Certificates::make(folder.path())?;
    let control = Control::start(folder.path()).await?;
    let (rounds, ms) = if args.quick { (1, 1000) } else { (3, 2000) };
    let (rounds, ms) = (args.rounds.unwrap_or(rounds), args.ms.unwrap_or(ms));
    let mut results = Results::default();

    let mut running = Vec::new();
    for (number, driver) in drivers(args).into_iter().enumerate() {
        let ours = network::proxy_binary();
        let binary = if driver == Driver::Linkerd { args.linkerd.as_deref().unwrap_or(&ours) } else { &ours };
        let started = Running::start(driver, number as u8 + 1, folder.path(), &control, binary).await;
        match started {
            Ok(pair) => running.push(pair),
            Err(error) => {
                results.failures.push(format!("{driver} could not be started: {error:#}{}", logs(folder.path())))
            }
        }
    }
    if let Some(seconds) = args.hold {
        for pair in &running {
            let target = pair.target(crate::server::HTTP);
            let first = pair.start.as_millis();
            let (driver, outbound, inbound) = (pair.driver, &pair.outbound, &pair.inbound);
            eprintln!(
                "{driver}: first answer after {first} ms, outbound {outbound:?}, inbound {inbound:?}, target {target}"
            );
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
    if wanted(args, "memory") {
        let idle: &[usize] = if args.quick { &[1000] } else { &[1000, 10_000] };
        for pair in running.iter().filter(|pair| memory::counts(pair.driver)) {
            eprintln!("memory of {}", pair.driver);
            // A relay has two descriptors for each: not ten thousand.
            let idle = if pair.driver == Driver::TlsRelay { &idle[..1] } else { idle };
            match memory::measure(pair, idle, ms, driver::binary(pair.driver, args.linkerd.as_deref())).await {
                Ok(footprint) => drop(results.memory.insert(pair.driver, footprint)),
                Err(error) => results.failures.push(format!("memory of {}: {error:#}", pair.driver)),
            }
        }
    }
    let workloads: Vec<Workload> =
        workload::ALL.into_iter().filter(|w| wanted(args, w.name) && (w.quick || !args.quick)).collect();
    for round in 0..rounds {
        for workload in &workloads {
            eprintln!("round {} of {rounds}: {}", round + 1, workload.title);
            // Another first one each time: what comes after what must not matter.
            for i in 0..running.len() {
                let pair = &running[(i + round) % running.len()];
                if workload.needs_mesh() && !pair.driver.is_mesh() {
                    continue;
                }
                let sample = match prepared(&control, pair, workload, ms).await {
                    Ok(sample) => Some(sample),
                    Err(error) => {
                        results.failures.push(format!("{}, {}: {error:#}", workload.title, pair.driver));
                        None
                    }
                };
                results.samples.entry((workload.name, pair.driver)).or_default().push(sample);
            }
        }
    }
    let report = report::render(&results, &workloads, rounds, ms);
    println!("{}", report.text);
    let file = match &args.markdown {
        Some(file) => file.clone(),
        None => std::env::current_exe()?.with_file_name("bench.md"),
    };
    std::fs::write(&file, &report.text).with_context(|| file.display().to_string())?;
    eprintln!("written to {}", file.display());
    Ok(report.missed > 0)
}

fn drivers(args: &Args) -> Vec<Driver> {
    let asked = |driver: &Driver| args.drivers.is_empty() || args.drivers.iter().any(|name| name == driver.name());
    let there = |driver: &Driver| *driver != Driver::Linkerd || args.linkerd.is_some();
    Driver::ALL.into_iter().filter(asked).filter(there).collect()
}

fn wanted(args: &Args, name: &str) -> bool {
    args.only.is_empty() || args.only.iter().any(|only| only == name)
}

/// With as many endpoints as the workload wants, all of which are connected to before it counts.
pub(crate) async fn prepared(control: &Control, pair: &Running, workload: &Workload, ms: u64) -> Result<Sample> {
    let _held = control.endpoints(&pair.pair, workload.endpoints - 1)?;
    undisturbed(pair, workload, ms).await
}

/// A disturbed measurement is tried again; the last one counts, and says so.
async fn undisturbed(pair: &Running, workload: &Workload, ms: u64) -> Result<Sample> {
    let mut sample = measure(pair, workload, ms).await?;
    for _ in 0..AGAIN {
        if !sample.disturbed {
            break;
        }
        sample = measure(pair, workload, ms).await?;
    }
    Ok(sample)
}

/// Runs one load and reads the clocks when it says so.
pub(crate) async fn measure(pair: &Running, workload: &Workload, ms: u64) -> Result<Sample> {
    let mut load = pair.load()?;
    let kind = clap::ValueEnum::to_possible_value(&workload.kind).context("every kind has a name")?;
    let target = if workload.services > 1 { pair.first_service(workload.port) } else { pair.target(workload.port) };
    load.args(["--kind", kind.get_name(), "--target", &target.to_string(), "--spread", &workload.services.to_string()]);
    let warm = if workload.needs_mesh() { 3000 } else { 300 };
    load.args(["--connections", &workload.connections.to_string(), "--path", workload.path]);
    load.args(["--rate", &workload.rate.max(1).to_string(), "--ms", &ms.to_string(), "--warm-ms", &warm.to_string()]);
    let mut load = load.spawn()?;
    let own = [load.id().context("the load has ended")?, pair.server, std::process::id()];
    let mut lines = BufReader::new(load.stdout.take().context("piped")?).lines();
    let mut line = async || -> Result<String> {
        let line = tokio::time::timeout(Duration::from_millis(ms + 30_000), lines.next_line()).await;
        line.context("the load hangs")??.context("the load has failed")
    };
    ensure!(line().await? == "start", "an unknown word of the load");
    let read = || {
        let (outbound, inbound) = (process::run_time(&pair.outbound), process::run_time(&pair.inbound));
        [outbound, inbound, process::run_time(&own), process::machine_time()].map(|time| time.as_secs_f64())
    };
    let before = read();
    let stop = line().await?;
    let after = read();
    let figures: Figures = serde_json::from_str(stop.strip_prefix("stop ").context("an unknown word of the load")?)?;
    load.wait().await?;
    ensure!(figures.failed == 0, "{} requests failed: {}", figures.failed, figures.failure);
    ensure!(figures.done > 0, "nothing was answered");
    let [outbound, inbound, others, machine] = [0, 1, 2, 3].map(|i| after[i] - before[i]);
    let foreign = machine - outbound - inbound - others;
    let per = match workload.unit {
        Unit::Request => 1e6 / figures.done as f64,
        Unit::Gibibyte => (1u64 << 30) as f64 / figures.done as f64,
    };
    let rate = figures.done as f64 / figures.seconds;
    Ok(Sample {
        cost: [outbound * per, inbound * per],
        rate: if workload.unit == Unit::Gibibyte { rate / (1 << 20) as f64 } else { rate },
        latency: [figures.p50, figures.p99, figures.p999],
        disturbed: foreign > FOREIGN * figures.seconds,
    })
}

/// What the proxies said, where one could not be started.
fn logs(folder: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(3).collect();
            text += &tail.into_iter().rev().map(|line| format!("\n    {line}")).collect::<String>();
        }
    }
    text
}
