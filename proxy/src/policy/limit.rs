//! How much is let through: rate limits (GCRA), the retry budget, requests in flight. Time is an argument.
//!
//! **Invariant:** memory is bounded whatever clients do, and where the bound is felt a limit gets stricter, never looser.

use gossamer_api::authorization::RateLimit;
use gossamer_api::defaults::{RETRY_BUDGET_MIN_PER_SECOND, RETRY_BUDGET_RATIO, RETRY_BUDGET_WINDOW};
use gossamer_api::workload::Identity;
use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The limit that a request exceeded; the metric label `scope`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// All clients together have this many requests per second.
    Total(u32),
    /// This client has.
    Identity(u32),
}

impl Limited {
    /// `total` or `identity`, as Linkerd labels them.
    pub fn scope(self) -> &'static str {
        match self {
            Limited::Total(_) => "total",
            Limited::Identity(_) => "identity",
        }
    }

    /// Requests per second.
    pub fn rate(self) -> u32 {
        match self {
            Limited::Total(rate) | Limited::Identity(rate) => rate,
        }
    }
}

/// A server's local rate limit, shared by all threads without a lock. A rate of 0 is no limit, as in Linkerd.
///
/// A request that its client's limit refuses has still counted in the total, as in linkerd2-proxy
/// (`server-policy/src/local_rate_limit.rs`): the total protects the workload, not the clients.
#[derive(Debug)]
pub struct RateLimiter {
    start: Instant,
    total: Option<Bucket>,
    overrides: Vec<(Box<str>, usize)>,
    override_buckets: Vec<Bucket>,
    identity: Option<Clients>,
}

impl RateLimiter {
    /// Full buckets.
    pub fn new(limit: &RateLimit, now: Instant) -> Self {
        let some = |rate: Option<u32>| rate.filter(|rate| *rate > 0).map(Rate::new);
        let mut overrides = Vec::new();
        let mut override_buckets = Vec::new();
        for (names, rate) in &limit.overrides {
            let Some(rate) = some(Some(*rate)) else { continue };
            // Linkerd shares one bucket among the identities of one override.
            overrides.extend(names.iter().map(|name| (name.as_str().into(), override_buckets.len())));
            override_buckets.push(Bucket { rate, arrival: AtomicU64::new(0) });
        }
        overrides.sort();
        RateLimiter {
            start: now,
            total: some(limit.total).map(|rate| Bucket { rate, arrival: AtomicU64::new(0) }),
            overrides,
            override_buckets,
            identity: some(limit.identity).map(Clients::new),
        }
    }

    /// Takes one request of a client out of its buckets. Clients without an identity share one.
    pub fn check(&self, identity: Option<&Identity>, now: Instant) -> Result<(), Limited> {
        let now = now.saturating_duration_since(self.start).as_nanos() as u64;
        if let Some(total) = &self.total
            && !total.rate.admit(&total.arrival, now)
        {
            return Err(Limited::Total(total.rate.per_second));
        }
        if let Some(identity) = identity
            && let Ok(at) = self.overrides.binary_search_by(|(name, _)| (**name).cmp(identity.as_str()))
        {
            let bucket = &self.override_buckets[self.overrides[at].1];
            return match bucket.rate.admit(&bucket.arrival, now) {
                true => Ok(()),
                false => Err(Limited::Identity(bucket.rate.per_second)),
            };
        }
        match &self.identity {
            Some(clients) if !clients.admit(identity, now) => Err(Limited::Identity(clients.rate.per_second)),
            _ => Ok(()),
        }
    }
}

/// Requests per second with a burst of as many: GCRA ("leaky bucket as a meter", ITU-T I.371).
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: u32,
    /// Nanoseconds between two requests at the full rate.
    interval: u64,
}

impl Rate {
    fn new(per_second: u32) -> Self {
        Rate { per_second, interval: 1_000_000_000 / u64::from(per_second.max(1)) }
    }

