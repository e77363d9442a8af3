//! From verdicts to actions: what each cluster wants done, in a fixed order, and what is remembered.

use super::daemon::{self};
use super::daemon_view::Daemons;
use super::live_pods;
use super::services::{self, Way};
use super::sidecar;
use super::trace::Told;
use super::view::{ClusterView, WorkloadView, World};
use super::{Decider, Decision};
use crate::action::{Action, ActionKind, Blocked, DAEMON_SERVICE, FAMILY_SUFFIX, HOLD, NEXT, sidecar_namespace};
use crate::fleet::{ClusterState, Definition, Fleet, LaunchType, ScopeId, Service, Str};
use crate::memory::Memory;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashSet};
use tasuki_api::desired::Delivery;

/// Own revisions that are kept for going back.
const KEPT_REVISIONS: usize = 3;

/// What a cluster wants done and remembered.
#[derive(Default)]
pub(super) struct Wishes {
    pub actions: Vec<Action>,
    rollouts: Vec<(Str, Option<crate::memory::Rollout>)>,
    failed: Vec<(Str, Str, crate::memory::Failure)>,
    unselected: Vec<(Str, Option<Timestamp>)>,
    histories: Vec<(Str, crate::memory::ServiceHistory)>,
}

impl Wishes {
    /// Of a whole cluster.
    pub fn of_cluster(cluster: &ClusterView<'_>) -> Self {
        let mut wishes = Self::default();
        for launch in cluster.cluster.daemon_launches() {
            wishes.of_daemon(cluster, *launch);
        }
        for (offer, step) in live_pods::steps(cluster) {
            wishes.actions.extend(step.action);
            if cluster.world.memory.unselected.get(&offer) != step.unselected.as_ref() {
                wishes.unselected.push((offer, step.unselected));
            }
        }
        let mut room = room(cluster);
        for service in cluster.state.services.values() {
            wishes.of_service(cluster, &service.value, &mut room);
        }
        wishes
    }

    fn of_daemon(&mut self, cluster: &ClusterView<'_>, launch: LaunchType) {
        if cluster.state.nodes.is_empty()
            && cluster.world.memory.rollouts.is_empty()
            && cluster.state.services.is_empty()
        {
            return;
        }
        let (key, step) = daemon::step(cluster, launch);
        self.actions.extend(step.actions);
        if cluster.world.memory.unselected.get(&key) != step.unselected.as_ref() {
            self.unselected.push((key.clone(), step.unselected));
        }
        if cluster.world.memory.rollouts.get(&key) != step.rollout.as_ref() {
            self.rollouts.push((key.clone(), step.rollout));
        }
        self.failed.extend(step.failed.map(|(image, failure)| (key, image, failure)));
    }

    /// Of one service; `room` is how many more may be deployed just now.
    pub fn of_service(&mut self, cluster: &ClusterView<'_>, service: &Service, room: &mut usize) {
        let step = sidecar::step(cluster, service, *room > 0);
        if let Some(action) = step.action {
            if matches!(action.kind, ActionKind::Inject { .. } | ActionKind::Uninject { .. }) {
                *room = room.saturating_sub(1);
            }
            self.actions.push(action);
        }
        self.histories.extend(step.history.map(|history| (service.arn.clone(), history)));
    }

    /// Writes into memory what is to be remembered; answers the actions and whether memory changed.
    pub fn remember(self, memory: &mut Memory) -> (Vec<Action>, bool) {
        let changed = !(self.rollouts.is_empty()
            && self.failed.is_empty()
            && self.unselected.is_empty()
            && self.histories.is_empty());
        for (key, since) in self.unselected {
            match since {
                Some(since) => drop(memory.unselected.insert(key, since)),
                None => drop(memory.unselected.remove(&key)),
            }
        }
        for (key, rollout) in self.rollouts {
            match rollout {
                Some(rollout) => drop(memory.rollouts.insert(key, rollout)),
                None => drop(memory.rollouts.remove(&key)),
            }
        }
        for (key, image, failure) in self.failed {
            memory.failed.entry(key).or_default().insert(image, failure);
        }
        for (service, history) in self.histories {
            memory.services.insert(service, history);
        }
        (self.actions, changed)
    }
}

/// How many more services of a cluster may be deployed for the agent's sake at once: a tenth, at
/// least one, less those under way.
pub(super) fn room(cluster: &ClusterView<'_>) -> usize {
    let services = &cluster.state.services;
    let under_way = services.values().filter(|s| sidecar::is_deploying(cluster, &s.value)).count();
    services.len().div_ceil(10).max(1).saturating_sub(under_way)
}

impl Decider {
    /// What stands in the way of every service and cluster that a monitor selects, for `tasuki
    /// plan`. Made on demand: it takes texts, which deciding does not.
    pub fn blocked(&self, fleet: &Fleet, now: Timestamp) -> Vec<Blocked> {
        let world = self.world(fleet, now);
        let mut blocked = Vec::new();
        for (arn, state) in fleet.clusters() {
            let Some(cluster) = ClusterView::new(world, arn, state) else { continue };
            for service in state.services.values().map(|s| &s.value) {
                let workload = WorkloadView::named(&cluster, true, &service.name, service.launch);
                let Some(monitor) = workload.monitor() else { continue };
                let live = monitor.delivery(&cluster.cluster.name, &service.name) == Delivery::Live;
                let applies = service.launch == LaunchType::Fargate && !workload.own && live;
                if !applies || services::carries_sidecar(&cluster, service) {
                    continue;
                }
                let mut told = Told::default();
                if let Way::Blocked(reason) =
                    services::live(&workload, monitor, service, world.memory.services.get(&service.arn), &mut told)
                {
                    let detail = told.detail.unwrap_or_default();
                    blocked.push(Blocked { target: service.arn.clone(), reason, detail });
                }
            }
        }
        blocked
    }

