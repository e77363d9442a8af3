//! The sidecar of one service under `delivery: Live`.
//!
//! ```text
//!            way is open: Inject               COMPLETED
//!  Bare ───────────────────────▶ Deploying ─────────────▶ Carrying ──┐ outdated, onOutdated: Roll
//!   ▲ ▲                             │   ▲                    │  │     │ (Inject again)
//!   │ └─────── worse: RollBack ─────┘   └────────────────────┘◀─┘─────┘
//!   └──── the owner deploys without it (a flip; three in a day: Contested) or Uninject
//! ```
//! With `onFailure: Pause` what got worse is remembered and stays as it is. Which state a service is in is read from the fleet; memory holds only what ECS forgets: when it
//! was injected, how often its owner took the sidecar out, and what made it worse.

use super::evidence::{agent_container, container_failure, id_of};
use super::services::{Way, live, passing, standing, unwilling};
use super::trace::{Silent, Told};
use super::view::{ClusterView, Wanted, WorkloadView};
use crate::action::{Action, ActionKind, FAMILY_SUFFIX, is_daemon_service};
use crate::desired::{Monitor, Selection};
use crate::fleet::{Deployment, LaunchType, RolloutState, Service, Str, TaskStatus};
use crate::memory::{Failure, ServiceHistory};
use jiff::Timestamp;
use tasuki_api::desired::{Delivery, OnFailure, OnOutdated};

/// Tasks of a deployment that may fail to start before it counts as worse: one may be chance.
const FAILED_TASKS: u32 = 2;
/// Times kept per service (docs of [`ServiceHistory`]).
const TIMES: usize = 10;

/// What a service wants done and remembered.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub action: Option<Action>,
    /// Its history from now on, where it changed.
    pub history: Option<ServiceHistory>,
}

/// Family of a definition's ARN.
pub(super) fn family(definition: &str) -> &str {
    let name = id_of(definition);
    name.rsplit_once(':').map_or(name, |(family, _)| family)
}

/// Whether a definition is one that the controller injected. Until it was described its family tells.
pub(super) fn is_injected(cluster: &ClusterView<'_>, definition: &str) -> bool {
    family(definition).ends_with(FAMILY_SUFFIX)
        && cluster
            .world
            .fleet
            .definition(definition)
            .is_none_or(|d| d.sidecar.as_ref().is_some_and(|mark| mark.source.is_some()))
}

/// Whether a deployment of ours is under way there.
pub(super) fn is_deploying(cluster: &ClusterView<'_>, service: &Service) -> bool {
    ongoing(service).is_some() && is_injected(cluster, &service.definition)
}

fn ongoing(service: &Service) -> Option<&Deployment> {
    let primary = service.deployments.iter().find(|d| d.primary)?;
    (primary.rollout == RolloutState::InProgress && primary.definition == service.definition).then_some(primary)
}

/// The next step for one service. `room`: whether one more service may be deployed just now.
pub(super) fn step(cluster: &ClusterView<'_>, service: &Service, room: bool) -> Step {
    let world = cluster.world;
    if !service.active || service.daemon || is_daemon_service(&service.name) {
        return Step::default();
    }
    let injected = is_injected(cluster, &service.definition);
    if service.launch != LaunchType::Fargate && !injected {
        return Step::default();
    }
    let Some((_, kept)) = cluster.state.services.get_key_value(&service.name) else { return Step::default() };
    let workload = WorkloadView::named(cluster, true, &kept.value.name, service.launch);
    let monitor = workload.monitor();
    let is_live = |m: &Monitor| m.delivery(&cluster.cluster.name, &service.name) == Delivery::Live;
    let selected = monitor.filter(|_| matches!(workload.selected, Some((_, Selection::Yes))));

    let before = world.memory.services.get(&service.arn);
    let mut history = before.cloned().unwrap_or_default();
    let willing = |monitor: &Monitor| unwilling(world.desired.frozen, monitor, &mut Silent).is_none();
    // Where nothing is put back nothing can be fought over.
    let live_here = selected.is_some_and(|monitor| is_live(monitor) && willing(monitor));
    note_flips(&mut history, service, injected, live_here, world.now);
    let mut action = None;
    let act = |kind, monitor: &str, why: String| {
        let (scope, cluster) = (cluster.cluster.scope.clone(), cluster.arn.clone());
        Some(Action { scope, cluster, monitor: monitor.into(), why, kind })
    };
    let arn = service.arn.clone();
    match (selected, workload.wanted.as_deref()) {
        (Some(monitor), Some(wanted)) if injected && ongoing(service).is_some() => {
            if willing(monitor)
                && let Some(deployment) = ongoing(service)
                && let Some(why) = worse(cluster, service, deployment, monitor)
            {
                let definition = deployment.definition.clone();
                if history.rolled_back.as_ref().is_none_or(|(known, _)| *known != definition) {
                    history.rolled_back = Some((definition.clone(), Failure { at: world.now, why: why.clone() }));
                    let spec = spec_of(cluster, &definition);
                    history.rolled_back_spec = spec.or_else(|| Some(wanted.sidecar_print.clone()));
                }
                if monitor.spec.rollout.on_failure == OnFailure::Rollback {
                    let kind = ActionKind::RollBack { service: arn, deployment: deployment.id.clone(), definition };
                    action = act(kind, &monitor.name, why);
                }
            }
        }
        (Some(monitor), Some(wanted)) if is_live(monitor) => {
            let why = match injected {
                false if super::services::carries_sidecar(cluster, service) => None, // the owner's own
                false => Some(format!("{} carries no agent", id_of(&service.definition))),
                true => outdated(cluster, service, monitor, wanted),
            };
            if let Some(why) = why {
                let (from, sidecar) = (service.definition.clone(), wanted.sidecar.clone());
                let kind = match live(&workload, monitor, service, Some(&history), &mut Silent) {
                    Way::Open if room => Some(ActionKind::Inject { service: arn, from, sidecar }),
                    Way::Describe => Some(ActionKind::DescribeDefinition { definition: from, sidecar: Some(sidecar) }),
                    Way::Open | Way::Blocked(_) => None,
                };
                action = kind.and_then(|kind| act(kind, &monitor.name, why));
            }
        }
        (None, _) if injected && cluster.may_remove() => {
            let free =
                standing(cluster, service, &mut Silent).is_none() && passing(cluster, service, &mut Silent).is_none();
            if free && room {
                let kind = ActionKind::Uninject { service: arn, from: service.definition.clone() };
                action = act(kind, "", "no monitor selects the service any more".to_owned());
            }
        }
        _ => {}
    }
    let changed = before.map_or(history != ServiceHistory::default(), |b| *b != history);
    Step { action, history: changed.then_some(history) }
}

