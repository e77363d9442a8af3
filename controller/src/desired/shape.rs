//! A walk of a document along its schema: every unknown field, wrong type, wrong unit and missing
//! field in one go, where serde would stop at the first.
//!
//! What is wrong is taken out of the value, so that the checks that come after see the rest.

use super::yaml::Path;
use serde_json::Value;
use tasuki_api::desired::{Duration, Ratio, Size};

/// Something that is not as the schema says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub path: Path,
    /// Whether the key is meant, not the value.
    pub at_key: bool,
    /// What is wrong.
    pub message: String,
    /// What is valid.
    pub help: Vec<String>,
}

/// Walks `value` along `schema`, whose references lead into `root`.
pub fn walk(root: &Value, schema: &Value, value: &mut Value, path: &Path, faults: &mut Vec<Fault>) {
    let before = faults.len();
    let schema = resolve(root, schema);
    if value.is_null() && allows_null(schema) {
        return;
    }
    let schema = not_null(root, schema);
    let fault = |message: String, help: Vec<String>| Fault { path: path.clone(), at_key: false, message, help };
    if let Some(choices) = choices(schema) {
        match value.as_str() {
            Some(text) if choices.contains(&text) => {}
            Some(text) => faults.push(fault(unknown("value", text, &choices), vec![valid(&choices)])),
            None => faults.push(fault(mistyped("one word", value), vec![valid(&choices)])),
        }
        return;
    }
    match (type_of(schema), &mut *value) {
        ("object", Value::Object(_)) => fields(root, schema, value, path, faults),
        ("array", Value::Array(items)) => {
            let mut keep = Vec::with_capacity(items.len());
            for (i, mut item) in std::mem::take(items).into_iter().enumerate() {
                let known = faults.len();
                walk(root, &schema["items"], &mut item, &path.with(i), faults);
                // An item that is a broken scalar goes; a mapping was mended field by field.
                if faults.len() == known || item.is_object() {
                    keep.push(item);
                }
            }
            *items = keep;
        }
        ("string", Value::String(text)) => {
            if let Some(error) = schema["pattern"].as_str().and_then(|pattern| unit_error(pattern, text)) {
                faults.push(fault(error, Vec::new()));
            }
        }
        ("boolean", Value::Bool(_)) | ("", _) => {}
        ("integer", Value::Number(n)) if n.is_i64() || n.is_u64() => {
            let limits = match schema["format"].as_str() {
                Some("uint8") => (0, i64::from(u8::MAX)),
                Some("uint16") => (0, i64::from(u16::MAX)),
                Some("uint32") => (0, i64::from(u32::MAX)),
                Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
                _ => (schema["minimum"].as_i64().unwrap_or(i64::MIN), i64::MAX),
            };
            if n.as_i64().is_none_or(|n| n < limits.0 || n > limits.1) {
                faults.push(fault(format!("{n} is out of range: write {} to {}", limits.0, limits.1), Vec::new()));
            }
        }
        ("number", Value::Number(_)) => {}
        (wanted, other) => {
            let (message, help) = wrong_type(wanted, schema, other);
            faults.push(fault(message, help));
        }
    }
    debug_assert!(faults.len() >= before);
}

fn fields(root: &Value, schema: &Value, value: &mut Value, path: &Path, faults: &mut Vec<Fault>) {
    let Value::Object(map) = value else { return };
    let properties = schema["properties"].as_object();
    let names: Vec<&str> = properties.map(|p| p.keys().map(String::as_str).collect()).unwrap_or_default();
    let free = schema.get("additionalProperties").filter(|extra| !extra.is_boolean() || **extra == Value::Bool(true));
    let closed = schema["additionalProperties"] == Value::Bool(false) || (properties.is_some() && free.is_none());
    let keys: Vec<String> = map.keys().cloned().collect();
    for key in keys {
        let sub = properties.and_then(|p| p.get(&key)).or(free);
        let here = path.with(&key);
        match (sub, map.get_mut(&key)) {
            (Some(sub), Some(field)) => {
                let known = faults.len();
                walk(root, sub, field, &here, faults);
                if faults.len() > known && !field.is_object() && !field.is_array() {
                    map.shift_remove(&key);
                }
            }
            (None, _) if closed => {
                map.shift_remove(&key);
                faults.push(Fault {
                    path: here,
                    at_key: true,
                    message: unknown("field", &key, &names),
                    help: vec![valid(&names)],
                });
            }
            _ => {}
        }
    }
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    for name in required.iter().filter_map(Value::as_str).filter(|name| !map.contains_key(*name)) {
        // A field that was taken out above is there, only wrong.
        if faults.iter().any(|fault| fault.path == path.with(name)) {
            continue;
        }
        let about = properties.and_then(|p| p.get(name)).map(|sub| describe(root, sub)).unwrap_or_default();
        let help = if about.is_empty() { Vec::new() } else { vec![format!("`{name}`: {about}")] };
        faults.push(Fault { path: path.clone(), at_key: false, message: format!("missing field `{name}`"), help });
    }
}

