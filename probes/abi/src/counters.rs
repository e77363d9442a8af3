//! Per-CPU counters. The kernel keeps no loss counter for ring buffers, so the programs do.

/// An event family: what is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Family {
    /// Programs started.
    Exec = 0,
    /// Processes made.
    Fork = 1,
    /// Processes ended.
    Exit = 2,
    /// Connections asked for, TCP and UDP.
    Connect = 3,
    /// Connections taken.
    Accept = 4,
    /// Sockets that began to listen.
    Listen = 5,
    /// DNS messages.
    Dns = 6,
}

impl Family {
    /// All families, in the order of their numbers.
    pub const ALL: [Family; 7] =
        [Family::Exec, Family::Fork, Family::Exit, Family::Connect, Family::Accept, Family::Listen, Family::Dns];

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Family::Exec => "exec",
            Family::Fork => "fork",
            Family::Exit => "exit",
            Family::Connect => "connect",
            Family::Accept => "accept",
            Family::Listen => "listen",
            Family::Dns => "dns",
        }
    }
}

/// Why an event was dropped on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Filter {
    /// A thread came or went, not a process.
    Thread = 0,
    /// The agent's own doing.
    Own = 1,
    /// The same task asked for the same destination a moment ago.
    Duplicate = 2,
    /// Its cgroup has used up its share.
    Rate = 3,
}

impl Filter {
    /// All filters, in the order of their numbers.
    pub const ALL: [Filter; 4] = [Filter::Thread, Filter::Own, Filter::Duplicate, Filter::Rate];

    /// Name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Filter::Thread => "thread",
            Filter::Own => "own",
            Filter::Duplicate => "duplicate",
            Filter::Rate => "rate",
        }
    }
}

/// What became of one family's events on one CPU:
/// `seen = submitted + sum(filtered) + ring_full + oversize + map_full + unreadable`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FamilyCounters {
    /// Events that the hook met.
    pub seen: u64,
    /// Handed to the ring.
    pub submitted: u64,
    /// Dropped on purpose, by [`Filter`].
    pub filtered: [u64; 4],
    /// Lost: the ring was full.
    pub ring_full: u64,
    /// Lost: the record would not fit its largest size.
    pub oversize: u64,
    /// Lost: a kernel map was full or missing.
    pub map_full: u64,
    /// Lost: what it says could not be read where the hook met it.
    pub unreadable: u64,
}
