//! The demo's users: requests to `web` at a steady rate, whether or not earlier ones have been answered.

use super::client::Caller;
use super::figures::Figures;
use crate::error::Result;
use http::Method;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

/// Requests in flight at once; beyond it users are turned away rather than piled up.
const IN_FLIGHT: usize = 256;

pub(crate) async fn run(rate: f64, figures: Arc<Figures>) -> Result<()> {
    let caller = Caller::new();
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / rate.clamp(0.1, 100_000.0)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (caller, figures) = (caller.clone(), figures.clone());
        tokio::spawn(async move {
            let started = Instant::now();
            let answer = caller.call(Method::GET, "http://web:8080/").await;
            figures.count(started, matches!(&answer, Ok((status, _)) if !status.is_server_error()));
            if !matches!(&answer, Ok((status, _)) if status.is_success()) {
                tracing::debug!(?answer, "a user's request failed");
            }
            drop(slot);
        });
    }
}
