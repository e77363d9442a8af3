//! The tracer thread: every stop of every tracee is answered here.
//!
//! ```text
//!                    seize
//!   process ──────────────────────▶ runs ◀──────────────┐ resume
//!                                   │ stops:            │
//!                                   ├─ signal ──────────┤ (delivered unchanged)
//!                                   ├─ fork, clone ─────┤ Fork event, child is traced by itself
//!                                   ├─ exec ────────────┤ read, Exec event
//!                                   ├─ group-stop ─▶ LISTEN, until SIGCONT
//!                                   └─ too often ─▶ detached for a minute
//!                                   ends ─▶ Exit event
//! ```
//!
//! **Guarantees.** A stopped tracee waits for nothing but its own reading: no network, no full pipeline, no lock but the
//! outbox's, which is held for a hand-over that does not wait. Every error of a request on a tracee means that it was killed meanwhile, and its
//! end is heard by the next wait(). **Assumptions.** Everything runs on one thread, which ptrace
//! demands.

use super::affinity::Affinity;
use super::exec::{self, Known};
use super::newcomers::{Look, Newcomers};
use super::report::{Report, count};
use super::sys::{self, ALL_OPTIONS, FEW_OPTIONS, Ticker, Tid, Wait};
use super::table::{Process, Shed, Table, Thread};
use super::watchdog::Heartbeat;
use super::{Limits, seize::Refusals};
use crate::event::{Credentials, Event, EventKind, ProcessKey};
use crate::sensor::outbox::{Outbox, boottime};
use crate::sensor::proc::{self, Stat, Status};
use crate::workload::cgroup::namespace_of;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the tracer beats and looks for newcomers.
pub const TICK: Duration = Duration::from_millis(20);
/// The same once nothing has happened for [`CALM`]: each wake-up costs about as much as a stop.
const IDLE_TICK: Duration = Duration::from_millis(80);
/// In a burst events are handed over together, and wait so long at most: each hand-over wakes another thread, while
/// what stops next waits.
const GATHER: Duration = Duration::from_millis(2);
/// So long without a stop or a newcomer, the tracer idles.
const CALM: Duration = Duration::from_secs(1);
/// A newcomer that has not run another program by then is told as it was found. Container runtimes
/// show themselves for a moment before they become the application.
const FOUND_AFTER: Duration = Duration::from_millis(50);
/// Children that wait for their parent's event; a parent that is killed before it leaves one behind.
const EARLY: usize = 4096;
/// Stops that are answered before a scan goes on.
const STOPS: usize = 64;
/// Letting go of tracees takes no longer: what is left then is freed by the end of the thread.
const DRAIN: Duration = Duration::from_millis(500);

/// The state of the tracer thread.
pub struct Tracer {
    pub(super) table: Table,
    pub(super) refusals: Refusals,
    pub(super) limits: Limits,
    pub(super) report: Arc<Report>,
    /// The agent's process.
    pub(super) own: Tid,
    /// This thread: `TracerPid` of its tracees.
    pub(super) thread: Tid,
    pub(super) supervisor: Tid,
    /// Of process ids, the agent's; 0 where it cannot be read.
    namespace: u64,
    pub(super) found: Vec<Tid>,
    pub(super) started: Instant,
    /// Children that stopped before their parent told of them.
    early: HashSet<Tid>,
    newcomers: Newcomers,
    outbox: Outbox,
    affinity: Affinity,
    heartbeat: Heartbeat,
    stop: Arc<AtomicBool>,
    /// When something happened last.
    stirred: Instant,
    /// When events were handed over last.
    handed: Instant,
    /// When the last tick was.
    ticked: Instant,
    /// Time between two ticks now.
    rest: Duration,
    /// What the timer is set to: that, or [`GATHER`] while something waits to be handed over.
    pace: Duration,
}

impl Tracer {
    /// A tracer that traces nothing yet, of the calling thread.
    pub fn new(
        limits: Limits,
        report: Arc<Report>,
        outbox: Outbox,
        heartbeat: Heartbeat,
        stop: Arc<AtomicBool>,
    ) -> Self {
        let newcomers = Newcomers::new();
        report.blind.store(!newcomers.exact(), Ordering::Relaxed);
        Self {
            table: Table::new(limits.threads),
            refusals: Refusals::default(),
            limits,
            report,
            own: std::process::id(),
            thread: gettid(),
            supervisor: super::seize::supervisor(),
            namespace: namespace_of(std::process::id(), "pid").unwrap_or(0),
            found: Vec::new(),
            started: Instant::now(),
            early: HashSet::new(),
            newcomers,
            outbox,
            affinity: Affinity::new(),
            heartbeat,
            stop,
            stirred: Instant::now(),
            handed: Instant::now(),
            ticked: Instant::now(),
            rest: TICK,
            pace: TICK,
        }
    }

