//! One kind, followed for as long as the process lives: list, watch, and again when that fails.
//!
//! A kind that its cluster does not have (Gateway API's CRDs may be absent) counts as known and empty, and is asked for
//! again every few seconds.

use super::Progress;
use super::known::{Known, Step};
use super::report::Book;
use crate::registry::{Change, Origin, Registry};
use futures_util::StreamExt;
use gossamer_api::kubernetes::{Key, Kind, Name, Served, Watched};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use std::collections::HashSet;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// One kind's watch.
pub(super) struct Follow<T> {
    client: Client,
    registry: Registry,
    progress: Progress,
    book: Book,
    known: Known<T>,
    /// Objects that something else stands for, because they can't be read.
    closed: HashSet<Name>,
    /// Which of the kind's versions is asked for.
    version: usize,
    /// Failures in a row.
    failures: u32,
    /// Said once.
    told: String,
    /// Since when the API has not served this kind.
    absent: Option<Instant>,
}

impl<T: Served> Follow<T> {
    pub(super) fn new(client: Client, registry: Registry, progress: Progress, book: Book) -> Self {
        let (known, told, closed) = (Known::new(), String::new(), HashSet::new());
        Follow { client, registry, progress, book, known, closed, version: 0, failures: 0, told, absent: None }
    }

    pub(super) async fn run(mut self) {
        loop {
            let api = Api::<Watched<T>>::all_with(self.client.clone(), &T::VERSIONS[self.version]);
            let mut events = pin!(watcher(api, config::<T>()).ready_chunks(BATCH));
            while let Some(batch) = events.next().await {
                match self.take(batch) {
                    Next::Go => {}
                    Next::Wait(pause) => sleep(pause).await,
                    Next::List(pause) => {
                        sleep(pause).await;
                        break;
                    }
                }
            }
        }
    }

    /// Takes what has happened, in one change of the registry as far as possible.
    fn take(&mut self, batch: Vec<watcher::Result<watcher::Event<Watched<T>>>>) -> Next {
        let mut changes = Vec::with_capacity(batch.len());
        let mut next = Next::Go;
        for event in batch {
            match event.map(|event| self.known.take(event)) {
                Ok(Step::Change(change)) => {
                    self.closed.remove(&change.key().name);
                    changes.push(change);
                }
                Ok(Step::Listed) => {
                    self.change(std::mem::take(&mut changes));
                    let known = self.registry.read(|index| index.names(T::KIND));
                    let gone = self.known.gone(known.into_iter());
                    self.change(gone);
                    self.listed();
                }
                Ok(Step::Unreadable(key, reason, closed)) => {
                    let known =
                        changes.iter().any(|change| matches!(change, Change::Apply(object) if object.key() == key))
                            || self.registry.read(|index| index.names(T::KIND).contains(&key.name));
                    let stays = known && !self.closed.contains(&key.name);
                    let what = match closed {
                        Some(closed) if !stays => {
                            self.closed.insert(key.name.clone());
                            changes.push(Change::Apply(closed));
                            "it can't be read, and until it can nobody gets in by it"
                        }
                        _ => "it can't be read, and what was known of it stays in force",
                    };
                    tracing::error!(object = %key, "{what}: {reason}");
                    self.book.wrong(&key, "", [format!("{what}: {reason}")]);
                }
                Ok(Step::Nothing) => {}
                Err(error) => {
                    next = self.failed(error);
                    continue;
                }
            }
            if self.failures > 0 && !changes.is_empty() {
                self.recovered();
            }
        }
        self.change(changes);
        next
    }

    fn change(&self, mut changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.book.note(&mut changes, T::VERSIONS[self.version]);
        // What is wrong with these is for the people who wrote them; pods and slices are made by controllers.
        let written = T::CUSTOM || matches!(T::KIND, Kind::Service | Kind::Namespace);
        let uids: Vec<_> = match written {
            true => changes.iter().filter_map(uid).collect(),
            false => Vec::new(),
        };
        self.registry.change(&Origin::Kubernetes, changes);
        for (key, uid) in uids {
            let problems = self.registry.read(|index| index.problems(&key).to_vec());
            if !problems.is_empty() {
                self.book.wrong(&key, &uid, problems);
            }
        }
    }

