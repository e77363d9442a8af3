//! EventBridge by SQS and ECS sweeps into changes of the fleet. Queue for speed, sweep for truth.
//!
//! Nothing here decides, and nothing is trusted for long: an event is a hint that makes the fleet
//! fresh in a second, the next sweep makes it right. Two parsers, [`event`] for EventBridge and
//! [`api`] for ECS, give the same types.

pub mod api;
pub mod event;
mod follow;
pub mod kubernetes;
mod observer;
mod queue;
pub mod reads;
mod sweep;
#[cfg(test)]
mod tests;
mod words;

pub use observer::{Observer, ScopeStatus};
pub use queue::QueueCounters;
