//! Values that a format writes once and refers to by number.

use std::collections::HashMap;
use std::hash::Hash;

/// Values in the order in which they came, each once.
#[derive(Debug)]
pub(super) struct Interner<T> {
    indices: HashMap<T, usize>,
    /// The values.
    pub(super) list: Vec<T>,
}

impl<T: Clone + Eq + Hash> Interner<T> {
    /// The place of the value in the list, where it is added if it is new.
    pub(super) fn index(&mut self, value: T) -> usize {
        if let Some(&index) = self.indices.get(&value) {
            return index;
        }
        let index = self.list.len();
        self.list.push(value.clone());
        self.indices.insert(value, index);
        index
    }
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            indices: HashMap::new(),
            list: Vec::new(),
        }
    }
}
