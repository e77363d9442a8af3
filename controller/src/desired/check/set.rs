//! What needs more than one document: names, references, ties.

use super::super::parse::Parsed;
use super::super::problem::Level;
use super::super::shape::{unknown, valid};
use super::super::yaml::{Path, at};
use super::types::BUILT_IN;
use std::collections::{BTreeMap, HashMap, HashSet};
use tasuki_api::desired::{Document, RuntimeMonitorSpec};

/// A document and the file that it stands in.
pub type Located = (String, Parsed);

/// Checks all documents together. `held`: `Kind/name` of documents whose last good version stays
/// in force, so that a reference to one of them is good.
pub fn set(documents: &mut [Located], held: &HashSet<(String, String)>) {
    duplicates(documents);
    references(documents, held);
    ties(documents);
    finding_types(documents);
}

/// Two documents of one name: nobody can say which is meant, so neither is taken.
fn duplicates(documents: &mut [Located]) {
    let mut places: HashMap<(String, String), Vec<usize>> = HashMap::new();
    for (i, (_, parsed)) in documents.iter().enumerate() {
        if let Some(id) = &parsed.id {
            places.entry(id.clone()).or_default().push(i);
        }
    }
    for ((kind, name), places) in places.into_iter().filter(|(_, places)| places.len() > 1) {
        for (nth, i) in places.iter().enumerate() {
            let other = places[if nth == 0 { 1 } else { 0 }];
            let message = format!("two documents are called {kind}/{name}");
            let help = vec![format!("the other one: {}:{}", documents[other].0, documents[other].1.line)];
            let (file, parsed) = &mut documents[*i];
            parsed.add(file, Level::Error, &at!["metadata", "name"], false, message, help);
        }
    }
}

fn references(documents: &mut [Located], held: &HashSet<(String, String)>) {
    // A scope that was refused is still meant: its own problem is enough.
    let named = documents.iter().filter_map(|(_, parsed)| parsed.id.as_ref()).chain(held);
    let scopes: HashSet<String> = named.filter(|(kind, _)| kind == "AwsScope").map(|(_, name)| name.clone()).collect();
    let mut sorted: Vec<String> = scopes.iter().cloned().collect();
    sorted.sort();
    for (file, parsed) in documents.iter_mut() {
        let Some(Document::RuntimeMonitor(monitor)) = &parsed.document else { continue };
        let Some(ecs) = monitor.spec.targets.ecs.clone() else { continue };
        for (i, name) in ecs.scopes.iter().enumerate().filter(|(_, name)| !scopes.contains(*name)) {
            let help = match sorted.is_empty() {
                true => "there is no AwsScope yet; add one with the Regions to watch".to_owned(),
                false => valid(&sorted),
            };
            let at = at!["spec", "targets", "ecs", "scopes", i];
            parsed.add(file, Level::Error, &at, false, unknown("AwsScope", name, &sorted), vec![help]);
        }
        if scopes.is_empty() && ecs.scopes.is_empty() {
            let help = vec!["add an AwsScope with the Regions to watch".to_owned()];
            let at = at!["spec", "targets", "ecs"];
            parsed.add(file, Level::Warning, &at, true, "no AwsScope says which account to reach".to_owned(), help);
        }
    }
}

/// Two monitors of one priority that select clusters by the same words.
fn ties(documents: &mut [Located]) {
    let ecs = |spec: &RuntimeMonitorSpec| {
        let ecs = spec.targets.ecs.as_ref()?;
        Some((
            spec.priority,
            ecs.scopes.clone(),
            ecs.clusters.include.clone(),
            format!("{:?}{:?}", ecs.tags, ecs.compute),
        ))
    };
    let pods = |spec: &RuntimeMonitorSpec| {
        let pods = spec.targets.kubernetes.as_ref()?;
        let namespaces = format!("{:?}", pods.namespaces);
        Some((spec.priority, pods.clusters.include.clone(), namespaces))
    };
    ties_of(documents, "tasks", ecs);
    ties_of(documents, "pods", pods);
}

fn ties_of<K: Ord>(documents: &mut [Located], what: &str, selection: impl Fn(&RuntimeMonitorSpec) -> Option<K>) {
    let mut seen: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (i, (_, parsed)) in documents.iter().enumerate() {
        if let Some(Document::RuntimeMonitor(monitor)) = &parsed.document
            && let Some(selection) = selection(&monitor.spec)
        {
            seen.entry(selection).or_default().push(i);
        }
    }
    for group in seen.into_values().filter(|group| group.len() > 1) {
        let names: Vec<String> =
            group.iter().filter_map(|i| documents[*i].1.id.as_ref().map(|(_, name)| name.clone())).collect();
        for i in group {
            let (file, parsed) = &mut documents[i];
            let message = format!("monitors {} select the same {what} with the same priority", names.join(" and "));
            let help = vec!["give them different priorities; the highest wins".to_owned()];
            parsed.add(file, Level::Error, &at!["spec", "priority"], false, message, help);
        }
    }
}

/// Finding types that no rule makes: a new rule may yet, so they are not refused.
fn finding_types(documents: &mut [Located]) {
    let own = documents.iter().filter_map(|(_, parsed)| match &parsed.document {
        Some(Document::DetectionRule(rule)) => Some(rule.spec.finding.kind.clone()),
        _ => None,
    });
    let known: Vec<String> = BUILT_IN.iter().map(|name| (*name).to_owned()).chain(own).collect();
    let known_set: HashSet<&str> = known.iter().map(String::as_str).collect();
    for (file, parsed) in documents.iter_mut() {
        let mut named: Vec<(Path, bool, String)> = Vec::new();
        match &parsed.document {
            Some(Document::RuntimeMonitor(monitor)) => {
                let detection = &monitor.spec.detection;
                let at = at!["spec", "detection"];
                let rules = at.with("rules");
                let disabled = detection.rules.disable.iter().enumerate();
                named.extend(disabled.map(|(i, name)| (rules.with("disable").with(i), false, name.clone())));
                named
                    .extend(detection.rules.severity.keys().map(|k| (rules.with("severity").with(k), true, k.clone())));
                named.extend(detection.response.keys().map(|k| (at.with("response").with(k), true, k.clone())));
            }
            Some(Document::Suppression(suppression)) => {
                let equals = suppression.spec.filter.get("type").map(|c| c.equals.as_slice()).unwrap_or_default();
                let at = at!["spec", "filter", "type", "equals"];
                named.extend(equals.iter().enumerate().map(|(i, name)| (at.with(i), false, name.clone())));
            }
            _ => {}
        }
        for (at, at_key, name) in named.into_iter().filter(|(_, _, name)| !known_set.contains(name.as_str())) {
            let help = vec!["the types are listed in docs/reference/finding-types.md".to_owned()];
            parsed.add(file, Level::Warning, &at, at_key, unknown("finding type", &name, &known), help);
        }
    }
}
