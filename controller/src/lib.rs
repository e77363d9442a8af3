//! The Tasuki operator: reconciler, gateway and command line.

pub mod act;
pub mod cidr;
pub mod cli;
pub mod crds;
pub mod desired;
pub mod engine;
pub mod events;
pub mod gateway;
pub mod http;
pub mod lease;
pub mod memory;
pub mod observe;
pub mod processor;
pub mod scope;
pub mod sinks;
pub mod status;
pub mod store;
pub mod tally;
#[cfg(test)]
mod testing;
pub mod text;
pub mod web;
