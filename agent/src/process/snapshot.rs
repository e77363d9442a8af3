//! Processes that were there before the agent: one walk over /proc at the start, and single reads
//! for a process that a sensor names and the table has lost.

use super::table::{Entry, ProcessTable, Program};
use crate::event::{FileId, ProcessKey, Stdio};
use procfs::process::{FDTarget, Process};
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;

/// Processes that one walk reads, at most.
const MAX_PROCESSES: usize = 65_536;

/// Nanoseconds of a clock tick: /proc gives start times in ticks of 1/100 s on every Linux
/// (USER_HZ is 100 by ABI).
pub const TICK_NS: u64 = 10_000_000;

/// Reads every process into the table. Returns how many.
pub fn fill(table: &mut ProcessTable) -> usize {
    let Ok(processes) = procfs::process::all_processes() else { return 0 };
    let mut found = Vec::new();
    for process in processes.flatten().take(MAX_PROCESSES) {
        found.extend(read_process(&process));
    }
    let keys: HashMap<u32, ProcessKey> = found.iter().map(|(key, _)| (key.pid, *key)).collect();
    for (key, entry) in &mut found {
        if let Some(parent) = keys.get(&entry.parent.pid).filter(|parent| *parent != key) {
            entry.parent = *parent;
        }
    }
    let count = found.len();
    found.into_iter().for_each(|(key, entry)| table.insert(key, entry));
    count
}

/// Reads one process, if it is still the one that `key` names.
pub fn read(key: ProcessKey) -> Option<Entry> {
    let process = Process::new(i32::try_from(key.pid).ok()?).ok()?;
    let (found, mut entry) = read_process(&process)?;
    if found != key {
        return None;
    }
    let parent = Process::new(i32::try_from(entry.parent.pid).ok()?).and_then(|parent| parent.stat());
    if let Ok(stat) = parent {
        entry.parent = ProcessKey::new(entry.parent.pid, stat.starttime.saturating_mul(TICK_NS));
    }
    Some(entry)
}

/// The key of the process that has `pid` now.
pub fn key_of(pid: u32) -> Option<ProcessKey> {
    let stat = Process::new(i32::try_from(pid).ok()?).and_then(|process| process.stat()).ok()?;
    Some(ProcessKey::new(pid, stat.starttime.saturating_mul(TICK_NS)))
}

fn read_process(process: &Process) -> Option<(ProcessKey, Entry)> {
    let stat = process.stat().ok()?;
    let pid = u32::try_from(stat.pid).ok()?;
    let key = ProcessKey::new(pid, stat.starttime.saturating_mul(TICK_NS));
    let status = process.status().ok();
    let path = process.exe().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
    let namespaces = process.namespaces().map(|namespaces| namespaces.0).unwrap_or_default();
    let namespace = |name: &str| namespaces.get(&OsString::from(name)).map_or(0, |namespace| namespace.identifier);
    let program = Program {
        path: path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned(),
        arguments: process.cmdline().unwrap_or_default().into_iter().take(64).collect(),
        file: file_id(&format!("/proc/{pid}/exe")),
        euid: status.as_ref().map_or(0, |status| status.euid),
        stdio: stdio(process),
        ..Program::default()
    };
    let parent = ProcessKey { pid: u32::try_from(stat.ppid).unwrap_or(0), start: 0 };
    let mut entry = Entry::new(parent, program);
    if let Some(status) = status {
        (entry.uid, entry.euid) = (status.ruid, status.euid);
        entry.namespace_pid = status.nspid.as_ref().and_then(|pids| u32::try_from(*pids.last()?).ok()).unwrap_or(0);
    }
    entry.unwatched = true;
    entry.mount_namespace = namespace("mnt");
    entry.pid_namespace = namespace("pid");
    Some((key, entry))
}

/// What descriptors 0 to 2 are, as far as /proc says without looking up sockets.
fn stdio(process: &Process) -> [Stdio; 3] {
    [0, 1, 2].map(|number| match process.fd_from_fd(number).map(|fd| fd.target) {
        Ok(FDTarget::Path(path)) if path.starts_with("/dev/pts") || path.starts_with("/dev/tty") => Stdio::Terminal,
        Ok(FDTarget::Pipe(_)) => Stdio::Pipe,
        Ok(FDTarget::Socket(_)) | Err(_) => Stdio::Unknown,
        Ok(_) => Stdio::Other,
    })
}

/// A file by its metadata.
pub fn file_id(path: &str) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|metadata| from_metadata(&metadata))
}

/// A file by metadata that was read.
pub fn from_metadata(metadata: &std::fs::Metadata) -> FileId {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Limits;

    #[test]
    fn the_walk_finds_this_process_with_its_parent() {
        let mut table = ProcessTable::new(Limits::default());
        assert!(fill(&mut table) > 0);
        let own = key_of(std::process::id()).unwrap();
        let entry = table.get(own).unwrap();
        assert_eq!(entry.program.path, std::env::current_exe().unwrap().to_string_lossy());
        assert!(entry.mount_namespace != 0 && entry.pid_namespace != 0);
        assert!(!table.lineage(own).is_empty());
    }

    #[test]
    fn a_reused_pid_is_not_taken_for_the_process() {
        let own = key_of(std::process::id()).unwrap();
        assert!(read(own).is_some());
        assert!(read(ProcessKey { start: own.start + TICK_NS, ..own }).is_none());
    }
}
