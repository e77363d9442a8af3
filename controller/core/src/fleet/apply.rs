//! Taking one change: what is newer wins, what is old or told twice is ignored.

use super::{
    AgentId, AgentReport, Change, Definition, Digest, Fleet, LaunchType, Node, Obstruction, Place, Seen, Service, Str,
};
use super::{SETTLED, Task, TaskState, TaskStatus};
use crate::action::{SIDECAR, is_daemon_service, sidecar_namespace};
use jiff::Timestamp;
use std::collections::HashMap;
use tasuki_api::coverage::Reason;

/// A task that ended, for the record of those that no agent ever saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As it was last seen.
    pub task: Box<Task>,
    /// Whether any agent ever reported it.
    pub reported: bool,
    /// When it was found to have ended.
    pub at: Timestamp,
}

/// What has to be judged anew after a change. Empty: the change was old or told twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Live tasks whose verdict may be another one now.
    pub tasks: Vec<Str>,
    /// ARNs of services whose actions may be others now (and with them their tasks' reasons).
    pub services: Vec<Str>,
    /// ARNs of clusters in which anything may be another now.
    pub clusters: Vec<Str>,
    /// Clusters and ARNs of nodes that changed: what the cluster wants may be another, and the
    /// verdicts of the tasks on the node.
    pub nodes: Vec<(Str, Str)>,
    /// ARNs of clusters that may want something else now, while each verdict that may be another one is among `tasks`.
    pub wishes: Vec<Str>,
    /// Tasks that ended.
    pub ended: Vec<Ended>,
    /// Tasks that were said to have ended, and live; each is among `tasks` too.
    pub revived: Vec<Str>,
}

impl Applied {
    /// Nothing has to be judged anew.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
            && self.services.is_empty()
            && self.clusters.is_empty()
            && self.nodes.is_empty()
            && self.wishes.is_empty()
            && self.ended.is_empty()
    }
    /// Adds what another change did.
    pub fn merge(&mut self, other: Applied) {
        self.tasks.extend(other.tasks);
        self.services.extend(other.services);
        self.clusters.extend(other.clusters);
        self.nodes.extend(other.nodes);
        self.wishes.extend(other.wishes);
        self.ended.extend(other.ended);
        self.revived.extend(other.revived);
    }
}

/// Notes on which node a task is.
fn stand(on_node: &mut HashMap<Str, Vec<Str>>, task: &Task) {
    if let Some(node) = &task.node {
        on_node.entry(node.clone()).or_default().push(task.arn.clone());
    }
}

/// Takes that back.
fn leave(on_node: &mut HashMap<Str, Vec<Str>>, task: &Task) {
    let Some(node) = &task.node else { return };
    if let Some(tasks) = on_node.get_mut(node) {
        tasks.retain(|held| *held != task.arn);
        if tasks.is_empty() {
            on_node.remove(node);
        }
    }
}

/// What decides which of two reports of one task is the later one. STOPPED is final whatever its
/// version; within one version the later state wins, because ECS does not raise the version at
/// every state (ACTIVATING, DEACTIVATING and STOPPING raise none).
fn order(task: &Task) -> (bool, i64, TaskStatus) {
    (task.status == TaskStatus::Stopped, task.version, task.status)
}

/// Whether a reading that began at `read_at` overrules what was heard at `heard`, whatever its version.
fn overrules(read_at: Option<Timestamp>, heard: Timestamp) -> bool {
    read_at.is_some_and(|read_at| read_at.duration_since(heard) >= SETTLED)
}

fn is_daemon(task: &Task) -> bool {
    task.service_name().is_some_and(is_daemon_service)
}

impl Fleet {
    /// Takes one change at `now`.
    pub fn apply(&mut self, change: Change, now: Timestamp) -> Applied {
        self.tombstones.expire(now);
        match change {
            Change::Cluster(cluster) => {
                let arn = self.interner.get(&cluster.arn);
                let state = self.clusters.entry(arn.clone()).or_default();
                let same = state.cluster.as_ref().is_some_and(|c| c.value == *cluster);
                state.cluster = Some(Seen { value: *cluster, at: now });
                Applied { clusters: if same { vec![] } else { vec![arn] }, ..Applied::default() }
            }
            Change::Service(service) => self.put_service(*service, now),
            Change::ServiceGone(arn) => self.remove_service(&arn),
            Change::Node(node) => self.put_node(*node, None, now),
            Change::NodeRead { read_at, node } => self.put_node(*node, Some(read_at), now),
            Change::NodeGone(arn) => self.remove_node(&arn),
            Change::Task(task) => self.put_task(task, None, now),
            Change::TaskRead { read_at, task } => self.put_task(task, Some(read_at), now),
            Change::Definition(definition) => self.put_definition(*definition),
            Change::Agent(report) => self.put_agent(*report, now),
            Change::Swept { cluster, read_at, tasks, services, nodes } => {
                self.reconcile(&cluster, read_at, &tasks, &services, &nodes, now)
            }
            Change::ScopeSwept { scope, read_at, clusters } => self.reconcile_scope(&scope, read_at, &clusters, now),
            Change::Denied { scope, api, detail } => {
                let obstruction = Obstruction { reason: Reason::PermissionDenied, detail, at: now };
                let clusters = self.clusters_of(&scope);
                self.denied.entry(scope).or_default().insert(api, obstruction);
                Applied { clusters, ..Applied::default() }
            }
            Change::Obstructed { target, reason, detail } => {
                let mut applied = Applied::default();
                match self.services.contains_key(&target) {
                    true => applied.services.push(target.clone()),
                    false => applied.clusters.push(target.clone()),
                }
                self.obstructions.insert(target, Obstruction { reason, detail, at: now });
                applied
            }
        }
    }

