//! What the rest of the program may read of the engine, and ask of it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tasuki_api::coverage::{Counts, Depth, Placement, Reason, TaskCoverage};
use tasuki_core::action::AgentSpec;
use tasuki_core::decide::Phase;
use tokio::sync::{mpsc, oneshot, watch};

/// A handle on the running engine; cheap to clone.
#[derive(Clone)]
pub struct Engine {
    /// The newest view; replaced whole on each change.
    pub view: watch::Receiver<Arc<View>>,
    /// Questions and orders.
    pub requests: mpsc::Sender<Request>,
}

/// Everything that is shown, as of one moment.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct View {
    /// When it was made; absent until the first full sweep is done.
    pub at: Option<Timestamp>,
    /// Every known task.
    pub tasks: Vec<TaskCoverage>,
    /// Every known cluster.
    pub clusters: Vec<ClusterView>,
    /// Every monitor in force.
    pub monitors: Vec<MonitorView>,
    /// Counts over everything.
    pub counts: Counts,
    /// Covered share of selected tasks now; absent where nothing is selected.
    pub live_ratio: Option<f64>,
    /// Covered share of selected task-minutes in the last 24 h.
    pub minutes_ratio: Option<f64>,
    /// Scopes and how fresh they are.
    pub scopes: Vec<ScopeView>,
    /// What is wrong with the desired state; the documents concerned keep their last good version.
    pub problems: Vec<ProblemView>,
    /// Hash or commit of the desired state in force.
    pub desired: String,
    /// Every change is stopped.
    pub frozen: bool,
    /// What was lost since start because there was too much of it, by name.
    pub lost: BTreeMap<String, u64>,
    /// What agents say of themselves, by cluster.
    pub agents: Vec<AgentTotals>,
}

/// What the agents of one cluster say of themselves in their last heartbeats, summed. Counts are since each
/// agent's start, so a sum falls when an agent goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentTotals {
    /// Cluster name.
    pub cluster: String,
    /// Agents.
    pub agents: u64,
    /// Findings that agents lost before the gateway took them.
    pub findings_lost: u64,
    /// Evictions from bounded caches.
    pub evictions: u64,
    /// Events that could not be given a task.
    pub unnamed_events: u64,
    /// Agents that did not get their scheduling priority.
    pub without_priority: u64,
}

/// One monitor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MonitorView {
    /// Its name.
    pub name: String,
    /// Tasks that it selects.
    pub counts: Counts,
    /// Why tasks are not covered, the most frequent first.
    pub reasons: Vec<ReasonView>,
    /// Covered tasks whose agent has another version than the wanted one.
    pub outdated: u64,
    /// The rollout under way; counts of several clusters are summed.
    pub rollout: Option<RolloutView>,
    /// The wanted version failed, in the cluster where that was last, and is not tried again by itself.
    pub failed: Option<FailedView>,
}

/// A version that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedView {
    /// Name of the cluster.
    pub cluster: String,
    /// The version.
    pub version: String,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub why: String,
}

/// How many tasks are not covered for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReasonView {
    /// The reason.
    pub reason: Reason,
    /// How many tasks.
    pub count: u64,
    /// One of them.
    pub example: String,
}

/// One cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// ARN.
    pub arn: String,
    /// Name.
    pub name: String,
    /// `account/region`.
    pub scope: String,
    /// How agents get to its tasks; several where it mixes compute.
    pub placements: Vec<Placement>,
    /// Counts.
    pub counts: Counts,
    /// The least depth of its covered tasks.
    pub depth: Option<Depth>,
    /// The monitor that owns its nodes' agents.
    #[serde(default)]
    pub monitor: Option<String>,
    /// Wanted agent version.
    pub wanted_version: Option<String>,
    /// Agent versions that run, with how many tasks each covers.
    pub versions: Vec<(String, u64)>,
    /// The rollout under way.
    pub rollout: Option<RolloutView>,
    /// The wanted version failed here and is not tried again by itself.
    #[serde(default)]
    pub failed: Option<FailedView>,
}

