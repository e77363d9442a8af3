//! What must be remembered between decisions and cannot be read back from ECS. The store keeps it.

use crate::fleet::Str;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tasuki_api::coverage::Reason;

/// Memory of past decisions: small, serialised whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Per cluster ARN (for External nodes with `#external` after it): agent images that failed
    /// there, and why. Retried only on another image or `tasuki rollout retry`.
    pub failed: BTreeMap<Str, BTreeMap<Str, Failure>>,
    /// Per cluster ARN (for External nodes with `#external` after it): the rollout under way.
    pub rollouts: BTreeMap<Str, Rollout>,
    /// Per Kubernetes cluster: since when no monitor selects it although it has agents. They go after a while, unless
    /// one does again.
    pub unselected: BTreeMap<Str, Timestamp>,
    /// Per service ARN: what was done to it.
    pub services: BTreeMap<Str, ServiceHistory>,
    /// Per task ARN: tasks that ended without any agent ever reporting them; kept for 24 h.
    pub missed: BTreeMap<Str, MissedTask>,
    /// Missed tasks that were forgotten before their 24 h because there were too many.
    pub missed_dropped: u64,
}

/// A selected task that ended without any agent ever reporting it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissedTask {
    /// Cluster ARN.
    pub cluster: Str,
    /// `service:NAME` or `family:NAME`.
    pub group: Str,
    /// The monitor that selected it.
    pub monitor: Str,
    /// When it started, as ECS said.
    pub started_at: Option<Timestamp>,
    /// When it was found to have ended.
    pub ended_at: Timestamp,
    /// Why it was not covered when it was last judged.
    pub reason: Option<Reason>,
}

/// Why an agent image failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// Why, for people.
    pub why: String,
}

/// A rollout under way in one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Image that is being rolled out.
    pub image: Str,
    /// Its version.
    pub version: Str,
    /// Version that it replaces.
    pub previous: Str,
    /// Index of the wave.
    pub wave: usize,
    /// When the wave's last unit was done: its soak runs from here.
    pub soaking_since: Option<Timestamp>,
    /// When the present step began: deadlines run from here.
    pub step_since: Timestamp,
    /// The rollout is being taken back, and why.
    pub rolling_back: Option<String>,
    /// Definition that the serving daemon ran before.
    #[serde(default)]
    pub from_definition: Option<Str>,
    /// Some node has no room for two agents: the serving daemon itself is updated.
    #[serde(default)]
    pub in_place: bool,
    /// Steps done, over all nodes: a deadline starts anew whenever it grows.
    #[serde(default)]
    pub progress: u64,
}

/// What was done to one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceHistory {
    /// When it was injected, the newest last; at most ten.
    pub injected: Vec<Timestamp>,
    /// When its owner took the sidecar out again, the newest last; at most ten.
    pub flipped: Vec<Timestamp>,
    /// The injected definition that made it worse, and why. It was rolled back unless the monitor says
    /// `onFailure: Pause`.
    pub rolled_back: Option<(Str, Failure)>,
    /// Fingerprint of the sidecar spec that made it worse; another one is tried again.
    pub rolled_back_spec: Option<Str>,
    /// The injected definition that it was last seen with.
    pub carries: Option<Str>,
}
