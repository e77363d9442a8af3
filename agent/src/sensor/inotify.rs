//! The `inotify` sensor: changes to sensitive files of every container of a task, watched from the
//! sidecar through `/proc/PID/root`.
//!
//! **Guarantees.** One set of watches for each root directory that processes have, at most
//! [`ROOTS`]; an overflowed queue and a root that did not fit are counted. **Caveats.** inotify
//! tells no process, so events carry none. A container is watched from the first look that finds
//! it, within [`LOOK`]. A sensitive directory that is made later is found at the next look.

use super::outbox::{FamilyCounters, Outbox, boottime};
use super::{Sensor, SensorError, proc};
use crate::event::{Event, EventKind, FileEvent, FileOperation};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tasuki_api::agent::{FamilyState, SensorState};
use tasuki_api::coverage::Depth;

const NAME: &str = "inotify";
/// Roots that are watched at most: a task has at most ten containers, and some make roots of their own.
const ROOTS: usize = 64;
/// How often new roots and directories are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How soon a stop is obeyed.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
/// Names that matter in `/etc`.
const ETC: [&str; 7] = ["passwd", "shadow", "group", "gshadow", "sudoers", "crontab", "ld.so.preload"];
/// Directories in which every name matters.
const DIRECTORIES: [&str; 9] = [
    "/etc/sudoers.d",
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
    "/var/spool/cron",
    "/var/spool/cron/crontabs",
    "/root/.ssh",
];
/// Files of which reading matters too.
const READ: [&str; 2] = ["/etc/shadow", "/etc/gshadow"];
/// Homes in `/home` whose `.ssh` is watched in one root.
const HOMES: usize = 64;

/// What a watch is on.
#[derive(Clone, Debug)]
struct Watched {
    root: Root,
    path: String,
    /// One file, whose opening matters; else a directory.
    file: bool,
}

/// A root directory: device and inode.
type Root = (u64, u64);

#[derive(Debug, Default)]
struct Report {
    file: FamilyCounters,
    roots: AtomicU64,
    refused: AtomicU64,
}

/// The running sensor.
pub struct InotifySensor {
    report: Arc<Report>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl InotifySensor {
    /// Sets the first watches and starts the thread.
    ///
    /// # Errors
    /// `System` where inotify or the thread cannot be had.
    pub fn start(outbox: Outbox) -> Result<Self, SensorError> {
        let system = |what: &str, source| SensorError::System { sensor: NAME, what: what.to_owned(), source };
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(|error| {
            system("creating an inotify instance (see fs.inotify.max_user_instances)", error.into())
        })?;
        let report = Arc::new(Report::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut watch = Watch {
            inotify,
            watched: HashMap::new(),
            known: HashSet::new(),
            outbox,
            report: report.clone(),
            stop: stop.clone(),
        };
        watch.look();
        let thread = std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || watch.run())
            .map_err(|error| system("starting the thread", error))?;
        Ok(Self { report, stop, thread: Some(thread) })
    }
}

struct Watch {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, Watched>,
    known: HashSet<(Root, String)>,
    outbox: Outbox,
    report: Arc<Report>,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn run(mut self) -> io::Result<()> {
        let mut looked = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let _ = poll(&mut [PollFd::new(&self.inotify.as_fd(), PollFlags::IN)], Some(&PAUSE));
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        let name = event.name.map(|name| name.to_string_lossy().into_owned());
                        self.on_event(event.wd, event.mask, name);
                    }
                }
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if looked.elapsed() >= LOOK {
                self.look();
                looked = Instant::now();
            }
            self.outbox.flush();
        }
        self.outbox.flush();
        Ok(())
    }

    fn on_event(&mut self, descriptor: WatchDescriptor, mask: AddWatchFlags, name: Option<String>) {
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.report.file.add_ring_full(1);
            return;
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            if let Some(gone) = self.watched.remove(&descriptor) {
                self.known.remove(&(gone.root, gone.path));
            }
            return;
        }
        let Some(watched) = self.watched.get(&descriptor) else { return };
        let Some(operation) = operation(mask, watched.file) else { return };
        let path = match &name {
            Some(name) if watched.path == "/etc" && !ETC.contains(&name.as_str()) => {
                self.report.file.add_filtered(1);
                return;
            }
            Some(name) => format!("{}/{name}", watched.path),
            None if watched.file => watched.path.clone(),
            None => return,
        };
        let file = FileEvent { operation, path, target: None, file: None };
        let event = Event { time: boottime(), process: None, cgroup: None, kind: EventKind::File(Box::new(file)) };
        self.outbox.push(event, &self.report.file);
    }

    /// Finds roots and directories that are not watched yet, and forgets roots that are gone.
    fn look(&mut self) {
        let mut roots: HashMap<Root, u32> = HashMap::new();
        for pid in proc::processes() {
            if let Ok(root) = std::fs::metadata(format!("/proc/{pid}/root/")) {
                roots.entry((root.dev(), root.ino())).or_insert(pid);
            }
        }
        let gone: Vec<WatchDescriptor> = self
            .watched
            .iter()
            .filter(|(_, watched)| !roots.contains_key(&watched.root))
            .map(|(descriptor, _)| *descriptor)
            .collect();
        for descriptor in gone {
            // IN_IGNORED follows, and that forgets it.
            let _ = self.inotify.rm_watch(descriptor);
        }
        let refused = roots.len().saturating_sub(ROOTS);
        self.report.refused.store(refused as u64, Ordering::Relaxed);
        self.report.roots.store(roots.len().min(ROOTS) as u64, Ordering::Relaxed);
        // Those that are watched already come first, so that newcomers cannot push them out.
        let mut roots: Vec<(Root, u32)> = roots.into_iter().collect();
        roots.sort_by_key(|(root, _)| !self.known.contains(&(*root, "/etc".to_owned())));
        for (root, pid) in roots.into_iter().take(ROOTS) {
            self.watch_root(root, pid);
        }
    }

    fn watch_root(&mut self, root: Root, pid: u32) {
        self.watch(root, pid, "/etc", false);
        for path in READ {
            self.watch(root, pid, path, true);
        }
        for path in DIRECTORIES {
            self.watch(root, pid, path, false);
        }
        let homes = std::fs::read_dir(format!("/proc/{pid}/root/home")).into_iter().flatten().flatten();
        for home in homes.take(HOMES) {
            if let Some(name) = home.file_name().to_str() {
                self.watch(root, pid, &format!("/home/{name}/.ssh"), false);
            }
        }
    }

    fn watch(&mut self, root: Root, pid: u32, path: &str, file: bool) {
        if self.known.contains(&(root, path.to_owned())) {
            return;
        }
        let mut flags = if file {
            AddWatchFlags::IN_OPEN
        } else {
            AddWatchFlags::IN_CLOSE_WRITE
                | AddWatchFlags::IN_CREATE
                | AddWatchFlags::IN_MOVED_TO
                | AddWatchFlags::IN_MOVED_FROM
                | AddWatchFlags::IN_DELETE
                | AddWatchFlags::IN_ATTRIB
                | AddWatchFlags::IN_ONLYDIR
        };
        // A link of the container's could lead out of it: through /proc/PID/root it is followed in
        // the sidecar's own root.
        flags |= AddWatchFlags::IN_DONT_FOLLOW;
        if let Ok(descriptor) = self.inotify.add_watch(format!("/proc/{pid}/root{path}").as_str(), flags) {
            let path = path.to_owned();
            self.known.insert((root, path.clone()));
            // The same directory may lie in several roots: the first one keeps its name.
            self.watched.entry(descriptor).or_insert(Watched { root, path, file });
        }
    }
}

