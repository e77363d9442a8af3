//! Records of the probes to events. Sizes and versions are checked here, so that nothing that the
//! ring holds can panic the agent or be misread.

use crate::event::{
    CgroupId, Connect, Credentials, DnsPacket, Event, EventKind, Exec, FileId, ProcessKey, Stdio, Transport,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tasuki_probe_abi::{
    Actor, Address, DNS_PAYLOAD, DnsRecord, ExecRecord, ExitRecord, FileRecord, ForkRecord, Header, Kind, Record,
    SocketRecord, StdioKind, StdioRecord, TCP, UDP, VERSION, exec_flags,
};

/// Why a record was refused. Both sides are built together, so this is a defect, and is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DecodeError {
    /// Fewer bytes than the record says or needs.
    #[error("a record has {got} bytes and should have {want}")]
    Size { got: usize, want: usize },
    /// Another layout.
    #[error("a record has version {0}, this agent knows {VERSION}")]
    Version(u16),
    /// Not a kind that is known, or not whole in itself.
    #[error("a record of kind {0} makes no sense")]
    Content(u16),
}

fn take<T: Record>(bytes: &[u8]) -> Result<T, DecodeError> {
    T::from_prefix(bytes).ok_or(DecodeError::Size { got: bytes.len(), want: size_of::<T>() })
}

/// A record of a fixed size: exactly so many bytes.
fn exact<T: Record>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() != size_of::<T>() {
        return Err(DecodeError::Size { got: bytes.len(), want: size_of::<T>() });
    }
    take(bytes)
}

/// Decodes one record.
pub(super) fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    let header: Header = take(bytes)?;
    if header.version != VERSION {
        return Err(DecodeError::Version(header.version));
    }
    if header.size as usize != bytes.len() {
        return Err(DecodeError::Size { got: bytes.len(), want: header.size as usize });
    }
    let content = DecodeError::Content(header.kind);
    let kind = match Kind::from_number(header.kind).ok_or(content)? {
        Kind::Exec => exec(bytes)?,
        Kind::Fork => {
            let record: ForkRecord = exact(bytes)?;
            EventKind::Fork { child: ProcessKey::new(record.child_pid, record.child_start) }
        }
        Kind::Exit => EventKind::Exit { code: exact::<ExitRecord>(bytes)?.code },
        kind @ (Kind::Connect | Kind::Accept) => {
            let record: SocketRecord = exact(bytes)?;
            let connect = Connect {
                transport: transport(record.transport).ok_or(content)?,
                // The port is chosen after the connect was asked for: unknown then.
                local: socket_address(&record.local).filter(|address| address.port() != 0),
                remote: socket_address(&record.remote).ok_or(content)?,
            };
            if kind == Kind::Connect { EventKind::Connect(connect) } else { EventKind::Accept(connect) }
        }
        Kind::Listen => {
            let record: SocketRecord = exact(bytes)?;
            EventKind::Listen {
                transport: transport(record.transport).ok_or(content)?,
                local: socket_address(&record.local).ok_or(content)?,
            }
        }
        Kind::Dns => {
            let record: DnsRecord = exact(bytes)?;
            let captured = usize::from(record.captured).min(DNS_PAYLOAD);
            EventKind::Dns(Box::new(DnsPacket {
                server: socket_address(&record.server).ok_or(content)?,
                client: socket_address(&record.client).ok_or(content)?.ip(),
                answer: record.answer != 0,
                payload: record.payload[..captured].to_vec(),
            }))
        }
    };
    Ok(Event { time: header.time, process: actor(&header.actor), cgroup: cgroup(&header.actor), kind })
}

fn actor(actor: &Actor) -> Option<ProcessKey> {
    (actor.pid != 0).then(|| ProcessKey::new(actor.pid, actor.start))
}

fn cgroup(actor: &Actor) -> Option<CgroupId> {
    (actor.cgroup != 0).then_some(CgroupId(actor.cgroup))
}

fn transport(number: u8) -> Option<Transport> {
    match number {
        TCP => Some(Transport::Tcp),
        UDP => Some(Transport::Udp),
        _ => None,
    }
}

/// IPv4 addresses inside IPv6 (`::ffff:a.b.c.d`) become IPv4: the same peer is the same fact.
fn socket_address(address: &Address) -> Option<SocketAddr> {
    let [a, b, c, d, ..] = address.bytes;
    let ip = match address.family {
        4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        6 => IpAddr::V6(Ipv6Addr::from(address.bytes)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, address.port))
}

/// Cuts the packed text into its parts.
struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    fn part(&mut self, length: u16) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(part)
    }
}