    fn listed(&mut self) {
        if self.absent.take().is_some() {
            tracing::info!(kind = %T::KIND, "is served now");
        }
        self.recovered();
        self.progress.done(T::KIND);
    }

    fn recovered(&mut self) {
        if !self.told.is_empty() {
            tracing::info!(kind = %T::KIND, "watching again");
        }
        self.failures = 0;
        self.told.clear();
    }

    fn failed(&mut self, error: watcher::Error) -> Next {
        if T::CUSTOM && is_absent(&error) {
            return self.missed();
        }
        let pause = backoff(self.failures);
        self.failures = self.failures.saturating_add(1);
        let text = describe(&error);
        if is_gone(&error) {
            // Nothing is wrong: we were away for longer than the API remembers.
            tracing::debug!(kind = %T::KIND, "listing again: {text}");
            return Next::Wait(Duration::ZERO);
        }
        // Once per outage: what is refused first, then times out and then answers 503 is one and the same.
        if self.told.is_empty() {
            tracing::warn!(kind = %T::KIND, "what is known stays in force, trying again: {text}");
            self.told = text;
        } else if text != self.told {
            tracing::debug!(kind = %T::KIND, "still trying: {text}");
            self.told = text;
        }
        match error {
            // The version that we go on from is refused, as after a restored backup: only a list helps.
            watcher::Error::WatchStartFailed(kube::Error::Api(status)) if !matches!(status.code, 429 | 500..=503) => {
                Next::List(pause)
            }
            _ => Next::Wait(pause),
        }
    }

    /// The API does not serve this version of this kind.
    fn missed(&mut self) -> Next {
        self.version = (self.version + 1) % T::VERSIONS.len();
        if self.version != 0 {
            return Next::List(Duration::ZERO);
        }
        let since = *self.absent.get_or_insert_with(|| {
            tracing::info!(kind = %T::KIND, "is not served by this cluster; asking again from time to time");
            Instant::now()
        });
        // A CRD that is replaced is away for a moment, and its objects come back with it.
        let known = self.registry.read(|index| index.names(T::KIND));
        if !known.is_empty() && since.elapsed() >= ABSENT_FOR_GOOD {
            tracing::warn!(kind = %T::KIND, objects = known.len(), "is not served any more; its objects are forgotten");
            self.change(known.into_iter().map(|name| Change::Delete(Key { kind: T::KIND, name })).collect());
        }
        self.progress.done(T::KIND);
        Next::List(ABSENT_POLL)
    }
}

fn uid(change: &Change) -> Option<(Key, String)> {
    match change {
        Change::Apply(object) => Some((object.key(), object.metadata().uid.clone())),
        Change::Delete(_) => None,
    }
}

/// How to go on.
enum Next {
    /// At once.
    Go,
    /// After a while.
    Wait(Duration),
    /// With a new list, after a while.
    List(Duration),
}

fn config<T: Served>() -> watcher::Config {
    let config = watcher::Config::default().page_size(PAGE);
    match T::KIND {
        // Finished pods keep their objects, often by the thousand (Jobs), and nobody can reach them.
        Kind::Pod => config.fields("status.phase!=Succeeded,status.phase!=Failed"),
        _ => config,
    }
}

fn is_absent(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

fn is_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// Down to the cause.
fn describe(error: &dyn std::error::Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Half a second, doubled up to [`MAX_BACKOFF`]; a tenth of chance in it, so that ten watches do not knock at once.
fn backoff(failures: u32) -> Duration {
    let wait = MIN_BACKOFF.saturating_mul(1 << failures.min(8)).min(MAX_BACKOFF);
    wait.mul_f64(0.9 + 0.2 * fastrand::f64())
}

/// Events taken at once: one lock and one answer per question for all of them.
const BATCH: usize = 512;
/// A page of 250 pods has some 2 MB, which is the most that a list holds in memory.
const PAGE: u32 = 250;
const MIN_BACKOFF: Duration = Duration::from_millis(500);
/// Short, because after an apiserver's restart every second with old answers counts.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A list that is answered by 404 costs the API nearly nothing.
const ABSENT_POLL: Duration = Duration::from_secs(5);
const ABSENT_FOR_GOOD: Duration = Duration::from_secs(15);
