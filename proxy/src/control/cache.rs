//! Answers by question: one stream each, shared by everybody who asks; bounded.
//!
//! An answer is in use while somebody holds a receiver. Unused ones are kept for a while, so that a service that is
//! called once an hour survives an outage; when the cache is full the least recently used of them go first.

use super::Discovered;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// What the stream's task and the cache share.
pub(super) struct Answer<T> {
    /// The newest answer.
    pub(super) state: watch::Sender<Discovered<T>>,
    /// Somebody asks again.
    pub(super) asked: Notify,
}

pub(super) struct Cache<K, T> {
    entries: Mutex<HashMap<K, Entry<T>>>,
    capacity: usize,
    full: watch::Sender<Discovered<T>>,
}

struct Entry<T> {
    answer: Arc<Answer<T>>,
    used: Instant,
    stream: AbortHandle,
}

impl<T> Entry<T> {
    fn in_use(&self) -> bool {
        self.answer.state.receiver_count() > 0
    }
}

impl<T> Drop for Entry<T> {
    fn drop(&mut self) {
        self.stream.abort();
    }
}

impl<K: Hash + Eq, T> Cache<K, T> {
    pub(super) fn new(capacity: usize) -> Self {
        let reason = format!("{capacity} destinations are in use and no more are remembered");
        let full = watch::channel(Discovered::Failed(reason.into())).0;
        Cache { entries: Mutex::default(), capacity, full }
    }

    /// The answer to `key`. Nobody asked yet: `start` begins to. All places are taken by answers in use: it fails.
    pub(super) fn subscribe<Q>(
        &self,
        key: &Q,
        start: impl FnOnce(Arc<Answer<T>>) -> AbortHandle,
    ) -> watch::Receiver<Discovered<T>>
    where
        K: Borrow<Q>,
        Q: ?Sized + Hash + Eq + ToOwned<Owned = K>,
    {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(key) {
            entry.used = Instant::now();
            entry.answer.asked.notify_one();
            return entry.answer.state.subscribe();
        }
        if entries.len() >= self.capacity {
            make_room(&mut entries);
        }
        if entries.len() >= self.capacity {
            return self.full.subscribe();
        }
        let answer = Arc::new(Answer { state: watch::channel(Discovered::Pending).0, asked: Notify::new() });
        let receiver = answer.state.subscribe();
        let stream = start(answer.clone());
        entries.insert(key.to_owned(), Entry { answer, used: Instant::now(), stream });
        receiver
    }

    /// Forgets what nobody has used for `idle`.
    pub(super) fn sweep(&self, idle: Duration) {
        let now = Instant::now();
        self.lock().retain(|_, entry| {
            if entry.in_use() {
                entry.used = now;
            }
            now - entry.used < idle
        });
    }

    /// Ends all streams; the answers stay.
    pub(super) fn end(&self) {
        self.lock().values().for_each(|entry| entry.stream.abort());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Entry<T>>> {
        // No code that can panic runs under the lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }
}

/// Drops the least recently used eighth of what is unused: many at once, so that a scan of addresses does not cost a
/// walk through the cache for each.
fn make_room<K: Hash + Eq, T>(entries: &mut HashMap<K, Entry<T>>) {
    let mut unused: Vec<Instant> = entries.values().filter(|entry| !entry.in_use()).map(|entry| entry.used).collect();
    if unused.is_empty() {
        return;
    }
    let last = unused.len() / 8;
    let (_, oldest, _) = unused.select_nth_unstable(last);
    let oldest = *oldest;
    entries.retain(|_, entry| entry.in_use() || entry.used > oldest);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(cache: &Cache<u16, u16>, key: u16) -> watch::Receiver<Discovered<u16>> {
        cache.subscribe(&key, |_| tokio::spawn(std::future::pending::<()>()).abort_handle())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_use_is_never_forgotten() {
        let cache = Cache::new(8);
        let held = ask(&cache, 1);
        drop(ask(&cache, 2));
        tokio::time::advance(Duration::from_secs(30)).await;
        cache.sweep(Duration::from_secs(60));
        assert_eq!(cache.len(), 2);
        tokio::time::advance(Duration::from_secs(31)).await;
        cache.sweep(Duration::from_secs(60));
        assert_eq!(cache.len(), 1);
        drop(held);
        // The idle time counts from the last sweep that saw it in use.
        tokio::time::advance(Duration::from_secs(59)).await;
        cache.sweep(Duration::from_secs(60));
        assert_eq!(cache.len(), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        cache.sweep(Duration::from_secs(60));
        assert_eq!(cache.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_cache_drops_the_least_recently_used() {
        let cache = Cache::new(4);
        for key in [1, 2, 3, 4, 1] {
            drop(ask(&cache, key));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let _five = ask(&cache, 5);
        let mut keys: Vec<u16> = cache.lock().keys().copied().collect();
        keys.sort();
        assert_eq!(keys, [1, 3, 4, 5]);
    }

    #[tokio::test]
    async fn a_cache_full_of_answers_in_use_refuses_more() {
        let cache = Cache::new(2);
        let held = [ask(&cache, 1), ask(&cache, 2)];
        assert!(matches!(&*ask(&cache, 3).borrow(), Discovered::Failed(_)));
        assert!(matches!(&*ask(&cache, 2).borrow(), Discovered::Pending));
        drop(held);
        assert!(matches!(&*ask(&cache, 3).borrow(), Discovered::Pending));
    }
}
