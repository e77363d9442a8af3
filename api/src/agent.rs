//! The agent protocol: JSON over HTTPS between agent and gateway.
//!
//! ```text
//!  agent                                     gateway
//!   │ POST /v1/nonce            {}             │  Nonce (60 s)
//!   │ POST /v1/enroll           Enrollment     │  Session: pins the key to (task, runtime id)
//!   │ POST /v1/heartbeat        Heartbeat      │  HeartbeatReply: policy hash, interval, time
//!   │ POST /v1/findings         FindingBatch   │  FindingReceipt: ids that are stored
//!   │ GET  /v1/policy                          │  SignedPolicy
//! ```
//!
//! Every request after enrolment carries the headers [`SESSION_HEADER`], [`SEQUENCE_HEADER`] and
//! [`SIGNATURE_HEADER`]: an Ed25519 signature over [`signing_text`]. A sequence number that is
//! not greater than the last one is refused, so a request cannot be replayed. No secret is shared.

pub use crate::coverage::Unavailable;

use crate::coverage::Depth;
use crate::desired::{Response, RuleOverrides, SyscallTracepoints};
use crate::finding::Finding;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Header with the session id.
pub const SESSION_HEADER: &str = "tasuki-session";
/// Header with the request's sequence number, a decimal u64 that rises with each request.
pub const SEQUENCE_HEADER: &str = "tasuki-sequence";
/// Header with the base64 Ed25519 signature over [`signing_text`].
pub const SIGNATURE_HEADER: &str = "tasuki-signature";
/// Signed header of the presigned STS request that names the gateway.
pub const STS_GATEWAY_HEADER: &str = "x-tasuki-gateway";
/// Signed header of the presigned STS request that carries the nonce.
pub const STS_NONCE_HEADER: &str = "x-tasuki-nonce";
/// Signed header of the presigned STS request that carries the hexadecimal SHA-256 of the public key.
pub const STS_KEY_HEADER: &str = "x-tasuki-key";
/// Largest body that the gateway reads, bytes.
pub const MAX_BODY: usize = 1 << 20;
/// Seconds between heartbeats of a node agent.
pub const NODE_HEARTBEAT_SECONDS: u64 = 15;
/// Seconds between heartbeats of a sidecar.
pub const SIDECAR_HEARTBEAT_SECONDS: u64 = 60;
/// A heartbeat older than this many intervals no longer covers.
pub const HEARTBEATS_UNTIL_SILENT: u64 = 3;

/// Environment variables that the controller puts into an agent's container. None is a secret.
pub mod env {
    /// `https://host:port` of the gateway.
    pub const GATEWAY: &str = "TASUKI_GATEWAY";
    /// PEM of the certificate authority that signed the gateway's certificate, base64.
    pub const GATEWAY_CA: &str = "TASUKI_GATEWAY_CA";
    /// Ed25519 public key with which policy bundles are signed, base64.
    pub const POLICY_KEY: &str = "TASUKI_POLICY_KEY";
    /// `auto`, `ebpf`, `ptrace`, `network`.
    pub const SENSOR: &str = "TASUKI_SENSOR";
    /// Memory limit in MiB that rings and caches are sized by.
    pub const MEMORY_MIB: &str = "TASUKI_MEMORY_MIB";
    /// Share of the CPU that is planned for, such as `10%`. No agent reads it yet.
    pub const CPU: &str = "TASUKI_CPU";
}

/// What a request's signature covers: one line each for method, path, session, sequence, and the
/// hexadecimal SHA-256 of the body.
pub fn signing_text(method: &str, path: &str, session: &str, sequence: u64, body_sha256_hex: &str) -> String {
    format!("tasuki-v1\n{method}\n{path}\n{session}\n{sequence}\n{body_sha256_hex}")
}

/// What the enrolment's signature covers: the identity, as compact JSON of [`Identity`].
pub fn enrollment_text(identity_json: &str) -> String {
    format!("tasuki-enroll-v1\n{identity_json}")
}

