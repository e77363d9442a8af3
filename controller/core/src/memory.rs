//! What must be remembered between decisions and cannot be read back from ECS. The store keeps it.

use crate::fleet::Str;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Memory of past decisions: small, serialised whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Per cluster ARN: agent images that failed there, and why. Retried only on another image or
    /// `tasuki rollout retry`.
    pub failed: BTreeMap<Str, BTreeMap<Str, Failure>>,
    /// Per cluster ARN: the rollout under way.
    pub rollouts: BTreeMap<Str, Rollout>,
    /// Per service ARN: what was done to it.
    pub services: BTreeMap<Str, ServiceHistory>,
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
}

/// What was done to one service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceHistory {
    /// When it was injected, the newest last; at most ten.
    pub injected: Vec<Timestamp>,
    /// When its owner took the sidecar out again, the newest last; at most ten.
    pub flipped: Vec<Timestamp>,
    /// The injected definition that made it worse, and why.
    pub rolled_back: Option<(Str, Failure)>,
}
