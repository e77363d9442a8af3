//! The `fanotify` sensor: files written on the file systems of containers, with the path as the
//! container sees it and the process that did it.
//!
//! `roots` chooses the file systems. A file system is watched as a whole by one mark, through any path on it (for a container:
//! `/proc/<pid>/root`). Reported when a file that was open for writing is closed: before that it
//! cannot be executed (ETXTBSY), and one event stands for all writes.
//!
//! An event waits until its process was told to the pipeline: where another sensor tells of processes,
//! its reader puts the events between those of its batch (`turn`), and `merge` says where.
//!
//! Caveats: no event for what is created, renamed or removed (a file system mark for those is
//! refused on overlay); the time is when the agent read the event; the path is the one that the
//! file has then. A process that ended already is known only if another sensor saw it start.

mod merge;
mod roots;
#[cfg(test)]
mod tests;
mod turn;

pub use roots::Roots;
pub use turn::Turn;

use super::ebpf::cgroups::Hierarchy;
use super::recent::RecentProcesses;
use super::snapshot::{boottime, file_id, start_of};
use super::{Output, Sensor, SensorError};
use crate::event::{CgroupId, Event, EventKind, FileEvent, FileOperation, ProcessKey};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::fanotify::{EventFFlags, Fanotify, FanotifyEvent, InitFlags, MarkFlags, MaskFlags};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::TrySendError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tasuki_api::agent::{Counters, FamilyState, SensorState};
use tasuki_api::coverage::Depth;

const NAME: &str = "fanotify";
/// How long an event waits for another sensor to tell of its process: the fork is in a ring that is
/// emptied every 5 ms.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often a waiting event is looked at again.
const RETRY_MS: u8 = 10;
/// Events that may wait; then the oldest goes on with what is known.
const WAITING: usize = 4096;

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    closed: AtomicBool,
    seen: AtomicU64,
    submitted: AtomicU64,
    own: AtomicU64,
    overflows: AtomicU64,
    unknown: AtomicU64,
    /// How often another sensor's reader began to empty its rings; 0 where there is none.
    round: AtomicU64,
}

/// A running `fanotify` sensor.
pub struct FanotifySensor {
    queue: Arc<Queue>,
    roots: Option<Arc<Roots>>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

/// How the sensor is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to look up a process that has ended.
    pub recent: Arc<RecentProcesses>,
    /// The hierarchy whose ids the events carry.
    pub hierarchy: Hierarchy,
    /// Leave out what the agent itself writes.
    pub skip_own: bool,
}

impl FanotifySensor {
    /// Opens a group without marks and begins to hand events to `output`.
    ///
    /// # Errors
    /// Where the kernel has no fanotify, or the agent lacks CAP_SYS_ADMIN.
    pub fn start(options: Options, output: Output) -> Result<Self, SensorError> {
        let group = Fanotify::init(
            InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK,
            EventFFlags::O_RDONLY | EventFFlags::O_LARGEFILE | EventFFlags::O_CLOEXEC,
        )
        .map_err(|error| SensorError::Unavailable {
            sensor: NAME,
            reason: format!("fanotify_init: {error}: the agent needs CAP_SYS_ADMIN, the kernel CONFIG_FANOTIFY"),
        })?;
        let system = |what: &str, source| SensorError::System { sensor: NAME, what: what.to_owned(), source };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| system("making an eventfd", error.into()))?;
        let (wake, shared) = (Arc::new(wake), Arc::new(Shared::default()));
        let worker = Worker {
            group: Some(Arc::new(group)),
            shared: Arc::clone(&shared),
            own: options.skip_own.then(std::process::id),
            options,
            output,
            waiting: VecDeque::new(),
        };
        let queue = Arc::new(Queue(Mutex::new(worker)));
        let reader = {
            let (queue, wake, shared) = (Arc::clone(&queue), Arc::clone(&wake), Arc::clone(&shared));
            std::thread::Builder::new()
                .name("tasuki-fanotify".to_owned())
                .spawn(move || queue.run(&wake, &shared))
                .map_err(|error| system("starting the reader thread", error))?
        };
        Ok(Self { queue, roots: None, wake, shared, reader: Some(reader) })
    }

    /// What chooses the file systems of containers as their processes are met.
    pub fn roots(&mut self) -> Arc<Roots> {
        Arc::clone(
            self.roots.get_or_insert_with(|| Arc::new(Roots::new(Arc::clone(&self.queue), Arc::clone(&self.shared)))),
        )
    }

    /// Watches the file system that `path` is on. Watching it again changes nothing. The kernel
    /// forgets the mark when the file system is unmounted.
    ///
    /// # Errors
    /// Where the path is gone, or its file system cannot be watched.
    pub fn watch_filesystem(&self, path: &Path) -> Result<(), SensorError> {
        self.mark(MarkFlags::FAN_MARK_ADD, path)
    }

    /// Lets go of the file system that `path` is on.
    ///
    /// # Errors
    /// Where the path is gone, or its file system was not watched.
    pub fn unwatch_filesystem(&self, path: &Path) -> Result<(), SensorError> {
        self.mark(MarkFlags::FAN_MARK_REMOVE, path)
    }

    fn mark(&self, operation: MarkFlags, path: &Path) -> Result<(), SensorError> {
        let group = self.queue.group().ok_or_else(stopped)?;
        let flags = operation | MarkFlags::FAN_MARK_FILESYSTEM;
        let marked = group.mark(flags, MaskFlags::FAN_CLOSE_WRITE, nix::fcntl::AT_FDCWD, Some(path));
        marked.map_err(|error| not_marked(path, error))
    }

    /// Events whose process was gone before anyone could say who it was.
    pub fn unknown_actors(&self) -> u64 {
        self.shared.unknown.load(Ordering::Relaxed)
    }

    fn counters(&self) -> Counters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        // Outcomes before `seen`, which is never less than their sum.
        let (submitted, filtered, ring_full) =
            (load(&self.shared.submitted), load(&self.shared.own), load(&self.shared.overflows));
        Counters { seen: load(&self.shared.seen), submitted, filtered, ring_full, ..Counters::default() }
    }
}

