//! Strings that many objects share, kept once: of ten thousand pods, most say what a hundred others say.

use gossamer_api::kubernetes::{Map, Name};
use std::collections::HashSet;
use std::sync::Arc;

/// A string that may be shared.
pub(super) type Text = Arc<str>;

/// All of them. Those that nobody has any more go when their number has doubled.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    known: HashSet<Text>,
    prune_at: usize,
}

impl Texts {
    pub(super) fn keep(&mut self, text: &str) -> Text {
        if let Some(known) = self.known.get(text) {
            return known.clone();
        }
        if self.known.len() >= self.prune_at {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            self.prune_at = (self.known.len() * 2).max(MIN_PRUNE);
        }
        let text = Text::from(text);
        self.known.insert(text.clone());
        text
    }

    pub(super) fn name(&mut self, namespace: &str, name: &str) -> Name {
        Name { namespace: self.keep(namespace), name: self.keep(name) }
    }

    pub(super) fn labels(&mut self, from: &Map) -> LabelSet {
        LabelSet(from.iter().map(|(key, value)| (self.keep(key), self.keep(value))).collect())
    }
}

/// What is kept says nothing of the cluster.
impl PartialEq for Texts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Labels of an object, few and seldom looked at. A map's smallest node is larger than all of them.
#[derive(Clone, Debug, Default, PartialEq)]
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
