//! docs/reference/finding-types.md, from the types and the built-in rules.

use super::rules::Rule;
use super::types::{FindingType, TYPES};
use std::fmt::Write as _;
use std::sync::Arc;

/// What the types mean that have no rule to say it (GuardDuty user guide, findings-runtime-monitoring).
const WITHOUT_RULE: &[(&str, &str)] = &[
    ("Execution:Runtime/NewLibraryLoaded", "Library loaded that was written after the container's start"),
    ("DefenseEvasion:Runtime/ProcessInjection.Proc", "Memory of another process written through /proc"),
    ("DefenseEvasion:Runtime/ProcessInjection.Ptrace", "Code put into another process with ptrace"),
    (
        "DefenseEvasion:Runtime/ProcessInjection.VirtualMemoryWrite",
        "Memory of another process written with process_vm_writev",
    ),
    ("DefenseEvasion:Runtime/PtraceAntiDebugging", "Process that traces itself, so that no debugger can"),
    ("DefenseEvasion:Runtime/KernelModuleLoaded", "Kernel module loaded"),
    ("PrivilegeEscalation:Runtime/DockerSocketAccessed", "Container engine's socket reached from a container"),
    (
        "PrivilegeEscalation:Runtime/ContainerMountsHostDirectory",
        "Directory of the host mounted from inside a container",
    ),
    ("PrivilegeEscalation:Runtime/UserfaultfdUsage", "userfaultfd used, which makes races in the kernel winnable"),
];

/// The page.
pub fn page(rules: &[&Arc<Rule>]) -> String {
    let given = TYPES.iter().filter(|kind| kind.missing.is_empty()).count();
    let mut page = format!(
        "# Finding types\n\n\
         <!-- Generated from agent/src/detect/types.rs and agent/rules by `tasuki-agent rules types`; a test keeps it current. -->\n\n\
         The names are those of GuardDuty Runtime Monitoring, so that playbooks need a changed source and no new logic. Of {} types,\n\
         this version gives {given}. A type is given where a sensor in use gives every kind of event that it needs\n\
         (`tasuki-agent doctor`); where one is missing, heartbeat and coverage say so. Types that rest on lists (`connect` and most\n\
         `dns` types, MaliciousFileExecuted) find what a `ThreatList` names: no list of addresses is built in. Rules of your own give\n\
         `Custom:Runtime/…`.\n\n\
         | type | severity | needs | what was seen |\n|---|---|---|---|\n",
        TYPES.len()
    );
    for kind in TYPES {
        let of_type: Vec<_> = rules.iter().filter(|rule| rule.kind == kind.name).collect();
        let mut severities: Vec<String> = of_type.iter().map(|rule| format!("{:?}", rule.severity)).collect();
        severities.dedup();
        let titles: Vec<&str> = of_type.iter().map(|rule| rule.title.as_str()).collect();
        let needs = if kind.missing.is_empty() { kind.needs.join(", ") } else { "**not given**".to_owned() };
        let severity = if severities.is_empty() { "–".to_owned() } else { severities.join(", ") };
        let meaning = if titles.is_empty() { meaning(kind).to_owned() } else { titles.join("; ") };
        let why = if kind.missing.is_empty() { String::new() } else { format!(". Not given: {}", kind.missing) };
        // Writing to a String cannot fail.
        let _ = writeln!(page, "| `{}` | {severity} | {needs} | {meaning}{why} |", kind.name);
    }
    page
}

fn meaning(kind: &FindingType) -> &'static str {
    WITHOUT_RULE.iter().find(|(name, _)| *name == kind.name).map_or("", |(_, meaning)| meaning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Engine;

    #[test]
    fn the_reference_page_is_the_types_and_their_rules() {
        let engine = Engine::compile(&tasuki_api::agent::Policy::default()).unwrap();
        let rules = engine.rules();
        for kind in TYPES {
            let has_rule = rules.iter().any(|rule| rule.kind == kind.name);
            assert_eq!(has_rule, kind.missing.is_empty(), "{}: a rule and `missing` exclude each other", kind.name);
            assert!(has_rule || !meaning(kind).is_empty(), "{} says nowhere what it means", kind.name);
        }
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/finding-types.md");
        let on_disk = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            on_disk == page(&rules),
            "docs/reference/finding-types.md is stale: tasuki-agent rules types > docs/reference/finding-types.md"
        );
    }
}
