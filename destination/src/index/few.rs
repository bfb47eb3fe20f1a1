//! A set of few elements, mostly of one: as large as what is in it. A tree's smallest node has room for eleven, and there
//! are several such sets for every pod.
//!
//! **Invariant:** sorted, no element twice; one alone is `One`, so that equal sets are equal.

/// A set, in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Few<T> {
    One(T),
    /// None, or several.
    Other(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few::Other(Vec::new())
    }
}

impl<T: Ord> Few<T> {
    /// Adds an element, unless it is there.
    pub(super) fn insert(&mut self, value: T) {
        let Err(at) = self.as_slice().binary_search(&value) else { return };
        *self = match std::mem::take(self) {
            Few::Other(none) if none.is_empty() => Few::One(value),
            Few::Other(mut several) => {
                several.insert(at, value);
                Few::Other(several)
            }
            Few::One(one) if at == 0 => Few::Other(vec![value, one]),
            Few::One(one) => Few::Other(vec![one, value]),
        };
    }

    /// Takes an element out.
    pub(super) fn remove(&mut self, value: &T) {
        let Ok(at) = self.as_slice().binary_search(value) else { return };
        *self = match std::mem::take(self) {
            Few::One(_) => Few::default(),
            Few::Other(mut several) => {
                several.remove(at);
                match several.len() {
                    1 => several.pop().map_or_else(Few::default, Few::One),
                    _ => Few::Other(several),
                }
            }
        };
    }

    pub(super) fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    pub(super) fn first(&self) -> Option<&T> {
        self.as_slice().first()
    }
}

impl<T> Few<T> {
    pub(super) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.as_slice().iter()
    }

    fn as_slice(&self) -> &[T] {
        match self {
            Few::One(one) => std::slice::from_ref(one),
            Few::Other(several) => several,
        }
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        match self {
            Few::One(one) => vec![one].into_iter(),
            Few::Other(several) => several.into_iter(),
        }
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
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
                prop_assert_eq!(matches!(few, Few::One(_)), set.len() == 1);
            }
        }
    }
}
