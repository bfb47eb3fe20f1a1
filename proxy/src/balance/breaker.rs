//! Takes a failing endpoint out and tries it again with one request at a time. Pure: time and chance are arguments.
//!
//! Closed: requests pass. Open: none until the backoff is over. Probation: one request decides. The balancer never
//! lets the last endpoints go (`min_ready`); it then sends to open ones all the same, and says so with
//! [`Admission::Anyway`]. For one thread.

use gossamer_api::policy::{Breaker as Config, SuccessRate};
use std::time::Duration;
use tokio::time::Instant;

/// Judges one endpoint.
#[derive(Debug)]
pub struct Breaker {
    config: Config,
    state: State,
    /// Failures in a row while closed.
    failures: u32,
    /// Backoffs in a row: the exponent of the next.
    trips: u32,
    /// Grows whenever the state changes, so that late answers are told from current ones.
    epoch: u32,
    window: Option<Window>,
}

/// Whether requests pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All pass.
    Closed,
    /// None pass until then.
    Open(Instant),
    /// One is on its way and decides.
    Probation,
}

/// How a request was let through; handed back with its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// While closed, in this epoch.
    Ordinary(u32),
    /// The one that decides, in this epoch.
    Probe(u32),
    /// Although the breaker is open, for want of others; its outcome decides nothing.
    Anyway,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well, or by the client's fault.
    Success,
    /// By the endpoint's fault: 5xx, a failed connection, a reset, a timeout.
    Failure,
    /// 429 or RESOURCE_EXHAUSTED: no failure in a row, but one for the success rate and for a probe.
    RateLimited,
}

/// A change of state, for log and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The endpoint is taken out.
    Ejected {
        /// Why.
        why: Why,
        /// For how long.
        backoff: Duration,
    },
    /// The endpoint is back.
    Recovered,
}

/// Why an endpoint is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Too many failures in a row.
    Consecutive,
    /// Too few successes in the window.
    SuccessRate,
    /// It failed its probation.
    Probation,
}

impl Breaker {
    /// Closed.
    pub fn new(config: Config, now: Instant) -> Self {
        let window = config.success_rate.filter(|rate| rate.threshold > 0.0).map(|rate| Window::new(rate, now));
        Breaker { config, state: State::Closed, failures: 0, trips: 0, epoch: 0, window }
    }

    /// The state as it was left; an `Open` in the past is ready for probation.
    pub fn state(&self) -> State {
        self.state
    }

    /// True when [`Breaker::admit`] would let a request pass; for choosing among endpoints.
    pub fn is_ready(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open(until) => now >= until,
            State::Probation => false,
        }
    }

    /// Lets a request pass, or not. One that passes must come back through [`Breaker::record`] or
    /// [`Breaker::abandon`].
    pub fn admit(&mut self, now: Instant) -> Option<Admission> {
        match self.state {
            State::Closed => Some(Admission::Ordinary(self.epoch)),
            State::Open(until) if now >= until => {
                self.enter(State::Probation);
                Some(Admission::Probe(self.epoch))
            }
            State::Open(_) | State::Probation => None,
        }
    }

    /// Counts how a request ended. `chance` is a random number from 0 to 1, for the jitter.
    pub fn record(
        &mut self,
        admission: Admission,
        outcome: Outcome,
        retry_after: Option<Duration>,
        now: Instant,
        chance: f32,
    ) -> Option<Change> {
        match admission {
            Admission::Ordinary(epoch) if epoch == self.epoch && self.state == State::Closed => {
                let why = self.count(outcome, now)?;
                Some(self.eject(why, retry_after, now, chance))
            }
            Admission::Probe(epoch) if epoch == self.epoch && self.state == State::Probation => {
                if outcome != Outcome::Success {
                    return Some(self.eject(Why::Probation, retry_after, now, chance));
                }
                self.enter(State::Closed);
                self.trips = 0;
                if let Some(window) = &mut self.window {
                    window.reset(now);
                }
                Some(Change::Recovered)
            }
            // Sent before the state last changed: what it says is known or out of date.
            Admission::Ordinary(_) | Admission::Probe(_) | Admission::Anyway => None,
        }
    }

    /// A request that passed was given up before its outcome was known. A probation starts over with the next one.
    pub fn abandon(&mut self, admission: Admission, now: Instant) {
        if admission == Admission::Probe(self.epoch) && self.state == State::Probation {
            self.enter(State::Open(now));
        }
    }

    fn count(&mut self, outcome: Outcome, now: Instant) -> Option<Why> {
        match outcome {
            Outcome::Success => self.failures = 0,
            Outcome::Failure => self.failures += 1,
            Outcome::RateLimited => {}
        }
        let low = self.window.as_mut().is_some_and(|window| window.add(outcome == Outcome::Success, now));
        if self.config.max_failures > 0 && self.failures >= self.config.max_failures {
            Some(Why::Consecutive)
        } else {
            // Only bad news ejects: a success that is merely not enough must not.
            (low && outcome != Outcome::Success).then_some(Why::SuccessRate)
        }
    }

    fn eject(&mut self, why: Why, retry_after: Option<Duration>, now: Instant, chance: f32) -> Change {
        let backoff = self.backoff(retry_after, chance);
        self.trips = self.trips.saturating_add(1);
        self.enter(State::Open(now + backoff));
        Change::Ejected { why, backoff }
    }

    fn backoff(&self, retry_after: Option<Duration>, chance: f32) -> Duration {
        let config = &self.config.backoff;
        let max = config.max.max(config.min);
        if let Some(wanted) = retry_after.filter(|_| config.respect_retry_after) {
            return wanted.clamp(config.min, max);
        }
        let base = config.min.saturating_mul(1 << self.trips.min(20)).min(max);
        let jitter = if config.jitter.is_finite() { config.jitter.clamp(0.0, 10.0) } else { 0.0 };
        base + base.mul_f32(jitter * if chance.is_finite() { chance.clamp(0.0, 1.0) } else { 0.0 })
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.failures = 0;
        self.epoch = self.epoch.wrapping_add(1);
    }
}

