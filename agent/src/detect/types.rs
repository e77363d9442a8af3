//! Finding types: the GuardDuty Runtime Monitoring names, what each needs, and which of them this
//! version cannot give. Severities are in the rules.

use tasuki_api::agent::{FamilyState, Unavailable};

/// One finding type.
#[derive(Clone, Copy, Debug)]
pub struct FindingType {
    /// Name.
    pub name: &'static str,
    /// Events without which it cannot be seen, all of them: `exec`, `connect`, `dns`, `file`, `cgroup_file`.
    pub needs: &'static [&'static str],
    /// Why no sensor or rule of this version gives it; empty where one does.
    pub missing: &'static str,
}

const fn given(name: &'static str, needs: &'static [&'static str]) -> FindingType {
    FindingType { name, needs, missing: "" }
}
const fn missing(name: &'static str, missing: &'static str) -> FindingType {
    FindingType { name, needs: &[], missing }
}

const MEMORY: &str = "no sensor of this version gives memory, ptrace or process_vm events";
const UNIX: &str = "no sensor of this version gives Unix socket connections";
const KERNEL: &str = "no sensor of this version gives kernel events (module load, mount)";

/// Every type of GuardDuty Runtime Monitoring (user guide, findings-runtime-monitoring).
pub const TYPES: &[FindingType] = &[
    given("CryptoCurrency:Runtime/BitcoinTool.B", &["connect"]),
    given("CryptoCurrency:Runtime/BitcoinTool.B!DNS", &["dns"]),
    given("Backdoor:Runtime/C&CActivity.B", &["connect"]),
    given("Backdoor:Runtime/C&CActivity.B!DNS", &["dns"]),
    given("UnauthorizedAccess:Runtime/TorRelay", &["connect"]),
    given("UnauthorizedAccess:Runtime/TorClient", &["connect"]),
    given("Trojan:Runtime/BlackholeTraffic", &["connect"]),
    given("Trojan:Runtime/DropPoint", &["connect"]),
    given("Trojan:Runtime/BlackholeTraffic!DNS", &["dns"]),
    given("Trojan:Runtime/DropPoint!DNS", &["dns"]),
    given("Trojan:Runtime/DGADomainRequest.C!DNS", &["dns"]),
    given("Trojan:Runtime/DriveBySourceTraffic!DNS", &["dns"]),
    given("Trojan:Runtime/PhishingDomainRequest!DNS", &["dns"]),
    given("Impact:Runtime/AbusedDomainRequest.Reputation", &["dns"]),
    given("Impact:Runtime/BitcoinDomainRequest.Reputation", &["dns"]),
    given("Impact:Runtime/MaliciousDomainRequest.Reputation", &["dns"]),
    given("Impact:Runtime/SuspiciousDomainRequest.Reputation", &["dns"]),
    given("UnauthorizedAccess:Runtime/MetadataDNSRebind", &["dns"]),
    given("Execution:Runtime/NewBinaryExecuted", &["exec"]),
    missing("Execution:Runtime/NewLibraryLoaded", "no sensor of this version gives the loading of libraries"),
    given("Execution:Runtime/ReverseShell", &["exec"]),
    given("Execution:Runtime/SuspiciousTool", &["exec"]),
    given("Execution:Runtime/SuspiciousCommand", &["exec"]),
    given("Execution:Runtime/MaliciousFileExecuted", &["exec"]),
    given("Execution:Runtime/SuspiciousShellCreated", &["exec"]),
    given("Impact:Runtime/CryptoMinerExecuted", &["exec"]),
    given("DefenseEvasion:Runtime/FilelessExecution", &["exec"]),
    missing("DefenseEvasion:Runtime/ProcessInjection.Proc", MEMORY),
    missing("DefenseEvasion:Runtime/ProcessInjection.Ptrace", MEMORY),
    missing("DefenseEvasion:Runtime/ProcessInjection.VirtualMemoryWrite", MEMORY),
    missing("DefenseEvasion:Runtime/PtraceAntiDebugging", MEMORY),
    given("DefenseEvasion:Runtime/SuspiciousCommand", &["exec"]),
    missing("DefenseEvasion:Runtime/KernelModuleLoaded", KERNEL),
    given("DefenseEvasion:Runtime/SensitiveFileModified", &["file"]),
    given("Discovery:Runtime/SuspiciousCommand", &["exec"]),
    given("Persistence:Runtime/SuspiciousCommand", &["exec"]),
    given("Persistence:Runtime/SensitiveFileModified", &["file"]),
    given("PrivilegeEscalation:Runtime/SuspiciousCommand", &["exec"]),
    given("PrivilegeEscalation:Runtime/SensitiveFileModified", &["file"]),
    given("PrivilegeEscalation:Runtime/ElevationToRoot", &["exec"]),
    missing("PrivilegeEscalation:Runtime/DockerSocketAccessed", UNIX),
    given("PrivilegeEscalation:Runtime/RuncContainerEscape", &["exec"]),
    given("PrivilegeEscalation:Runtime/CGroupsReleaseAgentModified", &["cgroup_file"]),
    missing("PrivilegeEscalation:Runtime/ContainerMountsHostDirectory", KERNEL),
    missing("PrivilegeEscalation:Runtime/UserfaultfdUsage", MEMORY),
];

/// A type by its name.
pub fn find(name: &str) -> Option<&'static FindingType> {
    TYPES.iter().find(|kind| kind.name == name)
}

