//! A small Kubernetes for tests of rollouts: two OnDelete DaemonSets, one label of nodes, pods that
//! start, wait for room or never report; ten seconds of virtual time a step.

use super::*;
use crate::action::{ActionKind, AgentSpec, DAEMON_SERVICE, DAEMON_SERVICE_NEXT, HOLD, NEXT, PROMOTING, SIDECAR};
use crate::desired::Desired;
use crate::fixtures::*;
use crate::fleet::*;
use crate::memory::Memory;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tasuki_api::coverage::Depth;

pub struct Cluster {
    pub fleet: Fleet,
    pub decider: Decider,
    pub now: i64,
    /// Versions whose agent never reports.
    pub broken: Vec<String>,
    /// Versions whose agent sees the network only.
    pub blind: Vec<String>,
    /// Nodes with a kernel on which every agent does.
    pub old: BTreeSet<String>,
    /// Nodes that are not Ready; what runs there runs on.
    pub away: BTreeSet<String>,
    /// Nodes whose agents are not heard.
    pub silent: BTreeSet<String>,
    /// A version that takes its nodes down.
    pub deadly: Option<String>,
    /// Nodes with room for one agent only.
    pub full: BTreeSet<String>,
    /// Nodes with room for none.
    pub packed: BTreeSet<String>,
    /// A version of which no pod is let in, and why.
    pub refused: Option<(String, String)>,
    pub log: Vec<ActionKind>,
    /// Most nodes without an agent that reports, since the last reset.
    pub most_uncovered: usize,
    /// Most nodes in hand-over at once.
    pub most_in_handover: usize,
    /// By DaemonSet: what it runs.
    sets: BTreeMap<Str, Set>,
    nodes: BTreeMap<Str, Node>,
    /// By DaemonSet and node.
    pods: BTreeMap<(Str, Str), Task>,
    made: usize,
}

struct Set {
    role: &'static str,
    version: String,
    spec: Str,
    promoting: bool,
}

impl Cluster {
    pub fn new(desired: Arc<Desired>, nodes: usize) -> Self {
        let mut fleet = Fleet::new(at(-3600));
        let Change::Cluster(mut described) = cluster() else { unreachable!() };
        described.scope = ScopeId::kubernetes("prod");
        fleet.apply(Change::Cluster(described), at(0));
        let mut new = Self {
            fleet,
            decider: Decider::new(desired, Memory::default()),
            now: 0,
            broken: vec![],
            blind: vec![],
            old: BTreeSet::new(),
            away: BTreeSet::new(),
            silent: BTreeSet::new(),
            deadly: None,
            full: BTreeSet::new(),
            packed: BTreeSet::new(),
            refused: None,
            log: vec![],
            most_uncovered: 0,
            most_in_handover: 0,
            sets: BTreeMap::new(),
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            made: 0,
        };
        (0..nodes).for_each(|i| new.join(&format!("n{i:03}")));
        new.tell();
        new
    }

    pub fn join(&mut self, name: &str) {
        let mut node = node(name);
        node.launch = LaunchType::Kubernetes;
        self.nodes.insert(node.arn.clone(), node);
    }

    /// Nothing comes to the node that does not tolerate this.
    pub fn taint(&mut self, name: &str) {
        let taint = Taint { key: "gpu".into(), value: "yes".into(), effect: "NoSchedule".into() };
        self.nodes.get_mut(&node_arn(name)).unwrap().taints.push(taint);
    }

    pub fn vanish(&mut self, name: &str) {
        let arn = node_arn(name);
        self.nodes.remove(&arn);
        self.fleet.apply(Change::NodeGone(arn), at(self.now));
    }

    pub fn labelled(&self) -> usize {
        self.nodes.values().filter(|n| n.attributes.contains_key(NEXT)).count()
    }

    /// Versions that run, each with its role and whether it heeds the hand-over.
    pub fn sets(&self) -> Vec<(&str, &str, bool)> {
        self.sets.values().map(|set| (set.role, set.version.as_str(), !set.promoting)).collect()
    }

    pub fn count(&self, is: impl Fn(&ActionKind) -> bool) -> usize {
        self.log.iter().filter(|a| is(a)).count()
    }

    /// Forgets everything but what is stored.
    pub fn crash(&mut self) {
        let stored = serde_json::to_string(self.decider.memory()).unwrap();
        self.decider = Decider::new(self.decider.desired().clone(), serde_json::from_str(&stored).unwrap());
    }

    /// The controller is away for so long, and knows nothing when it is back.
    pub fn outage(&mut self, seconds: i64) {
        self.crash();
        self.now += seconds;
        let described = self.fleet.cluster(CLUSTER).unwrap().cluster.as_ref().unwrap().value.clone();
        self.fleet = Fleet::new(at(self.now));
        self.fleet.apply(Change::Cluster(Box::new(described)), at(self.now));
        self.tell();
    }

