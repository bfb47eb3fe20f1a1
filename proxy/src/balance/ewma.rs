//! How loaded an endpoint is: peak-sensitive moving average of its latency times what is in flight (Finagle
//! `PeakEwma`, tower `load::peak_ewma`). Pure: time is an argument.
//!
//! A slow answer counts at once, a fast one only gradually, and silence is forgiven: without traffic the estimate
//! decays towards zero, so an endpoint that was slow is tried again. One that was never measured counts as what it is
//! compared with, so that it gets its share from the start and never more. For one thread.

use gossamer_api::policy::{Load, LoadPenalty};
use std::cell::Cell;
use std::time::Duration;
use tokio::time::Instant;

/// The load of one endpoint.
#[derive(Debug)]
pub struct PeakEwma {
    latency: Decaying,
    /// Some answer has come; until then `latency` is the default.
    measured: Cell<bool>,
    /// What failures add, forgotten at a pace of its own.
    penalty: Option<(LoadPenalty, Decaying)>,
    pending: Cell<u32>,
}

impl PeakEwma {
    /// An endpoint not yet measured.
    pub fn new(load: &Load, now: Instant) -> Self {
        PeakEwma {
            latency: Decaying::new(load.default_rtt.as_secs_f64(), load.decay, now),
            measured: Cell::new(false),
            penalty: load.penalty.map(|penalty| (penalty, Decaying::new(0.0, penalty.decay, now))),
            pending: Cell::new(0),
        }
    }

    /// The latency to expect, in seconds; `None` when it was never measured.
    pub fn latency(&self, now: Instant) -> Option<f64> {
        self.measured.get().then(|| self.latency.at(now))
    }

    /// The cost of sending one more: seconds, weighted by what is in flight. Only good for comparison. `assumed` is the
    /// latency of one that was never measured; without it the default is.
    pub fn load(&self, assumed: Option<f64>, now: Instant) -> f64 {
        let latency = if self.measured.get() { None } else { assumed }.unwrap_or_else(|| self.latency.at(now));
        let penalty = self.penalty.as_ref().map_or(0.0, |(_, penalty)| penalty.at(now));
        // Never zero, or what is in flight would not count after a long silence.
        (latency + penalty).max(LEAST) * (f64::from(self.pending.get()) + 1.0)
    }

    /// One more in flight. Every `begin` is followed by one [`PeakEwma::end`].
    pub fn begin(&self) {
        self.pending.set(self.pending.get().saturating_add(1));
    }

    /// One less in flight.
    pub fn end(&self) {
        self.pending.set(self.pending.get().saturating_sub(1));
    }

    /// What is in flight.
    pub fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// A latency was measured, up to the first byte of the response.
    pub fn observe(&self, latency: Duration, now: Instant) {
        if self.measured.replace(true) {
            self.latency.peak(latency.as_secs_f64(), now);
        } else {
            self.latency.start(latency.as_secs_f64(), now);
        }
    }

    /// A request failed. With penalties configured, it counts as a latency: the server's `Retry-After`, bounded, else
    /// the configured one. Without, only the measured latency of failures counts, as with plain peak-EWMA.
    pub fn penalize(&self, retry_after: Option<Duration>, now: Instant) {
        if let Some((config, penalty)) = &self.penalty {
            let counts = retry_after.map_or(config.penalty, |wanted| wanted.min(config.max_retry_after));
            penalty.peak(counts.as_secs_f64(), now);
        }
    }
}

/// Below any latency of a network.
const LEAST: f64 = 1e-6;

/// An average that follows peaks at once and decays by `exp(-dt / decay)`.
#[derive(Debug)]
struct Decaying {
    value: Cell<f64>,
    at: Cell<Instant>,
    /// Seconds, above zero.
    decay: f64,
}

impl Decaying {
    fn new(value: f64, decay: Duration, now: Instant) -> Self {
        let decay = decay.max(Duration::from_millis(1)).as_secs_f64();
        Decaying { value: Cell::new(value), at: Cell::new(now), decay }
    }

