//! JSON schema to the structural schema of a custom resource definition.
//!
//! Kubernetes wants one `type` everywhere, no `$ref`, no `null`, and no `properties` beside
//! `additionalProperties`. Absent is absent there: a field that may be null simply is not required.

use super::rules;
use serde_json::{Map, Value, json};

/// Keywords that mean the same on both sides.
const KEPT: &[&str] = &[
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
];
/// Defaults that the API server may fill in, since a column shows them. All others are applied when a document is
/// read, so that they are not stored for ever in each object.
const DEFAULTED: &[(&str, &str)] = &[("RuntimeMonitorSpec", "mode")];

/// The structural form of `schema`, whose references lead into `root`.
pub fn schema(root: &Value, schema: &Value) -> Value {
    let (name, inner) = resolve(root, schema);
    let mut out = Map::new();
    let description = schema["description"].as_str().or_else(|| inner["description"].as_str()).unwrap_or_default();
    let mut description = description.replace('\n', " ");
    // Whole structures are no news, and nobody reads them in one line.
    if let Some(default) = schema.get("default").filter(|default| !default.is_object() && !default.is_array()) {
        let text = default.as_str().map_or_else(|| default.to_string(), str::to_owned);
        if !text.is_empty() && text != "null" {
            description += &format!(" Default: {text}.");
        }
    }
    let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
    if let Some(choices) = choices(inner) {
        let words: Vec<String> = choices
            .iter()
            .filter(|(_, about)| !about.is_empty())
            .map(|(word, about)| format!("{word}: {}", about.replace('\n', " ")))
            .collect();
        description = format!("{description} {}", words.join(" ")).trim().to_owned();
        put("type", "string".into());
        put("enum", choices.into_iter().map(|(word, _)| word).collect());
    } else {
        match kind(inner) {
            "object" => object(root, name, inner, &mut put),
            "array" => {
                put("type", "array".into());
                put("items", self::schema(root, &inner["items"]));
            }
            "integer" => integer(inner, &mut put),
            other => {
                put("type", other.into());
                if inner["format"] == "date-time" {
                    put("format", "date-time".into());
                }
            }
        }
        for keyword in KEPT {
            if let Some(value) = schema.get(keyword).or_else(|| inner.get(keyword)) {
                put(keyword, value.clone());
            }
        }
    }
    if let Some(name) = name {
        let rules = rules::of_type(name);
        if !rules.is_empty() {
            put("x-kubernetes-validations", rules.into());
        }
    }
    if !description.is_empty() {
        out.shift_insert(0, "description".to_owned(), description.into());
    }
    Value::Object(out)
}

fn object(root: &Value, name: Option<&str>, inner: &Value, put: &mut impl FnMut(&str, Value) -> Option<Value>) {
    put("type", "object".into());
    let Some(properties) = inner["properties"].as_object() else {
        if inner["additionalProperties"].is_object() {
            put("additionalProperties", schema(root, &inner["additionalProperties"]));
        }
        return;
    };
    let field = |(key, property): (&String, &Value)| {
        let mut field = schema(root, property);
        if let Some(name) = name {
            let rules = rules::of_field(name, key);
            if !rules.is_empty() {
                field["x-kubernetes-validations"] = rules.into();
            }
            if DEFAULTED.contains(&(name, key)) {
                field["default"] = property["default"].clone();
            }
        }
        (key.clone(), field)
    };
    put("properties", Value::Object(properties.iter().map(field).collect()));
    if let Some(required) = inner.get("required") {
        put("required", required.clone());
    }
}

fn integer(inner: &Value, put: &mut impl FnMut(&str, Value) -> Option<Value>) {
    put("type", "integer".into());
    // The API server knows signed formats only.
    let (format, least, most) = match inner["format"].as_str() {
        Some("int32") => ("int32", None, None),
        Some("uint8") => ("int32", Some(0), Some(i64::from(u8::MAX))),
        Some("uint16") => ("int32", Some(0), Some(i64::from(u16::MAX))),
        Some("uint32") => ("int64", Some(0), Some(i64::from(u32::MAX))),
        Some("uint64" | "uint") => ("int64", Some(0), None),
        _ => ("int64", None, None),
    };
    put("format", format.into());
    for (keyword, bound) in [("minimum", least), ("maximum", most)] {
        if let Some(bound) = bound {
            put(keyword, json!(bound));
        }
    }
}

/// The schema behind references and `anyOf: [it, null]`, and the name that it goes by.
fn resolve<'a>(root: &'a Value, mut schema: &'a Value) -> (Option<&'a str>, &'a Value) {
    let mut name = None;
    loop {
        if let Some(reference) = schema["$ref"].as_str().and_then(|text| text.strip_prefix("#/$defs/")) {
            name = Some(reference);
            schema = &root["$defs"][reference];
        } else if let Some(options) = schema["anyOf"].as_array() {
            schema = options.iter().find(|option| option["type"] != "null").unwrap_or(&Value::Null);
        } else {
            return (name, schema);
        }
    }
}

/// The words that an enumeration allows, each with what it means.
fn choices(schema: &Value) -> Option<Vec<(&str, &str)>> {
    let about = schema["description"].as_str().unwrap_or_default();
    if let Some(word) = schema["const"].as_str() {
        return Some(vec![(word, about)]);
    }
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(Value::as_str).map(|word| (word, "")).collect());
    }
    let options = schema["oneOf"].as_array()?;
    let words = options.iter().map(choices).collect::<Option<Vec<_>>>()?;
    Some(words.into_iter().flatten().collect())
}

fn kind(schema: &Value) -> &str {
    match &schema["type"] {
        Value::String(name) => name,
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or("object"),
        _ => "object",
    }
}
