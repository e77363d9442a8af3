//! The host's own view of its cgroups. A pod has a cgroup namespace of its own and sees only its own part
//! of the hierarchy, where no other container's directory is; so what it needs is read as the host's
//! first processes see it. Nothing is mounted, and nothing of the host's is changed.

use super::cgroup::namespace_of;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

/// A process in the host's own namespaces that may be looked at, which takes CAP_SYS_PTRACE. PID 1 may be
/// closed to an agent with fewer capabilities than it has; kthreadd (PID 2) lives where it lives.
pub fn process() -> Option<u32> {
    let kernel_thread = || std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd");
    let open = |pid: u32| namespace_of(pid, "mnt").map(|_| pid);
    open(1).or_else(|| kernel_thread().then(|| open(2)).flatten())
}

/// Mounts, and where they are found.
#[derive(Debug, Default)]
pub struct Mounts {
    /// Text of mountinfo.
    pub info: String,
    /// Goes before each mount point.
    pub below: PathBuf,
}

impl Mounts {
    /// The mounts in which the cgroup hierarchies are whole: this process's own, or the host's.
    pub fn with_whole_cgroups() -> Self {
        let info = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = Self { info, below: PathBuf::new() };
        let Some(pid) = process().filter(|_| !own.is_whole()) else { return own };
        let info = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let host = Self { info, below: PathBuf::from(format!("/proc/{pid}/root")) };
        if host.is_whole() { host } else { own }
    }

    /// A mount point as this process reaches it.
    pub fn reach(&self, mount_point: &str) -> PathBuf {
        match self.below.as_os_str().is_empty() {
            true => PathBuf::from(mount_point),
            false => self.below.join(mount_point.trim_start_matches('/')),
        }
    }

    /// There is a hierarchy, and none is cut down to a part.
    fn is_whole(&self) -> bool {
        let mut seen = false;
        for line in self.info.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let kind = right.split(' ').next().unwrap_or_default();
            let Some(place) = left.split(' ').nth(4).filter(|_| kind == "cgroup" || kind == "cgroup2") else {
                continue;
            };
            if !is_root(&self.reach(place), kind) {
                return false;
            }
            seen = true;
        }
        seen
    }
}

/// Only the root of version 2 has no `cgroup.type`, and only roots of version 1 have a `release_agent`
/// (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/cgroups.rst).
fn is_root(directory: &Path, kind: &str) -> bool {
    match kind {
        "cgroup2" => !directory.join("cgroup.type").exists() && directory.join("cgroup.procs").exists(),
        _ => directory.join("release_agent").exists(),
    }
}

/// Moves this thread, and those that it starts from now on, into the host's cgroup namespace, where
/// paths in /proc are whole. Gives what was refused.
pub fn join_cgroup_namespace() -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{error}; CAP_SYS_PTRACE and CAP_SYS_ADMIN allow it");
    let pid = process().ok_or_else(|| failed(std::io::ErrorKind::PermissionDenied.into()))?;
    if namespace_of(std::process::id(), "cgroup") == namespace_of(pid, "cgroup") {
        return Ok(());
    }
    let link = File::open(format!("/proc/{pid}/ns/cgroup")).map_err(failed)?;
    move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::ControlGroup)).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::CgroupId;
    use crate::workload::cgroup::{Cgroups, Known};
    use std::os::unix::fs::MetadataExt as _;
    use std::process::Command;

    #[test]
    fn from_a_namespace_of_its_own_an_agent_finds_every_container() {
        let here = "workload::host::tests::from_a_namespace_of_its_own_an_agent_finds_every_container";
        match std::env::var("TASUKI_TEST_INSIDE") {
            Ok(own) => inside(&own),
            Err(_) => outside(here),
        }
    }

    /// Makes a pod's view: a cgroup and namespaces of its own, and a mount that begins there.
    fn outside(here: &str) {
        use std::os::unix::process::CommandExt as _;
        let mounts = Mounts::with_whole_cgroups();
        let line = mounts.info.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup2 mount");
        let place = line.split(' ').nth(4).unwrap();
        let own = format!("/tasuki-test-{}", std::process::id());
        let root = mounts.reach(place);
        let container = root.join(&own[1..]).join("kubepods").join("c".repeat(64));
        std::fs::create_dir_all(&container).unwrap();
        let procs = root.join(&own[1..]).join("cgroup.procs");
        let script = "umount -l \"$2\"; mount -t cgroup2 none \"$2\" && exec \"$0\" --exact \"$1\"";
        let mut again = Command::new("sh");
        again.args(["-c", "echo 0 > \"$3\"; exec unshare --cgroup --mount sh -c \"$4\" \"$0\" \"$1\" \"$2\""]);
        again.arg(std::env::current_exe().unwrap()).args([here, place]).arg(&procs).arg(script);
        let ended = again.env("TASUKI_TEST_INSIDE", &own).process_group(0).output();
        for directory in [container.as_path(), container.parent().unwrap(), procs.parent().unwrap()] {
            std::fs::remove_dir(directory).unwrap();
        }
        let ended = ended.unwrap();
        let said = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    }

    fn inside(own: &str) {
        let paths = || std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        assert!(!paths().contains(own), "{}", paths());
        let mounts = Mounts::with_whole_cgroups();
        assert!(mounts.below.starts_with("/proc"), "{mounts:?}");
        join_cgroup_namespace().unwrap();
        assert!(paths().contains(own), "{}", paths());
        assert_eq!(join_cgroup_namespace(), Ok(()), "a second time changes nothing");
        let place = mounts.info.lines().find(|line| line.contains(" - cgroup2 ")).unwrap().split(' ').nth(4).unwrap();
        let path = format!("{own}/kubepods/{}", "c".repeat(64));
        let id = CgroupId(std::fs::metadata(mounts.reach(place).join(&path[1..])).unwrap().ino());
        let mut cgroups = Cgroups::of_this_machine();
        let Known::Container(found) = cgroups.lookup(id) else { panic!("not found") };
        assert_eq!(found.id, "c".repeat(64));
        assert!(cgroups.is_at(id, &path));
    }
}
