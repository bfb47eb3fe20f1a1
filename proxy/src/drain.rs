//! How a data thread ends, as its requests see it: nothing new begins; and once the grace period is over, who still has
//! no answer gets one that says so.
//!
//! **Invariant:** a request that outlives the grace period is never recorded as its client's fault.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use tokio::sync::Notify;

/// The end of a data thread. Until it begins, it costs a request a look at a flag each time it is polled.
#[derive(Default)]
pub struct Drain {
    begun: Cell<bool>,
    over: Cell<bool>,
    changed: Notify,
}

impl Drain {
    /// Nothing new begins from now on.
    pub fn begin(&self) {
        self.begun.set(true);
        self.changed.notify_waiters();
    }

    /// The grace period is over.
    pub fn end(&self) {
        self.over.set(true);
        self.begin();
    }

    /// True once the drain began.
    pub fn is_begun(&self) -> bool {
        self.begun.get()
    }

    /// Returns when the drain begins. Cancel safe.
    pub async fn begun(&self) {
        self.reached(&self.begun).await;
    }

    async fn reached(&self, flag: &Cell<bool>) {
        loop {
            let changed = self.changed.notified();
            if flag.get() {
                return;
            }
            changed.await;
        }
    }

    /// Does `work`, or gives up (`None`) when the grace period ends first. Its task has to be woken when the drain begins:
    /// whoever does this for a request also waits for [`begun`](Self::begun).
    pub async fn within_grace<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        // Boxed, and only made in the end: a request carries a pointer.
        let mut over: Option<Pin<Box<_>>> = None;
        poll_fn(|cx| {
            if self.begun.get() {
                let over = over.get_or_insert_with(|| Box::pin(self.reached(&self.over)));
                if over.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
            }
            work.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::pin::pin;
    use std::rc::Rc;

    #[tokio::test]
    async fn work_is_given_up_when_the_grace_period_ends_and_not_before() {
        let drain = Rc::new(Drain::default());
        assert_eq!(drain.within_grace(pin!(ready(1))).await, Some(1));
        let waits = async {
            let mut begun = pin!(drain.begun());
            let mut work = pin!(pending::<()>());
            let mut work = pin!(drain.within_grace(work.as_mut()));
            // As a connection does: woken by the beginning, it polls the request.
            poll_fn(|cx| {
                if !drain.is_begun() {
                    let _ = begun.as_mut().poll(cx);
                }
                work.as_mut().poll(cx)
            })
            .await
        };
        let steps = async {
            tokio::task::yield_now().await;
            drain.begin();
            assert_eq!(drain.within_grace(pin!(ready(2))).await, Some(2), "in time");
            tokio::task::yield_now().await;
            drain.end();
        };
        assert_eq!(tokio::join!(waits, steps).0, None);
        drain.begun().await;
        assert_eq!(drain.within_grace(pin!(ready(3))).await, None);
    }
}
