//! The few lines of `/proc` that the sidecar's sensors read at each event.
//!
//! `procfs` reads every field of a file; these are read while an application stands still at an
//! exec, so only what is needed is parsed. Field numbers are those of proc(5).

use crate::event::{Credentials, ProcessKey};
use rustix::fs::{Mode, OFlags, openat};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// `USER_HZ`: 100 on every architecture that Tasuki is built for.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;
/// `PF_KTHREAD` of include/linux/sched.h.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// Room for a `/proc` text at first, bytes: `status` is about 1.5 KiB.
const TEXT: usize = 8192;
/// Largest that is read: a process may be in 65,536 groups, which `status` lists before what is wanted.
const LARGEST: usize = 1 << 20;

/// Parts of `/proc/PID/stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// Bare name.
    pub name: String,
    /// One letter: `R`, `S`, `D`, `T` (stopped), `t` (traced stop), `Z`, `X`.
    pub state: char,
    /// Parent, 0 where it is outside the namespace.
    pub parent: u32,
    /// The kernel's own thread.
    pub kernel: bool,
    /// A thread of a process, and not its first one.
    pub thread: bool,
    /// The core that it runs on, or ran on last.
    pub core: u32,
    /// Processor time, clock ticks of 10 ms.
    pub cpu_ticks: u64,
    /// Start, nanoseconds since boot.
    pub start: u64,
    /// Where arguments begin and end.
    pub arguments: (u64, u64),
    /// Where the environment begins and ends.
    pub environment: (u64, u64),
}

impl Stat {
    /// Parses the text; `None` where it is not what proc(5) says.
    pub fn parse(text: &str) -> Option<Self> {
        let open = text.find('(')?;
        let close = text.rfind(')')?;
        let name = text.get(open + 1..close)?.to_owned();
        let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
        // `fields[0]` is field 3 of proc(5).
        let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
        Some(Self {
            name,
            state: fields.first()?.chars().next()?,
            parent: number(4)? as u32,
            kernel: number(9)? & KERNEL_THREAD != 0,
            // Its exit signal: a thread that shares its process has none (kernel/fork.c).
            thread: *fields.get(38 - 3)? == "-1",
            core: number(39)? as u32,
            cpu_ticks: number(14)? + number(15)?,
            start: number(22)? * NANOSECONDS_PER_TICK,
            arguments: (number(48).unwrap_or(0), number(49).unwrap_or(0)),
            environment: (number(50).unwrap_or(0), number(51).unwrap_or(0)),
        })
    }

    /// Of a process or thread by its id.
    pub fn read(pid: u32) -> io::Result<Self> {
        Self::parse(&read(&format!("/proc/{pid}/stat"))?).ok_or_else(invalid)
    }

    /// Of one thread.
    pub fn read_thread(pid: u32, tid: u32) -> io::Result<Self> {
        Self::parse(&read(&format!("/proc/{pid}/task/{tid}/stat"))?).ok_or_else(invalid)
    }

    /// In an open `/proc/PID`.
    pub fn read_at(directory: impl AsFd) -> io::Result<Self> {
        Self::parse(&read_at(directory, "stat")?).ok_or_else(invalid)
    }
}

/// Parts of `/proc/PID/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Thread group.
    pub tgid: u32,
    /// Parent, 0 where it is outside the namespace.
    pub parent: u32,
    /// The thread that traces it; 0 none.
    pub tracer: u32,
    /// Users and capabilities.
    pub credentials: Credentials,
    /// Id in its own PID namespace.
    pub namespace_pid: u32,
}

