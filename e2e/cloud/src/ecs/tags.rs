//! Tags, and the operations that set and list them on any ECS resource.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Ecs;
use crate::error::{ApiError, ApiResult, input};

/// Most tags on a resource.
const MAX_TAGS: usize = 50;

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tag {
    /// Key.
    #[serde(default)]
    pub key: String,
    /// Value.
    #[serde(default)]
    pub value: String,
}

/// Checks the tags of a create call.
pub fn checked(tags: Option<Vec<Tag>>) -> ApiResult<Vec<Tag>> {
    let tags = tags.unwrap_or_default();
    if tags.len() > MAX_TAGS {
        return Err(ApiError::invalid("The maximum number of tags allowed on a resource is 50."));
    }
    for (at, tag) in tags.iter().enumerate() {
        if tag.key.is_empty() || tag.key.chars().count() > 128 || tag.value.chars().count() > 256 {
            return Err(ApiError::invalid(format!("Tag key or value has an invalid length: '{}'.", tag.key)));
        }
        if tag.key.to_ascii_lowercase().starts_with("aws:") {
            return Err(ApiError::invalid("Tag keys that begin with 'aws:' are reserved for AWS use."));
        }
        if tags.iter().take(at).any(|other| other.key == tag.key) {
            return Err(ApiError::invalid(format!("Duplicate tag keys found: '{}'.", tag.key)));
        }
    }
    Ok(tags)
}

/// Adds tags to a list, replacing those with the same key.
pub fn merge(into: &mut Vec<Tag>, more: Vec<Tag>) {
    for tag in more {
        into.retain(|old| old.key != tag.key);
        into.push(tag);
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TagInput {
    resource_arn: String,
    #[serde(default)]
    tags: Option<Vec<Tag>>,
    #[serde(default)]
    tag_keys: Vec<String>,
}

fn of<'a>(ecs: &'a mut Ecs, arn: &str) -> ApiResult<&'a mut Vec<Tag>> {
    let resource = arn.splitn(6, ':').nth(5).unwrap_or_default();
    let kind = resource.split('/').next().unwrap_or_default();
    let found = match kind {
        "cluster" => ecs.clusters.get_mut(super::cluster_name(arn)).map(|c| &mut c.tags),
        "service" => ecs.services.get_mut(arn).map(|s| &mut s.tags),
        "task" => ecs.tasks.get_mut(arn).map(|t| &mut t.tags),
        "container-instance" => ecs.instances.get_mut(arn).map(|i| &mut i.tags),
        "task-definition" => ecs.definition_by_arn_mut(arn).map(|d| &mut d.tags),
        _ => None,
    };
    found.ok_or_else(|| ApiError::invalid(format!("The specified resource '{arn}' could not be found.")))
}

pub(super) fn tag(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: TagInput = input(value)?;
    let more = checked(request.tags)?;
    let tags = of(ecs, &request.resource_arn)?;
    let mut wanted = tags.clone();
    merge(&mut wanted, more);
    if wanted.len() > MAX_TAGS {
        return Err(ApiError::invalid("The maximum number of tags allowed on a resource is 50."));
    }
    *tags = wanted;
    Ok(json!({}))
}

pub(super) fn untag(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: TagInput = input(value)?;
    of(ecs, &request.resource_arn)?.retain(|tag| !request.tag_keys.contains(&tag.key));
    Ok(json!({}))
}

pub(super) fn list(ecs: &mut Ecs, value: Value) -> ApiResult {
    let request: TagInput = input(value)?;
    Ok(json!({"tags": of(ecs, &request.resource_arn)?}))
}
