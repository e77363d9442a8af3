//! Taking the sidecar out again.

use super::inject::Added;
use super::{Obstacle, containers, text, writable};
use crate::action::{FAMILY_SUFFIX, SIDECAR, labels};
use serde_json::Value;
use tasuki_api::coverage::Reason;

/// Whether a definition carries a sidecar, ours or one that the owner's pipeline added.
pub fn carries_sidecar(definition: &Value) -> bool {
    find(definition).is_some()
}

/// The sidecar's container: known by its name and the version label together.
pub(super) fn find(definition: &Value) -> Option<&Value> {
    containers(definition.as_object()?)
        .iter()
        .find(|c| text(c, "name") == Some(SIDECAR) && label(c, labels::VERSION).is_some())
}

pub(super) fn label<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    container.get("dockerLabels").and_then(|l| text(l, name))
}

/// The owner's form of a definition: without the sidecar and whatever came with it. A definition
/// without one is answered as it is, without its read-only fields.
///
/// # Errors
/// An [`Obstacle`] where a field is unknown or the label [`labels::ADDED`] cannot be read.
pub fn strip(definition: &Value) -> Result<Value, Obstacle> {
    let mut fields = writable(definition)?;
    let Some(sidecar) = find(definition) else { return Ok(Value::Object(fields)) };
    let ours = label(sidecar, labels::SOURCE).is_some();
    let added: Added = match label(sidecar, labels::ADDED) {
        None => Added::default(),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            let detail = format!(
                "label {} of {SIDECAR} cannot be read ({error}); the owner's definition must be used",
                labels::ADDED
            );
            Obstacle::new(Reason::UnsupportedPlatform, detail)
        })?,
    };
    if let Some(Value::Array(all)) = fields.get_mut("containerDefinitions") {
        all.retain(|c| text(c, "name") != Some(SIDECAR));
        for container in all {
            let name = text(container, "name").unwrap_or_default().to_owned();
            let Value::Object(container) = container else { continue };
            if added.depends_on_new.contains(&name) {
                container.shift_remove("dependsOn");
            } else if added.depends_on.contains(&name)
                && let Some(Value::Array(waits)) = container.get_mut("dependsOn")
                && let Some(index) = waits.iter().rposition(|w| text(w, "containerName") == Some(SIDECAR))
            {
                waits.remove(index);
            }
        }
    }
    if added.pid_mode {
        fields.shift_remove("pidMode");
    }
    if let Some((cpu, memory)) = added.size {
        fields.insert("cpu".to_owned(), cpu);
        fields.insert("memory".to_owned(), memory);
    }
    if ours
        && let Some(Value::String(family)) = fields.get_mut("family")
        && let Some(owners) = family.strip_suffix(FAMILY_SUFFIX)
    {
        *family = owners.to_owned();
    }
    Ok(Value::Object(fields))
}
