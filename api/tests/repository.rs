//! What the repository promises about itself: links lead somewhere, files stay short, and the IAM
//! policies allow the calls that are made, each once, and no other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use serde_yaml::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Files with one of these endings, hidden directories and build output left out.
fn files(endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && name != "target" {
                    open.push(path);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no file ends with {endings:?}");
    found
}

#[test]
fn every_relative_link_leads_to_a_file() {
    let mut broken = Vec::new();
    let mut links = 0;
    for page in files(&[".md"]) {
        let text = std::fs::read_to_string(&page).unwrap();
        for rest in text.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            // An empty one is an anchor of the page itself.
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            if !page.parent().unwrap().join(target).exists() {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(links > 10, "only {links} links were found");
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

#[test]
fn no_source_file_is_longer_than_500_lines() {
    let lines = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().count();
    let long: Vec<_> = files(&[".rs", ".sh", ".py"]).into_iter().filter(|path| lines(path) > 500).collect();
    assert!(long.is_empty(), "split these: {long:#?}");
}

/// Calls that need a permission and are not in the table of ECS calls.
const OTHER_CALLS: &[&str] = &["sts:AssumeRole", "sqs:ReceiveMessage", "sqs:DeleteMessage", "events:PutEvents"];
/// Allowed a second time, for an owner's own definitions, where the parameter RestorableDefinitions says so.
const AGAIN: &str = "ecs:RegisterTaskDefinition";
/// Allowed because ECS and EventBridge ask for it on behalf of a call, not because it is called.
const BY_PROXY: &[&str] = &["iam:PassRole", "ecs:TagResource", "sqs:SendMessage"];

#[test]
fn every_call_is_allowed_once_and_nothing_else_is() {
    let table = std::fs::read_to_string(root().join("controller/src/scope/api.rs")).unwrap();
    let quoted = table.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| line.split('"'));
    let mut calls: BTreeSet<&str> = quoted.filter(|text| text.starts_with("ecs:")).collect();
    assert!(calls.len() > 15, "the table of calls was not read: {calls:?}");
    calls.extend(OTHER_CALLS);

    let text = std::fs::read_to_string(root().join("manifests/aws/tasuki.yaml")).unwrap();
    let template: Value = serde_yaml::from_str(&text).unwrap();
    let mut allowed = BTreeMap::new();
    statements(&template, &mut allowed);
    for call in &calls {
        let statements = 1 + u32::from(*call == AGAIN);
        assert_eq!(allowed.get(*call), Some(&statements), "{call} must be allowed by exactly {statements} statements");
    }
    let more: Vec<_> = allowed.keys().filter(|name| !calls.contains(name.as_str())).collect();
    assert_eq!(more, BY_PROXY.iter().collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>(), "allowed without need");
}

/// How many identity-based statements allow each action. Trust and queue policies have a principal.
fn statements(value: &Value, allowed: &mut BTreeMap<String, u32>) {
    match value {
        Value::Mapping(mapping) => {
            if value["Effect"] == "Allow" && value["Principal"].is_null() {
                let actions = match &value["Action"] {
                    Value::Sequence(list) => list.iter().filter_map(Value::as_str).collect(),
                    one => one.as_str().into_iter().collect::<Vec<_>>(),
                };
                for action in actions {
                    assert!(!action.contains('*'), "{action} allows more than is called");
                    *allowed.entry(action.to_owned()).or_default() += 1;
                }
            }
            mapping.iter().for_each(|(_, inner)| statements(inner, allowed));
        }
        Value::Sequence(list) => list.iter().for_each(|inner| statements(inner, allowed)),
        Value::Tagged(tagged) => statements(&tagged.value, allowed),
        _ => {}
    }
}
