//! Who is traced: threads and the processes that they belong to. Bounded.

use super::exec::Namespaces;
use super::sys::Tid;
use crate::event::{Credentials, ProcessKey};
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// How far a process has been let go because it stops too often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shed {
    /// Not at all.
    #[default]
    Nothing,
    /// Its new threads are not traced.
    Threads,
    /// It is not traced.
    Process,
}

/// A traced process.
#[derive(Debug)]
pub struct Process {
    /// Its id and start.
    pub key: ProcessKey,
    /// As last read: at the seizure or at its last exec, or its parent's at the fork.
    pub credentials: Credentials,
    /// As last read, or its parent's, where it may not go into others.
    pub namespaces: Option<Namespaces>,
    /// How far it has been let go, and until when.
    pub shed: Shed,
    /// When to trace it fully again.
    pub shed_until: Option<Instant>,
    /// Which second [`Process::signals`] and [`Process::thread_stops`] are of.
    pub window: u64,
    /// Stops by signals in the window.
    pub signals: u32,
    /// Stops by new threads in the window.
    pub thread_stops: u32,
    /// A newcomer whose program no event has told yet: tell it at this time.
    pub found: Option<Instant>,
    /// Its traced threads but the first one.
    others: HashSet<Tid>,
}

impl Process {
    /// A process that has done nothing yet.
    pub fn new(key: ProcessKey, credentials: Credentials) -> Self {
        Self {
            key,
            credentials,
            namespaces: None,
            shed: Shed::Nothing,
            shed_until: None,
            window: 0,
            signals: 0,
            thread_stops: 0,
            found: None,
            others: HashSet::new(),
        }
    }
}

/// A traced thread.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    /// Its process.
    pub tgid: Tid,
    /// Its ptrace options.
    pub options: i32,
}

/// Threads and processes; at most `limit` threads.
#[derive(Debug)]
pub struct Table {
    /// By process id.
    pub processes: HashMap<Tid, Process>,
    threads: HashMap<Tid, Thread>,
    limit: usize,
}

impl Table {
    /// An empty table.
    pub fn new(limit: usize) -> Self {
        Self { processes: HashMap::new(), threads: HashMap::new(), limit }
    }

    /// Whether one more thread fits.
    pub fn has_room(&self) -> bool {
        self.threads.len() < self.limit
    }

    /// Threads that are traced.
    pub fn len(&self) -> usize {
        self.threads.len()
    }

    /// A thread.
    pub fn thread(&self, tid: Tid) -> Option<Thread> {
        self.threads.get(&tid).copied()
    }

    /// The process of a thread.
    pub fn process_of(&mut self, tid: Tid) -> Option<&mut Process> {
        let thread = self.threads.get(&tid)?;
        self.processes.get_mut(&thread.tgid)
    }

    /// Enters a thread, or changes it.
    pub fn put_thread(&mut self, tid: Tid, thread: Thread) {
        if tid != thread.tgid
            && let Some(process) = self.processes.get_mut(&thread.tgid)
        {
            process.others.insert(tid);
        }
        self.threads.insert(tid, thread);
    }

    /// Forgets a thread.
    pub fn remove_thread(&mut self, tid: Tid) -> Option<Thread> {
        let thread = self.threads.remove(&tid)?;
        if let Some(process) = self.processes.get_mut(&thread.tgid) {
            process.others.remove(&tid);
        }
        Some(thread)
    }

    /// Forgets a process with its threads.
    pub fn remove_process(&mut self, tgid: Tid) -> Option<Process> {
        let process = self.processes.remove(&tgid)?;
        for tid in &process.others {
            self.threads.remove(tid);
        }
        self.threads.remove(&tgid);
        Some(process)
    }

    /// At an exec all other threads of the process are gone, and the one that lives has its id.
    pub fn keep_only_leader(&mut self, tgid: Tid, options: i32) {
        if let Some(process) = self.processes.get_mut(&tgid) {
            for tid in process.others.drain() {
                self.threads.remove(&tid);
            }
        }
        self.threads.insert(tgid, Thread { tgid, options });
    }

    /// The threads of a process.
    pub fn threads_of(&self, tgid: Tid) -> Vec<Tid> {
        let others = self.processes.get(&tgid).into_iter().flat_map(|process| process.others.iter().copied());
        others.chain(self.threads.contains_key(&tgid).then_some(tgid)).collect()
    }

    /// All threads.
    pub fn all_threads(&self) -> Vec<Tid> {
        self.threads.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(4);
        table.processes.insert(7, Process::new(ProcessKey { pid: 7, start: 1 }, Credentials::default()));
        for tid in [7, 8, 9] {
            table.put_thread(tid, Thread { tgid: 7, options: 1 });
        }
        table
    }

    #[test]
    fn an_exec_by_any_thread_leaves_one_thread_with_the_process_id() {
        let mut table = table();
        // The former leader may be gone already.
        table.remove_thread(7);
        table.keep_only_leader(7, 2);
        assert_eq!(table.all_threads(), [7]);
        assert_eq!(table.thread(7).map(|thread| thread.options), Some(2));
        assert_eq!(table.threads_of(7), [7]);
    }

    #[test]
    fn the_table_says_when_it_is_full_and_forgets_whole_processes() {
        let mut table = table();
        assert!(table.has_room());
        table.put_thread(10, Thread { tgid: 7, options: 1 });
        assert!(!table.has_room());
        assert!(table.remove_process(7).is_some());
        assert_eq!(table.len(), 0);
        assert!(table.process_of(8).is_none());
    }
}
