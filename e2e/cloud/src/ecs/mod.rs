//! Amazon ECS: the state of one account and Region, and the rules by which it changes.
//!
//! Lives here: clusters, task definitions, tasks, services, container instances, their events. Pure state machines over
//! [`crate::effect::Ctx`]. May not live here: HTTP, signatures, locks, containers, the clock.

pub mod api;
mod cluster;
mod constraint;
mod definition;
mod deployment;
mod instance;
mod instance_api;
mod lifecycle;
mod place;
mod schedule;
mod service;
mod service_api;
mod service_view;
mod spec;
mod tags;
mod task;
mod task_api;
mod tasks;
mod validate;

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Value, json};

pub use cluster::Cluster;
pub use definition::Definition;
pub use instance::{Instance, InstanceOptions};
pub use service::Service;
pub use tags::Tag;
pub use task::{Container, Task};
pub use tasks::Tasks;

use crate::effect::Ctx;
use crate::error::{ApiError, ApiResult};

/// ECS in one account and Region.
#[derive(Debug, Default)]
pub struct Ecs {
    /// By name.
    pub clusters: IndexMap<String, Cluster>,
    /// By family, revisions in order (index = revision − 1).
    pub families: BTreeMap<String, Vec<Definition>>,
    /// By ARN.
    pub tasks: Tasks,
    /// By ARN.
    pub services: IndexMap<String, Service>,
    /// By ARN.
    pub instances: IndexMap<String, Instance>,
    /// RunTask and CreateService client tokens with the answer that they gave.
    tokens: IndexMap<String, Value>,
}

/// Client tokens remembered; the oldest go first.
const MAX_TOKENS: usize = 10_000;

impl Ecs {
    /// The ACTIVE cluster that a name, an ARN or nothing (`default`) refers to.
    ///
    /// # Errors
    /// `ClusterNotFoundException`.
    pub fn cluster(&self, reference: Option<&str>) -> ApiResult<&Cluster> {
        let name = cluster_name(reference.unwrap_or("default"));
        self.clusters
            .get(name)
            .filter(|cluster| cluster.active)
            .ok_or_else(|| ApiError::new("ClusterNotFoundException", "Cluster not found."))
    }

    fn remember_token(&mut self, token: Option<String>, answer: &Value) {
        if let Some(token) = token {
            if self.tokens.len() >= MAX_TOKENS {
                self.tokens.shift_remove_index(0);
            }
            self.tokens.insert(token, answer.clone());
        }
    }
}

/// The name in a cluster reference (name or ARN).
pub fn cluster_name(reference: &str) -> &str {
    reference.rsplit(":cluster/").next().unwrap_or(reference)
}

/// The last path element of an ARN, or the text itself.
pub fn short(reference: &str) -> &str {
    reference.rsplit('/').next().unwrap_or(reference)
}

/// A `failures[]` entry for something that is not there.
pub(crate) fn missing(arn: &str) -> Value {
    json!({"arn": arn, "reason": "MISSING"})
}

/// The page members that every List call shares.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    pub next_token: Option<String>,
    pub max_results: Option<usize>,
}

impl Page {
    /// Cuts one page out of `items`; `key` names the answer's member.
    ///
    /// # Errors
    /// `InvalidParameterException` for a token that this cloud did not give, or a size outside 1 to `most`.
    pub fn cut(&self, key: &str, items: Vec<String>, default: usize, most: usize) -> ApiResult {
        use base64::Engine;
        let engine = base64::engine::general_purpose::STANDARD;
        let size = self.max_results.unwrap_or(default);
        if !(1..=most).contains(&size) {
            return Err(ApiError::invalid(format!("maxResults must be between 1 and {most}.")));
        }
        let from = match &self.next_token {
            None => 0,
            Some(token) => engine
                .decode(token)
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .and_then(|text| text.strip_prefix(&format!("{key}:")).and_then(|at| at.parse().ok()))
                .ok_or_else(|| ApiError::invalid("Invalid token"))?,
        };
        let total = items.len();
        let page: Vec<String> = items.into_iter().skip(from).take(size).collect();
        let next = from.saturating_add(page.len());
        let mut answer = json!({ key: page });
        if next < total {
            answer["nextToken"] = engine.encode(format!("{key}:{next}")).into();
        }
        Ok(answer)
    }
}

/// True when an `include` list asks for something.
pub(crate) fn includes(include: &[String], what: &str) -> bool {
    include.iter().any(|asked| asked == what)
}

/// Removes members whose value is null: AWS leaves absent members out.
pub(crate) fn without_nulls(mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, member| !member.is_null());
    }
    value
}

/// Runs one ECS operation. `None`: there is no such operation.
pub fn call(ecs: &mut Ecs, ctx: &mut Ctx<'_>, operation: &str, input: Value) -> Option<ApiResult> {
    api::dispatch(ecs, ctx, operation, input)
}
