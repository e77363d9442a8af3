//! Everything that an API server holds.

use serde_json::Value;
use std::collections::BTreeMap;
use tasuki_e2e_kubernetes::{ControlPlane, kubectl};

/// Every object of every kind that can be listed, by `kind.group namespace/name`, without what changes by itself:
/// status, versions, times of leases. Events are left out: they are a log, and end after an hour.
pub async fn all(plane: &ControlPlane) -> BTreeMap<String, Value> {
    let kinds = kubectl(plane, &["api-resources", "--verbs=list", "--output=name"], "").await.unwrap();
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !matches!(*kind, "events" | "events.events.k8s.io")).collect();
    let listed = kubectl(plane, &["get", &kinds.join(","), "--all-namespaces", "--output=json"], "").await.unwrap();
    let mut listed: Value = serde_json::from_str(&listed).unwrap();
    let items = listed["items"].as_array_mut().unwrap();
    items.iter_mut().map(|object| (key(object), without_what_changes(object.take()))).collect()
}

fn key(object: &Value) -> String {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let group = text("/apiVersion").rsplit_once('/').map_or(String::new(), |(group, _)| format!(".{group}"));
    format!("{}{group} {}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

fn without_what_changes(mut object: Value) -> Value {
    let root = object.as_object_mut().unwrap();
    root.remove("status");
    let metadata = root["metadata"].as_object_mut().unwrap();
    for field in ["managedFields", "resourceVersion"] {
        metadata.remove(field);
    }
    if let Some(spec) = root.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("renewTime");
    }
    object
}
