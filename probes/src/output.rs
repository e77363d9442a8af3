//! The ring buffers, one per class of events, and when the agent is woken.

use aya_ebpf::{
    bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE},
    macros::map,
    maps::RingBuf,
};

use crate::count::Outcome;

/// Sizes are set by the agent from its memory limit; these are the least.
const LEAST: u32 = 64 * 1024;

/// exec, fork, exit.
#[map]
pub static PROCESS: RingBuf = RingBuf::with_byte_size(LEAST, 0);

/// connect, accept, listen.
#[map]
pub static NETWORK: RingBuf = RingBuf::with_byte_size(LEAST, 0);

/// DNS messages.
#[map]
pub static DNS: RingBuf = RingBuf::with_byte_size(LEAST, 0);

/// Wakes the agent when an eighth of the ring is full; its own 10 ms timer takes care of the rest.
#[inline(always)]
pub fn wakeup(ring: &RingBuf) -> u64 {
    if ring.query(u64::from(BPF_RB_AVAIL_DATA)) >= ring.query(u64::from(BPF_RB_RING_SIZE)) / 8 {
        u64::from(BPF_RB_FORCE_WAKEUP)
    } else {
        u64::from(BPF_RB_NO_WAKEUP)
    }
}

/// Puts a small record into the ring.
#[inline(always)]
pub fn submit<T: Copy + 'static>(ring: &RingBuf, record: T) -> Outcome {
    let Some(mut entry) = ring.reserve::<T>(0) else { return Outcome::RingFull };
    entry.write(record);
    entry.submit(wakeup(ring));
    Outcome::Submitted
}
