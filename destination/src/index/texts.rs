//! What many objects share, kept once: of ten thousand pods, most say what a hundred others say.

use gossamer_api::kubernetes::{Map, Name};
use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// A string that may be shared.
pub(super) type Text = Arc<str>;

/// All of a kind. Those that nobody has any more go when their number has doubled.
#[derive(Debug)]
pub(super) struct Kept<T: ?Sized> {
    known: HashSet<Arc<T>>,
    prune_at: usize,
}

/// All strings.
pub(super) type Texts = Kept<str>;

impl<T: ?Sized> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Kept { known: self.known.clone(), prune_at: self.prune_at }
    }
}

impl<T: ?Sized> Default for Kept<T> {
    fn default() -> Self {
        Kept { known: HashSet::new(), prune_at: 0 }
    }
}

impl<T: ?Sized + Eq + Hash> Kept<T> {
    fn add(&mut self, one: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.prune_at {
            self.known.retain(|kept| Arc::strong_count(kept) > 1);
            self.prune_at = (self.known.len() * 2).max(MIN_PRUNE);
        }
        self.known.insert(one.clone());
        one
    }
}

impl<T: Eq + Hash> Kept<T> {
    /// The one that is kept of all that are equal.
    pub(super) fn share(&mut self, one: T) -> Arc<T> {
        self.known.get(&one).cloned().unwrap_or_else(|| self.add(Arc::new(one)))
    }
}

impl Texts {
    pub(super) fn keep(&mut self, text: &str) -> Text {
        self.known.get(text).cloned().unwrap_or_else(|| self.add(text.into()))
    }

    pub(super) fn name(&mut self, namespace: &str, name: &str) -> Name {
        Name { namespace: self.keep(namespace), name: self.keep(name) }
    }

    pub(super) fn labels(&mut self, from: &Map) -> LabelSet {
        LabelSet(from.iter().map(|(key, value)| (self.keep(key), self.keep(value))).collect())
    }
}

/// What is kept says nothing of the cluster.
impl<T: ?Sized> PartialEq for Kept<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Labels of an object, few and seldom looked at. A map's smallest node is larger than all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct LabelSet(Box<[(Text, Text)]>);

impl LabelSet {
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| **known == *key).map(|(_, value)| &**value)
    }
}

const MIN_PRUNE: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_has_any_more_goes() {
        let mut texts = Texts::default();
        let kept = texts.keep("kept");
        for n in 0..100_000 {
            texts.keep(&n.to_string());
        }
        assert!(texts.known.len() <= 2 * MIN_PRUNE, "{}", texts.known.len());
        assert!(Arc::ptr_eq(&kept, &texts.keep("kept")));
    }
}
