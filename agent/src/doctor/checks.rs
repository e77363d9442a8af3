//! The checks themselves.

use super::{Check, Verdict};
use crate::workload::cgroup;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags};
use nix::sys::ptrace;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Stdio};
use tasuki_api::agent::{OLDEST_KERNEL, kernel_version};

pub(super) fn all() -> Vec<Check> {
    vec![
        kernel(),
        btf(),
        programs(),
        functions(),
        filesystem("tracefs", &["/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events"]),
        filesystem("bpffs", &["/sys/fs/bpf"]),
        cgroups(),
        host(),
        fanotify(),
        traced(),
        packets(),
        capabilities(),
        memory(),
        containers(),
    ]
}

fn check(
    name: &'static str,
    verdict: Verdict,
    detail: impl Into<String>,
    means: &'static str,
    cure: &'static str,
) -> Check {
    Check { name, verdict, detail: detail.into(), means, cure }
}

const fn verdict(yes: bool) -> Verdict {
    if yes { Verdict::Yes } else { Verdict::No }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Check {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    check(
        "kernel",
        verdict(kernel_version(&release) >= OLDEST_KERNEL),
        release,
        "the ebpf sensor needs Linux 5.10 or later",
        "use an AMI with a later kernel, such as Amazon Linux 2023",
    )
}

fn btf() -> Check {
    let there = Path::new("/sys/kernel/btf/vmlinux").exists();
    let detail = if there { "the kernel describes its types" } else { "/sys/kernel/btf/vmlinux is missing" };
    check(
        "BTF",
        verdict(there),
        detail,
        "the ebpf sensor cannot know where the kernel keeps its fields",
        "a kernel built with CONFIG_DEBUG_INFO_BTF; in a container, mount /sys",
    )
}

fn say(kind: aya::programs::ProgramType) -> (bool, String) {
    match aya::sys::is_program_supported(kind) {
        Ok(true) => (true, "load".to_owned()),
        Ok(false) => (false, "are refused".to_owned()),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            (false, format!("are refused ({error}{cause})"))
        }
    }
}

/// Typed tracepoints need what raw ones need and BTF, which is checked apart.
fn programs() -> Check {
    use aya::programs::ProgramType;
    let (tracepoints, of_tracepoints) = say(ProgramType::RawTracePoint);
    let (_, of_cgroups) = say(ProgramType::CgroupSockAddr);
    check(
        "BPF programs",
        verdict(tracepoints),
        format!("tracepoint programs {of_tracepoints}, cgroup programs {of_cgroups}"),
        "the ebpf sensor cannot be used",
        "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (or CAP_SYS_ADMIN), and a kernel lockdown that is not `confidentiality`",
    )
}

fn functions() -> Check {
    let (loads, detail) = say(aya::programs::ProgramType::Tracing);
    check(
        "BPF on functions",
        verdict(loads),
        format!("fentry programs {detail}"),
        "DNS is looked for among all packets, at 1 to 2 % of a busy server's time; files, memory and namespaces are seen by the other hooks only (tier 0), and some finding types are unavailable",
        "a kernel without lockdown (`cat /sys/kernel/security/lockdown`)",
    )
}

fn filesystem(name: &'static str, places: &[&str]) -> Check {
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let kind = if name == "bpffs" { " - bpf " } else { " - tracefs " };
    let mounted = mounts.contains(kind) || (name == "tracefs" && places.iter().any(|place| Path::new(place).exists()));
    check(
        name,
        verdict(mounted),
        if mounted { "mounted" } else { "not mounted" },
        "the agent mounts one of its own where it may (CAP_SYS_ADMIN); else syscall tracepoints or pinning are missing",
        "mount it on the host, or give the agent CAP_SYS_ADMIN",
    )
}

fn cgroups() -> Check {
    let roots = cgroup::Cgroups::of_this_machine();
    let places: Vec<String> = roots.roots().iter().map(|root| root.display().to_string()).collect();
    check(
        "cgroups",
        verdict(!places.is_empty()),
        if places.is_empty() {
            "no pids, memory or unified hierarchy is mounted".to_owned()
        } else {
            places.join(", ")
        },
        "events cannot be given a container by their cgroup",
        "mount the host's /sys/fs/cgroup into the agent's container, read-only",
    )
}

