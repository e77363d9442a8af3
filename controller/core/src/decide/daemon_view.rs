//! What a daemon's next step is decided on: its two services, and each node with its agents.

use super::evidence::{agent_container, container_failure};
use super::trace::Told;
use super::view::{ClusterView, is_eligible, is_lost};
use crate::action::{Action, ActionKind, DAEMON_SERVICE, DAEMON_SERVICE_NEXT, EXTERNAL_DAEMON_SERVICE};
use crate::action::{EXTERNAL_DAEMON_SERVICE_NEXT, HOLD, NEXT, OWNER_TAG, PROMOTING};
use crate::desired::Monitor;
use crate::fleet::{Agent, LaunchType, Node, Service, Str, TaskState, TaskStatus};
use jiff::{SignedDuration, Timestamp};
use tasuki_api::coverage::Depth;
use tasuki_api::desired::Gates;

/// How the reason of a container begins whose pod finds no node with room.
pub(super) const UNSCHEDULABLE: &str = "Unschedulable";

/// Where a network is cut, agents fall silent before their nodes are known to be away (45 s and 40 to 50 s), and speak
/// after they are back.
const OUT_OF_STEP: SignedDuration = SignedDuration::from_secs(60);

/// What is wrong where an agent sees less than the one before it.
const SEES_LESS: &str = ": it sees no processes, which the agent before it does";

/// The daemon of one cluster and launch type.
pub(super) struct Daemons<'a, 'c> {
    pub cluster: &'c ClusterView<'a>,
    pub launch: LaunchType,
    /// Key in memory.
    pub key: Str,
    pub serving_name: &'static str,
    pub next_name: &'static str,
    pub serving: Option<&'a Service>,
    pub next: Option<&'a Service>,
    /// A service of that name exists and is not ours.
    pub name_taken: bool,
    pub nodes: Vec<NodeView<'a>>,
}

/// One node, in the order of ARNs.
pub(super) struct NodeView<'a> {
    pub node: &'a Node,
    pub hold: bool,
    pub next: bool,
    /// A daemon can start there, now or soon.
    pub eligible: bool,
    /// It was, and has been away for too long.
    pub lost: bool,
    pub serving_agent: Placed<'a>,
    pub next_agent: Placed<'a>,
}

/// A daemon's task on a node, and its agent.
#[derive(Clone, Copy, Default)]
pub(super) struct Placed<'a> {
    service: Option<&'a Service>,
    task: Option<&'a TaskState>,
    agent: Option<&'a Agent>,
    fresh: bool,
}

impl NodeView<'_> {
    /// It has the new agent and no other. One that waits for it, its old agent gone because there was no room for
    /// both, has not moved yet.
    pub fn has_moved(&self) -> bool {
        self.next && self.hold && self.next_agent.agent.is_some()
    }

    /// The new agent sees no processes where the old one does. One that does so by tracing a whole node is no measure.
    pub fn sees_less(&self) -> bool {
        let depth = |placed: &Placed<'_>| placed.agent.filter(|_| placed.fresh).map(|a| a.report.heartbeat.depth);
        let traces = |agent: &Agent| agent.report.heartbeat.sensors.iter().any(|sensor| sensor.name == "ptrace");
        let old = depth(&self.serving_agent).filter(|_| !self.serving_agent.agent.is_some_and(traces));
        old >= Some(Depth::Process) && depth(&self.next_agent).is_some_and(|new| new < Depth::Process)
    }

    /// What is wrong with the new agent, to be put behind a sentence.
    pub fn trouble(&self) -> String {
        if self.sees_less() { SEES_LESS.to_owned() } else { self.next_agent.trouble() }
    }

    /// Not even the serving agent finds room there, so nothing can be handed over.
    pub fn is_full(&self) -> bool {
        !self.hold && self.serving_agent.crowded_since().is_some()
    }
}