    /// Traces until it is told to stop. `ready` is called once everything is traced.
    pub fn run(mut self, ready: impl FnOnce()) -> std::io::Result<()> {
        let ticker = Ticker::start(self.pace)?;
        // On a full machine each stop lasts until this thread gets a processor. Needs CAP_SYS_NICE,
        // which Fargate does not give.
        let _ = rustix::process::setpriority_process(rustix::process::Pid::from_raw(self.thread as i32), -20);
        self.heartbeat.beat(self.thread, self.rest);
        self.scan(false);
        ready();
        while !self.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let went_off = ticker.take();
            if went_off && self.is_tick(now) {
                self.tick(now);
            }
            self.hand_over(&ticker, now, went_off);
            let change = sys::wait(true)?;
            self.stir(&ticker, &change);
            self.answer(change);
        }
        self.let_go(&ticker)
    }

    /// Whether the timer went off for a tick. While it gathers it goes off more often; when it is about to be set back,
    /// a tick comes early rather than late.
    fn is_tick(&self, now: Instant) -> bool {
        let rest = if self.outbox.is_empty() { self.rest / 2 } else { self.rest };
        self.pace > GATHER || now.duration_since(self.ticked) >= rest
    }

    /// Something happened: ticks come fast again, since more may follow.
    fn stir(&mut self, ticker: &Ticker, change: &Wait) {
        if matches!(change, Wait::Nothing | Wait::NoTracees) {
            return;
        }
        self.stirred = Instant::now();
        if self.rest > TICK {
            self.rest = TICK;
            self.keep_pace(ticker, TICK);
        }
    }

    /// Hands over what waits, or sees to it that the timer soon goes off. It is set back once it went off for nothing.
    fn hand_over(&mut self, ticker: &Ticker, now: Instant, went_off: bool) {
        if self.outbox.is_empty() {
            if went_off {
                self.keep_pace(ticker, self.rest);
            }
        } else if now.duration_since(self.handed) >= GATHER {
            self.handed = now;
            self.outbox.flush();
        } else {
            self.keep_pace(ticker, GATHER);
        }
    }

    fn keep_pace(&mut self, ticker: &Ticker, pace: Duration) {
        if std::mem::replace(&mut self.pace, pace) != pace {
            ticker.set(pace);
        }
    }

    fn tick(&mut self, now: Instant) {
        let calm = now.duration_since(self.stirred) >= CALM;
        self.affinity.look(now);
        self.ticked = now;
        self.rest = if calm { IDLE_TICK } else { TICK };
        self.heartbeat.beat(self.thread, self.rest);
        match self.newcomers.look(now) {
            Look::Everywhere => self.scan(true),
            Look::At { new, again } => {
                if !new.is_empty() {
                    self.stirred = now;
                }
                for tid in again {
                    if self.table.thread(tid).is_none() {
                        self.meet(tid, true);
                    }
                }
                for tid in new {
                    if self.table.thread(tid).is_none() && !self.meet(tid, true) {
                        self.newcomers.look_again(tid);
                    }
                }
            }
        }
        self.tell_found(now);
        self.end_shedding(now);
        self.report.tracees.store(self.table.len() as u64, Ordering::Relaxed);
    }

    /// Beats, and answers what has stopped meanwhile: for loops over many processes.
    pub(super) fn breathe(&mut self) {
        self.heartbeat.beat(self.thread, self.rest);
        for _ in 0..STOPS {
            match sys::wait(false) {
                Ok(change @ (Wait::Exited { .. } | Wait::Stopped { .. })) => self.answer(change),
                // An error shows again in the thread's own loop.
                _ => return,
            }
        }
    }

    fn answer(&mut self, change: Wait) {
        match change {
            Wait::Nothing => {}
            // Until there is one, only ticks matter.
            Wait::NoTracees => std::thread::sleep(self.pace),
            Wait::Exited { tid, status } => self.on_exit(tid, status),
            Wait::Stopped { tid, signal, event } => self.on_stop(tid, signal, event),
        }
    }

    fn on_stop(&mut self, tid: Tid, signal: i32, event: i32) {
        match event {
            0 => {
                self.count_stop(tid, |process| &mut process.signals);
                self.go_on(tid, signal);
            }
            libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK | libc::PTRACE_EVENT_CLONE => {
                let child = sys::event_message(tid);
                let parent = self.table.thread(tid);
                if event == libc::PTRACE_EVENT_CLONE {
                    self.count_stop(tid, |process| &mut process.thread_stops);
                }
                self.go_on(tid, 0);
                if let Ok(child) = child
                    && !self.early.remove(&child)
                {
                    self.adopt(child, parent);
                }
            }
            libc::PTRACE_EVENT_EXEC => self.on_exec(tid),
            libc::PTRACE_EVENT_STOP => {
                if self.table.thread(tid).is_none() {
                    // Its end may come before its parent's event too, which must not tell it again.
                    if self.early.len() >= EARLY {
                        self.early.clear();
                    }
                    self.early.insert(tid);
                    self.adopt(tid, None);
                }
                let group_stop = matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU);
                if group_stop && !self.is_let_go(tid) {
                    // Fails where SIGCONT or SIGKILL came meanwhile: the next wait() tells.
                    let _ = sys::listen(tid);
                } else {
                    self.go_on(tid, 0);
                }
            }
            _ => self.go_on(tid, 0),
        }
    }

    fn is_let_go(&mut self, tid: Tid) -> bool {
        self.table.process_of(tid).is_some_and(|process| process.shed == Shed::Process)
    }

    /// Ends a stop: the thread goes on, traced as its process is to be. Errors mean that it was
    /// killed meanwhile.
    fn go_on(&mut self, tid: Tid, signal: i32) {
        let Some(thread) = self.table.thread(tid) else {
            // Not in the table because that is full, or its process is let go.
            let _ = sys::detach(tid, signal);
            return;
        };
        let shed = self.table.process_of(tid).map(|process| process.shed).unwrap_or_default();
        let wanted = match shed {
            Shed::Process => {
                let _ = sys::detach(tid, signal);
                self.table.remove_thread(tid);
                if self.table.threads_of(thread.tgid).is_empty() {
                    self.table.remove_process(thread.tgid);
                }
                return;
            }
            Shed::Threads => FEW_OPTIONS,
            Shed::Nothing => ALL_OPTIONS,
        };
        if thread.options != wanted && sys::set_options(tid, wanted).is_ok() {
            self.table.put_thread(tid, Thread { options: wanted, ..thread });
        }
        let _ = sys::resume(tid, signal);
    }

    /// Enters a thread or process that the kernel attached by itself. Called at the parent's stop
    /// and at the child's first, whichever comes first.
    fn adopt(&mut self, tid: Tid, parent: Option<Thread>) {
        if self.table.thread(tid).is_some() {
            return;
        }
        // One short file for the child of a known parent: everything else it has from there.
        let Ok(stat) = Stat::read(tid) else { return };
        if stat.thread {
            let Some(tgid) = parent.map(|parent| parent.tgid).or_else(|| Some(Status::read(tid).ok()?.tgid)) else {
                return;
            };
            let full = !self.table.has_room();
            let shed = self.table.processes.get(&tgid).map(|process| process.shed);
            match shed {
                Some(Shed::Nothing) if !full => {
                    // The thread that made it may have had fewer options, which it inherits: 0
                    // makes go_on() set them.
                    let options = parent.map_or(0, |parent| parent.options);
                    self.table.put_thread(tid, Thread { tgid, options });
                    count(&self.report.seized);
                }
                Some(Shed::Nothing) => count(&self.report.table_full),
                _ => {}
            }
            return;
        }
        let key = ProcessKey::new(tid, stat.start);
        let parent_id = parent.map_or(stat.parent, |parent| parent.tgid);
        let parent_key = self.key_of(parent_id);
        // Who made it is known by its event only: what /proc calls its parent may have got it from another.
        let known = |process: &Process| (process.credentials, parent.and(process.namespaces));
        let inherited = self.table.processes.get(&parent_id).map(known);
        let read = || Some((Status::read(tid).ok()?.credentials, None));
        let Some((credentials, namespaces)) = inherited.or_else(read) else { return };
        if let Some(process) = parent_key {
            self.emit(Some(process), EventKind::Fork { child: key });
        }
        if !self.table.has_room() {
            count(&self.report.table_full);
            return;
        }
        self.table.remove_process(tid);
        let mut process = Process::new(key, credentials);
        process.namespaces = namespaces;
        self.table.processes.insert(tid, process);
        self.newcomers.adopted(tid);
        self.table.put_thread(tid, Thread { tgid: tid, options: parent.map_or(0, |parent| parent.options) });
        count(&self.report.seized);
    }

    fn on_exec(&mut self, tid: Tid) {
        if let Ok(former) = sys::event_message(tid)
            && former != tid
        {
            self.table.remove_thread(former);
        }
        let options = self.table.thread(tid).map_or(0, |thread| thread.options);
        if !self.table.processes.contains_key(&tid)
            && let Some(key) = proc::key(tid)
        {
            self.table.processes.insert(tid, Process::new(key, Credentials::default()));
        }
        self.table.keep_only_leader(tid, options);
        let known = self.table.processes.get(&tid).map_or_else(Known::default, |process| Known {
            credentials: process.credentials,
            namespaces: process.namespaces,
            own: self.namespace,
        });
        match exec::read(tid, known) {
            Ok(reading) => {
                self.affinity.met(reading.core);
                // Before the program goes on: other sensors' events of it must not come before it.
                self.tell_exec(tid, reading);
            }
            Err(_) => {
                count(&self.report.unread);
                self.report.process.add_oversize(1);
            }
        }
        self.go_on(tid, 0);
    }

    fn tell_exec(&mut self, tgid: Tid, reading: exec::Reading) {
        let key = ProcessKey::new(tgid, reading.start);
        let mut exec = reading.exec;
        exec.parent = self.key_of(reading.parent).unwrap_or_default();
        if let Some(process) = self.table.processes.get_mut(&tgid) {
            process.found = None;
            process.namespaces = reading.namespaces;
            let old = std::mem::replace(&mut process.credentials, exec.credentials);
            if old != Credentials::default() {
                exec.previous_euid = old.euid;
                if old != exec.credentials {
                    let new = exec.credentials;
                    self.emit(Some(key), EventKind::Credentials { old, new });
                }
            }
        }
        self.emit(Some(key), EventKind::Exec(Box::new(exec)));
    }

    fn on_exit(&mut self, tid: Tid, status: i32) {
        let Some(thread) = self.table.remove_thread(tid) else { return };
        if thread.tgid == tid
            && let Some(process) = self.table.remove_process(tid)
        {
            self.emit(Some(process.key), EventKind::Exit { code: status });
        }
    }

    fn emit(&mut self, process: Option<ProcessKey>, kind: EventKind) {
        let event = Event { time: boottime(), process, cgroup: None, kind };
        self.outbox.push(event, &self.report.process);
    }

    fn key_of(&self, pid: Tid) -> Option<ProcessKey> {
        if pid == 0 {
            return None;
        }
        self.table.processes.get(&pid).map(|process| process.key).or_else(|| proc::key(pid))
    }

    fn tell_found(&mut self, now: Instant) {
        let found = std::mem::take(&mut self.found);
        for tgid in found {
            match self.table.processes.get(&tgid).and_then(|process| process.found) {
                Some(since) if now.duration_since(since) < FOUND_AFTER => self.found.push(tgid),
                Some(_) => {
                    if let Ok(reading) = exec::read(tgid, Known::default()) {
                        self.tell_exec(tgid, reading);
                    }
                }
                None => {}
            }
        }
    }

    /// Lets go of everything: each tracee is stopped, and detached at its stop. What does not stop
    /// in time (a vfork parent, a thread in uninterruptible sleep) is freed by the kernel when this
    /// thread ends.
    fn let_go(mut self, ticker: &Ticker) -> std::io::Result<()> {
        let begun = Instant::now();
        for tid in self.table.all_threads() {
            let _ = sys::interrupt(tid);
        }
        while begun.elapsed() < DRAIN && self.table.len() > 0 {
            if ticker.take() {
                self.heartbeat.beat(self.thread, self.rest);
            }
            match sys::wait(true)? {
                Wait::NoTracees => break,
                Wait::Nothing => {}
                Wait::Exited { tid, status } => self.on_exit(tid, status),
                Wait::Stopped { tid, signal, event } => {
                    let _ = sys::detach(tid, if event == 0 { signal } else { 0 });
                    self.table.remove_thread(tid);
                }
            }
        }
        self.report.tracees.store(0, Ordering::Relaxed);
        self.outbox.flush();
        Ok(())
    }
}

fn gettid() -> Tid {
    rustix::thread::gettid().as_raw_nonzero().get() as Tid
}
