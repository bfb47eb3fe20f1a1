//! Events of one kind as changes of the registry. Pure, so that a lost watch can be played in a test.

use crate::registry::Change;
use gossamer_api::kubernetes::{Key, Name, Object, Served, Watched};
use kube::runtime::watcher::Event;
use std::collections::HashSet;
use std::marker::PhantomData;

/// Where in a list or watch we are.
pub(super) struct Known<T> {
    /// What the present list has shown; `None` outside of a list.
    seen: Option<HashSet<Name>>,
    kind: PhantomData<fn() -> T>,
}

/// What an event leads to.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "moved once, never kept")]
pub(super) enum Step {
    /// Changes of the registry.
    Change(Change),
    /// The list is complete; what is known and was not in it is gone.
    Listed,
    /// An object that can't be read: what was known of it stays, or else this stands for it.
    Unreadable(Key, String, Option<Object>),
    /// Nothing.
    Nothing,
}

impl<T: Served> Known<T> {
    pub(super) fn new() -> Self {
        Known { seen: None, kind: PhantomData }
    }

    pub(super) fn take(&mut self, event: Event<Watched<T>>) -> Step {
        match event {
            Event::Init => {
                self.seen = Some(HashSet::new());
                Step::Nothing
            }
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.seen {
                    seen.insert(object.key().name);
                }
                apply(object)
            }
            Event::InitDone => Step::Listed,
            Event::Apply(object) => apply(object),
            Event::Delete(object) => Step::Change(Change::Delete(object.key())),
        }
    }

    /// What of `known` the list that is now complete did not have.
    pub(super) fn gone(&mut self, known: impl Iterator<Item = Name>) -> Vec<Change> {
        let Some(seen) = self.seen.take() else { return Vec::new() };
        let gone = known.filter(|name| !seen.contains(name));
        gone.map(|name| Change::Delete(Key { kind: T::KIND, name })).collect()
    }
}

fn apply<T: Served>(watched: Watched<T>) -> Step {
    let key = watched.key();
    match watched.object {
        Ok(object) => Step::Change(Change::Apply(object.into_object())),
        Err(error) => Step::Unreadable(key, error.reason, error.closed.map(Served::into_object)),
    }
}
