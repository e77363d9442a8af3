//! `DetectionRule`, `ThreatList`, `Suppression` and `FindingSink`.

use super::super::kinds::finding_schema;
use super::super::shape::{unknown, valid};
use super::super::yaml::{Path, at};
use super::Report;
use super::scopes::loopback;
use super::text::{is_domain, is_finding_type, is_region, is_sha256, network, short};
use serde_json::Value;
use std::collections::BTreeMap;
use tasuki_api::desired::{
    Condition, DetectionRuleSpec, FindingSinkSpec, SuppressionSpec, ThreatEntity, ThreatListSpec,
};
use url::Url;

/// Bad entries of one list that are named one by one.
const NAMED: usize = 5;

pub fn rule(spec: &DetectionRuleSpec, report: &mut Report) {
    let at = at!["spec", "sigma"];
    match rsigma_parser::parse_sigma_yaml(&spec.sigma) {
        Err(error) => report.error(at, format!("not a Sigma document: {}", line(&error.to_string())), ""),
        Ok(rules) => {
            for error in rules.errors.iter().take(NAMED) {
                report.error(at.clone(), format!("not a Sigma document: {}", line(error)), "");
            }
            if rules.errors.is_empty() && rules.rules.is_empty() && rules.correlations.is_empty() {
                report.error(at, "no Sigma rule in here", "write title, logsource, detection and condition");
            }
        }
    }
    if !is_finding_type(&spec.finding.kind) {
        let message = format!("`{}` is not a finding type", short(&spec.finding.kind));
        report.error(
            at!["spec", "finding", "type"],
            message,
            "write PURPOSE:Runtime/NAME, such as Custom:Runtime/ToolUsed",
        );
    }
}

pub fn list(spec: &ThreatListSpec, report: &mut Report) {
    if spec.inline.is_empty() {
        report.error(at!["spec"], "the list is empty", "add entries under `inline`");
    }
    let mut bad = 0;
    for (i, entry) in spec.inline.iter().enumerate() {
        let wrong = match spec.entity {
            ThreatEntity::Ip => network(entry).err(),
            ThreatEntity::Domain => (!is_domain(entry)).then_some("not a domain"),
            ThreatEntity::Sha256 => (!is_sha256(entry)).then_some("not a SHA-256 (64 hexadecimal digits)"),
        };
        if let Some(wrong) = wrong {
            bad += 1;
            if bad <= NAMED {
                report.error(at!["spec", "inline", i], format!("`{}`: {wrong}", short(entry)), "");
            }
        }
    }
    if bad > NAMED {
        report.error(at!["spec", "inline"], format!("{} more entries are wrong", bad - NAMED), "");
    }
}

pub fn suppression(spec: &SuppressionSpec, report: &mut Report) {
    report.not_blank(
        at!["spec", "reason"],
        &spec.reason,
        "the reason",
        "say why; it is shown wherever findings are counted",
    );
    if spec.filter.is_empty() {
        report.error(at!["spec", "filter"], "an empty filter would suppress every finding", "name at least one field");
    }
    filter(&spec.filter, report);
}

pub fn sink(spec: &FindingSinkSpec, report: &mut Report) {
    let targets = [
        ("eventBridge", spec.event_bridge.is_some()),
        ("webhook", spec.webhook.is_some()),
        ("stdout", spec.stdout.is_some()),
    ];
    let given: Vec<&str> = targets.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    match given.as_slice() {
        [_] => {}
        [] => report.error(at!["spec"], "a sink needs a target", "add one of: eventBridge, webhook, stdout"),
        [_, second, ..] => report.error(
            at!["spec", *second],
            format!("a sink has one target, this one has {}", given.join(" and ")),
            "write one document for each",
        ),
    }
    if let Some(webhook) = &spec.webhook {
        match Url::parse(&webhook.url) {
            Ok(url) if url.scheme() == "https" || (url.scheme() == "http" && loopback(&url)) => {}
            _ => {
                let message = format!("`{}` is not an https:// URL", short(&webhook.url));
                report.error(at!["spec", "webhook", "url"], message, "plain http is taken for loopback only");
            }
        }
    }
    if let Some(bus) = &spec.event_bridge {
        report.not_blank(at!["spec", "eventBridge", "bus"], &bus.bus, "the bus", "write its name or ARN");
        if bus.source.starts_with("aws.") {
            let help = "`aws.` belongs to AWS: PutEvents refuses it";
            report.error(
                at!["spec", "eventBridge", "source"],
                format!("`{}` cannot be a source", short(&bus.source)),
                help,
            );
        }
        if let Some(region) = bus.region.as_deref().filter(|region| !is_region(region)) {
            report.error(at!["spec", "eventBridge", "region"], format!("`{}` is not a Region", short(region)), "");
        }
    }
    filter(&spec.filter, report);
}

fn filter(filter: &BTreeMap<String, Condition>, report: &mut Report) {
    for (field, condition) in filter {
        let at = at!["spec", "filter", field];
        if let Err(names) = finding_field(field) {
            let message = unknown("field of a finding", field, &names);
            report.error(at.clone(), message, &valid(&names));
        }
        let given = [!condition.equals.is_empty(), !condition.matches.is_empty(), !condition.cidr.is_empty()];
        if given.iter().filter(|given| **given).count() != 1 {
            report.error(at.clone(), "a condition is exactly one list", "valid here: equals, matches, cidr");
        }
        for (i, block) in condition.cidr.iter().enumerate() {
            if let Err(wrong) = network(block) {
                let at: Path = at.with("cidr").with(i);
                report.error(at, format!("`{}`: {wrong}", short(block)), "write 10.0.0.0/8 or 2001:db8::/32");
            }
        }
    }
}

/// Whether findings have this field; otherwise the names that are valid where it goes wrong.
fn finding_field(field: &str) -> Result<(), Vec<String>> {
    let root = finding_schema();
    let (mut schema, mut before) = (root, String::new());
    for part in field.split('.') {
        schema = target(root, schema);
        let Some(properties) = schema["properties"].as_object() else {
            // Evidence is a free mapping: any fact may stand below it.
            return if schema["additionalProperties"].is_null() { Err(vec![before]) } else { Ok(()) };
        };
        match properties.get(part) {
            Some(next) => schema = next,
            None => {
                let dot = if before.is_empty() { "" } else { "." };
                return Err(properties.keys().map(|key| format!("{before}{dot}{key}")).collect());
            }
        }
        before = if before.is_empty() { part.to_owned() } else { format!("{before}.{part}") };
    }
    Ok(())
}

/// Behind references, options and lists.
fn target<'a>(root: &'a Value, mut schema: &'a Value) -> &'a Value {
    // Bounded: a schema of ours nests references twice at most.
    for _ in 0..8 {
        if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
            schema = &root["$defs"][name];
        } else if let Some(options) = schema["anyOf"].as_array() {
            schema = options.iter().find(|option| option["type"] != "null").unwrap_or(&Value::Null);
        } else if schema["items"].is_object() {
            schema = &schema["items"];
        } else {
            break;
        }
    }
    schema
}

/// A message of a library as one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_findings_are_known_down_to_the_leaf() {
        for field in [
            "type",
            "resource.service",
            "process.lineage.executable",
            "resource.container.imageDigest",
            "evidence.process.name",
        ] {
            assert_eq!(finding_field(field), Ok(()), "{field}");
        }
        assert!(finding_field("resource.servise").unwrap_err().contains(&"resource.service".to_owned()));
        assert_eq!(finding_field("type.x").unwrap_err(), ["type"]);
    }
}
