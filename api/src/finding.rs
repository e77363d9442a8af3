//! A finding: what a rule's match becomes.
//!
//! Text that an attacker controls (paths, arguments, names) is kept as it is, length-capped by the
//! agent, and escaped wherever it is shown.

use crate::coverage::Depth;
use crate::desired::Response;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Severity, with GuardDuty's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Severity {
    /// 2: worth a look.
    #[default]
    Low,
    /// 5: differs from what is normal.
    Medium,
    /// 8: a resource is compromised.
    High,
    /// 9: an attack is under way across resources.
    Critical,
}

impl Severity {
    /// The number that GuardDuty documents for this level.
    pub const fn number(self) -> f64 {
        match self {
            Self::Low => 2.0,
            Self::Medium => 5.0,
            Self::High => 8.0,
            Self::Critical => 9.0,
        }
    }
}

/// What a rule's match becomes. Schema: manifests/schemas/finding.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// ULID, made by the agent; the same finding sent twice has the same id.
    #[schemars(with = "String")]
    pub id: ulid::Ulid,
    /// Type, such as `Impact:Runtime/CryptoMinerExecuted`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Severity.
    pub severity: Severity,
    /// One line for people, from the rule.
    pub title: String,
    /// When it was first seen.
    #[schemars(with = "String")]
    pub first_seen: Timestamp,
    /// When it was last seen.
    #[schemars(with = "String")]
    pub last_seen: Timestamp,
    /// How often since `first_seen`.
    pub count: u64,
    /// Where; stamped by the gateway from the agent's identity, never from what the agent claims.
    pub resource: Resource,
    /// Who did it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The connection that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// The name that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// The file that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
    /// Facts that the rule tested, by name, for evidence.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, serde_json::Value>,
    /// The rule.
    pub rule: Rule,
    /// The agent that saw it.
    pub agent: Agent,
    /// What was done about it.
    #[serde(default)]
    pub response: ResponseTaken,
}

/// Where a finding happened. What is not known is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Resource {
    /// AWS account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// AWS Region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Cluster ARN or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// ECS service name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Task-definition ARN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_definition: Option<String>,
    /// Task ARN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// `FARGATE`, `EC2`, `EXTERNAL`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch_type: Option<String>,
    /// Kubernetes namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Kubernetes pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Kubernetes owner, as `Deployment/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Container instance ARN or Kubernetes node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
}

/// A container and its image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Name in the task definition or pod.
    pub name: String,
    /// Runtime id (64 hexadecimal digits, or Fargate's own form).
    pub id: String,
    /// Image as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `sha256:…` of what runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
}

/// A process, with its ancestors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Process id as the agent's host sees it.
    pub pid: u32,
    /// Process id inside its own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_pid: Option<u32>,
    /// Name of the executable's file.
    pub name: String,
    /// Path of the executable.
    pub executable: String,
    /// Arguments, the first is what the process was called as.
    pub arguments: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// User id.
    pub uid: u32,
    /// Effective user id.
    pub euid: u32,
    /// User name inside the container, where its passwd names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// When it started.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub started_at: Option<Timestamp>,
    /// SHA-256 of the executable, hexadecimal; absent while it is being computed or was not readable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Parent first, up to 16.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lineage: Vec<Ancestor>,
}

/// One ancestor of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Ancestor {
    /// Process id.
    pub pid: u32,
    /// Path of the executable.
    pub executable: String,
    /// Arguments.
    pub arguments: Vec<String>,
    /// User id.
    pub uid: u32,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// `tcp` or `udp`.
    pub transport: String,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// The other side.
    pub remote_ip: std::net::IpAddr,
    /// The other side's port.
    pub remote_port: u16,
    /// This side, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_ip: Option<std::net::IpAddr>,
    /// This side's port, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_port: Option<u16>,
    /// The name that an earlier DNS answer gave for `remote_ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_name: Option<String>,
}

/// One DNS question and what is known of its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Dns {
    /// The name asked for, lower case, without the final dot.
    pub question: String,
    /// `A`, `AAAA`, …
    pub question_type: String,
    /// Addresses in the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<std::net::IpAddr>,
    /// The server that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<std::net::SocketAddr>,
}

/// One file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct File {
    /// Path as the container sees it.
    pub path: String,
    /// What happened to it: `write`, `create`, `rename`, `link`, `symlink`, `unlink`, `chmod`, `open`.
    pub operation: String,
    /// The other path of a rename, link or symlink.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The rule that matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Sigma rule id.
    pub id: String,
    /// Sigma rule title.
    pub title: String,
    /// Tags, such as `attack.t1496`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// References.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// What to check next, from the rule.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub next_checks: Vec<String>,
}

/// The agent that saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Version.
    pub version: String,
    /// How much it sees.
    pub depth: Depth,
    /// `ebpf`, `ptrace`, `network`.
    pub sensor: String,
}

/// What was done about a finding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseTaken {
    /// What the monitor asked for.
    #[serde(default)]
    pub wanted: Response,
    /// Whether it was carried out; absent for `Alert`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<bool>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
