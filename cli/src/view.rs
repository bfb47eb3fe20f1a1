//! Golden figures as rows of a table and as JSON; the same for `demo`, `stat` and `top`.

use crate::output::{milliseconds, paint, percent, table};
use crate::scrape::Golden;
use serde_json::{Value, json};
use std::time::Duration;

/// A service's figures over a time.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Empty where there is only one.
    pub namespace: String,
    /// `deployment`, `pod`...; empty for a service on this machine.
    pub kind: String,
    /// The service, or its replica.
    pub name: String,
    /// What the table calls it; empty: its name.
    pub shown: String,
    /// Replicas with a proxy that answered.
    pub meshed: usize,
    /// All replicas.
    pub replicas: usize,
    /// What was counted.
    pub golden: Golden,
    /// In this time.
    pub window: Duration,
}

impl Row {
    fn per_second(&self, count: f64) -> f64 {
        count / self.window.as_secs_f64().max(0.001)
    }

    fn cells(&self, columns: Columns) -> Vec<String> {
        let g = &self.golden;
        let http = g.responses() > 0.0;
        let rps = if http { format!("{:.1}", self.per_second(g.responses())) } else { "-".into() };
        let success = g.success_rate();
        let success_colour = match success {
            Some(rate) if rate < 0.95 => "31",
            Some(rate) if rate < 0.999 => "33",
            _ => "32",
        };
        let secured = g.secured_share();
        let secured_colour = if secured.is_some_and(|s| s < 1.0) { "33" } else { "32" };
        let dash_or = |text: String, colour: &str| if text == "-" { text } else { paint(text, colour) };
        let mut cells = vec![
            paint(if self.shown.is_empty() { &self.name } else { &self.shown }, "1"),
            format!("{}/{}", self.meshed, self.replicas),
            dash_or(percent(success), success_colour),
            rps,
            milliseconds(g.latency_ms(0.50)),
            milliseconds(g.latency_ms(0.95)),
            milliseconds(g.latency_ms(0.99)),
            format!("{:.0}", g.open),
            dash_or(secured.map_or("-".into(), |s| format!("{:.0}%", s * 100.0)), secured_colour),
        ];
        if columns >= Columns::Bytes {
            cells.push(bytes(self.per_second(g.read)));
            cells.push(bytes(self.per_second(g.written)));
        }
        if columns >= Columns::Counts {
            cells.push(format!("{:.0}", g.opened));
            cells.push(format!("{:.0}", g.success));
            cells.push(format!("{:.0}", g.failure));
        }
        cells
    }

    /// Stable field names; figures that do not exist are null.
    pub fn json(&self) -> Value {
        let g = &self.golden;
        json!({
            "namespace": self.namespace,
            "kind": self.kind,
            "meshed": self.meshed,
            "replicas": self.replicas,
            "window_seconds": self.window.as_secs_f64(),
            "success": g.success,
            "failure": g.failure,
            "success_rate": g.success_rate(),
            // Nothing was counted of a proxy that was silent.
            "rps": (!self.window.is_zero()).then(|| self.per_second(g.responses())),
            "p50_ms": g.latency_ms(0.50),
            "p95_ms": g.latency_ms(0.95),
            "p99_ms": g.latency_ms(0.99),
            "tcp_open": g.open,
            "tcp_opened": g.opened,
            "mtls_share": g.secured_share(),
            "read_bytes": g.read,
            "written_bytes": g.written,
        })
    }
}

/// How much a table tells; each has what those before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Columns {
    /// Success, rate, latency, connections, mutual TLS.
    Golden,
    /// Bytes.
    Bytes,
    /// What the rates were made of.
    Counts,
}

/// Rows as a table; the namespace only when asked for.
pub fn rows(rows: &[Row], columns: Columns, with_namespace: bool) -> String {
    let mut head = vec!["NAME", "MESHED", "SUCCESS", "RPS", "P50", "P95", "P99", "TCP_CONN", "MTLS"];
    if columns >= Columns::Bytes {
        head.extend(["READ/S", "WRITE/S"]);
    }
    if columns >= Columns::Counts {
        head.extend(["TCP_OPENED", "SUCCEEDED", "FAILED"]);
    }
    if with_namespace {
        head.insert(0, "NAMESPACE");
    }
    let cells = |row: &Row| {
        let mut cells = row.cells(columns);
        if with_namespace {
            cells.insert(0, row.namespace.clone());
        }
        cells
    };
    let body: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let texts = if with_namespace { 2 } else { 1 };
    table(&head, &body, move |column| column >= texts)
}

/// A rate of bytes for people.
fn bytes(rate: f64) -> String {
    match rate {
        r if r >= 1e9 => format!("{:.1}GB", r / 1e9),
        r if r >= 1e6 => format!("{:.1}MB", r / 1e6),
        r if r >= 1e3 => format!("{:.1}kB", r / 1e3),
        r => format!("{r:.0}B"),
    }
}
