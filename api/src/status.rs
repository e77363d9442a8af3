//! What the controller writes into the `status` of Kubernetes objects.
//!
//! Every kind has [`DocumentStatus`]; a `RuntimeMonitor` has [`MonitorStatus`], which holds more.
//! Conditions follow Kubernetes' `metav1.Condition`, and the three names of kstatus mean what they
//! mean there. Nothing in here is ever read as a wish.

use crate::coverage::Reason;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Types of conditions.
pub mod condition {
    /// The document passed every check and is in force as it is written.
    pub const ACCEPTED: &str = "Accepted";
    /// kstatus: what was wanted is in force. Tasks without an agent never make it `False`.
    pub const READY: &str = "Ready";
    /// kstatus: the controller is on its way there.
    pub const RECONCILING: &str = "Reconciling";
    /// kstatus: it does not get further without a person.
    pub const STALLED: &str = "Stalled";
    /// Every selected task is watched.
    pub const COVERED: &str = "Covered";
    /// The wanted version is everywhere.
    pub const ROLLED_OUT: &str = "RolledOut";
}

/// The status of a document that only passes checks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DocumentStatus {
    /// `metadata.generation` of the document that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One of each type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<StatusCondition>,
}

/// The status of a `RuntimeMonitor`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MonitorStatus {
    /// `metadata.generation` of the document that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the monitor is, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<MonitorPhase>,
    /// Tasks by verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub coverage: Option<CoverageCounts>,
    /// Why tasks are not covered, the most frequent first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub reasons: Vec<ReasonCount>,
    /// The rollout under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutProgress>,
    /// One of each type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<StatusCondition>,
}

/// Where a monitor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MonitorPhase {
    /// It reports, and changes nothing.
    Observing,
    /// Nothing is to be done.
    Settled,
    /// Agents are moved to the wanted version.
    RollingOut,
    /// A wave is done; its gates are watched.
    Soaking,
    /// A gate failed: agents go back to the version before.
    RollingBack,
    /// The wanted version failed and went back; it is not tried again by itself.
    RolledBack,
    /// All agents have the wanted version; what was needed for the rollout is taken away.
    Finishing,
    /// `spec.rollout.paused` is set.
    Paused,
    /// Every change is stopped.
    Frozen,
    /// The document was refused; its last good version, if any, is in force.
    Refused,
}

/// Tasks of one monitor by verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CoverageCounts {
    /// Selected tasks that live now: covered, starting, unhealthy and uncovered ones.
    pub total: u64,
    /// A fresh heartbeat of a whole agent names them.
    pub covered: u64,
    /// Younger than their grace, not yet reported.
    pub starting: u64,
    /// An agent is placed but not doing its job.
    pub unhealthy: u64,
    /// No agent is placed.
    pub uncovered: u64,
    /// Ended within the last 24 hours without any agent ever reporting them; not in `total`.
    pub missed: u64,
    /// Left out by git or an allowed tag; not in `total`.
    pub excluded: u64,
    /// Covered share of the selected tasks that are past their grace; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub ratio: Option<String>,
}

/// How many tasks are not covered for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReasonCount {
    /// Stable name; docs/reference/coverage-reasons.md.
    #[schemars(with = "String", length(max = 64))]
    pub reason: Reason,
    /// How many tasks.
    pub count: u64,
    /// One of them.
    pub example: String,
}

/// A rollout under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutProgress {
    /// `RollingOut`, `Soaking`, `RollingBack` or `Finishing`.
    pub phase: String,
    /// Version that comes.
    pub version: String,
    /// Version that goes.
    pub previous: String,
    /// Name of the wave.
    pub wave: String,
    /// Agents on the new version.
    pub done: u64,
    /// Agents in all.
    pub of: u64,
    /// Since when the present step runs.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time"))]
    pub since: Timestamp,
    /// Why it goes back, or what a hand-over waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A condition, as `metav1.Condition` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatusCondition {
    /// What it is about.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316))]
    pub kind: String,
    /// Whether it holds.
    pub status: Truth,
    /// `metadata.generation` that it speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// When `status` last became something else.
    #[schemars(with = "String", length(max = 40), extend("format" = "date-time"))]
    pub last_transition_time: Timestamp,
    /// Why, in one word for programs.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Why, for people.
    #[schemars(length(max = 32768))]
    pub message: String,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// That cannot be said.
    Unknown,
}

/// Most characters of a condition's message, as `metav1.Condition` bounds it.
const MAX_MESSAGE: usize = 32_768;

impl StatusCondition {
    /// A condition as of `now`. It keeps the time of the one before of its type while its status is the same.
    pub fn new(
        kind: &str,
        status: Truth,
        reason: &str,
        message: &str,
        generation: Option<i64>,
        before: &[Self],
        now: Timestamp,
    ) -> Self {
        let same = before.iter().find(|condition| condition.kind == kind && condition.status == status);
        // Kubernetes' times end at the second.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Self {
            kind: kind.to_owned(),
            status,
            observed_generation: generation,
            last_transition_time: same.map_or(now, |condition| condition.last_transition_time),
            reason: reason.to_owned(),
            message: message.chars().take(MAX_MESSAGE).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_condition_moves_with_its_status_only() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let first = StatusCondition::new("Ready", Truth::True, "A", "a", Some(1), &[], at(10));
        let same = StatusCondition::new("Ready", Truth::True, "B", "b", Some(2), std::slice::from_ref(&first), at(20));
        assert_eq!((same.last_transition_time, same.reason.as_str()), (at(10), "B"));
        let other = StatusCondition::new("Ready", Truth::False, "C", "c", Some(2), &[same], at(30));
        assert_eq!(other.last_transition_time, at(30));
        let long = StatusCondition::new("Ready", Truth::False, "C", &"é".repeat(40_000), None, &[other], at(40));
        assert_eq!((long.last_transition_time, long.message.chars().count()), (at(30), MAX_MESSAGE));
    }
}
