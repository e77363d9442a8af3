//! Sidecars of Kubernetes pods under `delivery: Live`: what each namespace is offered.
//!
//! The API server adds the sidecar to new pods, by a policy of the chart's that reads what is offered to a pod's
//! namespace. A namespace is a service here ([`sidecar_service`]): what it is offered is its definition, a pod that
//! tries the agent's image in it is its deployment, a quota that a sidecar would use up is a tag.
//!
//! ```text
//!           none there: Probe              it ran: Offer
//!  Bare ────────────────────▶ Probing ───────────────────▶ Offered ── another agent is wanted: Probe, Offer
//!   ▲                            │ it did not: ImageNotPullable       │
//!   └──── a quota, or no monitor selects the namespace for 10 min: Withdraw
//! ```
//! Nothing is done to pods that exist: their owners make them anew when it suits them.

use super::daemon::{UNSELECTED, failure_key};
use super::services::{unwilling, willing};
use super::trace::{Silent, Trace};
use super::view::{ClusterView, Wanted, WorkloadView};
use crate::action::{Action, ActionKind, QUOTA, sidecar_namespace, sidecar_service};
use crate::desired::{Monitor, Selection, namespace_of};
use crate::fleet::{LaunchType, RolloutState, Service, Str, Task};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use tasuki_api::coverage::Reason;
use tasuki_api::desired::Delivery;

/// What a namespace wants done and remembered.
#[derive(Default)]
pub(super) struct Step {
    pub action: Option<Action>,
    /// Since when no monitor wants the sidecars that the namespace is offered.
    pub unselected: Option<Timestamp>,
}

/// The next step of every namespace that is offered sidecars or has pods that need them, by the arn of its service.
pub(super) fn steps(cluster: &ClusterView<'_>) -> Vec<(Str, Step)> {
    if !cluster.cluster.scope.is_kubernetes() {
        return Vec::new();
    }
    let offered = cluster.state.services.values().map(|service| &service.value).filter_map(|service| {
        sidecar_namespace(&service.name).map(|namespace| (namespace, cluster.offer(service).is_some()))
    });
    // Every namespace that a quota counts in is known, too; it concerns nobody.
    let mut namespaces: BTreeMap<&str, Option<_>> =
        offered.filter(|(_, is_offered)| *is_offered).map(|(namespace, _)| (namespace, None)).collect();
    if cluster.world.desired.monitors.iter().any(is_live) {
        for (group, tasks) in &cluster.state.workloads {
            let Some(namespace) = namespace_of(group) else { continue };
            let here = || tasks.values().any(|state| needs_sidecar(&state.task));
            if namespaces.get(namespace).is_none_or(Option::is_none) && here() {
                let found = wanted(cluster, group);
                namespaces.insert(namespace, found);
            }
        }
    }
    let step = |(namespace, wanted): (&str, Option<_>)| {
        let arn = tasuki_api::kubernetes::sidecar(&cluster.cluster.name, namespace).into();
        let step = step(cluster, namespace, &arn, wanted);
        (arn, step)
    };
    namespaces.into_iter().map(step).collect()
}

fn is_live(monitor: &Monitor) -> bool {
    monitor.enforces() && monitor.spec.kubernetes.delivery == Delivery::Live
}

/// Whether it runs where only a sidecar can watch it.
fn needs_sidecar(task: &Task) -> bool {
    task.launch == LaunchType::KubernetesVirtual && task.platform_family.as_deref() == Some("fargate")
}

/// The monitor that wants sidecars for this workload, and what they run.
fn wanted<'a>(cluster: &ClusterView<'a>, workload: &'a str) -> Option<(&'a Monitor, Arc<Wanted>)> {
    let view = WorkloadView::named(cluster, false, workload, LaunchType::KubernetesVirtual);
    let monitor = view.monitor().filter(|monitor| is_live(monitor))?;
    let selected = matches!(view.selected, Some((_, Selection::Yes)));
    selected.then_some(monitor).zip(view.wanted)
}

