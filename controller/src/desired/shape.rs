//! A walk of a document along its schema: every unknown field, wrong type, wrong unit and missing
//! field in one go, where serde would stop at the first.
//!
//! What is wrong is replaced by something valid, so that the checks that come after see the rest
//! of the document; what they say about a replaced value is dropped.

use super::yaml::{Path, Step};
use serde_json::{Map, Value};
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

impl Fault {
    /// Whether a later word on `other` would only speak of what was put in the place of this fault:
    /// the value itself, and for a value in a list all that is in the list.
    pub fn hides(&self, other: &Path) -> bool {
        if self.at_key {
            return other.0.starts_with(&self.path.0);
        }
        let list = self.path.0.iter().position(|step| matches!(step, Step::Index(_))).unwrap_or(self.path.0.len());
        other.0.starts_with(&self.path.0[..list])
    }
}

/// Walks `value` along `schema`, whose references lead into `root`.
pub fn walk(root: &Value, schema: &Value, value: &mut Value, path: &Path, faults: &mut Vec<Fault>) {
    let schema = resolve(root, schema);
    if value.is_null() && allows_null(schema) {
        return;
    }
    let schema = not_null(root, schema);
    let fault = match judge(root, schema, value, path, faults) {
        Some((message, help)) => Fault { path: path.clone(), at_key: false, message, help },
        None => return,
    };
    *value = placeholder(root, schema);
    faults.push(fault);
}

/// What is wrong with the value itself; what is wrong inside it goes to `faults`.
fn judge(
    root: &Value,
    schema: &Value,
    value: &mut Value,
    path: &Path,
    faults: &mut Vec<Fault>,
) -> Option<(String, Vec<String>)> {
    if let Some(choices) = choices(schema) {
        return match value.as_str() {
            Some(text) if choices.contains(&text) => None,
            Some(text) => Some((unknown("value", text, &choices), vec![valid(&choices)])),
            None => Some((mistyped("one word", value), vec![valid(&choices)])),
        };
    }
    if let Some(beyond) = beyond(schema, value) {
        return Some((beyond, Vec::new()));
    }
    match (type_of(schema), &mut *value) {
        ("object", Value::Object(map)) => fields(root, schema, map, path, faults),
        ("array", Value::Array(items)) => {
            for (i, item) in items.iter_mut().enumerate() {
                walk(root, &schema["items"], item, &path.with(i), faults);
            }
        }
        ("string", Value::String(text)) => {
            return schema["pattern"].as_str().and_then(|pattern| unit_error(pattern, text)).map(|e| (e, Vec::new()));
        }
        ("boolean", Value::Bool(_)) | ("number", Value::Number(_)) | ("", _) => {}
        ("integer", Value::Number(n)) if n.is_i64() || n.is_u64() => {
            let (least, most) = match schema["format"].as_str() {
                Some("uint8") => (0, i64::from(u8::MAX)),
                Some("uint16") => (0, i64::from(u16::MAX)),
                Some("uint32") => (0, i64::from(u32::MAX)),
                Some("int32") => (i64::from(i32::MIN), i64::from(i32::MAX)),
                _ => (schema["minimum"].as_i64().unwrap_or(i64::MIN), i64::MAX),
            };
            if n.as_i64().is_none_or(|n| n < least || n > most) {
                return Some((format!("{n} is out of range: write {least} to {most}"), Vec::new()));
            }
        }
        (wanted, other) => return Some(wrong_type(wanted, schema, other)),
    }
    None
}

/// What is said of a value that is larger than its bound.
fn beyond(schema: &Value, value: &Value) -> Option<String> {
    let (size, keyword, what) = match value {
        Value::String(text) => (text.chars().count(), "maxLength", "characters"),
        Value::Array(items) => (items.len(), "maxItems", "items"),
        Value::Object(map) => (map.len(), "maxProperties", "keys"),
        _ => return None,
    };
    let most = schema[keyword].as_u64()?;
    (size as u64 > most).then(|| format!("{size} {what} are too many: at most {most}"))
}

fn fields(root: &Value, schema: &Value, map: &mut Map<String, Value>, path: &Path, faults: &mut Vec<Fault>) {
    let properties = schema["properties"].as_object();
    let names: Vec<&str> = properties.map(|p| p.keys().map(String::as_str).collect()).unwrap_or_default();
    let free = schema.get("additionalProperties").filter(|extra| !extra.is_boolean() || **extra == Value::Bool(true));
    let closed = schema["additionalProperties"] == Value::Bool(false) || (properties.is_some() && free.is_none());
    let keys: Vec<String> = map.keys().cloned().collect();
    for key in keys {
        let sub = properties.and_then(|p| p.get(&key)).or(free);
        match (sub, map.get_mut(&key)) {
            (Some(sub), Some(field)) => walk(root, sub, field, &path.with(&key), faults),
            (None, _) if closed => {
                map.shift_remove(&key);
                let message = unknown("field", &key, &names);
                faults.push(Fault { path: path.with(&key), at_key: true, message, help: vec![valid(&names)] });
            }
            _ => {}
        }
    }
    let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    for name in required.iter().filter_map(Value::as_str) {
        if map.contains_key(name) {
            continue;
        }
        let sub = properties.and_then(|p| p.get(name)).unwrap_or(&Value::Null);
        map.insert(name.to_owned(), placeholder(root, sub));
        let about = describe(root, sub);
        let help = if about.is_empty() { Vec::new() } else { vec![format!("`{name}`: {about}")] };
        faults.push(Fault { path: path.with(name), at_key: true, message: format!("missing field `{name}`"), help });
    }
}

/// Takes away every field that `schema` does not know, and notes where it stood: an object in a
/// cluster may have been written for a newer version.
pub fn prune(root: &Value, schema: &Value, value: &mut Value, path: &Path, unknown: &mut Vec<Path>) {
    let schema = not_null(root, resolve(root, schema));
    match value {
        Value::Object(map) => {
            let known = schema["properties"].as_object();
            let free = schema.get("additionalProperties").filter(|extra| extra.is_object());
            if known.is_none() && free.is_none() {
                return;
            }
            map.retain(|key, field| match known.and_then(|known| known.get(key)).or(free) {
                Some(inner) => {
                    prune(root, inner, field, &path.with(key), unknown);
                    true
                }
                None => {
                    unknown.push(path.with(key));
                    false
                }
            });
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                prune(root, &schema["items"], item, &path.with(i), unknown);
            }
        }
        _ => {}
    }
}

/// Something valid in place of what is wrong or missing.
fn placeholder(root: &Value, schema: &Value) -> Value {
    let schema = not_null(root, resolve(root, schema));
    if let Some(choices) = choices(schema) {
        return choices.first().copied().unwrap_or_default().into();
    }
    match (type_of(schema), schema["pattern"].as_str()) {
        ("object", _) => {
            let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
            let names = required.iter().filter_map(Value::as_str);
            names.map(|name| (name.to_owned(), placeholder(root, &schema["properties"][name]))).collect()
        }
        ("array", _) => Value::Array(Vec::new()),
        ("string", Some(p)) if p.contains("[smhd]") => "10m".into(),
        ("string", Some(p)) if p.contains("Ki|Mi|Gi") => "128Mi".into(),
        ("string", Some(p)) if p.ends_with("%$") => "5%".into(),
        ("string", _) => "".into(),
        ("boolean", _) => false.into(),
        ("integer" | "number", _) => schema["minimum"].as_i64().unwrap_or(1).max(1).into(),
        _ => Value::Null,
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
