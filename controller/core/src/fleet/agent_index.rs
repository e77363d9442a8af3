//! Who speaks for which task: agents by their own task, and tasks by the agents that name them.

use super::{AgentReport, Str, Task, is};
use crate::desired::Version;
use jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use tasuki_api::agent::{AgentKind, HEARTBEATS_UNTIL_SILENT, Heartbeat};

/// So long an agent that lost findings is not trusted to deliver.
const LOST_FINDINGS_AGE: SignedDuration = SignedDuration::from_hours(1);

/// Handle of an agent in its fleet. Reused after the agent is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentId(u32);

/// An agent, as its last heartbeat left it.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Its last report; the task names were moved to `names`.
    pub report: AgentReport,
    /// Tasks that it names, sorted.
    pub names: Vec<Str>,
    /// When it was first heard.
    pub first_heard: Timestamp,
    /// Share of events lost between its last two heartbeats, 0.0 to 1.0.
    pub loss: f64,
    /// Share of one core used between its last two heartbeats.
    pub cpu: f64,
    /// When it last said that it lost more findings than it had said before.
    pub findings_lost_at: Option<Timestamp>,
    /// Depth, sensors, version, policy and conflict all as in the heartbeat before.
    pub unchanged: bool,
    /// What every decision asks for, read once a report.
    pub digest: Digest,
}

/// What decisions ask of each agent, in one place: in a large fleet every other place costs more to
/// reach than to read.
#[derive(Clone, Debug)]
pub struct Digest {
    /// Version as it names it; one copy for all agents.
    pub version: Str,
    /// Hash of its policy; one copy for all agents.
    pub policy: Str,
    /// The version as numbers; absent where it is none.
    pub number: Option<Version>,
    /// Every sensor that it uses works.
    pub whole: bool,
}

impl Digest {
    /// Of a heartbeat; `one_copy` gives the fleet's copy of a text.
    pub(super) fn of(heartbeat: &Heartbeat, mut one_copy: impl FnMut(&str) -> Str) -> Self {
        Self {
            version: one_copy(&heartbeat.version),
            policy: one_copy(&heartbeat.policy),
            number: Version::parse(&heartbeat.version),
            whole: !heartbeat.sensors.is_empty() && heartbeat.sensors.iter().all(|s| s.whole),
        }
    }
}

impl Agent {
    /// How long its last heartbeat covers.
    pub fn silence_after(&self) -> SignedDuration {
        SignedDuration::from_secs(i64::from(self.report.heartbeat_seconds.max(1)) * HEARTBEATS_UNTIL_SILENT as i64)
    }

    /// Its last heartbeat is younger than three intervals.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        now.duration_since(self.report.received_at) < self.silence_after()
    }

    /// A sidecar may name only its own task, a node agent only tasks on its own node.
    pub fn speaks_for(&self, task: &Task) -> bool {
        match self.report.kind {
            AgentKind::Sidecar => is(&self.report.task, &task.arn),
            AgentKind::Node => {
                self.report.node.as_ref().zip(task.node.as_ref()).is_some_and(|(own, node)| is(own, node))
            }
        }
    }

    /// How far its clock runs before the gateway's.
    pub fn clock_skew(&self) -> SignedDuration {
        self.report.heartbeat.time.duration_since(self.report.received_at)
    }

    /// It lost findings within the last hour.
    pub fn loses_findings(&self, now: Timestamp) -> bool {
        self.findings_lost_at.is_some_and(|at| now.duration_since(at) < LOST_FINDINGS_AGE)
    }

    /// Every sensor that it uses works.
    pub fn is_whole(&self) -> bool {
        self.digest.whole
    }

    fn follow(&mut self, next: AgentReport, digest: Digest) {
        let (old, new) = (&self.report.heartbeat, &next.heartbeat);
        let lost = |h: &tasuki_api::agent::Heartbeat| h.families.iter().map(|f| f.counters.lost()).sum::<u64>();
        let seen = |h: &tasuki_api::agent::Heartbeat| h.families.iter().map(|f| f.counters.seen).sum::<u64>();
        let restarted = old.started_at != new.started_at;
        let base = |value: u64| if restarted { 0 } else { value };
        let (lost, seen) = (lost(new).saturating_sub(base(lost(old))), seen(new).saturating_sub(base(seen(old))));
        let before = (self.loss, self.is_whole());
        self.loss = if seen == 0 { 0.0 } else { lost as f64 / seen as f64 };
        let wall = next.received_at.duration_since(self.report.received_at).as_millis();
        let used = new.usage.cpu_ms.saturating_sub(base(old.usage.cpu_ms));
        self.cpu = if wall > 0 { used as f64 / wall as f64 } else { 0.0 };
        let dropped = new.usage.spool_dropped > base(old.usage.spool_dropped);
        if dropped {
            self.findings_lost_at = Some(next.received_at);
        }
        self.unchanged = !dropped
            && before == (self.loss, true)
            && old.sensors == new.sensors
            && old.depth == new.depth
            && old.version == new.version
            && old.policy == new.policy
            && self.report.conflict == next.conflict
            && self.report.node == next.node
            && self.report.kind == next.kind
            && self.is_fresh(next.received_at);
        self.report = next;
        self.digest = digest;
    }
}