fn stopped() -> SensorError {
    SensorError::Unavailable { sensor: NAME, reason: "it was stopped".to_owned() }
}

fn not_marked(path: &Path, error: nix::errno::Errno) -> SensorError {
    let what = format!("fanotify mark of the file system at {}", path.display());
    SensorError::System { sensor: NAME, what, source: error.into() }
}

impl Sensor for FanotifySensor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn depth(&self) -> Depth {
        Depth::Full
    }

    fn state(&self) -> SensorState {
        let detail = if self.reader.is_none() {
            Some("stopped".to_owned())
        } else if self.shared.closed.load(Ordering::Acquire) {
            Some("nobody takes its events".to_owned())
        } else {
            None
        };
        SensorState { name: NAME.into(), whole: detail.is_none(), detail }
    }

    fn families(&self) -> Vec<FamilyState> {
        let stopped = self.reader.is_none();
        let refused = self.roots.as_ref().and_then(|roots| roots.problem());
        vec![FamilyState {
            name: "file".into(),
            hook: if stopped { "" } else { "fanotify/FAN_CLOSE_WRITE" }.into(),
            tier: Some(0),
            problem: if stopped { Some("the sensor was stopped".to_owned()) } else { refused },
            counters: self.counters(),
        }]
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Fails only where the counter is full, and then the reader is awake.
        let _ = self.wake.write(1);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let mut worker = self.queue.lock();
        // Closing the group takes its marks away.
        worker.group = None;
        // The reader ended because nobody takes events, and some still waited for a name.
        let left = worker.waiting.drain(..).len() as u64;
        self.shared.overflows.fetch_add(left, Ordering::AcqRel);
    }
}

impl Drop for FanotifySensor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A process, and its cgroup where that is known.
type Actor = (ProcessKey, Option<CgroupId>);

#[derive(Debug)]
struct Waiting {
    pid: u32,
    since: Instant,
    /// [`Shared::round`] when it was read: the rings as they are emptied in a later round tell all
    /// that happened before.
    round: u64,
    /// The process that had this id when the event was read.
    living: Option<Actor>,
    event: Event,
}

/// The kernel's queue and who reads it: one at a time, so that events keep their order.
#[derive(Debug)]
struct Queue(Mutex<Worker>);

