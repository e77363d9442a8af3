//! What a process is at its exec stop: read while it stands still, so without a race.
//!
//! The kernel lays out the top of a new stack as arguments, environment, path that was asked for
//! (fs/exec.c, `bprm->exec`), and `/proc/PID/stat` says where the first two lie: one
//! process_vm_readv() gives all three.

use crate::event::{Credentials, Exec, FileId, Stdio};
use crate::sensor::proc::{self, Stat, Status};
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getpeername, getsockname};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::fs::{AtFlags, fstat, readlinkat, statat};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities};
use std::io::{self, IoSliceMut, Read};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Arguments that are kept, bytes.
const ARGUMENTS: usize = 4096;
/// Environment that is searched, bytes.
const ENVIRONMENT: usize = 32 << 10;
/// A page of the smallest size that Linux has: a read across it may fail in its second part.
const PAGE: u64 = 4096;
/// Variables that change what code a program loads.
const VARIABLES: [&str; 2] = ["LD_PRELOAD", "LD_LIBRARY_PATH"];

/// Everything but parent's start time and the user before, which only the tracer's table knows.
pub struct Reading {
    /// The event, as far as it can be read here.
    pub exec: Exec,
    /// Parent's id, 0 where it is outside the namespace.
    pub parent: u32,
    /// Start of the process, nanoseconds since boot.
    pub start: u64,
    /// The core that it stands on.
    pub core: u32,
    /// Its namespaces, where it may not go into others: until its next exec, and in its children until theirs, they
    /// stay what they are.
    pub namespaces: Option<Namespaces>,
}

/// Inodes of a process's namespaces, 0 where they cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Of mounts.
    pub mount: u64,
    /// Of process ids.
    pub pid: u64,
}

impl Namespaces {
    fn read(directory: BorrowedFd<'_>) -> Self {
        Self { mount: namespace(directory, "ns/mnt"), pid: namespace(directory, "ns/pid") }
    }

    /// Of a process that may not go into others.
    pub fn of_confined(pid: u32) -> Option<Self> {
        let directory = proc::open(pid).ok()?;
        is_confined(sets_of(pid)?).then(|| Self::read(directory.as_fd())).filter(Self::is_whole)
    }

    fn is_whole(&self) -> bool {
        self.mount != 0 && self.pid != 0
    }
}

fn sets_of(pid: u32) -> Option<CapabilitySets> {
    capabilities(rustix::process::Pid::from_raw(pid as i32)).ok()
}

/// Whether who has these may not go into other namespaces of mounts and process ids: they are made and entered with
/// CAP_SYS_ADMIN only (namespaces(7)).
fn is_confined(sets: CapabilitySets) -> bool {
    !(sets.effective | sets.permitted).contains(CapabilitySet::SYS_ADMIN)
}

/// What is known of a process before it is read, and is not read again if it is still so: while it is read it stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Its credentials as last read, or its parent's.
    pub credentials: Credentials,
    /// Its namespaces or its parent's, where neither could go into others since.
    pub namespaces: Option<Namespaces>,
    /// The agent's PID namespace: in it a process's own id is the one that the agent sees. 0 where it is not known.
    pub own: u64,
}

impl Known {
    /// The credentials, if it has them still; two system calls instead of a long text. Who differs in real and effective
    /// ids is always read. A process that gives away its real ids alone, and may, keeps its former ones here.
    fn credentials(&self, sets: Option<CapabilitySets>, pid: u64, directory: BorrowedFd<'_>) -> Option<Credentials> {
        let same_ids = pid != 0 && pid == self.own;
        let known = self.credentials;
        // The owner of `/proc/PID` itself is the effective user, dumpable or not (fs/proc/base.c).
        let owner = fstat(directory).ok()?;
        let ids = [known.uid, known.euid, known.gid] == [owner.st_uid, owner.st_uid, owner.st_gid];
        (same_ids && ids && sets?.effective.bits() == known.capabilities).then_some(known)
    }
}

/// Reads what `pid` runs. It should be stopped; if it is not, what is read may be of two moments.
pub fn read(pid: u32, known: Known) -> io::Result<Reading> {
    let directory = proc::open(pid)?;
    let directory = directory.as_fd();
    let stat = Stat::read_at(directory)?;
    let sets = sets_of(pid);
    let confined = sets.is_some_and(is_confined);
    // Who may now is read as well: what it may, it may have from a user namespace of its own.
    let namespaces = known.namespaces.filter(|_| confined).unwrap_or_else(|| Namespaces::read(directory));
    let (credentials, namespace_pid) = match known.credentials(sets, namespaces.pid, directory) {
        Some(credentials) => (credentials, pid),
        None => Status::read_at(directory).map(|status| (status.credentials, status.namespace_pid))?,
    };
    let strings = Strings::read(pid, &stat);
    let executable = link(directory, "exe");
    let file = file_id(directory);
    let memfd = executable.as_deref().is_some_and(|path| path.starts_with("/memfd:"))
        || file.is_some_and(|file| file.links == 0);
    let filename = strings.filename.unwrap_or_else(|| executable.clone().unwrap_or_default());
    let script = script(pid, &filename, executable.as_deref(), &strings.arguments);
    let exec = Exec {
        parent: Default::default(),
        namespace_pid,
        filename,
        executable,
        script,
        arguments: strings.arguments,
        truncated: strings.truncated,
        cwd: link(directory, "cwd"),
        environment: strings.environment,
        credentials,
        previous_euid: credentials.euid,
        file,
        memfd,
        stdio: [0, 1, 2].map(|descriptor| stdio(pid, directory, descriptor)),
        mount_namespace: namespaces.mount,
        pid_namespace: namespaces.pid,
        name: stat.name.clone(),
    };
    let namespaces = confined.then_some(namespaces).filter(Namespaces::is_whole);
    Ok(Reading { exec, parent: stat.parent, start: stat.start, core: stat.core, namespaces })
}

