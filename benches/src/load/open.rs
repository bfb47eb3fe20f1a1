//! The open loop: requests are due at fixed moments, whatever happened to those before. Latency counts from there, so
//! that a proxy that stalls pays for all that had to wait.

use super::State;
use super::http1::Connection;
use anyhow::{Result, anyhow};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, mpsc};

/// Requests that wait for a connection: seconds' worth means that the driver can't do it.
const WAITING: usize = 10_000;

/// Opens the connections and starts the clock.
pub(crate) async fn run(state: &Rc<State>) -> Result<()> {
    let (clock, due) = mpsc::channel(WAITING);
    let due = Rc::new(Mutex::new(due));
    for _ in 0..state.args.connections {
        let mut connection = Connection::open(state.args.target, &state.args.path, false).await?;
        let (state, due) = (state.clone(), due.clone());
        tokio::task::spawn_local(async move {
            loop {
                let next = due.lock().await.recv().await;
                let Some(moment) = next else {
                    return if !state.stopping() {
                        state.failed(&anyhow!("too slow for {} requests per second", state.args.rate));
                    };
                };
                match connection.exchange().await {
                    Ok(()) => state.answered(moment),
                    Err(error) => return state.failed(&error),
                }
            }
        });
    }
    let rate = state.args.rate;
    // A thread of its own: the runtime's timers tick in milliseconds. It ends with the channel, or the process.
    std::thread::spawn(move || tick(&clock, rate));
    Ok(())
}

fn tick(clock: &mpsc::Sender<Instant>, rate: u64) {
    let period = Duration::from_nanos(1_000_000_000 / rate);
    let mut due = Instant::now() + period;
    loop {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if clock.try_send(due).is_err() {
            return;
        }
        due += period;
    }
}
