//! What is shown of each monitor.

use super::{ClusterView, Knowledge, MonitorView, ReasonView, RolloutView};
use std::collections::BTreeMap;
use tasuki_api::coverage::{Currency, Reason, TaskCoverage, Verdict};
use tasuki_core::decide::Phase;

/// One view a monitor in force, in order of priority.
pub fn monitors(known: &Knowledge, tasks: &[TaskCoverage], clusters: &[ClusterView]) -> Vec<MonitorView> {
    let mut examples: BTreeMap<(&str, Reason), &str> = BTreeMap::new();
    let mut outdated: BTreeMap<&str, u64> = BTreeMap::new();
    for task in tasks {
        let Some(monitor) = task.monitor.as_deref() else { continue };
        if let (Some(reason), true) = (task.reason, task.verdict != Verdict::Missed) {
            examples.entry((monitor, reason)).or_insert(&task.task);
        }
        if task.verdict == Verdict::Covered && task.currency == Some(Currency::Outdated) {
            *outdated.entry(monitor).or_default() += 1;
        }
    }
    let tally = known.decider.tally();
    let one = |(index, monitor): (usize, &tasuki_core::desired::Monitor)| {
        let index = u16::try_from(index).ok();
        let name = &*monitor.name;
        // No index is no monitor: `None` would mean all of them.
        let reasons = index.map(|index| tally.reasons(Some(index))).unwrap_or_default();
        let reason = |(reason, count): (Reason, u64)| ReasonView {
            reason,
            count,
            example: examples.get(&(name, reason)).copied().unwrap_or_default().to_owned(),
        };
        MonitorView {
            name: name.to_owned(),
            counts: index.map(|index| tally.counts(Some(index))).unwrap_or_default(),
            reasons: reasons.into_iter().map(reason).collect(),
            outdated: outdated.get(name).copied().unwrap_or_default(),
            rollout: rollout(of_monitor(clusters, name)),
            failed: of_monitor(clusters, name)
                .filter_map(|cluster| cluster.failed.clone())
                .max_by_key(|failed| failed.at),
        }
    };
    known.decider.desired().monitors.iter().enumerate().map(one).collect()
}

/// The clusters whose nodes' agents are a monitor's.
fn of_monitor<'a>(clusters: &'a [ClusterView], name: &'a str) -> impl Iterator<Item = &'a ClusterView> {
    clusters.iter().filter(move |cluster| cluster.monitor.as_deref() == Some(name))
}

/// The rollouts of several clusters as one: the phase of the worst, the counts of all.
fn rollout<'a>(clusters: impl Iterator<Item = &'a ClusterView>) -> Option<RolloutView> {
    let gravity = |rollout: &RolloutView| match rollout.phase {
        Phase::RollingBack => 3,
        Phase::RollingOut => 2,
        Phase::Soaking => 1,
        Phase::Finishing => 0,
    };
    clusters.filter_map(|cluster| cluster.rollout.clone()).reduce(|a, b| {
        let (done, of) = (a.done + b.done, a.of + b.of);
        let worst = if gravity(&b) > gravity(&a) { b } else { a };
        RolloutView { done, of, ..worst }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn rollouts_of_several_clusters_are_one_with_the_phase_of_the_worst() {
        let cluster = |phase: &str, done: u64| -> ClusterView {
            let rollout = match phase {
                "" => Value::Null,
                phase => json!({
                    "version": "2", "previous": "1", "phase": phase, "wave": phase, "done": done, "of": 10,
                    "since": "2026-01-01T00:00:00Z", "why": null,
                }),
            };
            serde_json::from_value(json!({
                "arn": "a", "name": "a", "scope": "s", "placements": [], "counts": tasuki_api::coverage::Counts::default(),
                "depth": null, "wantedVersion": null, "versions": [], "rollout": rollout,
            }))
            .unwrap()
        };
        let all = [cluster("Soaking", 1), cluster("", 0), cluster("RollingBack", 2), cluster("RollingOut", 3)];
        let one = rollout(all.iter()).unwrap();
        assert_eq!((one.phase.name(), one.wave.as_str(), one.done, one.of), ("RollingBack", "RollingBack", 6, 30));
        assert_eq!(rollout(all[1..2].iter()), None);
    }
}
