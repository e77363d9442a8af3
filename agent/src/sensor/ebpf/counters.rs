//! Reads the programs' per-CPU counters and sums them.

use aya::maps::{MapData, MapError, PerCpuArray};
use tasuki_api::agent::Counters;
use tasuki_probe_abi::{Family, FamilyCounters, Filter};

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Plain(FamilyCounters);

// SAFETY: `repr(C)`, `u64` alone.
unsafe impl aya::Pod for Plain {}

/// The counters of every family.
pub(super) struct CounterMap(PerCpuArray<MapData, Plain>);

/// What each in-kernel filter of a family dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filtered([u64; 4]);

impl Filtered {
    /// By filter name: `thread`, `own`, `duplicate`, `rate`.
    pub fn by_name(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Filter::ALL.into_iter().zip(self.0).map(|(filter, count)| (filter.name(), count))
    }

    /// All filters together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl CounterMap {
    pub(super) fn new(map: aya::maps::Map) -> Result<Self, MapError> {
        PerCpuArray::try_from(map).map(Self)
    }

    /// Sums over all CPUs. Not a snapshot: events go on while it reads.
    ///
    /// # Errors
    /// Where the kernel does not give the map's values: then nothing is known, least of all zeros.
    pub(super) fn read(&self, family: Family) -> Result<(Counters, Filtered), MapError> {
        let (mut out, mut filtered) = (Counters::default(), Filtered::default());
        let values = self.0.get(&(family as u32), 0)?;
        for Plain(one) in values.iter() {
            out.seen += one.seen;
            out.submitted += one.submitted;
            out.ring_full += one.ring_full;
            out.oversize += one.oversize;
            out.map_full += one.map_full;
            out.unreadable += one.unreadable;
            for (sum, count) in filtered.0.iter_mut().zip(one.filtered) {
                *sum += count;
            }
        }
        out.filtered = filtered.total();
        Ok((out, filtered))
    }
}
