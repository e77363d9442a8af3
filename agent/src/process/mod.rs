//! Processes: who is who, what they run, and what their files are. Knows no container and no rule.

pub mod hash;
pub mod snapshot;
pub mod sockets;
pub mod table;
pub mod users;

pub use table::{Entry, Limits, ProcessTable, Program};
