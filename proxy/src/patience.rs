//! How long to wait for a client's next bytes while its protocol is unknown.
//!
//! **Invariant:** silence, and bytes that no ordinary request begins with, wait only for a moment. Once a client has
//! begun what looks like a request or a handshake, the rest may take as long as slow links need, and no longer.

use crate::detect::promising;
use gossamer_api::defaults::DETECT_TIMEOUT;
use std::time::Duration;
use tokio::time::Instant;

/// The wait of one connection.
pub struct Patience {
    silence: Duration,
    /// Since when the client has had the time to say something.
    since: Instant,
    /// When its first promising bytes had come.
    begun: Option<Instant>,
}

impl Patience {
    /// `silence`: how long a client may say nothing.
    pub fn new(silence: Duration) -> Self {
        Patience { silence, since: Instant::now(), begun: None }
    }

    /// The same for a client that had time already, while we asked where to: it is not waited for as long again. At least a
    /// quarter is left, for what it has said to be seen.
    pub fn since(accepted: Instant, silence: Duration) -> Self {
        let now = Instant::now();
        Patience { silence, since: accepted.max(now.checked_sub(silence / 4 * 3).unwrap_or(now)), begun: None }
    }

    /// Until when to wait for more, after `first`.
    pub fn until(&mut self, first: &[u8]) -> Instant {
        let now = Instant::now();
        match first {
            [] => self.since + self.silence,
            first if promising(first) => *self.begun.get_or_insert(now) + DETECT_TIMEOUT,
            _ => now + self.silence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn half_a_request_is_waited_for_but_in_all_only_so_long() {
        let moment = Duration::from_millis(20);
        let mut patience = Patience::new(moment);
        let start = Instant::now();
        assert_eq!(patience.until(b""), start + moment);
        assert_eq!(patience.until(b"HELO exam"), start + moment);
        assert_eq!(patience.until(b"GE"), start + DETECT_TIMEOUT);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(patience.until(b"GET /ind"), start + DETECT_TIMEOUT, "not from the beginning with every byte");
    }

    #[tokio::test(start_paused = true)]
    async fn the_time_that_discovery_took_counts_as_silence() {
        let (moment, accepted) = (Duration::from_millis(20), Instant::now());
        tokio::time::advance(Duration::from_millis(8)).await;
        assert_eq!(Patience::since(accepted, moment).until(b""), accepted + moment);
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(Patience::since(accepted, moment).until(b""), Instant::now() + moment / 4);
        assert_eq!(Patience::since(accepted, moment).until(b"HELO"), Instant::now() + moment);
    }
}