fn step(cluster: &ClusterView<'_>, namespace: &str, arn: &Str, found: Option<(&Monitor, Arc<Wanted>)>) -> Step {
    let world = cluster.world;
    let service = cluster.state.service(&sidecar_service(namespace));
    let offer = service.and_then(|service| cluster.offer(service));
    let act = |kind, monitor: &str, why: String| Action {
        scope: cluster.cluster.scope.clone(),
        cluster: cluster.arn.clone(),
        monitor: monitor.into(),
        why,
        kind,
    };
    let withdraw = |monitor: &str, why: &str| {
        Some(act(ActionKind::WithdrawSidecar { service: arn.clone() }, monitor, why.to_owned()))
    };
    let Some((monitor, wanted)) = found.or_else(|| of_namespace(cluster, namespace)) else {
        if offer.is_none() || is_wanted_at_all(cluster, namespace) {
            return Step::default();
        }
        let since = world.memory.unselected.get(arn).copied().unwrap_or(world.now);
        let over = world.now.duration_since(since) >= UNSELECTED && cluster.may_remove();
        let action = if over { withdraw("", "no monitor wants sidecars in the namespace any more") } else { None };
        return Step { action, unselected: Some(since) };
    };
    let unwilling = unwilling(world.desired.frozen, monitor, &mut Silent).is_some() || monitor.spec.rollout.paused;
    if unwilling {
        return Step::default();
    }
    let quota = service.and_then(|service| service.tags.get(QUOTA));
    if let Some(quota) = quota {
        let why =
            || format!("ResourceQuota {quota} counts CPU or memory: a sidecar could keep a pod of its owner's out");
        return Step { action: offer.and_then(|_| withdraw(&monitor.name, &why())), ..Step::default() };
    }
    let is_offered = offer.is_some_and(|mark| mark.spec.as_ref() == Some(&wanted.agent_print));
    // By the name of the cluster are kept the agents that failed on its nodes.
    let failed = world.memory.failed.get(cluster.arn);
    if is_offered || failed.is_some_and(|failed| failed.contains_key(&failure_key(&wanted))) {
        return Step::default();
    }
    let agent = wanted.agent.clone();
    let (service_arn, version) = (arn.clone(), &wanted.agent.version);
    let kind = match service.and_then(|service| probe(service, &wanted.agent_print)) {
        Some((RolloutState::Completed, _)) => ActionKind::OfferSidecar { service: service_arn, agent },
        Some(_) => return Step::default(),
        None if world.fleet.obstruction(arn, world.now).is_some() => return Step::default(),
        None => ActionKind::ProbeImage { service: service_arn, agent },
    };
    let why = match kind {
        ActionKind::OfferSidecar { .. } => format!("agent {version} was pulled and run in namespace {namespace}"),
        _ => format!("pods of namespace {namespace} run where no node agent can watch them"),
    };
    Step { action: Some(act(kind, &monitor.name, why)), ..Step::default() }
}

/// The monitor of a namespace in which no pod needs a sidecar just now.
fn of_namespace<'a>(cluster: &ClusterView<'a>, namespace: &str) -> Option<(&'a Monitor, Arc<Wanted>)> {
    let (index, monitor) = monitor_of(cluster, namespace)?;
    Some(monitor).filter(|monitor| is_live(monitor)).zip(cluster.wanted(index))
}

/// Whether a monitor selects the namespace at all, wants sidecars there, and only does not enforce it now.
fn is_wanted_at_all(cluster: &ClusterView<'_>, namespace: &str) -> bool {
    monitor_of(cluster, namespace).is_some_and(|(_, monitor)| monitor.spec.kubernetes.delivery == Delivery::Live)
}

fn monitor_of<'a>(cluster: &ClusterView<'a>, namespace: &str) -> Option<(usize, &'a Monitor)> {
    let (desired, launch) = (cluster.world.desired, LaunchType::KubernetesVirtual);
    let whole = format!("Namespace/{namespace}/");
    let (index, _) = desired.select(cluster.cluster, None, &whole, launch, cluster.world.now)?;
    Some((index, desired.monitors.get(index)?))
}

/// How the trial of this agent went; its words where it failed.
fn probe<'s>(service: &'s Service, print: &str) -> Option<(RolloutState, Option<&'s Str>)> {
    let mut tried = service.deployments.iter().filter(|probe| *probe.definition == *print);
    tried.next().map(|probe| (probe.rollout, probe.rollout_reason.as_ref()))
}

/// Why a pod that needs a sidecar carries none.
pub(super) fn reason<T: Trace>(
    workload: &WorkloadView<'_, '_>,
    monitor: &Monitor,
    task: &Task,
    trace: &mut T,
) -> Reason {
    if monitor.spec.kubernetes.delivery == Delivery::Render {
        trace.detail(|| "its node can carry no DaemonSet, and the pod carries no sidecar".to_owned());
        return Reason::AwaitingRender;
    }
    let Some(agent) = workload.wanted.as_deref() else {
        trace.detail(|| format!("{} names no agent to place", monitor.name));
        return Reason::ObserveOnly;
    };
    let cluster = workload.cluster;
    let namespace = namespace_of(workload.name).unwrap_or_default();
    let service = cluster.state.service(&sidecar_service(namespace));
    if let Some(service) = service {
        if let Some(quota) = service.tags.get(QUOTA) {
            trace.detail(|| {
                format!(
                    "ResourceQuota {quota} of namespace {namespace} counts CPU or memory, and a sidecar would use it up"
                )
            });
            return Reason::NoRoom;
        }
        if cluster.offer(service).is_some() {
            let is_newer = task.created_at.zip(service.created_at).is_some_and(|(made, offered)| made > offered);
            trace.detail(|| match is_newer {
                false => format!("sidecars come to pods of namespace {namespace} that are made from now on"),
                true => "the API server made it without the sidecar that its namespace is offered: by label \
                         tasuki.dev/sidecar=false, or because it uses the node's network"
                    .to_owned(),
            });
            return if is_newer { Reason::AwaitingRender } else { Reason::StartedBeforeMonitoring };
        }
        if let Some((RolloutState::Failed, why)) = probe(service, &agent.agent_print) {
            trace.detail(|| format!("namespace {namespace}: {}", why.map_or("the agent did not run", |why| why)));
            return Reason::ImageNotPullable;
        }
    }
    if let Some(reason) = willing(workload, monitor, trace) {
        return reason;
    }
    let arn = tasuki_api::kubernetes::sidecar(&cluster.cluster.name, namespace);
    if let Some(found) = cluster.world.fleet.obstruction(&arn, cluster.world.now) {
        trace.detail(|| found.detail.clone());
        return found.reason;
    }
    trace.detail(|| {
        format!("the agent's image is being tried in namespace {namespace}; pods that are made after that get it")
    });
    Reason::StartedBeforeMonitoring
}
