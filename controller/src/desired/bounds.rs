//! Every text, list and mapping of a document has a bound.
//!
//! Where a type states none, it gets the one of this file. The Kubernetes API server refuses CEL
//! rules over anything unbounded, and `tasuki check` refuses what it would refuse.

use serde_json::{Map, Value};

/// Characters of a text.
const TEXT: u64 = 1024;
/// Items of a list.
const ITEMS: u64 = 256;
/// Keys of a mapping.
const KEYS: u64 = 128;

/// Puts a bound on everything in `schema` that states none.
pub fn apply(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    let choice = map.contains_key("enum") || map.contains_key("const");
    match kind(map) {
        "string" if !choice => bound(map, "maxLength", TEXT),
        "array" => bound(map, "maxItems", ITEMS),
        "object" if map.get("additionalProperties").is_some_and(Value::is_object) => bound(map, "maxProperties", KEYS),
        _ => {}
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            apply(inner);
        }
    }
    for key in ["properties", "$defs"] {
        map.get_mut(key).and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut).for_each(apply);
    }
    for key in ["anyOf", "oneOf"] {
        map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().for_each(apply);
    }
}

fn bound(map: &mut Map<String, Value>, keyword: &str, most: u64) {
    map.entry(keyword).or_insert_with(|| most.into());
}

fn kind(map: &Map<String, Value>) -> &str {
    match map.get("type") {
        Some(Value::String(name)) => name,
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or(""),
        _ => "",
    }
}
