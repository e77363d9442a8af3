//! The turn of another sensor's reader: it holds the queue of file events while it hands its batch on,
//! so that none goes before the fork and the program of its process, nor after the exec of its file.

use super::merge::{self, Places};
use super::{PATIENCE, Shared, Waiting, Worker};
use crate::event::Event;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

/// Reads of the kernel's queue in one turn, some hundred events each.
const READS: usize = 32;

/// The queue of file events, held. Dropped without [`Turn::end`], what was merged counts as lost.
#[derive(Debug)]
pub struct Turn<'a> {
    /// `None` once it was let go because the file sensor stops.
    worker: Option<MutexGuard<'a, Worker>>,
    shared: Arc<Shared>,
    round: u64,
    merged: u64,
}

impl<'a> Turn<'a> {
    pub(super) fn new(worker: MutexGuard<'a, Worker>, round: u64) -> Self {
        let shared = Arc::clone(&worker.shared);
        Self { worker: Some(worker), shared, round, merged: 0 }
    }

    /// Puts into a batch, which is in the order of time and was learnt, what was written meanwhile.
    pub fn merge(&mut self, batch: &mut Vec<Event>) {
        let Some(worker) = &mut self.worker else { return };
        // What nobody executes may as well be read by the sensor's own thread.
        if !batch.is_empty() {
            for _ in 0..READS {
                if !worker.read() {
                    break;
                }
            }
        }
        if worker.waiting.is_empty() {
            return;
        }
        let round = self.round;
        let places = Places::of(batch);
        let mut files = Vec::new();
        let may_go = |one: &Waiting, told: bool| {
            // Read before the rings were emptied, so they told all that its process had done by then.
            (told && one.round < round)
                || ((told || one.living.is_some()) && places.runs(&one.event))
                || one.since.elapsed() > PATIENCE
        };
        worker.settle(may_go, &mut files);
        self.merged += files.len() as u64;
        let files = places.place(files);
        merge::into(batch, files);
    }

    /// Lets the queue go where the file sensor stops: its end must not wait for a full pipeline.
    pub fn yield_to_stop(&mut self) {
        if self.shared.stop.load(Ordering::Acquire) {
            self.worker = None;
        }
    }

    /// The batch was taken, or will never be.
    pub fn end(mut self, taken: bool) {
        let merged = std::mem::take(&mut self.merged);
        let counter = if taken { &self.shared.submitted } else { &self.shared.overflows };
        counter.fetch_add(merged, Ordering::AcqRel);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.overflows.fetch_add(self.merged, Ordering::AcqRel);
    }
}
