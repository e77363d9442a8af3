//! Event patterns: which events a rule wants.
//!
//! Operators: exact values, `prefix`, `suffix`, `equals-ignore-case`, `anything-but` (values, `prefix`), `exists`,
//! `numeric`, `$or`. An unknown operator is refused when the rule is put, never ignored.

use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// Longest pattern (EventBridge quota, 2048 by default; it can be raised to 4096).
const MAX_LENGTH: usize = 4096;
/// Nesting of a pattern from outside.
const MAX_DEPTH: usize = 64;

/// A checked pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern(Value);

fn refuse(reason: impl std::fmt::Display) -> ApiError {
    ApiError::new("InvalidEventPatternException", format!("Event pattern is not valid. Reason: {reason}"))
}

impl Pattern {
    /// Reads and checks a pattern.
    ///
    /// # Errors
    /// `InvalidEventPatternException`.
    pub fn parse(text: &str) -> ApiResult<Self> {
        if text.len() > MAX_LENGTH {
            return Err(refuse(format!("longer than {MAX_LENGTH} characters")));
        }
        let value: Value = serde_json::from_str(text).map_err(refuse)?;
        match value.as_object() {
            Some(map) if !map.is_empty() => check_object(&value, 0)?,
            _ => return Err(refuse("Filter is not an object or is empty")),
        }
        Ok(Self(value))
    }

    /// True when the rule wants this event.
    pub fn matches(&self, event: &Value) -> bool {
        object_matches(&self.0, Some(event))
    }
}

fn check_object(pattern: &Value, depth: usize) -> ApiResult<()> {
    if depth > MAX_DEPTH {
        return Err(refuse("nested too deeply"));
    }
    for (key, value) in pattern.as_object().into_iter().flatten() {
        match value {
            Value::Array(branches) if key == "$or" => {
                if branches.len() < 2 || branches.iter().any(|b| !b.is_object()) {
                    return Err(refuse("$or must be an array of at least two objects"));
                }
                for branch in branches {
                    check_object(branch, depth + 1)?;
                }
            }
            Value::Array(options) if !options.is_empty() => options.iter().try_for_each(check_option)?,
            Value::Object(map) if !map.is_empty() => check_object(value, depth + 1)?,
            _ => return Err(refuse(format!("\"{key}\" must be an object or an array"))),
        }
    }
    Ok(())
}

fn check_option(option: &Value) -> ApiResult<()> {
    let Some(map) = option.as_object() else {
        return if option.is_array() { Err(refuse("an array cannot hold an array")) } else { Ok(()) };
    };
    let mut entries = map.iter();
    let (Some((operator, operand)), None) = (entries.next(), entries.next()) else {
        return Err(refuse("a match expression has exactly one operator"));
    };
    let fits = match operator.as_str() {
        "prefix" | "suffix" | "equals-ignore-case" => operand.is_string(),
        "exists" => operand.is_boolean(),
        "numeric" => operand.as_array().is_some_and(|list| {
            !list.is_empty()
                && list.len() <= 4
                && list.len().is_multiple_of(2)
                && list.chunks(2).all(|pair| {
                    ["=", "<", "<=", ">", ">="].contains(&pair[0].as_str().unwrap_or_default()) && pair[1].is_number()
                })
        }),
        "anything-but" => match operand {
            Value::Array(list) => !list.is_empty() && list.iter().all(|v| v.is_string() || v.is_number()),
            Value::Object(inner) => inner.len() == 1 && inner.get("prefix").is_some_and(Value::is_string),
            other => other.is_string() || other.is_number(),
        },
        other => return Err(refuse(format!("Unrecognized match type {other}"))),
    };
    if fits { Ok(()) } else { Err(refuse(format!("invalid operand of {operator}"))) }
}

fn object_matches(pattern: &Value, event: Option<&Value>) -> bool {
    pattern.as_object().into_iter().flatten().all(|(key, wanted)| match wanted {
        Value::Array(branches) if key == "$or" => branches.iter().any(|branch| object_matches(branch, event)),
        Value::Array(options) => options.iter().any(|option| option_matches(option, event.and_then(|e| e.get(key)))),
        _ => match event.and_then(|e| e.get(key)) {
            // A list of objects matches when one of them does.
            Some(Value::Array(list)) => list.iter().any(|item| object_matches(wanted, Some(item))),
            inner => object_matches(wanted, inner),
        },
    })
}

