//! The decider: holds the verdicts, so that one change costs one judgement.

use super::acting::{self, Wishes};
use super::judge::judge;
use super::judging::{
    ClusterVerdicts, gone, judge_cluster, judge_clusters, judge_workload, keep_since, note, side_by_side,
};
use super::missed;
use super::trace::Silent;
use super::verdict::{Changed, Tally, TaskVerdict};
use super::view::{ClusterView, WantedCache, WorkloadView, World};
use crate::action::{Action, ActionKind};
use crate::desired::Desired;
use crate::fleet::{Applied, ClusterState, Fleet, Str};
use crate::memory::Memory;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Where more nodes of a cluster changed at once, judging all of it costs less.
const FEW_NODES: usize = 4;

/// What a decision brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Tasks whose verdict changed, in the order of clusters, groups and tasks.
    pub changed: Vec<Changed>,
    /// What should be done now, in a fixed order, reads first. Repeated until the fleet shows it.
    pub actions: Vec<Action>,
    /// [`Decider::memory`] changed and should be stored before the actions are taken.
    pub memory_changed: bool,
}

impl Decision {
    /// Reads first, what only tidies up last, and each description once: one definition serves
    /// many clusters.
    fn put_in_order(&mut self) {
        let rank = |action: &Action| match action.kind {
            ActionKind::DescribeDefinition { .. } => 0,
            ActionKind::Deregister { .. } => 2,
            _ => 1,
        };
        self.actions.sort_by_key(rank);
        let mut described = BTreeSet::new();
        self.actions.retain(|action| match &action.kind {
            ActionKind::DescribeDefinition { definition, sidecar } => {
                described.insert((definition.clone(), sidecar.as_ref().map(|s| s.fingerprint())))
            }
            _ => true,
        });
    }
}

/// Judges the fleet against desired state.
#[derive(Debug)]
pub struct Decider {
    desired: Arc<Desired>,
    memory: Memory,
    wanted: WantedCache,
    pub(super) clusters: BTreeMap<Str, ClusterVerdicts>,
}

impl Decider {
    /// A decider that remembers `memory`. Nothing is judged yet.
    pub fn new(desired: Arc<Desired>, memory: Memory) -> Self {
        Self { desired, memory, wanted: WantedCache::default(), clusters: BTreeMap::new() }
    }

    /// Takes other desired state; call [`Self::decide_all`] next.
    pub fn set_desired(&mut self, desired: Arc<Desired>) {
        self.desired = desired;
        self.wanted = WantedCache::default();
    }
    /// Desired state.
    pub fn desired(&self) -> &Arc<Desired> {
        &self.desired
    }
    /// What must be stored.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
    /// Forgets that this cluster's or service's last attempts failed (`tasuki rollout retry`).
    /// Answers how many attempts were forgotten. A failure in one cluster also holds the others
    /// back, so for an image that failed anywhere retry each cluster where it failed.
    pub fn retry(&mut self, target: &str) -> usize {
        let failed = self.memory.failed.remove(target).map_or(0, |f| f.len());
        if self.memory.rollouts.get(target).is_some_and(|r| r.rolling_back.is_none()) {
            // Deadlines start anew.
            self.memory.rollouts.remove(target);
        }
        let Some(history) = self.memory.services.get_mut(target) else { return failed };
        let taken_back = usize::from(history.rolled_back.take().is_some()) + history.flipped.len();
        history.rolled_back_spec = None;
        history.flipped.clear();
        failed + taken_back
    }

    pub(super) fn world<'a>(&'a self, fleet: &'a Fleet, now: Timestamp) -> World<'a> {
        World { desired: &self.desired, fleet, memory: &self.memory, wanted: &self.wanted, now }
    }

    /// The verdict on one task.
    pub fn verdict(&self, cluster: &str, group: &str, task: &str) -> Option<&TaskVerdict> {
        let tasks = self.clusters.get(cluster)?.workloads.get(group)?;
        let index = tasks.binary_search_by(|(arn, _)| (**arn).cmp(task)).ok()?;
        tasks.get(index).map(|(_, verdict)| verdict)
    }

