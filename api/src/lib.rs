//! The nouns of Tasuki: desired state, coverage, findings and the agent protocol.
//!
//! Data and validation only. This crate knows no other crate of the workspace, does no I/O and
//! links no client library, so that the agent and the controller can share it at no cost.

pub mod agent;
pub mod coverage;
pub mod desired;
pub mod finding;
pub mod kubernetes;
pub mod status;
