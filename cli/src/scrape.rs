//! Reads proxies' `/metrics` and turns them into golden figures: success, rate, latency, connections, mTLS.
//!
//! Counters only grow while a proxy lives, so figures of a time are the [`difference`] of two scrapes; a proxy that
//! restarted in between counts from zero. Every fetch is bounded in time and size.

use crate::error::causes;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

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
    let fetches = addresses.into_iter().map(|address| async move {
        let fetch = async {
            let stream = TcpStream::connect(&address).await.map_err(|e| format!("{address}: {e}"))?;
            fetch(stream, "/metrics").await.map_err(|e| format!("{address}: {e}"))
        };
        let text =
            tokio::time::timeout(TIMEOUT, fetch).await.unwrap_or_else(|_| Err(format!("{address} did not answer")));
        text.map(|text| parse(&text))
    });
    stream::iter(fetches).buffered(PARALLEL).collect().await
}

/// Asks for a page over a connection to an admin port. Bounded in size; who calls bounds the time.
pub async fn fetch(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, path: &str) -> Result<String, String> {
    Pages::open(io).await?.fetch(path).await
}

/// A connection to an admin port, for one page after the other. Closed when dropped.
pub struct Pages(SendRequest<Empty<Bytes>>);

impl Pages {
    /// Takes the connection over.
    pub async fn open(io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Pages, String> {
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|e| causes(&e))?;
        // Ends with the sender, and the body of an answer.
        tokio::spawn(connection);
        Ok(Pages(sender))
    }

    /// Asks for a page. Bounded in size; who calls bounds the time.
    pub async fn fetch(&mut self, path: &str) -> Result<String, String> {
        self.0.ready().await.map_err(|e| causes(&e))?;
        let request = http::Request::get(path).header(http::header::HOST, "localhost").body(Empty::new());
        let response = self.0.send_request(request.map_err(|e| e.to_string())?).await.map_err(|e| causes(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES).collect().await.map_err(|e| causes(&*e))?;
        let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        if status.is_success() { Ok(text) } else { Err(format!("{status} {}", text.trim()).trim().to_string()) }
    }
}

/// What was counted between two scrapes, series by series. A counter that shrank has started anew; one that is new began
/// at zero; one that has gone has counted nothing. Gauges are as they are now.
pub fn difference(before: &[Sample], after: &[Sample]) -> Vec<Sample> {
    let series = |sample: &Sample| (sample.name.clone(), sample.labels.clone());
    let then: HashMap<_, f64> = before.iter().map(|sample| (series(sample), sample.value)).collect();
    let counts = ["_total", "_bucket", "_count", "_sum"];
    let grown = |sample: &Sample| {
        let mut sample = sample.clone();
        if counts.iter().any(|end| sample.name.ends_with(end)) {
            let then = then.get(&series(&sample)).copied().unwrap_or_default();
            sample.value -= if sample.value >= then { then } else { 0.0 };
        }
        sample
    };
    after.iter().map(grown).collect()
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
    /// The kubelet's health checks: not what anybody asks about, and never with mTLS.
    probes: f64,
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
            if sample.label("route_name") == "probe" && sample.label("route_kind") == "default" {
                self.probes += if sample.name == "response_total" { sample.value } else { 0.0 };
                continue;
            }
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
        if sample.label("tls").is_empty() {
            return;
        }
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
            probes: grown(self.probes, earlier.probes),
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
        self.probes += other.probes;
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

    /// Share of requests and connections with mTLS. Each health check came on a plain connection of its own.
    pub fn secured_share(&self) -> Option<f64> {
        let carried = (self.carried - self.probes).max(self.secured);
        (carried > 0.0).then(|| self.secured / carried)
    }

    /// True when anything but health checks was counted.
    pub fn is_used(&self) -> bool {
        self.responses() > 0.0 || self.opened > self.probes
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

    #[test]
    fn series_are_compared_one_by_one() {
        let one = |text: &str| parse(text);
        let before = one("a_total{x=\"1\"} 10\na_total{x=\"2\"} 5\nopen{x=\"1\"} 3\n");
        let after = one("a_total{x=\"2\"} 9\na_total{x=\"3\"} 2\nopen{x=\"1\"} 1\n");
        let values: Vec<f64> = difference(&before, &after).iter().map(|sample| sample.value).collect();
        // The first series was forgotten while idle: it must not look like a restart of all.
        assert_eq!(values, [4.0, 2.0, 1.0]);
        assert_eq!(difference(&after, &one("a_total{x=\"2\"} 4\n"))[0].value, 4.0);
    }

    #[test]
    fn health_checks_are_not_traffic() {
        let probes = "response_total{direction=\"inbound\",route_kind=\"default\",route_name=\"probe\",tls=\"no_identity\"} 30\n\
                      tcp_open_total{direction=\"inbound\",peer=\"src\",tls=\"no_identity\"} 30\n";
        assert!(!inbound(probes).is_used());
        assert_eq!(inbound(probes).secured_share(), None);
        let text =
            format!("{probes}response_total{{direction=\"inbound\",classification=\"success\",tls=\"true\"}} 8\n");
        assert_eq!((inbound(&text).responses(), inbound(&text).secured_share()), (8.0, Some(1.0)));
    }

    #[tokio::test]
    async fn a_page_is_fetched_over_any_connection() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let serve = |answer: &'static str| {
            let (ours, mut theirs) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let read = theirs.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /metrics HTTP/1.1\r\n"));
                theirs.write_all(answer.as_bytes()).await.unwrap();
            });
            ours
        };
        let fine = serve("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n");
        assert_eq!(fetch(fine, "/metrics").await.as_deref(), Ok("a 1\n"));
        let refused = serve("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(fetch(refused, "/metrics").await, Err("404 Not Found".into()));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*") {
            parse(&text);
            parse(&format!("a{{{text}"));
        }
    }
}
