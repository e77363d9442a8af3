//! The processes that were there before the sensor: read from /proc once, so that the process
//! table is filled.
//!
//! Guarantees: parents come before their children; a key equals the one that the kernel hooks give
//! for the same process. Caveats: read late and without a lock, so a process may end or exec in
//! between (an exec event follows then); sockets on descriptors 0 to 2 are not looked up.

use super::ebpf::cgroups::Hierarchy;
use crate::event::{CgroupId, Credentials, Event, EventKind, Exec, FileId, ProcessKey, Stdio};
use procfs::process::{FDTarget, Process};
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;

/// USER_HZ of /proc, the same on every architecture that the agent runs on
/// (include/uapi/asm-generic/param.h): 100 a second.
const TICK_NS: u64 = 10_000_000;
/// As many argument bytes as the probes take.
const ARGUMENT_BYTES: usize = 4096;

/// Nanoseconds since boot.
pub fn boottime() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the answer. Cannot fail: the clock is there since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// When a process started, from /proc; `None` where it is gone.
pub fn start_of(pid: u32) -> Option<ProcessKey> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(ProcessKey::new(pid, stat.starttime * TICK_NS))
}

/// Every process with a program as an [`EventKind::Existing`], oldest first. Kernel threads have
/// none and are left out.
///
/// # Errors
/// Where /proc cannot be listed.
pub fn existing(hierarchy: Option<&Hierarchy>) -> Result<Vec<Event>, procfs::ProcError> {
    let time = boottime();
    let all: Vec<_> = procfs::process::all_processes()?
        .flatten()
        .filter_map(|process| Some((process.stat().ok()?, process)))
        .collect();
    let keys: HashMap<i32, ProcessKey> =
        all.iter().filter_map(|(stat, _)| Some((stat.pid, key(stat.pid, stat.starttime)?))).collect();
    let mut events: Vec<_> = all
        .iter()
        .filter_map(|(stat, process)| {
            let key = *keys.get(&stat.pid)?;
            let parent = keys.get(&stat.ppid).copied().unwrap_or_default();
            let exec = exec(process, &stat.comm, parent)?;
            let cgroup = hierarchy.and_then(|hierarchy| hierarchy.of_process(key.pid)).map(CgroupId);
            Some(Event { time, process: Some(key), cgroup, kind: EventKind::Existing(Box::new(exec)) })
        })
        .collect();
    events.sort_by_key(|event| event.process.map(|key| (key.start, key.pid)));
    Ok(events)
}

fn key(pid: i32, ticks: u64) -> Option<ProcessKey> {
    Some(ProcessKey::new(u32::try_from(pid).ok()?, ticks * TICK_NS))
}

fn exec(process: &Process, comm: &str, parent: ProcessKey) -> Option<Exec> {
    let link = format!("/proc/{}", process.pid);
    let executable = process.exe().ok()?.to_string_lossy().into_owned();
    let status = process.status().ok()?;
    let (arguments, truncated) = cut(process.cmdline().unwrap_or_default());
    let file = std::fs::metadata(format!("{link}/exe")).ok().map(|metadata| file_id(&metadata));
    let namespace = |kind: &str| std::fs::metadata(format!("{link}/ns/{kind}")).map(|found| found.ino()).unwrap_or(0);
    Some(Exec {
        parent,
        namespace_pid: status.nspid.as_ref().and_then(|all| all.last()).and_then(|pid| u32::try_from(*pid).ok())?,
        filename: executable.trim_end_matches(" (deleted)").to_owned(),
        memfd: file.is_some_and(|file| file.links == 0),
        executable: Some(executable),
        script: None,
        arguments,
        truncated,
        cwd: process.cwd().ok().map(|path| path.to_string_lossy().into_owned()),
        environment: Vec::new(),
        credentials: Credentials { uid: status.ruid, euid: status.euid, gid: status.rgid, capabilities: status.capeff },
        previous_euid: status.euid,
        file,
        stdio: [0, 1, 2].map(|descriptor| stdio(process, descriptor)),
        mount_namespace: namespace("mnt"),
        pid_namespace: namespace("pid"),
        name: comm.to_owned(),
    })
}

fn cut(mut arguments: Vec<String>) -> (Vec<String>, bool) {
    let mut used = 0;
    let fit = arguments.iter().take_while(|one| {
        used += one.len() + 1;
        used <= ARGUMENT_BYTES
    });
    let fit = fit.count();
    let truncated = fit < arguments.len();
    arguments.truncate(fit);
    (arguments, truncated)
}

/// Identity of a file as the probes give it; the layer of an overlay is not known here.
pub fn file_id(metadata: &std::fs::Metadata) -> FileId {
    FileId {
        device: metadata.dev(),
        inode: metadata.ino(),
        ctime: metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec()),
        size: metadata.size(),
        links: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
        mode: metadata.mode(),
        owner: metadata.uid(),
        upper: None,
    }
}

fn stdio(process: &Process, descriptor: i32) -> Stdio {
    match process.fd_from_fd(descriptor).map(|found| found.target) {
        Ok(FDTarget::Pipe(_)) => Stdio::Pipe,
        Ok(FDTarget::Path(path)) if path.starts_with("/dev/pts") || path.starts_with("/dev/tty") => Stdio::Terminal,
        Ok(FDTarget::Socket(_)) | Err(_) => Stdio::Unknown,
        Ok(_) => Stdio::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio as Io};

    #[test]
    fn a_running_child_is_found_with_its_parent_and_file() {
        let mut child = Command::new("/bin/sleep").arg("1000").stdin(Io::piped()).stdout(Io::null()).spawn().unwrap();
        let mut events = existing(Some(&Hierarchy::of_host())).unwrap();
        let me =
            events.iter().position(|event| event.process.is_some_and(|key| key.pid == std::process::id())).unwrap();
        let place = events.iter().position(|event| event.process.is_some_and(|key| key.pid == child.id())).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(me < place, "the parent comes first");
        let parent = events[me].process.unwrap();
        let found = events.swap_remove(place);
        assert!(found.cgroup.is_some());
        let EventKind::Existing(exec) = found.kind else { panic!("{found:?}") };
        assert_eq!(exec.parent, parent);
        assert_eq!(exec.arguments, ["/bin/sleep", "1000"]);
        assert_eq!(exec.file, Some(file_id(&std::fs::metadata("/bin/sleep").unwrap())));
        assert_eq!(exec.stdio[..2], [Stdio::Pipe, Stdio::Other]);
        assert_eq!(exec.name, "sleep");
        assert!(!exec.memfd);
    }

    #[test]
    fn long_arguments_are_cut_between_two() {
        let (kept, truncated) = cut(vec!["a".repeat(4000), "b".repeat(95), "c".into()]);
        assert_eq!((kept.len(), truncated), (1, true), "4001 + 96 bytes are one too many");
        assert_eq!(cut(vec!["ls".into()]), (vec!["ls".to_owned()], false));
    }
}