    /// Ten seconds: decide, take those actions that `take` lets through, move the world on.
    pub fn step(&mut self, mut take: impl FnMut() -> bool) {
        self.now += 10;
        for action in self.decider.decide_all(&self.fleet, at(self.now)).actions {
            if take() {
                self.act(&action.kind, &mut take);
                self.log.push(action.kind);
            }
        }
        self.schedule();
        let deadly =
            |pod: &&Task| self.sets.get(&pod.definition).is_some_and(|s| Some(&s.version) == self.deadly.as_ref());
        let down: Vec<_> = self.pods.values().filter(deadly).filter_map(|pod| pod.node.clone()).collect();
        for node in down.iter().filter_map(|node| node.rsplit('/').next()) {
            self.away.insert(node.to_owned());
            self.silent.insert(node.to_owned());
        }
        self.tell();
        self.measure();
    }

    pub fn run(&mut self, seconds: i64) {
        for _ in 0..seconds / 10 {
            self.step(|| true);
        }
    }

    fn create(&mut self, role: &'static str, agent: &AgentSpec) {
        assert!(agent.pods.is_some(), "what runs in pods says how");
        let arn: Str = format!("k8s/prod/daemonset/agents/tasuki-agent-{}", agent.fingerprint()).into();
        let set = Set { role, version: agent.version.to_string(), spec: agent.fingerprint(), promoting: false };
        self.sets.insert(arn, set);
    }

    fn act(&mut self, kind: &ActionKind, take: &mut impl FnMut() -> bool) {
        match kind {
            ActionKind::CreateDaemon { service, agent, .. } => {
                let next = **service == *DAEMON_SERVICE_NEXT;
                self.create(if next { DAEMON_SERVICE_NEXT } else { DAEMON_SERVICE }, agent);
            }
            ActionKind::DeleteDaemon { service } => drop(self.sets.remove(service)),
            ActionKind::PromoteDaemon { service, serving } => {
                // Three calls, between any two of which the controller may end.
                let Some(next) = self.sets.get_mut(service) else { return };
                next.promoting = true;
                if !take() {
                    return;
                }
                serving.as_ref().map(|serving| self.sets.remove(serving));
                if take()
                    && let Some(next) = self.sets.get_mut(service)
                {
                    next.role = DAEMON_SERVICE;
                }
            }
            ActionKind::DeleteAgent { node, task } => {
                assert!(self.nodes[node].attributes.contains_key(HOLD), "the old agent stays until it is to go");
                let slot = self.pods.iter().find(|(_, pod)| pod.arn == *task).map(|(slot, _)| slot.clone());
                let Some(mut pod) = slot.and_then(|slot| self.pods.remove(&slot)) else { return };
                (pod.status, pod.version) = (TaskStatus::Stopped, self.now);
                self.fleet.apply(of_task(pod), at(self.now));
            }
            ActionKind::SettleDaemon { service } => self.sets.get_mut(service).unwrap().promoting = false,
            ActionKind::PutAttribute { node, name } => {
                let Some(node) = self.nodes.get_mut(node) else { return };
                assert!(**name == *NEXT || node.attributes.contains_key(NEXT), "both comes before only");
                node.attributes.insert(name.to_string(), String::new());
            }
            ActionKind::DeleteAttribute { node, name } => {
                let Some(node) = self.nodes.get_mut(node) else { return };
                node.attributes.remove(HOLD);
                if **name == *NEXT {
                    node.attributes.remove(NEXT);
                }
            }
            other => panic!("not in Kubernetes: {other:?}"),
        }
    }

    fn schedule(&mut self) {
        let mut wanted: BTreeSet<(Str, Str)> = BTreeSet::new();
        for (arn, set) in &self.sets {
            for node in self.nodes.values() {
                let fits = match set.role {
                    _ if set.promoting => true,
                    DAEMON_SERVICE_NEXT => node.attributes.contains_key(NEXT),
                    _ => !node.attributes.contains_key(HOLD),
                };
                let refused = self.refused.as_ref().is_some_and(|(version, _)| *version == set.version);
                if fits && node.taints.is_empty() && !refused {
                    wanted.insert((arn.clone(), node.arn.clone()));
                }
            }
        }
        let gone: Vec<_> = self.pods.keys().filter(|slot| !wanted.contains(*slot)).cloned().collect();
        for slot in gone {
            let mut pod = self.pods.remove(&slot).unwrap();
            (pod.status, pod.version) = (TaskStatus::Stopped, self.now);
            self.fleet.apply(of_task(pod), at(self.now));
        }
        for slot in wanted {
            let (set, name) = (&self.sets[&slot.0], slot.1.rsplit('/').next().unwrap().to_owned());
            let others = |(other, pod): (&(Str, Str), &Task)| {
                other.1 == slot.1 && other.0 != slot.0 && pod.status == TaskStatus::Running
            };
            let crowded = self.packed.contains(&name) || self.full.contains(&name) && self.pods.iter().any(others);
            let pod = self.pods.entry(slot.clone()).or_insert_with(|| {
                self.made += 1;
                let mut pod = task(&format!("pod-{}", self.made), set.role);
                (pod.definition, pod.node, pod.launch) = (slot.0.clone(), Some(slot.1.clone()), LaunchType::Kubernetes);
                (pod.status, pod.created_at, pod.started_at) = (TaskStatus::Pending, Some(at(self.now)), None);
                pod.containers = vec![container(SIDECAR)];
                pod
            });
            if pod.status == TaskStatus::Pending {
                let why = "Unschedulable: 0/1 nodes are available: 1 Insufficient memory";
                pod.containers[0].reason = crowded.then(|| why.into());
                if !crowded {
                    (pod.status, pod.started_at) = (TaskStatus::Running, Some(at(self.now)));
                }
            }
            (pod.group, pod.version) = (format!("service:{}", set.role).into(), self.now);
        }
    }

