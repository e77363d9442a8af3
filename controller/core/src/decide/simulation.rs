//! A small ECS for tests of rollouts: takes actions, moves tasks, lets agents report. Attributes,
//! constraints, DAEMON scheduling and rolling deployments as ECS has them, in seconds of virtual time.

use super::*;
use crate::action::{Action, ActionKind, AgentSpec, HOLD, NEXT, SIDECAR, SidecarSpec};
use crate::desired::Desired;
use crate::fixtures::*;
use crate::fleet::*;
use crate::memory::Memory;
use std::collections::BTreeMap;
use std::sync::Arc;

pub struct Simulation {
    pub fleet: Fleet,
    pub decider: Decider,
    pub now: i64,
    /// Versions whose agent never reports.
    pub broken: Vec<String>,
    /// Every action that was taken.
    pub log: Vec<ActionKind>,
    /// Nodes with at least one healthy agent, at the worst moment since the last reset.
    pub least_covered: usize,
    services: BTreeMap<Str, Service>,
    nodes: BTreeMap<Str, Node>,
    /// By slot: what they are for. A task that is started anew has another id.
    tasks: BTreeMap<String, Task>,
    started: usize,
    versions: BTreeMap<Str, String>,
    revision: usize,
}

impl Simulation {
    pub fn new(desired: Arc<Desired>, nodes: usize) -> Self {
        let nodes = (0..nodes).map(|i| node(&format!("n{i:03}"))).map(|n| (n.arn.clone(), n)).collect();
        let mut simulation = Self {
            fleet: fleet(vec![]),
            decider: Decider::new(desired, Memory::default()),
            now: 0,
            broken: vec![],
            log: vec![],
            least_covered: usize::MAX,
            services: BTreeMap::new(),
            nodes,
            tasks: BTreeMap::new(),
            started: 0,
            versions: BTreeMap::new(),
            revision: 0,
        };
        simulation.tell();
        simulation
    }

    pub fn add_service(&mut self, service: Service) {
        for i in 0..service.desired {
            let mut task = task(&format!("{}-{i}", service.name), &service.name);
            task.definition = service.definition.clone();
            let slot = format!("{}-{i}", service.definition.rsplit('/').next().unwrap().replace(':', "-"));
            self.tasks.insert(slot, task);
        }
        self.services.insert(service.arn.clone(), service);
        self.tell();
    }

    pub fn edit_service(&mut self, name: &str, edit: impl FnOnce(&mut Service)) {
        edit(self.services.get_mut(&service_arn(name)).unwrap());
        self.tell();
    }

