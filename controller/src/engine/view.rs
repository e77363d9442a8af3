//! From what is known to what is shown.

use super::{
    AgentProof, AgentTotals, ClusterView, Explanation, Fact, FailedView, Knowledge, ProblemView, RolloutView,
    ScopeView, View,
};
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
    let tasks: Vec<TaskCoverage> = known.decider.rows(&known.fleet, now);
    let counts = known.decider.tally().counts(None);
    let clusters = clusters(known, &tasks, now);
    View {
        at: Some(now),
        monitors: super::monitors::monitors(known, &tasks, &clusters),
        clusters,
        tasks,
        counts,
        live_ratio: counts.live_ratio(),
        minutes_ratio: known.minutes.ratio(),
        scopes: context.scopes.clone(),
        problems: context.problems.clone(),
        desired: context.desired.clone(),
        frozen: context.frozen,
        lost: lost(known),
        agents: agents(known),
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
    let speaks =
        known.fleet.place_of_task(task).and_then(|(cluster, group)| known.decider.verdict(cluster, group, task));
    let speaks = speaks.and_then(|verdict| known.fleet.agent(verdict.agent?));
    let identity = speaks.map(|agent| AgentProof {
        address: if agent.report.address_verified { "Verified" } else { "Unverified" }.to_owned(),
        signed: agent.report.signed,
    });
    let facts = explained.facts.into_iter().map(fact).collect();
    Some(Explanation { coverage: explained.coverage, facts, identity })
}

fn lost(known: &Knowledge) -> BTreeMap<String, u64> {
    let losses = known.fleet.losses();
    let counts = [
        ("AgentsRefused", losses.agents_refused),
        ("AgentNamesDropped", losses.names_dropped),
        ("TombstonesEvicted", losses.tombstones_evicted),
        ("DefinitionsEvicted", losses.definitions_evicted),
        ("MissedDropped", known.decider.memory().missed_dropped),
        ("EndedDropped", known.ended.dropped),
    ];
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn agents(known: &Knowledge) -> Vec<AgentTotals> {
    let mut clusters: BTreeMap<&str, AgentTotals> = BTreeMap::new();
    for agent in known.fleet.agents() {
        let Some(cluster) = agent.report.task.split('/').nth(1) else { continue };
        let usage = &agent.report.heartbeat.usage;
        let totals = clusters.entry(cluster).or_default();
        totals.agents += 1;
        // What an agent says may be anything.
        let add = |sum: &mut u64, count: u64| *sum = sum.saturating_add(count);
        add(&mut totals.findings_lost, usage.spool_dropped);
        add(&mut totals.evictions, usage.evictions);
        add(&mut totals.unnamed_events, usage.unnamed_events);
        totals.without_priority += u64::from(!usage.prioritised);
    }
    clusters.into_iter().map(|(cluster, totals)| AgentTotals { cluster: cluster.to_owned(), ..totals }).collect()
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
        let launches = [
            LaunchType::Fargate,
            LaunchType::Ec2,
            LaunchType::External,
            LaunchType::ManagedInstances,
            LaunchType::Kubernetes,
            LaunchType::KubernetesVirtual,
        ];
        let monitor = launches.into_iter().find_map(|launch| desired.select_cluster(cluster, launch));
        let monitor = monitor.and_then(|index| desired.monitors.get(index));
        let agent = monitor.and_then(|monitor| desired.agent(monitor, &cluster.scope, &cluster.aws_scope));
        let failure = agent.as_ref().and_then(|agent| known.decider.failure(arn, agent));
        let failed = agent.as_ref().zip(failure).map(|(agent, failure)| FailedView {
            cluster: cluster.name.to_string(),
            version: agent.version.to_string(),
            at: failure.at,
            why: failure.why.clone(),
        });
        Some(ClusterView {
            arn: arn.to_string(),
            name: cluster.name.to_string(),
            placements: placements.get(&key).cloned().unwrap_or_default(),
            counts: tallies.get(arn).map(|tally| tally.counts(None)).unwrap_or_default(),
            depth: depths.get(&key).copied(),
            monitor: monitor.map(|m| m.name.to_string()),
            wanted_version: agent.map(|agent| agent.version.to_string()),
            versions: versions.get(&key).into_iter().flatten().map(|(v, n)| ((*v).to_owned(), *n)).collect(),
            rollout: rollouts.iter().find(|status| status.cluster == *arn).map(rollout_view),
            failed,
            scope,
        })
    };
    known.fleet.clusters().filter_map(one).collect()
}

fn rollout_view(status: &RolloutStatus) -> RolloutView {
    RolloutView {
        version: status.version.to_string(),
        previous: status.previous.to_string(),
        phase: status.phase,
        wave: status.wave.clone(),
        done: status.done,
        of: status.of,
        since: status.since,
        why: status.why.clone(),
    }
}
