//! What judging and acting look at: one cluster, one workload, with everything resolved once.

use crate::action::{AgentSpec, PROBE, SIDECAR, SidecarSpec, is_daemon_service};
use crate::desired::{Desired, Monitor, Selection, namespace_of};
use crate::fleet::{
    Cluster, ClusterState, Container, Fleet, LaunchType, Node, Obstruction, Service, SidecarMark, Str, Task, TaskState,
};
use crate::memory::Memory;
use jiff::{SignedDuration, Timestamp};
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

/// The agent that a monitor wants in one scope.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub agent: AgentSpec,
    pub agent_print: Str,
    pub sidecar: SidecarSpec,
    pub sidecar_print: Str,
}

/// Monitor, Region and scope document.
type WantedKey = (usize, Str, Str);

/// Resolved agents. Bounded by what git says.
#[derive(Debug, Default)]
pub(super) struct WantedCache(Mutex<HashMap<WantedKey, Option<Arc<Wanted>>>>);

impl WantedCache {
    pub fn get(&self, desired: &Desired, monitor: usize, cluster: &Cluster) -> Option<Arc<Wanted>> {
        let key = (monitor, cluster.scope.region.clone(), cluster.aws_scope.clone());
        // Nothing inside panics while it is held; a poisoned cache would still be a right one.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wanted) = known.get(&key) {
            return wanted.clone();
        }
        let resolve = || {
            let found = desired.monitors.get(monitor)?;
            let agent = desired.agent(found, &cluster.scope, &cluster.aws_scope)?;
            let sidecar = desired.sidecar(found, &cluster.scope, &cluster.aws_scope)?;
            let (agent_print, sidecar_print) = (agent.fingerprint(), sidecar.fingerprint());
            Some(Arc::new(Wanted { agent, agent_print, sidecar, sidecar_print }))
        };
        let wanted = resolve();
        known.insert(key, wanted.clone());
        wanted
    }
}

/// What stays the same during one decision.
#[derive(Clone, Copy)]
pub(super) struct World<'a> {
    pub desired: &'a Desired,
    pub fleet: &'a Fleet,
    pub memory: &'a Memory,
    pub wanted: &'a WantedCache,
    pub now: Timestamp,
}

/// One described cluster.
pub(super) struct ClusterView<'a> {
    pub world: World<'a>,
    pub arn: &'a Str,
    pub cluster: &'a Cluster,
    pub state: &'a ClusterState,
    daemons: OnceCell<HashMap<&'a str, Vec<&'a TaskState>>>,
    /// By launch type.
    owners: [OnceCell<Option<usize>>; 6],
    excluded: OnceCell<HashSet<&'a str>>,
}

impl<'a> ClusterView<'a> {
    pub fn new(world: World<'a>, arn: &'a Str, state: &'a ClusterState) -> Option<Self> {
        let cluster = &state.cluster.as_ref()?.value;
        let (daemons, owners, excluded) = Default::default();
        Some(Self { world, arn, cluster, state, daemons, owners, excluded })
    }

    /// The monitor that owns the cluster's daemon on nodes of this launch type: asked for once, not
    /// for each task that is watched from a node.
    pub fn daemon_owner(&self, launch: LaunchType) -> Option<&'a Monitor> {
        let desired = self.world.desired;
        // One place a launch type, in the order of the discriminants.
        let owner = self.owners.get(launch as usize)?;
        let index = *owner.get_or_init(|| desired.select_cluster(self.cluster, launch));
        index.and_then(|index| desired.monitors.get(index))
    }

    /// Daemon tasks on a node.
    pub fn daemons_on(&self, node: &str) -> &[&'a TaskState] {
        let daemons = self.daemons.get_or_init(|| {
            let mut by_node: HashMap<&str, Vec<&TaskState>> = HashMap::new();
            for (group, tasks) in &self.state.workloads {
                if group.strip_prefix("service:").is_some_and(is_daemon_service) {
                    for task in tasks.values() {
                        if let Some(node) = &task.task.node {
                            by_node.entry(node).or_default().push(task);
                        }
                    }
                }
            }
            by_node
        });
        daemons.get(node).map_or(&[], Vec::as_slice)
    }

    /// The sidecar that a namespace's service offers to its pods.
    pub fn offer(&self, service: &Service) -> Option<&'a SidecarMark> {
        self.world.fleet.definition(&service.definition)?.sidecar.as_ref()
    }

    /// Whether git excludes a workload of a namespace whose pods are offered sidecars: what is offered is offered to all
    /// of it. Looked through once, not for each pod.
    pub fn excludes_in(&self, namespace: &str) -> bool {
        let excluded = self.excluded.get_or_init(|| {
            let workloads = self.state.workloads.iter();
            let needy = workloads.filter(|(_, tasks)| tasks.values().any(|state| state.task.needs_sidecar()));
            let views = needy.map(|(group, _)| WorkloadView::named(self, false, group, LaunchType::KubernetesVirtual));
            let excluded = views.filter(|view| {
                matches!(view.selected, Some((_, Selection::ExcludedByGit(_))))
                    && view.monitor().is_some_and(Monitor::offers_sidecars)
            });
            excluded.filter_map(|view| namespace_of(view.name)).collect()
        });
        excluded.contains(namespace)
    }

    pub fn wanted(&self, monitor: usize) -> Option<Arc<Wanted>> {
        self.world.wanted.get(self.world.desired, monitor, self.cluster)
    }

    /// A refusal of one of these calls in this scope.
    pub fn denied(&self, apis: &[&str]) -> Option<(&'a String, &'a Obstruction)> {
        self.world.fleet.denied(&self.cluster.scope).find(|(api, _)| apis.iter().any(|a| api.ends_with(a)))
    }

    /// Whether what Tasuki placed may be taken out again because no monitor selects it any more.
    /// Desired state that enforces nothing at all is more likely a mistake than a wish.
    pub fn may_remove(&self) -> bool {
        let desired = self.world.desired;
        !desired.frozen && desired.monitors.iter().any(|m| m.enforces() && !m.spec.rollout.frozen)
    }

    /// Batch makes its clusters itself and names them so (AWS Batch user guide, compute environments).
    pub fn is_batch(&self) -> bool {
        self.cluster.name.starts_with("AWSBatch")
    }
}

