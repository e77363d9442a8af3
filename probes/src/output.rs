//! The ring buffers, one per class of events, and when the agent is woken.

use aya_ebpf::{macros::map, maps::RingBuf};

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

/// The kernel wakes the agent when it has taken everything before this record and none other is
/// waiting: once for a burst, and never while the agent is busy (bpf_ringbuf_commit() in
/// kernel/bpf/ringbuf.c).
pub const WAKE: u64 = 0;

/// Puts a small record into the ring.
#[inline(always)]
pub fn submit<T: Copy + 'static>(ring: &RingBuf, record: T) -> Outcome {
    let Some(mut entry) = ring.reserve::<T>(0) else { return Outcome::RingFull };
    entry.write(record);
    entry.submit(WAKE);
    Outcome::Submitted
}