    /// Every verdict as (cluster, group, task, verdict), in order.
    pub fn verdicts(&self) -> impl Iterator<Item = (&Str, &Str, &Str, &TaskVerdict)> {
        self.clusters.iter().flat_map(|(cluster, verdicts)| {
            verdicts.workloads.iter().flat_map(move |(group, tasks)| {
                tasks.iter().map(move |(task, verdict)| (cluster, group, task, verdict))
            })
        })
    }

    /// Counts per cluster ARN, missed tasks included.
    pub fn tallies(&self) -> BTreeMap<Str, Tally> {
        let mut tallies: BTreeMap<Str, Tally> =
            self.clusters.iter().map(|(arn, verdicts)| (arn.clone(), verdicts.tally.clone())).collect();
        for missed in self.memory.missed.values() {
            let monitor = self.desired.monitors.iter().position(|m| m.name == missed.monitor);
            let monitor = monitor.and_then(|m| u16::try_from(m).ok());
            tallies.entry(missed.cluster.clone()).or_default().add_missed(monitor, missed.reason);
        }
        tallies
    }

    /// Counts over everything, missed tasks included.
    pub fn tally(&self) -> Tally {
        let mut all = Tally::default();
        for tally in self.tallies().values() {
            all.add_all(tally);
        }
        all
    }

    /// Judges everything.
    pub fn decide_all(&mut self, fleet: &Fleet, now: Timestamp) -> Decision {
        let mut decision = Decision { memory_changed: missed::expire(&mut self.memory, now), ..Decision::default() };
        let gone: Vec<Str> = self.clusters.keys().filter(|arn| fleet.cluster(arn).is_none()).cloned().collect();
        for arn in gone {
            self.forget_cluster(&arn, &mut decision);
        }
        self.wish_all(fleet, now, &mut decision);
        let mut held = std::mem::take(&mut self.clusters);
        let clusters =
            fleet.clusters().map(|(arn, state)| (arn, state, held.remove(arn).unwrap_or_default())).collect();
        self.clusters = judge_clusters(self.world(fleet, now), clusters, &mut decision.changed);
        self.prune_revisions(fleet, &mut decision);
        decision.put_in_order();
        decision
    }

    /// Judges what a change named, and keeps the record of what it ended.
    pub fn decide(&mut self, fleet: &Fleet, applied: &Applied, now: Timestamp) -> Decision {
        let mut decision = Decision::default();
        for ended in &applied.ended {
            let last = self.verdict(&ended.task.cluster, &ended.task.group, &ended.task.arn).copied();
            if let Some((task, missed)) = missed::judge(self.world(fleet, now), ended, last.as_ref()) {
                decision.memory_changed |= missed::keep(&mut self.memory, task, missed);
            }
            self.forget_task(&ended.task.cluster, &ended.task.group, &ended.task.arn, &mut decision);
        }
        // One that ended after all in the same batch stays missed.
        for task in applied.revived.iter().filter(|task| fleet.task(task).is_some()) {
            decision.memory_changed |= self.memory.missed.remove(task).is_some();
        }
        let whole: BTreeSet<&Str> = applied.clusters.iter().collect();
        for arn in &whole {
            match fleet.cluster(arn) {
                Some(state) => self.decide_cluster(fleet, arn, state, now, &mut decision),
                None => self.forget_cluster(arn, &mut decision),
            }
        }
        let mut nodes: BTreeMap<&Str, BTreeSet<&Str>> = BTreeMap::new();
        for (cluster, node) in applied.nodes.iter().filter(|(cluster, _)| !whole.contains(cluster)) {
            nodes.entry(cluster).or_default().insert(node);
        }
        for cluster in applied.wishes.iter().filter(|cluster| !whole.contains(cluster)) {
            nodes.entry(cluster).or_default();
        }
        for (cluster, nodes) in nodes {
            self.decide_nodes(fleet, cluster, &nodes, now, &mut decision);
        }
        let mut workloads: BTreeSet<(Str, Str)> = BTreeSet::new();
        for arn in &applied.services {
            if let Some(service) = fleet.service(arn)
                && !whole.contains(&service.cluster)
            {
                workloads.insert((service.cluster.clone(), format!("service:{}", service.name).into()));
            }
        }
        for (cluster, group) in &workloads {
            self.decide_workload(fleet, cluster, group, now, &mut decision);
        }
        let mut tasks: BTreeMap<&Str, Vec<(&Str, &Str)>> = BTreeMap::new();
        for task in &applied.tasks {
            let Some((cluster, group)) = fleet.place_of_task(task) else { continue };
            if !whole.contains(cluster) && !workloads.contains(&(cluster.clone(), group.clone())) {
                tasks.entry(cluster).or_default().push((group, task));
            }
        }
        for (cluster, tasks) in tasks {
            self.decide_tasks(fleet, cluster, &tasks, now, &mut decision);
        }
        decision.put_in_order();
        decision
    }

