//! Rollouts as people see them.

use super::Decider;
use super::daemon_view::Daemons;
use super::view::ClusterView;
use crate::fleet::{Fleet, LaunchType, Service, SidecarMark, Str};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A hand-over that has stood for so long is told with what it waits for: an agent that is healthy starts sooner.
const STILL: SignedDuration = SignedDuration::from_secs(30);

/// Where a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Nodes are being moved to the new agent.
    RollingOut,
    /// A wave is done; its gates are watched.
    Soaking,
    /// A gate failed: nodes go back to the old agent.
    RollingBack,
    /// All nodes have the new agent; the serving daemon takes over.
    Finishing,
}

impl Phase {
    /// The stable name, as it is written in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::RollingOut => "RollingOut",
            Self::Soaking => "Soaking",
            Self::RollingBack => "RollingBack",
            Self::Finishing => "Finishing",
        }
    }
}

/// A rollout under way in one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutStatus {
    /// Cluster ARN.
    pub cluster: Str,
    /// Version that comes.
    pub version: Str,
    /// Version that goes.
    pub previous: Str,
    /// Where it is.
    pub phase: Phase,
    /// Name of the wave.
    pub wave: String,
    /// Nodes that run the new agent and no other.
    pub done: u64,
    /// Nodes in all.
    pub of: u64,
    /// Since when the present step runs.
    pub since: Timestamp,
    /// Why it goes back; else what the hand-over of a node waits for, once nothing has moved for [`STILL`].
    pub why: Option<String>,
}

impl Decider {
    /// Every rollout under way, by cluster.
    pub fn rollouts(&self, fleet: &Fleet, now: Timestamp) -> Vec<RolloutStatus> {
        let world = self.world(fleet, now);
        let mut all = Vec::new();
        for (key, rollout) in &self.memory().rollouts {
            let (arn, external) = match key.strip_suffix("#external") {
                Some(arn) => (arn, true),
                None => (&**key, false),
            };
            let Some((arn, state)) = fleet.clusters().find(|(known, _)| ***known == *arn) else { continue };
            let Some(cluster) = ClusterView::new(world, arn, state) else { continue };
            let launch = match cluster.cluster.scope.is_kubernetes() {
                _ if external => LaunchType::External,
                true => LaunchType::Kubernetes,
                false => LaunchType::Ec2,
            };
            let daemons = Daemons::new(&cluster, launch);
            let monitor = world.desired.select_cluster(cluster.cluster, launch);
            let wanted = monitor.and_then(|m| cluster.wanted(m));
            let mark = |service: &Service| fleet.definition(&service.definition)?.sidecar.as_ref();
            let is_wanted = |mark: &SidecarMark| mark.spec.as_ref() == wanted.as_ref().map(|w| &w.agent_print);
            let (serving_mark, next_mark) = (daemons.serving.and_then(mark), daemons.next.and_then(mark));
            let taken_over = serving_mark.is_some_and(is_wanted) && !rollout.in_place;
            let nodes = daemons.nodes.iter().filter(|n| n.eligible);
            let done = nodes.clone().filter(|n| match (rollout.in_place, taken_over) {
                (true, _) => n.serving_agent.is_healthy() && serving_mark.is_some_and(|m| m.version == rollout.version),
                (_, true) => n.serving_agent.is_healthy() && (daemons.promoted() || !n.hold && !n.next),
                (_, false) => n.has_moved(),
            });
            let phase = match () {
                () if rollout.rolling_back.is_some() => Phase::RollingBack,
                () if taken_over => Phase::Finishing,
                () if rollout.soaking_since.is_some() => Phase::Soaking,
                () => Phase::RollingOut,
            };
            let is_other = next_mark.is_some_and(|mark| !is_wanted(mark));
            let back = is_other || matches!(phase, Phase::RollingBack | Phase::Finishing);
            let still = now.duration_since(rollout.step_since) >= STILL && !daemons.promoted();
            let waits = if still { daemons.waiting(back) } else { None };
            let waves = monitor.and_then(|m| world.desired.monitors.get(m)).map(|m| &m.spec.rollout.waves);
            all.push(RolloutStatus {
                cluster: arn.clone(),
                version: rollout.version.clone(),
                previous: rollout.previous.clone(),
                phase,
                wave: waves.and_then(|w| w.get(rollout.wave)).map(|w| w.name.clone()).unwrap_or_default(),
                done: done.count() as u64,
                of: nodes.count() as u64,
                since: rollout.soaking_since.unwrap_or(rollout.step_since),
                why: match (rollout.rolling_back.clone(), waits) {
                    (Some(why), Some(waits)) => Some(format!("{why}; it waits for {waits}")),
                    (why, waits) => why.or(waits),
                },
            });
        }
        all
    }
}
