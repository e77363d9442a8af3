//! Events: what a sensor says happened, before anything is known about whose task it was.
//!
//! Sensors fill what they can read at the moment of the event; everything else is joined later by
//! `workload` and `process`. Text is kept as the kernel gives it (lossy UTF-8, length-capped).

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// A process: its id in the sensor's PID namespace, and when it started, so that a reused id is
/// another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Thread-group id.
    pub pid: u32,
    /// Start time, nanoseconds since boot (CLOCK_BOOTTIME), rounded down to 10 ms so that the
    /// kernel's own value and /proc's clock ticks agree.
    pub start: u64,
}

impl ProcessKey {
    /// A key from an exact start time.
    pub fn new(pid: u32, start_boottime_ns: u64) -> Self {
        Self { pid, start: start_boottime_ns - start_boottime_ns % 10_000_000 }
    }
}

/// The cgroup of the process at the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CgroupId(pub u64);

/// One event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Nanoseconds since boot (CLOCK_BOOTTIME).
    pub time: u64,
    /// Who did it; `None` where the sensor cannot tell (inotify, some packets).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessKey>,
    /// Its cgroup; `None` where the sensor does not see cgroups (sidecar).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupId>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A process now runs another program.
    Exec(Box<Exec>),
    /// A process was there before the sensor: what it runs, read late. For the process table;
    /// nothing happened.
    Existing(Box<Exec>),
    /// A process made another one.
    Fork {
        /// The new process.
        child: ProcessKey,
    },
    /// A process ended.
    Exit {
        /// Exit code as wait() gives it.
        code: i32,
    },
    /// A process changed its user or capabilities.
    Credentials {
        /// Before.
        old: Credentials,
        /// After.
        new: Credentials,
    },
    /// A connection was asked for, or made.
    Connect(Connect),
    /// A connection was taken.
    Accept(Connect),
    /// A socket was bound to a port or began to listen.
    Listen {
        /// `tcp` or `udp`.
        transport: Transport,
        /// Where.
        local: SocketAddr,
    },
    /// A DNS message was seen.
    Dns(Box<DnsPacket>),
    /// A file was changed.
    File(Box<FileEvent>),
}

/// User ids and effective capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective capabilities, one bit each.
    pub capabilities: u64,
}

/// A program that a process now runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exec {
    /// Parent at the time.
    pub parent: ProcessKey,
    /// Process id in the process's own namespace.
    pub namespace_pid: u32,
    /// Path that was asked for.
    pub filename: String,
    /// Path of what runs as /proc/PID/exe gives it (with ` (deleted)` where it is), if it was readable.
    pub executable: Option<String>,
    /// Script that an interpreter was started for, if one.
    pub script: Option<String>,
    /// Arguments, at most 4 KiB in all.
    pub arguments: Vec<String>,
    /// Some arguments did not fit.
    pub truncated: bool,
    /// Working directory, if it was readable.
    pub cwd: Option<String>,
    /// `LD_PRELOAD` and `LD_LIBRARY_PATH`, where set.
    pub environment: Vec<(String, String)>,
    /// Credentials after the exec.
    pub credentials: Credentials,
    /// User before the exec.
    pub previous_euid: u32,
    /// The file that runs.
    pub file: Option<FileId>,
    /// The file is a memfd, or has no directory entry (no link, or on tmpfs of the kernel).
    pub memfd: bool,
    /// What descriptors 0, 1 and 2 are.
    pub stdio: [Stdio; 3],
    /// Mount namespace.
    pub mount_namespace: u64,
    /// PID namespace.
    pub pid_namespace: u64,
    /// Bare name, at most 15 bytes (`comm`).
    pub name: String,
}

/// A file by what makes it that file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct FileId {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Last change, nanoseconds since the epoch.
    pub ctime: i64,
    /// Size, bytes.
    pub size: u64,
    /// Links; 0 means deleted.
    pub links: u32,
    /// Mode bits, set-user-id among them.
    pub mode: u32,
    /// Owner.
    pub owner: u32,
    /// The file lies in the writable layer of an overlay: it is not the image's own; `None` unknown.
    pub upper: Option<bool>,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdio {
    /// Not known, or closed.
    #[default]
    Unknown,
    /// A file, device or pipe.
    Other,
    /// A terminal.
    Terminal,
    /// A pipe.
    Pipe,
    /// An internet socket, with its peer where it is connected.
    Socket(Option<SocketAddr>),
    /// A Unix socket.
    Unix,
}

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// TCP or UDP.
    pub transport: Transport,
    /// This side, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<SocketAddr>,
    /// The other side.
    pub remote: SocketAddr,
}

/// A DNS message, as it was on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DnsPacket {
    /// The resolver.
    pub server: SocketAddr,
    /// The asking side's address.
    pub client: IpAddr,
    /// From the resolver to the client.
    pub answer: bool,
    /// The message, at most 512 bytes of it.
    #[serde(with = "hexadecimal")]
    pub payload: Vec<u8>,
}

/// A change to a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEvent {
    /// What was done.
    pub operation: FileOperation,
    /// Path as the container sees it.
    pub path: String,
    /// The other path of a rename or link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The file, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileId>,
}

/// What was done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileOperation {
    /// Opened for writing, or closed after writing.
    Write,
    /// Created.
    Create,
    /// Renamed.
    Rename,
    /// Hard-linked.
    Link,
    /// Symbolically linked.
    Symlink,
    /// Removed.
    Unlink,
    /// Its mode was changed.
    Chmod,
    /// Opened for reading.
    Open,
}

/// Bytes as hexadecimal text, so that a recorded line stays readable.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::borrow::Cow;

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        hex::decode(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}
