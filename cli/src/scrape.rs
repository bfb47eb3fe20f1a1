//! Reads proxies' `/metrics` and turns them into golden figures: success, rate, latency, connections, mTLS.
//!
//! Counters only grow while a proxy lives, so figures of a time are the difference of two scrapes; a proxy that
//! restarted in between counts from zero. Every fetch is bounded in time and size.

use crate::error::causes;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use std::collections::BTreeMap;
use std::time::Duration;

/// Proxies asked at once.
const PARALLEL: usize = 16;
/// A proxy answers in milliseconds; a stopped one must not hold up the table.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Ten thousand series of 400 bytes.
const BODY_BYTES: usize = 4 * 1024 * 1024;

/// One line of an exposition.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// In the order of the line.
    pub labels: Vec<(String, String)>,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// A label's value, empty if it is missing.
    pub fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// Fetches from many addresses (`ip:port`) at once; the answers keep the order.
pub async fn all(addresses: Vec<String>) -> Vec<Result<Vec<Sample>, String>> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(TIMEOUT));
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let fetches = addresses.into_iter().map(|address| {
        let client = client.clone();
        async move {
            let fetch = fetch(&client, &address);
            tokio::time::timeout(TIMEOUT, fetch).await.unwrap_or_else(|_| Err(format!("{address} did not answer")))
        }
    });
    stream::iter(fetches).buffered(PARALLEL).collect().await
}

async fn fetch(client: &Client<HttpConnector, Empty<Bytes>>, address: &str) -> Result<Vec<Sample>, String> {
    let uri = format!("http://{address}/metrics").parse().map_err(|e| format!("{address}: {e}"))?;
    let response = client.get(uri).await.map_err(|e| format!("{address}: {}", causes(&e)))?;
    if !response.status().is_success() {
        return Err(format!("{address}: {}", response.status()));
    }
    let body = Limited::new(response.into_body(), BODY_BYTES).collect().await.map_err(|e| format!("{address}: {e}"))?;
    Ok(parse(&String::from_utf8_lossy(&body.to_bytes())))
}

/// Reads Prometheus text. Lines that are none are left out.
pub fn parse(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((key.to_string(), value));
            rest = after;
        }
    }
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_string(), labels, value })
}

/// Reads up to the closing quote; backslash escapes as in the exposition format.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// What some proxies have counted, in one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Golden {
    /// Responses that succeeded.
    pub success: f64,
    /// Responses that failed.
    pub failure: f64,
    /// Upper bound in microseconds to responses up to it.
    latency: BTreeMap<u64, f64>,
    /// Requests and connections with mTLS.
    pub secured: f64,
    /// All requests and connections.
    pub carried: f64,
    /// Connections opened.
    pub opened: f64,
    /// Connections open now.
    pub open: f64,
    /// Bytes read from peers.
    pub read: f64,
    /// Bytes written to peers.
    pub written: f64,
}

impl Golden {
    /// Adds samples that `wanted` accepts.
    pub fn add(&mut self, samples: &[Sample], wanted: impl Fn(&Sample) -> bool) {
        for sample in samples.iter().filter(|s| wanted(s)) {
            // A connection has two ends; the one on the mesh's side is `src` of what comes in, `dst` of what goes out.
            let far_end = match sample.label("direction") {
                "inbound" => sample.label("peer") == "src",
                _ => sample.label("peer") == "dst",
            };
            match sample.name.as_str() {
                "response_total" => {
                    if sample.label("classification") == "success" {
                        self.success += sample.value;
                    } else {
                        self.failure += sample.value;
                    }
                    self.carry(sample);
                }
                "response_latency_ms_bucket" => {
                    let le = sample.label("le").parse::<f64>().unwrap_or(f64::INFINITY);
                    let bound = if le.is_finite() { (le * 1000.0) as u64 } else { u64::MAX };
                    *self.latency.entry(bound).or_default() += sample.value;
                }
                "tcp_open_total" if far_end => {
                    self.opened += sample.value;
                    self.carry(sample);
                }
                "tcp_open_connections" if far_end => self.open += sample.value,
                "tcp_read_bytes_total" if far_end => self.read += sample.value,
                "tcp_write_bytes_total" if far_end => self.written += sample.value,
                _ => {}
            }
        }
    }

    fn carry(&mut self, sample: &Sample) {
        self.carried += sample.value;
        if sample.label("tls") == "true" {
            self.secured += sample.value;
        }
    }

