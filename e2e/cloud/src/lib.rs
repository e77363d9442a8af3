//! A local cloud: ECS, EventBridge, SQS and STS on loopback, in one process.
//!
//! # Expected flow
//! A test makes a [`cloud::Cloud`], serves it with [`http::serve`], points real AWS clients at it, and moves time with
//! [`cloud::Cloud::advance`]. The binary does the same on real time.
//!
//! # Guarantees
//! Every request's signature is verified. The same seed and the same calls at the same times give the same ids, events and
//! faults. An operation that is not here gets AWS's own error for an unknown one.
//!
//! # Caveats
//! No IAM policies: a signed call may do everything in its account unless [`faults::Faults::deny`] says otherwise.

pub mod auth;
pub mod clock;
pub mod cloud;
pub mod ecs;
pub mod effect;
pub mod error;
pub mod events;
pub mod faults;
pub mod http;
pub mod metadata;
pub mod runtime;
pub mod settings;
pub mod sqs;
pub mod throttle;
pub mod world;