/// Answer to `POST /v1/nonce`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Nonce {
    /// The gateway's own id, stable over restarts.
    pub gateway: String,
    /// 32 random bytes, base64; good once, for 60 s.
    pub nonce: String,
}

/// Body of `POST /v1/enroll`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrollment {
    /// [`Identity`] as the very JSON text that was signed.
    pub identity: String,
    /// Ed25519 signature over [`enrollment_text`] by the key that the identity names, base64.
    pub signature: String,
    /// Presigned `GetCallerIdentity`, where the task has a role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sts: Option<PresignedSts>,
}

/// Who an agent says it is; checked against what ECS says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// From [`Nonce`].
    pub gateway: String,
    /// From [`Nonce`].
    pub nonce: String,
    /// Ed25519 public key, base64 of 32 bytes.
    pub public_key: String,
    /// ARN of the agent's own task.
    pub task: String,
    /// Name of the agent's own container.
    pub container: String,
    /// Every container of the agent's own task: an unguessable set.
    pub containers: Vec<ContainerEvidence>,
    /// The task's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// How it is placed.
    pub kind: AgentKind,
    /// Its version.
    pub version: String,
    /// In Kubernetes: the projected token of the agent's pod, for audience
    /// [`crate::kubernetes::TOKEN_AUDIENCE`]. Never kept, never logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// One container of the agent's task, as the metadata endpoint gives it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerEvidence {
    /// Name in the task definition.
    pub name: String,
    /// ContainerARN.
    pub arn: String,
    /// DockerId.
    pub runtime_id: String,
}

/// What an agent may speak for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AgentKind {
    /// Its own task.
    Sidecar,
    /// The tasks on its container instance.
    Node,
}

/// The parts of a presigned `GetCallerIdentity` from which the gateway rebuilds the URL itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PresignedSts {
    /// Region of the STS endpoint; the host comes from the gateway's own table.
    pub region: String,
    /// The query string's `X-Amz-*` parameters, decoded, without `Action` and `Version`.
    pub query: BTreeMap<String, String>,
}

/// Answer to `POST /v1/enroll`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Session id for [`SESSION_HEADER`].
    pub session: String,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u64,
    /// Hash of the policy that is wanted.
    pub policy: String,
}

/// Body of every refusal: what happened, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Stable name, such as `EvidenceMismatch`.
    pub code: String,
    /// For people.
    pub message: String,
    /// Whether to enrol anew.
    #[serde(default)]
    pub enroll: bool,
}

/// The oldest kernel that node agents are made for: the first long-term release with BPF ring buffers (5.8) and
/// tracepoints typed by BTF (5.5).
pub const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// Major and minor number of a kernel's release, such as `6.1.0-13-amd64`; zero where there is none.
pub fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Body of `POST /v1/heartbeat`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// The agent's clock.
    pub time: Timestamp,
    /// When this agent process started.
    pub started_at: Timestamp,
    /// Agent version.
    pub version: String,
    /// The sensors in use, the best one first.
    pub sensors: Vec<SensorState>,
    /// How much it sees, all in all.
    pub depth: Depth,
    /// Kernel release.
    pub kernel: String,
    /// Hash of the policy in force.
    pub policy: String,
    /// ARNs of the tasks that it sees (the tasks on its node; for a sidecar, its own).
    pub tasks: Vec<String>,
    /// Per event family.
    pub families: Vec<FamilyState>,
    /// Finding types that it cannot see, and why.
    pub unavailable: Vec<Unavailable>,
    /// What it used and lost since it started.
    pub usage: Usage,
    /// How often the supervisor restarted it.
    pub restarts: u32,
    /// What the next event of silence would mean: why the last agent process ended, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<String>,
}

