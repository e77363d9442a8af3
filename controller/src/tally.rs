//! Named counters: what was refused, dropped or lost, by a stable name.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Counters by name. Names are compiled in, so their number is bounded by the program text.
#[derive(Debug, Default)]
pub struct Tally(Mutex<BTreeMap<&'static str, u64>>);

impl Tally {
    fn counts(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        // A count is whole after every step, so a panic elsewhere cannot have left it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one.
    pub fn one(&self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts `n`.
    pub fn add(&self, name: &'static str, n: u64) {
        if n > 0 {
            *self.counts().entry(name).or_default() += n;
        }
    }

    /// Takes over a count that is kept elsewhere.
    pub fn set(&self, name: &'static str, n: u64) {
        self.counts().insert(name, n);
    }

    /// The count of `name`; 0 where it never happened.
    pub fn get(&self, name: &str) -> u64 {
        self.counts().get(name).copied().unwrap_or(0)
    }

    /// All counts, by name.
    pub fn all(&self) -> BTreeMap<&'static str, u64> {
        self.counts().clone()
    }
}
