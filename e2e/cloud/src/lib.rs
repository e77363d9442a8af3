//! A local cloud: ECS, EventBridge, SQS and STS on loopback, in one process.

pub mod clock;
pub mod runtime;
