//! Loads and attaches each program on its own: one that this kernel refuses costs only its own
//! event family, and the reason is kept.

use super::btf::Types;
use super::cgroups::{self, Hierarchy};
use super::offsets;
use super::proof;
use super::rings::RingSizes;
use crate::sensor::SensorError;
use aya::programs::{CgroupAttachMode, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use tasuki_probe_abi::{Offsets, Settings};

/// The object that the build script made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tasuki-probes"));

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// A BTF tracepoint of this name.
    Tracepoint(&'static str),
    /// At the start of this kernel function.
    Function(&'static str),
    /// At the root of cgroup version 2.
    Cgroup(&'static str),
}

/// Programs by the names of their functions.
type Programs = &'static [(&'static str, Hook)];

/// Those that are always attached.
const PROGRAMS: Programs = &[
    ("process_fork", Hook::Tracepoint("sched_process_fork")),
    ("process_exec", Hook::Tracepoint("sched_process_exec")),
    ("process_exit", Hook::Tracepoint("sched_process_exit")),
    ("socket_state", Hook::Tracepoint("inet_sock_set_state")),
    ("connect4", Hook::Cgroup("connect4")),
    ("connect6", Hook::Cgroup("connect6")),
    ("sendmsg4", Hook::Cgroup("sendmsg4")),
    ("sendmsg6", Hook::Cgroup("sendmsg6")),
];

/// Where DNS messages are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dns {
    /// Where the kernel sends and hands over datagrams.
    Datagrams,
    /// Among all packets, where the kernel does not let its functions be followed.
    Packets,
}

impl Dns {
    pub(super) const fn programs(self) -> Programs {
        match self {
            Self::Datagrams => &[
                ("sent4", Hook::Function("ip_send_skb")),
                ("sent6", Hook::Function("ip6_send_skb")),
                ("received", Hook::Function("skb_consume_udp")),
            ],
            Self::Packets => &[("packet_out", Hook::Cgroup("skb/egress")), ("packet_in", Hook::Cgroup("skb/ingress"))],
        }
    }
}

/// The programs in the kernel. Dropping it detaches and unloads them all.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) dns: Dns,
    /// Whether at least one program is attached.
    pub(super) any: bool,
    /// Why DNS is looked for among all packets, where that was not asked for.
    pub(super) note: Option<String>,
    /// Per program, why it is not attached.
    pub(super) problems: Vec<(&'static str, String)>,
}

impl Loaded {
    /// Why the program is not attached; `None` where it is.
    pub(super) fn problem(&self, program: &str) -> Option<&str> {
        self.problems.iter().find(|(name, _)| *name == program).map(|(_, reason)| reason.as_str())
    }

