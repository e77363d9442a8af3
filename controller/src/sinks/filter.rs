//! Conditions on fields of a finding, as suppressions and sinks use them.

use crate::cidr::Cidr;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tasuki_api::desired::{Condition, Document};
use tasuki_api::finding::Finding;
use wildmatch::WildMatch;

/// Conditions that must all hold.
#[derive(Clone, Debug, Default)]
pub struct Filter(Vec<(Vec<String>, Test)>);

#[derive(Clone, Debug)]
struct Test {
    equals: Vec<String>,
    matches: Vec<WildMatch>,
    cidr: Vec<Cidr>,
}

/// A condition that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the condition on `{field}` cannot be used: {problem}")]
pub struct FilterError {
    /// Field path.
    pub field: String,
    /// What is wrong and what to write.
    pub problem: String,
}

impl Filter {
    /// Reads conditions; an empty map holds for every finding.
    pub fn new(conditions: &BTreeMap<String, Condition>) -> Result<Self, FilterError> {
        let mut all = Vec::with_capacity(conditions.len());
        for (field, condition) in conditions {
            let wrong =
                |problem: &dyn std::fmt::Display| FilterError { field: field.clone(), problem: problem.to_string() };
            if condition.equals.is_empty() && condition.matches.is_empty() && condition.cidr.is_empty() {
                return Err(wrong(&"give one of equals, matches or cidr"));
            }
            let cidr = condition.cidr.iter().map(|text| text.parse()).collect::<Result<_, _>>();
            let test = Test {
                equals: condition.equals.clone(),
                matches: condition.matches.iter().map(|pattern| WildMatch::new(pattern)).collect(),
                cidr: cidr.map_err(|error| wrong(&error))?,
            };
            all.push((field.split('.').map(str::to_owned).collect(), test));
        }
        Ok(Self(all))
    }

    /// Whether every condition holds for a finding, given as its JSON.
    pub fn holds(&self, finding: &Value) -> bool {
        self.0.iter().all(|(path, test)| any(finding, path, test))
    }
}

/// Whether any value at `path` passes; a list stands for each of its members.
fn any(value: &Value, path: &[String], test: &Test) -> bool {
    match (value, path) {
        (Value::Array(members), _) => members.iter().any(|member| any(member, path, test)),
        (Value::Object(fields), [first, rest @ ..]) => fields.get(first).is_some_and(|value| any(value, rest, test)),
        (Value::String(text), []) => test.passes(text),
        (Value::Number(_) | Value::Bool(_), []) => test.passes(&value.to_string()),
        _ => false,
    }
}

impl Test {
    fn passes(&self, text: &str) -> bool {
        self.equals.iter().any(|wanted| wanted == text)
            || self.matches.iter().any(|pattern| pattern.matches(text))
            || (!self.cidr.is_empty()
                && text.parse::<IpAddr>().is_ok_and(|address| self.cidr.iter().any(|block| block.contains(address))))
    }
}

/// The suppressions in force.
#[derive(Clone, Debug, Default)]
pub struct Suppressions(Vec<(String, Filter, Option<Timestamp>)>);

impl Suppressions {
    /// Takes the suppressions out of desired state. One that cannot be used suppresses nothing and
    /// is returned as a problem, with its name.
    pub fn new(documents: &[Document]) -> (Self, Vec<(String, FilterError)>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for document in documents {
            let Document::Suppression(suppression) = document else { continue };
            let name = suppression.metadata.name.clone();
            match Filter::new(&suppression.spec.filter) {
                // Without a condition it would silence everything: never by accident.
                Ok(filter) if filter.0.is_empty() => {
                    bad.push((
                        name,
                        FilterError { field: "filter".to_owned(), problem: "give at least one".to_owned() },
                    ));
                }
                Ok(filter) => good.push((name, filter, suppression.spec.until)),
                Err(error) => bad.push((name, error)),
            }
        }
        (Self(good), bad)
    }

    /// Name of the first suppression that applies to a finding at `now`.
    pub fn find(&self, finding: &Finding, now: Timestamp) -> Option<String> {
        if self.0.is_empty() {
            return None;
        }
        let finding = serde_json::to_value(finding).ok()?;
        let applies = |(_, filter, until): &&(String, Filter, Option<Timestamp>)| {
            until.is_none_or(|until| now < until) && filter.holds(&finding)
        };
        self.0.iter().find(applies).map(|(name, ..)| name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filter(conditions: Value) -> Result<Filter, FilterError> {
        Filter::new(&serde_json::from_value(conditions).unwrap())
    }

    #[test]
    fn paths_reach_into_objects_and_lists() {
        let finding = json!({"type": "Impact:Runtime/X", "count": 3, "resource": {"service": "web"},
            "dns": {"answers": ["10.1.2.3", "192.0.2.1"]}, "process": {"lineage": [{"executable": "/bin/sh"}]}});
        for (conditions, holds) in [
            (json!({}), true),
            (json!({"resource.service": {"equals": ["api", "web"]}}), true),
            (json!({"resource.service": {"matches": ["w*"]}, "type": {"matches": ["Impact:*"]}}), true),
            (json!({"resource.service": {"matches": ["w*"]}, "type": {"equals": ["Impact"]}}), false),
            (json!({"dns.answers": {"cidr": ["192.0.2.0/24"]}}), true),
            (json!({"dns.answers": {"cidr": ["198.51.100.0/24"]}}), false),
            (json!({"process.lineage.executable": {"equals": ["/bin/sh"]}}), true),
            (json!({"count": {"equals": ["3"]}}), true),
            (json!({"resource.task": {"matches": ["*"]}}), false),
            (json!({"resource": {"matches": ["*"]}}), false),
        ] {
            assert_eq!(filter(conditions.clone()).unwrap().holds(&finding), holds, "{conditions}");
        }
    }

    #[test]
    fn conditions_that_mean_nothing_are_named() {
        assert!(filter(json!({"a.b": {}})).unwrap_err().to_string().contains("`a.b`"));
        assert!(filter(json!({"ip": {"cidr": ["10.0.0.0/99"]}})).unwrap_err().to_string().contains("10.0.0.0/8"));
    }
}