    /// What the watches and the agents say.
    fn tell(&mut self) {
        let now = at(self.now);
        let held: Vec<Str> =
            self.fleet.cluster(CLUSTER).unwrap().services.values().map(|s| s.value.arn.clone()).collect();
        for arn in held.into_iter().filter(|arn| !self.sets.contains_key(arn)) {
            self.fleet.apply(Change::ServiceGone(arn), now);
        }
        for (arn, set) in &self.sets {
            let mut service = daemon_service(set.role, "unused:1");
            (service.arn, service.definition, service.launch) = (arn.clone(), arn.clone(), LaunchType::Kubernetes);
            let refusal = self.refused.as_ref().filter(|(version, _)| *version == set.version);
            service.events.extend(refusal.map(|(_, why)| Str::from(why.as_str())));
            if set.promoting {
                service.tags.insert(PROMOTING.to_owned(), String::new());
            }
            let mark = SidecarMark {
                version: set.version.as_str().into(),
                image: "i".into(),
                source: None,
                source_hash: None,
                spec: Some(set.spec.clone()),
            };
            let definition = Definition {
                arn: arn.clone(),
                hash: arn.clone(),
                active: true,
                containers: vec![SIDECAR.into()],
                task_role: None,
                sidecar: Some(mark),
                obstacle: None,
                judged_for: None,
            };
            self.fleet.apply(Change::Definition(Box::new(definition)), now);
            self.fleet.apply(of_service(service), now);
        }
        for node in self.nodes.values() {
            let connected = !self.away.iter().any(|name| node.arn.ends_with(name));
            let node = Box::new(Node { connected, ..node.clone() });
            self.fleet.apply(Change::NodeRead { read_at: now, node }, now);
        }
        for pod in self.pods.values() {
            self.fleet.apply(Change::TaskRead { read_at: now, task: Box::new(pod.clone()) }, now);
        }
        let reporting: Vec<Task> = self.pods.values().filter(|pod| self.reports(pod)).cloned().collect();
        for pod in reporting {
            let node = pod.node.as_deref().unwrap().rsplit('/').next().unwrap();
            let mut report = node_report(pod.id(), node, &[], now);
            report.heartbeat.version = self.sets[&pod.definition].version.clone();
            if self.old.contains(node) {
                report.heartbeat.kernel = "4.14.355-277.amzn2".into();
            }
            if self.old.contains(node) || self.blind.contains(&report.heartbeat.version) {
                report.heartbeat.depth = Depth::Network;
            }
            self.fleet.apply(of_agent(report), now);
        }
    }

    fn reports(&self, pod: &Task) -> bool {
        pod.status == TaskStatus::Running
            && !self.silent.iter().any(|name| pod.node.as_ref().is_some_and(|node| node.ends_with(name)))
            && self.sets.get(&pod.definition).is_some_and(|set| !self.broken.contains(&set.version))
    }

    /// Nodes without an agent that reports.
    pub fn uncovered(&self) -> usize {
        let covered = |node: &&Str| self.pods.values().any(|p| p.node.as_ref() == Some(node) && self.reports(p));
        self.nodes.len() - self.nodes.keys().filter(covered).count()
    }

    /// The rollout, as it is told.
    pub fn rollout(&self) -> Option<RolloutStatus> {
        self.decider.rollouts(&self.fleet, at(self.now)).pop()
    }

    /// A node in hand-over whose old agent has not gone.
    pub fn handed_over(&self) -> Option<String> {
        let both = |n: &&Node| n.attributes.contains_key(NEXT) && !n.attributes.contains_key(HOLD);
        self.nodes.values().find(both).map(|n| n.arn.rsplit('/').next().unwrap().to_owned())
    }

    /// The node's pods are evicted, and made anew.
    pub fn replace_pods(&mut self, name: &str) {
        let slots: Vec<_> = self.pods.keys().filter(|(_, node)| node.ends_with(name)).cloned().collect();
        for slot in slots {
            let mut pod = self.pods.remove(&slot).unwrap();
            (pod.status, pod.version) = (TaskStatus::Stopped, self.now);
            self.fleet.apply(of_task(pod), at(self.now));
        }
    }

    fn measure(&mut self) {
        self.most_uncovered = self.most_uncovered.max(self.uncovered());
        let both = |n: &&Node| n.attributes.contains_key(NEXT) && !n.attributes.contains_key(HOLD);
        self.most_in_handover = self.most_in_handover.max(self.nodes.values().filter(both).count());
    }
}
