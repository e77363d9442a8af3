//! The kinds as Kubernetes custom resource definitions, generated from the types of `tasuki_api`.
//!
//! Only what the API server needs is made here: a structural schema (`structural`), the rules that
//! CEL can say cheaply (`rules`), names and columns; `lacking` compares with what a cluster has. `tasuki generate` writes the files. The types
//! themselves know nothing of Kubernetes, so the agent links no client.

mod lacking;
mod rules;
mod structural;

pub use lacking::lacking;

use crate::desired::schema_of;
use serde_json::{Value, json};
use tasuki_api::desired::Document;
use tasuki_api::status::{DocumentStatus, MonitorStatus};

/// API group of every kind.
pub const GROUP: &str = "tasuki.dev";
/// The served and stored version.
pub const VERSION: &str = "v1alpha1";

/// What people type for a kind, and what `kubectl get` shows of it.
struct Face {
    plural: &'static str,
    short: &'static [&'static str],
    /// Name, type and path of each column.
    columns: &'static [(&'static str, &'static str, &'static str)],
    about: &'static str,
}

const ACCEPTED: (&str, &str, &str) = ("Accepted", "string", ".status.conditions[?(@.type==\"Accepted\")].status");

fn face(kind: &str) -> Option<Face> {
    let face = |plural, short, columns, about| Some(Face { plural, short, columns, about });
    match kind {
        "RuntimeMonitor" => face(
            "runtimemonitors",
            &["rmon"],
            &[
                ("Mode", "string", ".spec.mode"),
                ("Version", "string", ".spec.agent.version"),
                ("Phase", "string", ".status.phase"),
                ("Covered", "integer", ".status.coverage.covered"),
                ("Total", "integer", ".status.coverage.total"),
                ("Ratio", "string", ".status.coverage.ratio"),
            ],
            "Where the agent goes, which version of it, how it is rolled and what it may do.",
        ),
        "AwsScope" => face(
            "awsscopes",
            &["ascope"],
            &[("Regions", "string", ".spec.regions"), ACCEPTED],
            "AWS accounts and Regions, and how they are reached.",
        ),
        "KubernetesScope" => face(
            "kubernetesscopes",
            &["kscope"],
            &[("Secret", "string", ".spec.kubeconfigSecretRef"), ("EKS", "string", ".spec.eks"), ACCEPTED],
            "One Kubernetes cluster, and how it is reached.",
        ),
        "DetectionRule" => face(
            "detectionrules",
            &["drule"],
            &[("Finding", "string", ".spec.finding.type"), ("Response", "string", ".spec.response"), ACCEPTED],
            "Rules of your own over the facts that agents report.",
        ),
        "ThreatList" => face(
            "threatlists",
            &["tlist"],
            &[("Verdict", "string", ".spec.verdict"), ("Entity", "string", ".spec.entity"), ACCEPTED],
            "Addresses, domains or hashes to look for, or to trust.",
        ),
        "Suppression" => face(
            "suppressions",
            &["fsup"],
            &[("Until", "string", ".spec.until"), ("Reason", "string", ".spec.reason"), ACCEPTED],
            "Findings that are stored and counted, and not sent.",
        ),
        "FindingSink" => face(
            "findingsinks",
            &["fsink"],
            &[("Severity", "string", ".spec.minimumSeverity"), ACCEPTED],
            "Where findings go.",
        ),
        _ => None,
    }
}

/// Plural of a kind, as it stands in URLs; `None` for an unknown kind.
pub fn plural(kind: &str) -> Option<&'static str> {
    face(kind).map(|face| face.plural)
}

/// The definition of one kind; `None` for an unknown kind.
pub fn definition(kind: &str) -> Option<Value> {
    let face = face(kind)?;
    let document = schema_of(kind)?;
    let spec = structural::schema(&document, &document["properties"]["spec"]);
    let status = match kind {
        "RuntimeMonitor" => schemars::schema_for!(MonitorStatus),
        _ => schemars::schema_for!(DocumentStatus),
    };
    let mut status = status.to_value();
    crate::desired::bound(&mut status);
    let mut status = structural::schema(&status, &status);
    status["description"] = "Written by the controller, never read.".into();
    let mut columns: Vec<Value> =
        face.columns.iter().map(|(name, of, path)| json!({ "name": name, "type": of, "jsonPath": path })).collect();
    columns.push(json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" }));
    Some(json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{}.{GROUP}", face.plural),
            "labels": { "app.kubernetes.io/name": "tasuki" },
            // Deleting the definitions would delete the documents with them.
            "annotations": { "helm.sh/resource-policy": "keep" },
        },
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": face.plural,
                "singular": kind.to_lowercase(),
                "shortNames": face.short,
                "categories": ["tasuki"],
            },
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "additionalPrinterColumns": columns,
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "description": face.about,
                    "required": ["spec"],
                    "x-kubernetes-validations": rules::of_documents(),
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "metadata": { "type": "object" },
                        "spec": spec,
                        "status": status,
                    },
                } },
            }],
        },
    }))
}

/// Every definition as a file: its name, and its YAML.
pub fn files() -> Vec<(String, String)> {
    let file = |kind: &&str| {
        let plural = face(kind)?.plural;
        let text = serde_yaml::to_string(&definition(kind)?).ok()?;
        Some((format!("{plural}.yaml"), format!("# Generated by `tasuki generate`; change api/src instead.\n{text}")))
    };
    Document::KINDS.iter().filter_map(file).collect()
}

#[cfg(test)]
mod tests;
