//! Credentials and clients per account and Region: how AWS is reached, and nothing of what is said.
//!
//! Every call goes through [`Scope::call`]: it takes a token from the scope's budget, retries what
//! may be retried, and turns AWS's errors into [`CallError`]. Endpoints are overridden only by the
//! SDK's own means (`AWS_ENDPOINT_URL`), so the local cloud and AWS run the same code.

pub mod api;
mod call;
mod clients;
mod error;
pub mod kubernetes;
mod registry;
pub mod sidecars;
#[cfg(test)]
mod tests;

pub use api::Api;
pub use clients::queue_region;
pub use error::{CallError, Kind, words};
pub use registry::{Problem, QueueId, Scopes};

use crate::act::budget::Budget;
use std::sync::Arc;
use tasuki_api::desired::AwsScopeSpec;
use tasuki_core::fleet::{ScopeId, Str};

/// One account and Region, and the clients that reach it. Immutable: a changed document makes a
/// new one, and the budget moves along.
#[derive(Debug)]
pub struct Scope {
    /// Account and Region.
    pub id: ScopeId,
    /// Name of the `AwsScope` document.
    pub document: Str,
    /// Its spec.
    pub spec: Arc<AwsScopeSpec>,
    /// The share of AWS's request limits that this account and Region may use.
    pub budget: Arc<Budget>,
    /// ECS with the credentials for reading.
    pub read: aws_sdk_ecs::Client,
    /// ECS with the credentials for changes.
    pub act: aws_sdk_ecs::Client,
}
