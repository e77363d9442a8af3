//! Finding types: the GuardDuty Runtime Monitoring names, what each needs, and which of them this
//! version cannot give. Severities are in the rules.

use tasuki_api::agent::{FamilyState, Unavailable};

/// One finding type.
#[derive(Clone, Copy, Debug)]
pub struct FindingType {
    /// Name.
    pub name: &'static str,
    /// Event families without which it cannot be seen, all of them.
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
    given("CryptoCurrency:Runtime/BitcoinTool.B", &["network"]),
    given("CryptoCurrency:Runtime/BitcoinTool.B!DNS", &["dns"]),
    given("Backdoor:Runtime/C&CActivity.B", &["network"]),
    given("Backdoor:Runtime/C&CActivity.B!DNS", &["dns"]),
    given("UnauthorizedAccess:Runtime/TorRelay", &["network"]),
    given("UnauthorizedAccess:Runtime/TorClient", &["network"]),
    given("Trojan:Runtime/BlackholeTraffic", &["network"]),
    given("Trojan:Runtime/DropPoint", &["network"]),
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
    given("Execution:Runtime/NewBinaryExecuted", &["process"]),
    missing("Execution:Runtime/NewLibraryLoaded", "no sensor of this version gives the loading of libraries"),
    given("Execution:Runtime/ReverseShell", &["process"]),
    given("Execution:Runtime/SuspiciousTool", &["process"]),
    given("Execution:Runtime/SuspiciousCommand", &["process"]),
    given("Execution:Runtime/MaliciousFileExecuted", &["process"]),
    given("Execution:Runtime/SuspiciousShellCreated", &["process"]),
    given("Impact:Runtime/CryptoMinerExecuted", &["process"]),
    given("DefenseEvasion:Runtime/FilelessExecution", &["process"]),
    missing("DefenseEvasion:Runtime/ProcessInjection.Proc", MEMORY),
    missing("DefenseEvasion:Runtime/ProcessInjection.Ptrace", MEMORY),
    missing("DefenseEvasion:Runtime/ProcessInjection.VirtualMemoryWrite", MEMORY),
    missing("DefenseEvasion:Runtime/PtraceAntiDebugging", MEMORY),
    given("DefenseEvasion:Runtime/SuspiciousCommand", &["process"]),
    missing("DefenseEvasion:Runtime/KernelModuleLoaded", KERNEL),
    given("DefenseEvasion:Runtime/SensitiveFileModified", &["file"]),
    given("Discovery:Runtime/SuspiciousCommand", &["process"]),
    given("Persistence:Runtime/SuspiciousCommand", &["process"]),
    given("Persistence:Runtime/SensitiveFileModified", &["file"]),
    given("PrivilegeEscalation:Runtime/SuspiciousCommand", &["process"]),
    given("PrivilegeEscalation:Runtime/SensitiveFileModified", &["file"]),
    given("PrivilegeEscalation:Runtime/ElevationToRoot", &["process"]),
    missing("PrivilegeEscalation:Runtime/DockerSocketAccessed", UNIX),
    given("PrivilegeEscalation:Runtime/RuncContainerEscape", &["process"]),
    given("PrivilegeEscalation:Runtime/CGroupsReleaseAgentModified", &["file"]),
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
    kind.needs.iter().find_map(|need| {
        let mut of_name = families.iter().filter(|family| family.name == *need).peekable();
        if of_name.peek().is_none() {
            return Some(format!("no sensor in use gives {need} events"));
        }
        // Several sensors may give a family; one that works is enough.
        let problems: Vec<&str> = of_name.map(|family| family.problem.as_deref().unwrap_or("")).collect();
        let broken = problems.iter().all(|problem| !problem.is_empty());
        broken.then(|| format!("{need} events: {}", problems.first().copied().unwrap_or("")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tasuki_api::agent::Counters;

    fn family(name: &str, problem: Option<&str>) -> FamilyState {
        let problem = problem.map(str::to_owned);
        FamilyState { name: name.into(), hook: "test".into(), tier: None, problem, counters: Counters::default() }
    }

    #[test]
    fn a_type_without_its_family_is_unavailable_and_says_why() {
        let of = |families: &[FamilyState], name: &str| {
            unavailable(families).into_iter().find(|one| one.kind == name).map(|one| one.reason)
        };
        let shell = "Execution:Runtime/ReverseShell";
        assert_eq!(of(&[], shell).unwrap(), "no sensor in use gives process events");
        assert_eq!(of(&[family("process", None)], shell), None);
        let broken = [family("process", Some("no BTF"))];
        assert_eq!(of(&broken, shell).unwrap(), "process events: no BTF");
        let second = [family("process", Some("no BTF")), family("process", None)];
        assert_eq!(of(&second, shell), None, "one working source is enough");
        assert!(of(&second, "PrivilegeEscalation:Runtime/UserfaultfdUsage").unwrap().contains("memory"));
        assert_eq!(TYPES.len(), 45);
    }
}