    /// What happened between two scrapes. A counter that shrank has started anew.
    pub fn since(&self, earlier: &Golden) -> Golden {
        let grown = |now: f64, then: f64| if now >= then { now - then } else { now };
        Golden {
            success: grown(self.success, earlier.success),
            failure: grown(self.failure, earlier.failure),
            latency: self
                .latency
                .iter()
                .map(|(&bound, &now)| (bound, grown(now, earlier.latency.get(&bound).copied().unwrap_or(0.0))))
                .collect(),
            secured: grown(self.secured, earlier.secured),
            carried: grown(self.carried, earlier.carried),
            opened: grown(self.opened, earlier.opened),
            open: self.open,
            read: grown(self.read, earlier.read),
            written: grown(self.written, earlier.written),
        }
    }

    /// The sum of both.
    pub fn merge(&mut self, other: &Golden) {
        self.success += other.success;
        self.failure += other.failure;
        self.secured += other.secured;
        self.carried += other.carried;
        self.opened += other.opened;
        self.open += other.open;
        self.read += other.read;
        self.written += other.written;
        for (&bound, &count) in &other.latency {
            *self.latency.entry(bound).or_default() += count;
        }
    }

    /// Responses.
    pub fn responses(&self) -> f64 {
        self.success + self.failure
    }

    /// Share of responses that succeeded.
    pub fn success_rate(&self) -> Option<f64> {
        (self.responses() > 0.0).then(|| self.success / self.responses())
    }

    /// Share of requests and connections with mTLS.
    pub fn secured_share(&self) -> Option<f64> {
        (self.carried > 0.0).then(|| self.secured / self.carried)
    }

    /// A quantile (0 to 1) in milliseconds, interpolated within its bucket as Prometheus does.
    pub fn latency_ms(&self, quantile: f64) -> Option<f64> {
        let total = *self.latency.values().next_back()?;
        if total <= 0.0 {
            return None;
        }
        let rank = quantile * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (&bound, &count) in &self.latency {
            if bound == u64::MAX {
                break;
            }
            let upper = bound as f64 / 1000.0;
            if count >= rank {
                let within = if count > below { (rank - below) / (count - below) } else { 1.0 };
                return Some(lower + (upper - lower) * within);
            }
            (lower, below) = (upper, count);
        }
        // Beyond the last bound nothing is known but that.
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = r#"# HELP response_total Responses
response_total{direction="inbound",classification="success",tls="true",note="a \"b\", c}"} 90
response_total{direction="inbound",classification="failure",tls="no_identity"} 10
response_total{direction="outbound",classification="success",tls="true"} 7
response_latency_ms_bucket{direction="inbound",le="1"} 50
response_latency_ms_bucket{direction="inbound",le="10"} 90
response_latency_ms_bucket{direction="inbound",le="+Inf"} 100
tcp_open_connections{direction="inbound",peer="src"} 3
tcp_open_connections{direction="inbound",peer="dst"} 2
process_start_time_seconds 1.5e9
nonsense{
"#;

    fn inbound(text: &str) -> Golden {
        let mut golden = Golden::default();
        golden.add(&parse(text), |s| s.label("direction") == "inbound");
        golden
    }

    #[test]
    fn figures_come_from_one_direction() {
        let golden = inbound(TEXT);
        assert_eq!((golden.success, golden.failure, golden.open), (90.0, 10.0, 3.0));
        assert_eq!((golden.success_rate(), golden.secured_share()), (Some(0.9), Some(0.9)));
        assert_eq!(golden.latency_ms(0.5), Some(1.0));
        assert_eq!(golden.latency_ms(0.7), Some(5.5));
        assert_eq!(golden.latency_ms(0.99), Some(10.0));
        assert_eq!(Golden::default().latency_ms(0.5), None);
    }

    #[test]
    fn labels_may_hold_quotes_and_braces() {
        assert_eq!(parse(TEXT)[0].label("note"), "a \"b\", c}");
        assert_eq!(parse(TEXT).len(), 9);
    }

    #[test]
    fn a_restarted_proxy_counts_from_zero() {
        let (before, after) = (inbound(TEXT), inbound(&TEXT.replace("} 90\nresponse_total", "} 5\nresponse_total")));
        assert_eq!(after.since(&before).success, 5.0);
        assert_eq!(after.since(&before).failure, 0.0);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            parse(&text);
            parse(&format!("a{{{text}"));
        }
    }
}
