//! Both ends of the agent protocol, over real TLS, with a real store; ECS and STS are loopback servers.
// The whole binary is a test, its helpers too: a panic is how they say that something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod aws;
mod hostile;
mod pods;
mod relay;
mod world;