fn link(directory: BorrowedFd<'_>, name: &str) -> Option<String> {
    readlinkat(directory, name, Vec::new()).ok().map(|path| path.to_string_lossy().into_owned())
}

/// The inode of a namespace, 0 where it cannot be read. The link says `mnt:[4026531841]`, and following it would cost
/// twice as much.
fn namespace(directory: BorrowedFd<'_>, name: &str) -> u64 {
    let inode = |link: String| link.split_once(":[")?.1.strip_suffix(']')?.parse().ok();
    link(directory, name).and_then(inode).unwrap_or(0)
}

#[allow(clippy::unnecessary_cast)] // The widths of these fields differ between architectures.
fn file_id(directory: BorrowedFd<'_>) -> Option<FileId> {
    let stat = statat(directory, "exe", AtFlags::empty()).ok()?;
    Some(FileId {
        device: stat.st_dev as u64,
        inode: stat.st_ino as u64,
        ctime: (stat.st_ctime as i64) * 1_000_000_000 + stat.st_ctime_nsec as i64,
        size: stat.st_size as u64,
        links: stat.st_nlink as u32,
        mode: stat.st_mode as u32,
        owner: stat.st_uid,
        upper: None,
    })
}

fn stdio(pid: u32, directory: BorrowedFd<'_>, descriptor: i32) -> Stdio {
    let Some(target) = link(directory, ["fd/0", "fd/1", "fd/2"][descriptor as usize]) else { return Stdio::Unknown };
    if target.starts_with("socket:") {
        socket(pid, descriptor).unwrap_or(Stdio::Unknown)
    } else if target.starts_with("pipe:") {
        Stdio::Pipe
    } else if target.starts_with("/dev/pts/") || target.starts_with("/dev/tty") || target == "/dev/console" {
        Stdio::Terminal
    } else {
        Stdio::Other
    }
}

/// Asks the socket itself by a borrowed descriptor: exact, and independent of the number of sockets.
fn socket(pid: u32, descriptor: i32) -> Option<Stdio> {
    let process = pidfd_open(rustix::process::Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()?;
    let socket = pidfd_getfd(&process, descriptor, PidfdGetfdFlags::empty()).ok()?;
    let own: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    match own.family()? {
        nix::sys::socket::AddressFamily::Unix => Some(Stdio::Unix),
        nix::sys::socket::AddressFamily::Inet | nix::sys::socket::AddressFamily::Inet6 => {
            let peer = getpeername::<SockaddrStorage>(socket.as_raw_fd()).ok();
            Some(Stdio::Socket(peer.and_then(|peer| address(&peer))))
        }
        _ => Some(Stdio::Other),
    }
}

/// An internet address of either family; IPv4 in IPv6 clothes becomes IPv4.
fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::from((v4.ip(), v4.port())));
    }
    let v6 = address.as_sockaddr_in6()?;
    Some(SocketAddr::new(v6.ip().to_canonical(), v6.port()))
}

/// The script for which an interpreter was started: the path that was asked for is then one of
/// the interpreter's first arguments, and the file begins with `#!`.
fn script(pid: u32, filename: &str, executable: Option<&str>, arguments: &[String]) -> Option<String> {
    let named = arguments.iter().skip(1).take(2).any(|argument| argument == filename);
    if !named || executable == Some(filename) {
        return None;
    }
    // `#!` on a descriptor without close-on-exec; the descriptor may be gone by now.
    if filename.starts_with("/dev/fd/") {
        return Some(filename.to_owned());
    }
    let path = match filename.strip_prefix('/') {
        Some(path) => format!("/proc/{pid}/root/{path}"),
        None => format!("/proc/{pid}/cwd/{filename}"),
    };
    // A FIFO or device of an unkind application must not hold the tracer: only regular files.
    std::fs::metadata(&path).ok().filter(|file| file.is_file())?;
    let mut magic = [0_u8; 2];
    std::fs::File::open(path).ok()?.read_exact(&mut magic).ok()?;
    (magic == *b"#!").then(|| filename.to_owned())
}

/// The strings at the top of the stack.
#[derive(Default)]
struct Strings {
    arguments: Vec<String>,
    truncated: bool,
    environment: Vec<(String, String)>,
    filename: Option<String>,
}