fn lossy(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Texts one after the other, each ended by NUL; the last one may have lost its end mark.
fn list(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    if bytes.is_empty() {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|one| String::from_utf8_lossy(one).into_owned()).collect()
}

/// A path whose components come from the leaf up. A part that could not be walked is shown as `…`.
fn path(bytes: &[u8], cut: bool) -> Option<String> {
    let components = list(bytes);
    if components.is_empty() {
        return (!cut).then(|| "/".to_owned());
    }
    let mut out = String::with_capacity(bytes.len() + 4);
    if cut {
        out.push_str("/…");
    }
    for component in components.iter().rev() {
        out.push('/');
        out.push_str(component);
    }
    Some(out)
}

fn exec(bytes: &[u8]) -> Result<EventKind, DecodeError> {
    let record: ExecRecord = take(bytes)?;
    let content = DecodeError::Content(record.header.kind);
    let mut text = Text(&bytes[size_of::<ExecRecord>()..]);
    let filename = text.part(record.filename_length).ok_or(content)?;
    let _interpreter = text.part(record.interpreter_length).ok_or(content)?;
    let executable = text.part(record.executable_length).ok_or(content)?;
    let cwd = text.part(record.cwd_length).ok_or(content)?;
    let arguments = text.part(record.arguments_length).ok_or(content)?;
    let environment = text.part(record.environment_length).ok_or(content)?;
    if !text.0.is_empty() {
        return Err(content);
    }
    let flag = |flag: u32| record.flags & flag != 0;
    let filename = lossy(filename);
    let file = file(&record.file, record.flags);
    // memfd and shared memory live on a mount that only the kernel has; nothing links to them.
    let memfd = flag(exec_flags::KERNEL_MOUNT) || file.links == 0;
    let executable = path(executable, flag(exec_flags::EXECUTABLE_CUT)).map(|mut path| {
        if file.links == 0 {
            path.push_str(" (deleted)");
        }
        path
    });
    Ok(EventKind::Exec(Box::new(Exec {
        parent: ProcessKey::new(record.parent_pid, record.parent_start),
        namespace_pid: record.namespace_pid,
        executable,
        script: flag(exec_flags::SCRIPT).then(|| filename.clone()),
        filename,
        arguments: list(arguments),
        truncated: flag(exec_flags::TRUNCATED),
        cwd: path(cwd, flag(exec_flags::CWD_CUT)),
        environment: loader_variables(environment),
        credentials: Credentials {
            uid: record.uid,
            euid: record.euid,
            gid: record.gid,
            capabilities: record.capabilities,
        },
        previous_euid: previous_euid(&record),
        file: Some(file),
        memfd,
        stdio: record.stdio.map(|one| stdio(&one)),
        mount_namespace: u64::from(record.mount_namespace),
        pid_namespace: u64::from(record.pid_namespace),
        name: lossy(&record.name),
    })))
}

/// Where the kernel did not say: a set-user-id file that gave its owner's rights leaves the real
/// user as it was; any other exec leaves the effective user as it was.
fn previous_euid(record: &ExecRecord) -> u32 {
    const SET_USER_ID: u32 = 0o4000;
    if record.previous_euid != u32::MAX {
        record.previous_euid
    } else if record.file.mode & SET_USER_ID != 0 && record.file.owner == record.euid {
        record.uid
    } else {
        record.euid
    }
}

fn loader_variables(bytes: &[u8]) -> Vec<(String, String)> {
    list(bytes)
        .iter()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| matches!(*name, "LD_PRELOAD" | "LD_LIBRARY_PATH"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn file(record: &FileRecord, flags: u32) -> FileId {
    // 12 bits of major and 20 of minor (include/linux/kdev_t.h), to what stat() gives.
    let device = libc::makedev(record.device >> 20, record.device & 0xf_ffff);
    let seconds = i64::from_ne_bytes(record.ctime.to_ne_bytes());
    FileId {
        device,
        inode: record.inode,
        ctime: seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(record.ctime_nanoseconds)),
        size: record.size,
        links: record.links,
        mode: record.mode,
        owner: record.owner,
        upper: (flags & exec_flags::OVERLAY != 0).then_some(flags & exec_flags::UPPER != 0),
    }
}

fn stdio(record: &StdioRecord) -> Stdio {
    const OTHER: u8 = StdioKind::Other as u8;
    const TERMINAL: u8 = StdioKind::Terminal as u8;
    const PIPE: u8 = StdioKind::Pipe as u8;
    const SOCKET: u8 = StdioKind::Socket as u8;
    const UNIX: u8 = StdioKind::Unix as u8;
    match record.kind {
        OTHER => Stdio::Other,
        TERMINAL => Stdio::Terminal,
        PIPE => Stdio::Pipe,
        SOCKET => Stdio::Socket(socket_address(&record.peer).filter(|peer| peer.port() != 0)),
        UNIX => Stdio::Unix,
        _ => Stdio::Unknown,
    }
}
