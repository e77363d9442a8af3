//! The definition transform: adds the sidecar to a task definition, and takes it out again; and to a manifest of
//! Kubernetes ([`render_pods`]).
//!
//! Pure functions over the *opaque JSON* of DescribeTaskDefinition: the nine read-only fields are
//! dropped, everything else is copied untouched (an empty value means something, so nothing is
//! cleaned), an unknown top-level key is refused rather than lost. Property, tested:
//! `strip(inject(d)) == d` without its read-only fields, as JSON values.
//!
//! ```text
//!  DescribeTaskDefinition ─▶ inject ─▶ RegisterTaskDefinition (family `<family>-tasuki`)
//!                              ▲  │
//!            the owner's form ─┘  └─▶ strip ─▶ the owner's form
//! ```

mod daemon;
mod hash;
mod inject;
mod pods;
mod preflight;
mod project;
mod sizes;
mod strip;
#[cfg(test)]
mod tests;

pub use daemon::daemon_definition;
pub use hash::content_hash;
pub use inject::{DROPPED, environment, inject, made_from, render};
pub use pods::{Rendered, field, pod_environment, render_pods, sidecar, token_mount, token_volume};
pub use preflight::notes;
pub use project::project;
pub use strip::{carries_sidecar, strip};

use serde_json::{Map, Value};
use tasuki_api::coverage::Reason;

/// Fields that DescribeTaskDefinition answers and RegisterTaskDefinition does not take (the set
/// difference of the two shapes in the ECS API model).
pub const READ_ONLY: [&str; 9] = [
    "taskDefinitionArn",
    "revision",
    "status",
    "requiresAttributes",
    "compatibilities",
    "registeredAt",
    "registeredBy",
    "deregisteredAt",
    "deleteRequestedAt",
];

/// Fields that RegisterTaskDefinition takes (ECS API model), with `tags`, which DescribeTaskDefinition
/// answers beside the definition.
const WRITABLE: [&str; 18] = [
    "family",
    "taskRoleArn",
    "executionRoleArn",
    "networkMode",
    "containerDefinitions",
    "volumes",
    "placementConstraints",
    "requiresCompatibilities",
    "cpu",
    "memory",
    "pidMode",
    "ipcMode",
    "proxyConfiguration",
    "inferenceAccelerators",
    "ephemeralStorage",
    "runtimePlatform",
    "enableFaultInjection",
    "tags",
];

/// Why a definition cannot carry the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.name())]
pub struct Obstacle {
    /// The coverage reason that it becomes.
    pub reason: Reason,
    /// What makes it concrete.
    pub detail: String,
}

impl Obstacle {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The definition without its read-only fields; an unknown field is an obstacle.
fn writable(definition: &Value) -> Result<Map<String, Value>, Obstacle> {
    let Value::Object(fields) = definition else {
        return Err(Obstacle::new(Reason::UnsupportedPlatform, "the definition is not a JSON object"));
    };
    let mut kept = Map::new();
    for (key, value) in fields {
        if READ_ONLY.contains(&key.as_str()) {
            continue;
        }
        if !WRITABLE.contains(&key.as_str()) {
            let detail = format!(
                "the definition has a field `{key}` that this version does not know and would rather not lose; update Tasuki"
            );
            return Err(Obstacle::new(Reason::UnsupportedPlatform, detail));
        }
        kept.insert(key.clone(), value.clone());
    }
    Ok(kept)
}

/// The containers of a definition, in order.
fn containers(fields: &Map<String, Value>) -> &[Value] {
    fields.get("containerDefinitions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key).and_then(Value::as_str)
}

/// A number that the API writes as a number or as a text of digits.
fn number(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::String(text) => text.trim().parse().ok(),
        other => other.as_u64(),
    }
}
