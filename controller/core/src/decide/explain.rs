//! `tasuki explain`: the same judgement once more, this time telling every fact.

use super::judge::judge;
use super::judging::keep_since;
use super::trace::{Detail, Fact, Told};
use super::view::{ClusterView, WorkloadView};
use super::{Decider, TaskVerdict};
use crate::fleet::{Fleet, ScopeId, TaskState};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tasuki_api::coverage::{Reason, TaskCoverage, Verdict};

/// A verdict with the facts behind it, in the order in which they were judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The row of `tasuki coverage`.
    pub coverage: TaskCoverage,
    /// The facts.
    pub facts: Vec<Fact>,
}

impl Decider {
    /// The facts behind the verdict on one live or missed task.
    pub fn explain(&self, fleet: &Fleet, task: &str, now: Timestamp) -> Option<Explanation> {
        let Some(state) = fleet.task(task) else { return self.explain_missed(fleet, task) };
        let (arn, group) = fleet.place_of_task(task)?;
        let world = self.world(fleet, now);
        let cluster = ClusterView::new(world, arn, fleet.cluster(arn)?)?;
        let workload = WorkloadView::new(&cluster, group, state.task.launch);
        let mut told = Told::default();
        let verdict = judge(&workload, state, &mut told);
        let coverage = self.row(&workload, state, verdict, self.verdict(arn, group, task), told.detail);
        Some(Explanation { coverage, facts: told.facts })
    }

    /// The row of a task that was judged now, and was judged before as in `held`.
    fn row(
        &self,
        workload: &WorkloadView<'_, '_>,
        state: &TaskState,
        mut verdict: TaskVerdict,
        held: Option<&TaskVerdict>,
        detail: Option<String>,
    ) -> TaskCoverage {
        if let Some(held) = held {
            keep_since(held, &mut verdict);
        }
        let cluster = workload.cluster.cluster;
        let agent = verdict.agent.and_then(|id| workload.cluster.world.fleet.agent(id));
        TaskCoverage {
            task: state.task.arn.to_string(),
            scope: cluster.scope.to_string(),
            cluster: cluster.name.to_string(),
            workload: workload.name.to_owned(),
            verdict: verdict.verdict,
            reason: verdict.reason,
            detail: detail.filter(|_| verdict.reason.is_some() || verdict.verdict == Verdict::Excluded),
            next_step: verdict.reason.map(|reason| next_step(reason, &cluster.scope)),
            monitor: self.monitor_name(&verdict),
            placement: verdict.placement,
            depth: verdict.depth,
            currency: verdict.currency,
            agent_version: agent.map(|a| a.report.heartbeat.version.clone()),
            unavailable: agent.map(|a| a.report.heartbeat.unavailable.clone()).unwrap_or_default(),
            since: verdict.since,
        }
    }

    /// The rows of `tasuki coverage`, of live tasks and of missed ones. What the tasks of a cluster share is looked up
    /// once for all of them.
    pub fn rows(&self, fleet: &Fleet, now: Timestamp) -> Vec<TaskCoverage> {
        let world = self.world(fleet, now);
        let mut rows = Vec::new();
        for (arn, verdicts) in &self.clusters {
            let view = fleet.cluster(arn).and_then(|state| ClusterView::new(world, arn, state));
            let Some(view) = view else { continue };
            for (group, tasks) in &verdicts.workloads {
                let mut workload: Option<WorkloadView<'_, '_>> = None;
                for (task, held) in tasks {
                    let Some(state) = fleet.task(task) else { continue };
                    let workload = match &mut workload {
                        Some(workload) if workload.launch == state.task.launch => workload,
                        _ => workload.insert(WorkloadView::new(&view, group, state.task.launch)),
                    };
                    let mut detail = Detail::default();
                    let verdict = judge(workload, state, &mut detail);
                    rows.push(self.row(workload, state, verdict, Some(held), detail.0));
                }
            }
        }
        let missed = self.memory().missed.keys().filter(|task| fleet.task(task).is_none());
        rows.extend(missed.filter_map(|task| self.explain_missed(fleet, task)).map(|missed| missed.coverage));
        rows
    }

    /// The row of `tasuki coverage` of one live or missed task.
    pub fn coverage(&self, fleet: &Fleet, task: &str, now: Timestamp) -> Option<TaskCoverage> {
        self.explain(fleet, task, now).map(|e| e.coverage)
    }

    fn monitor_name(&self, verdict: &TaskVerdict) -> Option<String> {
        let monitor = self.desired().monitors.get(usize::from(verdict.monitor?))?;
        Some(monitor.name.to_string())
    }

    fn explain_missed(&self, fleet: &Fleet, task: &str) -> Option<Explanation> {
        let missed = self.memory().missed.get(task)?;
        let cluster = fleet.cluster(&missed.cluster).and_then(|c| c.cluster.as_ref()).map(|c| &c.value);
        let fact = |text: String, at| Fact { text, source: super::Source::Memory, at };
        let mut facts = Vec::new();
        if let Some(started) = missed.started_at {
            facts.push(fact("it started".to_owned(), Some(started)));
        }
        facts.push(fact("it ended, and no agent had ever reported it".to_owned(), Some(missed.ended_at)));
        Some(Explanation {
            coverage: TaskCoverage {
                task: task.to_owned(),
                scope: cluster.map(|c| c.scope.to_string()).unwrap_or_default(),
                cluster: cluster.map_or_else(|| missed.cluster.to_string(), |c| c.name.to_string()),
                workload: missed.group.split_once(':').map_or(&*missed.group, |(_, name)| name).to_owned(),
                verdict: Verdict::Missed,
                reason: missed.reason,
                detail: Some("it ended without any agent ever reporting it".to_owned()),
                next_step: missed.reason.zip(cluster).map(|(reason, cluster)| next_step(reason, &cluster.scope)),
                monitor: Some(missed.monitor.to_string()),
                placement: None,
                depth: None,
                currency: None,
                agent_version: None,
                unavailable: Vec::new(),
                since: missed.ended_at,
            },
            facts,
        })
    }
}

/// What can be done about it where the task is.
fn next_step(reason: Reason, scope: &ScopeId) -> String {
    if scope.is_kubernetes() { reason.next_step_for_pods() } else { reason.next_step() }.to_owned()
}
