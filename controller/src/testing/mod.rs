//! What tests of AWS-facing rooms share: a wire that counts, fails on demand and answers in
//! process, and a small ECS behind it that keeps JSON as opaque as the real one.
//!
//! The local cloud (`e2e/cloud`) is what proves behaviour; this is for what it cannot do: cutting
//! the wire between any two calls, and fields of tomorrow. Beside it a small API server of Kubernetes.

mod api_server;
mod ecs;
mod sqs;
mod wire;

pub use api_server::{ApiServer, client_of};
pub use ecs::{Ecs, arn, service};
pub use sqs::Sqs;
pub use wire::{Answer, Wire};

use crate::scope::{Scope, Scopes};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use std::collections::BTreeMap;
use std::sync::Arc;
use tasuki_api::desired::AwsScopeSpec;
use tasuki_core::action::{AgentSpec, GatewaySpec};
use tasuki_core::fleet::{ScopeId, Str};

/// The account of all tests.
pub const ACCOUNT: &str = "111122223333";
/// The Region of all tests.
pub const REGION: &str = "eu-west-1";

/// The scope of all tests.
pub fn scope_id() -> ScopeId {
    ScopeId { account: ACCOUNT.into(), region: REGION.into() }
}

/// The agent that tests place, whose image is named as its version is.
pub fn agent(version: &str) -> AgentSpec {
    AgentSpec {
        version: version.into(),
        image: format!("registry/tasuki-agent@sha256:{version}").into(),
        sensor: "auto".into(),
        memory_mib: 64,
        cpu: "10%".into(),
        task_role: None,
        execution_role: None,
        gateway: GatewaySpec::default(),
        pods: None,
    }
}

/// An SDK configuration that speaks over `wire`.
pub async fn config(wire: &Wire) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url("http://127.0.0.1:1")
        .credentials_provider(Credentials::for_tests())
        .http_client(wire.clone())
        .load()
        .await
}

/// An `AwsScope` document of the test account with all of AWS's limits.
pub fn document() -> AwsScopeSpec {
    serde_json::from_value(serde_json::json!({"accounts": [ACCOUNT], "regions": [REGION], "share": "100%"})).unwrap()
}

/// Scopes over `wire` with one document named `org`.
pub async fn scopes(wire: &Wire) -> (Arc<Scopes>, Arc<Scope>) {
    let scopes = Arc::new(Scopes::new(config(wire).await));
    let problems = scopes.sync(&BTreeMap::from([(Str::from("org"), document())])).await;
    assert!(problems.is_empty(), "{problems:?}");
    let scope = scopes.get(&scope_id()).unwrap();
    (scopes, scope)
}
