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
//!   └──── a quota, or no monitor wants it for 10 min, or it failed on nodes: Withdraw
//! ```
//! Nothing is done to pods that exist: their owners make them anew when it suits them.

use super::daemon::{UNSELECTED, failed_as, failure_key};
use super::services::willing;
use super::trace::Trace;
use super::view::{ClusterView, Wanted, WorkloadView};
use crate::action::{Action, ActionKind, QUOTA, sidecar_namespace, sidecar_service};
use crate::desired::{Monitor, Selection, namespace_of};
use crate::fleet::{LaunchType, RolloutState, Service, Str, Task};
use jiff::{SignedDuration, Timestamp};
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

/// The API server learns of an offer a moment after it was made, and the clocks of two machines differ.
const SETTLED: SignedDuration = SignedDuration::from_secs(5);
/// So long a namespace without pods that need sidecars is offered them still.
const WITHOUT_PODS: SignedDuration = SignedDuration::from_hours(24);

/// What a namespace's pods need.
#[derive(Default)]
struct Need<'a> {
    /// The monitor that wants sidecars for them, and what they run.
    wanted: Option<(&'a Monitor, Arc<Wanted>)>,
    /// There are pods that need one.
    pods: bool,
}

/// The next step of every namespace that is offered sidecars or has pods that need them, by the arn of its service.
pub(super) fn steps(cluster: &ClusterView<'_>) -> Vec<(Str, Step)> {
    if !cluster.cluster.scope.is_kubernetes() {
        return Vec::new();
    }
    let services = cluster.state.services.values().map(|service| &service.value);
    let offered = services.filter(|service| cluster.offer(service).is_some());
    let offered = offered.filter_map(|service| sidecar_namespace(&service.name));
    let mut namespaces: BTreeMap<&str, Need<'_>> = offered.map(|namespace| (namespace, Need::default())).collect();
    if !namespaces.is_empty() || cluster.world.desired.monitors.iter().any(Monitor::offers_sidecars) {
        for (group, tasks) in &cluster.state.workloads {
            let Some(namespace) = namespace_of(group) else { continue };
            if tasks.values().any(|state| state.task.needs_sidecar()) {
                let need = namespaces.entry(namespace).or_default();
                need.pods = true;
                need.wanted = need.wanted.take().or_else(|| wanted(cluster, group));
            }
        }
    }
    let step = |(namespace, need): (&str, Need<'_>)| {
        let arn = tasuki_api::kubernetes::sidecar(&cluster.cluster.name, namespace).into();
        let step = step(cluster, namespace, &arn, need);
        (arn, step)
    };
    namespaces.into_iter().map(step).collect()
}

/// The monitor that wants sidecars for this workload, and what they run.
fn wanted<'a>(cluster: &ClusterView<'a>, workload: &'a str) -> Option<(&'a Monitor, Arc<Wanted>)> {
    let view = WorkloadView::named(cluster, false, workload, LaunchType::KubernetesVirtual);
    let monitor = view.monitor().filter(|monitor| monitor.offers_sidecars())?;
    let selected = matches!(view.selected, Some((_, Selection::Yes)));
    Some(monitor).filter(|_| selected).zip(view.wanted)
}

