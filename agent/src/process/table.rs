//! The process table: bounded in entries and in bytes, keyed by (pid, start).
//!
//! Guarantees: never more entries or bytes than its limits; what is pushed out is counted; exited
//! processes go before living ones, the least recently used first.
//! Assumptions: a sensor tells exec and fork before what the process does next.

use crate::event::{CgroupId, Exec, FileId, ProcessKey, Stdio};
use lru::LruCache;
use std::sync::Arc;

/// Ancestors that are followed.
pub const MAX_LINEAGE: usize = 16;
/// Bytes of arguments that an entry keeps; a finding about an exec carries the event's own.
const MAX_ARGUMENT_BYTES: usize = 1_024;
/// Bytes of a path that an entry keeps (PATH_MAX is 4096; longer ones are attacks on memory).
const MAX_PATH_BYTES: usize = 1_024;
/// Bytes that an entry costs beside its program.
const ENTRY_BYTES: usize = 192;

/// How large a table may grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries.
    pub entries: usize,
    /// Bytes, programs included.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 32_768, bytes: 24 << 20 }
    }
}

/// What a process runs; shared with the children that it forks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// Path, with ` (deleted)` taken off.
    pub path: String,
    /// Arguments, capped.
    pub arguments: Vec<String>,
    /// Script that an interpreter was started for.
    pub script: Option<String>,
    /// The file.
    pub file: Option<FileId>,
    /// Effective user right after the exec.
    pub euid: u32,
    /// Descriptors 0, 1 and 2 at the exec.
    pub stdio: [Stdio; 3],
    /// It was written after the container's start.
    pub new_binary: bool,
}

impl Program {
    /// Last part of the path.
    pub fn name(&self) -> &str {
        base_name(&self.path)
    }

    fn bytes(&self) -> usize {
        let arguments: usize = self.arguments.iter().map(|argument| argument.len() + 24).sum();
        self.path.len() + arguments + self.script.as_ref().map_or(0, String::len) + 128
    }
}

/// The part of a path after its last slash.
pub fn base_name(path: &str) -> &str {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    path.rsplit('/').next().unwrap_or(path)
}

/// One process.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its parent.
    pub parent: ProcessKey,
    /// What it runs.
    pub program: Arc<Program>,
    /// Process id in its own namespace, 0 if not known.
    pub namespace_pid: u32,
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Cgroup, where the sensor sees cgroups.
    pub cgroup: Option<CgroupId>,
    /// Mount namespace, 0 if not known.
    pub mount_namespace: u64,
    /// PID namespace, 0 if not known.
    pub pid_namespace: u64,
    /// It, or the process that forked it, listens on an internet socket.
    pub listening: bool,
    /// It was there before it was watched, so that it may listen unseen, until /proc is asked.
    pub unwatched: bool,
    charged: usize,
}

impl Entry {
    /// An entry about which only the parent is known.
    pub fn new(parent: ProcessKey, program: Program) -> Self {
        let charged = program.bytes() + ENTRY_BYTES;
        Self {
            parent,
            program: Arc::new(program),
            namespace_pid: 0,
            uid: 0,
            euid: 0,
            cgroup: None,
            mount_namespace: 0,
            pid_namespace: 0,
            listening: false,
            unwatched: false,
            charged,
        }
    }

    /// The entry that an exec makes.
    pub fn from_exec(exec: &Exec, cgroup: Option<CgroupId>, new_binary: bool) -> Self {
        let path = exec.executable.as_deref().filter(|path| !path.is_empty()).unwrap_or(&exec.filename);
        let program = Program {
            path: cut(path.strip_suffix(" (deleted)").unwrap_or(path), MAX_PATH_BYTES).to_owned(),
            arguments: capped(&exec.arguments),
            script: exec.script.as_deref().map(|script| cut(script, MAX_PATH_BYTES).to_owned()),
            file: exec.file,
            euid: exec.credentials.euid,
            stdio: exec.stdio,
            new_binary,
        };
        Self {
            namespace_pid: exec.namespace_pid,
            uid: exec.credentials.uid,
            euid: exec.credentials.euid,
            cgroup,
            mount_namespace: exec.mount_namespace,
            pid_namespace: exec.pid_namespace,
            ..Self::new(exec.parent, program)
        }
    }

