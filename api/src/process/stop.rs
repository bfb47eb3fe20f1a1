//! How a process ends: stop accepting, finish what is in flight, end what remains after the grace.
//!
//! Two moments, both final: *stopping* (nothing new begins) and *killed* (nothing may live on). Whoever spawns a task
//! does so through [`Stop::spawn`], so that the end of the process waits for it.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The end of a process, shared by all of its parts. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    stopping: CancellationToken,
    killed: CancellationToken,
    tasks: TaskTracker,
}

impl Stop {
    /// A process that runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on nothing new begins. Calling it again changes nothing.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// True once [`Stop::stop`] was called.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Returns when the process begins to stop. Cancel safe.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// Returns when the wait for what is in flight is over: connections close, probes end. Cancel safe.
    pub async fn killed(&self) {
        self.killed.cancelled().await;
    }

    /// True once [`Stop::killed`] would return.
    pub fn is_killed(&self) -> bool {
        self.killed.is_cancelled()
    }

    /// Runs `task`; the end of the process waits for it.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// How many tasks are running.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Waits until all tasks are done, at most `grace`, then kills what remains. True when nothing had to be killed.
    /// To be called after [`Stop::stop`]; without it the tasks have no reason to end.
    pub async fn wait(&self, grace: Duration) -> bool {
        self.tasks.close();
        let done = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        self.killed.cancel();
        done
    }

    /// The first SIGTERM or SIGINT stops the process, the second ends it at once with 130 (SIGINT) or 143 (SIGTERM).
    /// Must be called inside a runtime. Fails only where the system refuses signal handlers.
    pub fn on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = self.clone();
        // Not tracked: it has to live for as long as the process, also while that drains.
        tokio::spawn(async move {
            loop {
                let (name, code) = tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 143),
                    _ = interrupt.recv() => ("SIGINT", 130),
                };
                if stop.is_stopping() {
                    tracing::warn!(signal = name, "ending at once");
                    std::process::exit(code);
                }
                tracing::info!(signal = name, "stopping; a second signal ends at once");
                stop.stop();
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_what_is_in_flight() {
        let stop = Stop::new();
        let inner = stop.clone();
        stop.spawn(async move {
            inner.stopping().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        assert!(!stop.is_stopping());
        stop.stop();
        let start = tokio::time::Instant::now();
        assert!(stop.wait(Duration::from_secs(10)).await);
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        assert!(stop.is_killed());
    }

    #[tokio::test(start_paused = true)]
    async fn kills_what_outlives_the_grace() {
        let stop = Stop::new();
        let inner = stop.clone();
        let task = stop.spawn(async move { inner.killed().await });
        stop.stop();
        assert!(!stop.wait(Duration::from_secs(10)).await);
        task.await.unwrap();
        assert_eq!(stop.tasks(), 0);
    }
}