/// What one look at the queue found.
struct Look {
    /// There was something.
    read: bool,
    /// Some events wait for a name.
    waiting: bool,
    /// Somebody takes events.
    taken: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Worker> {
        // A look that panicked loses its batch and leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` once the sensor was stopped.
    fn group(&self) -> Option<Arc<Fanotify>> {
        self.lock().group.clone()
    }

    fn run(&self, wake: &EventFd, shared: &Shared) {
        let Some(group) = self.group() else { return };
        loop {
            let stopping = shared.stop.load(Ordering::Acquire);
            let look = self.lock().look(stopping);
            if !look.taken || stopping {
                return;
            }
            if !look.read {
                let timeout = if look.waiting { PollTimeout::from(RETRY_MS) } else { PollTimeout::NONE };
                let mut descriptors =
                    [PollFd::new(group.as_fd(), PollFlags::POLLIN), PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
                // An interrupted wait is an early one.
                let _ = poll(&mut descriptors, timeout);
            }
        }
    }
}

#[derive(Debug)]
struct Worker {
    /// `None` after a stop.
    group: Option<Arc<Fanotify>>,
    shared: Arc<Shared>,
    own: Option<u32>,
    options: Options,
    output: Output,
    waiting: VecDeque<Waiting>,
}

impl Worker {
    /// Reads what is there and hands over what has waited long enough: for a reader's turn, or for a name.
    fn look(&mut self, stopping: bool) -> Look {
        let read = self.read();
        let alone = self.shared.round.load(Ordering::Acquire) == 0;
        let mut events = Vec::new();
        let may_go = |one: &Waiting, told: bool| stopping || (told && alone) || one.since.elapsed() > PATIENCE;
        self.settle(may_go, &mut events);
        let taken = events.is_empty() || self.hand_over(events);
        Look { read, waiting: !self.waiting.is_empty(), taken }
    }

    /// Reads what is there; gives whether there was anything.
    fn read(&mut self) -> bool {
        let Some(group) = self.group.clone() else { return false };
        match group.read_events() {
            Ok(found) => {
                for one in &found {
                    self.take(one);
                }
                !found.is_empty()
            }
            // Nothing there; or one file could not be opened for us, which the kernel has skipped.
            Err(nix::errno::Errno::EAGAIN) => false,
            Err(error) => {
                tracing::debug!(%error, "fanotify: an event could not be read");
                self.shared.seen.fetch_add(1, Ordering::AcqRel);
                self.shared.overflows.fetch_add(1, Ordering::AcqRel);
                true
            }
        }
    }

    fn take(&mut self, one: &FanotifyEvent) {
        self.shared.seen.fetch_add(1, Ordering::AcqRel);
        let Some(file) = one.fd() else {
            // FAN_Q_OVERFLOW: the kernel does not say how many were lost.
            self.shared.overflows.fetch_add(1, Ordering::AcqRel);
            return;
        };
        let pid = u32::try_from(one.pid()).unwrap_or(0);
        if self.own == Some(pid) {
            self.shared.own.fetch_add(1, Ordering::AcqRel);
            return;
        }
        let event = Event { time: boottime(), process: None, cgroup: None, kind: describe(file) };
        let round = self.shared.round.load(Ordering::Acquire);
        self.waiting.push_back(Waiting { pid, since: Instant::now(), round, living: self.living(pid), event });
    }

    /// The process that has this id now.
    fn living(&self, pid: u32) -> Option<Actor> {
        let key = start_of(pid)?;
        let told = self.options.recent.find(pid).filter(|(told, cgroup)| *told == key && cgroup.is_some());
        Some(told.unwrap_or_else(|| (key, self.options.hierarchy.of_process(pid).map(CgroupId))))
    }

    /// The process of an event, if another sensor told of it.
    fn told(&self, one: &Waiting) -> Option<Actor> {
        let (key, cgroup) = self.options.recent.find(one.pid)?;
        match one.living {
            Some((living, _)) if living != key => None,
            Some((_, living)) => Some((key, cgroup.or(living))),
            None => Some((key, cgroup)),
        }
    }

    /// Gives the waiting events of which `may_go` says so, given whether their process was told; the
    /// oldest also where too many wait.
    fn settle(&mut self, may_go: impl Fn(&Waiting, bool) -> bool, events: &mut Vec<Event>) {
        for _ in 0..self.waiting.len() {
            let Some(one) = self.waiting.pop_front() else { return };
            let told = self.told(&one);
            if !may_go(&one, told.is_some()) && self.waiting.len() < WAITING {
                self.waiting.push_back(one);
                continue;
            }
            match told.or(one.living) {
                Some((process, cgroup)) => events.push(Event { process: Some(process), cgroup, ..one.event }),
                None => {
                    self.shared.unknown.fetch_add(1, Ordering::Relaxed);
                    events.push(one.event);
                }
            }
        }
    }

    fn hand_over(&self, events: Vec<Event>) -> bool {
        let count = events.len() as u64;
        let mut batch = events;
        loop {
            match self.output.try_send(batch) {
                Ok(()) => {
                    self.shared.submitted.fetch_add(count, Ordering::AcqRel);
                    return true;
                }
                Err(TrySendError::Disconnected(_)) => {
                    self.shared.closed.store(true, Ordering::Release);
                    self.shared.overflows.fetch_add(count, Ordering::AcqRel);
                    return false;
                }
                // The kernel's queue fills meanwhile, and says so (FAN_Q_OVERFLOW).
                Err(TrySendError::Full(back)) => {
                    if self.shared.stop.load(Ordering::Acquire) {
                        self.shared.overflows.fetch_add(count, Ordering::AcqRel);
                        return false;
                    }
                    batch = back;
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

/// What was written: the kernel gives an open file, whose link in /proc is the path from the root of
/// the mount namespace that it was opened in.
fn describe(file: BorrowedFd<'_>) -> EventKind {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let path = std::fs::read_link(&link).map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let id = std::fs::metadata(&link).ok().map(|metadata| {
        let mut id = file_id(&metadata);
        // Whatever was open for writing on an overlay is in its writable layer.
        let overlay = nix::sys::statfs::fstatfs(file)
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::OVERLAYFS_SUPER_MAGIC);
        id.upper = overlay.then_some(true);
        id
    });
    EventKind::File(Box::new(FileEvent { operation: FileOperation::Write, path, target: None, file: id }))
}
