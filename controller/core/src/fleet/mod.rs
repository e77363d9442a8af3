//! The fleet: what there is, as far as it has been told.
//!
//! *Expected flow*: observe turns events, sweeps and heartbeats into [`Change`]s; [`Fleet::apply`]
//! takes them one by one and says in [`Applied`] what has to be judged anew. *Guarantees*: no event
//! with an older version of a task or node replaces a newer one, or brings a stopped task back to
//! life; the order and number of a task's events do not matter; whatever an event claimed, a reading
//! of ECS that began [`SETTLED`] after it is believed instead. *Assumptions*: `now` never runs
//! backwards. *Caveats*: a task whose cluster was not described yet is held, and not judged.

mod agent_index;
mod agents;
mod apply;
mod intern;
mod model;
mod sweep;
#[cfg(test)]
mod tests;
mod tombstones;

pub use agent_index::{Agent, AgentId, Digest};
pub use agents::*;
pub use apply::{Applied, Ended};
pub use model::*;

use agent_index::Agents;
use intern::Interner;
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, HashMap};
use tasuki_api::coverage::Reason;
use tombstones::Tombstones;

/// A stopped task is remembered for this long, as long as ECS itself can describe it (at least an
/// hour, DescribeTasks), so that a late event cannot bring it back to life.
pub const TOMBSTONE_AGE: SignedDuration = SignedDuration::from_hours(1);
/// What act reported to stand in the way is believed for this long; then it is tried again.
pub const OBSTRUCTION_AGE: SignedDuration = SignedDuration::from_mins(10);
/// The same of a Kubernetes cluster, whose API server has no budget to be spared, and whose owners mend it while they
/// look.
const KUBERNETES_OBSTRUCTION_AGE: SignedDuration = SignedDuration::from_mins(1);

/// A reading that began so long after something was last heard of knows it too: ECS answers are
/// eventually consistent, and one that is younger may be the older truth.
pub const SETTLED: SignedDuration = SignedDuration::from_secs(5);

/// How much the fleet may hold of what others can make grow.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Agents; a new one beyond is refused and counted.
    pub agents: usize,
    /// Tasks that one agent may name; the rest is dropped and counted.
    pub names_per_agent: usize,
    /// Tombstones; the oldest goes first and is counted.
    pub tombstones: usize,
    /// Definitions; beyond, those that nothing uses go and are counted.
    pub definitions: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Twice the fleet that the product is measured with (100 000 tasks in 1 000 clusters).
        Self { agents: 200_000, names_per_agent: 2_000, tombstones: 200_000, definitions: 50_000 }
    }
}

/// What the limits cost so far. Never silent: each is a metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Reports of agents that found no room.
    pub agents_refused: u64,
    /// Task names beyond the limit of one agent.
    pub names_dropped: u64,
    /// Tombstones that went before their hour.
    pub tombstones_evicted: u64,
    /// Definitions that were forgotten.
    pub definitions_evicted: u64,
}

/// Something with the time at which it was last seen to exist.
#[derive(Clone, Debug)]
pub struct Seen<T> {
    /// What.
    pub value: T,
    /// When the last accepted change of it was applied.
    pub at: Timestamp,
}

/// A cluster and what is in it.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// Absent until it was described.
    pub cluster: Option<Seen<Cluster>>,
    /// Tasks by group (`service:NAME`, `family:NAME`), then by ARN.
    pub workloads: BTreeMap<Str, BTreeMap<Str, TaskState>>,
    /// Services by name.
    pub services: BTreeMap<Str, Seen<Service>>,
    /// Nodes by ARN.
    pub nodes: BTreeMap<Str, Seen<Node>>,
}

impl ClusterState {
    /// Its service of this name.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name).map(|s| &s.value)
    }
    /// Its node of this ARN.
    pub fn node(&self, arn: &str) -> Option<&Node> {
        self.nodes.get(arn).map(|n| &n.value)
    }
    /// Tasks of one service.
    pub fn tasks_of(&self, service: &str) -> impl Iterator<Item = &TaskState> {
        self.workloads.get(format!("service:{service}").as_str()).into_iter().flat_map(|w| w.values())
    }
    fn is_empty(&self) -> bool {
        self.cluster.is_none() && self.workloads.is_empty() && self.services.is_empty() && self.nodes.is_empty()
    }
}

/// A live task, and who speaks for it.
#[derive(Clone, Debug)]
pub struct TaskState {
    /// The task.
    pub task: Box<Task>,
    /// When the fleet first heard of it.
    pub first_seen: Timestamp,
    /// When the last accepted change of it was applied.
    pub seen_at: Timestamp,
    /// When an agent first reported it; absent while none ever did.
    pub reported_at: Option<Timestamp>,
    /// Agents that name it; whether each may, [`Agent::speaks_for`] says.
    pub agents: Vec<AgentId>,
}

/// Where a task, service or node is kept.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub cluster: Str,
    /// Group of a task, name of a service.
    pub within: Str,
}

/// What act found to stand in the way of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstruction {
    /// Reason.
    pub reason: Reason,
    /// Detail.
    pub detail: String,
    /// When.
    pub at: Timestamp,
}

/// What there is.
#[derive(Debug)]
pub struct Fleet {
    born: Timestamp,
    limits: Limits,
    losses: Losses,
    clusters: BTreeMap<Str, ClusterState>,
    tasks: HashMap<Str, Place>,
    /// The live tasks of each node: whoever speaks for one node does not look through a cluster of thousands.
    on_node: HashMap<Str, Vec<Str>>,
    services: HashMap<Str, Place>,
    nodes: HashMap<Str, Str>,
    definitions: HashMap<Str, Definition>,
    agents: Agents,
    tombstones: Tombstones,
    denied: BTreeMap<ScopeId, BTreeMap<String, Obstruction>>,
    obstructions: BTreeMap<Str, Obstruction>,
    /// By node: the agent's container of the last daemon task that failed there. No more than there are nodes.
    fallen: BTreeMap<Str, Seen<Container>>,
    interner: Interner,
}