/// One workload on one kind of compute.
pub(super) struct WorkloadView<'a, 'c> {
    pub cluster: &'c ClusterView<'a>,
    /// Service or family name.
    pub name: &'a str,
    /// Absent for standalone tasks, and while a service was not described yet.
    pub service: Option<&'a Service>,
    pub is_service: bool,
    pub launch: LaunchType,
    pub selected: Option<(usize, Selection<'a>)>,
    /// These tasks are our own agents.
    pub own: bool,
    pub wanted: Option<Arc<Wanted>>,
}

impl<'a, 'c> WorkloadView<'a, 'c> {
    /// The workload that a task's group names.
    pub fn new(cluster: &'c ClusterView<'a>, group: &'a str, launch: LaunchType) -> Self {
        match group.split_once(':') {
            Some(("service", name)) => Self::named(cluster, true, name, launch),
            Some((_, name)) => Self::named(cluster, false, name, launch),
            None => Self::named(cluster, false, group, launch),
        }
    }

    /// A service, whether or not it has tasks.
    pub fn named(cluster: &'c ClusterView<'a>, is_service: bool, name: &'a str, launch: LaunchType) -> Self {
        let world = cluster.world;
        let service = if is_service { cluster.state.service(name) } else { None };
        let selected = world.desired.select(cluster.cluster, service, name, launch, world.now);
        let wanted = selected.and_then(|(monitor, _)| cluster.wanted(monitor));
        // A name alone would let anyone hide a service: ECS must say that it is a daemon service
        // and that it carries our tag.
        let own = is_service
            && is_daemon_service(name)
            && service.is_none_or(|s| s.daemon && s.tags.contains_key(crate::action::OWNER_TAG));
        Self { cluster, name, service, is_service, launch, selected, own, wanted }
    }

    pub fn monitor(&self) -> Option<&'a Monitor> {
        self.cluster.world.desired.monitors.get(self.selected?.0)
    }

    /// Whether a task tries the agent's image, and is nobody's: a Job's name alone would let anyone hide a pod.
    pub fn is_trial(&self, task: &Task) -> bool {
        let is_job = || self.name.strip_prefix("Job/").and_then(|name| name.split_once('/'));
        is_job().is_some_and(|(_, name)| name.starts_with(PROBE))
            && self.wanted.as_ref().is_some_and(|wanted| {
                let ours = |c: &Container| *c.name == *SIDECAR && c.image == wanted.agent.image;
                !task.containers.is_empty() && task.containers.iter().all(ours)
            })
    }

    /// Whether a task of this workload is one of our own agents.
    pub fn is_own(&self, task: &TaskState) -> bool {
        self.own && !task.task.containers.is_empty() && task.task.containers.iter().all(|c| &*c.name == SIDECAR)
    }
}

/// A node that has been away for so long is not waited for any more. Until then a rollout waits: a partition or a control
/// plane that comes back has many nodes away for minutes, and what was not handed over would change without a hand-over.
const AWAY: SignedDuration = SignedDuration::from_mins(10);

/// Whether nobody waits for the node.
pub(super) fn is_lost(node: &Node, now: Timestamp) -> bool {
    !node.connected && node.turned_at.is_some_and(|since| now.duration_since(since) >= AWAY)
}

/// Whether a node can carry a daemon of this launch type at all.
pub(super) fn is_eligible(node: &Node, launch: LaunchType) -> bool {
    node.launch == launch && node.active && node.attributes.get("ecs.os-type").is_none_or(|os| os == "linux")
}