fn operation(mask: AddWatchFlags, file: bool) -> Option<FileOperation> {
    let has = |flag| mask.contains(flag);
    if file {
        return has(AddWatchFlags::IN_OPEN).then_some(FileOperation::Open);
    }
    if has(AddWatchFlags::IN_CLOSE_WRITE) {
        Some(FileOperation::Write)
    } else if has(AddWatchFlags::IN_CREATE) {
        Some(FileOperation::Create)
    } else if has(AddWatchFlags::IN_MOVED_TO) || has(AddWatchFlags::IN_MOVED_FROM) {
        Some(FileOperation::Rename)
    } else if has(AddWatchFlags::IN_DELETE) {
        Some(FileOperation::Unlink)
    } else if has(AddWatchFlags::IN_ATTRIB) {
        Some(FileOperation::Chmod)
    } else {
        None
    }
}

impl Sensor for InotifySensor {
    fn name(&self) -> &'static str {
        NAME
    }

    /// The least: files alone do not make a task covered.
    fn depth(&self) -> Depth {
        Depth::Network
    }

    fn state(&self) -> SensorState {
        let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let detail = if ended {
            Some("its thread has ended: the agent must be started anew".to_owned())
        } else if self.report.roots.load(Ordering::Relaxed) == 0 {
            Some("no root directory is readable: it needs SYS_PTRACE, and pidMode task".to_owned())
        } else {
            None
        };
        SensorState { name: NAME.to_owned(), whole: detail.is_none(), detail }
    }

    fn families(&self) -> Vec<FamilyState> {
        let refused = self.report.refused.load(Ordering::Relaxed);
        vec![FamilyState {
            name: "file".to_owned(),
            hook: "inotify".to_owned(),
            tier: None,
            problem: (refused > 0).then(|| format!("{refused} root directories are not watched: at most {ROOTS} are")),
            counters: self.report.file.snapshot(),
        }]
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            tracing::error!(%error, "the inotify sensor ended by an error");
        }
    }
}

impl Drop for InotifySensor {
    fn drop(&mut self) {
        self.stop();
    }
}
