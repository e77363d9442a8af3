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

/// Per program, why it is not attached.
type Problems = Vec<(&'static str, String)>;

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
    /// Why DNS is looked for among all packets, where that was not asked for.
    pub(super) note: Option<String>,
    pub(super) problems: Problems,
}

impl Loaded {
    /// Why the program is not attached; `None` where it is.
    pub(super) fn problem(&self, program: &str) -> Option<&str> {
        self.problems.iter().find(|(name, _)| *name == program).map(|(_, reason)| reason.as_str())
    }

    /// Whether no program is attached.
    pub(super) fn is_nothing(&self) -> bool {
        self.problems.len() == PROGRAMS.len() + self.dns.programs().len()
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

    let first = attempt(settings, rings, &offsets, &btf, dns)?;
    // Where TCP cannot be seen by its sockets, the cgroup hook sees at least connects.
    if first.problem("socket_state").is_some() && first.problem("connect4").is_none() {
        settings.tcp_from_cgroup = 1;
        drop(first);
        return attempt(settings, rings, &offsets, &btf, dns);
    }
    Ok(first)
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
    let attach = |ebpf: &mut Ebpf, programs: Programs| -> Problems {
        let one = |&(name, hook): &(&'static str, Hook)| {
            let missing = offsets::missing(offsets, name);
            let result = if missing.is_empty() {
                attach(ebpf, name, hook, btf, root.as_ref())
            } else {
                Err(format!("this kernel has no field {}", missing.join(", ")))
            };
            Some((name, result.err()?))
        };
        programs.iter().filter_map(one).collect()
    };
    let mut problems = attach(&mut ebpf, PROGRAMS);
    let mut refused = attach(&mut ebpf, dns.programs());
    let (mut way, mut note) = (dns, None);
    let reason = match dns {
        Dns::Packets => None,
        Dns::Datagrams => match refused.first() {
            Some((name, reason)) => Some(format!("{name}: {reason}")),
            None => proof::datagrams(&ebpf).err(),
        },
    };
    if let Some(reason) = reason {
        let packets = Dns::Packets.programs();
        let others = attach(&mut ebpf, packets);
        // What there is of the one way is better than nothing of the other.
        if others.len() < packets.len() {
            for (name, _) in dns.programs() {
                if let Some(Program::FEntry(program)) = ebpf.program_mut(name) {
                    // Fails where the kernel has refused it: then there is nothing to unload.
                    let _ = program.unload();
                }
            }
            (way, refused) = (Dns::Packets, others);
            note = Some(format!("DNS is looked for among all packets, which costs more: {reason}"));
        }
    }
    problems.extend(refused);
    for (program, reason) in &problems {
        tracing::warn!(program, reason, "probe not attached");
    }
    if let Some(note) = &note {
        tracing::info!("{note}");
    }
    Ok(Loaded { ebpf, dns: way, note, problems })
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
