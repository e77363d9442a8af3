//! The loop in one process: the real engine and gateway, the local cloud over its wire protocols, and agents that
//! speak the real protocol; containers are records, so that bad luck can be had at will.
// The whole binary is a test, its helpers too: a panic is how they say that something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod agents;
mod luck;
mod placing;
mod refused;
mod store;
mod wire;
mod world;
