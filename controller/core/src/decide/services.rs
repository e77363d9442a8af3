//! What stands between a task and its agent: the reason of an Uncovered task, and at the same time
//! what must be out of the way before anything is changed.

use super::evidence::id_of;
use super::live_pods;
use super::trace::{Source, Trace};
use super::view::{ClusterView, Wanted, WorkloadView, is_eligible, is_lost};
use crate::action::{DAEMON_SERVICE, EXTERNAL_DAEMON_SERVICE};
use crate::desired::{Monitor, Version};
use crate::fleet::{DeploymentController, LaunchType, RolloutState, Service, Strategy, Task};
use crate::memory::ServiceHistory;
use jiff::{SignedDuration, Timestamp};
use tasuki_api::coverage::Reason;
use tasuki_api::desired::Delivery;

/// So many flips within [`FLIP_WINDOW`] and the service is left to its owner.
pub(super) const FLIPS: usize = 3;
pub(super) const FLIP_WINDOW: SignedDuration = SignedDuration::from_hours(24);
/// One rollout of a service an hour, and four times as long after each flip (aws-facts, section 4).
const SERVICE_BUDGET: SignedDuration = SignedDuration::from_hours(1);

/// Task-wide process namespaces need this platform version (ECS API, pidMode).
const PLATFORM_1_4: Version = Version::release(1, 4, 0);

const INJECT_CALLS: [&str; 4] =
    ["ecs:RegisterTaskDefinition", "ecs:UpdateService", "ecs:DescribeTaskDefinition", "iam:PassRole"];
pub(super) const DAEMON_CALLS: [&str; 5] =
    ["ecs:RegisterTaskDefinition", "ecs:CreateService", "ecs:UpdateService", "ecs:PutAttributes", "iam:PassRole"];

/// Why a task that could carry a sidecar carries none.
pub(super) fn task_reason<T: Trace>(
    workload: &WorkloadView<'_, '_>,
    monitor: &Monitor,
    task: &Task,
    trace: &mut T,
) -> Reason {
    if let Some(reason) = platform(task, trace) {
        return reason;
    }
    if task.launch == LaunchType::KubernetesVirtual {
        return live_pods::reason(workload, monitor, task, trace);
    }
    if workload.cluster.is_batch() {
        trace.detail(|| format!("cluster {} is managed by AWS Batch", workload.cluster.cluster.name));
        return Reason::ManagedByBatch;
    }
    if !workload.is_service {
        trace.detail(|| format!("family {} was run without a service", workload.name));
        return Reason::StandaloneTask;
    }
    let Some(service) = workload.service else {
        trace.detail(|| format!("service {} was not described yet", workload.name));
        return Reason::AwaitingRender;
    };
    tell_service(service, trace);
    // The service already runs something newer than this task.
    let carries = carries_sidecar(workload.cluster, service);
    if carries && service.definition != task.definition {
        trace.detail(|| {
            format!("{} carries the agent, this task runs {}", id_of(&service.definition), id_of(&task.definition))
        });
        return Reason::NeedsNewDeployment;
    }
    if monitor.delivery(&workload.cluster.cluster.name, workload.name) == Delivery::Render {
        trace.detail(|| format!("delivery is Render and {} carries no agent", id_of(&service.definition)));
        return Reason::AwaitingRender;
    }
    let history = workload.cluster.world.memory.services.get(&service.arn);
    match live(workload, monitor, service, history, trace) {
        Way::Blocked(reason) => reason,
        Way::Describe => {
            trace.detail(|| format!("{} is about to be described", id_of(&service.definition)));
            willing(workload, monitor, trace).unwrap_or(Reason::NeedsNewDeployment)
        }
        Way::Open => {
            trace.detail(|| "nothing stands in the way: a deployment with the agent is about to start".to_owned());
            Reason::NeedsNewDeployment
        }
    }
}

/// Whether the definition that a service should run carries the agent, as far as it is known.
pub(super) fn carries_sidecar(cluster: &ClusterView<'_>, service: &Service) -> bool {
    match cluster.world.fleet.definition(&service.definition) {
        Some(definition) => definition.sidecar.is_some(),
        // Not described (or forgotten): a running task of it tells as well.
        None => cluster
            .state
            .workloads
            .get(format!("service:{}", service.name).as_str())
            .into_iter()
            .flat_map(|tasks| tasks.values())
            .any(|t| t.task.definition == service.definition && super::evidence::agent_container(t).is_some()),
    }
}