    fn put_service(&mut self, mut service: Service, now: Timestamp) -> Applied {
        for name in [&mut service.arn, &mut service.cluster, &mut service.name, &mut service.definition] {
            self.interner.share(name);
        }
        let (arn, cluster, name) = (service.arn.clone(), service.cluster.clone(), service.name.clone());
        let place = Place { cluster: cluster.clone(), within: name.clone() };
        let before = self.services.insert(arn.clone(), place);
        let state = self.clusters.entry(cluster.clone()).or_default();
        // A daemon of Kubernetes changes its name here when its role changes.
        if let Some(before) = before.filter(|before| before.within != name)
            && state.services.get(&before.within).is_some_and(|held| held.value.arn == arn)
        {
            state.services.remove(&before.within);
        }
        let before = state.services.insert(name, Seen { value: service, at: now });
        let after = state.services.get(&self.services[&arn].within);
        match (&before, after) {
            (Some(before), Some(after)) if before.value == after.value => Applied::default(),
            // What a namespace is offered concerns all of its pods, which are of other services.
            _ if sidecar_namespace(&self.services[&arn].within).is_some() => {
                Applied { clusters: vec![cluster], ..Applied::default() }
            }
            _ => Applied { services: vec![arn], ..Applied::default() },
        }
    }

    pub(super) fn remove_service(&mut self, arn: &str) -> Applied {
        let Some(place) = self.services.remove(arn) else { return Applied::default() };
        if let Some(state) = self.clusters.get_mut(&place.cluster)
            // Another one may have its name by now.
            && state.services.get(&place.within).is_some_and(|held| *held.value.arn == *arn)
        {
            state.services.remove(&place.within);
        }
        Applied { clusters: vec![place.cluster], ..Applied::default() }
    }

    fn put_node(&mut self, mut node: Node, read_at: Option<Timestamp>, now: Timestamp) -> Applied {
        self.interner.share(&mut node.arn);
        self.interner.share(&mut node.cluster);
        let (arn, cluster) = (node.arn.clone(), node.cluster.clone());
        // A node never moves: an event that says otherwise is not of this node.
        let mut clusters = Vec::new();
        if self.nodes.get(&arn).is_some_and(|held| *held != cluster) {
            if read_at.is_none() {
                return Applied::default();
            }
            clusters = self.remove_node(&arn).clusters;
        }
        let state = self.clusters.entry(cluster.clone()).or_default();
        if let Some(held) = state.nodes.get_mut(&arn) {
            // Attributes and free resources change without a new version, so an equal one replaces.
            if node.version < held.value.version && !overrules(read_at, held.at) {
                return Applied::default();
            }
            held.at = now;
            node.turned_at = held.value.turned_at.filter(|_| held.value.connected == node.connected);
        }
        node.turned_at = node.turned_at.or(Some(now));
        if state.nodes.get(&arn).is_some_and(|held| held.value == node) {
            return Applied::default();
        }
        state.nodes.insert(arn.clone(), Seen { value: node, at: now });
        self.nodes.insert(arn.clone(), cluster.clone());
        Applied { clusters, nodes: vec![(cluster, arn)], ..Applied::default() }
    }

    pub(super) fn remove_node(&mut self, arn: &str) -> Applied {
        let Some(cluster) = self.nodes.remove(arn) else { return Applied::default() };
        if let Some(state) = self.clusters.get_mut(&cluster) {
            state.nodes.remove(arn);
        }
        Applied { clusters: vec![cluster], ..Applied::default() }
    }

