//! Tables, and whether the bounds hold.

use crate::bounds::{self, Ratio};
use crate::driver::Driver;
use crate::rounds::{Results, Sample};
use crate::workload::Workload;
use std::fmt::Write;

/// What is printed and written.
pub(crate) struct Report {
    /// Markdown.
    pub text: String,
    /// Bounds that do not hold.
    pub missed: usize,
}

/// Makes it.
pub(crate) fn render(results: &Results, workloads: &[Workload], rounds: usize, ms: u64) -> Report {
    let mut text = format!(
        "{rounds} rounds of {ms} ms; medians (least..most); `~`: the machine was busy with something else.\n\n"
    );
    let mut drivers: Vec<Driver> = Driver::ALL.into_iter().collect();
    drivers.retain(|driver| results.samples.keys().any(|(_, d)| d == driver));
    if !workloads.is_empty() {
        text += "### CPU of the pair, µs per request (bulk: s per GiB)\n\n";
        table(&mut text, workloads, &drivers, |w, d| {
            (d != Driver::Direct).then(|| cell(samples(results, w, d), Sample::pair))
        });
        text += "\n### Requests (bulk: MiB) per second\n\n";
        table(&mut text, workloads, &drivers, |w, d| Some(cell(samples(results, w, d), |s| s.rate)));
        let open: Vec<Workload> = workloads.iter().filter(|w| w.name.starts_with("open")).copied().collect();
        if !open.is_empty() {
            text += "\n### Latency from the scheduled moment, µs: p50 / p99 / p99.9\n\n";
            table(&mut text, &open, &drivers, |w, d| {
                let samples = samples(results, w, d);
                let at = |i: usize| median(&values(samples, |s| s.latency[i])).map_or("-".into(), figure);
                Some(format!("{} / {} / {}", at(0), at(1), at(2)))
            });
        }
    }
    memory(&mut text, results);
    let missed = verdicts(&mut text, results);
    for failure in &results.failures {
        let _ = writeln!(text, "\nNot measured: {failure}");
    }
    Report { text, missed: missed + usize::from(!results.failures.is_empty()) }
}

fn samples<'a>(results: &'a Results, workload: &str, driver: Driver) -> &'a [Option<Sample>] {
    let found = results.samples.iter().find(|((w, d), _)| *w == workload && *d == driver);
    found.map_or(&[], |(_, samples)| samples)
}

fn table(text: &mut String, workloads: &[Workload], drivers: &[Driver], cell: impl Fn(&str, Driver) -> Option<String>) {
    let shown: Vec<Driver> =
        drivers.iter().copied().filter(|d| workloads.iter().any(|w| cell(w.name, *d).is_some())).collect();
    let mut rows = vec![std::iter::once("workload".to_string()).chain(shown.iter().map(Driver::to_string)).collect()];
    for workload in workloads {
        let cells = shown.iter().map(|d| cell(workload.name, *d).unwrap_or_else(|| "-".into()));
        rows.push(std::iter::once(workload.title.to_string()).chain(cells).collect::<Vec<String>>());
    }
    align(text, &rows);
}

/// A table that reads well as text, too.
fn align(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> =
        (0..columns).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for (n, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} "));
        let _ = writeln!(text, "|{}|", cells.collect::<Vec<_>>().join("|"));
        if n == 0 {
            let rules = widths.iter().map(|width| "-".repeat(width + 2));
            let _ = writeln!(text, "|{}|", rules.collect::<Vec<_>>().join("|"));
        }
    }
}

/// Undisturbed ones; if there are none, all.
fn values(samples: &[Option<Sample>], value: impl Fn(&Sample) -> f64) -> Vec<f64> {
    let calm: Vec<f64> = samples.iter().flatten().filter(|sample| !sample.disturbed).map(&value).collect();
    if calm.is_empty() { samples.iter().flatten().map(value).collect() } else { calm }
}

fn cell(samples: &[Option<Sample>], value: impl Fn(&Sample) -> f64) -> String {
    let disturbed = samples.iter().flatten().all(|sample| sample.disturbed);
    let values = values(samples, value);
    let Some(middle) = median(&values) else { return "-".into() };
    let mark = if disturbed { "~" } else { "" };
    match values.len() {
        1 => format!("{mark}{}", figure(middle)),
        _ => format!("{mark}{} ({}..{})", figure(middle), figure(least(&values)), figure(most(&values))),
    }
}

