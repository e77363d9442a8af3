//! The thread that empties the rings.
//!
//! It wakes when the first record comes after it found nothing, lets others gather for 5 ms, drains
//! network and DNS before process records and sorts the batch by time: an exec that preceded a connect
//! was committed before it, so it is in the same batch or an earlier one. While there are records, it looks
//! every 5 ms by itself and lets no record wake it. File events come from the
//! file sensor's queue and are put between those of the batch; the queue is let go when the batch was
//! handed on, so that no file event overtakes the fork of its process.

use super::decode::decode;
use crate::event::Event;
use crate::sensor::Output;
use crate::sensor::fanotify::{Roots, Turn};
use crate::sensor::recent::RecentProcesses;
use aya::maps::{Array, MapData, RingBuf};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::TrySendError;
use std::time::Duration;

/// How long records gather before they are taken together.
const GATHER: Duration = Duration::from_millis(5);
/// How often a reader that nothing wakes looks whether it is to stop.
const IDLE: Duration = Duration::from_millis(100);
/// Records that may fill a ring of the least size: execs of a KiB in 64 KiB.
const MANY: usize = 64;
/// Records of one ring in one batch, so that one ring cannot keep the others waiting.
const BATCH: usize = 8192;
/// How often a full pipeline is tried again.
const RETRY: Duration = Duration::from_millis(2);

/// The rings in the order in which they are drained.
pub(super) struct Rings {
    pub(super) network: RingBuf<MapData>,
    pub(super) dns: RingBuf<MapData>,
    pub(super) process: RingBuf<MapData>,
    pub(super) alarm: Alarm,
}

/// Whether records wake the reader.
pub(super) struct Alarm {
    awake: Array<MapData, u32>,
    /// What the map says.
    off: bool,
}

impl Alarm {
    pub(super) fn new(awake: Array<MapData, u32>) -> Self {
        Self { awake, off: false }
    }

    /// Turns it off or on; whether that changed anything. One that cannot be turned off costs more, and one that
    /// cannot be turned on leaves the reader to find records when it looks whether it is to stop.
    fn set_off(&mut self, off: bool) -> bool {
        let changed = self.off != off && self.awake.set(0, u32::from(off), 0).is_ok();
        if changed {
            self.off = off;
        }
        changed
    }
}

/// What the reader shares with the sensor.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    /// The pipeline is gone: nobody takes events.
    pub(super) closed: AtomicBool,
    /// Records that could not be decoded.
    pub(super) refused: AtomicU64,
    /// Events handed on.
    pub(super) delivered: AtomicU64,
}

/// Runs until it is told to stop; then empties the rings once more.
pub(super) fn run(
    mut rings: Rings,
    output: &Output,
    shared: &Shared,
    recent: &RecentProcesses,
    files: Option<Arc<Roots>>,
) {
    let mut last = false;
    let mut expected = 0;
    let mut patience = IDLE;
    loop {
        let stopping = shared.stop.load(Ordering::Acquire);
        let round = files.as_ref().map(|files| files.begin());
        let mut events = Vec::with_capacity(expected);
        drain(&mut rings.network, &mut events, shared);
        drain(&mut rings.dns, &mut events, shared);
        drain(&mut rings.process, &mut events, shared);
        events.sort_by_key(|event| event.time);
        let own = events.len() as u64;
        if let Some(files) = &files {
            files.meet(&events);
        }
        let mut turn = files.as_ref().zip(round).map(|(files, round)| files.turn(round));
        // Under the turn: what the file sensor finds in `recent` was handed on.
        recent.learn(&events);
        if let Some(turn) = &mut turn {
            turn.merge(&mut events);
        }
        if events.is_empty() {
            drop(turn);
            if stopping && last {
                return;
            }
            expected = 0;
            // What came before the alarm was on woke nobody: one more look.
            if rings.alarm.set_off(false) {
                patience = GATHER;
                continue;
            }
            // A program that was running when it was detached may still commit its record.
            last = stopping;
            wait(&mut rings, patience);
            patience = IDLE;
            continue;
        }
        expected = events.len();
        let taken = hand_over(events, output, shared, turn.as_mut());
        if let Some(turn) = turn {
            turn.end(taken);
        }
        if !taken {
            return;
        }
        shared.delivered.fetch_add(own, Ordering::Relaxed);
        // Where so many have come that the smallest rings may be full, it looks again at once.
        if expected < MANY && !stopping {
            rings.alarm.set_off(true);
            std::thread::sleep(GATHER);
        }
    }
}

fn drain(ring: &mut RingBuf<MapData>, events: &mut Vec<Event>, shared: &Shared) {
    for _ in 0..BATCH {
        let Some(item) = ring.next() else { return };
        match decode(&item) {
            Ok(event) => events.push(event),
            Err(error) => {
                if shared.refused.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::error!(%error, "a record of the probes was refused");
                }
            }
        }
    }
}

/// Waits for a record. The first wait after the alarm was turned on is a short one: a program that had read that it is off
/// may have put its record in since.
fn wait(rings: &mut Rings, patience: Duration) {
    let descriptor =
        |ring: &RingBuf<MapData>| libc::pollfd { fd: ring.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let mut descriptors = [descriptor(&rings.process), descriptor(&rings.network), descriptor(&rings.dns)];
    // SAFETY: three descriptors in an array of three. An interrupted wait is an early one.
    if unsafe { libc::poll(descriptors.as_mut_ptr(), 3, patience.as_millis() as i32) } > 0 {
        rings.alarm.set_off(true);
        std::thread::sleep(GATHER);
    }
}

/// Waits for the pipeline while it is full: meanwhile the rings fill, and the loss is counted there.
fn hand_over(events: Vec<Event>, output: &Output, shared: &Shared, mut turn: Option<&mut Turn<'_>>) -> bool {
    let mut batch = events;
    loop {
        match output.try_send(batch) {
            Ok(()) => return true,
            Err(TrySendError::Disconnected(_)) => {
                shared.closed.store(true, Ordering::Release);
                return false;
            }
            Err(TrySendError::Full(back)) => {
                if shared.stop.load(Ordering::Acquire) {
                    return false;
                }
                if let Some(turn) = &mut turn {
                    turn.yield_to_stop();
                }
                batch = back;
                std::thread::sleep(RETRY);
            }
        }
    }
}

/// Spawns a named thread.
pub(super) fn spawn<F: FnOnce() + Send + 'static>(name: &str, body: F) -> io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}
