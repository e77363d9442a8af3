//! What is known of the world: processes, containers, names. Events change it; facts read it.

use super::container::{Containers, Write};
use super::programs;
use crate::detect::dns::{self, Message, NAME_CACHE, NameCache, QUESTION_CACHE};
use crate::event::{CgroupId, Event, EventKind, Exec, FileEvent, FileOperation, ProcessKey, Stdio};
use crate::process::hash::Hasher;
use crate::process::users::Users;
use crate::process::{Entry, Limits, ProcessTable, snapshot, sockets};
use crate::workload::{Description, Place, Source, Workloads, names::TasksHandle};
use lru::LruCache;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes per second that hashing may read.
const HASH_BYTES_PER_SECOND: u64 = 32 << 20;
/// Files whose hash is remembered.
const HASH_CACHE: usize = 8_192;
/// Containers whose user names are remembered.
const USER_CACHE: usize = 256;
/// How soon /proc is asked again whether a process listens.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Processes whose descriptors were looked up and noted.
const NOTED: usize = 4_096;

/// Who did something, where.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The process; `None` where the sensor cannot tell.
    pub key: Option<ProcessKey>,
    /// What is known of it.
    pub entry: Option<Entry>,
    /// Its ancestors, parent first.
    pub ancestors: Vec<(ProcessKey, Entry)>,
    /// Its cgroup.
    pub cgroup: Option<CgroupId>,
    /// Where it lives.
    pub place: Place,
    /// What its container is remembered by; `None` outside containers.
    pub container: Option<String>,
    /// The container's names, once known.
    pub description: Option<Arc<Description>>,
    /// For an exec: the write of the program's file that was seen.
    pub write: Option<Write>,
    /// For a DNS event: the message.
    pub message: Option<Message>,
    /// For an answer: its question was seen too.
    pub question_seen: bool,
}

impl Subject {
    /// The process and those ancestors that live in the same container.
    pub fn inside(&self) -> impl Iterator<Item = (ProcessKey, &Entry)> {
        let own = self.key.zip(self.entry.as_ref());
        let same = move |entry: &Entry| {
            own.is_none_or(|(_, me)| {
                let known = |a: u64, b: u64| a == 0 || b == 0 || a == b;
                known(entry.mount_namespace, me.mount_namespace) && known(entry.pid_namespace, me.pid_namespace)
            })
        };
        own.into_iter().chain(self.ancestors.iter().map(|(key, entry)| (*key, entry)).take_while(move |(_, e)| same(e)))
    }

    /// Ids of the ancestors in the same container, which see the same files.
    pub fn neighbours(&self) -> impl Iterator<Item = u32> {
        self.inside().skip(1).map(|(key, _)| key.pid)
    }
}

/// What /proc was asked about a process because it mattered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookedUp {
    /// Its descriptors 0 to 2.
    Stdio([Stdio; 3]),
    /// That it listens on a TCP socket.
    Listening,
}

/// Who asked which name under which message id.
type Asked = (IpAddr, u16, String);
/// The process and cgroup of a question, which its answer often lacks.
type Asker = (Option<ProcessKey>, Option<CgroupId>);

/// The world.
#[derive(Debug)]
pub struct World {
    /// Processes.
    pub table: ProcessTable,
    /// Containers and tasks by name.
    pub workloads: Workloads,
    /// User names.
    pub users: Users,
    /// Hashes of executables.
    pub hasher: Hasher,
    /// Names of addresses.
    pub names: NameCache,
    /// What happened in each container.
    pub containers: Containers,
    questions: LruCache<Asked, Asker>,
    stdio: LruCache<ProcessKey, [Stdio; 3]>,
    listening: LruCache<ProcessKey, ()>,
    /// No sensor tells at once who begins to listen.
    asks: bool,
    /// When /proc was asked whether a process listens, where `asks`.
    asked: LruCache<ProcessKey, Instant>,
    looked_up: Vec<(ProcessKey, LookedUp)>,
    host_mount_namespace: Option<u64>,
    /// Realtime minus boot time, nanoseconds.
    pub boot: i64,
    live: bool,
    unplaced: u64,
}

fn size(size: usize) -> NonZeroUsize {
    NonZeroUsize::new(size).unwrap_or(NonZeroUsize::MIN)
}