impl Fleet {
    /// An empty fleet, as of `now`.
    pub fn new(now: Timestamp) -> Self {
        Self::with_limits(now, Limits::default())
    }

    /// An empty fleet with limits of its own.
    pub fn with_limits(now: Timestamp, limits: Limits) -> Self {
        Self {
            born: now,
            limits,
            losses: Losses::default(),
            clusters: BTreeMap::new(),
            tasks: HashMap::new(),
            on_node: HashMap::new(),
            services: HashMap::new(),
            nodes: HashMap::new(),
            definitions: HashMap::new(),
            agents: Agents::default(),
            tombstones: Tombstones::default(),
            denied: BTreeMap::new(),
            obstructions: BTreeMap::new(),
            fallen: BTreeMap::new(),
            interner: Interner::default(),
        }
    }

    /// Since when this fleet listens: what ended before, it cannot judge.
    pub fn born(&self) -> Timestamp {
        self.born
    }
    /// What the limits cost so far.
    pub fn losses(&self) -> Losses {
        self.losses
    }
    /// Clusters by ARN, in order.
    pub fn clusters(&self) -> impl Iterator<Item = (&Str, &ClusterState)> {
        self.clusters.iter()
    }
    /// The cluster of this ARN.
    pub fn cluster(&self, arn: &str) -> Option<&ClusterState> {
        self.clusters.get(arn)
    }
    /// Number of live tasks.
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }
    /// A live task.
    pub fn task(&self, arn: &str) -> Option<&TaskState> {
        let place = self.tasks.get(arn)?;
        self.clusters.get(&place.cluster)?.workloads.get(&place.within)?.get(arn)
    }
    /// Cluster ARN and group of a live task.
    pub fn place_of_task(&self, arn: &str) -> Option<(&Str, &Str)> {
        self.tasks.get(arn).map(|p| (&p.cluster, &p.within))
    }
    /// The live tasks of a node.
    pub fn tasks_on(&self, node: &str) -> impl Iterator<Item = &TaskState> {
        self.on_node.get(node).into_iter().flatten().filter_map(|task| self.task(task))
    }
    /// Whether this task is known to have stopped within the last hour.
    pub fn has_stopped(&self, task: &str) -> bool {
        self.tombstones.get(task).is_some()
    }
    /// A service by ARN.
    pub fn service(&self, arn: &str) -> Option<&Service> {
        let place = self.services.get(arn)?;
        self.clusters.get(&place.cluster)?.service(&place.within)
    }
    /// A node by ARN.
    pub fn node(&self, arn: &str) -> Option<&Node> {
        self.clusters.get(self.nodes.get(arn)?)?.node(arn)
    }
    /// A described definition.
    pub fn definition(&self, arn: &str) -> Option<&Definition> {
        self.definitions.get(arn)
    }
    /// All described definitions, in no order.
    pub fn definitions(&self) -> impl Iterator<Item = &Definition> {
        self.definitions.values()
    }
    /// An agent by its id.
    pub fn agent(&self, id: AgentId) -> Option<&Agent> {
        self.agents.get(id)
    }
    /// The agent whose own task this is.
    pub fn agent_of_task(&self, task: &str) -> Option<&Agent> {
        self.agents.by_task(task).and_then(|id| self.agents.get(id))
    }
    /// All agents, in no order.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.all()
    }
    /// Number of agents.
    pub fn agent_count(&self) -> usize {
        self.agents.len()
    }
    /// What a scope refuses, by API.
    pub fn denied(&self, scope: &ScopeId) -> impl Iterator<Item = (&String, &Obstruction)> {
        self.denied.get(scope).into_iter().flatten()
    }
    /// What act found to stand in the way of changing this service or cluster, while it is believed.
    pub fn obstruction(&self, target: &str, now: Timestamp) -> Option<&Obstruction> {
        let age = |found: &Obstruction| match tasuki_api::kubernetes::is_name(target) {
            // A trial that failed stands for so long before it can be made again.
            true if found.reason != Reason::ImageNotPullable => KUBERNETES_OBSTRUCTION_AGE,
            _ => OBSTRUCTION_AGE,
        };
        self.obstructions.get(target).filter(|o| now.duration_since(o.at) < age(o))
    }

    /// The agent's container that failed last on a node without another one running there since; believed
    /// as long as an obstruction is.
    pub fn fallen_agent(&self, node: &str, now: Timestamp) -> Option<&Seen<Container>> {
        self.fallen.get(node).filter(|fallen| now.duration_since(fallen.at) < OBSTRUCTION_AGE)
    }

    /// Forgets what is too old to matter. Call it about once a minute; nothing depends on when.
    pub fn expire(&mut self, now: Timestamp) {
        self.tombstones.expire(now);
        self.obstructions.retain(|_, o| now.duration_since(o.at) < OBSTRUCTION_AGE);
        self.fallen.retain(|node, f| self.nodes.contains_key(node) && now.duration_since(f.at) < OBSTRUCTION_AGE);
        let tasks = &self.tasks;
        let silent = self.agents.silent(|agent| {
            !tasks.contains_key(&agent.report.task) && now.duration_since(agent.report.received_at) >= TOMBSTONE_AGE
        });
        for id in silent {
            self.remove_agent(id);
        }
        self.interner.prune();
    }
}
