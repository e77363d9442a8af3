//! What is remembered of each container while it runs: its first process, what was written in it,
//! and whether something was found in it. All of it bounded.

use crate::event::{FileId, ProcessKey};
use lru::LruCache;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Containers remembered.
pub const MAX_CONTAINERS: usize = 2_048;
/// Written files remembered, over all containers.
pub const MAX_WRITES: usize = 65_536;

/// One container.
#[derive(Clone, Debug, Default)]
pub struct ContainerState {
    /// The earliest process that was seen in it.
    pub first_process: Option<ProcessKey>,
    /// When something was last found in it, nanoseconds since boot.
    pub last_finding: Option<u64>,
}

/// A write that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Program that wrote, where known.
    pub writer: Option<Arc<str>>,
    /// That program is a package manager.
    pub package_manager: bool,
}

/// The containers of this node.
#[derive(Debug)]
pub struct Containers {
    states: LruCache<String, ContainerState>,
    writes: LruCache<u64, Write>,
    evictions: u64,
}

impl Default for Containers {
    fn default() -> Self {
        Self::new(MAX_CONTAINERS, MAX_WRITES)
    }
}

impl Containers {
    fn new(containers: usize, writes: usize) -> Self {
        let size = |size: usize| NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN);
        Self { states: LruCache::new(size(containers)), writes: LruCache::new(size(writes)), evictions: 0 }
    }

    /// A container's state, made where there was none.
    pub fn state(&mut self, container: &str) -> &mut ContainerState {
        if !self.states.contains(container) {
            if self.states.len() == self.states.cap().get() {
                self.evictions += 1;
            }
            self.states.put(container.to_owned(), ContainerState::default());
        }
        self.states.get_or_insert_mut(container.to_owned(), ContainerState::default)
    }

    /// Whether a container is remembered.
    pub fn knows(&self, container: &str) -> bool {
        self.states.contains(container)
    }

    /// A process was seen in a container: the earliest one is its first.
    pub fn seen(&mut self, container: &str, process: ProcessKey) {
        let state = self.state(container);
        if state.first_process.is_none_or(|first| process.start < first.start) {
            state.first_process = Some(process);
        }
    }

    /// A file was written, by path and, where known, by what makes it that file.
    pub fn wrote(&mut self, container: &str, path: &str, file: Option<&FileId>, write: &Write) {
        self.put(of_path(container, path), write.clone());
        if let Some(id) = file.filter(|file| file.inode != 0) {
            self.put(of_file(container, id), write.clone());
        }
    }

    /// A file was given another name; what was known of the old one is known of the new one.
    pub fn renamed(&mut self, container: &str, from: &str, to: &str, by: &Write) {
        let write = self.writes.pop(&of_path(container, from)).unwrap_or_else(|| by.clone());
        self.put(of_path(container, to), write);
    }

    /// The write that was seen of a file.
    pub fn written(&mut self, container: &str, path: &str, file: Option<&FileId>) -> Option<Write> {
        let by_path = self.writes.get(&of_path(container, path)).cloned();
        by_path.or_else(|| {
            let file = file.filter(|file| file.inode != 0)?;
            self.writes.get(&of_file(container, file)).cloned()
        })
    }

    /// Entries pushed out of the full caches.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    fn put(&mut self, key: u64, write: Write) {
        if self.writes.len() == self.writes.cap().get() && !self.writes.contains(&key) {
            self.evictions += 1;
        }
        self.writes.put(key, write);
    }
}

// A collision would need 2^32 paths; it could only join the writer of another file to an exec.
fn of_path(container: &str, path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (0_u8, container, path).hash(&mut hasher);
    hasher.finish()
}

fn of_file(container: &str, file: &FileId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (1_u8, container, file.inode).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_found_by_path_by_file_and_after_a_rename_in_its_container_only() {
        let mut containers = Containers::default();
        let write = Write { writer: Some("/usr/bin/curl".into()), package_manager: false };
        let file = FileId { inode: 9, ..FileId::default() };
        containers.wrote("a", "/tmp/x.part", Some(&file), &write);
        containers.renamed("a", "/tmp/x.part", "/tmp/x", &write);
        assert_eq!(containers.written("a", "/tmp/x", None), Some(write.clone()));
        assert_eq!(containers.written("a", "/elsewhere", Some(&file)), Some(write));
        assert_eq!(containers.written("a", "/tmp/x.part", None), None);
        assert_eq!(containers.written("b", "/tmp/x", Some(&file)), None);
    }

    #[test]
    fn both_caches_stay_within_their_sizes() {
        let mut containers = Containers::new(4, 8);
        let write = Write { writer: None, package_manager: false };
        for n in 0..20 {
            containers.seen(&format!("c{n}"), ProcessKey { pid: n, start: 1 });
            containers.wrote("c", &format!("/f{n}"), None, &write);
        }
        assert_eq!((containers.states.len(), containers.writes.len()), (4, 8));
        assert_eq!(containers.evictions(), 16 + 12);
    }
}
