//! Bad luck, one kind a file: each has a clear reason, Event or condition, and none a stuck or doubled action.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

mod crash;
mod monitors;
mod nodes;
mod refusals;
mod room;
mod server;
mod steering;