/// One sensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SensorState {
    /// `ebpf`, `ptrace`, `network`, `fanotify`, …
    pub name: String,
    /// Whether it works.
    pub whole: bool,
    /// Why not, or why not a better one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// One event family: where it comes from and what became of its events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyState {
    /// `exec`, `connect`, `dns`, `file`, …; `process` and `network` where a sensor counts several as one.
    pub name: String,
    /// The hook in use, such as `tp_btf/sched_process_exec`; empty where the family is missing.
    pub hook: String,
    /// 0 to 2; absent for hooks outside the kernel's event tiers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<u8>,
    /// Why the family is missing or degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// seen = submitted + filtered + ring_full + oversize + map_full + unreadable.
    pub counters: Counters,
}

/// Event counts since the agent started: `seen` is the sum of the others but `missed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Events that the hook met.
    pub seen: u64,
    /// Handed to the agent.
    pub submitted: u64,
    /// Dropped by a filter on purpose.
    pub filtered: u64,
    /// Lost: the ring was full.
    pub ring_full: u64,
    /// Lost: the record was too large.
    pub oversize: u64,
    /// Lost: a kernel map was full.
    pub map_full: u64,
    /// Lost: what it says could not be read where the hook met it.
    #[serde(default)]
    pub unreadable: u64,
    /// Times that the kernel left a program out because it was running on that processor already. Few of them will have
    /// been events, so they count neither as seen nor as lost.
    #[serde(default)]
    pub missed: u64,
}

impl Counters {
    /// Events lost, which filters do not count as.
    pub fn lost(&self) -> u64 {
        self.ring_full + self.oversize + self.map_full + self.unreadable
    }
}

/// What an agent used, and what it dropped outside the kernel, since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Usage {
    /// Processor time, milliseconds.
    pub cpu_ms: u64,
    /// Resident memory, bytes.
    pub memory_bytes: u64,
    /// Events that could not be given a task.
    pub unnamed_events: u64,
    /// Evictions from bounded caches.
    pub evictions: u64,
    /// Findings waiting to be sent.
    pub spooled: u64,
    /// Findings lost: the spool was full or damaged, one was too large, or the gateway refused it.
    pub spool_dropped: u64,
    /// Whether the agent got its scheduling priority (see agent docs).
    pub prioritised: bool,
}

/// Answer to `POST /v1/heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatReply {
    /// Hash of the policy that is wanted; fetch it when it differs.
    pub policy: String,
    /// Seconds until the next heartbeat.
    pub heartbeat_seconds: u64,
    /// The gateway's clock.
    pub time: Timestamp,
}

/// Body of `POST /v1/findings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingBatch {
    /// At most 100.
    pub findings: Vec<Finding>,
}

/// Answer to `POST /v1/findings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FindingReceipt {
    /// Stored now or before; the agent forgets them.
    pub stored: Vec<ulid::Ulid>,
    /// Refused for good, with the reason; the agent counts and forgets them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedFinding>,
}

/// A finding that the gateway will never take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedFinding {
    /// Which.
    pub id: ulid::Ulid,
    /// Why.
    pub reason: String,
}

/// Answer to `GET /v1/policy`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedPolicy {
    /// [`Policy`] as the very JSON text that was signed.
    pub policy: String,
    /// Ed25519 signature over the text `tasuki-policy-v1\n` + policy, base64.
    pub signature: String,
}

impl SignedPolicy {
    /// What the signature covers.
    pub fn signing_text(policy: &str) -> String {
        format!("tasuki-policy-v1\n{policy}")
    }
}

/// What an agent does: rules, indicators, responses. Its hash is the hexadecimal SHA-256 of its text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// Rises with each change, so that an old bundle cannot be played back.
    pub serial: u64,
    /// Changes to the built-in rules.
    pub rules: RuleOverrides,
    /// The user's rules.
    pub custom: Vec<crate::desired::DetectionRuleSpec>,
    /// Indicators.
    pub lists: Vec<crate::desired::ThreatListSpec>,
    /// Finding type to response.
    pub response: BTreeMap<String, Response>,
    /// When a syscall tracepoint may be attached.
    pub syscall_tracepoints: SyscallTracepoints,
}
