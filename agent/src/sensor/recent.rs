//! Processes seen a moment ago, so that a sensor that only gets a process id (fanotify) can still
//! say who it was after the process has ended.

use crate::event::{CgroupId, Event, EventKind, ProcessKey};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bounded: the least recently started process is forgotten first.
#[derive(Debug)]
pub struct RecentProcesses(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    known: LruCache<u32, (ProcessKey, Option<CgroupId>)>,
    evicted: u64,
}

/// Processes remembered; about 2 MiB.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

impl Default for RecentProcesses {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl RecentProcesses {
    /// Remembers at most so many processes.
    pub fn with_capacity(capacity: NonZeroUsize) -> Self {
        Self(Mutex::new(Inner { known: LruCache::new(capacity), evicted: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one insert: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what forks and execs say.
    pub fn learn(&self, events: &[Event]) {
        let mut inner = self.lock();
        for event in events {
            let key = match &event.kind {
                EventKind::Fork { child } => Some(*child),
                EventKind::Exec(_) | EventKind::Existing(_) => event.process,
                _ => None,
            };
            let Some(key) = key else { continue };
            if let Some((old, _)) = inner.known.push(key.pid, (key, event.cgroup))
                && old != key.pid
            {
                inner.evicted += 1;
            }
        }
    }

    /// The last process that had this id.
    pub fn find(&self, pid: u32) -> Option<(ProcessKey, Option<CgroupId>)> {
        self.lock().known.peek(&pid).copied()
    }

    /// Processes forgotten because the table was full.
    pub fn evicted(&self) -> u64 {
        self.lock().evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fork(pid: u32, start: u64) -> Event {
        let child = ProcessKey::new(pid, start);
        Event { time: start, process: None, cgroup: Some(CgroupId(7)), kind: EventKind::Fork { child } }
    }

    #[test]
    fn the_last_process_of_an_id_is_found() {
        let recent = RecentProcesses::default();
        recent.learn(&[fork(10, 20_000_000), fork(10, 90_000_000)]);
        assert_eq!(recent.find(10), Some((ProcessKey::new(10, 90_000_000), Some(CgroupId(7)))));
        assert_eq!(recent.find(11), None);
        assert_eq!(recent.evicted(), 0, "a reused id takes no more room");
    }

    #[test]
    fn a_full_table_forgets_the_oldest_and_counts() {
        let recent = RecentProcesses::with_capacity(NonZeroUsize::new(2).unwrap());
        recent.learn(&[fork(1, 10_000_000), fork(2, 20_000_000), fork(3, 30_000_000)]);
        assert_eq!(recent.find(1), None);
        assert!(recent.find(2).is_some() && recent.find(3).is_some());
        assert_eq!(recent.evicted(), 1);
    }
}