    pub fn edit_nodes(&mut self, edit: impl Fn(&mut Node)) {
        self.nodes.values_mut().for_each(edit);
        self.tell();
    }

    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(&service_arn(name))
    }
    /// A live task of a service.
    pub fn task_of(&self, service: &str) -> Str {
        self.tasks.values().find(|t| t.service_name() == Some(service)).unwrap().arn.clone()
    }
    pub fn attributes(&self) -> usize {
        let ours = |n: &Node| [HOLD, NEXT].iter().filter(|a| n.attributes.contains_key(**a)).count();
        self.nodes.values().map(ours).sum()
    }
    /// Version that a daemon service runs.
    pub fn version(&self, service: &str) -> Option<&str> {
        self.versions.get(&self.service(service)?.definition).map(String::as_str)
    }
    pub fn count(&self, is: impl Fn(&ActionKind) -> bool) -> usize {
        self.log.iter().filter(|a| is(a)).count()
    }
    /// Forgets everything but what is stored: what a crash leaves.
    pub fn crash(&mut self) {
        let stored = serde_json::to_string(self.decider.memory()).unwrap();
        let memory = serde_json::from_str(&stored).unwrap();
        self.decider = Decider::new(self.decider.desired().clone(), memory);
    }

    /// Ten seconds: decide, take those actions that `take` lets through, move the world on.
    pub fn step(&mut self, mut take: impl FnMut(&Action) -> bool) -> Vec<Action> {
        self.now += 10;
        let actions = self.decider.decide_all(&self.fleet, at(self.now)).actions;
        for action in &actions {
            if take(action) {
                self.log.push(action.kind.clone());
                self.act(&action.kind);
            }
        }
        self.schedule();
        self.tell();
        self.measure();
        actions
    }

    pub fn run(&mut self, seconds: i64) {
        for _ in 0..seconds / 10 {
            self.step(|_| true);
        }
    }

    fn register(&mut self, family: &str, version: &str, spec: Str, source: Option<&Str>) -> Str {
        self.revision += 1;
        let arn = definition_arn(&format!("{family}:{}", self.revision));
        let definition = Definition {
            task_role: None,
            arn: arn.clone(),
            hash: arn.clone(),
            active: true,
            containers: vec![SIDECAR.into()],
            sidecar: Some(SidecarMark {
                version: version.into(),
                image: "i".into(),
                source: source.cloned(),
                source_hash: source.cloned(),
                spec: Some(spec),
            }),
            obstacle: None,
            judged_for: None,
        };
        self.versions.insert(arn.clone(), version.to_owned());
        self.fleet.apply(Change::Definition(Box::new(definition)), at(self.now));
        arn
    }

    fn register_daemon(&mut self, agent: &AgentSpec) -> Str {
        self.register("tasuki", &agent.version, agent.fingerprint(), None)
    }

    fn deploy(&mut self, service: &Str, definition: Str) {
        let now = self.now;
        let Some(service) = self.services.get_mut(service) else { return };
        service.definition = definition.clone();
        let mut deployment = deployment(&definition, RolloutState::InProgress);
        deployment.created_at = Some(at(now));
        deployment.id = format!("ecs-svc/{now}").into();
        for old in &mut service.deployments {
            old.primary = false;
        }
        service.deployments.insert(0, deployment);
    }

    fn describe(&mut self, arn: &Str, sidecar: Option<&SidecarSpec>) {
        let known = self.fleet.definition(arn).cloned();
        let mut definition = known.unwrap_or_else(|| Definition {
            task_role: None,
            arn: arn.clone(),
            hash: arn.clone(),
            active: true,
            containers: vec![],
            sidecar: None,
            obstacle: None,
            judged_for: None,
        });
        definition.judged_for = sidecar.map(SidecarSpec::fingerprint);
        self.fleet.apply(Change::Definition(Box::new(definition)), at(self.now));
    }

    fn act(&mut self, kind: &ActionKind) {
        match kind {
            ActionKind::DescribeDefinition { definition, sidecar } => self.describe(definition, sidecar.as_ref()),
            ActionKind::CreateDaemon { service, agent, .. } => {
                let definition = self.register_daemon(agent);
                let name = definition.rsplit('/').next().unwrap().to_owned();
                let service = daemon_service(service, &name);
                self.services.insert(service.arn.clone(), service);
            }
            ActionKind::UpdateDaemon { service, agent, from } => {
                assert_eq!(*from, self.services[service].definition, "compare, then set");
                let definition = self.register_daemon(agent);
                self.services.get_mut(service).unwrap().definition = definition;
            }
            ActionKind::RevertDaemon { service, from, to } => {
                assert_eq!(*from, self.services[service].definition);
                self.services.get_mut(service).unwrap().definition = to.clone();
            }
            ActionKind::DeleteDaemon { service } => drop(self.services.remove(service)),
            ActionKind::PutAttribute { node, name } => {
                self.nodes.get_mut(node).unwrap().attributes.insert(name.to_string(), String::new());
            }
            ActionKind::DeleteAttribute { node, name } => {
                self.nodes.get_mut(node).unwrap().attributes.remove(&**name);
            }
            ActionKind::Inject { service, from, sidecar } => {
                assert_eq!(*from, self.services[service].definition);
                let family = format!("{}-tasuki", self.services[service].name);
                let definition = self.register(&family, &sidecar.agent.version, sidecar.fingerprint(), Some(from));
                self.deploy(service, definition);
            }
            ActionKind::Uninject { service, .. } => {
                let name = self.services[service].name.clone();
                self.deploy(service, definition_arn(&format!("{name}:1")));
            }
            ActionKind::RollBack { service, deployment, .. } => {
                let held = self.services.get_mut(service).unwrap();
                assert_eq!(held.deployments[0].id, *deployment);
                held.deployments.remove(0);
                held.deployments[0].primary = true;
                held.definition = held.deployments[0].definition.clone();
            }
            ActionKind::PromoteDaemon { .. }
            | ActionKind::SettleDaemon { .. }
            | ActionKind::DeleteAgent { .. }
            | ActionKind::ProbeImage { .. }
            | ActionKind::OfferSidecar { .. }
            | ActionKind::WithdrawSidecar { .. } => panic!("not in ECS: {kind:?}"),
            ActionKind::Deregister { definition } => {
                let mut known = self.fleet.definition(definition).unwrap().clone();
                known.active = false;
                self.fleet.apply(Change::Definition(Box::new(known)), at(self.now));
            }
        }
    }

    /// What ECS does within ten seconds.
    fn schedule(&mut self) {
        let mut wanted: BTreeMap<String, Task> = BTreeMap::new();
        for service in self.services.values_mut() {
            if service.daemon {
                for node in self.nodes.values() {
                    let fits = match service.name.ends_with("-next") {
                        true => node.attributes.contains_key(NEXT),
                        false => !node.attributes.contains_key(HOLD),
                    };
                    // Where nobody is connected nothing starts, and nothing ends.
                    if fits && node.active && node.connected {
                        let revision = service.definition.rsplit(':').next().unwrap();
                        let node_id = node.arn.rsplit('/').next().unwrap();
                        let mut task =
                            on_node(task(&format!("{}-{revision}-{node_id}", service.name), &service.name), node_id);
                        (task.definition, task.started_at) = (service.definition.clone(), Some(at(self.now)));
                        task.containers = vec![container(SIDECAR)];
                        wanted.insert(task.id().to_owned(), task);
                    }
                }
                continue;
            }
            let injected = service.definition.contains("-tasuki:");
            let id = service.definition.rsplit('/').next().unwrap().replace(':', "-");
            for i in 0..service.desired {
                let mut task = task(&format!("{id}-{i}"), &service.name);
                (task.definition, task.started_at) = (service.definition.clone(), Some(at(self.now)));
                if injected {
                    task = with_sidecar(task);
                }
                wanted.insert(task.id().to_owned(), task);
            }
            let age = |d: &Deployment| self.now - d.created_at.map_or(0, |c| c.duration_since(at(0)).as_secs());
            // A deployment takes half a minute.
            if service.deployments[0].rollout == RolloutState::InProgress && age(&service.deployments[0]) >= 30 {
                service.deployments.truncate(1);
                service.deployments[0].rollout = RolloutState::Completed;
            }
        }
        let stands = |task: &Task| task.node.as_ref().is_some_and(|node| !self.nodes[node].connected);
        let ends = |(slot, task): &(&String, &Task)| !wanted.contains_key(*slot) && !stands(task);
        let gone: Vec<String> = self.tasks.iter().filter(ends).map(|(slot, _)| slot.clone()).collect();
        for slot in gone {
            let mut task = self.tasks.remove(&slot).unwrap();
            (task.status, task.version) = (TaskStatus::Stopped, 9);
            self.fleet.apply(of_task(task), at(self.now));
        }
        for (slot, mut task) in wanted {
            if !self.tasks.contains_key(&slot) {
                self.started += 1;
                task.arn = task_arn(&format!("{slot}-{}", self.started));
                self.tasks.insert(slot, task);
            }
        }
    }

    /// What observe and the agents say.
    fn tell(&mut self) {
        let now = at(self.now);
        let held: Vec<Str> =
            self.fleet.cluster(CLUSTER).unwrap().services.values().map(|s| s.value.arn.clone()).collect();
        for arn in held.into_iter().filter(|arn| !self.services.contains_key(arn)) {
            self.fleet.apply(Change::ServiceGone(arn), now);
        }
        let changes: Vec<Change> = (self.services.values().cloned().map(of_service))
            .chain(self.nodes.values().cloned().map(of_node))
            .chain(self.tasks.values().cloned().map(of_task))
            .collect();
        for change in changes {
            self.fleet.apply(change, now);
        }
        for task in self.tasks.values() {
            let Some(version) = self.versions.get(&task.definition) else { continue };
            if self.broken.contains(version) {
                continue;
            }
            let id = task.id().to_owned();
            let mut report = match &task.node {
                Some(node) => node_report(&id, node.rsplit('/').next().unwrap(), &[], now),
                None => sidecar_report(&id, now),
            };
            report.heartbeat.version = version.clone();
            self.fleet.apply(of_agent(report), now);
        }
    }

    fn measure(&mut self) {
        let covered = self.nodes.keys().filter(|node| {
            self.tasks.values().any(|t| {
                t.node.as_ref() == Some(node)
                    && self.fleet.agent_of_task(&t.arn).is_some_and(|a| a.is_fresh(at(self.now)))
            })
        });
        self.least_covered = self.least_covered.min(covered.count());
    }
}