    fn put_task(&mut self, mut task: Box<Task>, read_at: Option<Timestamp>, now: Timestamp) -> Applied {
        let mut applied = Applied::default();
        if let Some(ended) = self.tombstones.get(&task.arn) {
            if task.status == TaskStatus::Stopped || !overrules(read_at, ended) {
                return applied;
            }
            self.tombstones.lift(&task.arn);
            applied.revived.push(task.arn.clone());
        }
        if task.status == TaskStatus::Stopped {
            return self.end_task(task, now);
        }
        self.interner.share_task(&mut task);
        // By our clock: what tells when it started may run ahead of us, and nothing runs before it is seen to.
        let known = self.task(&task.arn).and_then(|held| held.task.started_at);
        task.started_at = task.started_at.map(|at| at.min(known.unwrap_or(now)));
        if task.status == TaskStatus::Running && is_daemon(&task) {
            task.node.as_ref().map(|node| self.fallen.remove(node));
        }
        let arn = task.arn.clone();
        let place = Place { cluster: task.cluster.clone(), within: task.group.clone() };
        if let Some(old) = self.tasks.get(&arn)
            && (old.cluster != place.cluster || old.within != place.within)
        {
            // A task never moves: an event that says otherwise is not of this task.
            if read_at.is_none() {
                return Applied::default();
            }
            applied.clusters = vec![old.cluster.clone(), place.cluster.clone()];
            self.forget_task(&arn);
        }
        let agents = &self.agents;
        let state = self.clusters.entry(place.cluster.clone()).or_default();
        let workload = state.workloads.entry(place.within.clone()).or_default();
        match workload.get_mut(&arn) {
            Some(held) if order(&task) <= order(&held.task) && !overrules(read_at, held.seen_at) => return applied,
            Some(held) if held.task == task => return applied,
            Some(held) => {
                if held.task.launch != task.launch {
                    applied.wishes.push(place.cluster.clone());
                }
                if held.task.node != task.node {
                    leave(&mut self.on_node, &held.task);
                    stand(&mut self.on_node, &task);
                }
                held.task = task;
                held.seen_at = now;
                note_report(held, agents, now);
            }
            None => {
                stand(&mut self.on_node, &task);
                // It may be the first of its namespace that needs a sidecar.
                if task.launch == LaunchType::KubernetesVirtual {
                    applied.wishes.push(place.cluster.clone());
                }
                let naming = agents.naming(&arn).to_vec();
                let mut held = TaskState { task, first_seen: now, seen_at: now, reported_at: None, agents: naming };
                note_report(&mut held, agents, now);
                workload.insert(arn.clone(), held);
                self.tasks.insert(arn.clone(), place);
            }
        }
        applied.tasks.push(arn);
        applied
    }

    /// Takes a live task out of its place.
    fn forget_task(&mut self, arn: &str) -> Option<TaskState> {
        let place = self.tasks.remove(arn)?;
        let state = self.clusters.get_mut(&place.cluster)?;
        let workload = state.workloads.get_mut(&place.within)?;
        let held = workload.remove(arn);
        if workload.is_empty() {
            state.workloads.remove(&place.within);
        }
        if let Some(held) = &held {
            leave(&mut self.on_node, &held.task);
        }
        held
    }

    /// Turns a task into a tombstone, once.
    pub(super) fn end_task(&mut self, mut task: Box<Task>, now: Timestamp) -> Applied {
        self.note_fallen(&task, now);
        let mut applied = Applied::default();
        let mut reported =
            self.agents.naming(&task.arn).iter().any(|id| self.agents.get(*id).is_some_and(|a| a.speaks_for(&task)));
        if let Some(held) = self.forget_task(&task.arn) {
            reported |= held.reported_at.is_some();
            task.started_at = task.started_at.or(held.task.started_at);
            applied.tasks.push(task.arn.clone());
        }
        if let Some(id) = self.agents.by_task(&task.arn) {
            applied.tasks.extend(self.remove_agent(id));
        }
        let arn = self.interner.get(&task.arn);
        self.losses.tombstones_evicted += self.tombstones.put(arn, now, self.limits.tombstones);
        applied.ended.push(Ended { task, reported, at: now });
        applied
    }

    /// A daemon task that ended by itself, not because it was stopped, says why its node has no agent.
    fn note_fallen(&mut self, task: &Task, now: Timestamp) {
        let by_itself = matches!(task.stop_code.as_deref(), Some("TaskFailedToStart" | "EssentialContainerExited"));
        if by_itself
            && is_daemon(task)
            && let Some(node) = task.node.as_ref().filter(|node| self.nodes.contains_key(*node))
            && let Some(container) = task.containers.iter().find(|container| &*container.name == SIDECAR)
            // A sweep reads stopped tasks again, and does not say anything new of them.
            && self.tombstones.get(&task.arn).is_none()
        {
            self.fallen.insert(node.clone(), Seen { value: container.clone(), at: now });
        }
    }

