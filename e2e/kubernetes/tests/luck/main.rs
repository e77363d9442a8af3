//! Bad luck, one kind a file: each has a clear reason, Event or condition, and none a stuck or doubled action.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

#[path = "../audit/mod.rs"]
#[allow(dead_code, reason = "nobody asks here which of several controllers it was")]
mod audit;
mod clock;
mod crash;
mod monitors;
mod nodes;
mod refusals;
mod room;
mod server;
mod steering;
