//! What a stored definition lacks of what this program knows.
//!
//! The API server drops fields that a definition does not have, without a word. Definitions only grow, so one that
//! has everything in ours is as new or newer. Compared field by field: a number to be raised by hand would be forgotten.

use super::{VERSION, definition};
use serde_json::Value;

/// Fields, as `spec.rollout.waves[].soak`, and words, as `spec.mode: Enforce`, that this program knows and `stored`, a
/// definition of `kind`, does not. Empty where it knows all of them.
pub fn lacking(kind: &str, stored: &Value) -> Vec<String> {
    let Some(own) = definition(kind) else { return Vec::new() };
    let Some(stored) = schema(stored) else { return vec![format!("version {VERSION}")] };
    let mut lacks = Vec::new();
    if let Some(own) = schema(&own) {
        walk(own, stored, "", &mut lacks);
    }
    lacks
}

fn schema(definition: &Value) -> Option<&Value> {
    let version = definition["spec"]["versions"].as_array()?.iter().find(|version| version["name"] == VERSION)?;
    Some(&version["schema"]["openAPIV3Schema"])
}

fn walk(own: &Value, stored: &Value, at: &str, lacks: &mut Vec<String>) {
    if stored["x-kubernetes-preserve-unknown-fields"] == true {
        return;
    }
    for (name, inner) in own["properties"].as_object().into_iter().flatten() {
        let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        match stored["properties"].get(name) {
            Some(stored) => walk(inner, stored, &at, lacks),
            None => lacks.push(at),
        }
    }
    for (keyword, step) in [("items", "[]"), ("additionalProperties", "[*]")] {
        if own[keyword].is_object() {
            walk(&own[keyword], &stored[keyword], &format!("{at}{step}"), lacks);
        }
    }
    let words = stored["enum"].as_array().and_then(|stored| Some((own["enum"].as_array()?, stored)));
    for word in words.into_iter().flat_map(|(own, stored)| own.iter().filter(|word| !stored.contains(word))) {
        lacks.push(format!("{at}: {}", word.as_str().unwrap_or_default()));
    }
}