    /// `arrival` is the time at which the bucket is full again; in the past it is full.
    fn admit(self, arrival: &AtomicU64, now: u64) -> bool {
        let burst = self.interval * u64::from(self.per_second);
        let next = |at: u64| Some(at.max(now) + self.interval).filter(|next| next - now <= burst);
        arrival.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    arrival: AtomicU64,
}

/// One bucket per client in a table of fixed size. A full bucket is as good as a new one, so its place may be taken;
/// where no place is free, clients share one.
#[derive(Debug)]
struct Clients {
    rate: Rate,
    hasher: RandomState,
    /// Hash of the client (0: free) and its bucket.
    slots: Box<[(AtomicU64, AtomicU64)]>,
}

/// 64 KiB per server that limits clients. So many may have sent something within the last second.
const CLIENTS: usize = 4096;
/// Places looked at for one client.
const PROBES: usize = 8;

impl Clients {
    fn new(rate: Rate) -> Self {
        Clients { rate, hasher: RandomState::new(), slots: (0..CLIENTS).map(|_| Default::default()).collect() }
    }

    fn admit(&self, identity: Option<&Identity>, now: u64) -> bool {
        let hash = self.hasher.hash_one(identity).max(1);
        self.rate.admit(self.bucket(hash, now), now)
    }

    fn bucket(&self, hash: u64, now: u64) -> &AtomicU64 {
        let places = (0..PROBES).map(|probe| &self.slots[(hash as usize).wrapping_add(probe) % CLIENTS]);
        if let Some((_, bucket)) = places.clone().find(|(owner, _)| owner.load(Ordering::Relaxed) == hash) {
            return bucket;
        }
        for (owner, bucket) in places {
            let current = owner.load(Ordering::Relaxed);
            if bucket.load(Ordering::Relaxed) <= now
                && owner.compare_exchange(current, hash, Ordering::Relaxed, Ordering::Relaxed).is_ok()
            {
                return bucket;
            }
        }
        &self.slots[hash as usize % CLIENTS].1
    }
}

/// Bounds retries to a share of requests and a constant rate, so that an outage is not multiplied.
///
/// For one thread. A request deposits a fraction of a retry, a retry withdraws a whole one; what is older than the
/// window is forgotten (Finagle `RetryBudget`, tower `TpsBudget`).
#[derive(Debug)]
pub struct RetryBudget {
    start: Instant,
    /// Balance of each part of the window, in thousandths of a retry.
    slots: [Cell<i64>; SLOTS],
    /// The part of time that the newest slot is for.
    newest: Cell<u64>,
    deposit: i64,
    reserve: i64,
    slot: Duration,
}

const SLOTS: usize = 10;
const ONE_RETRY: i64 = 1000;

impl RetryBudget {
    /// `ratio` of the requests plus `min_per_second`, over a window.
    pub fn new(ratio: f32, min_per_second: u32, window: Duration, now: Instant) -> Self {
        let slot = (window / SLOTS as u32).max(Duration::from_millis(1));
        let reserve = i64::from(min_per_second) * window.as_millis() as i64 * ONE_RETRY / 1000;
        RetryBudget {
            start: now,
            slots: Default::default(),
            newest: Cell::new(0),
            deposit: (f64::from(ratio.clamp(0.0, 1000.0)) * ONE_RETRY as f64).round() as i64,
            reserve,
            slot,
        }
    }

    /// 20 % and 10/s over 10 s, see `defaults.rs`.
    pub fn standard(now: Instant) -> Self {
        RetryBudget::new(RETRY_BUDGET_RATIO, RETRY_BUDGET_MIN_PER_SECOND, RETRY_BUDGET_WINDOW, now)
    }

    /// Counts a request (not a retry).
    pub fn deposit(&self, now: Instant) {
        let slot = self.turn(now);
        slot.set(slot.get().saturating_add(self.deposit));
    }

    /// True when a retry may be sent; it is then counted.
    pub fn withdraw(&self, now: Instant) -> bool {
        let slot = self.turn(now);
        let balance = self.reserve + self.slots.iter().map(Cell::get).sum::<i64>();
        let may = balance >= ONE_RETRY;
        if may {
            slot.set(slot.get() - ONE_RETRY);
        }
        may
    }

