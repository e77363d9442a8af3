//! The fleet: what there is, as far as it has been told.
//!
//! *Expected flow*: observe turns events, sweeps and heartbeats into [`Change`]s; [`Fleet::apply`]
//! takes them one by one. *Guarantees*: an older version of a task or node never replaces a newer
//! one, and a stopped task cannot come back to life. *Assumptions*: `now` never runs backwards.

mod agents;
mod model;

pub use agents::*;
pub use model::*;
