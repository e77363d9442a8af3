//! What the tracer counts, shared with the sensor's reports.

use crate::sensor::outbox::FamilyCounters;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tasuki_api::agent::FamilyState;

/// Counts since the sensor started.
#[derive(Debug, Default)]
pub struct Report {
    /// Exec, fork, exit and credentials events.
    pub process: FamilyCounters,
    /// Threads that are traced now.
    pub tracees: AtomicU64,
    /// Threads that were ever traced.
    pub seized: AtomicU64,
    /// Processes that no tracee forked.
    pub newcomers: AtomicU64,
    /// Times that the new threads of a process were let go.
    pub shed_threads: AtomicU64,
    /// Times that a whole process was let go.
    pub shed_processes: AtomicU64,
    /// Processes that another process traces, so that this one cannot.
    pub refused_traced: AtomicU64,
    /// Processes that the kernel does not let this one trace (user, Yama, dumpable).
    pub refused_denied: AtomicU64,
    /// Threads that did not fit into the table.
    pub table_full: AtomicU64,
    /// Execs whose process was gone before it could be read.
    pub unread: AtomicU64,
    /// Newcomers are found by scanning only.
    pub blind: AtomicBool,
}

/// Adds one.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Report {
    /// The family that ptrace gives.
    pub fn family(&self) -> FamilyState {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut problems = Vec::new();
        for (counter, what) in [
            (&self.shed_threads, "times new threads of a process were let go: it made too many stops"),
            (&self.shed_processes, "times a process was let go: it made too many stops"),
            (&self.refused_traced, "processes are traced by another process"),
            (&self.refused_denied, "processes may not be traced (user, Yama or dumpable)"),
            (&self.table_full, "threads did not fit into the table"),
            (&self.unread, "execs were over before they could be read"),
        ] {
            if value(counter) > 0 {
                problems.push(format!("{} {what}", value(counter)));
            }
        }
        if self.blind.load(Ordering::Relaxed) {
            problems.push("ns_last_pid cannot be read: newcomers are found by a scan every 50 ms".to_owned());
        }
        FamilyState {
            name: "process".to_owned(),
            hook: "ptrace/exec,fork,exit".to_owned(),
            tier: None,
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
            counters: self.process.snapshot(),
        }
    }
}
