//! Where a sensor thread puts its events: small batches, handed over without ever blocking.
//!
//! A sensor of a sidecar must not wait for the pipeline: while the tracer waits, the application
//! stands still. So a batch that the pipeline cannot take yet is kept up to [`Outbox::LIMIT`]
//! events, and what does not fit is dropped and counted as `ring_full` of its family.

use super::Output;
use crate::event::Event;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::TrySendError;
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
            missed: 0,
        }
    }
}

/// Collects events and hands them over in batches.
pub struct Outbox {
    output: Output,
    waiting: Vec<Event>,
    limit: usize,
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
        Self { output, waiting: Vec::new(), limit }
    }

    /// Puts an event in; counts it as submitted, or as lost where it does not fit.
    pub fn push(&mut self, event: Event, family: &FamilyCounters) {
        if self.waiting.len() >= self.limit {
            self.flush();
        }
        if self.waiting.len() >= self.limit {
            family.add_ring_full(1);
            return;
        }
        family.submitted.fetch_add(1, Ordering::Relaxed);
        self.waiting.push(event);
        if self.waiting.len().is_multiple_of(Self::BATCH) {
            self.flush();
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Hands over what is waiting, if the pipeline takes it now.
    pub fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match self.output.try_send(std::mem::take(&mut self.waiting)) {
            Ok(()) => {}
            Err(TrySendError::Full(batch)) => self.waiting = batch,
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
        let mut outbox = Outbox::with_limit(sender, 3);
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
}
