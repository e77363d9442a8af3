//! Which processes are traced, and how they are caught.

use super::exec::Namespaces;
use super::report::count;
use super::sys::{self, ALL_OPTIONS, Tid};
use super::table::{Process, Thread};
use super::tracer::Tracer;
use crate::event::ProcessKey;
use crate::sensor::proc::{self, Stat, Status};
use lru::LruCache;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// Refused processes that are remembered, so that each is counted once.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Processes that are not traced, each for a reason that was counted.
pub struct Refusals {
    refused: LruCache<ProcessKey, ()>,
    shed: LruCache<ProcessKey, Instant>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { refused: LruCache::new(REMEMBERED), shed: LruCache::new(REMEMBERED) }
    }
}

impl Refusals {
    /// A process is let go until then.
    pub fn shed(&mut self, key: ProcessKey, until: Instant) {
        self.shed.put(key, until);
    }

    fn is_shed(&self, key: ProcessKey, now: Instant) -> bool {
        self.shed.peek(&key).is_some_and(|until| *until > now)
    }

    /// Whether this is the first refusal of the process.
    fn first(&mut self, key: ProcessKey) -> bool {
        self.refused.put(key, ()).is_none()
    }
}

/// The supervisor: our parent, where it runs the same program. 0 where it does not.
pub fn supervisor() -> Tid {
    let file = |path: String| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get() as Tid);
    let own = file("/proc/self/exe".to_owned());
    if own.is_some() && own == file(format!("/proc/{parent}/exe")) { parent } else { 0 }
}

impl Tracer {
    /// Seizes everything in `/proc` that is not traced yet.
    pub(super) fn scan(&mut self, newcomers: bool) {
        for pid in proc::processes() {
            // A thread that was let go and then ran another program has made its process untraced,
            // and nobody told: the table is believed only where the kernel agrees.
            if self.table.processes.contains_key(&pid) && Status::read(pid).is_ok_and(|status| status.tracer == 0) {
                self.table.remove_process(pid);
            }
            if !self.table.processes.contains_key(&pid) {
                self.meet(pid, newcomers);
            }
            self.breathe();
        }
    }

    /// Seizes what has this id, if it is to be traced; false where it is not there (yet).
    pub(super) fn meet(&mut self, tid: Tid, newcomer: bool) -> bool {
        let Ok(status) = Status::read(tid) else { return false };
        // Attached by the kernel already: its first stop is under way.
        if status.tracer == self.thread || [self.own, self.supervisor].contains(&status.tgid) {
            return true;
        }
        let Ok(stat) = Stat::read(status.tgid) else { return false };
        // Our own children (the watchdog) are not traced, nor what has ended.
        if stat.kernel || stat.parent == self.own || matches!(stat.state, 'Z' | 'X') {
            return true;
        }
        let key = ProcessKey::new(status.tgid, stat.start);
        if self.refusals.is_shed(key, Instant::now()) {
            return true;
        }
        let known = self.table.processes.contains_key(&status.tgid);
        if !known {
            self.table.processes.insert(status.tgid, Process::new(key, status.credentials));
        }
        let refused = self.seize_threads(status.tgid);
        if self.table.threads_of(status.tgid).is_empty() {
            self.table.remove_process(status.tgid);
        } else if !known && let Some(process) = self.table.processes.get_mut(&status.tgid) {
            // Once it is traced: an exec that changes what it may is told.
            process.namespaces = Namespaces::of_confined(status.tgid);
            if newcomer {
                process.found = Some(Instant::now());
                count(&self.report.newcomers);
                self.found.push(status.tgid);
            }
        }
        if refused && self.refusals.first(key) {
            let tracer = Status::read(status.tgid).map_or(0, |status| status.tracer);
            count(if tracer == 0 { &self.report.refused_denied } else { &self.report.refused_traced });
        }
        true
    }

    /// Seizes the threads of a process until no new one shows; true where the kernel refused one.
    pub(super) fn seize_threads(&mut self, tgid: Tid) -> bool {
        let mut refused = false;
        loop {
            let mut news = false;
            for tid in proc::threads(tgid) {
                if self.table.thread(tid).is_some() {
                    continue;
                }
                if !self.table.has_room() {
                    count(&self.report.table_full);
                    return refused;
                }
                match sys::seize(tid, ALL_OPTIONS) {
                    Ok(()) => {
                        self.table.put_thread(tid, Thread { tgid, options: ALL_OPTIONS });
                        count(&self.report.seized);
                        news = true;
                    }
                    Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                        // Ours already, or ended, or really refused.
                        let ours = Status::read(tid).is_ok_and(|status| status.tracer == self.thread);
                        let ended = Stat::read_thread(tgid, tid).map_or(true, |stat| matches!(stat.state, 'Z' | 'X'));
                        refused |= !ours && !ended;
                    }
                    // Gone.
                    Err(_) => {}
                }
            }
            if !news {
                return refused;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn refusals_are_counted_once_and_forgotten_in_the_end() {
        let mut refusals = Refusals::default();
        let key = |pid| ProcessKey { pid, start: 0 };
        assert!(refusals.first(key(1)));
        assert!(!refusals.first(key(1)));
        for pid in 2..=(REMEMBERED.get() as u32 + 1) {
            refusals.first(key(pid));
        }
        assert_eq!(refusals.refused.len(), REMEMBERED.get());
        assert!(refusals.first(key(1)));
    }

    #[test]
    fn a_process_that_was_let_go_is_left_alone_for_its_time() {
        let mut refusals = Refusals::default();
        let key = ProcessKey { pid: 1, start: 0 };
        let now = Instant::now();
        refusals.shed(key, now + Duration::from_secs(60));
        assert!(refusals.is_shed(key, now));
        assert!(!refusals.is_shed(key, now + Duration::from_secs(60)));
    }
}
