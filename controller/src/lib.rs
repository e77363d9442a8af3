//! The Tasuki operator: reconciler, gateway and command line.

pub mod act;
pub mod cli;
pub mod desired;
pub mod engine;
pub mod gateway;
pub mod observe;
pub mod scope;
pub mod sinks;
pub mod store;
#[cfg(test)]
mod testing;
pub mod web;