fn tell_service<T: Trace>(service: &Service, trace: &mut T) {
    trace.fact(Source::Ecs, None, || {
        format!(
            "service {}: {:?} controller, {:?}, {}/{} %, {} of {} tasks run",
            service.name,
            service.controller,
            service.strategy,
            service.minimum_healthy,
            service.maximum,
            service.running,
            service.desired
        )
    });
}

/// What the task's platform does not allow.
fn platform<T: Trace>(task: &Task, trace: &mut T) -> Option<Reason> {
    let family = task.platform_family.as_deref().unwrap_or_default();
    let unsupported = match task.launch {
        // What carries no DaemonSet takes a sidecar on Fargate only.
        LaunchType::KubernetesVirtual => family != "fargate",
        _ => family.to_ascii_lowercase().starts_with("windows"),
    };
    if unsupported {
        trace.detail(|| format!("platform family is {family}"));
        return Some(Reason::UnsupportedPlatform);
    }
    if task.launch == LaunchType::Fargate
        && let Some(version) = &task.platform_version
        && Version::parse(version).is_some_and(|v| v < PLATFORM_1_4)
    {
        trace.detail(|| format!("platform version is {version}; process sharing needs 1.4.0"));
        return Some(Reason::UnsupportedPlatform);
    }
    let architecture = task.architecture.as_deref().unwrap_or("x86_64");
    if !["x86_64", "arm64"].contains(&architecture.to_ascii_lowercase().as_str()) {
        trace.detail(|| format!("architecture is {architecture}"));
        return Some(Reason::UnsupportedArchitecture);
    }
    None
}

/// How far the way to a sidecar is free.
pub(super) enum Way {
    /// This stands in the way.
    Blocked(Reason),
    /// The definition must be described first.
    Describe,
    /// Nothing does.
    Open,
}

/// Whether a new deployment of the service may be started for the agent's sake. Whatever would
/// also block it in mode Enforce comes before the mode itself.
pub(super) fn live<T: Trace>(
    workload: &WorkloadView<'_, '_>,
    monitor: &Monitor,
    service: &Service,
    history: Option<&ServiceHistory>,
    trace: &mut T,
) -> Way {
    let world = workload.cluster.world;
    let Some(wanted) = workload.wanted.as_deref() else {
        trace.detail(|| format!("{} names no agent to place", monitor.name));
        return Way::Blocked(Reason::ObserveOnly);
    };
    if let Some(reason) = standing(workload.cluster, service, trace) {
        return Way::Blocked(reason);
    }
    if let Some(reason) = history.and_then(|h| past(h, wanted, world.now, trace)) {
        return Way::Blocked(reason);
    }
    match world.fleet.definition(&service.definition) {
        Some(definition) if definition.judged_for.as_ref() == Some(&wanted.sidecar_print) => {
            if let Some((reason, detail)) = &definition.obstacle {
                trace.detail(|| detail.clone());
                return Way::Blocked(*reason);
            }
        }
        _ => return Way::Describe,
    }
    if let Some(reason) = willing(workload, monitor, trace) {
        return Way::Blocked(reason);
    }
    if let Some(reason) = passing(workload.cluster, service, trace) {
        return Way::Blocked(reason);
    }
    if !monitor.windows.are_open(world.now) {
        trace.detail(|| format!("waits for its window: {}", monitor.windows.text()));
        return Way::Blocked(Reason::NeedsNewDeployment);
    }
    if let Some(next) = history.and_then(|h| next_turn(h, world.now)) {
        trace.detail(|| format!("its budget of rollouts is used up until {next}"));
        return Way::Blocked(Reason::NeedsNewDeployment);
    }
    Way::Open
}

