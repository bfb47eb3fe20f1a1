//! What many objects share, kept once: of ten thousand pods, most say what a hundred others say.

use gossamer_api::kubernetes::{Map, Name, NameParts};
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

/// All strings and names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Texts {
    texts: Kept<str>,
    names: Kept<NameParts>,
}

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
        self.texts.known.get(text).cloned().unwrap_or_else(|| self.texts.add(text.into()))
    }

    pub(super) fn name(&mut self, namespace: &str, name: &str) -> Name {
        // Most objects' names are nothing else's text.
        let parts = NameParts { namespace: self.keep(namespace), name: name.into() };
        self.names.share(parts).into()
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
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True when `other` has all of these.
    pub(super) fn is_within(&self, other: &LabelSet) -> bool {
        self.0.iter().all(|(key, value)| other.get(key) == Some(&**value))
    }

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
        assert!(texts.texts.known.len() <= 2 * MIN_PRUNE, "{}", texts.texts.known.len());
        assert!(Arc::ptr_eq(&kept, &texts.keep("kept")));
    }

    #[test]
    fn a_name_is_kept_once() {
        let mut texts = Texts::default();
        let (one, other) = (texts.name("shop", "web"), texts.name("shop", "web"));
        assert!(std::ptr::eq(&*one, &*other));
        assert!(one == Name::new("shop", "web") && one != texts.name("shop", "api"));
    }
}
