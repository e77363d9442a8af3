//! The decider: holds the verdicts, so that one change costs one judgement.

use super::acting::{self, Wishes};
use super::judge::judge;
use super::missed;
use super::trace::Silent;
use super::verdict::{Changed, Tally, TaskVerdict};
use super::view::{ClusterView, WantedCache, WorkloadView, World};
use crate::action::{Action, ActionKind};
use crate::desired::Desired;
use crate::fleet::{Applied, ClusterState, Fleet, LaunchType, Str, TaskState, is};
use crate::memory::Memory;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

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

#[derive(Debug, Default)]
struct ClusterVerdicts {
    workloads: BTreeMap<Str, Vec<(Str, TaskVerdict)>>,
    tally: Tally,
}

/// Judges the fleet against desired state.
#[derive(Debug)]
pub struct Decider {
    desired: Arc<Desired>,
    memory: Memory,
    wanted: WantedCache,
    clusters: BTreeMap<Str, ClusterVerdicts>,
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
        for (arn, state) in fleet.clusters() {
            self.decide_cluster(fleet, arn, state, now, &mut decision);
        }
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
        for task in &applied.revived {
            decision.memory_changed |= self.memory.missed.remove(task).is_some();
        }
        let whole: BTreeSet<&Str> = applied.clusters.iter().collect();
        for arn in &whole {
            match fleet.cluster(arn) {
                Some(state) => self.decide_cluster(fleet, arn, state, now, &mut decision),
                None => self.forget_cluster(arn, &mut decision),
            }
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
        for task in &applied.tasks {
            let Some((cluster, group)) = fleet.place_of_task(task) else { continue };
            if !whole.contains(cluster) && !workloads.contains(&(cluster.clone(), group.clone())) {
                self.decide_task(fleet, cluster, group, task, now, &mut decision);
            }
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
        if let Some(view) = ClusterView::new(self.world(fleet, now), arn, state) {
            let wishes = Wishes::of_cluster(&view);
            self.take_wishes(wishes, decision);
        }
        let mut held = self.clusters.remove(arn).unwrap_or_default();
        let mut next = ClusterVerdicts::default();
        if let Some(view) = ClusterView::new(self.world(fleet, now), arn, state) {
            for (group, tasks) in &state.workloads {
                let before = held.workloads.remove(group).unwrap_or_default();
                let after = judge_workload(&view, group, tasks, before, decision);
                after.iter().for_each(|(_, verdict)| next.tally.add(verdict));
                next.workloads.insert(group.clone(), after);
            }
        }
        for (group, tasks) in held.workloads {
            gone(arn, &group, tasks, decision);
        }
        self.clusters.insert(arn.clone(), next);
    }

    fn take_wishes(&mut self, wishes: Wishes, decision: &mut Decision) {
        let (actions, changed) = wishes.remember(&mut self.memory);
        decision.actions.extend(actions);
        decision.memory_changed |= changed;
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
            let after = judge_workload(&view, group, tasks, before, decision);
            after.iter().for_each(|(_, verdict)| held.tally.add(verdict));
            held.workloads.insert(group.clone(), after);
        }
        self.clusters.insert(arn.clone(), held);
    }