/// Agents in slots, so that a task can hold a small handle instead of a name.
#[derive(Debug, Default)]
pub(super) struct Agents {
    slots: Vec<Option<Agent>>,
    free: Vec<u32>,
    by_task: HashMap<Str, AgentId>,
    named: HashMap<Str, Vec<AgentId>>,
}

/// Which tasks an agent names now and did not before, and the other way round.
#[derive(Debug, Default)]
pub(super) struct NameChanges {
    pub added: Vec<Str>,
    pub removed: Vec<Str>,
}

impl Agents {
    pub fn len(&self) -> usize {
        self.by_task.len()
    }
    pub fn get(&self, id: AgentId) -> Option<&Agent> {
        self.slots.get(id.0 as usize)?.as_ref()
    }
    pub fn by_task(&self, task: &str) -> Option<AgentId> {
        self.by_task.get(task).copied()
    }
    /// Agents that name this task.
    pub fn naming(&self, task: &str) -> &[AgentId] {
        self.named.get(task).map_or(&[], Vec::as_slice)
    }
    pub fn all(&self) -> impl Iterator<Item = &Agent> {
        self.slots.iter().flatten()
    }
    pub fn silent(&self, is_silent: impl Fn(&Agent) -> bool) -> Vec<AgentId> {
        self.by_task.values().copied().filter(|id| self.get(*id).is_some_and(&is_silent)).collect()
    }

    /// Takes a report; `names` are sorted. The caller has checked limit and order.
    pub fn put(&mut self, report: AgentReport, names: Vec<Str>, digest: Digest) -> (AgentId, NameChanges) {
        if let Some(id) = self.by_task(&report.task)
            && let Some(Some(agent)) = self.slots.get_mut(id.0 as usize)
        {
            agent.follow(report, digest);
            let before = std::mem::replace(&mut agent.names, names.clone());
            let changes = NameChanges {
                added: names.iter().filter(|n| before.binary_search(n).is_err()).cloned().collect(),
                removed: before.into_iter().filter(|n| names.binary_search(n).is_err()).collect(),
            };
            self.rename(id, &changes);
            return (id, changes);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // The caller's limit keeps the number of slots far below u32::MAX.
            (self.slots.len() - 1) as u32
        });
        let id = AgentId(slot);
        self.by_task.insert(report.task.clone(), id);
        let changes = NameChanges { added: names.clone(), removed: Vec::new() };
        let first_heard = report.received_at;
        // What it lost before it was first heard may be old: only what it loses from now on has a time.
        let findings_lost_at = None;
        if let Some(place) = self.slots.get_mut(slot as usize) {
            let (loss, cpu, unchanged) = (0.0, 0.0, false);
            *place = Some(Agent { report, names, first_heard, loss, cpu, findings_lost_at, unchanged, digest });
        }
        self.rename(id, &changes);
        (id, changes)
    }

    fn rename(&mut self, id: AgentId, changes: &NameChanges) {
        for name in &changes.added {
            self.named.entry(name.clone()).or_default().push(id);
        }
        for name in &changes.removed {
            self.unname(name, id);
        }
    }

    fn unname(&mut self, name: &Str, id: AgentId) {
        if let Some(agents) = self.named.get_mut(name) {
            agents.retain(|a| *a != id);
            if agents.is_empty() {
                self.named.remove(name);
            }
        }
    }

    /// Forgets an agent; answers the tasks that it named.
    pub fn remove(&mut self, id: AgentId) -> Vec<Str> {
        let Some(agent) = self.slots.get_mut(id.0 as usize).and_then(Option::take) else { return Vec::new() };
        self.free.push(id.0);
        self.by_task.remove(&agent.report.task);
        for name in &agent.names {
            self.unname(name, id);
        }
        agent.names
    }
}
