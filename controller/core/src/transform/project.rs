//! What the fleet keeps of a definition. Never environment or secrets.

use super::inject::inject;
use super::{containers, content_hash, strip, text};
use crate::action::{SidecarSpec, labels};
use crate::fleet::{Definition, SidecarMark, Str};
use serde_json::Value;

/// The projection of a definition as DescribeTaskDefinition answers it, judged for `sidecar` where
/// one is given. `None` where it has no ARN.
pub fn project(definition: &Value, sidecar: Option<&SidecarSpec>) -> Option<Definition> {
    let arn: Str = text(definition, "taskDefinitionArn")?.into();
    let fields = definition.as_object()?;
    let share = |text: &str| Str::from(text);
    let mark = strip::find(definition).map(|container| SidecarMark {
        version: strip::label(container, labels::VERSION).map(share).unwrap_or_default(),
        image: text(container, "image").map(share).unwrap_or_default(),
        source: strip::label(container, labels::SOURCE).map(share),
        source_hash: strip::label(container, labels::SOURCE_HASH).map(share),
        spec: strip::label(container, labels::SPEC).map(share),
    });
    let obstacle = sidecar.and_then(|spec| inject(definition, spec, &arn).err()).map(|o| (o.reason, o.detail));
    Some(Definition {
        hash: content_hash(definition).into(),
        active: text(definition, "status").is_none_or(|s| s == "ACTIVE"),
        containers: containers(fields).iter().filter_map(|c| text(c, "name")).map(share).collect(),
        task_role: text(definition, "taskRoleArn").map(share),
        sidecar: mark,
        obstacle,
        judged_for: sidecar.map(SidecarSpec::fingerprint),
        arn,
    })
}
