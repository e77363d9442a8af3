//! The records: a fixed part, then packed text for exec. Integers are in the machine's order,
//! addresses and nothing else in network order.

use core::mem::size_of;

/// Version of every layout in this crate; both sides refuse another one.
pub const VERSION: u16 = 1;

/// Bytes of `comm` (TASK_COMM_LEN in include/linux/sched.h).
pub const NAME: usize = 16;
/// Longest argument text that is taken, bytes.
pub const EXEC_ARGUMENTS: usize = 4096;
/// Longest program path as asked for, bytes with its end mark.
pub const EXEC_FILENAME: usize = 512;
/// Longest interpreter path, bytes with its end mark (BINPRM_BUF_SIZE is 256).
pub const EXEC_INTERPRETER: usize = 256;
/// Longest path that is walked, bytes, for the executable and for the working directory (each).
pub const EXEC_PATH: usize = 1024;
/// Components of a path that are walked.
pub const PATH_DEPTH: usize = 32;
/// Longest environment text that is taken, bytes.
pub const EXEC_ENVIRONMENT: usize = 512;
/// Room for all packed text; a power of two, so that one mask bounds a cursor for the verifier.
pub const EXEC_TEXT: usize = 8192;
/// Largest exec record.
pub const EXEC_MAX: usize = size_of::<ExecRecord>() + EXEC_TEXT;
/// Bytes kept of a DNS message.
pub const DNS_PAYLOAD: usize = 512;

/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// Flags of an [`ExecRecord`].
pub mod exec_flags {
    /// Some arguments are missing.
    pub const TRUNCATED: u32 = 1;
    /// An interpreter runs for a script.
    pub const SCRIPT: u32 = 1 << 1;
    /// The file lies on a mount that only the kernel has (memfd, shared memory).
    pub const KERNEL_MOUNT: u32 = 1 << 2;
    /// The file is on an overlay whose layers could be told apart.
    pub const OVERLAY: u32 = 1 << 3;
    /// The file lies in the overlay's writable layer.
    pub const UPPER: u32 = 1 << 4;
    /// The path of the executable is not whole.
    pub const EXECUTABLE_CUT: u32 = 1 << 5;
    /// The path of the working directory is not whole.
    pub const CWD_CUT: u32 = 1 << 6;
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`ExecRecord`].
    Exec = 1,
    /// [`ForkRecord`].
    Fork = 2,
    /// [`ExitRecord`].
    Exit = 3,
    /// [`SocketRecord`]: a connection was asked for.
    Connect = 4,
    /// [`SocketRecord`]: a connection was taken.
    Accept = 5,
    /// [`SocketRecord`]: a socket listens.
    Listen = 6,
    /// [`DnsRecord`].
    Dns = 7,
}

impl Kind {
    /// The kind with this number.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Kind::Exec,
            2 => Kind::Fork,
            3 => Kind::Exit,
            4 => Kind::Connect,
            5 => Kind::Accept,
            6 => Kind::Listen,
            7 => Kind::Dns,
            _ => return None,
        })
    }
}

/// A record: plain integers without padding, so that any bytes of the right length are one.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and every bit pattern is a value of it.
pub unsafe trait Record: Copy {
    /// Reads the record from the front of `bytes`; `None` where they are too few.
    fn from_prefix(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: the length was checked, the read is unaligned, and every bit pattern is valid.
        Some(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast::<Self>()) })
    }
}

/// Front of every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// Bytes of the whole record.
    pub size: u32,
    /// [`VERSION`].
    pub version: u16,
    /// [`Kind`].
    pub kind: u16,
    /// Nanoseconds since boot (CLOCK_BOOTTIME).
    pub time: u64,
    /// Who did it; all zero where unknown.
    pub actor: Actor,
}

/// A process at the time of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Actor {
    /// Thread-group id in the first PID namespace.
    pub pid: u32,
    /// 0.
    pub reserved: u32,
    /// Start of the thread group's leader, nanoseconds since boot.
    pub start: u64,
    /// kernfs id of its cgroup, in the hierarchy that the agent chose.
    pub cgroup: u64,
}

