//! What the authority did, as Prometheus text.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use gossamer_api::process::tls;

use crate::issuer::Issuer;
use crate::refusal::{REASONS, Refusal};

/// Counters.
#[derive(Debug, Default)]
pub struct Metrics {
    issued: AtomicU64,
    refused: [AtomicU64; REASONS.len()],
}

impl Metrics {
    /// One certificate more.
    pub fn issued(&self) {
        self.issued.fetch_add(1, Relaxed);
    }

    /// One refusal more.
    pub fn refused(&self, refusal: &Refusal) {
        self.refused[refusal.index()].fetch_add(1, Relaxed);
    }

    /// Prometheus text; `issuer_cert_ttl_seconds` is what Linkerd's alerts look at.
    pub fn text(&self, issuer: &Issuer, now: SystemTime) -> String {
        let mut text = String::new();
        let mut one = |name: &str, kind: &str, help: &str, value: u64| {
            // Writing into a String can't fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        };
        let ends = issuer.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let left = issuer.not_after().duration_since(now).unwrap_or_default().as_secs();
        one("identity_certificates_issued_total", "counter", "Certificates issued.", self.issued.load(Relaxed));
        one("identity_trust_anchors", "gauge", "Roots that are trusted.", issuer.anchors().certificates().len() as u64);
        one("identity_issuer_expiry_timestamp_seconds", "gauge", "When the issuer can't sign any more.", ends);
        one("issuer_cert_ttl_seconds", "gauge", "How long the issuer can still sign.", left);
        let name = "identity_issuer_info";
        let _ = write!(text, "# HELP {name} The issuer, by SHA-256 of its certificate.\n# TYPE {name} gauge\n");
        let _ = writeln!(text, "{name}{{fingerprint=\"{}\"}} 1", issuer.fingerprint());
        let name = "identity_trust_anchor_info";
        let _ = write!(text, "# HELP {name} The roots that are trusted, by SHA-256.\n# TYPE {name} gauge\n");
        for anchor in issuer.anchors().certificates() {
            let _ = writeln!(text, "{name}{{fingerprint=\"{}\"}} 1", tls::fingerprint(anchor));
        }
        let name = "identity_certificates_refused_total";
        let _ = write!(text, "# HELP {name} Certificates refused, by reason.\n# TYPE {name} counter\n");
        for (reason, count) in REASONS.iter().zip(&self.refused) {
            let _ = writeln!(text, "{name}{{reason=\"{reason}\"}} {}", count.load(Relaxed));
        }
        text
    }
}