    fn put_definition(&mut self, definition: Definition) -> Applied {
        let arn = self.interner.get(&definition.arn);
        if self.definitions.get(&arn) == Some(&definition) {
            return Applied::default();
        }
        if self.definitions.len() >= self.limits.definitions && !self.definitions.contains_key(&arn) {
            let used: std::collections::HashSet<&Str> =
                self.clusters.values().flat_map(|c| c.services.values()).map(|s| &s.value.definition).collect();
            let before = self.definitions.len();
            self.definitions.retain(|arn, _| used.contains(arn));
            self.losses.definitions_evicted += (before - self.definitions.len()) as u64;
        }
        self.definitions.insert(arn.clone(), definition);
        let services = self.clusters.values().flat_map(|c| c.services.values()).map(|s| &s.value);
        let services = services.filter(|s| s.definition == arn).map(|s| s.arn.clone()).collect();
        Applied { services, ..Applied::default() }
    }

    fn put_agent(&mut self, mut report: AgentReport, now: Timestamp) -> Applied {
        if self.tombstones.get(&report.task).is_some() {
            return Applied::default();
        }
        match self.agents.by_task(&report.task) {
            // Replicas may deliver two heartbeats of one agent in either order.
            Some(id) if self.agents.get(id).is_some_and(|a| a.report.received_at > report.received_at) => {
                return Applied::default();
            }
            None if self.agents.len() >= self.limits.agents => {
                self.losses.agents_refused += 1;
                return Applied::default();
            }
            _ => {}
        }
        self.interner.share(&mut report.task);
        if let Some(node) = &mut report.node {
            self.interner.share(node);
        }
        let mut said = std::mem::take(&mut report.heartbeat.tasks);
        self.losses.names_dropped += said.len().saturating_sub(self.limits.names_per_agent) as u64;
        said.truncate(self.limits.names_per_agent);
        let mut names: Vec<Str> = said.iter().map(|name| self.interner.get(name)).collect();
        names.sort_unstable();
        names.dedup();

        let own = report.task.clone();
        let digest = Digest::of(&report.heartbeat, |text| self.interner.get(text));
        let (id, changes) = self.agents.put(report, names, digest);
        for name in &changes.removed {
            self.edit_task(name, |state| state.agents.retain(|a| *a != id));
        }
        for name in &changes.added {
            self.edit_task(name, |state| state.agents.push(id));
        }
        let Some(agent) = self.agents.get(id) else { return Applied::default() };
        let mut tasks = changes.removed;
        if agent.unchanged {
            tasks.extend(changes.added);
        } else {
            tasks.extend(agent.names.iter().cloned());
        }
        // A name may have come before its task could be checked, so every named task is looked at.
        for name in agent.names.clone() {
            self.note_task_report(&name, now);
        }
        tasks.push(own.clone());
        tasks.retain(|task| self.tasks.contains_key(task));
        tasks.sort_unstable();
        tasks.dedup();
        let mut applied = Applied { tasks, ..Applied::default() };
        // Rollouts wait for heartbeats of the daemon's own tasks.
        if let Some(place) = self.tasks.get(&own)
            && let Some(service) = place.within.strip_prefix("service:")
            && crate::action::is_daemon_service(service)
        {
            applied.wishes.extend((!self.agents.get(id).is_some_and(|a| a.unchanged)).then(|| place.cluster.clone()));
        }
        applied
    }

    fn note_task_report(&mut self, name: &Str, now: Timestamp) {
        let Some(place) = self.tasks.get(name) else { return };
        let agents = &self.agents;
        if let Some(state) = self
            .clusters
            .get_mut(&place.cluster)
            .and_then(|c| c.workloads.get_mut(&place.within))
            .and_then(|w| w.get_mut(name))
        {
            note_report(state, agents, now);
        }
    }

    fn edit_task(&mut self, name: &Str, edit: impl FnOnce(&mut TaskState)) {
        let Some(place) = self.tasks.get(name) else { return };
        if let Some(state) = self
            .clusters
            .get_mut(&place.cluster)
            .and_then(|c| c.workloads.get_mut(&place.within))
            .and_then(|w| w.get_mut(name))
        {
            edit(state);
        }
    }

    /// Forgets an agent; answers the live tasks that it named.
    pub(super) fn remove_agent(&mut self, id: AgentId) -> Vec<Str> {
        let mut names = self.agents.remove(id);
        for name in &names {
            self.edit_task(name, |state| state.agents.retain(|a| *a != id));
        }
        names.retain(|name| self.tasks.contains_key(name));
        names
    }
}

/// Remembers the first time that an agent which may speak for the task named it.
fn note_report(state: &mut TaskState, agents: &super::agent_index::Agents, now: Timestamp) {
    if state.reported_at.is_none() {
        let may = |id: &AgentId| agents.get(*id).is_some_and(|a| a.speaks_for(&state.task));
        if state.agents.iter().any(may) {
            state.reported_at = Some(now);
        }
    }
}
