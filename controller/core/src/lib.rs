//! Fleet and decide: what there is, and what should be done about it.
//!
//! `decide` is a pure function of (desired, fleet, memory, now). Nothing here reads a clock, a
//! network or a disk, and no AWS or Kubernetes client type appears, so that every behaviour that
//! matters is a table test or a property test.

pub mod action;
pub mod decide;
pub mod desired;
#[cfg(test)]
mod fixtures;
pub mod fleet;
pub mod memory;
pub mod sweep;
pub mod transform;