    /// How often the kernel left the program out because it was running on that processor already;
    /// 0 where it does not say so (before 5.12).
    pub(super) fn misses(&self, program: &str) -> u64 {
        let Some(descriptor) = self.ebpf.program(program).and_then(|program| program.fd().ok()) else { return 0 };
        let path = format!("/proc/self/fdinfo/{}", descriptor.as_fd().as_raw_fd());
        misses(&std::fs::read_to_string(path).unwrap_or_default())
    }
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain<T>(T);

// SAFETY: `repr(C)` structures of `u32` alone, without padding.
unsafe impl aya::Pod for Plain<Offsets> {}
// SAFETY: `repr(C)`; three `u64` and two `u32`, without padding.
unsafe impl aya::Pod for Plain<Settings> {}

fn unavailable(reason: String) -> SensorError {
    SensorError::Unavailable { sensor: "ebpf", reason }
}

/// Loads the object and attaches every program that the kernel takes.
///
/// # Errors
/// Where there is no BTF, or the maps cannot be made: then nothing would work. A single program's
/// refusal is no error.
pub(super) fn load(
    mut settings: Settings,
    rings: RingSizes,
    hierarchy: &Hierarchy,
    dns: Dns,
) -> Result<Loaded, SensorError> {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    let raw = std::fs::read(BTF).map_err(|error| {
        unavailable(format!(
            "{BTF} cannot be read ({error}): the kernel needs CONFIG_DEBUG_INFO_BTF and the agent /sys"
        ))
    })?;
    let types = Types::parse(&raw).map_err(|error| unavailable(format!("{BTF}: {error}")))?;
    let offsets = offsets::resolve(&types, hierarchy, Path::new("/sys/kernel/btf"));
    drop((raw, types));
    let btf = Btf::from_sys_fs().map_err(|error| unavailable(format!("{BTF}: {error}")))?;

    let mut loaded = attempt(settings, rings, &offsets, &btf, dns)?;
    // Where TCP cannot be seen by its sockets, the cgroup hook sees at least connects.
    if loaded.problem("socket_state").is_some() && loaded.problem("connect4").is_none() {
        settings.tcp_from_cgroup = 1;
        drop(loaded);
        loaded = attempt(settings, rings, &offsets, &btf, dns)?;
    }
    let refused = |loaded: &Loaded| {
        let reason = |(name, _): &(&str, Hook)| Some(format!("{name}: {}", loaded.problem(name)?));
        loaded.dns.programs().iter().filter_map(reason).collect::<Vec<_>>().join("; ")
    };
    let reason = match (loaded.dns, refused(&loaded)) {
        (Dns::Packets, _) => return Ok(loaded),
        (Dns::Datagrams, reason) if !reason.is_empty() => reason,
        (Dns::Datagrams, _) => match proof::datagrams(&loaded.ebpf) {
            Ok(()) => return Ok(loaded),
            Err(reason) => reason,
        },
    };
    tracing::info!(reason, "DNS is looked for among all packets");
    // Not both at once: their rings would take the memory of two.
    drop(loaded);
    let mut packets = attempt(settings, rings, &offsets, &btf, Dns::Packets)?;
    if Dns::Packets.programs().iter().all(|(name, _)| packets.problem(name).is_some()) {
        drop(packets);
        return attempt(settings, rings, &offsets, &btf, dns);
    }
    packets.note = Some(format!("DNS is looked for among all packets, which costs more: {reason}"));
    Ok(packets)
}

fn attempt(
    settings: Settings,
    rings: RingSizes,
    offsets: &Offsets,
    btf: &Btf,
    dns: Dns,
) -> Result<Loaded, SensorError> {
    let (settings, plain) = (Plain(settings), Plain(*offsets));
    let mut ebpf = EbpfLoader::new()
        .btf(Some(btf))
        .override_global("OFFSETS", &plain, true)
        .override_global("SETTINGS", &settings, true)
        .map_max_entries("PROCESS", rings.process)
        .map_max_entries("NETWORK", rings.network)
        .map_max_entries("DNS", rings.dns)
        .load(OBJECT)
        .map_err(|error| unavailable(format!("the kernel did not take the probes' maps: {}", chain(&error))))?;
    let root = cgroups::attach_point();
    let mut problems = Vec::new();
    let mut any = false;
    for &(name, hook) in PROGRAMS.iter().chain(dns.programs()) {
        let missing = offsets::missing(offsets, name);
        let result = if missing.is_empty() {
            attach(&mut ebpf, name, hook, btf, root.as_ref())
        } else {
            Err(format!("this kernel has no field {}", missing.join(", ")))
        };
        match result {
            Ok(()) => any = true,
            Err(reason) => {
                tracing::warn!(program = name, reason, "probe not attached");
                problems.push((name, reason));
            }
        }
    }
    Ok(Loaded { ebpf, dns, any, note: None, problems })
}

fn attach(
    ebpf: &mut Ebpf,
    name: &str,
    hook: Hook,
    btf: &Btf,
    root: Result<&OwnedFd, &std::io::Error>,
) -> Result<(), String> {
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the object has no program {name}"))?;
    let root = || root.map_err(|error| format!("there is no cgroup version 2 root to attach to: {error}"));
    match (program, hook) {
        (Program::BtfTracePoint(program), Hook::Tracepoint(tracepoint)) => {
            patiently(|| program.load(tracepoint, btf)).map_err(|error| reason(&error))?;
            program.attach().map_err(|error| reason(&error))?;
        }
        (Program::FEntry(program), Hook::Function(function)) => {
            patiently(|| program.load(function, btf)).map_err(|error| reason(&error))?;
            program.attach().map_err(|error| reason(&error))?;
        }
        // The mode is of kernels before 5.7: a link, as made since, always stands beside others.
        (Program::CgroupSockAddr(program), Hook::Cgroup(_)) => {
            patiently(|| program.load()).map_err(|error| reason(&error))?;
            program.attach(root()?, CgroupAttachMode::Single).map_err(|error| reason(&error))?;
        }
        (Program::CgroupSkb(program), Hook::Cgroup(which)) => {
            use aya::programs::CgroupSkbAttachType::{Egress, Ingress};
            let direction = if which == "skb/egress" { Egress } else { Ingress };
            patiently(|| program.load()).map_err(|error| reason(&error))?;
            program.attach(root()?, direction, CgroupAttachMode::Single).map_err(|error| reason(&error))?;
        }
        _ => return Err(format!("the object's program {name} is of another kind")),
    }
    Ok(())
}

/// The verifier gives up with EAGAIN where any signal is pending for the thread (do_check() in
/// kernel/bpf/verifier.c); the same program is taken a moment later.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: usize = 5;
    let mut result = load();
    for _ in 1..ATTEMPTS {
        match &result {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == std::io::ErrorKind::WouldBlock => {
                result = load();
            }
            _ => break,
        }
    }
    result
}

/// The refusal, with the last words of the verifier where it spoke.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!(log, "verifier log");
            let mut last: Vec<_> =
                log.lines().rev().filter(|line| !line.starts_with("processed ")).take(3).map(str::trim).collect();
            last.reverse();
            format!("the kernel refused it: {io_error}: {}", last.join("; "))
        }
        other => chain(other),
    }
}

/// What the kernel says of a program's descriptor, in which this number is one of several.
fn misses(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("recursion_misses:")?.trim().parse().ok()).unwrap_or_default()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        out.push_str(": ");
        out.push_str(&source.to_string());
        next = source.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_left_out_is_read() {
        assert_eq!(misses("prog_jited:\t1\nrecursion_misses:\t17\nverified_insns:\t9\n"), 17);
        assert_eq!(misses("prog_jited:\t1\n"), 0, "before 5.12");
    }
}
