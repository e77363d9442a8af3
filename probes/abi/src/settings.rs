//! What the agent tells the programs before they are loaded.

/// Read-only settings; constants to the verifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// A task that asks for the same destination again within this time, nanoseconds, is not
    /// reported again; 0 reports all.
    pub connect_window: u64,
    /// Exec and fork events per second and cgroup (each); 0 means no limit.
    pub process_rate: u64,
    /// Exec and fork events that a cgroup may use at once (each).
    pub process_burst: u64,
    /// The agent's own process id, whose events are filtered; 0 reports it like any other.
    pub own_pid: u32,
    /// 1 where TCP connects must come from the cgroup hook, because the socket tracepoint is not attached.
    pub tcp_from_cgroup: u32,
}

impl Settings {
    /// No filter at all.
    pub const OPEN: Self =
        Self { connect_window: 0, process_rate: 0, process_burst: 0, own_pid: 0, tcp_from_cgroup: 0 };
}