fn host() -> Check {
    let sees = cgroup::sees_host();
    check(
        "host processes",
        verdict(sees),
        if sees { "the agent shares the host's process ids" } else { "the agent has process ids of its own" },
        "right in a sidecar; on a node the agent is blind for other containers",
        "on a node: pidMode host (ECS), hostPID: true (Kubernetes)",
    )
}

fn fanotify() -> Check {
    let result = Fanotify::init(InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC, EventFFlags::O_RDONLY);
    check(
        "fanotify",
        verdict(result.is_ok()),
        result.map_or_else(|error| error.to_string(), |_| "may be used".to_owned()),
        "who writes a file is not seen; new programs are told by the overlay's upper layer or by ctime only",
        "CAP_SYS_ADMIN",
    )
}

fn traced() -> Check {
    let name = "ptrace";
    let means = "the ptrace sensor cannot be used; in a sidecar only the network is seen";
    let cure = "linuxParameters.capabilities.add SYS_PTRACE and pidMode task, user 0 (ECS on Fargate)";
    let Ok(mut child) = Command::new("/proc/self/exe").arg("--version").stdout(Stdio::null()).spawn() else {
        return check(name, Verdict::Unknown, "no process could be started to try it on", means, cure);
    };
    let seized = i32::try_from(child.id()).map_or(Err(nix::Error::ESRCH), |pid| {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty())
    });
    // Tracing ends with the child; what it printed is not wanted.
    let _ = child.kill();
    let _ = child.wait();
    // That a child may be traced says little under Yama or without the capability.
    let capable = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_PTRACE).unwrap_or(false);
    let detail = match (&seized, capable) {
        (Ok(()), true) => "may be used on every process that is visible".to_owned(),
        (Ok(()), false) => "works on the agent's own children only: CAP_SYS_PTRACE is missing".to_owned(),
        (Err(error), _) => error.to_string(),
    };
    check(name, verdict(seized.is_ok() && capable), detail, means, cure)
}

fn packets() -> Check {
    let result = socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    check(
        "packets",
        verdict(result.is_ok()),
        result.map_or_else(|error| error.to_string(), |_| "AF_PACKET may be used".to_owned()),
        "the network sensor cannot be used",
        "CAP_NET_RAW (a default on Fargate; do not drop it)",
    )
}

fn capabilities() -> Check {
    let held = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
    let mut names: Vec<String> = held.iter().map(ToString::to_string).collect();
    names.sort();
    let priority = held.contains(&caps::Capability::CAP_SYS_NICE);
    let list = if names.is_empty() { "none".to_owned() } else { names.join(" ").replace("CAP_", "") };
    check(
        "capabilities",
        verdict(priority),
        list,
        "without SYS_NICE the agent cannot raise its priority, and a storm in a container can starve it",
        "add SYS_NICE to the agent's capabilities",
    )
}

fn memory() -> Check {
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| read(path)?.parse::<u64>().ok())
        .filter(|limit| *limit < 1 << 60);
    let detail = limit.map_or_else(|| "no limit is set".to_owned(), |limit| format!("{} MiB", limit >> 20));
    check(
        "memory",
        verdict(limit.is_none_or(|limit| limit >= 64 << 20)),
        detail,
        "kernel rings count against it and shrink to fit; below 64 MiB they may not fit at all",
        "give the agent 128 MiB",
    )
}

fn containers() -> Check {
    let seen = procfs::process::all_processes().map_or(0, |all| {
        let ids = all
            .flatten()
            .take(65_536)
            .filter_map(|process| cgroup::of_process(u32::try_from(process.pid()).ok()?).map(|container| container.id));
        ids.collect::<std::collections::HashSet<_>>().len()
    });
    check(
        "containers",
        if seen > 0 { Verdict::Yes } else { Verdict::Unknown },
        format!("{seen} with processes that are visible from here"),
        "nothing runs here now, or the agent does not see the host's processes",
        "start a task, or see `host processes`",
    )
}