    /// Forgets what is older than the window and gives the slot of `now`.
    fn turn(&self, now: Instant) -> &Cell<i64> {
        let at = (now.saturating_duration_since(self.start).as_nanos() / self.slot.as_nanos()) as u64;
        let newest = self.newest.get();
        let at = at.max(newest);
        for old in (newest + 1..=at).take(SLOTS) {
            self.slots[((at - (old - newest - 1)) % SLOTS as u64) as usize].set(0);
        }
        self.newest.set(at);
        &self.slots[(at % SLOTS as u64) as usize]
    }
}

/// Bounds what is in flight at once. Cheap to clone; all clones share the bound.
#[derive(Clone, Debug)]
pub struct InFlight {
    used: Arc<AtomicUsize>,
    max: usize,
}

/// A place among what is in flight, free again on drop.
#[derive(Debug)]
pub struct Slot(Arc<AtomicUsize>);

impl InFlight {
    /// At most `max`.
    pub fn new(max: usize) -> Self {
        InFlight { used: Arc::default(), max }
    }

    /// A place, or `None` when there is none.
    pub fn admit(&self) -> Option<Slot> {
        let more = |used: usize| (used < self.max).then_some(used + 1);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Slot(self.used.clone()))
    }

    /// Places taken.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limit(total: Option<u32>, identity: Option<u32>, overrides: &[(&[&str], u32)]) -> RateLimit {
        let overrides =
            overrides.iter().map(|(names, rate)| (names.iter().map(|n| n.to_string()).collect(), *rate)).collect();
        RateLimit { meta: None, total, identity, overrides }
    }

    fn id(name: &str) -> Identity {
        name.parse().unwrap()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// How many of `tries` pass at one moment.
    fn passing(limiter: &RateLimiter, identity: Option<&Identity>, now: Instant, tries: usize) -> usize {
        (0..tries).filter(|_| limiter.check(identity, now).is_ok()).count()
    }

    #[test]
    fn a_burst_is_one_second_and_refills_evenly() {
        let now = Instant::now();
        let limiter = RateLimiter::new(&limit(Some(10), None, &[]), now);
        assert_eq!(passing(&limiter, None, now, 100), 10);
        assert_eq!(limiter.check(None, now + ms(99)), Err(Limited::Total(10)));
        assert_eq!(passing(&limiter, None, now + ms(100), 100), 1);
        assert_eq!(passing(&limiter, None, now + ms(600), 100), 5);
        assert_eq!(passing(&limiter, None, now + ms(60_000), 100), 10);
    }

    #[test]
    fn each_identity_has_its_own_bucket_and_the_rest_share_one() {
        let now = Instant::now();
        let limiter = RateLimiter::new(&limit(None, Some(2), &[(&["c", "d"], 3)]), now);
        let (a, b, c, d) = (id("a"), id("b"), id("c"), id("d"));
        assert_eq!(passing(&limiter, Some(&a), now, 9), 2);
        assert_eq!(passing(&limiter, Some(&b), now, 9), 2);
        assert_eq!(passing(&limiter, None, now, 9), 2);
        assert_eq!(passing(&limiter, Some(&c), now, 2) + passing(&limiter, Some(&d), now, 9), 3);
        assert_eq!(limiter.check(Some(&a), now).unwrap_err(), Limited::Identity(2));
        assert_eq!(limiter.check(Some(&d), now).unwrap_err().rate(), 3);
    }

    #[test]
    fn the_total_counts_first_and_zero_is_no_limit() {
        let now = Instant::now();
        let limiter = RateLimiter::new(&limit(Some(3), Some(2), &[]), now);
        assert_eq!(passing(&limiter, Some(&id("a")), now, 9), 2);
        assert_eq!(limiter.check(Some(&id("b")), now).unwrap_err().scope(), "total");
        let unlimited = RateLimiter::new(&limit(Some(0), Some(0), &[(&["a"], 0)]), now);
        assert_eq!(passing(&unlimited, Some(&id("a")), now, 1000), 1000);
    }

    #[test]
    fn many_clients_make_the_limit_stricter_never_looser() {
        let now = Instant::now();
        let limiter = RateLimiter::new(&limit(None, Some(1), &[]), now);
        let clients: Vec<_> = (0..3 * CLIENTS).map(|n| id(&format!("c{n}"))).collect();
        let passed: usize = clients.iter().map(|client| passing(&limiter, Some(client), now, 1)).sum();
        assert!(passed <= CLIENTS, "{passed}");
        // Nobody gets a second one by having been pushed out.
        assert_eq!(
            clients.iter().map(|client| passing(&limiter, Some(client), now, 1)).sum::<usize>(),
            CLIENTS - passed
        );
        assert!(passing(&limiter, Some(&clients[0]), now + ms(1000), 9) == 1);
    }

    #[test]
    fn retries_are_a_share_of_requests_plus_a_constant() {
        let now = Instant::now();
        let budget = RetryBudget::new(0.2, 1, Duration::from_secs(10), now);
        let withdraw = |now| (0..1000).filter(|_| budget.withdraw(now)).count();
        assert_eq!(withdraw(now), 10);
        (0..100).for_each(|_| budget.deposit(now));
        assert_eq!(withdraw(now), 20);
        // Deposits and withdrawals of the first second leave the window together.
        assert_eq!(withdraw(now + Duration::from_secs(9)), 0);
        assert_eq!(withdraw(now + Duration::from_secs(10)), 10);
        (0..100).for_each(|_| budget.deposit(now + Duration::from_secs(11)));
        assert_eq!(withdraw(now + Duration::from_secs(25)), 10, "old deposits are worth nothing");
    }

    #[test]
    fn a_budget_survives_idle_time_and_clocks_that_stand() {
        let now = Instant::now();
        let budget = RetryBudget::standard(now + Duration::from_secs(5));
        budget.deposit(now);
        assert!(budget.withdraw(now));
        let later = now + Duration::from_secs(100_000_000);
        assert_eq!((0..1000).filter(|_| budget.withdraw(later)).count(), 100);
    }

    #[test]
    fn in_flight_is_bounded_and_given_back() {
        let in_flight = InFlight::new(2);
        let (a, _b) = (in_flight.admit().unwrap(), in_flight.clone().admit().unwrap());
        assert!(in_flight.admit().is_none());
        drop(a);
        assert_eq!(in_flight.used(), 1);
        assert!(in_flight.admit().is_some());
    }

    proptest! {
        /// Over any time, no more than the burst plus what the rate allows.
        #[test]
        fn a_rate_is_never_exceeded(rate in 1u32..50, gaps in proptest::collection::vec(0u64..200, 1..200)) {
            let start = Instant::now();
            let limiter = RateLimiter::new(&limit(Some(rate), None, &[]), start);
            let (mut at, mut passed) = (0, 0);
            for gap in gaps {
                at += gap;
                passed += u64::from(limiter.check(None, start + ms(at)).is_ok());
            }
            prop_assert!(passed <= u64::from(rate) + at * u64::from(rate) / 1000 + 1);
        }

        #[test]
        fn a_budget_never_gives_more_than_its_share(steps in proptest::collection::vec((0u64..3000, any::<bool>()), 1..300)) {
            let start = Instant::now();
            let budget = RetryBudget::new(0.2, 0, Duration::from_secs(10), start);
            let (mut at, mut requests, mut retries) = (0, 0u32, 0u32);
            for (gap, retry) in steps {
                at += gap;
                if retry {
                    retries += u32::from(budget.withdraw(start + ms(at)));
                } else {
                    requests += 1;
                    budget.deposit(start + ms(at));
                }
            }
            // A deposit may leave the window before the withdrawal that used it, and is then worth one more.
            prop_assert!(retries <= requests, "{} of {}", retries, requests);
        }
    }
}
