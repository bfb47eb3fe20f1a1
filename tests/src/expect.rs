//! Waits on conditions, with deadlines, and reads metrics.

use crate::client;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How long anything may take before a test fails. Generous: the machine may be busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// The future's result, within [`DEADLINE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: nothing within {DEADLINE:?}"),
    }
}

/// Asks again and again until the answer is `Some`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks again and again until the answer is the expected one.
pub async fn becomes<T: PartialEq + Debug, F: Future<Output = T>>(expected: T, mut look: impl FnMut() -> F) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let value = look().await;
        if value == expected {
            return;
        }
        assert!(Instant::now() < deadline, "still {value:?} after {DEADLINE:?}, not {expected:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// As it was sent.
    pub text: String,
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Scrapes a proxy's admin address.
    pub async fn of(admin: SocketAddr) -> Metrics {
        let answer = client::get(admin, "proxy", "/metrics").await;
        assert_eq!(answer.status, 200);
        Metrics::parse(&answer.text())
    }

    /// Reads Prometheus text; anything that is not that is a panic with the line.
    pub fn parse(text: &str) -> Metrics {
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = lines.map(|line| sample(line).unwrap_or_else(|| panic!("no sample: {line:?}"))).collect();
        Metrics { text: text.to_string(), samples }
    }

    /// The sum of a metric's series that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|(_, value)| value).sum()
    }

    /// A metric's series that have all of these labels.
    pub fn series<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a BTreeMap<String, String>, f64)> {
        let has = move |set: &BTreeMap<String, String>| {
            labels.iter().all(|(key, value)| set.get(*key).is_some_and(|present| present == value))
        };
        self.samples.iter().filter(move |(n, set, _)| n == name && has(set)).map(|(_, set, value)| (set, *value))
    }

    /// All metrics' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.iter().map(|(name, ..)| name.as_str())
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, labels)) = series.split_once('{') else {
        return Some((series.to_string(), BTreeMap::new(), value));
    };
    let mut rest = labels.strip_suffix('}')?;
    let mut set = BTreeMap::new();
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut chars = after.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => text.push(match chars.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, c) => text.push(c),
            }
        };
        // The same label twice is no valid series.
        if set.insert(key.to_string(), text).is_some() {
            return None;
        }
        rest = after[end + 1..].trim_start_matches(',');
    }
    Some((name.to_string(), set, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let metrics = Metrics::parse("# HELP a b\na{x=\"1\",y=\"a\\\"b,c\"} 2\na{x=\"2\"} 3\nb 4.5\n");
        assert_eq!((metrics.sum("a", &[]), metrics.sum("a", &[("x", "1")]), metrics.sum("b", &[])), (5.0, 2.0, 4.5));
        assert_eq!(metrics.series("a", &[("y", "a\"b,c")]).count(), 1);
    }
}