impl World {
    /// The world of this machine, with the processes that run now.
    ///
    /// # Errors
    /// When a worker thread cannot be started.
    pub fn live(source: Source) -> std::io::Result<Self> {
        let node = !source.is_sidecar();
        let mut world = Self::bare(Workloads::start(source)?, Hasher::start(size(HASH_CACHE), HASH_BYTES_PER_SECOND)?);
        world.live = true;
        world.boot = super::clock::boot_offset();
        world.host_mount_namespace = node.then(|| crate::workload::cgroup::host_namespace("mnt")).flatten();
        snapshot::fill(&mut world.table);
        Ok(world)
    }

    /// A world in which nothing is known but what events and a recording's notes say.
    ///
    /// # Errors
    /// None in practice: a recording starts no thread.
    pub fn recorded(boot: i64, host_mount_namespace: Option<u64>) -> std::io::Result<Self> {
        let world = Self::bare(Workloads::start(Source::Recording)?, Hasher::replay(size(HASH_CACHE)));
        Ok(Self { boot, host_mount_namespace, ..world })
    }

    fn bare(workloads: Workloads, hasher: Hasher) -> Self {
        Self {
            table: ProcessTable::new(Limits::default()),
            workloads,
            users: Users::new(size(USER_CACHE)),
            hasher,
            names: NameCache::new(size(NAME_CACHE)),
            containers: Containers::default(),
            questions: LruCache::new(size(QUESTION_CACHE)),
            stdio: LruCache::new(size(NOTED)),
            listening: LruCache::new(size(NOTED)),
            asks: false,
            asked: LruCache::new(size(NOTED)),
            looked_up: Vec::new(),
            host_mount_namespace: None,
            boot: 0,
            live: false,
            unplaced: 0,
        }
    }

    /// With which another thread reads the tasks that are seen.
    pub fn tasks_handle(&self) -> TasksHandle {
        self.workloads.tasks_handle()
    }

    /// Whether this machine may be read.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The host's mount namespace, for a recording's header.
    pub fn host_mount_namespace(&self) -> Option<u64> {
        self.host_mount_namespace
    }

    /// Changes the world by an event. Returns who did it, where rules may want to know.
    pub fn observe(&mut self, event: &Event, wanted: bool) -> Option<Subject> {
        match (&event.kind, event.process) {
            (EventKind::Fork { child }, Some(parent)) => {
                self.know(parent);
                self.table.fork(parent, *child);
                None
            }
            (EventKind::Exit { .. }, Some(key)) => {
                self.table.exit(key);
                None
            }
            (EventKind::Exec(exec), Some(key)) => Some(self.exec(event, key, exec)),
            (EventKind::Existing(exec), Some(key)) => {
                // It was read late: what an event said of the process since is newer.
                match self.table.get_mut(key) {
                    Some(entry) => entry.cgroup = entry.cgroup.or(event.cgroup),
                    None => {
                        let mut entry = Entry::from_exec(exec, event.cgroup, false);
                        entry.unwatched = true;
                        self.table.insert(key, entry);
                    }
                }
                None
            }
            (EventKind::Fork { .. } | EventKind::Exit { .. } | EventKind::Exec(_) | EventKind::Existing(_), None) => {
                None
            }
            (EventKind::Listen { .. }, key) => {
                if let Some(entry) = key.and_then(|key| self.table.get_mut(key)) {
                    entry.listening = true;
                }
                wanted.then(|| self.subject(event))
            }
            (EventKind::Credentials { new, .. }, key) => {
                let subject = self.subject(event);
                if let Some(entry) = key.and_then(|key| self.table.get_mut(key)) {
                    (entry.uid, entry.euid) = (new.uid, new.euid);
                }
                wanted.then_some(subject)
            }
            (EventKind::Connect(_) | EventKind::Accept(_), _) => wanted.then(|| self.subject(event)),
            (EventKind::Dns(packet), _) => {
                let message = dns::parse(&packet.payload)?;
                let asked = (packet.client, message.id, message.question.clone());
                let mut event = Event { kind: EventKind::Exit { code: 0 }, ..*event };
                let mut question_seen = false;
                if packet.answer {
                    if let Some((process, cgroup)) = self.questions.pop(&asked) {
                        question_seen = true;
                        event.process = event.process.or(process);
                        event.cgroup = event.cgroup.or(cgroup);
                    }
                    self.names.learn(event.cgroup, &message);
                } else {
                    self.questions.put(asked, (event.process, event.cgroup));
                }
                wanted.then(|| Subject { message: Some(message), question_seen, ..self.subject(&event) })
            }
            (EventKind::File(file), _) => {
                let subject = self.subject(event);
                self.file(&subject, file);
                wanted.then_some(subject)
            }
        }
    }