/// Types that cannot be seen with these event families, and why.
pub fn unavailable(families: &[FamilyState]) -> Vec<Unavailable> {
    TYPES
        .iter()
        .filter_map(|kind| Some(Unavailable { kind: kind.name.to_owned(), reason: reason(kind, families)? }))
        .collect()
}

fn reason(kind: &FindingType, families: &[FamilyState]) -> Option<String> {
    if !kind.missing.is_empty() {
        return Some(kind.missing.to_owned());
    }
    kind.needs.iter().find_map(|need| absent(need, families))
}

/// Why nothing gives these events; `None` where something does, perhaps with losses.
pub fn absent(event: &str, families: &[FamilyState]) -> Option<String> {
    let mut giving = families.iter().filter(|family| gives(&family.name, event)).peekable();
    if giving.peek().is_none() {
        return Some(format!("no sensor in use gives {event} events"));
    }
    // Several sensors may give them; one with a hook is enough. A problem beside a hook is a loss,
    // which has counters of its own, and not blindness.
    let mut reasons = Vec::new();
    for family in giving {
        if !family.hook.is_empty() {
            return None;
        }
        reasons.extend(family.problem.as_deref());
    }
    Some(format!("{event} events: {}", reasons.join("; ")))
}

/// Whether a sensor's family has these events in it: the sidecar's sensors have one family, and one
/// balance, for what the kernel's programs count apart.
fn gives(family: &str, event: &str) -> bool {
    family == event
        || match family {
            "process" => matches!(event, "exec" | "fork" | "exit"),
            "network" => matches!(event, "connect" | "accept" | "listen"),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tasuki_api::agent::Counters;

    fn family(name: &str, hook: &str, problem: Option<&str>) -> FamilyState {
        let problem = problem.map(str::to_owned);
        FamilyState { name: name.into(), hook: hook.into(), tier: None, problem, counters: Counters::default() }
    }

    fn of(families: &[FamilyState], name: &str) -> Option<String> {
        unavailable(families).into_iter().find(|one| one.kind == name).map(|one| one.reason)
    }

    #[test]
    fn a_type_without_its_events_is_unavailable_and_says_why() {
        let shell = "Execution:Runtime/ReverseShell";
        assert_eq!(of(&[], shell).unwrap(), "no sensor in use gives exec events");
        assert_eq!(of(&[family("exec", "tp_btf", None)], shell), None);
        let missing = family("exec", "", Some("no BTF"));
        assert_eq!(of(std::slice::from_ref(&missing), shell).unwrap(), "exec events: no BTF");
        let second = [missing, family("process", "ptrace", None)];
        assert_eq!(of(&second, shell), None, "one working source is enough");
        let lossy = [family("process", "ptrace", Some("2 execs were over before they could be read"))];
        assert_eq!(of(&lossy, shell), None, "a loss is no blindness");
        assert!(of(&second, "PrivilegeEscalation:Runtime/UserfaultfdUsage").unwrap().contains("memory"));
        assert_eq!(TYPES.len(), 45);
    }

    /// What cannot be seen with sensors whose families have these names.
    fn blind(names: &[&str]) -> Vec<String> {
        let families: Vec<_> = names.iter().map(|name| family(name, "hook", None)).collect();
        unavailable(&families).into_iter().map(|one| one.kind).collect()
    }

    #[test]
    fn a_node_and_a_sidecar_lack_what_is_not_built_and_no_more() {
        let not_built: Vec<_> = TYPES.iter().filter(|kind| !kind.missing.is_empty()).map(|kind| kind.name).collect();
        assert_eq!(not_built.len(), 9);
        let expected = |more: &[&'static str]| -> Vec<String> {
            let lacks = |name: &&str| not_built.contains(name) || more.contains(name);
            TYPES.iter().map(|kind| kind.name).filter(lacks).map(str::to_owned).collect()
        };
        let release_agent = "PrivilegeEscalation:Runtime/CGroupsReleaseAgentModified";
        let ebpf = ["exec", "fork", "exit", "connect", "accept", "listen", "dns"];
        assert_eq!(blind(&[&ebpf[..], &["file"]].concat()), expected(&[release_agent]));
        assert_eq!(blind(&["process", "network", "dns", "file"]), expected(&[release_agent]));
        let files: Vec<&str> = TYPES.iter().filter(|kind| kind.needs == ["file"]).map(|kind| kind.name).collect();
        assert_eq!(files.len(), 3);
        assert_eq!(blind(&ebpf), expected(&[&files[..], &[release_agent]].concat()), "without fanotify");
    }
}