/// What about the service itself never lets a deployment start.
pub(super) fn standing<T: Trace>(cluster: &ClusterView<'_>, service: &Service, trace: &mut T) -> Option<Reason> {
    let (reason, detail) = match () {
        () if service.controller != DeploymentController::Ecs => {
            (Reason::UnsupportedController, format!("its deployment controller is {:?}", service.controller))
        }
        () if service.express => (Reason::ManagedByExpress, "it is managed by ECS Express Mode".to_owned()),
        () if cluster.is_batch() => {
            (Reason::ManagedByBatch, format!("cluster {} is AWS Batch's", cluster.cluster.name))
        }
        () if service.has_hooks => (Reason::HasLifecycleHooks, "its deployments run lifecycle hooks".to_owned()),
        () if service.strategy != Strategy::Rolling => {
            (Reason::UnsupportedController, "its deployments shift traffic (not ROLLING)".to_owned())
        }
        () if service.minimum_healthy == 0 => {
            (Reason::WouldInterrupt, format!("{} tasks at minimumHealthyPercent 0", service.desired))
        }
        // ECS rounds the ceiling down: without one whole task above it nothing new can start.
        () if u64::from(service.desired) * u64::from(service.maximum) / 100 <= u64::from(service.desired)
            && service.desired > 0 =>
        {
            (Reason::WouldInterrupt, format!("{} tasks at maximumPercent {}", service.desired, service.maximum))
        }
        () if service.maximum <= 100 => (Reason::WouldInterrupt, format!("maximumPercent is {}", service.maximum)),
        () => return None,
    };
    trace.detail(|| detail);
    Some(reason)
}

/// What was tried before and speaks against trying it again.
fn past<T: Trace>(history: &ServiceHistory, wanted: &Wanted, now: Timestamp, trace: &mut T) -> Option<Reason> {
    let flips = history.flipped.iter().filter(|at| now.duration_since(**at) < FLIP_WINDOW).count();
    if flips >= FLIPS {
        trace.detail(|| format!("its owner took the agent out {flips} times within a day"));
        return Some(Reason::Contested);
    }
    if let Some((definition, failure)) = &history.rolled_back
        && history.rolled_back_spec.as_ref() == Some(&wanted.sidecar_print)
    {
        trace.detail(|| format!("{} failed at {}: {}", id_of(definition), failure.at, failure.why));
        return Some(Reason::RolledBack);
    }
    None
}

/// When the service may be rolled again, if that is not now.
fn next_turn(history: &ServiceHistory, now: Timestamp) -> Option<Timestamp> {
    let last = history.injected.last()?;
    let flips = history.flipped.iter().filter(|at| now.duration_since(**at) < FLIP_WINDOW).count();
    // A first flip waits an hour, a second four, a third is Contested.
    let wait = SERVICE_BUDGET.checked_mul(4_i32.pow(flips.saturating_sub(1).min(3) as u32))?;
    last.checked_add(wait).ok().filter(|next| *next > now)
}

/// What of the moment stands in the way and passes by itself.
pub(super) fn passing<T: Trace>(cluster: &ClusterView<'_>, service: &Service, trace: &mut T) -> Option<Reason> {
    let world = cluster.world;
    if let Some((api, refusal)) = cluster.denied(&INJECT_CALLS) {
        trace.detail(|| format!("{api}: {}", refusal.detail));
        return Some(Reason::PermissionDenied);
    }
    if let Some(found) = world.fleet.obstruction(&service.arn, world.now) {
        trace.detail(|| found.detail.clone());
        return Some(found.reason);
    }
    let running =
        service.deployments.len() > 1 || service.deployments.iter().any(|d| d.rollout == RolloutState::InProgress);
    if running {
        trace.detail(|| match service.deployments.first() {
            Some(d) => format!("deployment {} of {} is under way", d.id, id_of(&d.definition)),
            None => "a deployment is under way".to_owned(),
        });
        return Some(Reason::DeploymentInProgress);
    }
    None
}

/// What desired state itself says against it now.
pub(super) fn willing<T: Trace>(workload: &WorkloadView<'_, '_>, monitor: &Monitor, trace: &mut T) -> Option<Reason> {
    unwilling(workload.cluster.world.desired.frozen, monitor, trace).or_else(|| {
        monitor.spec.rollout.paused.then(|| {
            trace.detail(|| format!("{} is paused", monitor.name));
            Reason::Paused
        })
    })
}

pub(super) fn unwilling<T: Trace>(frozen: bool, monitor: &Monitor, trace: &mut T) -> Option<Reason> {
    if !monitor.enforces() {
        trace.detail(|| format!("{} observes only", monitor.name));
        return Some(Reason::ObserveOnly);
    }
    if frozen || monitor.spec.rollout.frozen {
        trace.detail(|| match frozen {
            true => "everything is frozen (`tasuki freeze`)".to_owned(),
            false => format!("{} is frozen", monitor.name),
        });
        return Some(Reason::Frozen);
    }
    None
}