    fn exec(&mut self, event: &Event, key: ProcessKey, exec: &Exec) -> Subject {
        self.know(exec.parent);
        self.table.insert(key, Entry::from_exec(exec, event.cgroup, false));
        let mut subject = self.subject(event);
        if let Some(container) = &subject.container {
            let path = subject.entry.as_ref().map_or("", |entry| &entry.program.path);
            subject.write = self.containers.written(container, path, exec.file.as_ref());
            let own = subject.write.as_ref().is_some_and(|write| !write.package_manager);
            if own {
                self.table.insert(key, Entry::from_exec(exec, event.cgroup, false));
                subject.entry = self.table.get(key).cloned();
            }
        }
        subject
    }

    /// An exec that was observed before, as it was then: its process may run something else now.
    pub fn recall(&mut self, event: &Event) -> Option<Subject> {
        let EventKind::Exec(exec) = &event.kind else { return None };
        let mut subject = self.subject(event);
        subject.entry = Some(Entry::from_exec(exec, event.cgroup, false));
        Some(subject)
    }

    fn file(&mut self, subject: &Subject, file: &FileEvent) {
        let Some(container) = &subject.container else { return };
        let writer = subject.entry.as_ref().map(|entry| Arc::from(entry.program.path.as_str()));
        let package_manager = subject.inside().any(|(_, entry)| programs::is_package_manager(&entry.program));
        let write = Write { writer, package_manager };
        match (file.operation, &file.target) {
            (FileOperation::Write | FileOperation::Create, _) => {
                self.containers.wrote(container, &file.path, file.file.as_ref(), &write);
            }
            (FileOperation::Rename, Some(target)) => self.containers.renamed(container, &file.path, target, &write),
            (FileOperation::Link, Some(target)) => {
                if let Some(known) = self.containers.written(container, &file.path, file.file.as_ref()) {
                    self.containers.wrote(container, target, None, &known);
                }
            }
            _ => {}
        }
    }

    /// Makes sure that a process is in the table, from /proc where the sensor started later.
    fn know(&mut self, key: ProcessKey) {
        if self.live
            && key.pid != 0
            && !self.table.contains(key)
            && let Some(entry) = snapshot::read(key)
        {
            self.table.insert(key, entry);
        }
    }

    fn subject(&mut self, event: &Event) -> Subject {
        if let Some(key) = event.process {
            self.know(key);
        }
        let entry = event.process.and_then(|key| self.table.get(key).cloned());
        let cgroup = event.cgroup.or_else(|| entry.as_ref()?.cgroup);
        let (mount, pid_namespace) =
            entry.as_ref().map_or((0, 0), |entry| (entry.mount_namespace, entry.pid_namespace));
        // A runtime's helper (runc init) is in the container's cgroup before it enters the
        // container: it still runs the host's files.
        let place = if mount != 0 && self.host_mount_namespace == Some(mount) {
            Place::Host
        } else {
            match self.workloads.place(cgroup, event.process, mount, pid_namespace) {
                // A container that was gone before its cgroup could be read still had its own mounts.
                Place::Unknown if mount != 0 && self.host_mount_namespace.is_some() => Place::Unnamed,
                place => place,
            }
        };
        let container = match &place {
            Place::Container(container) => Some(container.id.clone()),
            Place::Unnamed => {
                Some(cgroup.map_or_else(|| format!("mnt:{mount}"), |cgroup| format!("cgroup:{}", cgroup.0)))
            }
            Place::Host => None,
            Place::Unknown => {
                self.unplaced += 1;
                tracing::trace!(?event.process, ?cgroup, ?event.kind, "an event without a place");
                None
            }
        };
        if let (Some(container), Some(key)) = (&container, event.process) {
            if !self.containers.knows(container)
                && let Some(first) = self.table.earliest(mount)
            {
                // The container may be older than the agent: its first process is in the snapshot.
                self.containers.seen(container, first);
            }
            self.containers.seen(container, key);
        }
        let description = match &place {
            Place::Container(path) => self.workloads.describe(path),
            _ => None,
        };
        let ancestors: Vec<(ProcessKey, Entry)> = match event.process {
            Some(key) => self.table.lineage(key).into_iter().map(|(key, entry)| (key, entry.clone())).collect(),
            None => Vec::new(),
        };
        let (key, write, message) = (event.process, None, None);
        Subject { key, entry, ancestors, cgroup, place, container, description, write, message, question_seen: false }
    }

