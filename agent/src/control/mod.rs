//! What the agent is told to do: policy bundles, checked before they count; and what it says of itself.
//!
//! *Guarantees*: a bundle is taken only if the controller's key signed it and its serial is not lower
//! than that of the bundle in force; the one in force survives a restart and the gateway's absence.

mod policy;

pub use policy::{PolicyKeeper, PolicyProblem, PublicKey};

use tasuki_api::agent::Heartbeat;

/// Gives what the agent says of itself; the pipeline implements it.
///
/// `time`, `policy`, `usage.spooled` and `usage.spool_dropped` are filled in by the sender.
pub trait HeartbeatSource: Send + Sync + 'static {
    /// The heartbeat as of now; called once an interval, must not block.
    fn heartbeat(&self) -> Heartbeat;
}