fn option_matches(option: &Value, value: Option<&Value>) -> bool {
    if let Some(exists) = option.get("exists").and_then(Value::as_bool) {
        return value.is_some() == exists;
    }
    match value {
        None => false,
        Some(Value::Array(list)) => list.iter().any(|item| leaf_matches(option, item)),
        Some(leaf) => leaf_matches(option, leaf),
    }
}

fn leaf_matches(option: &Value, leaf: &Value) -> bool {
    let text = leaf.as_str();
    let Some((operator, operand)) = option.as_object().and_then(|map| map.iter().next()) else {
        return equal(option, leaf);
    };
    let operand_text = operand.as_str().unwrap_or_default();
    match operator.as_str() {
        "prefix" => text.is_some_and(|t| t.starts_with(operand_text)),
        "suffix" => text.is_some_and(|t| t.ends_with(operand_text)),
        "equals-ignore-case" => text.is_some_and(|t| t.eq_ignore_ascii_case(operand_text)),
        "anything-but" => match operand {
            Value::Array(list) => !list.iter().any(|other| equal(other, leaf)),
            Value::Object(inner) => {
                let prefix = inner.get("prefix").and_then(Value::as_str).unwrap_or_default();
                !text.is_some_and(|t| t.starts_with(prefix))
            }
            other => !equal(other, leaf),
        },
        "numeric" => leaf.as_f64().is_some_and(|number| {
            operand.as_array().into_iter().flat_map(|list| list.chunks(2)).all(|pair| {
                let bound = pair.get(1).and_then(Value::as_f64).unwrap_or(f64::NAN);
                match pair.first().and_then(Value::as_str) {
                    Some("=") => number == bound,
                    Some("<") => number < bound,
                    Some("<=") => number <= bound,
                    Some(">") => number > bound,
                    Some(">=") => number >= bound,
                    _ => false,
                }
            })
        }),
        _ => false,
    }
}

fn equal(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn operators_match_as_documented() {
        let event = json!({"source": "aws.ecs", "detail": {"status": "DRAINING", "agentConnected": true, "version": 7,
                           "containers": [{"name": "a", "exitCode": 1}, {"name": "b"}], "group": "service:web"}});
        let table = [
            (json!({"source": ["aws.ecs"]}), true),
            (json!({"source": ["aws.ec2", "aws.ecs"]}), true),
            (json!({"detail": {"status": [{"anything-but": "ACTIVE"}]}}), true),
            (json!({"detail": {"status": [{"anything-but": ["DRAINING"]}]}}), false),
            (
                json!({"detail": {"$or": [{"status": [{"anything-but": ["ACTIVE"]}]}, {"agentConnected": [false]}]}}),
                true,
            ),
            (json!({"detail": {"$or": [{"status": ["ACTIVE"]}, {"agentConnected": [false]}]}}), false),
            (json!({"detail": {"group": [{"prefix": "service:"}]}}), true),
            (json!({"detail": {"stoppedReason": [{"exists": false}]}}), true),
            (json!({"detail": {"version": [{"numeric": [">", 5, "<=", 7]}]}}), true),
            (json!({"detail": {"version": [{"numeric": ["<", 7]}]}}), false),
            (json!({"detail": {"containers": {"exitCode": [1]}}}), true),
            (json!({"detail": {"containers": {"name": ["c"]}}}), false),
            (json!({"detail-type": ["x"]}), false),
        ];
        for (pattern, expected) in table {
            assert_eq!(Pattern::parse(&pattern.to_string()).unwrap().matches(&event), expected, "{pattern}");
        }
    }

    #[test]
    fn a_bad_pattern_is_refused() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"a":"b"}"#,
            r#"{"a":[{"wild":"x"}]}"#,
            r#"{"a":[{"numeric":["~",1]}]}"#,
            r#"{"$or":[{"a":["b"]}]}"#,
        ] {
            assert!(Pattern::parse(text).is_err(), "{text}");
        }
    }
}
