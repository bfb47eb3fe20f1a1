//! A set of few elements, mostly of one: as large as what is in it. A tree's smallest node has room for eleven, and there
//! are several such sets for every pod.
//!
//! **Invariant:** sorted, no element twice.

/// A set, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Few<T>(Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    /// Adds an element, unless it is there.
    pub(super) fn insert(&mut self, value: T) {
        let Err(at) = self.0.binary_search(&value) else { return };
        if self.0.is_empty() {
            // Else there would be room for four.
            self.0.reserve_exact(1);
        }
        self.0.insert(at, value);
    }

    /// Takes an element out.
    pub(super) fn remove(&mut self, value: &T) {
        if let Ok(at) = self.0.binary_search(value) {
            self.0.remove(at);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.0.first()
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(changes in proptest::collection::vec((any::<bool>(), 0u8..20), 0..100)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (insert, value) in changes {
                if insert {
                    few.insert(value);
                    set.insert(value);
                } else {
                    few.remove(&value);
                    set.remove(&value);
                }
                prop_assert_eq!(few.iter().collect::<Vec<_>>(), set.iter().collect::<Vec<_>>());
                prop_assert_eq!((few.first(), few.is_empty()), (set.first(), set.is_empty()));
            }
        }
    }
}