    fn decide_task(
        &mut self,
        fleet: &Fleet,
        arn: &Str,
        group: &Str,
        task: &Str,
        now: Timestamp,
        decision: &mut Decision,
    ) {
        let mut held = self.clusters.remove(arn).unwrap_or_default();
        if let Some(cluster) = fleet.cluster(arn)
            && let Some(view) = ClusterView::new(self.world(fleet, now), arn, cluster)
            && let Some(state) = fleet.task(task)
        {
            let workload = WorkloadView::new(&view, group, state.task.launch);
            let mut after = judge(&workload, state, &mut Silent);
            let verdicts = held.workloads.entry(group.clone()).or_default();
            match verdicts.binary_search_by(|(arn, _)| arn.cmp(task)) {
                Ok(index) => {
                    if let Some((_, slot)) = verdicts.get_mut(index) {
                        let before = *slot;
                        keep_since(&before, &mut after);
                        *slot = after;
                        held.tally.take(&before);
                        note(arn, group, task, Some(before), after, decision);
                    }
                }
                Err(index) => {
                    verdicts.insert(index, (task.clone(), after));
                    note(arn, group, task, None, after, decision);
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
            gone(cluster, group, vec![(task, before)], decision);
        }
    }

    fn forget_cluster(&mut self, arn: &Str, decision: &mut Decision) {
        if let Some(held) = self.clusters.remove(arn) {
            for (group, tasks) in held.workloads {
                gone(arn, &group, tasks, decision);
            }
        }
    }
}

/// Judges the tasks of one workload; both lists are in the order of their ARNs.
fn judge_workload(
    cluster: &ClusterView<'_>,
    group: &Str,
    tasks: &BTreeMap<Str, TaskState>,
    mut before: Vec<(Str, TaskVerdict)>,
    decision: &mut Decision,
) -> Vec<(Str, TaskVerdict)> {
    // The key that lives as long as the fleet, not the caller's copy.
    let Some((group, _)) = cluster.state.workloads.get_key_value(group) else { return Vec::new() };
    let mut view: Option<WorkloadView<'_, '_>> = None;
    let mut judged = |state: &TaskState| {
        let workload = match &mut view {
            Some(workload) if workload.launch == state.task.launch => workload,
            _ => view.insert(WorkloadView::new(cluster, group, state.task.launch)),
        };
        judge(workload, state, &mut Silent)
    };
    // Mostly the tasks are those of the last time, under the very same keys: then the verdicts
    // change where they lie, and a hundred thousand names are neither compared nor counted anew.
    let same = before.len() == tasks.len() && before.iter().zip(tasks.keys()).all(|((held, _), arn)| is(held, arn));
    if same {
        let mut ahead = tasks.values();
        for (at, ((arn, held), state)) in before.iter_mut().zip(tasks.values()).enumerate() {
            if at.is_multiple_of(SIDE_BY_SIDE) {
                fetch(cluster.world.fleet, ahead.by_ref().take(SIDE_BY_SIDE));
            }
            let mut verdict = judged(state);
            let old = std::mem::replace(held, verdict);
            keep_since(&old, &mut verdict);
            held.since = verdict.since;
            note(cluster.arn, group, arn, Some(old), verdict, decision);
        }
        return before;
    }
    let mut after = Vec::with_capacity(tasks.len());
    let mut before = before.into_iter().peekable();
    for (arn, state) in tasks {
        let mut verdict = judged(state);
        while let Some((task, old)) = before.next_if(|(held, _)| held < arn) {
            gone(cluster.arn, group, vec![(task, old)], decision);
        }
        let old = before.next_if(|(held, _)| held == arn).map(|(_, old)| old);
        if let Some(old) = &old {
            keep_since(old, &mut verdict);
        }
        note(cluster.arn, group, arn, old, verdict, decision);
        after.push((arn.clone(), verdict));
    }
    gone(cluster.arn, group, before.collect(), decision);
    after
}

/// Tasks that [`fetch`] touches at once: what a core keeps in its nearest cache, with room to spare.
const SIDE_BY_SIDE: usize = 16;

/// Touches what judging these tasks will read. A large fleet lies outside the caches, and judging
/// waits for one place in memory before it knows the next; these reads do not depend on each
/// other, so the processor makes them side by side. It is a third of the time of a full decision.
fn fetch<'a>(fleet: &Fleet, tasks: impl Iterator<Item = &'a TaskState>) {
    let mut touched = 0_usize;
    let mut batch: [Option<&TaskState>; SIDE_BY_SIDE] = [None; SIDE_BY_SIDE];
    for (place, state) in batch.iter_mut().zip(tasks) {
        touched ^= state.task.containers.len() ^ usize::from(state.task.launch == LaunchType::Fargate);
        touched ^= usize::from(!state.agents.is_empty());
        *place = Some(state);
    }
    for state in batch.into_iter().flatten() {
        for container in &state.task.containers {
            touched ^= container.name.len() ^ container.status.len() ^ usize::from(container.reason.is_some());
        }
        if let Some(agent) = state.agents.first().and_then(|id| fleet.agent(*id)) {
            let report = &agent.report;
            touched ^= report.task.len() ^ report.kind as usize ^ report.heartbeat.depth as usize;
            touched ^= report.received_at.subsec_nanosecond() as usize ^ usize::from(report.conflict.is_some());
            touched ^= report.heartbeat.time.subsec_nanosecond() as usize ^ usize::from(agent.digest.whole);
            touched ^= usize::from(agent.loss > 0.0);
        }
    }
    std::hint::black_box(touched);
}

fn keep_since(before: &TaskVerdict, after: &mut TaskVerdict) {
    if (before.verdict, before.reason) == (after.verdict, after.reason) {
        after.since = before.since;
    }
}

fn note(
    cluster: &Str,
    group: &Str,
    task: &Str,
    before: Option<TaskVerdict>,
    after: TaskVerdict,
    decision: &mut Decision,
) {
    if before.as_ref().is_none_or(|b| !b.looks_like(&after)) {
        let (task, cluster, group) = (task.clone(), cluster.clone(), group.clone());
        decision.changed.push(Changed { task, cluster, group, before, after: Some(after) });
    }
}

fn gone(cluster: &Str, group: &Str, tasks: Vec<(Str, TaskVerdict)>, decision: &mut Decision) {
    for (task, before) in tasks {
        let (cluster, group) = (cluster.clone(), group.clone());
        decision.changed.push(Changed { task, cluster, group, before: Some(before), after: None });
    }
}