fn memory(text: &mut String, results: &Results) {
    if results.memory.is_empty() {
        return;
    }
    text.push_str("\n### Memory (resident MiB, outbound / inbound), start and size\n\n");
    let mut rows: Vec<Vec<String>> = vec![
        [
            "",
            "at rest",
            "most",
            "of it anonymous",
            "KiB per idle connection (pair)",
            "256 busy",
            "after",
            "first answer, ms",
            "binary, MiB",
        ]
        .map(String::from)
        .to_vec(),
    ];
    for (driver, memory) in &results.memory {
        let two = |[outbound, inbound]: [f64; 2]| format!("{outbound:.1} / {inbound:.1}");
        let idle = memory.idle.iter().map(|(n, kib)| format!("{kib:.1} ({n})")).collect::<Vec<_>>().join(", ");
        rows.push(vec![
            driver.to_string(),
            two(memory.rest),
            two(memory.rest_most),
            two(memory.rest_anon),
            idle,
            two(memory.busy),
            two(memory.after),
            format!("{:.0}", memory.start_ms),
            memory.binary.map_or("-".into(), |mib| format!("{mib:.1}")),
        ]);
    }
    align(text, &rows);
}

/// One line for each bound that could be judged.
fn verdicts(text: &mut String, results: &Results) -> usize {
    let mut rows = vec![["bound", "at most", "measured", "noise", ""].map(String::from).to_vec()];
    let mut missed = 0;
    let mut judge = |what: String, at_most: f64, measured: f64, noise: f64| {
        let holds = measured - noise <= at_most;
        missed += usize::from(!holds);
        let verdict = match holds {
            true if measured <= at_most => "holds",
            true => "holds within noise",
            false => "MISSED",
        };
        rows.push(vec![what, format!("{at_most:.2}"), format!("{measured:.2}"), format!("{noise:.2}"), verdict.into()]);
    };
    for bound in bounds::CPU {
        if let Some((middle, noise)) = compare(results, bound, |ours, theirs, _| Some(ours.pair() / theirs.pair())) {
            judge(format!("CPU, {}, against {}", bound.workload, bound.peer), bound.at_most, middle, noise);
        }
    }
    for bound in bounds::LATENCY {
        let added = |ours: &Sample, theirs: &Sample, direct: Option<&Sample>| {
            let direct = direct?.latency[0];
            Some((ours.latency[0] - direct) / (theirs.latency[0] - direct))
        };
        if let Some((middle, noise)) = compare(results, bound, added) {
            judge(format!("p50 over direct, {}, against {}", bound.workload, bound.peer), bound.at_most, middle, noise);
        }
    }
    if let Some(ours) = results.memory.get(&Driver::Gossamer) {
        let larger = |[a, b]: [f64; 2]| a.max(b);
        judge("most memory at rest, MiB".into(), bounds::REST_MIB, larger(ours.rest_most), 0.0);
        for (connections, kib) in &ours.idle {
            judge(format!("KiB per idle connection of {connections}"), bounds::IDLE_KIB, *kib, 0.0);
        }
        judge("memory under 256 busy, MiB".into(), bounds::BUSY_MIB, larger(ours.busy), 0.0);
        let back = (0..2).map(|i| ours.after[i] / ours.rest[i]).fold(0.0, f64::max);
        judge("memory after load, of that at rest".into(), bounds::AFTER, back, 0.0);
        judge("first answer, ms".into(), bounds::START_MS, ours.start_ms, 0.0);
        if let Some(mib) = ours.binary {
            judge("binary, MiB".into(), bounds::BINARY_MIB, mib, 0.0);
        }
        if let Some(linkerd) = results.memory.get(&Driver::Linkerd) {
            let ratio = larger(ours.rest_most) / larger(linkerd.rest);
            judge("most memory at rest, against linkerd".into(), bounds::REST_LINKERD, ratio, 0.0);
        }
    }
    if rows.len() > 1 {
        text.push_str("\n### Bounds (ratios within the same round; noise: half their spread)\n\n");
        align(text, &rows);
    }
    missed
}

/// The median of the rounds' ratios, and half their spread (a tenth, of a single round).
fn compare(
    results: &Results,
    bound: &Ratio,
    ratio: impl Fn(&Sample, &Sample, Option<&Sample>) -> Option<f64>,
) -> Option<(f64, f64)> {
    let of = |driver| samples(results, bound.workload, driver);
    let (ours, theirs, direct) = (of(Driver::Gossamer), of(bound.peer), of(Driver::Direct));
    let mut all = Vec::new();
    let mut calm = Vec::new();
    for (round, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let (Some(ours), Some(theirs)) = (ours, theirs) else { continue };
        let Some(ratio) = ratio(ours, theirs, direct.get(round).and_then(Option::as_ref)) else { continue };
        all.push(ratio);
        if !ours.disturbed && !theirs.disturbed {
            calm.push(ratio);
        }
    }
    let ratios = if calm.is_empty() { all } else { calm };
    let middle = median(&ratios)?;
    let noise = if ratios.len() > 1 { (most(&ratios) - least(&ratios)) / 2.0 } else { middle / 10.0 };
    Some((middle, noise))
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// Three digits that matter.
fn figure(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}
