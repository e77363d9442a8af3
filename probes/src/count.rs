//! The balance of every family: an event that is seen has exactly one outcome.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use core::arch::asm;
use tasuki_probe_abi::{Family, FamilyCounters, Filter};

#[map]
static COUNTERS: PerCpuArray<FamilyCounters> = PerCpuArray::with_max_entries(Family::ALL.len() as u32, 0);

/// What became of an event.
#[derive(Clone, Copy)]
pub enum Outcome {
    /// In the ring.
    Submitted,
    /// Dropped on purpose.
    Filtered(Filter),
    /// The ring was full.
    RingFull,
    /// A map was full or missing.
    MapFull,
    /// What it says could not be read.
    Unreadable,
}

/// Counts one event and its outcome. Atomic, because a program that may sleep or be preempted can
/// meet another one on the same CPU.
#[inline(always)]
pub fn count(family: Family, outcome: Outcome) {
    let Some(counters) = COUNTERS.get_ptr_mut(family as u32) else { return };
    // SAFETY: the map gave the pointer, and nothing else than atomic adds touches it here.
    unsafe {
        add(&raw mut (*counters).seen);
        match outcome {
            Outcome::Submitted => add(&raw mut (*counters).submitted),
            Outcome::Filtered(filter) => match filter {
                Filter::Thread => add(&raw mut (*counters).filtered[0]),
                Filter::Own => add(&raw mut (*counters).filtered[1]),
                Filter::Duplicate => add(&raw mut (*counters).filtered[2]),
                Filter::Rate => add(&raw mut (*counters).filtered[3]),
            },
            Outcome::RingFull => add(&raw mut (*counters).ring_full),
            Outcome::MapFull => add(&raw mut (*counters).map_full),
            Outcome::Unreadable => add(&raw mut (*counters).unreadable),
        }
    }
}

/// One BPF instruction (BPF_XADD); this target has no read-modify-write in `core::sync::atomic`.
#[inline(always)]
unsafe fn add(counter: *mut u64) {
    // SAFETY: the caller's pointer is a live, aligned counter.
    unsafe { asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1u64) };
}
