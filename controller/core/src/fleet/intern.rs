//! One copy of each name: ten thousand tasks of one service share their strings.

use super::{Str, Task};
use std::collections::HashSet;
use std::sync::Arc;

/// Hands out one copy of equal strings.
#[derive(Debug, Default)]
pub(super) struct Interner {
    names: HashSet<Str>,
    pruned_at: usize,
}

impl Interner {
    /// The one copy of `text`.
    pub fn get(&mut self, text: &str) -> Str {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let name: Str = text.into();
        self.names.insert(name.clone());
        name
    }

    /// Replaces `text` by the one copy of it.
    pub fn share(&mut self, text: &mut Str) {
        if let Some(known) = self.names.get(&**text) {
            *text = known.clone();
        } else {
            self.names.insert(text.clone());
        }
    }

    fn share_some(&mut self, text: &mut Option<Str>) {
        if let Some(text) = text {
            self.share(text);
        }
    }

    /// Shares the names of a task that many tasks have in common.
    pub fn share_task(&mut self, task: &mut Task) {
        self.share(&mut task.arn);
        self.share(&mut task.cluster);
        self.share(&mut task.group);
        self.share(&mut task.definition);
        self.share_some(&mut task.started_by);
        self.share_some(&mut task.platform_version);
        self.share_some(&mut task.platform_family);
        self.share_some(&mut task.architecture);
        self.share_some(&mut task.node);
        for container in &mut task.containers {
            self.share(&mut container.name);
            self.share(&mut container.image);
            self.share(&mut container.status);
            self.share_some(&mut container.image_digest);
        }
    }

    /// Drops the names that nobody holds any more, when enough have come since the last time.
    pub fn prune(&mut self) {
        if self.names.len() > self.pruned_at.saturating_mul(2).max(1024) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.pruned_at = self.names.len();
        }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.names.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_unused_ones_go() {
        let mut interner = Interner::default();
        let (a, b) = (interner.get("x"), interner.get("x"));
        assert!(Arc::ptr_eq(&a, &b));
        for i in 0..5_000 {
            interner.get(&i.to_string());
        }
        interner.prune();
        assert_eq!(interner.len(), 1, "only the held name stays");
    }
}