/// A rollout under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RolloutView {
    /// Version that comes.
    pub version: String,
    /// Version that goes.
    pub previous: String,
    /// Where it is.
    pub phase: Phase,
    /// Name of the wave.
    pub wave: String,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub of: u64,
    /// Since when.
    pub since: Timestamp,
    /// Why it goes back, or what it waits for.
    pub why: Option<String>,
}

impl RolloutView {
    /// What a rollout does for the reason in `why`.
    pub fn standing(&self) -> &'static str {
        if self.phase == Phase::RollingBack { "goes back" } else { "waits" }
    }
}

/// One scope and how fresh what is known of it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScopeView {
    /// `account/region`.
    pub scope: String,
    /// When the last full sweep ended.
    pub swept_at: Option<Timestamp>,
    /// When the last event was taken from the queue.
    pub event_at: Option<Timestamp>,
    /// What AWS refuses: `api: words`.
    pub denied: Vec<String>,
    /// Throttled calls since start.
    pub throttled: u64,
}

/// Something wrong with the desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// `Kind/name`, or the file where the document could not be read at all.
    pub subject: String,
    /// The whole message as `tasuki check` prints it, without colours.
    pub message: String,
}

/// One line of `tasuki explain`: a fact in the order in which it was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fact {
    /// What was found.
    pub text: String,
    /// Where it comes from: `event`, `sweep`, `heartbeat`, `config`.
    pub source: String,
    /// When that was; absent for configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
}

/// Answer to [`Request::Sidecar`]: what `tasuki render` adds to pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSidecar {
    /// The cluster's name, as the controller has it.
    pub cluster: String,
    /// The agent.
    pub agent: AgentSpec,
}

/// Answer to [`Request::Explain`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The task.
    pub coverage: TaskCoverage,
    /// The facts behind the verdict.
    pub facts: Vec<Fact>,
    /// How the agent that speaks for it proved who it is; absent where none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<AgentProof>,
}

/// How an agent proved whose agent it is (docs/concepts/identity.md).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentProof {
    /// `Verified` where it came from its task's own address, else `Unverified`.
    pub address: String,
    /// Its task's role signed for it.
    pub signed: bool,
}

/// What `tasuki plan` shows of one service or cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanItem {
    /// `Create`, `Replace`, `Nothing`, `Blocked`.
    pub change: PlanChange,
    /// Cluster name.
    pub cluster: String,
    /// Service name, or `tasuki` for the daemon.
    pub target: String,
    /// One line: what would be done, or is in the way.
    pub what: String,
    /// Tasks that would be replaced.
    pub tasks_replaced: u64,
    /// API calls that it would take.
    pub calls: u64,
    /// Memory that it adds to tasks or nodes, MiB in all.
    pub memory_mib: u64,
    /// The definition before and after, for `-v`; never holds environment values of the customer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff: Option<String>,
}

/// The sign in front of a plan item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PlanChange {
    /// `+`
    Create,
    /// `~`
    Replace,
    /// `=`
    Nothing,
    /// `!`
    Blocked,
}

/// A question to, or an order for, the engine.
pub enum Request {
    /// Why does this task have its verdict? The text is an ARN or a unique part of one.
    Explain(String, oneshot::Sender<Option<Explanation>>),
    /// What would Enforce do?
    Plan(oneshot::Sender<Vec<PlanItem>>),
    /// Stop, or allow again, every change. It is in force either way; an error says that a restart would
    /// undo it, and why.
    Freeze(bool, oneshot::Sender<Result<(), String>>),
    /// The agent for pods without a node of ours, of this monitor or of the only one that names an agent.
    Sidecar(Option<String>, oneshot::Sender<Result<PodSidecar, String>>),
    /// Try failed versions and rolled-back services of this cluster (name or ARN) again.
    /// Answers how many were forgotten.
    Retry(String, oneshot::Sender<usize>),
    /// Take everything out again and freeze; the answer comes when nothing is left, or says what AWS still holds.
    Uninstall(oneshot::Sender<Vec<String>>),
    /// What Tasuki made, as AWS says now; or why that cannot be said.
    Inventory(oneshot::Sender<Result<Vec<crate::act::Owned>, String>>),
}
