//! Which file systems are watched: the root of each container, and its places for temporary files
//! where they have a file system of their own, as soon as a process of the container is met.
//!
//! *Expected flow*: the process sensor calls [`Roots::begin`] before it empties its rings,
//! [`Roots::meet`] with what was in them, and then [`Roots::turn`], which it ends when it has handed
//! its batch on. *Guarantees*: a file system of the host is never watched, also where a container sees it; nothing that a container can make slow (FUSE, NFS) is opened.
//! *Caveats*: what a container writes before its first program was met (5 ms) is not seen. A mark
//! goes with its file system when that is unmounted, so nothing has to be taken away.

use super::{Queue, Shared, Turn, not_marked};
use crate::event::{Event, EventKind, ProcessKey};
use crate::workload::cgroup::{host_namespace, namespace_of};
use lru::LruCache;
use nix::sys::fanotify::{MarkFlags, MaskFlags};
use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Places where what is written is later executed.
const PLACES: [&str; 5] = ["/", "/tmp", "/var/tmp", "/dev/shm", "/run"];
/// Types of file systems that answer at once.
const PROMPT: [&str; 6] = ["overlay", "tmpfs", "ext4", "xfs", "btrfs", "fuse.fuse-overlayfs"];
/// Mount namespaces remembered; a node has some hundred containers.
const NAMESPACES: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Chooses file systems for a [`super::FanotifySensor`].
#[derive(Debug)]
pub struct Roots {
    queue: Arc<Queue>,
    shared: Arc<Shared>,
    host: Host,
    met: Mutex<Met>,
}

/// What is the host's own.
#[derive(Debug, Default)]
struct Host {
    mount_namespace: Option<u64>,
    devices: HashSet<String>,
}

#[derive(Debug)]
struct Met {
    namespaces: LruCache<u64, ()>,
    evicted: u64,
    refused: u64,
    reason: String,
}

impl Roots {
    pub(super) fn new(queue: Arc<Queue>, shared: Arc<Shared>) -> Self {
        let mounts = std::fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
        Self::with_host(queue, shared, Host { mount_namespace: host_namespace("mnt"), devices: host_devices(&mounts) })
    }

    fn with_host(queue: Arc<Queue>, shared: Arc<Shared>, host: Host) -> Self {
        let met = Met { namespaces: LruCache::new(NAMESPACES), evicted: 0, refused: 0, reason: String::new() };
        Self { queue, shared, host, met: Mutex::new(met) }
    }

    fn met(&self) -> MutexGuard<'_, Met> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches the containers of processes that run a program in them and were not met before.
    pub fn meet(&self, events: &[Event]) {
        for event in events {
            let (EventKind::Exec(exec) | EventKind::Existing(exec)) = &event.kind else { continue };
            let Some(key) = event.process else { continue };
            let namespace = exec.mount_namespace;
            if namespace == 0 || self.host.mount_namespace == Some(namespace) {
                continue;
            }
            let mut met = self.met();
            // A process that is gone already shows nothing: the next one of its container will.
            if met.namespaces.get(&namespace).is_none() && self.watch(key, namespace, &mut met) {
                if met.namespaces.len() == NAMESPACES.get() {
                    met.evicted += 1;
                }
                met.namespaces.put(namespace, ());
            }
        }
    }

    /// Another sensor begins to empty its rings: from now on file events wait for its turns, at most
    /// 100 ms. Gives the number of the round.
    pub fn begin(&self) -> u64 {
        self.shared.round.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Takes the queue of file events, which hands nothing on until the turn ends.
    pub fn turn(&self, round: u64) -> Turn<'_> {
        Turn::new(self.queue.lock(), round)
    }

    /// Containers forgotten because there were too many; they are watched again when met again.
    pub fn evicted(&self) -> u64 {
        self.met().evicted
    }

    /// Why some file system is not watched.
    pub(super) fn problem(&self) -> Option<String> {
        let met = self.met();
        (met.refused > 0).then(|| format!("{} file systems are not watched: {}", met.refused, met.reason))
    }