impl Placed<'_> {
    /// Since when its pod finds no room beside the old one, which then has to go first; by our clock, not by the API
    /// server's, which may differ.
    pub fn crowded_since(&self) -> Option<Timestamp> {
        let task = self.task.filter(|task| task.task.status < TaskStatus::Running)?;
        let why = agent_container(task)?.reason.as_deref()?;
        why.starts_with(UNSCHEDULABLE).then_some(task.first_seen)
    }
    /// Its task, where that is to stay as far as anyone has said.
    pub fn stays(&self) -> Option<&TaskState> {
        self.task.filter(|t| !t.task.desired_stopped && t.task.status < TaskStatus::Stopping)
    }
    /// It runs, and an agent reports from it.
    pub fn is_heard(&self) -> bool {
        self.fresh && self.task.is_some_and(|t| t.task.status == TaskStatus::Running && !t.task.desired_stopped)
    }
    /// It has been silent for longer than a network that is cut leaves it out of step with its node.
    pub fn is_missing(&self, now: Timestamp) -> bool {
        let over = |agent: &Agent| now.duration_since(agent.report.received_at) >= agent.silence_after() + OUT_OF_STEP;
        !self.is_healthy() && self.agent.is_none_or(|agent| !agent.is_whole() || over(agent))
    }
    /// It runs what its service should run, and a whole agent reports from it.
    pub fn is_healthy(&self) -> bool {
        self.is_heard() && self.agent.is_some_and(Agent::is_whole)
    }
    /// What ECS, Kubernetes or the agent says is wrong, to be put behind a sentence.
    pub fn trouble(&self) -> String {
        let mut told = Told::default();
        match (self.task, self.agent) {
            (None, _) => match self.service.filter(|service| service.launch == LaunchType::Kubernetes) {
                Some(service) => match service.events.first() {
                    Some(refusal) => format!(": {refusal}"),
                    None => ": its DaemonSet made no pod there".to_owned(),
                },
                None => ": ECS started no task there".to_owned(),
            },
            (Some(task), None) => {
                agent_container(task).and_then(|c| container_failure(c, &mut told));
                told.detail.map_or_else(|| format!(": its task is {:?}", task.task.status), |d| format!(": {d}"))
            }
            (Some(_), Some(agent)) if !agent.is_whole() => ": its sensor is not whole".to_owned(),
            _ => String::new(),
        }
    }
}

impl<'a, 'c> Daemons<'a, 'c> {
    pub fn new(cluster: &'c ClusterView<'a>, launch: LaunchType) -> Self {
        let (serving_name, next_name, key) = match launch {
            LaunchType::External => {
                let key = format!("{}#external", cluster.arn).into();
                (EXTERNAL_DAEMON_SERVICE, EXTERNAL_DAEMON_SERVICE_NEXT, key)
            }
            _ => (DAEMON_SERVICE, DAEMON_SERVICE_NEXT, cluster.arn.clone()),
        };
        let named = |name| cluster.state.service(name).filter(|s| s.active);
        let ours = |name| named(name).filter(|s| s.daemon && s.tags.contains_key(OWNER_TAG));
        let (serving, next) = (ours(serving_name), ours(next_name));
        let mut daemons =
            Self { cluster, launch, key, serving_name, next_name, serving, next, name_taken: false, nodes: Vec::new() };
        daemons.name_taken = serving.is_none() && named(serving_name).is_some();
        let owner = cluster.daemon_owner(launch);
        daemons.nodes = cluster
            .state
            .nodes
            .values()
            .map(|n| &n.value)
            .filter(|n| n.launch == launch)
            .map(|node| {
                let takes = |m: &Monitor| m.takes_node(&node.attributes) && m.untolerated(node).is_none();
                let eligible = is_eligible(node, launch) && owner.is_none_or(takes);
                daemons.view(node, eligible)
            })
            .collect();
        daemons
    }

    /// Nothing to look after.
    pub fn is_idle(&self) -> bool {
        self.nodes.is_empty() && self.serving.is_none() && self.next.is_none()
    }

    /// The daemon that serves was promoted: it is on every node, and only labels are left to take away.
    pub fn promoted(&self) -> bool {
        self.serving.is_some_and(|serving| serving.tags.contains_key(PROMOTING))
    }

