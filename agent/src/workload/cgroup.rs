//! From cgroup ids to containers. An id is the inode of the cgroup's directory: in the unified
//! hierarchy on cgroup v2, in the `pids` or `memory` hierarchy on v1.

use super::host::Mounts;
use super::{ContainerPath, path};
use crate::event::CgroupId;
use lru::LruCache;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Ids remembered.
const CACHE: usize = 16_384;
/// Directories that one scan reads, at most.
const MAX_DIRECTORIES: usize = 32_768;
/// Depth to which a scan goes: containers lie at most eight deep in every known layout.
const MAX_DEPTH: usize = 10;
/// A scan costs some milliseconds on a full node, so a miss does not always cause one.
const RESCAN_EVERY: Duration = Duration::from_millis(250);
/// Scans that find nothing new become rarer, down to this: an id that no hierarchy has must not
/// keep the agent busy.
const RESCAN_AT_LEAST_EVERY: Duration = Duration::from_secs(5);

/// What is known of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its directory belongs to this container.
    Container(Arc<ContainerPath>),
    /// Its directory belongs to no container.
    Host,
    /// Nothing.
    No,
}

/// The ids of this machine's cgroups.
#[derive(Debug)]
pub struct Cgroups {
    ids: LruCache<u64, Option<Arc<ContainerPath>>>,
    roots: Vec<PathBuf>,
    last_scan: Option<Instant>,
    pause: Duration,
    evictions: u64,
}

impl Default for Cgroups {
    fn default() -> Self {
        let capacity = NonZeroUsize::MIN.saturating_add(CACHE - 1);
        Self { ids: LruCache::new(capacity), roots: Vec::new(), last_scan: None, pause: RESCAN_EVERY, evictions: 0 }
    }
}

impl Cgroups {
    /// The hierarchies that this machine mounts, scanned once.
    pub fn of_this_machine() -> Self {
        let mounts = Mounts::with_whole_cgroups();
        let roots = hierarchies(&mounts.info).into_iter().map(|place| mounts.reach(place)).collect();
        let mut cgroups = Self { roots, ..Self::default() };
        cgroups.rescan();
        cgroups
    }

    /// What is known of an id.
    pub fn lookup(&mut self, id: CgroupId) -> Known {
        match self.ids.get(&id.0) {
            Some(Some(container)) => Known::Container(container.clone()),
            Some(None) => Known::Host,
            None => Known::No,
        }
    }

    /// Whether the directory at a path below one of the hierarchies has this id.
    pub fn is_at(&self, id: CgroupId, path: &str) -> bool {
        let inside = path.trim_start_matches('/');
        self.roots.iter().any(|root| std::fs::metadata(root.join(inside)).is_ok_and(|found| found.ino() == id.0))
    }

    /// An id belongs to a container.
    pub fn learn(&mut self, id: CgroupId, container: Arc<ContainerPath>) {
        self.put(id.0, Some(container));
    }

    /// An id belongs to no container.
    pub fn learn_host(&mut self, id: CgroupId) {
        self.put(id.0, None);
    }

    /// Reads the hierarchies again, unless that was done a moment ago. Returns whether it was done.
    pub fn rescan(&mut self) -> bool {
        if self.last_scan.is_some_and(|last| last.elapsed() < self.pause) {
            return false;
        }
        for root in self.roots.clone() {
            let mut left = MAX_DIRECTORIES;
            self.scan(&root, &root, 0, &mut left);
        }
        self.last_scan = Some(Instant::now());
        true
    }

    /// Whether the last scan found what it was made for; the pause until the next one follows.
    pub fn found(&mut self, found: bool) {
        self.pause = if found { RESCAN_EVERY } else { (self.pause * 2).min(RESCAN_AT_LEAST_EVERY) };
    }

    /// Ids pushed out because the cache was full.
    pub fn evictions(&self) -> u64 {
        self.evictions
    }

    /// Hierarchies in use.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    fn scan(&mut self, root: &Path, directory: &Path, depth: usize, left: &mut usize) {
        let Ok(metadata) = std::fs::metadata(directory) else { return };
        let inside = directory.strip_prefix(root).unwrap_or(Path::new("")).to_string_lossy();
        self.put(metadata.ino(), path::parse(&format!("/{inside}")).map(Arc::new));
        if depth == MAX_DEPTH || *left == 0 {
            return;
        }
        let Ok(entries) = std::fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if *left > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                *left -= 1;
                self.scan(root, &entry.path(), depth + 1, left);
            }
        }
    }

    fn put(&mut self, id: u64, container: Option<Arc<ContainerPath>>) {
        if self.ids.len() == CACHE && !self.ids.contains(&id) {
            self.evictions += 1;
        }
        self.ids.put(id, container);
    }
}

