//! Letting go of processes that stop too often.
//!
//! A stop costs the application 10 to 20 µs. A process that makes more than the limit of a second
//! first loses the tracing of its new threads, then, if the next seconds are no better, all
//! tracing; both for a minute. Each is counted, and shows in the family's `problem`.

use super::report::count;
use super::sys::{self, Tid};
use super::table::{Process, Shed};
use super::tracer::Tracer;
use std::time::Instant;

impl Tracer {
    /// Counts a stop of a process and lets go of it where it makes too many.
    pub(super) fn count_stop(&mut self, tid: Tid, counter: impl FnOnce(&mut Process) -> &mut u32) {
        let second = self.started.elapsed().as_secs();
        let limits = self.limits;
        let Some(process) = self.table.process_of(tid) else { return };
        if process.window != second {
            process.window = second;
            process.signals = 0;
            process.thread_stops = 0;
        }
        *counter(process) += 1;
        if process.signals <= limits.signals_per_second && process.thread_stops <= limits.threads_per_second {
            return;
        }
        process.signals = 0;
        process.thread_stops = 0;
        let until = Instant::now() + limits.shed_for;
        process.shed_until = Some(until);
        let (tgid, key) = (process.key.pid, process.key);
        match process.shed {
            Shed::Nothing => {
                process.shed = Shed::Threads;
                count(&self.report.shed_threads);
            }
            Shed::Threads => {
                process.shed = Shed::Process;
                count(&self.report.shed_processes);
                self.refusals.shed(key, until);
                // Each is detached when it stops.
                for tid in self.table.threads_of(tgid) {
                    let _ = sys::interrupt(tid);
                }
            }
            Shed::Process => {}
        }
        tracing::warn!(pid = tgid, "a process stops too often under tracing: some of it is not traced for a while");
    }

    /// Traces fully again what has been let go for long enough. What was detached whole is found
    /// by the scan.
    pub(super) fn end_shedding(&mut self, now: Instant) {
        let over = |process: &Process| process.shed_until.is_some_and(|until| until <= now);
        let ids: Vec<Tid> =
            self.table.processes.iter().filter(|(_, process)| over(process)).map(|(tgid, _)| *tgid).collect();
        for tgid in ids {
            if let Some(process) = self.table.processes.get_mut(&tgid) {
                process.shed_until = None;
                process.shed = Shed::Nothing;
            }
            // Options can be set at a stop only.
            for tid in self.table.threads_of(tgid) {
                let _ = sys::interrupt(tid);
            }
            self.seize_threads(tgid);
        }
    }
}
