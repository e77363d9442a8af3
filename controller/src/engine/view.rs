//! From what is known to what is shown.

use super::{ClusterView, Explanation, Fact, Knowledge, ProblemView, RolloutView, ScopeView, View};
use jiff::Timestamp;
use std::collections::BTreeMap;
use tasuki_api::coverage::{Depth, Placement, TaskCoverage, Verdict};
use tasuki_core::decide::RolloutStatus;
use tasuki_core::fleet::{LaunchType, Str};

/// What the view needs beside the fleet and the verdicts.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// Scopes and their freshness.
    pub scopes: Vec<ScopeView>,
    /// What is wrong with the desired state.
    pub problems: Vec<ProblemView>,
    /// Hash of what is in force.
    pub desired: String,
    /// Every change is stopped.
    pub frozen: bool,
}

/// Builds the whole view.
pub fn build(known: &Knowledge, context: &Context, now: Timestamp) -> View {
    let explain = |task: &Str| known.decider.explain(&known.fleet, task, now).map(|explained| explained.coverage);
    let live = known.decider.verdicts().filter_map(|(_, _, task, _)| explain(task));
    let missed = known.decider.memory().missed.keys().filter_map(explain);
    let tasks: Vec<TaskCoverage> = live.chain(missed).collect();
    let counts = known.decider.tally().counts(None);
    View {
        at: Some(now),
        clusters: clusters(known, &tasks, now),
        tasks,
        counts,
        live_ratio: counts.live_ratio(),
        minutes_ratio: known.minutes.ratio(),
        scopes: context.scopes.clone(),
        problems: context.problems.clone(),
        desired: context.desired.clone(),
        frozen: context.frozen,
    }
}

/// The facts behind the verdict on the one task that `text` names, whole or in part.
pub fn explain(known: &Knowledge, text: &str, now: Timestamp) -> Option<Explanation> {
    let all = known.decider.verdicts().map(|(_, _, task, _)| task).chain(known.decider.memory().missed.keys());
    let mut found = all.filter(|task| ***task == *text || task.contains(text));
    let task = found.next()?;
    if &**task != text && found.next().is_some() {
        return None;
    }
    let explained = known.decider.explain(&known.fleet, task, now)?;
    let fact = |fact: tasuki_core::decide::Fact| Fact { text: fact.text, source: fact.source.to_string(), at: fact.at };
    Some(Explanation { coverage: explained.coverage, facts: explained.facts.into_iter().map(fact).collect() })
}

fn clusters(known: &Knowledge, tasks: &[TaskCoverage], now: Timestamp) -> Vec<ClusterView> {
    let mut depths: BTreeMap<(&str, &str), Depth> = BTreeMap::new();
    let mut placements: BTreeMap<(&str, &str), Vec<Placement>> = BTreeMap::new();
    let mut versions: BTreeMap<(&str, &str), BTreeMap<&str, u64>> = BTreeMap::new();
    for task in tasks {
        let key = (task.scope.as_str(), task.cluster.as_str());
        if let Some(placement) = task.placement {
            let seen = placements.entry(key).or_default();
            if !seen.contains(&placement) {
                seen.push(placement);
            }
        }
        if task.verdict == Verdict::Covered {
            if let Some(depth) = task.depth {
                depths.entry(key).and_modify(|least| *least = depth.min(*least)).or_insert(depth);
            }
            if let Some(version) = &task.agent_version {
                *versions.entry(key).or_default().entry(version).or_default() += 1;
            }
        }
    }
    let tallies = known.decider.tallies();
    let desired = known.decider.desired();
    let rollouts = known.decider.rollouts(&known.fleet, now);
    let one = |(arn, state): (&Str, &tasuki_core::fleet::ClusterState)| {
        let cluster = &state.cluster.as_ref()?.value;
        let scope = cluster.scope.to_string();
        let key = (scope.as_str(), &*cluster.name);
        let launches = [LaunchType::Fargate, LaunchType::Ec2, LaunchType::External, LaunchType::ManagedInstances];
        let monitor = launches.into_iter().find_map(|launch| desired.select_cluster(cluster, launch));
        let wanted = monitor.and_then(|index| desired.monitors.get(index)).and_then(|m| m.spec.agent.as_ref());
        Some(ClusterView {
            arn: arn.to_string(),
            name: cluster.name.to_string(),
            placements: placements.get(&key).cloned().unwrap_or_default(),
            counts: tallies.get(arn).map(|tally| tally.counts(None)).unwrap_or_default(),
            depth: depths.get(&key).copied(),
            wanted_version: wanted.map(|agent| agent.version.clone()),
            versions: versions.get(&key).into_iter().flatten().map(|(v, n)| ((*v).to_owned(), *n)).collect(),
            rollout: rollouts.iter().find(|status| status.cluster == *arn).map(rollout_view),
            scope,
        })
    };
    known.fleet.clusters().filter_map(one).collect()
}

fn rollout_view(status: &RolloutStatus) -> RolloutView {
    RolloutView {
        version: status.version.to_string(),
        previous: status.previous.to_string(),
        phase: format!("{:?}", status.phase),
        wave: status.wave.clone(),
        done: status.done,
        of: status.of,
        since: status.since,
        why: status.why.clone(),
    }
}
