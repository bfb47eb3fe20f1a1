//! What the webhooks did, as Prometheus text. Names are Linkerd's.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Counters by labels.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    requests: BTreeMap<String, u64>,
    responses: BTreeMap<String, u64>,
    validations: BTreeMap<String, u64>,
    seconds: f64,
    answered: u64,
    certificate_ends: u64,
}

/// What became of a pod.
#[derive(Clone, Debug, Default)]
pub struct Injected<'a> {
    /// Kind of the pod's owner, in lower case; empty: none.
    pub owner_kind: &'a str,
    /// Where.
    pub namespace: &'a str,
    /// `workload` or `namespace`; empty: nobody asked.
    pub annotation_at: &'a str,
    /// Why not; empty: it was injected.
    pub skip_reason: &'a str,
}

impl Metrics {
    /// A pod was decided about, in this time.
    pub fn injected(&self, what: &Injected<'_>, took: Duration) {
        let labels = format!(
            "owner_kind=\"{}\",namespace=\"{}\",annotation_at=\"{}\"",
            what.owner_kind, what.namespace, what.annotation_at
        );
        let result = format!("{labels},skip=\"{}\",skip_reason=\"{}\"", !what.skip_reason.is_empty(), what.skip_reason);
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut inner.requests, labels);
        count(&mut inner.responses, result);
        inner.seconds += took.as_secs_f64();
        inner.answered += 1;
    }

    /// An object was looked at.
    pub fn validated(&self, kind: &str, result: &str) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        count(&mut inner.validations, format!("kind=\"{kind}\",result=\"{result}\""));
    }

    /// When the serving certificate ends, in seconds since 1970.
    pub fn certificate_ends(&self, seconds: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).certificate_ends = seconds;
    }

    /// Prometheus text.
    pub fn text(&self) -> String {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for (name, help, counts) in [
            ("proxy_inject_admission_requests_total", "Pods that were asked about.", &inner.requests),
            ("proxy_inject_admission_responses_total", "What became of them.", &inner.responses),
            ("validation_admission_responses_total", "Objects that were looked at.", &inner.validations),
        ] {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
            for (labels, count) in counts {
                let _ = writeln!(text, "{name}{{{labels}}} {count}");
            }
        }
        let (name, end) = ("proxy_inject_admission_seconds", "serving_certificate_expiry_timestamp_seconds");
        let _ = write!(text, "# HELP {name} Time to decide about a pod.\n# TYPE {name} summary\n");
        let _ = write!(text, "{name}_sum {}\n{name}_count {}\n", inner.seconds, inner.answered);
        let _ = write!(text, "# HELP {end} When the serving certificate ends.\n# TYPE {end} gauge\n");
        let _ = writeln!(text, "{end} {}", inner.certificate_ends);
        text
    }
}

/// Counts; what has labels beyond the bound is counted together.
fn count(counts: &mut BTreeMap<String, u64>, labels: String) {
    let labels =
        if counts.len() < MAX_SERIES || counts.contains_key(&labels) { labels } else { "overflow=\"true\"".into() };
    *counts.entry(labels).or_default() += 1;
}

/// Namespaces times kinds times reasons; who has more gets their sum.
const MAX_SERIES: usize = 2000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_linkerds() {
        let metrics = Metrics::default();
        let what =
            Injected { owner_kind: "deployment", namespace: "demo", annotation_at: "namespace", skip_reason: "" };
        metrics.injected(&what, Duration::from_millis(1));
        metrics.injected(&Injected { skip_reason: "sidecar_exists", ..what }, Duration::from_millis(1));
        let text = metrics.text();
        assert!(
            text.contains(
                "requests_total{owner_kind=\"deployment\",namespace=\"demo\",annotation_at=\"namespace\"} 2\n"
            )
        );
        assert!(text.contains("annotation_at=\"namespace\",skip=\"true\",skip_reason=\"sidecar_exists\"} 1\n"));
        assert!(text.contains("seconds_sum 0.002\n"));
    }

    #[test]
    fn series_are_bounded() {
        let mut counts = BTreeMap::new();
        (0..MAX_SERIES + 5).for_each(|n| count(&mut counts, n.to_string()));
        assert_eq!((counts.len(), counts["overflow=\"true\""]), (MAX_SERIES + 1, 5));
    }
}