fn step(cluster: &ClusterView<'_>, namespace: &str, arn: &Str, need: Need<'_>) -> Step {
    let world = cluster.world;
    let service = cluster.state.service(&sidecar_service(namespace));
    let offer = service.and_then(|service| cluster.offer(service));
    let frozen =
        |monitor: Option<&Monitor>| world.desired.frozen || monitor.is_some_and(|monitor| monitor.spec.rollout.frozen);
    let act = |kind, monitor: &str, why: String| Action {
        scope: cluster.cluster.scope.clone(),
        cluster: cluster.arn.clone(),
        monitor: monitor.into(),
        why,
        kind,
    };
    let withdraw = |monitor: &str, why: String| {
        offer.map(|_| act(ActionKind::WithdrawSidecar { service: arn.clone() }, monitor, why))
    };
    let memory = world.memory;
    let quota = service.and_then(|service| service.tags.get(QUOTA));
    // A pod of the owner's could be refused from now on: that waits for nothing.
    if let (Some(quota), Some(_)) = (quota, offer) {
        let why = format!("ResourceQuota {quota} counts CPU or memory: a sidecar could keep a pod of its owner's out");
        return Step { action: withdraw("", why), ..Step::default() };
    }
    let monitor = need.wanted.as_ref().map(|(monitor, _)| *monitor).or_else(|| monitor_of(cluster, namespace));
    let is_wanted = monitor.is_some_and(|monitor| monitor.spec.kubernetes.delivery == Delivery::Live);
    if !is_wanted || !need.pods {
        if offer.is_none() {
            return Step::default();
        }
        let since = memory.unselected.get(arn).copied().unwrap_or(world.now);
        let (limit, why) = match is_wanted {
            false => (UNSELECTED, "no monitor wants sidecars in the namespace any more"),
            true => (WITHOUT_PODS, "no pod of the namespace needs a sidecar any more"),
        };
        let over = world.now.duration_since(since) >= limit && !frozen(monitor);
        return Step { action: withdraw("", why.to_owned()).filter(|_| over), unselected: Some(since) };
    }
    let stop = match monitor {
        _ if frozen(monitor) => return Step::default(),
        Some(monitor) if !monitor.enforces() => Some("the monitor only observes, so new pods are left as they are"),
        _ if cluster.excludes_in(namespace) => {
            Some("a workload of the namespace is excluded, and what is offered is offered to all")
        }
        _ => None,
    };
    if let Some(why) = stop {
        return Step {
            action: withdraw(monitor.map_or("", |monitor| &monitor.name), why.to_owned()),
            ..Step::default()
        };
    }
    let Some((monitor, wanted)) = need.wanted else { return Step::default() };
    // By the name of the cluster are kept the agents that failed on its nodes.
    let failed = memory.failed.get(cluster.arn);
    let has_failed = |key: &Str| failed.is_some_and(|failed| failed.contains_key(key));
    if let Some(mark) = offer
        && has_failed(&failed_as(&mark.image, mark.spec.as_deref().unwrap_or_default()))
    {
        let why = format!("agent {} has failed on nodes of the cluster", mark.version);
        return Step { action: withdraw(&monitor.name, why), ..Step::default() };
    }
    let is_offered = offer.is_some_and(|mark| mark.spec.as_ref() == Some(&wanted.agent_print));
    // What is being proved on nodes is not given to pods yet.
    let waits = monitor.spec.rollout.paused || (offer.is_some() && memory.rollouts.contains_key(cluster.arn));
    if is_offered || quota.is_some() || waits || has_failed(&failure_key(&wanted)) {
        return Step::default();
    }
    let agent = wanted.agent.clone();
    let service_arn = arn.clone();
    let (kind, why) = match service.and_then(|service| probe(service, &wanted.agent_print)) {
        Some((RolloutState::Completed, _)) => {
            let why = format!("agent {} was pulled and run in namespace {namespace}", agent.version);
            (ActionKind::OfferSidecar { service: service_arn, agent }, why)
        }
        Some(_) => return Step::default(),
        None if world.fleet.obstruction(arn, world.now).is_some() => return Step::default(),
        None => {
            let why = format!("pods of namespace {namespace} run where no node agent can watch them");
            (ActionKind::ProbeImage { service: service_arn, agent }, why)
        }
    };
    Step { action: Some(act(kind, &monitor.name, why)), ..Step::default() }
}

/// The monitor that selects a namespace, whatever runs in it.
fn monitor_of<'a>(cluster: &ClusterView<'a>, namespace: &str) -> Option<&'a Monitor> {
    let (desired, launch) = (cluster.world.desired, LaunchType::KubernetesVirtual);
    let whole = format!("Namespace/{namespace}/");
    let (index, _) = desired.select(cluster.cluster, None, &whole, launch, cluster.world.now)?;
    desired.monitors.get(index)
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
            let is_newer = task
                .created_at
                .zip(service.created_at)
                .is_some_and(|(made, offered)| made.duration_since(offered) > SETTLED);
            trace.detail(|| match is_newer {
                false => format!("sidecars come to pods of namespace {namespace} that are made from now on"),
                true => "the API server made it without the sidecar that its namespace is offered: it has label \
                         tasuki.dev/sidecar=false, hostNetwork, spec.resources or a volume tasuki-token, or its \
                         namespace is held to Pod Security `restricted`"
                    .to_owned(),
            });
            return if is_newer { Reason::AwaitingRender } else { Reason::StartedBeforeMonitoring };
        }
        if let Some((RolloutState::Failed, why)) = probe(service, &agent.agent_print) {
            trace.detail(|| format!("namespace {namespace}: {}", why.map_or("the agent did not run", |why| why)));
            return Reason::ImageNotPullable;
        }
    }
    let failed = cluster.world.memory.failed.get(cluster.arn);
    if let Some(failure) = failed.and_then(|failed| failed.get(&failure_key(agent))) {
        trace.detail(|| format!("agent {} failed on nodes of the cluster: {}", agent.agent.version, failure.why));
        return Reason::RolledBack;
    }
    if let Some(reason) = willing(workload, monitor, trace) {
        return reason;
    }
    if cluster.excludes_in(namespace) {
        trace.detail(|| {
            format!(
                "a workload of namespace {namespace} is excluded by git, and what is offered is offered to all of it"
            )
        });
        return Reason::AwaitingRender;
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
