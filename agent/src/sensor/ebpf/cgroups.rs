//! Which cgroup hierarchy names a task on this host, and where cgroup programs are attached.

use super::btf::Types;
use crate::workload::host::Mounts;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The hierarchy whose directory ids are the events' [`crate::event::CgroupId`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The version 1 controller (`pids`, `memory`); `None` for version 2.
    pub controller: Option<&'static str>,
    /// Where it is mounted, if it is: an id is the inode of a directory below.
    pub mount: Option<PathBuf>,
}

/// Version 1 controllers that container runtimes put every container into, the best one first.
const CONTROLLERS: [&str; 2] = ["pids", "memory"];

impl Hierarchy {
    /// Looks at this host.
    pub fn of_host() -> Self {
        let mounts = Mounts::with_whole_cgroups();
        let table = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
        let found = Self::from_tables(&table, &mounts.info);
        Self { mount: found.mount.map(|place| mounts.reach(&place.to_string_lossy())), ..found }
    }

    fn from_tables(table: &str, mounts: &str) -> Self {
        for controller in CONTROLLERS {
            // name, hierarchy (0: version 2), cgroups, enabled
            let in_first = table.lines().any(|line| {
                let mut fields = line.split_whitespace();
                fields.next() == Some(controller) && fields.next().is_some_and(|hierarchy| hierarchy != "0")
            });
            let mount = find_mount(mounts, "cgroup", Some(controller));
            if in_first && mount.is_some() {
                return Self { controller: Some(controller), mount };
            }
        }
        Self { controller: None, mount: find_mount(mounts, "cgroup2", None) }
    }

    /// Index of the controller in `css_set.subsys`.
    pub(super) fn index(&self, types: &Types) -> Option<u32> {
        types.enum_value("cgroup_subsys_id", &format!("{}_cgrp_id", self.controller?))
    }

    /// Id of a process's cgroup, read from /proc; `None` where the process or the mount is gone.
    pub fn of_process(&self, pid: u32) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = text.lines().find_map(|line| {
            // id:controllers:path
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_it = match self.controller {
                Some(wanted) => controllers.split(',').any(|one| one == wanted),
                None => controllers.is_empty(),
            };
            is_it.then_some(path)
        })?;
        let directory = self.mount.as_ref()?.join(path.trim_start_matches('/'));
        std::fs::metadata(directory).ok().map(|metadata| metadata.ino())
    }
}

/// Mount point of a file system, by type and super option.
pub(super) fn find_mount(mountinfo: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        if right.next() != Some(kind) {
            return None;
        }
        let options = right.nth(1).unwrap_or_default();
        if option.is_some_and(|wanted| !options.split(',').any(|one| one == wanted)) {
            return None;
        }
        left.split(' ').nth(4).map(PathBuf::from)
    })
}

/// The root of cgroup version 2, where programs are attached: the host's mount, or one made
/// privately and never attached to any path (fsmount, Linux 5.2).
pub(super) fn attach_point() -> io::Result<OwnedFd> {
    let mounts = Mounts::with_whole_cgroups();
    if let Some(path) = find_mount(&mounts.info, "cgroup2", None) {
        // A container's view of the mount may be a part of it; only the root sees every task.
        let path = mounts.reach(&path.to_string_lossy());
        if is_root(&path) {
            return File::open(path).map(OwnedFd::from);
        }
    }
    private_mount()
}

/// A version 2 root has no `cgroup.type` (Documentation/admin-guide/cgroup-v2.rst).
fn is_root(path: &Path) -> bool {
    !path.join("cgroup.type").exists()
}

pub(super) fn private_mount() -> io::Result<OwnedFd> {
    let check = |result: libc::c_long| {
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    };
    let owned = |fd: libc::c_long| {
        // SAFETY: the kernel gave a new descriptor that nothing else owns.
        i32::try_from(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).map_err(io::Error::other)
    };
    use std::os::fd::AsRawFd;
    // SAFETY: a NUL-terminated name and a flag.
    let context = owned(check(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), 1) })?)?;
    const FSCONFIG_CMD_CREATE: libc::c_int = 6;
    // SAFETY: the command takes no key, value or number.
    check(unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_fd().as_raw_fd(),
            FSCONFIG_CMD_CREATE,
            std::ptr::null::<libc::c_char>(),
            std::ptr::null::<libc::c_void>(),
            0,
        )
    })?;
    // SAFETY: two plain numbers (FSMOUNT_CLOEXEC, no attributes).
    owned(check(unsafe { libc::syscall(libc::SYS_fsmount, context.as_fd().as_raw_fd(), 1, 0) })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids";

    #[test]
    fn version_1_hosts_are_named_by_pids() {
        let table = "#subsys_name hierarchy num_cgroups enabled\ncpu 3 1 1\npids 8 60 1\n";
        let found = Hierarchy::from_tables(table, HYBRID);
        assert_eq!(found, Hierarchy { controller: Some("pids"), mount: Some("/sys/fs/cgroup/pids".into()) });
    }

    #[test]
    fn version_2_hosts_are_named_by_the_one_tree() {
        let table = "#subsys_name hierarchy num_cgroups enabled\ncpu 0 1 1\npids 0 60 1\n";
        let mounts = "31 30 0:27 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let found = Hierarchy::from_tables(table, mounts);
        assert_eq!(found, Hierarchy { controller: None, mount: Some("/sys/fs/cgroup".into()) });
    }

    #[test]
    fn the_private_mount_is_the_root_of_version_2() {
        use std::os::fd::AsRawFd;
        let mount = private_mount().unwrap();
        let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        assert!(path.join("cgroup.controllers").exists());
        assert!(is_root(&path));
    }
}
