//! Where handles are kept between scrapes, and how they become text. Locked only when a handle is made and on a scrape.

use super::{Declared, FAMILIES, Family};
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Handles of one kind. A thousand endpoints with four clients' labels each fit; beyond, new ones are not shown.
pub(super) const MAX_SCOPES: usize = 4096;
/// How long a handle that nobody holds is still shown, so that a last scrape sees its end. Source: Linkerd (10 m).
pub(super) const IDLE: Duration = Duration::from_secs(600);

/// Something that puts its series into an exposition.
pub(super) trait Collect {
    /// `labels` is what the handle was made with.
    fn collect(&self, labels: &str, out: &mut Exposition);
}

/// Handles by their labels.
#[derive(Debug)]
pub(super) struct Table<T> {
    scopes: Mutex<BTreeMap<(&'static str, String), Scope<T>>>,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Scope<T> {
    handle: Arc<T>,
    /// Since when nobody else holds it, as far as was looked.
    idle: Option<Instant>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Table { scopes: Mutex::default(), refused: AtomicU64::new(0) }
    }
}

impl<T> Table<T> {
    /// The handle of these labels, old or new.
    pub(super) fn scope(&self, labels: String, new: impl FnOnce() -> T) -> Arc<T> {
        self.scope_of("", labels, new)
    }

    /// The same, of a variant whose labels may be those of another.
    pub(super) fn scope_of(&self, variant: &'static str, labels: String, new: impl FnOnce() -> T) -> Arc<T> {
        let mut scopes = self.lock();
        let key = (variant, labels);
        if let Some(scope) = scopes.get_mut(&key) {
            scope.idle = None;
            return scope.handle.clone();
        }
        if scopes.len() >= MAX_SCOPES && !make_room(&mut scopes) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Arc::new(new());
        }
        let handle = Arc::new(new());
        scopes.insert(key, Scope { handle: handle.clone(), idle: None });
        handle
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(&'static str, String), Scope<T>>> {
        // Nothing that runs under the lock can leave it half done.
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops the handle that nobody has held for longest.
fn make_room<T>(scopes: &mut BTreeMap<(&'static str, String), Scope<T>>) -> bool {
    let unused = scopes.iter().filter(|(_, scope)| Arc::strong_count(&scope.handle) == 1);
    // One that is unused but not yet known to be went last.
    let oldest = unused.min_by_key(|(_, scope)| (scope.idle.is_none(), scope.idle)).map(|(key, _)| key.clone());
    oldest.is_some_and(|key| scopes.remove(&key).is_some())
}

impl<T: Collect> Table<T> {
    /// Shows all handles, forgets those that have been idle for long, and says how many were refused.
    pub(super) fn collect(&self, now: Instant, out: &mut Exposition) -> u64 {
        self.lock().retain(|(_, labels), scope| {
            if Arc::strong_count(&scope.handle) > 1 {
                scope.idle = None;
            } else if now.saturating_duration_since(*scope.idle.get_or_insert(now)) >= IDLE {
                return false;
            }
            scope.handle.collect(labels, out);
            true
        });
        self.refused.load(Ordering::Relaxed)
    }
}

/// Prometheus' text format, family by family.
#[derive(Debug)]
pub(super) struct Exposition {
    /// The lines of each family.
    families: Vec<String>,
}

impl Exposition {
    pub(super) fn new() -> Self {
        Exposition { families: vec![String::new(); FAMILIES.len()] }
    }

    /// One line. `labels` is `key="value",...` without braces.
    pub(super) fn value(&mut self, family: Family, labels: &str, value: impl Display) {
        self.line(family, "", labels, "", value);
    }

    /// One line, with further labels.
    pub(super) fn value_with(&mut self, family: Family, labels: &str, more: &str, value: impl Display) {
        self.line(family, "", labels, more, value);
    }

    /// One line if there is anything to tell.
    pub(super) fn some(&mut self, family: Family, labels: &str, value: u64) {
        if value > 0 {
            self.value(family, labels, value);
        }
    }

    /// One line of a histogram.
    pub(super) fn line(&mut self, family: Family, suffix: &str, labels: &str, more: &str, value: impl Display) {
        let out = &mut self.families[family as usize];
        let comma = if labels.is_empty() || more.is_empty() { "" } else { "," };
        let name = FAMILIES[family as usize].name;
        // Writing to a string cannot fail.
        let _ = match labels.is_empty() && more.is_empty() {
            true => writeln!(out, "{name}{suffix} {value}"),
            false => writeln!(out, "{name}{suffix}{{{labels}{comma}{more}}} {value}"),
        };
    }

    /// The text. Families without series are left out.
    pub(super) fn finish(self) -> String {
        let mut text = String::with_capacity(self.families.iter().map(String::len).sum::<usize>() + 8 * 1024);
        for (Declared { name, kind, help }, lines) in FAMILIES.iter().zip(&self.families) {
            if !lines.is_empty() {
                let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
            }
        }
        text
    }
}