/// A program was started. After it: file name, interpreter, executable's path and working
/// directory (components from the leaf up, each ended by NUL), arguments, environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ExecRecord {
    /// Front.
    pub header: Header,
    /// Parent's start, nanoseconds since boot.
    pub parent_start: u64,
    /// Parent's thread-group id.
    pub parent_pid: u32,
    /// Process id in its own PID namespace.
    pub namespace_pid: u32,
    /// Real user.
    pub uid: u32,
    /// Effective user.
    pub euid: u32,
    /// Real group.
    pub gid: u32,
    /// [`exec_flags`].
    pub flags: u32,
    /// Effective capabilities.
    pub capabilities: u64,
    /// Mount namespace.
    pub mount_namespace: u32,
    /// PID namespace.
    pub pid_namespace: u32,
    /// The file that runs.
    pub file: FileRecord,
    /// Descriptors 0, 1, 2.
    pub stdio: [StdioRecord; 3],
    /// `comm`.
    pub name: [u8; NAME],
    /// Bytes of the file name.
    pub filename_length: u16,
    /// Bytes of the interpreter.
    pub interpreter_length: u16,
    /// Bytes of the executable's path.
    pub executable_length: u16,
    /// Bytes of the working directory.
    pub cwd_length: u16,
    /// Bytes of the arguments.
    pub arguments_length: u16,
    /// Bytes of the environment.
    pub environment_length: u16,
    /// User before the exec where the kernel says so, else [`u32::MAX`].
    pub previous_euid: u32,
}

/// A file by what makes it that file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FileRecord {
    /// Inode.
    pub inode: u64,
    /// Size, bytes.
    pub size: u64,
    /// Change time, seconds since the epoch.
    pub ctime: u64,
    /// Its nanoseconds.
    pub ctime_nanoseconds: u32,
    /// Device as the kernel keeps it: 12 bits of major, 20 of minor.
    pub device: u32,
    /// Links.
    pub links: u32,
    /// Mode.
    pub mode: u32,
    /// Owner.
    pub owner: u32,
    /// 0.
    pub reserved: u32,
}

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StdioKind {
    /// Closed, or could not be read.
    Unknown = 0,
    /// A file or device.
    Other = 1,
    /// A terminal.
    Terminal = 2,
    /// A pipe.
    Pipe = 3,
    /// An internet socket.
    Socket = 4,
    /// A Unix socket.
    Unix = 5,
}

/// A descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StdioRecord {
    /// Peer of an internet socket; port 0 where it has none.
    pub peer: Address,
    /// [`StdioKind`].
    pub kind: u8,
    /// 0.
    pub reserved: [u8; 3],
}

/// An address with its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Address {
    /// IPv6 address, or an IPv4 address in the first four bytes.
    pub bytes: [u8; 16],
    /// Port, host order.
    pub port: u16,
    /// 4, 6, or 0 where unknown.
    pub family: u16,
}

/// A process was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ForkRecord {
    /// Front; the actor is the parent.
    pub header: Header,
    /// Child's start, nanoseconds since boot.
    pub child_start: u64,
    /// Child's thread-group id.
    pub child_pid: u32,
    /// 0.
    pub reserved: u32,
}

/// A process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ExitRecord {
    /// Front.
    pub header: Header,
    /// Status as wait() gives it.
    pub code: i32,
    /// 0.
    pub reserved: u32,
}

/// A socket was connected, accepted, or began to listen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketRecord {
    /// Front.
    pub header: Header,
    /// This side.
    pub local: Address,
    /// The other side; family 0 for a listener.
    pub remote: Address,
    /// [`TCP`] or [`UDP`].
    pub transport: u8,
    /// 0.
    pub reserved: [u8; 7],
}

/// A DNS message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct DnsRecord {
    /// Front.
    pub header: Header,
    /// The resolver.
    pub server: Address,
    /// The asking side.
    pub client: Address,
    /// Bytes of the message on the wire.
    pub length: u16,
    /// Bytes of it in `payload`.
    pub captured: u16,
    /// 1 from the resolver to the client.
    pub answer: u8,
    /// 0.
    pub reserved: [u8; 3],
    /// The message.
    pub payload: [u8; DNS_PAYLOAD],
}

macro_rules! records {
    ($($name:ident = $size:expr),+ $(,)?) => { $(
        // The sum of the fields: no padding, and the same on both sides.
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: repr(C), integers only, and the size is the sum of the fields.
        unsafe impl Record for $name {}
    )+ };
}

records! {
    Header = 40, ExecRecord = 40 + 48 + 48 + 72 + 16 + 16, ForkRecord = 56, ExitRecord = 48, SocketRecord = 88,
    DnsRecord = 40 + 40 + 8 + 512,
}
const _: () =
    assert!(EXEC_FILENAME + EXEC_INTERPRETER + 2 * (EXEC_PATH + 256) + EXEC_ARGUMENTS + EXEC_ENVIRONMENT <= EXEC_TEXT);