/// Fingerprint of the spec that an injected definition was made from.
fn spec_of(cluster: &ClusterView<'_>, definition: &str) -> Option<Str> {
    cluster.world.fleet.definition(definition)?.sidecar.as_ref()?.spec.clone()
}

/// Why the injected definition should be made anew, if it should.
fn outdated(cluster: &ClusterView<'_>, service: &Service, monitor: &Monitor, wanted: &Wanted) -> Option<String> {
    if monitor.spec.ecs.fargate.on_outdated != OnOutdated::Roll {
        return None;
    }
    match cluster.world.fleet.definition(&service.definition) {
        Some(definition) => {
            let mark = definition.sidecar.as_ref()?;
            let differs = mark.spec.as_ref() != Some(&wanted.sidecar_print);
            differs.then(|| format!("its agent {} is to become {}", mark.version, wanted.agent.version))
        }
        None => Some("its agent is not known yet".to_owned()),
    }
}

/// Notices injections and what became of them.
fn note_flips(history: &mut ServiceHistory, service: &Service, injected: bool, live: bool, now: Timestamp) {
    let push = |times: &mut Vec<Timestamp>| {
        times.push(now);
        let surplus = times.len().saturating_sub(TIMES);
        times.drain(..surplus);
    };
    if injected {
        if history.carries.as_ref() != Some(&service.definition) {
            history.carries = Some(service.definition.clone());
            push(&mut history.injected);
        }
        return;
    }
    let Some(carried) = history.carries.take() else { return };
    if history.rolled_back.as_ref().is_some_and(|(definition, _)| *definition == carried) {
        return;
    }
    // ECS's own circuit breaker took it back: that is a failure of ours, not a wish of the owner's.
    let broke = service
        .deployments
        .iter()
        .find(|d| d.definition == carried && (d.rollout == RolloutState::Failed || d.failed >= FAILED_TASKS));
    if let Some(deployment) = broke {
        let why = deployment.rollout_reason.as_deref().unwrap_or("the deployment failed").to_owned();
        history.rolled_back = Some((carried, Failure { at: now, why }));
    } else if live {
        push(&mut history.flipped);
    }
}

/// Whether the deployment makes the service worse, and how.
fn worse(cluster: &ClusterView<'_>, service: &Service, deployment: &Deployment, monitor: &Monitor) -> Option<String> {
    if deployment.failed >= FAILED_TASKS {
        let why = deployment
            .rollout_reason
            .as_deref()
            .or(service.events.first().map(|e| &**e))
            .unwrap_or("ECS gives no reason");
        return Some(format!("{} tasks of it failed: {why}", deployment.failed));
    }
    let world = cluster.world;
    let deadline = monitor.deadline();
    let tasks = cluster.state.tasks_of(&service.name).filter(|t| {
        t.task.definition == deployment.definition && !t.task.desired_stopped && t.task.status <= TaskStatus::Running
    });
    for state in tasks {
        let mut told = Told::default();
        if agent_container(state).and_then(|c| container_failure(c, &mut told)).is_some() {
            let why = told.detail.unwrap_or_default();
            return Some(format!("task {}: {why}", state.task.id()));
        }
        let up = state.task.started_at.filter(|_| state.task.status == TaskStatus::Running);
        if let Some(up) = up
            && state.reported_at.is_none()
            && world.now.duration_since(up) >= deadline
        {
            return Some(format!(
                "task {}: its agent did not report within {}",
                state.task.id(),
                monitor.spec.rollout.deadline
            ));
        }
    }
    None
}
