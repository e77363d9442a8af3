//! From a match to a finding: what is reported, how often, to whom, and what is done about it.

pub mod build;
pub mod group;
pub mod respond;
pub mod sink;
pub mod turn;

pub use group::Groups;
pub use sink::{FindingSink, StdoutSink};