impl Strings {
    fn read(pid: u32, stat: &Stat) -> Self {
        let (start, end) = stat.arguments;
        let whole = end.saturating_sub(start) as usize;
        let mut arguments = vec![0_u8; whole.min(ARGUMENTS)];
        let (environment_start, environment_end) = stat.environment;
        let length = environment_end.saturating_sub(environment_start) as usize;
        let mut environment = vec![0_u8; length.min(ENVIRONMENT)];
        // The path may reach into the next page, or end with the stack in this one.
        let mut path = vec![0_u8; (2 * PAGE - environment_end % PAGE) as usize];
        let here = (PAGE - environment_end % PAGE) as usize;
        let remote = [
            RemoteIoVec { base: start as usize, len: arguments.len() },
            RemoteIoVec { base: environment_start as usize, len: environment.len() },
            RemoteIoVec { base: environment_end as usize, len: here },
            RemoteIoVec { base: environment_end as usize + here, len: path.len() - here },
        ];
        let mut local =
            [IoSliceMut::new(&mut arguments), IoSliceMut::new(&mut environment), IoSliceMut::new(&mut path)];
        let count = if environment_end == 0 {
            0
        } else {
            process_vm_readv(Pid::from_raw(pid as i32), &mut local, &remote).unwrap_or(0)
        };
        let mut left = count;
        for bytes in [&mut arguments, &mut environment, &mut path] {
            let read = bytes.len().min(left);
            bytes.truncate(read);
            left -= read;
        }
        Self {
            truncated: whole > arguments.len(),
            arguments: pieces(&arguments),
            environment: variables(&environment),
            filename: path
                .iter()
                .position(|byte| *byte == 0)
                .and_then(|end| path.get(..end))
                .and_then(|name| (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())),
        }
    }
}

fn pieces(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

fn variables(bytes: &[u8]) -> Vec<(String, String)> {
    bytes
        .split(|byte| *byte == 0)
        .filter_map(|entry| {
            let cut = entry.iter().position(|byte| *byte == b'=')?;
            let name = VARIABLES.iter().find(|name| entry.get(..cut) == Some(name.as_bytes()))?;
            Some(((*name).to_owned(), String::from_utf8_lossy(entry.get(cut + 1..)?).into_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::cgroup::namespace_of;

    /// Reads a child that waits for its input; the parent goes on a moment before the kernel has laid out the child's
    /// stack, at an exec stop it has.
    fn read_started(pid: u32) -> Reading {
        while Stat::read(pid).unwrap().state != 'S' || read(pid, Known::default()).unwrap().exec.arguments.is_empty() {
            std::thread::yield_now();
        }
        read(pid, Known::default()).unwrap()
    }

    #[test]
    fn a_process_is_read_as_it_was_started() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read x", ""])
            .env("LD_LIBRARY_PATH", "/nowhere")
            .env("SECRET", "x")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let reading = read_started(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(reading.parent, std::process::id());
        assert_eq!(reading.exec.arguments, ["/bin/sh", "-c", "read x", ""]);
        assert_eq!(reading.exec.filename, "/bin/sh");
        assert!(reading.exec.executable.unwrap().ends_with("sh"));
        assert_eq!(reading.exec.environment, [("LD_LIBRARY_PATH".to_owned(), "/nowhere".to_owned())]);
        assert_eq!(reading.exec.stdio[0], Stdio::Pipe);
        let own = |kind| namespace_of(std::process::id(), kind).unwrap();
        assert_eq!((reading.exec.mount_namespace, reading.exec.pid_namespace), (own("mnt"), own("pid")));
        assert_eq!((reading.exec.script, reading.exec.memfd, reading.exec.truncated), (None, false, false));
        assert!(reading.exec.file.unwrap().size > 0);
        // What is known and still so is not read again, what is no longer so is.
        let credentials = reading.exec.credentials;
        let directory = proc::open(std::process::id()).unwrap();
        let sets = capabilities(None).ok();
        let told = |credentials, same_ids| {
            let known = Known { credentials, namespaces: None, own: if same_ids { 7 } else { 0 } };
            known.credentials(sets, 7, directory.as_fd())
        };
        assert_eq!(told(credentials, true), Some(credentials));
        assert_eq!(told(credentials, false), None);
        assert_eq!(told(Credentials { uid: credentials.uid + 1, ..credentials }, true), None);
        assert_eq!(told(Credentials { gid: credentials.gid + 1, ..credentials }, true), None);
        assert_eq!(told(Credentials { capabilities: credentials.capabilities ^ 1, ..credentials }, true), None);
    }

    #[test]
    fn long_arguments_are_cut_and_say_so() {
        let long = "x".repeat(10_000);
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "read x", &long])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let reading = read_started(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(reading.exec.truncated);
        assert_eq!(reading.exec.arguments.iter().map(|text| text.len() + 1).sum::<usize>(), ARGUMENTS + 1);
        assert_eq!(reading.exec.filename, "/bin/sh");
    }
}