    fn decide_cluster(
        &mut self,
        fleet: &Fleet,
        arn: &Str,
        state: &ClusterState,
        now: Timestamp,
        decision: &mut Decision,
    ) {
        self.wish(fleet, arn, state, now, decision);
        self.judge(fleet, arn, state, now, decision);
    }

    fn judge(&mut self, fleet: &Fleet, arn: &Str, state: &ClusterState, now: Timestamp, decision: &mut Decision) {
        let mut held = self.clusters.remove(arn).unwrap_or_default();
        judge_cluster(self.world(fleet, now), arn, state, &mut held, &mut decision.changed);
        self.clusters.insert(arn.clone(), held);
    }

    /// What the cluster of these nodes wants, and the verdicts of the tasks on them: no other task's
    /// verdict looks at them. What is remembered then may change every verdict.
    fn decide_nodes(
        &mut self,
        fleet: &Fleet,
        arn: &Str,
        nodes: &BTreeSet<&Str>,
        now: Timestamp,
        decision: &mut Decision,
    ) {
        let Some(state) = fleet.cluster(arn) else { return };
        if self.wish(fleet, arn, state, now, decision) || nodes.len() > FEW_NODES {
            return self.judge(fleet, arn, state, now, decision);
        }
        let there = nodes.iter().flat_map(|node| fleet.tasks_on(node)).filter(|state| state.task.cluster == *arn);
        let mut tasks: Vec<_> = there.map(|state| (&state.task.group, &state.task.arn)).collect();
        tasks.sort_unstable();
        self.decide_tasks(fleet, arn, &tasks, now, decision);
    }

    /// What every cluster wants. What one of them has remembered, those after it look at: they are
    /// asked again then, which is rare.
    fn wish_all(&mut self, fleet: &Fleet, now: Timestamp, decision: &mut Decision) {
        let mut clusters: Vec<_> = fleet.clusters().collect();
        let world = self.world(fleet, now);
        let wishes = |(arn, state): &(&Str, &ClusterState)| {
            ClusterView::new(world, arn, state).map(|view| Wishes::of_cluster(&view)).unwrap_or_default()
        };
        let parts = side_by_side(&mut clusters, |part| part.iter().map(wishes).collect::<Vec<_>>());
        let mut stale = false;
        for ((arn, state), wishes) in clusters.into_iter().zip(parts.into_iter().flatten()) {
            if stale {
                self.wish(fleet, arn, state, now, decision);
            } else {
                stale = self.take_wishes(wishes, decision);
            }
        }
    }

    /// Whether memory changed.
    fn wish(
        &mut self,
        fleet: &Fleet,
        arn: &Str,
        state: &ClusterState,
        now: Timestamp,
        decision: &mut Decision,
    ) -> bool {
        let wishes = ClusterView::new(self.world(fleet, now), arn, state).map(|view| Wishes::of_cluster(&view));
        self.take_wishes(wishes.unwrap_or_default(), decision)
    }