    /// The share of the value that is left now.
    fn left(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.at.get()).as_secs_f64() / self.decay).exp()
    }

    fn at(&self, now: Instant) -> f64 {
        self.value.get() * self.left(now)
    }

    fn start(&self, value: f64, now: Instant) {
        self.value.set(value);
        self.at.set(now.max(self.at.get()));
    }

    fn peak(&self, sample: f64, now: Instant) {
        let left = self.left(now);
        let decayed = self.value.get() * left;
        self.value.set(if sample > decayed { sample } else { decayed + sample * (1.0 - left) });
        self.at.set(now.max(self.at.get()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn plain() -> Load {
        Load { default_rtt: ms(30), decay: ms(10_000), penalty: None }
    }

    fn about(load: f64, expect: f64) {
        assert!((load - expect).abs() < expect * 1e-6, "{load} is not {expect}");
    }

    #[test]
    fn a_new_endpoint_counts_as_the_default_and_pending_requests_multiply() {
        let now = Instant::now();
        let ewma = PeakEwma::new(&plain(), now);
        about(ewma.load(None, now), 0.030);
        ewma.begin();
        ewma.begin();
        about(ewma.load(None, now), 0.090);
        ewma.end();
        assert_eq!(ewma.pending(), 1);
        about(ewma.load(None, now), 0.060);
    }

    #[test]
    fn the_first_answer_replaces_the_default_and_until_then_another_may_be_assumed() {
        let now = Instant::now();
        let ewma = PeakEwma::new(&plain(), now);
        assert_eq!(ewma.latency(now), None);
        about(ewma.load(Some(0.002), now), 0.002);
        ewma.observe(Duration::from_micros(500), now);
        about(ewma.load(None, now), 0.000_5);
        about(ewma.load(Some(0.002), now), 0.000_5);
    }

    #[test]
    fn a_peak_counts_at_once_and_a_fast_answer_gradually() {
        let now = Instant::now();
        let ewma = PeakEwma::new(&plain(), now);
        ewma.observe(ms(1000), now + ms(1));
        about(ewma.load(None, now + ms(1)), 1.0);
        ewma.observe(ms(1), now + ms(1));
        about(ewma.load(None, now + ms(1)), 1.0);
        ewma.observe(ms(1), now + ms(1001));
        let left = (-0.1f64).exp();
        about(ewma.load(None, now + ms(1001)), left + 0.001 * (1.0 - left));
    }

    #[test]
    fn silence_is_forgiven_but_what_is_in_flight_still_counts() {
        let now = Instant::now();
        let ewma = PeakEwma::new(&plain(), now);
        ewma.observe(ms(1000), now);
        about(ewma.load(None, now + ms(10_000)), (-1f64).exp());
        let later = now + ms(100_000_000);
        let idle = ewma.load(None, later);
        ewma.begin();
        assert!(ewma.load(None, later) > idle);
    }

    #[test]
    fn a_failure_weighs_until_it_is_forgotten() {
        let now = Instant::now();
        let penalty = LoadPenalty { penalty: ms(5000), max_retry_after: ms(20_000), decay: ms(1000) };
        let ewma = PeakEwma::new(&Load { penalty: Some(penalty), ..plain() }, now);
        ewma.penalize(None, now);
        about(ewma.load(None, now), 5.030);
        ewma.penalize(Some(ms(60_000)), now);
        about(ewma.load(None, now), 20.030);
        assert!(ewma.load(None, now + ms(20_000)) < 0.030);
        let without = PeakEwma::new(&plain(), now);
        without.penalize(None, now);
        about(without.load(None, now), 0.030);
    }

    proptest! {
        #[test]
        fn load_stays_finite_and_within_the_samples(
            steps in proptest::collection::vec((0u64..100_000, 0u64..100_000), 1..100)
        ) {
            let start = Instant::now();
            let ewma = PeakEwma::new(&plain(), start);
            let (mut at, mut most) = (0, 0.030f64);
            for (gap, sample) in steps {
                at += gap;
                most = most.max(sample as f64 / 1000.0);
                // Clocks may also stand, or seem to go back.
                ewma.observe(ms(sample), start + ms(at.saturating_sub(sample % 7)));
                let load = ewma.load(None, start + ms(at));
                prop_assert!(load.is_finite() && load > 0.0 && load <= most + 1e-9, "{} > {}", load, most);
            }
        }
    }
}