impl Status {
    /// Parses the text; what is missing stays 0.
    pub fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let mut numbers = value.split_ascii_whitespace().map(|text| text.parse::<u32>().unwrap_or(0));
            match name {
                "Tgid" => status.tgid = numbers.next().unwrap_or(0),
                "PPid" => status.parent = numbers.next().unwrap_or(0),
                "TracerPid" => status.tracer = numbers.next().unwrap_or(0),
                "Uid" => {
                    status.credentials.uid = numbers.next().unwrap_or(0);
                    status.credentials.euid = numbers.next().unwrap_or(0);
                }
                "Gid" => status.credentials.gid = numbers.next().unwrap_or(0),
                "NSpid" => status.namespace_pid = numbers.next_back().unwrap_or(0),
                "CapEff" => status.credentials.capabilities = u64::from_str_radix(value.trim(), 16).unwrap_or(0),
                _ => {}
            }
        }
        status
    }

    /// Of a process or thread by its id.
    pub fn read(pid: u32) -> io::Result<Self> {
        Ok(Self::parse(&read(&format!("/proc/{pid}/status"))?))
    }

    /// In an open `/proc/PID`.
    pub fn read_at(directory: impl AsFd) -> io::Result<Self> {
        Ok(Self::parse(&read_at(directory, "status")?))
    }
}

/// The key of a living process.
pub fn key(pid: u32) -> Option<ProcessKey> {
    Stat::read(pid).ok().map(|stat| ProcessKey::new(pid, stat.start))
}

/// The processes that `/proc` lists.
pub fn processes() -> Vec<u32> {
    numbered("/proc")
}

/// The threads of a process; none where it is gone.
pub fn threads(pid: u32) -> Vec<u32> {
    numbered(&format!("/proc/{pid}/task"))
}

fn numbered(directory: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Opens `/proc/PID`.
pub fn open(pid: u32) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(format!("/proc/{pid}"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Reads a small file of an open `/proc/PID`, lossy where it is not UTF-8.
pub fn read_at(directory: impl AsFd, name: &str) -> io::Result<String> {
    text(&openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn read(path: &str) -> io::Result<String> {
    text(&rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The kernel makes these files whole at the first read, so one that fills less than it could has had everything.
fn text(file: &OwnedFd) -> io::Result<String> {
    let mut text = Vec::with_capacity(TEXT);
    loop {
        let room = text.capacity() - text.len();
        if room == 0 && text.capacity() < LARGEST {
            text.reserve(text.capacity());
        } else if room == 0 || rustix::io::read(file, rustix::buffer::spare_capacity(&mut text))? < room {
            break;
        }
    }
    Ok(String::from_utf8(text).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is not what proc(5) says")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_stat_and_status_agree() {
        let stat = Stat::read(std::process::id()).unwrap();
        let status = Status::read(std::process::id()).unwrap();
        assert_eq!(status.tgid, std::process::id());
        assert_eq!(stat.parent, status.parent);
        assert!(stat.start > 0 && stat.arguments.1 > stat.arguments.0);
        assert!(!stat.kernel && !stat.thread);
        let own = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        assert!(Stat::read(own).unwrap().thread && Stat::read_thread(std::process::id(), own).unwrap().thread);
        assert!(threads(std::process::id()).contains(&std::process::id()));
    }

    #[test]
    fn many_groups_hide_nothing() {
        use std::os::unix::process::CommandExt;
        let groups: Vec<_> = (100_000..110_000).map(nix::unistd::Gid::from_raw).collect();
        let mut command = std::process::Command::new("sleep");
        // SAFETY: between fork and exec one system call is made.
        unsafe { command.arg("1000").pre_exec(move || Ok(nix::unistd::setgroups(&groups)?)) };
        let mut child = command.spawn().unwrap();
        let status = Status::read(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        let status = status.unwrap();
        assert_ne!((status.namespace_pid, status.credentials.capabilities), (0, 0));
        assert_eq!(status.credentials.capabilities, Status::read(std::process::id()).unwrap().credentials.capabilities);
    }

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let rest = (4..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        let stat = Stat::parse(&format!("7 (a) S (b) R {rest}")).unwrap();
        assert_eq!((stat.name.as_str(), stat.state, stat.parent), ("a) S (b", 'R', 4));
        assert_eq!(stat.start, 22 * NANOSECONDS_PER_TICK);
        assert_eq!(stat.environment, (50, 51));
    }

    #[test]
    fn nonsense_is_refused_without_a_panic() {
        for text in ["", "(", ")(", "1 (x)", "1 (x) R", "1 (x) R 1 2 3", "1 )x( R 1 2 3"] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
        assert_eq!(Status::parse("Uid:\nUid: x y\n:::\nCapEff: zz"), Status::default());
    }
}
