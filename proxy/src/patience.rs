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
    /// When its first promising bytes had come.
    begun: Option<Instant>,
}

impl Patience {
    /// `silence`: how long a client may say nothing.
    pub fn new(silence: Duration) -> Self {
        Patience { silence, begun: None }
    }

    /// Until when to wait for more, after `first`.
    pub fn until(&mut self, first: &[u8]) -> Instant {
        let now = Instant::now();
        if promising(first) { *self.begun.get_or_insert(now) + DETECT_TIMEOUT } else { now + self.silence }
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
}
