//! The kinds beside `RuntimeMonitor`: scopes, rules, indicators, suppressions, sinks.

use super::choices::Response;
use super::units::Duration;
use crate::finding::Severity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// AWS accounts and Regions, and how they are reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AwsScopeSpec {
    /// Account ids of 12 digits; empty means the account of the controller's own credentials.
    #[schemars(inner(length(max = 64)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accounts: Vec<String>,
    /// Regions; at least one.
    #[schemars(length(max = 64), inner(length(max = 64)))]
    pub regions: Vec<String>,
    /// Role to assume for reading; absent means the controller's own credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_role_name: Option<String>,
    /// Role to assume for changes; absent means the controller's own credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act_role_name: Option<String>,
    /// External id for both roles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// URL of the SQS queue that receives this scope's events. Without one only sweeps are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_queue: Option<String>,
    /// How often everything is read in full.
    #[serde(default = "ten_minutes")]
    pub sweep_interval: Duration,
    /// Share of AWS's published request limits that may be used.
    #[serde(default = "quarter")]
    pub share: super::Ratio,
    /// Where agents of this scope reach the gateway, as `https://host:port`; absent means the
    /// address that `tasuki run --gateway-url` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Roles of the agents that Tasuki places on nodes (permission-less; signs identity only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_task_role: Option<String>,
    /// Execution role with which the node agent's image is pulled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_execution_role: Option<String>,
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}
fn quarter() -> super::Ratio {
    super::Ratio::from_percent(25)
}

/// One Kubernetes cluster, and how it is reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesScopeSpec {
    /// Secret with a kubeconfig.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig_secret_ref: Option<String>,
    /// EKS cluster ARN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eks: Option<String>,
    /// Labels by which waves may select clusters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// The user's own rules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DetectionRuleSpec {
    /// One or more Sigma documents (YAML text, separated by `---`) over the documented facts.
    #[schemars(length(max = 65536))]
    pub sigma: String,
    /// What a match becomes.
    pub finding: RuleFinding,
    /// What the agent does about it.
    #[serde(default)]
    pub response: Response,
}

/// What a match of a user's rule becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleFinding {
    /// Finding type, such as `Custom:Runtime/ToolUsed`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Severity; the rule's `level` where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
}

/// Indicators: addresses, domains or hashes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ThreatListSpec {
    /// What membership means; `Trusted` wins over `Threat`.
    pub verdict: ThreatVerdict,
    /// What is listed.
    pub entity: ThreatEntity,
    /// The finding family that a hit belongs to, such as `CryptoCurrency` or `C&CActivity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// Entries, one each.
    #[schemars(length(max = 20000), inner(length(max = 253)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inline: Vec<String>,
}

/// What membership of a list means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ThreatVerdict {
    /// A hit is a fact that rules test.
    Threat,
    /// A hit takes the fact away.
    Trusted,
}

/// What a list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ThreatEntity {
    /// Addresses and CIDR blocks.
    Ip,
    /// Domains; a name matches its suffixes.
    Domain,
    /// SHA-256 of executables, hexadecimal.
    Sha256,
}

/// Findings that are stored and counted, and not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SuppressionSpec {
    /// Field path of the finding (such as `resource.service`) to the condition it must meet; all must.
    pub filter: BTreeMap<String, Condition>,
    /// Why.
    pub reason: String,
    /// When it ends (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub until: Option<jiff::Timestamp>,
}

/// A condition on one field; exactly one member is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// Equal to one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub equals: Vec<String>,
    /// Matches one of these, with `*` and `?`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<String>,
    /// An address inside one of these blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidr: Vec<String>,
}

/// Where findings go. Exactly one of the targets is given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FindingSinkSpec {
    /// Lower severities are stored and not sent.
    #[serde(default)]
    pub minimum_severity: Severity,
    /// Only findings that meet every condition are sent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub filter: BTreeMap<String, Condition>,
    /// An EventBridge bus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_bridge: Option<EventBridgeSink>,
    /// A webhook.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSink>,
    /// One JSON line each on standard output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<StdoutSink>,
}

/// An EventBridge bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventBridgeSink {
    /// Bus name or ARN.
    #[serde(default = "default_bus")]
    pub bus: String,
    /// Region of the bus; the finding's own Region where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The `source` of the events.
    #[serde(default = "default_source")]
    pub source: String,
    /// The shape of `detail`.
    #[serde(default)]
    pub format: EventFormat,
}

fn default_bus() -> String {
    "default".to_owned()
}
fn default_source() -> String {
    "tasuki".to_owned()
}

/// The shape of a finding as an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EventFormat {
    /// Tasuki's own schema.
    #[default]
    Tasuki,
    /// The detail shape of a GuardDuty finding.
    GuardDuty,
}

/// A webhook: one POST of JSON a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebhookSink {
    /// `https://…`; plain http is refused but for loopback.
    pub url: String,
    /// File whose content is sent as a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<String>,
}

/// Findings on standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StdoutSink {}