    /// Watches what a process sees; false where it is gone.
    fn watch(&self, key: ProcessKey, namespace: u64, met: &mut Met) -> bool {
        let directory = format!("/proc/{}", key.pid);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(root) = open(format!("{directory}/root"), flags, Mode::empty()) else { return false };
        let Ok(mounts) = std::fs::read_to_string(format!("{directory}/mountinfo")) else { return false };
        // Asked last: had the id gone to another process before, this would show it.
        if namespace_of(key.pid, "mnt") != Some(namespace) {
            return false;
        }
        let Some(group) = self.queue.group() else { return true };
        for place in wanted(&mounts, &self.host.devices) {
            // A link of the container's must not lead out of it.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
            let Ok(place_fd) = openat2(&root, place, flags, Mode::empty(), within) else { continue };
            let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
            let marked = group.mark(flags, MaskFlags::FAN_CLOSE_WRITE, &place_fd, None::<&Path>);
            if let Err(error) = marked {
                let path = format!("{directory}/root{place}");
                met.refused += 1;
                met.reason = format!("{}: {error}", not_marked(Path::new(&path), error));
                tracing::warn!(path, %error, "a container's file system is not watched");
            }
        }
        true
    }
}

/// One line of mountinfo (proc(5)): device, mount point and type.
fn parse(line: &str) -> Option<(&str, &str, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(2);
    let (device, _root, point) = (left.next()?, left.next()?, left.next()?);
    Some((device, point, right.split(' ').next()?))
}

/// Devices whose files are the host's own. The overlays and tmpfs that an engine mounts for containers
/// are in the host's table too, and are not.
fn host_devices(mounts: &str) -> HashSet<String> {
    let own = |(_, point, kind): &(&str, &str, &str)| !matches!(*kind, "overlay" | "tmpfs") || PLACES.contains(point);
    mounts.lines().filter_map(parse).filter(own).map(|(device, _, _)| device.to_owned()).collect()
}

/// The places that have a file system of the container's own, which can be opened without a wait.
fn wanted(mounts: &str, host: &HashSet<String>) -> Vec<&'static str> {
    let mounts: Vec<_> = mounts.lines().filter_map(parse).collect();
    let below = |place: &str, point: &str| {
        point == "/" || place == point || place.strip_prefix(point).is_some_and(|rest| rest.starts_with('/'))
    };
    let is_wanted = |place: &&'static str| {
        // What is mounted last lies on top.
        let on = mounts.iter().rfind(|(_, point, _)| point == place);
        let prompt =
            mounts.iter().filter(|(_, point, _)| below(place, point)).all(|(_, _, kind)| PROMPT.contains(kind));
        on.is_some_and(|(device, _, _)| prompt && !host.contains(*device))
    };
    PLACES.into_iter().filter(is_wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "600 500 0:50 / / rw,relatime - overlay overlay rw,lowerdir=a\n\
        601 600 0:51 / /proc rw - proc proc rw\n602 600 0:52 / /dev rw - tmpfs tmpfs rw\n\
        603 602 0:53 / /dev/shm rw - tmpfs shm rw\n604 600 0:23 /x /run rw - tmpfs tmpfs rw\n\
        605 600 0:55 / /var rw - fuse.slow slow rw\n606 605 0:56 / /var/tmp rw - tmpfs tmpfs rw\nnonsense\n";
    const HOST: &str = "20 1 253:0 / / rw - ext4 /dev/vda rw\n21 20 0:23 / /run rw - tmpfs tmpfs rw\n\
        22 20 0:50 / /var/lib/docker/overlay2/a/merged rw - overlay overlay rw\n";

    #[test]
    fn a_containers_own_file_systems_are_wanted_and_neither_the_hosts_nor_slow_ones() {
        let host = host_devices(HOST);
        assert_eq!(wanted(CONTAINER, &host), ["/", "/dev/shm"]);
        assert!(wanted(HOST, &host).is_empty(), "a service with a mount namespace of its own has the host's files");
    }
}
