//! Judging many tasks at once: whole clusters, side by side on a few processors.

use super::judge::judge;
use super::trace::Silent;
use super::verdict::{Changed, Tally, TaskVerdict};
use super::view::{ClusterView, WorkloadView, World};
use crate::fleet::{ClusterState, Fleet, LaunchType, Str, TaskState, is};
use std::collections::BTreeMap;

/// Below so many clusters for each thread, starting one costs more than it saves (some 50 µs).
const WORTH_A_THREAD: usize = 64;
/// Threads at most: deciding is a moment's work, and the machine has others to serve.
const THREADS: usize = 4;

/// The verdicts of one cluster.
#[derive(Debug, Default)]
pub(super) struct ClusterVerdicts {
    pub workloads: BTreeMap<Str, Vec<(Str, TaskVerdict)>>,
    pub tally: Tally,
}

/// A cluster, and its verdicts of the last time.
pub(super) type Held<'a> = (&'a Str, &'a ClusterState, ClusterVerdicts);

/// Does `work` on parts of `items`, one for each thread; what it gives is in the order of the items.
pub(super) fn side_by_side<T: Send, R: Send>(items: &mut [T], work: impl Fn(&mut [T]) -> R + Sync) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (items.len() / WORTH_A_THREAD).clamp(1, processors.min(THREADS));
    let mut parts = items.chunks_mut(items.len().div_ceil(threads).max(1));
    let first = parts.next().unwrap_or_default();
    let work = &work;
    std::thread::scope(|scope| {
        let others: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        let mut done = vec![work(first)];
        done.extend(
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
        done
    })
}

/// Judges clusters.
pub(super) fn judge_clusters(
    world: World<'_>,
    mut clusters: Vec<Held<'_>>,
    changed: &mut Vec<Changed>,
) -> BTreeMap<Str, ClusterVerdicts> {
    let parts = side_by_side(&mut clusters, |part| {
        let mut changed = Vec::new();
        for (arn, state, held) in part {
            judge_cluster(world, arn, state, held, &mut changed);
        }
        changed
    });
    changed.extend(parts.into_iter().flatten());
    clusters.into_iter().map(|(arn, _, held)| (arn.clone(), held)).collect()
}

/// Judges one cluster.
pub(super) fn judge_cluster(
    world: World<'_>,
    arn: &Str,
    state: &ClusterState,
    held: &mut ClusterVerdicts,
    changed: &mut Vec<Changed>,
) {
    let before = std::mem::take(held);
    let mut old = before.workloads;
    if let Some(view) = ClusterView::new(world, arn, state) {
        // Mostly the workloads are those of the last time, under the very same keys.
        let same = old.len() == state.workloads.len() && old.keys().zip(state.workloads.keys()).all(|(a, b)| is(a, b));
        if same {
            for (verdicts, (group, tasks)) in old.values_mut().zip(&state.workloads) {
                *verdicts = judge_workload(&view, group, tasks, std::mem::take(verdicts), changed);
                verdicts.iter().for_each(|(_, verdict)| held.tally.add(verdict));
            }
            held.workloads = old;
            return;
        }
        for (group, tasks) in &state.workloads {
            let after = judge_workload(&view, group, tasks, old.remove(group).unwrap_or_default(), changed);
            after.iter().for_each(|(_, verdict)| held.tally.add(verdict));
            held.workloads.insert(group.clone(), after);
        }
    }
    for (group, tasks) in old {
        gone(arn, &group, tasks, changed);
    }
}

/// Judges the tasks of one workload; both lists are in the order of their ARNs.
pub(super) fn judge_workload(
    cluster: &ClusterView<'_>,
    group: &Str,
    tasks: &BTreeMap<Str, TaskState>,
    mut before: Vec<(Str, TaskVerdict)>,
    changed: &mut Vec<Changed>,
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
            note(cluster.arn, group, arn, Some(old), verdict, changed);
        }
        return before;
    }
    let mut after = Vec::with_capacity(tasks.len());
    let mut before = before.into_iter().peekable();
    for (arn, state) in tasks {
        let mut verdict = judged(state);
        while let Some((task, old)) = before.next_if(|(held, _)| held < arn) {
            gone(cluster.arn, group, vec![(task, old)], changed);
        }
        let old = before.next_if(|(held, _)| held == arn).map(|(_, old)| old);
        if let Some(old) = &old {
            keep_since(old, &mut verdict);
        }
        note(cluster.arn, group, arn, old, verdict, changed);
        after.push((arn.clone(), verdict));
    }
    gone(cluster.arn, group, before.collect(), changed);
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

pub(super) fn keep_since(before: &TaskVerdict, after: &mut TaskVerdict) {
    if (before.verdict, before.reason) == (after.verdict, after.reason) {
        after.since = before.since;
    }
}

pub(super) fn note(
    cluster: &Str,
    group: &Str,
    task: &Str,
    before: Option<TaskVerdict>,
    after: TaskVerdict,
    changed: &mut Vec<Changed>,
) {
    if before.as_ref().is_none_or(|b| !b.looks_like(&after)) {
        let (task, cluster, group) = (task.clone(), cluster.clone(), group.clone());
        changed.push(Changed { task, cluster, group, before, after: Some(after) });
    }
}

pub(super) fn gone(cluster: &Str, group: &Str, tasks: Vec<(Str, TaskVerdict)>, changed: &mut Vec<Changed>) {
    for (task, before) in tasks {
        let (cluster, group) = (cluster.clone(), group.clone());
        changed.push(Changed { task, cluster, group, before: Some(before), after: None });
    }
}
