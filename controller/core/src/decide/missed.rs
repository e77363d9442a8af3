//! Tasks that ended without any agent ever reporting them: kept for 24 h, so that a 90-second job
//! is never silently lost.

use super::verdict::TaskVerdict;
use super::view::{ClusterView, WorkloadView, World};
use crate::desired::Selection;
use crate::fleet::{Ended, Str};
use crate::memory::{Memory, MissedTask};
use jiff::{SignedDuration, Timestamp};

/// How long a missed task is kept and counted.
pub const MISSED_AGE: SignedDuration = SignedDuration::from_hours(24);
/// How many are kept; the oldest goes first, and is counted.
pub const MISSED_LIMIT: usize = 10_000;
/// After a start the agents need three heartbeats until it is known which tasks they had reported
/// before; what ended earlier than that and had started before cannot be judged.
const HEARSAY: SignedDuration = SignedDuration::from_secs(180);

/// The record of an ended task, if it was missed.
pub(super) fn judge(world: World<'_>, ended: &Ended, last: Option<&TaskVerdict>) -> Option<(Str, MissedTask)> {
    let task = &ended.task;
    // What never started ran nothing that could have been seen.
    if ended.reported || (task.started_at.is_none() && task.containers.iter().all(|c| c.exit_code.is_none())) {
        return None;
    }
    let born = world.fleet.born();
    let started_before = task.started_at.or(task.created_at).is_none_or(|at| at < born);
    let ended_at = task.stopped_at.unwrap_or(ended.at);
    if started_before && (ended_at < born || ended.at.duration_since(born) < HEARSAY) {
        return None;
    }
    let (arn, state) =
        world.fleet.clusters().find_map(|(arn, state)| (*arn == task.cluster).then_some((arn, state)))?;
    let cluster = ClusterView::new(world, arn, state)?;
    let workload = WorkloadView::new(&cluster, &task.group, task.launch);
    let (_, selection) = workload.selected?;
    if workload.own || workload.is_trial(task) || selection != Selection::Yes {
        return None;
    }
    let missed = MissedTask {
        cluster: arn.clone(),
        group: task.group.clone(),
        monitor: workload.monitor()?.name.clone(),
        started_at: task.started_at,
        ended_at,
        reason: last.and_then(|v| v.reason),
    };
    Some((task.arn.clone(), missed))
}

/// Adds one; answers whether memory changed.
pub(super) fn keep(memory: &mut Memory, task: Str, missed: MissedTask) -> bool {
    if memory.missed.contains_key(&task) {
        return false;
    }
    if memory.missed.len() >= MISSED_LIMIT
        && let Some(oldest) = memory.missed.iter().min_by_key(|(_, m)| m.ended_at).map(|(task, _)| task.clone())
    {
        memory.missed.remove(&oldest);
        memory.missed_dropped += 1;
    }
    memory.missed.insert(task, missed);
    true
}

/// Forgets those older than a day; answers whether memory changed.
pub(super) fn expire(memory: &mut Memory, now: Timestamp) -> bool {
    let before = memory.missed.len();
    memory.missed.retain(|_, m| now.duration_since(m.ended_at) < MISSED_AGE);
    memory.missed.len() != before
}