    fn forked(&self, parent: ProcessKey) -> Self {
        Self { parent, namespace_pid: 0, charged: ENTRY_BYTES, ..self.clone() }
    }
}

/// The beginning of `text`, at most `limit` bytes, cut between characters.
pub fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

fn capped(arguments: &[String]) -> Vec<String> {
    let mut room = MAX_ARGUMENT_BYTES;
    let mut kept = Vec::new();
    for argument in arguments {
        if room == 0 {
            break;
        }
        let part = cut(argument, room);
        room = room.saturating_sub(part.len() + 1);
        kept.push(part.to_owned());
    }
    kept
}

/// The table.
#[derive(Debug)]
pub struct ProcessTable {
    alive: LruCache<ProcessKey, Entry>,
    exited: LruCache<ProcessKey, Entry>,
    limits: Limits,
    bytes: usize,
    evictions: u64,
}

impl ProcessTable {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        Self { alive: LruCache::unbounded(), exited: LruCache::unbounded(), limits, bytes: 0, evictions: 0 }
    }

    /// Puts a process in, in place of what was known of it.
    pub fn insert(&mut self, key: ProcessKey, mut entry: Entry) {
        if let Some(old) = self.remove(key) {
            entry.listening |= old.listening;
            // A program that takes the place of another may have kept its sockets.
            entry.unwatched |= old.unwatched;
        }
        self.bytes += entry.charged;
        self.alive.put(key, entry);
        self.shrink();
    }

    /// A process made another one, which runs the same program until it execs.
    pub fn fork(&mut self, parent: ProcessKey, child: ProcessKey) {
        if self.get(child).is_some() {
            return;
        }
        if let Some(entry) = self.get(parent).map(|entry| entry.forked(parent)) {
            self.insert(child, entry);
        }
    }

    /// A process ended; it is kept while there is room, for its children's lineage.
    pub fn exit(&mut self, key: ProcessKey) {
        if let Some(entry) = self.alive.pop(&key) {
            self.exited.put(key, entry);
        }
    }

    /// Whether the process is known, without making it recently used.
    pub fn contains(&self, key: ProcessKey) -> bool {
        self.alive.contains(&key) || self.exited.contains(&key)
    }

    /// What is known of a process.
    pub fn get(&mut self, key: ProcessKey) -> Option<&Entry> {
        if self.alive.contains(&key) { self.alive.get(&key) } else { self.exited.get(&key) }
    }

    /// What is known of a process, to change it.
    pub fn get_mut(&mut self, key: ProcessKey) -> Option<&mut Entry> {
        if self.alive.contains(&key) { self.alive.get_mut(&key) } else { self.exited.get_mut(&key) }
    }

    fn peek(&self, key: ProcessKey) -> Option<&Entry> {
        self.alive.peek(&key).or_else(|| self.exited.peek(&key))
    }

    /// The ancestors of a process, parent first, at most [`MAX_LINEAGE`].
    pub fn lineage(&self, key: ProcessKey) -> Vec<(ProcessKey, &Entry)> {
        let mut ancestors = Vec::new();
        let mut next = self.peek(key).map(|entry| entry.parent);
        while let Some(parent) = next.filter(|parent| *parent != key && ancestors.len() < MAX_LINEAGE) {
            let Some(entry) = self.peek(parent) else { break };
            ancestors.push((parent, entry));
            next = (entry.parent != parent).then_some(entry.parent);
        }
        ancestors
    }

    /// The process of a mount namespace that started first, as far as the table knows. Reads the
    /// whole table: for once per container, not for each event.
    pub fn earliest(&self, mount_namespace: u64) -> Option<ProcessKey> {
        let all = self.alive.iter().chain(self.exited.iter());
        let inside = all.filter(|(_, entry)| mount_namespace != 0 && entry.mount_namespace == mount_namespace);
        inside.map(|(key, _)| *key).min_by_key(|key| (key.start, key.pid))
    }

    /// Processes in the table.
    pub fn len(&self) -> usize {
        self.alive.len() + self.exited.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes charged to the entries.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries pushed out because a limit was reached.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    fn remove(&mut self, key: ProcessKey) -> Option<Entry> {
        let entry = self.alive.pop(&key).or_else(|| self.exited.pop(&key))?;
        self.bytes -= entry.charged.min(self.bytes);
        Some(entry)
    }

    fn shrink(&mut self) {
        while self.len() > self.limits.entries || self.bytes > self.limits.bytes {
            let Some((_, entry)) = self.exited.pop_lru().or_else(|| self.alive.pop_lru()) else { break };
            self.bytes -= entry.charged.min(self.bytes);
            self.evictions += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(pid: u32) -> ProcessKey {
        ProcessKey { pid, start: 0 }
    }

    fn entry(parent: u32, path: &str) -> Entry {
        Entry::new(key(parent), Program { path: path.to_owned(), ..Program::default() })
    }

    #[test]
    fn exited_processes_go_first_and_lineage_survives_the_exit_of_a_parent() {
        let mut table = ProcessTable::new(Limits { entries: 3, bytes: 1 << 20 });
        table.insert(key(1), entry(0, "/init"));
        table.fork(key(1), key(2));
        table.insert(key(2), entry(1, "/bin/sh"));
        table.fork(key(2), key(3));
        table.exit(key(2));
        let names: Vec<_> = table.lineage(key(3)).iter().map(|(_, e)| e.program.path.clone()).collect();
        assert_eq!(names, ["/bin/sh", "/init"]);
        table.insert(key(4), entry(1, "/bin/a"));
        assert!(!table.contains(key(2)) && table.contains(key(1)) && table.contains(key(3)));
        assert_eq!(table.evictions(), 1);
    }

    #[test]
    fn the_first_process_of_a_container_is_known_by_its_start() {
        let mut table = ProcessTable::new(Limits::default());
        for (pid, start, namespace) in [(9, 1_u64, 1), (5, 30, 7), (6, 20, 7), (7, 40, 7)] {
            let entry = Entry { mount_namespace: namespace, ..entry(1, "/x") };
            table.insert(ProcessKey { pid, start }, entry);
        }
        table.exit(ProcessKey { pid: 6, start: 20 });
        assert_eq!(table.earliest(7), Some(ProcessKey { pid: 6, start: 20 }));
        assert_eq!(table.earliest(0), None);
    }

    #[test]
    fn a_cycle_of_parents_ends() {
        let mut table = ProcessTable::new(Limits::default());
        table.insert(key(1), entry(2, "/a"));
        table.insert(key(2), entry(1, "/b"));
        assert!(table.lineage(key(1)).len() <= MAX_LINEAGE);
    }

    #[test]
    fn long_arguments_and_paths_are_cut() {
        let exec = Exec { filename: "/x".repeat(5_000), arguments: vec!["é".repeat(3_000); 4], ..Exec::default() };
        let entry = Entry::from_exec(&exec, None, false);
        assert!(entry.program.path.len() <= MAX_PATH_BYTES);
        assert!(entry.program.arguments.iter().map(String::len).sum::<usize>() <= MAX_ARGUMENT_BYTES);
    }

    proptest! {
        #[test]
        fn the_table_never_exceeds_its_limits(
            steps in proptest::collection::vec((0_u8..3, 0_u32..40, 0_u32..40, 0_usize..600), 0..400)
        ) {
            let limits = Limits { entries: 16, bytes: 6_000 };
            let mut table = ProcessTable::new(limits);
            for (step, a, b, length) in steps {
                match step {
                    0 => table.insert(key(a), entry(b, &"p".repeat(length))),
                    1 => table.fork(key(a), key(b)),
                    _ => table.exit(key(a)),
                }
                prop_assert!(table.len() <= limits.entries && table.bytes() <= limits.bytes);
                prop_assert!(table.lineage(key(a)).len() <= MAX_LINEAGE);
            }
        }
    }
}
