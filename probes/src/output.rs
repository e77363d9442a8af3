//! The ring buffers, one per class of events, and when the agent is woken.

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    macros::map,
    maps::{Array, RingBuf},
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

/// Set by the agent while it looks into the rings by itself every few milliseconds.
#[map]
static AWAKE: Array<u32> = Array::with_max_entries(1, 0);

/// Whether a record wakes the agent. Where it may, the kernel does so when the agent has taken everything before this
/// record and none other is waiting: once for a burst (bpf_ringbuf_commit() in kernel/bpf/ringbuf.c). That is an
/// interrupt and often one more on another processor, for the program that is watched to wait for.
#[inline(always)]
pub fn wake() -> u64 {
    // SAFETY: the map gave the pointer. Where it changes meanwhile, the agent finds the record by itself: its poll()
    // returns for a record that has its place, and it looks again soon after it has turned to sleep.
    let awake = AWAKE.get_ptr(0).is_some_and(|awake| unsafe { awake.read_volatile() } != 0);
    if awake { u64::from(BPF_RB_NO_WAKEUP) } else { 0 }
}

/// Puts a small record into the ring.
#[inline(always)]
pub fn submit<T: Copy + 'static>(ring: &RingBuf, record: T) -> Outcome {
    let Some(mut entry) = ring.reserve::<T>(0) else { return Outcome::RingFull };
    entry.write(record);
    entry.submit(wake());
    Outcome::Submitted
}
