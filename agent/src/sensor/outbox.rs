//! Where the threads of a sidecar's sensors put their events: one box for all, handed over in small batches without
//! ever waiting for the pipeline.
//!
//! A sensor of a sidecar must not wait for it: while the tracer waits, the application stands still. So a batch that
//! the pipeline cannot take yet is kept up to [`Outbox::LIMIT`] events, and what does not fit is dropped and counted as
//! `ring_full` of its family. With one box for all, whoever hands over hands over everything: an exec that was put in
//! before its program went on comes before what other sensors then see of that program.

use super::Output;
use crate::event::Event;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::TrySendError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tasuki_api::agent::Counters;

/// Counters of one event family, shared between the sensor's thread and its reports.
#[derive(Debug, Default)]
pub struct FamilyCounters {
    submitted: AtomicU64,
    filtered: AtomicU64,
    ring_full: AtomicU64,
    oversize: AtomicU64,
    map_full: AtomicU64,
}

impl FamilyCounters {
    /// Events that were dropped on purpose.
    pub fn add_filtered(&self, count: u64) {
        self.filtered.fetch_add(count, Ordering::Relaxed);
    }

    /// Events that were lost because a kernel buffer or the outbox was full.
    pub fn add_ring_full(&self, count: u64) {
        self.ring_full.fetch_add(count, Ordering::Relaxed);
    }

    /// Events that were lost because they were too large or malformed.
    pub fn add_oversize(&self, count: u64) {
        self.oversize.fetch_add(count, Ordering::Relaxed);
    }

    /// Events that were lost because a bounded table was full.
    pub fn add_map_full(&self, count: u64) {
        self.map_full.fetch_add(count, Ordering::Relaxed);
    }

    /// The counters as the agent protocol has them.
    pub fn snapshot(&self) -> Counters {
        let submitted = self.submitted.load(Ordering::Relaxed);
        let filtered = self.filtered.load(Ordering::Relaxed);
        let ring_full = self.ring_full.load(Ordering::Relaxed);
        let oversize = self.oversize.load(Ordering::Relaxed);
        let map_full = self.map_full.load(Ordering::Relaxed);
        Counters {
            seen: submitted + filtered + ring_full + oversize + map_full,
            submitted,
            filtered,
            ring_full,
            oversize,
            map_full,
            ..Counters::default()
        }
    }
}

/// Collects events and hands them over in batches.
pub struct Outbox {
    waiting: Arc<Mutex<Waiting>>,
    /// Events in the box beyond which nothing more is put in here.
    limit: usize,
}

struct Waiting {
    output: Output,
    events: Vec<Event>,
}

impl Outbox {
    /// Events that are kept while the pipeline is behind: about 2 MiB of exec events.
    pub const LIMIT: usize = 4096;
    /// Events in one batch before it is handed over without waiting for a quiet moment.
    const BATCH: usize = 128;

    /// An outbox in front of the pipeline.
    pub fn new(output: Output) -> Self {
        Self::with_limit(output, Self::LIMIT)
    }

    fn with_limit(output: Output, limit: usize) -> Self {
        Self { waiting: Arc::new(Mutex::new(Waiting { output, events: Vec::new() })), limit }
    }

    /// The same box for a sensor that may fill three quarters of it: packets crowd out no exec.
    pub fn beside(&self) -> Self {
        Self { waiting: self.waiting.clone(), limit: self.limit - self.limit / 4 }
    }

    /// Held for a hand-over at most, which does not wait.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an event in; counts it as submitted, or as lost where it does not fit.
    pub fn push(&self, event: Event, family: &FamilyCounters) {
        let mut waiting = self.lock();
        if waiting.events.len() >= self.limit {
            waiting.flush();
        }
        if waiting.events.len() >= self.limit {
            family.add_ring_full(1);
            return;
        }
        family.submitted.fetch_add(1, Ordering::Relaxed);
        waiting.events.push(event);
        if waiting.events.len().is_multiple_of(Self::BATCH) {
            waiting.flush();
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().events.is_empty()
    }

    /// Hands over what is waiting, if the pipeline takes it now.
    pub fn flush(&self) {
        self.lock().flush();
    }
}

impl Waiting {
    fn flush(&mut self) {
        if self.events.is_empty() {
            return;
        }
        match self.output.try_send(std::mem::take(&mut self.events)) {
            Ok(()) => {}
            Err(TrySendError::Full(batch)) => self.events = batch,
            // The pipeline is gone: the agent is ending.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }
}

/// Nanoseconds since boot, the clock of [`Event::time`].
pub fn boottime() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` outlives the call, which writes to it; this clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;
    use std::sync::mpsc::sync_channel;

    fn event(code: i32) -> Event {
        Event { time: 1, process: None, cgroup: None, kind: EventKind::Exit { code } }
    }

    #[test]
    fn what_the_pipeline_cannot_take_is_kept_up_to_the_limit_and_then_counted() {
        let (sender, receiver) = sync_channel(1);
        let family = FamilyCounters::default();
        let outbox = Outbox::with_limit(sender, 3);
        outbox.push(event(0), &family);
        outbox.flush();
        for code in 1..=5 {
            outbox.push(event(code), &family);
        }
        let counters = family.snapshot();
        assert_eq!((counters.seen, counters.submitted, counters.ring_full), (6, 4, 2));
        assert_eq!(receiver.recv().unwrap().len(), 1);
        outbox.flush();
        let kept: Vec<_> = receiver.recv().unwrap().into_iter().map(|event| event.kind).collect();
        assert_eq!(kept, (1..=3).map(|code| EventKind::Exit { code }).collect::<Vec<_>>());
    }

    #[test]
    fn the_sensors_share_one_order_and_leave_room_for_execs() {
        let (sender, receiver) = sync_channel(1);
        let family = FamilyCounters::default();
        let execs = Outbox::with_limit(sender, 4);
        let packets = execs.beside();
        packets.push(event(0), &family);
        packets.flush();
        // The pipeline takes nothing more now.
        for code in 1..=4 {
            packets.push(event(code), &family);
        }
        assert_eq!(family.snapshot().ring_full, 1);
        execs.push(event(5), &family);
        execs.push(event(6), &family);
        assert_eq!(family.snapshot().ring_full, 2);
        assert_eq!(receiver.recv().unwrap().len(), 1);
        packets.flush();
        let kept: Vec<_> = receiver.recv().unwrap().into_iter().map(|event| event.kind).collect();
        assert_eq!(kept, [1, 2, 3, 5].map(|code| EventKind::Exit { code }));
    }
}