    fn view(&self, node: &'a Node, eligible: bool) -> NodeView<'a> {
        let (serving_agent, next_agent) = (self.placed(node, self.serving), self.placed(node, self.next));
        let (hold, next) = (node.attributes.contains_key(HOLD), node.attributes.contains_key(NEXT));
        // One that has moved and is heard holds nothing up.
        let lost = is_lost(node, self.cluster.world.now) && !(hold && next && next_agent.is_heard());
        NodeView { node, hold, next, eligible: eligible && !lost, lost: eligible && lost, serving_agent, next_agent }
    }

    fn placed(&self, node: &Node, service: Option<&'a Service>) -> Placed<'a> {
        let Some(service) = service else { return Placed::default() };
        let world = self.cluster.world;
        let of_service =
            |t: &&TaskState| t.task.service_name() == Some(&*service.name) && t.task.definition == service.definition;
        let task = self.cluster.daemons_on(&node.arn).iter().copied().filter(of_service).max_by_key(|t| t.first_seen);
        let agent = task.and_then(|t| world.fleet.agent_of_task(&t.task.arn));
        Placed { service: Some(service), task, agent, fresh: agent.is_some_and(|a| a.is_fresh(world.now)) }
    }

    pub fn action(&self, kind: ActionKind, monitor: &str, why: impl Into<String>) -> Action {
        Action {
            scope: self.cluster.cluster.scope.clone(),
            cluster: self.cluster.arn.clone(),
            monitor: monitor.into(),
            why: why.into(),
            kind,
        }
    }

    /// Of the nodes with the new agent more are away than of the others, and more than a few: it may be what takes them
    /// down. One node may go for any reason.
    pub fn takes_nodes_down(&self) -> bool {
        let all = || self.nodes.iter().filter(|n| n.eligible || n.lost);
        let away = |with: bool| all().filter(|n| n.next == with && !n.node.connected).count();
        let of = |with: bool| all().filter(|n| n.next == with).count();
        let (some, enough) = (away(true) >= 2, away(true) * 20 >= of(true));
        self.launch == LaunchType::Kubernetes && some && enough && away(true) * of(false) > away(false) * of(true)
    }

    /// The first node whose agent is awaited, and what is wrong with it: the new one, or the old one where nodes go `back`.
    pub fn waiting(&self, back: bool) -> Option<String> {
        let told =
            |node: &NodeView<'_>, trouble: &str| format!("node {}{trouble}", super::evidence::id_of(&node.node.arn));
        if back {
            let node = self.nodes.iter().find(|n| n.next && !n.hold && !n.serving_agent.is_healthy())?;
            return Some(told(node, &node.serving_agent.trouble()));
        }
        let waits = |n: &&NodeView<'_>| n.next && !n.is_full() && (!n.next_agent.is_healthy() || n.sees_less());
        if self.takes_nodes_down() {
            return Some(
                "more nodes are away of those with the new agent than of the others: no other one gets it".to_owned(),
            );
        }
        let mut nodes = self.nodes.iter().filter(|n| n.eligible || n.lost);
        let node = nodes.clone().find(waits).or_else(|| nodes.find(|n| !n.node.connected))?;
        let trouble = match (node.node.connected, self.launch) {
            (true, _) => node.trouble(),
            (false, LaunchType::Kubernetes) => ": it is not Ready".to_owned(),
            (false, _) => ": its ECS agent is disconnected".to_owned(),
        };
        Some(told(node, &trouble))
    }

    /// Which of the moved nodes' agents are missing, where more are than may be.
    fn missing(gates: &Gates, moved: &[&NodeView<'_>], now: Timestamp) -> Option<String> {
        let healthy = moved.iter().filter(|n| !n.next_agent.is_missing(now)).count();
        if healthy >= gates.healthy_agents.of(moved.len()) {
            return None;
        }
        let silent = moved.iter().find(|n| n.next_agent.is_missing(now));
        let name = silent.map_or("?", |n| super::evidence::id_of(&n.node.arn));
        Some(format!(
            "{healthy} of {} new agents are healthy, {} are wanted ({name} is not)",
            moved.len(),
            gates.healthy_agents
        ))
    }

    /// The first gate that the moved nodes' agents do not hold. A gate on cost or loss is broken
    /// only where the new agents are also worse than the old ones on the nodes that still have them.
    pub fn gate_violation(&self, gates: &Gates, moved: &[&NodeView<'_>], now: Timestamp) -> Option<String> {
        if moved.is_empty() {
            return None;
        }
        if let Some(why) = Self::missing(gates, moved, now) {
            return Some(why);
        }
        let new: Vec<&Agent> = moved.iter().filter_map(|n| n.next_agent.agent).filter(|a| a.is_fresh(now)).collect();
        let old: Vec<&Agent> = self
            .nodes
            .iter()
            .filter(|n| !n.next)
            .filter_map(|n| n.serving_agent.agent)
            .filter(|a| a.is_fresh(now))
            .collect();
        let mean = |agents: &[&Agent], of: fn(&Agent) -> f64| match agents.len() {
            0 => None,
            n => Some(agents.iter().map(|a| of(a)).sum::<f64>() / n as f64),
        };
        for (what, gate, of) in [
            ("event loss", gates.event_loss, (|a: &Agent| a.loss) as fn(&Agent) -> f64),
            ("CPU", gates.agent_cpu, |a: &Agent| a.cpu),
        ] {
            let (after, before) = (mean(&new, of)?, mean(&old, of));
            if after > gate.as_fraction() && before.is_none_or(|b| after > b) {
                let was = before.map_or_else(String::new, |b| format!(", {:.2}% before", b * 100.0));
                return Some(format!("{what} of the new agents is {:.2}%, {gate} is allowed{was}", after * 100.0));
            }
        }
        let restless = new.iter().find(|a| a.report.heartbeat.restarts > gates.restarts)?;
        let heartbeat = &restless.report.heartbeat;
        let why = heartbeat.last_exit.as_deref().map_or_else(String::new, |w| format!(" ({w})"));
        Some(format!("a new agent restarted {} times, {} are allowed{why}", heartbeat.restarts, gates.restarts))
    }
}