    /// Whether memory changed.
    fn take_wishes(&mut self, wishes: Wishes, decision: &mut Decision) -> bool {
        let (actions, changed) = wishes.remember(&mut self.memory);
        decision.actions.extend(actions);
        decision.memory_changed |= changed;
        changed
    }

    fn decide_workload(&mut self, fleet: &Fleet, arn: &Str, group: &Str, now: Timestamp, decision: &mut Decision) {
        if let Some(state) = fleet.cluster(arn)
            && let Some(view) = ClusterView::new(self.world(fleet, now), arn, state)
            && let Some(service) = group.strip_prefix("service:").and_then(|name| state.service(name))
        {
            let mut wishes = Wishes::default();
            wishes.of_service(&view, service, &mut acting::room(&view));
            self.take_wishes(wishes, decision);
        }
        let mut held = self.clusters.remove(arn).unwrap_or_default();
        let before = held.workloads.remove(group).unwrap_or_default();
        before.iter().for_each(|(_, verdict)| held.tally.take(verdict));
        if let Some(state) = fleet.cluster(arn)
            && let Some(view) = ClusterView::new(self.world(fleet, now), arn, state)
            && let Some((group, tasks)) = state.workloads.get_key_value(group)
        {
            let after = judge_workload(&view, group, tasks, before, &mut decision.changed);
            after.iter().for_each(|(_, verdict)| held.tally.add(verdict));
            held.workloads.insert(group.clone(), after);
        }
        self.clusters.insert(arn.clone(), held);
    }

    /// Judges tasks of one cluster, each with its group. What the cluster's tasks share is looked up once for all.
    fn decide_tasks(
        &mut self,
        fleet: &Fleet,
        arn: &Str,
        tasks: &[(&Str, &Str)],
        now: Timestamp,
        decision: &mut Decision,
    ) {
        let mut held = self.clusters.remove(arn).unwrap_or_default();
        let view = fleet.cluster(arn).and_then(|cluster| ClusterView::new(self.world(fleet, now), arn, cluster));
        for (group, task) in tasks.iter().copied() {
            let Some((view, state)) = view.as_ref().zip(fleet.task(task)) else { continue };
            let workload = WorkloadView::new(view, group, state.task.launch);
            let mut after = judge(&workload, state, &mut Silent);
            let verdicts = held.workloads.entry(group.clone()).or_default();
            match verdicts.binary_search_by(|(arn, _)| arn.cmp(task)) {
                Ok(index) => {
                    if let Some((_, slot)) = verdicts.get_mut(index) {
                        let before = *slot;
                        keep_since(&before, &mut after);
                        *slot = after;
                        held.tally.take(&before);
                        note(arn, group, task, Some(before), after, &mut decision.changed);
                    }
                }
                Err(index) => {
                    verdicts.insert(index, (task.clone(), after));
                    note(arn, group, task, None, after, &mut decision.changed);
                }
            }
            held.tally.add(&after);
        }
        self.clusters.insert(arn.clone(), held);
    }

    fn forget_task(&mut self, cluster: &Str, group: &Str, task: &Str, decision: &mut Decision) {
        let Some(held) = self.clusters.get_mut(cluster) else { return };
        let Some(tasks) = held.workloads.get_mut(group) else { return };
        if let Ok(index) = tasks.binary_search_by(|(arn, _)| arn.cmp(task)) {
            let (task, before) = tasks.remove(index);
            held.tally.take(&before);
            if tasks.is_empty() {
                held.workloads.remove(group);
            }
            gone(cluster, group, vec![(task, before)], &mut decision.changed);
        }
    }

    fn forget_cluster(&mut self, arn: &Str, decision: &mut Decision) {
        if let Some(held) = self.clusters.remove(arn) {
            for (group, tasks) in held.workloads {
                gone(arn, &group, tasks, &mut decision.changed);
            }
        }
    }
}