/// Why a task's node has no agent.
pub(super) fn node_reason<T: Trace>(workload: &WorkloadView<'_, '_>, task: &Task, trace: &mut T) -> Reason {
    let cluster = workload.cluster;
    let world = cluster.world;
    if task.launch == LaunchType::ManagedInstances {
        trace.detail(|| "agents on Managed Instances are reported, not placed, by this version".to_owned());
        return Reason::NodeWithoutAgent;
    }
    let node = task.node.as_deref().and_then(|arn| cluster.state.node(arn));
    if let Some(node) = node
        && node.attributes.get("ecs.os-type").is_some_and(|os| os != "linux")
    {
        trace.detail(|| "the node does not run Linux".to_owned());
        return Reason::UnsupportedPlatform;
    }
    let Some(monitor) =
        world.desired.select_cluster(cluster.cluster, task.launch).and_then(|m| world.desired.monitors.get(m))
    else {
        trace.detail(|| "monitors select services here, but none selects the cluster, which owns the nodes".to_owned());
        return Reason::NodeWithoutAgent;
    };
    if monitor.spec.agent.is_none() {
        trace.detail(|| format!("{} names no agent to place", monitor.name));
        return Reason::ObserveOnly;
    }
    let daemon_name = match task.launch {
        LaunchType::External => EXTERNAL_DAEMON_SERVICE,
        _ => DAEMON_SERVICE,
    };
    let daemon = cluster.state.service(daemon_name);
    if let Some(node) = node
        && (!is_eligible(node, task.launch)
            || task.launch == LaunchType::Kubernetes && !node.connected
            || is_lost(node, world.now))
    {
        trace.detail(|| match task.launch {
            LaunchType::Kubernetes => "the node is not Ready; no pod starts there".to_owned(),
            _ if node.active => "the node's ECS agent is disconnected; ECS starts no daemon there".to_owned(),
            _ => "the node is not ACTIVE; ECS starts no daemon there".to_owned(),
        });
        return Reason::NodeWithoutAgent;
    }
    if let Some(node) = node
        && !monitor.takes_node(&node.attributes)
    {
        trace.detail(|| format!("spec.kubernetes.nodes of {} leaves node {} out", monitor.name, id_of(&node.arn)));
        return Reason::NodeWithoutAgent;
    }
    if let Some(taint) = node.and_then(|node| monitor.untolerated(node)) {
        let crate::fleet::Taint { key, value, effect } = taint;
        let equals = if value.is_empty() { "" } else { "=" };
        trace.detail(|| {
            format!(
                "the node has the taint {key}{equals}{value}:{effect}, which spec.kubernetes.tolerations of {} does not tolerate",
                monitor.name
            )
        });
        return Reason::NodeWithoutAgent;
    }
    if daemon.is_none() {
        if let Some(reason) = unwilling(world.desired.frozen, monitor, trace) {
            return reason;
        }
        if let Some((api, refusal)) = cluster.denied(&DAEMON_CALLS) {
            trace.detail(|| format!("{api}: {}", refusal.detail));
            return Reason::PermissionDenied;
        }
        if let Some(found) = world.fleet.obstruction(cluster.arn, world.now) {
            trace.detail(|| found.detail.clone());
            return found.reason;
        }
    }
    trace.detail(|| match (daemon, node) {
        (None, _) if task.launch == LaunchType::Kubernetes => "the agent's DaemonSet is about to be created".to_owned(),
        (None, _) => format!("daemon service {daemon_name} is about to be created"),
        (Some(service), Some(node)) => match service.events.first() {
            Some(event) => format!("no agent task on node {}: {event}", id_of(&node.arn)),
            None if task.launch == LaunchType::Kubernetes => {
                format!("the agent's DaemonSet has made no pod for node {} yet", id_of(&node.arn))
            }
            None => format!("no agent task on node {} ({} MiB free)", id_of(&node.arn), node.free_memory),
        },
        (Some(_), None) => "it is not known on which node it runs".to_owned(),
    });
    Reason::NodeWithoutAgent
}