/// Mount points of the hierarchies whose directory inodes the kernel gives as ids: v1 `pids` and
/// `memory`, and cgroup2.
fn hierarchies(mountinfo: &str) -> Vec<&str> {
    let mut roots = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(mount_point) = before.split(' ').nth(4) else { continue };
        let mut after = after.split(' ');
        let (kind, options) = (after.next().unwrap_or(""), after.nth(1).unwrap_or(""));
        let v1 = kind == "cgroup" && options.split(',').any(|option| option == "pids" || option == "memory");
        if kind == "cgroup2" || v1 {
            roots.push(mount_point);
        }
    }
    roots
}

/// The container that /proc/PID/cgroup names, in whichever hierarchy names one.
pub fn of_process(pid: u32) -> Option<ContainerPath> {
    with_path(pid).map(|(container, _)| container)
}

/// The same, with the path that names it.
pub fn with_path(pid: u32) -> Option<(ContainerPath, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.find_map(|inside| Some((path::parse(inside)?, inside.to_owned())))
}

/// Inode of a process's namespace.
pub fn namespace_of(pid: u32, kind: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().map(|metadata| metadata.ino())
}

/// Whether this process sees its host's processes: it is in the initial PID namespace, whose
/// inode number is fixed (PROC_PID_INIT_INO, include/linux/proc_ns.h).
pub fn sees_host() -> bool {
    const PROC_PID_INIT_INO: u64 = 0xEFFF_FFFC;
    namespace_of(std::process::id(), "pid") == Some(PROC_PID_INIT_INO)
}

/// Inode of the host's own namespace of a kind.
pub fn host_namespace(kind: &str) -> Option<u64> {
    namespace_of(super::host::process()?, kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_hierarchies_are_taken_from_mountinfo() {
        let text = "30 23 0:26 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                    31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                    32 23 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                    33 23 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\nnonsense\n";
        let expected = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified"];
        assert_eq!(hierarchies(text), expected);
    }

    #[test]
    fn a_directory_made_after_the_scan_is_found_by_the_next() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroups = Cgroups { roots: vec![root.path().to_owned()], ..Cgroups::default() };
        assert!(cgroups.rescan());
        let id = "ab".repeat(32);
        let container = root.path().join("docker").join(&id);
        std::fs::create_dir_all(&container).unwrap();
        let inode = CgroupId(std::fs::metadata(&container).unwrap().ino());
        assert_eq!(cgroups.lookup(inode), Known::No);
        assert!(!cgroups.rescan(), "not twice in a moment");
        cgroups.last_scan = None;
        assert!(cgroups.rescan());
        let Known::Container(found) = cgroups.lookup(inode) else { panic!("not found") };
        assert_eq!(found.id, id);
        assert!(cgroups.is_at(inode, &format!("/docker/{id}")) && !cgroups.is_at(inode, "/docker"));
        let host = CgroupId(std::fs::metadata(root.path()).unwrap().ino());
        assert_eq!(cgroups.lookup(host), Known::Host);
    }

    #[test]
    fn scans_for_an_id_that_nobody_has_become_rarer() {
        let mut cgroups = Cgroups::default();
        for _ in 0..10 {
            cgroups.found(false);
        }
        assert_eq!(cgroups.pause, RESCAN_AT_LEAST_EVERY);
        cgroups.found(true);
        assert_eq!(cgroups.pause, RESCAN_EVERY);
    }

    #[test]
    fn the_cache_stays_within_its_size() {
        let mut cgroups = Cgroups::default();
        for id in 0..(CACHE as u64 + 10) {
            cgroups.learn_host(CgroupId(id));
        }
        assert_eq!((cgroups.ids.len(), cgroups.evictions()), (CACHE, 10));
    }

    #[test]
    fn this_machine_s_own_hierarchies_are_found() {
        let cgroups = Cgroups::of_this_machine();
        assert!(!cgroups.roots().is_empty());
        assert!(!cgroups.ids.is_empty());
    }
}