    /// Descriptors 0 to 2 of a living process, looked up at most once.
    pub fn stdio_now(&mut self, key: ProcessKey) -> Option<[Stdio; 3]> {
        if let Some(known) = self.stdio.get(&key) {
            return Some(*known);
        }
        let found = self.live.then(|| sockets::stdio(key)).flatten()?;
        self.stdio.put(key, found);
        self.looked_up.push((key, LookedUp::Stdio(found)));
        Some(found)
    }

    /// What was looked up since the last call, for a recording.
    pub fn take_looked_up(&mut self) -> Vec<(ProcessKey, LookedUp)> {
        std::mem::take(&mut self.looked_up)
    }

    /// Puts in that a recording noted a process to listen.
    pub fn note_listening(&mut self, key: ProcessKey) {
        self.listening.put(key, ());
    }

    /// Puts in what a recording noted.
    pub fn note_stdio(&mut self, key: ProcessKey, stdio: [Stdio; 3]) {
        self.stdio.put(key, stdio);
    }

    /// The sensors do not tell at once who begins to listen, so that /proc is asked again and again.
    pub fn asks_who_listens(&mut self) {
        self.asks = true;
    }

    /// Whether a process listens: by what was seen. One that was there before it was watched is looked
    /// up, once; all of them, every few seconds, where no sensor tells at once.
    pub fn listens(&mut self, key: ProcessKey) -> bool {
        let Some(entry) = self.table.get_mut(key) else { return false };
        if entry.listening || self.listening.contains(&key) {
            return true;
        }
        let unwatched = std::mem::take(&mut entry.unwatched);
        let due = self.asks && self.asked.get(&key).is_none_or(|at| at.elapsed() >= ASK_AGAIN);
        if !self.live || !(unwatched || due) {
            return false;
        }
        if self.asks {
            self.asked.put(key, Instant::now());
        }
        entry.listening = sockets::listens(key).unwrap_or(false);
        if entry.listening {
            self.looked_up.push((key, LookedUp::Listening));
        }
        entry.listening
    }

    /// Nanoseconds since the epoch of a time since boot.
    pub fn epoch(&self, time: u64) -> i64 {
        self.boot.saturating_add(i64::try_from(time).unwrap_or(i64::MAX))
    }

    /// Evictions from every bounded cache.
    pub fn evictions(&self) -> u64 {
        self.table.evictions()
            + self.workloads.evictions()
            + self.users.evictions
            + self.names.evictions
            + self.hasher.evictions()
            + self.containers.evictions()
    }

    /// Events whose place was not known.
    pub fn unplaced(&self) -> u64 {
        self.unplaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn only_what_was_there_before_is_asked_whether_it_listens_and_once() {
        let mut world = World::recorded(0, None).unwrap();
        world.live = true;
        let own = snapshot::key_of(std::process::id()).unwrap();
        world.know(own);
        assert!(world.table.get(own).is_some_and(|entry| entry.unwatched));
        let _open = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(world.listens(own) && world.listens(own));
        assert_eq!(world.take_looked_up(), [(own, LookedUp::Listening)], "a recording gets it, once");

        // A child that holds no socket is asked once; what it opens later would be an event.
        let mut child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        let key = snapshot::key_of(child.id()).unwrap();
        world.know(key);
        assert!(!world.listens(key));
        assert!(world.table.get(key).is_some_and(|entry| !entry.unwatched && !entry.listening));
        child.kill().unwrap();
        child.wait().unwrap();

        // One whose life was seen is never asked, although this one does listen.
        let mut world = World::recorded(0, None).unwrap();
        world.live = true;
        let exec = Event { time: 1, process: Some(own), cgroup: None, kind: EventKind::Exec(Box::default()) };
        world.observe(&exec, false);
        assert!(!world.listens(own) && world.take_looked_up().is_empty());
        // What a recording noted is known in a replay.
        world.note_listening(own);
        assert!(world.listens(own));
    }
}
