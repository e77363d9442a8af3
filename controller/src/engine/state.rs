//! The fleet and the verdicts on it, under one lock: the engine writes, the gateway's directory reads.

use super::ended::EndedTasks;
use crate::engine::{Minutes, PodSidecar};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tasuki_core::decide::{Decider, Decision};
use tasuki_core::fleet::{Change, Fleet, Str};
use tokio::sync::watch;

/// What the engine knows.
#[derive(Debug)]
pub struct Knowledge {
    /// What there is.
    pub fleet: Fleet,
    /// Verdicts and memory.
    pub decider: Decider,
    /// Coverage over the last day.
    pub minutes: Minutes,
    /// Tasks that ended within the last hour.
    pub ended: EndedTasks,
    /// Per monitor: image digests that an agent may run (wanted now or before), the newest last.
    pub approved: BTreeMap<Str, Vec<Str>>,
}

impl Knowledge {
    /// Takes changes, in order, and judges what they touch.
    pub fn take(&mut self, changes: impl IntoIterator<Item = Change>, now: Timestamp) -> Decision {
        let mut applied = tasuki_core::fleet::Applied::default();
        for change in changes {
            applied.merge(self.fleet.apply(change, now));
        }
        for ended in &applied.ended {
            self.ended.put((*ended.task).clone(), now);
        }
        if applied.is_empty() {
            return Decision::default();
        }
        self.decider.decide(&self.fleet, &applied, now)
    }

    /// The agent for pods of the cluster that carry it themselves.
    ///
    /// # Errors
    /// What is missing.
    pub fn sidecar_of_pods(&self, monitor: Option<&str>) -> Result<PodSidecar, String> {
        let clusters = self.fleet.clusters().filter_map(|(_, state)| state.cluster.as_ref());
        let cluster = clusters.map(|cluster| &cluster.value).find(|cluster| cluster.scope.is_kubernetes());
        let cluster = cluster.ok_or("this controller watches no Kubernetes cluster; name --config-dir")?;
        let desired = self.decider.desired();
        let monitor = desired.placing(monitor)?;
        let agent = desired.agent(monitor, &cluster.scope, "");
        let agent = agent.ok_or_else(|| format!("monitor {} names no agent", monitor.name))?;
        Ok(PodSidecar { cluster: cluster.name.to_string(), agent })
    }

    /// Judges everything: deadlines pass without any change.
    pub fn tick(&mut self, now: Timestamp) -> Decision {
        self.fleet.expire(now);
        self.ended.expire(now);
        self.decider.decide_all(&self.fleet, now)
    }
}

/// [`Knowledge`] under its lock. A panic elsewhere cannot leave it half-written in a way that
/// matters: the next sweep puts everything right.
#[derive(Debug)]
pub struct Shared {
    knowledge: RwLock<Knowledge>,
    pods_known: watch::Sender<bool>,
    /// How often changes were taken.
    taken: watch::Sender<u64>,
}

impl Shared {
    /// Puts it under its lock.
    pub fn new(knowledge: Knowledge) -> Self {
        Self { knowledge: RwLock::new(knowledge), pods_known: watch::Sender::new(false), taken: watch::Sender::new(0) }
    }
    /// For reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Knowledge> {
        self.knowledge.read().unwrap_or_else(PoisonError::into_inner)
    }
    /// For writing; the engine alone.
    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Knowledge> {
        self.knowledge.write().unwrap_or_else(PoisonError::into_inner)
    }
    /// Takes changes, in order, and judges what they touch; the engine alone.
    pub(super) fn take(&self, changes: impl IntoIterator<Item = Change>, now: Timestamp) -> Decision {
        let decision = self.write().take(changes, now);
        self.taken.send_modify(|times| *times = times.wrapping_add(1));
        decision
    }
    /// Changes whenever changes were taken.
    pub(super) fn taken(&self) -> watch::Receiver<u64> {
        self.taken.subscribe()
    }
    /// Every pod that was there before this process is in the fleet by now, and desired state is in force.
    pub(super) fn tell_pods_known(&self) {
        self.pods_known.send_replace(true);
    }
    /// Whether that was told.
    pub(super) fn are_pods_known(&self) -> bool {
        *self.pods_known.borrow()
    }
    /// Returns once it was told.
    pub(super) async fn pods_known(&self) {
        // The sender lives as long as this does.
        let _ = self.pods_known.subscribe().wait_for(|known| *known).await;
    }
}