    /// Own revisions that nothing needs any more: all but the newest three of each family, unless
    /// a service or task still uses them.
    pub(super) fn prune_revisions(&self, fleet: &Fleet, decision: &mut Decision) {
        if self.desired().frozen || !self.desired().monitors.iter().any(|m| m.enforces()) {
            return;
        }
        let mut families: BTreeMap<&str, Vec<(u64, &Definition)>> = BTreeMap::new();
        for definition in fleet.definitions().filter(|d| d.active && is_own(d)) {
            if let Some((family, revision)) = definition.arn.rsplit_once(':') {
                families.entry(family).or_default().push((revision.parse().unwrap_or(0), definition));
            }
        }
        families.retain(|_, revisions| revisions.len() > KEPT_REVISIONS);
        if families.is_empty() {
            return;
        }
        let used = used_definitions(fleet);
        for revisions in families.values_mut() {
            revisions.sort_by_key(|(revision, _)| std::cmp::Reverse(*revision));
            for (_, definition) in revisions.iter().skip(KEPT_REVISIONS) {
                if !used.contains(&definition.arn) {
                    decision.actions.extend(deregister(definition, "older than the last three revisions"));
                }
            }
        }
    }
}

fn is_own(definition: &Definition) -> bool {
    let mark = definition.sidecar.as_ref();
    let family = sidecar::family(&definition.arn);
    (family.ends_with(FAMILY_SUFFIX) && mark.is_some_and(|m| m.source.is_some()))
        || (family == DAEMON_SERVICE && mark.is_some_and(|m| m.spec.is_some()))
}

fn used_definitions(fleet: &Fleet) -> HashSet<&Str> {
    let mut used = HashSet::new();
    for (_, state) in fleet.clusters() {
        // A deleted service stays INACTIVE until the next sweep; the tasks that it still has are counted below.
        for service in state.services.values().map(|s| &s.value).filter(|s| s.active) {
            used.insert(&service.definition);
            used.extend(service.deployments.iter().map(|d| &d.definition));
        }
        used.extend(state.workloads.values().flat_map(|w| w.values()).map(|t| &t.task.definition));
    }
    used
}

/// A definition belongs to an account and Region, not to a cluster.
fn deregister(definition: &Definition, why: &str) -> Option<Action> {
    let mut parts = definition.arn.split(':').skip(3);
    let (region, account) = (parts.next()?.into(), parts.next()?.into());
    Some(Action {
        scope: ScopeId { account, region },
        cluster: Str::default(),
        monitor: Str::default(),
        why: why.to_owned(),
        kind: ActionKind::Deregister { definition: definition.arn.clone() },
    })
}

/// What `tasuki uninstall` does next, whatever desired state says. Call it again as the fleet
/// changes, until it answers nothing: services are pointed back and daemons deleted first; own
/// definitions are deregistered when nothing uses them any more.
pub fn uninstall(fleet: &Fleet) -> Vec<Action> {
    let (desired, memory, wanted) = Default::default();
    let world = World { desired: &desired, fleet, memory: &memory, wanted: &wanted, now: fleet.born() };
    let mut actions = Vec::new();
    for (arn, state) in fleet.clusters() {
        if let Some(cluster) = ClusterView::new(world, arn, state) {
            uninstall_cluster(&cluster, state, &mut actions);
        }
    }
    let used = used_definitions(fleet);
    let mut own: Vec<_> = fleet.definitions().filter(|d| d.active && is_own(d) && !used.contains(&d.arn)).collect();
    own.sort_by(|a, b| a.arn.cmp(&b.arn));
    actions.extend(own.into_iter().filter_map(|d| deregister(d, UNINSTALL)));
    actions
}

const UNINSTALL: &str = "tasuki uninstall";

fn uninstall_cluster(cluster: &ClusterView<'_>, state: &ClusterState, actions: &mut Vec<Action>) {
    let act = |kind| Action {
        scope: cluster.cluster.scope.clone(),
        cluster: cluster.arn.clone(),
        monitor: Str::default(),
        why: UNINSTALL.to_owned(),
        kind,
    };
    for service in state.services.values().map(|s| &s.value).filter(|s| s.active) {
        if !service.daemon && sidecar::is_injected(cluster, &service.definition) {
            let (service, from) = (service.arn.clone(), service.definition.clone());
            actions.push(act(ActionKind::Uninject { service, from }));
        } else if sidecar_namespace(&service.name).is_some() && cluster.offer(service).is_some() {
            actions.push(act(ActionKind::WithdrawSidecar { service: service.arn.clone() }));
        }
    }
    for launch in cluster.cluster.daemon_launches() {
        let daemons = Daemons::new(cluster, *launch);
        for service in [daemons.serving, daemons.next].into_iter().flatten() {
            actions.push(act(ActionKind::DeleteDaemon { service: service.arn.clone() }));
        }
    }
    for node in state.nodes.values().map(|n| &n.value) {
        for name in [HOLD, NEXT].into_iter().filter(|name| node.attributes.contains_key(*name)) {
            actions.push(act(ActionKind::DeleteAttribute { node: node.arn.clone(), name: name.into() }));
        }
    }
}