/// ``unknown field `x`, did you mean `y`?``
pub fn unknown<S: AsRef<str>>(what: &str, text: &str, valid: &[S]) -> String {
    let text: String = text.chars().take(64).collect();
    match nearest(&text, valid) {
        Some(near) => format!("unknown {what} `{text}`, did you mean `{near}`?"),
        None => format!("unknown {what} `{text}`"),
    }
}

/// The nearest valid word, where one is near enough to be meant.
pub fn nearest<'a, S: AsRef<str>>(text: &str, valid: &'a [S]) -> Option<&'a str> {
    let lower = text.to_lowercase();
    let near = |name: &&'a str| strsim::jaro_winkler(&lower, &name.to_lowercase());
    let scored = valid.iter().map(AsRef::as_ref).map(|name| (near(&name), name));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, name)| name)
}

/// `valid here: a, b, c`
pub fn valid<S: AsRef<str>>(names: &[S]) -> String {
    let shown: Vec<&str> = names.iter().take(40).map(AsRef::as_ref).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("valid here: {}{more}", shown.join(", "))
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let name = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/"));
    name.and_then(|name| root["$defs"].get(name)).unwrap_or(schema)
}

fn allows_null(schema: &Value) -> bool {
    let listed = schema["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "null"));
    listed || schema["anyOf"].as_array().is_some_and(|options| options.iter().any(|o| o["type"] == "null"))
}

/// The schema behind `anyOf: [it, null]`.
fn not_null<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let other = schema["anyOf"].as_array().and_then(|options| options.iter().find(|o| o["type"] != "null"));
    other.map_or(schema, |schema| resolve(root, schema))
}

fn type_of(schema: &Value) -> &str {
    match &schema["type"] {
        Value::String(name) => name,
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or(""),
        _ => "",
    }
}

/// The words that an enumeration allows.
fn choices(schema: &Value) -> Option<Vec<&str>> {
    if let Some(word) = schema["const"].as_str() {
        return Some(vec![word]);
    }
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(Value::as_str).collect());
    }
    let options = schema["oneOf"].as_array()?;
    let words = options.iter().map(choices).collect::<Option<Vec<_>>>()?;
    Some(words.into_iter().flatten().collect())
}

fn describe(root: &Value, schema: &Value) -> String {
    let own = schema["description"].as_str().or_else(|| resolve(root, schema)["description"].as_str());
    own.unwrap_or_default().split("\n\n").next().unwrap_or_default().replace('\n', " ")
}

/// The units say themselves what is wrong; their patterns tell which one is meant.
fn unit_error(pattern: &str, text: &str) -> Option<String> {
    let error = match pattern {
        p if p.contains("[smhd]") => text.parse::<Duration>().err(),
        p if p.contains("Ki|Mi|Gi") => text.parse::<Size>().err(),
        p if p.ends_with("%$") => text.parse::<Ratio>().err(),
        _ => None,
    };
    error.map(|error| error.to_string())
}

fn wrong_type(wanted: &str, schema: &Value, value: &Value) -> (String, Vec<String>) {
    let form = match (wanted, schema["pattern"].as_str()) {
        ("string", Some(p)) if p.contains("[smhd]") => "a duration such as 10m or 1h30m",
        ("string", Some(p)) if p.contains("Ki|Mi|Gi") => "a size such as 128Mi",
        ("string", Some(p)) if p.ends_with("%$") => "a percentage such as 5% or 0.1%",
        ("string", _) => "text",
        ("boolean", _) => "true or false",
        ("integer", _) => "a whole number",
        ("number", _) => "a number",
        ("array", _) => "a list",
        _ => "a mapping",
    };
    let help = match (wanted, value) {
        ("string", Value::Number(n)) if form == "text" => vec![format!("put it in quotes: \"{n}\"")],
        ("string", Value::Bool(b)) => vec![format!("put it in quotes: \"{b}\"")],
        ("array", Value::String(text)) if text.len() < 64 => vec![format!("write it as a list: [{text}]")],
        (_, Value::Null) => vec!["give it a value, or leave the field out".to_owned()],
        _ => Vec::new(),
    };
    (mistyped(form, value), help)
}

fn mistyped(wanted: &str, value: &Value) -> String {
    let short = |text: &str| text.chars().take(40).collect::<String>();
    let found = match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(b) => format!("`{b}`"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(text) => format!("the text `{}`", short(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a mapping".to_owned(),
    };
    format!("expected {wanted}, found {found}")
}