/// Successes and totals of the last while, in ten parts.
#[derive(Debug)]
struct Window {
    rate: SuccessRate,
    part: Duration,
    start: Instant,
    /// Number of the newest part since the start.
    newest: u64,
    parts: [(u32, u32); PARTS],
}

const PARTS: usize = 10;

impl Window {
    fn new(rate: SuccessRate, now: Instant) -> Self {
        let part = (rate.window / PARTS as u32).max(Duration::from_millis(1));
        Window { rate, part, start: now, newest: 0, parts: Default::default() }
    }

    fn reset(&mut self, now: Instant) {
        *self = Window::new(self.rate, now);
    }

    /// True when there are enough requests and too few successes among them.
    fn add(&mut self, success: bool, now: Instant) -> bool {
        let at = (now.saturating_duration_since(self.start).as_nanos() / self.part.as_nanos()) as u64;
        let at = at.max(self.newest);
        for ahead in 0..(at - self.newest).min(PARTS as u64) {
            self.parts[((at - ahead) % PARTS as u64) as usize] = (0, 0);
        }
        self.newest = at;
        let part = &mut self.parts[(at % PARTS as u64) as usize];
        part.0 = part.0.saturating_add(u32::from(success));
        part.1 = part.1.saturating_add(1);
        let (good, all) = self.parts.iter().fold((0u64, 0u64), |(g, a), p| (g + u64::from(p.0), a + u64::from(p.1)));
        all >= u64::from(self.rate.min_requests.max(1)) && (good as f64) < self.rate.threshold * all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_api::policy::Backoff;
    use proptest::prelude::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn config(max_failures: u32) -> Config {
        let backoff = Backoff { min: secs(1), max: secs(8), jitter: 0.5, respect_retry_after: true };
        Config { max_failures, backoff, success_rate: None, min_ready: 1 }
    }

    struct Test {
        breaker: Breaker,
        now: Instant,
    }

    impl Test {
        fn new(config: Config) -> Self {
            let now = Instant::now();
            Test { breaker: Breaker::new(config, now), now }
        }

        /// Sends one request that ends like this.
        fn send(&mut self, outcome: Outcome) -> Option<Change> {
            let admission = self.breaker.admit(self.now).expect("admitted");
            self.breaker.record(admission, outcome, None, self.now, 0.0)
        }

        fn trip(&mut self) -> Duration {
            loop {
                if let Some(Change::Ejected { backoff, .. }) = self.send(Outcome::Failure) {
                    return backoff;
                }
            }
        }
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_starts_over() {
        let mut test = Test::new(config(3));
        for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Failure, Outcome::RateLimited] {
            assert_eq!(test.send(outcome), None);
        }
        assert_eq!(test.send(Outcome::Failure), None);
        let ejected = Change::Ejected { why: Why::Consecutive, backoff: secs(1) };
        assert_eq!(test.send(Outcome::Failure), Some(ejected));
        assert_eq!(test.breaker.admit(test.now), None);
        assert!(!test.breaker.is_ready(test.now));
    }

    #[test]
    fn one_request_decides_probation() {
        let mut test = Test::new(config(1));
        test.trip();
        test.now += secs(1);
        assert!(test.breaker.is_ready(test.now));
        let probe = test.breaker.admit(test.now).unwrap();
        assert!(!test.breaker.is_ready(test.now));
        assert_eq!(test.breaker.admit(test.now), None);
        let change = test.breaker.record(probe, Outcome::Success, None, test.now, 0.0);
        assert_eq!((change, test.breaker.state()), (Some(Change::Recovered), State::Closed));
    }

    #[test]
    fn the_backoff_doubles_to_its_maximum_and_starts_over_after_recovery() {
        let mut test = Test::new(config(1));
        let mut waits = vec![test.trip()];
        for _ in 0..5 {
            test.now += secs(8);
            waits.push(test.trip());
        }
        assert_eq!(waits, [1, 2, 4, 8, 8, 8].map(secs));
        test.now += secs(8);
        assert_eq!(test.send(Outcome::Success), Some(Change::Recovered));
        assert_eq!(test.trip(), secs(1));
    }

    #[test]
    fn jitter_adds_its_share_and_retry_after_counts_instead() {
        let now = Instant::now();
        for (chance, retry_after, expect) in [
            (0.0, None, 1000),
            (1.0, None, 1500),
            (9.0, None, 1500),
            (f32::NAN, None, 1000),
            (1.0, Some(secs(5)), 5000),
            (1.0, Some(secs(500)), 8000),
            (1.0, Some(secs(0)), 1000),
        ] {
            let mut breaker = Breaker::new(config(1), now);
            let admission = breaker.admit(now).unwrap();
            let change = breaker.record(admission, Outcome::Failure, retry_after, now, chance);
            let backoff = Duration::from_millis(expect);
            assert_eq!(change, Some(Change::Ejected { why: Why::Consecutive, backoff }));
        }
    }

    #[test]
    fn late_answers_decide_nothing() {
        let mut test = Test::new(config(1));
        let late = test.breaker.admit(test.now).unwrap();
        test.trip();
        test.now += secs(1);
        let probe = test.breaker.admit(test.now).unwrap();
        assert_eq!(test.breaker.record(late, Outcome::Success, None, test.now, 0.0), None);
        assert_eq!(test.breaker.record(Admission::Anyway, Outcome::Success, None, test.now, 0.0), None);
        assert_eq!(test.breaker.state(), State::Probation);
        test.breaker.record(probe, Outcome::Success, None, test.now, 0.0);
        assert_eq!(test.breaker.record(late, Outcome::Failure, None, test.now, 0.0), None);
        assert_eq!(test.breaker.state(), State::Closed);
    }

    #[test]
    fn an_abandoned_probe_makes_room_for_the_next() {
        let mut test = Test::new(config(1));
        test.trip();
        test.now += secs(1);
        let probe = test.breaker.admit(test.now).unwrap();
        test.breaker.abandon(probe, test.now);
        let second = test.breaker.admit(test.now).unwrap();
        test.breaker.abandon(probe, test.now);
        assert_eq!(test.breaker.state(), State::Probation);
        assert_eq!(test.breaker.record(second, Outcome::RateLimited, None, test.now, 0.0).map(|_| ()), Some(()));
    }

    #[test]
    fn a_low_success_rate_ejects_once_there_are_enough_requests() {
        let rate = SuccessRate { threshold: 0.5, window: secs(10), min_requests: 10 };
        let mut test = Test::new(Config { success_rate: Some(rate), ..config(0) });
        for outcome in [Outcome::Success, Outcome::Failure, Outcome::RateLimited].repeat(3) {
            assert_eq!(test.send(outcome), None);
        }
        let ejected = Change::Ejected { why: Why::SuccessRate, backoff: secs(1) };
        assert_eq!(test.send(Outcome::Failure), Some(ejected));

        let mut test = Test::new(Config { success_rate: Some(rate), ..config(0) });
        for _ in 0..9 {
            assert_eq!(test.send(Outcome::Failure), None);
        }
        test.now += secs(10);
        assert_eq!(test.send(Outcome::Failure), None, "what is older than the window is forgotten");
    }

    #[test]
    fn without_a_limit_nothing_ejects() {
        let mut test = Test::new(config(0));
        (0..100).for_each(|_| assert_eq!(test.send(Outcome::Failure), None));
    }

    proptest! {
        /// Whatever happens, an endpoint comes back: after the longest backoff a request passes.
        #[test]
        fn no_endpoint_is_lost(steps in proptest::collection::vec((0u8..5, 0u64..20), 0..200), max in 0u32..4) {
            let rate = SuccessRate { threshold: 0.7, window: secs(5), min_requests: 3 };
            let mut test = Test::new(Config { success_rate: Some(rate), ..config(max) });
            let mut flying = Vec::new();
            for (step, wait) in steps {
                test.now += secs(wait);
                flying.extend(test.breaker.admit(test.now));
                let Some(admission) = (step < 4).then(|| flying.pop()).flatten() else { continue };
                match step {
                    0 => test.breaker.abandon(admission, test.now),
                    1 => drop(test.breaker.record(admission, Outcome::Success, None, test.now, 1.0)),
                    2 => drop(test.breaker.record(admission, Outcome::RateLimited, None, test.now, 1.0)),
                    _ => drop(test.breaker.record(admission, Outcome::Failure, Some(secs(1000)), test.now, 1.0)),
                }
            }
            for admission in flying {
                test.breaker.abandon(admission, test.now);
            }
            prop_assert!(test.breaker.admit(test.now + secs(12)).is_some());
        }
    }
}
