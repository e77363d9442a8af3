//! What this machine allows. Each check tries the thing itself, not its likely causes.

mod checks;
mod pod;

use crate::workload::kubernetes::Here;
use serde::Serialize;
use std::path::Path;
use tasuki_api::kubernetes::TOKEN_PATH;

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is there.
    Yes,
    /// It is not there.
    No,
    /// It could not be tried.
    Unknown,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// What was found.
    pub verdict: Verdict,
    /// The finding in words.
    pub detail: String,
    /// What it means for the agent where it is missing.
    pub means: &'static str,
    /// What would cure it.
    pub cure: &'static str,
}

/// All checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// One line each.
    pub checks: Vec<Check>,
    /// `ebpf`, `ptrace`, `network` or `none`.
    pub best: &'static str,
}

/// Examines this machine.
pub fn examine() -> Report {
    let mut checks = checks::all();
    checks.extend(pod::check(Here::from_env(|name| std::env::var(name).ok()), Path::new(TOKEN_PATH)));
    let has = |name: &str| checks.iter().any(|check| check.name == name && check.verdict == Verdict::Yes);
    let best = if has("BTF") && has("BPF programs") {
        "ebpf"
    } else if has("ptrace") {
        "ptrace"
    } else if has("packets") {
        "network"
    } else {
        "none"
    };
    Report { checks, best }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_what_it_means_and_what_cures_it() {
        let report = examine();
        assert!(report.checks.len() >= 10);
        for check in &report.checks {
            assert!(!check.detail.is_empty() && !check.means.is_empty() && !check.cure.is_empty(), "{}", check.name);
        }
        assert!(["ebpf", "ptrace", "network", "none"].contains(&report.best));
    }
}
