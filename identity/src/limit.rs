//! How many certificates may be asked for: per identity, so that one workload in a crash loop doesn't starve the rest,
//! and overall, so that signing never takes more than a few per cent of a core. Pure; bounded.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::refusal::Refusal;

/// The limits and what was used of them.
#[derive(Debug)]
pub struct Limits {
    identity: Rate,
    overall: Rate,
    /// When each identity's bucket will be full again.
    used: HashMap<gossamer_api::workload::Identity, Instant>,
    used_overall: Option<Instant>,
}

/// `burst` at once, then one each `every`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// At once.
    pub burst: u32,
    /// Then one each.
    pub every: Duration,
}

/// All replicas of a deployment share an identity, and may start at once.
pub const PER_IDENTITY: Rate = Rate { burst: 500, every: Duration::from_millis(20) };
/// 10,000 pods renew about once in 17 hours; a whole cluster that starts at once gets there in 20 s.
pub const OVERALL: Rate = Rate { burst: 2000, every: Duration::from_millis(2) };
const MAX_IDENTITIES: usize = 20_000;

impl Limits {
    /// Nothing used yet.
    pub fn new(identity: Rate, overall: Rate) -> Self {
        Limits { identity, overall, used: HashMap::new(), used_overall: None }
    }

    /// Takes one certificate of `identity`, if that is left.
    pub fn take(&mut self, identity: &gossamer_api::workload::Identity, now: Instant) -> Result<(), Refusal> {
        let used = self.used.get(identity).copied();
        let used = self.identity.take(used, now).ok_or(Refusal::RateLimited("by this identity"))?;
        self.used_overall =
            Some(self.overall.take(self.used_overall, now).ok_or(Refusal::RateLimited("by all together"))?);
        if self.used.len() >= MAX_IDENTITIES {
            self.used.retain(|_, full| *full > now);
        }
        // Full of busy ones: then only the overall limit protects.
        if self.used.len() < MAX_IDENTITIES || self.used.contains_key(identity) {
            self.used.insert(identity.clone(), used);
        }
        Ok(())
    }
}

impl Rate {
    /// The generic cell rate algorithm: `full` is when the bucket would be full again.
    fn take(self, full: Option<Instant>, now: Instant) -> Option<Instant> {
        let next = full.map_or(now, |full| full.max(now)) + self.every;
        (next <= now + self.every * self.burst).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gossamer_api::workload::Identity;

    #[test]
    fn a_burst_then_a_rate_each_and_overall() {
        let second = Duration::from_secs(1);
        let mut limits = Limits::new(Rate { burst: 2, every: second }, Rate { burst: 3, every: second });
        let (a, b): (Identity, Identity) = ("a".parse().unwrap(), "b".parse().unwrap());
        let start = Instant::now();
        assert_eq!(limits.take(&a, start), Ok(()));
        assert_eq!(limits.take(&a, start), Ok(()));
        assert_eq!(limits.take(&a, start), Err(Refusal::RateLimited("by this identity")));
        assert_eq!(limits.take(&b, start), Ok(()), "others are not concerned");
        assert_eq!(limits.take(&b, start), Err(Refusal::RateLimited("by all together")));
        assert_eq!(limits.take(&a, start + second), Ok(()));
        assert_eq!(limits.take(&a, start + second), Err(Refusal::RateLimited("by this identity")));
    }

    #[test]
    fn forgets_the_idle() {
        let millisecond = Duration::from_millis(1);
        let rate = Rate { burst: 1, every: millisecond };
        let mut limits = Limits::new(rate, Rate { burst: u32::MAX, every: Duration::from_nanos(1) });
        let start = Instant::now();
        for at in 0..2 * MAX_IDENTITIES as u32 {
            let now = start + millisecond * at;
            limits.take(&format!("i{at}").parse().unwrap(), now).unwrap();
            assert!(limits.used.len() <= MAX_IDENTITIES);
        }
    }
}
