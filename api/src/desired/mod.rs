//! Desired state: the YAML that lives in git (`tasuki.dev/v1alpha1`).
//!
//! Every document is `apiVersion`, `kind`, `metadata`, `spec`. The spec types refuse unknown
//! fields, so that a typing error never silently leaves something unwatched. What lives here is
//! shape and defaults; checks that need more than one field or document live in the controller.

#[macro_use]
mod macros;
mod choices;
mod kinds;
mod monitor;
mod pods;
mod units;

pub use choices::*;
pub use kinds::*;
pub use monitor::*;
pub use pods::*;
pub use units::{Duration, Ratio, Size, UnitError};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The API group and version that every document names.
pub const API_VERSION: &str = "tasuki.dev/v1alpha1";

/// Name and labels of a document, the subset of Kubernetes' ObjectMeta that git needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique among the documents of one kind; a DNS label.
    pub name: String,
    /// Ignored by the directory source; kept so that one file serves both sources.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// One document of desired state.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// Where the agent goes and which version.
    RuntimeMonitor(Box<Object<RuntimeMonitorSpec>>),
    /// Which AWS accounts and Regions are reached, and how.
    AwsScope(Object<AwsScopeSpec>),
    /// Which Kubernetes cluster is reached, and how.
    KubernetesScope(Object<KubernetesScopeSpec>),
    /// The user's own Sigma rules.
    DetectionRule(Object<DetectionRuleSpec>),
    /// Indicators: addresses, domains, hashes.
    ThreatList(Object<ThreatListSpec>),
    /// Findings that are stored and counted but not sent.
    Suppression(Object<SuppressionSpec>),
    /// Where findings go.
    FindingSink(Object<FindingSinkSpec>),
}

/// A document's name and its spec.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<S> {
    /// Name and labels.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: S,
}

impl Document {
    /// The kinds, in the order in which they are documented.
    pub const KINDS: [&'static str; 7] =
        ["RuntimeMonitor", "AwsScope", "KubernetesScope", "DetectionRule", "ThreatList", "Suppression", "FindingSink"];

    /// The `kind` of this document.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RuntimeMonitor(_) => "RuntimeMonitor",
            Self::AwsScope(_) => "AwsScope",
            Self::KubernetesScope(_) => "KubernetesScope",
            Self::DetectionRule(_) => "DetectionRule",
            Self::ThreatList(_) => "ThreatList",
            Self::Suppression(_) => "Suppression",
            Self::FindingSink(_) => "FindingSink",
        }
    }

    /// The document's name.
    pub fn name(&self) -> &str {
        match self {
            Self::RuntimeMonitor(o) => &o.metadata.name,
            Self::AwsScope(o) => &o.metadata.name,
            Self::KubernetesScope(o) => &o.metadata.name,
            Self::DetectionRule(o) => &o.metadata.name,
            Self::ThreatList(o) => &o.metadata.name,
            Self::Suppression(o) => &o.metadata.name,
            Self::FindingSink(o) => &o.metadata.name,
        }
    }
}
