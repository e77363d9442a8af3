//! The verdict on one task, in the order of docs/concepts/coverage.md.
//!
//! ```text
//!  selected? ─no─▶ Excluded
//!     │ excluded by git or an allowed tag ─▶ Excluded
//!  agent's container failed (ECS) ─▶ Unhealthy
//!  fresh report names it ─▶ whole, deep, current enough? ─yes─▶ Covered · no ─▶ Unhealthy
//!  younger than grace, or the controller is too young to have heard its agent ─▶ Starting
//!  an agent is placed ─▶ Unhealthy: AgentNotReporting
//!  else ─▶ Uncovered, with what stands in the way
//! ```

use super::evidence::{agent_container, best_agent, container_failure, id_of, weakness};
use super::services;
use super::trace::{Source, Trace};
use super::verdict::TaskVerdict;
use super::view::{WorkloadView, World};
use crate::desired::{Monitor, Selection};
use crate::fleet::{Agent, AgentId, LaunchType, TaskState, TaskStatus};
use jiff::{SignedDuration, Timestamp};
use tasuki_api::agent::{AgentKind, HEARTBEATS_UNTIL_SILENT, NODE_HEARTBEAT_SECONDS, SIDECAR_HEARTBEAT_SECONDS};
use tasuki_api::coverage::{Currency, Placement, Reason, Verdict};

/// How an agent gets to tasks of this launch type.
pub(super) fn placement_of(launch: LaunchType) -> Placement {
    match launch {
        LaunchType::Fargate | LaunchType::KubernetesVirtual => Placement::Sidecar,
        LaunchType::Ec2 | LaunchType::External => Placement::DaemonService,
        LaunchType::ManagedInstances => Placement::ManagedDaemon,
        LaunchType::Kubernetes => Placement::DaemonSet,
    }
}

/// Judges one task. `since` of the answer is `now`; the caller keeps the older one while nothing changed.
pub(super) fn judge<T: Trace>(workload: &WorkloadView<'_, '_>, state: &TaskState, trace: &mut T) -> TaskVerdict {
    let world = workload.cluster.world;
    let task = &state.task;
    let mut verdict = TaskVerdict {
        verdict: Verdict::Excluded,
        reason: None,
        placement: None,
        depth: None,
        currency: None,
        monitor: None,
        agent: None,
        since: world.now,
    };
    trace.fact(Source::of(state.task.launch), Some(state.seen_at), || {
        format!("{:?}, version {}, definition {}", task.status, task.version, id_of(&task.definition))
    });
    if workload.is_own(state) {
        trace.detail(|| "is one of Tasuki's own agents".to_owned());
        return verdict;
    }
    if workload.is_trial(task) {
        trace.detail(|| "tries the agent's image in its namespace".to_owned());
        return verdict;
    }
    let Some(((index, selection), monitor)) = workload.selected.zip(workload.monitor()) else {
        trace.detail(|| "no monitor selects it".to_owned());
        return verdict;
    };
    verdict.monitor = u16::try_from(index).ok();
    match selection {
        Selection::ExcludedByGit(reason) => {
            trace.detail(|| format!("excluded by {}: {reason}", monitor.name));
            return verdict;
        }
        Selection::ExcludedByTag => {
            trace.detail(|| {
                format!("excluded by tag {}=false, which {} allows", crate::desired::EXCLUSION_TAG, monitor.name)
            });
            return verdict;
        }
        Selection::No | Selection::Yes => {}
    }
    trace.fact(Source::Desired, None, || {
        format!("selected by {} (priority {}, {:?})", monitor.name, monitor.spec.priority, monitor.spec.mode)
    });
    let placement = if agent_container(state).is_some() { Placement::Sidecar } else { placement_of(task.launch) };
    verdict.placement = Some(placement);

    let agent = best_agent(world, state);
    if let Some((id, agent)) = agent {
        tell_currency(workload, monitor, agent, id, &mut verdict, trace);
    }
    let fresh = agent.filter(|(_, agent)| agent.is_fresh(world.now)).map(|(_, agent)| agent);
    let (outcome, reason) = match placement {
        Placement::Sidecar => match agent_container(state) {
            Some(_) => with_sidecar(workload, monitor, state, fresh, trace),
            None => without_sidecar(workload, monitor, state, trace),
        },
        _ => on_node(workload, monitor, state, agent.map(|(_, a)| a), fresh, placement, trace),
    };
    (verdict.verdict, verdict.reason) = (outcome, reason);
    if outcome != Verdict::Covered && outcome != Verdict::Unhealthy {
        (verdict.depth, verdict.currency, verdict.agent) = (None, None, None);
    }
    verdict
}

/// A node agent that was never heard has so long from when it runs: the intervals that the gateway asks for by default.
const FIRST_HEARTBEATS: SignedDuration =
    SignedDuration::from_secs((NODE_HEARTBEAT_SECONDS * HEARTBEATS_UNTIL_SILENT) as i64);
/// The same for a sidecar, where the controller has just begun to listen.
const FIRST_OF_SIDECARS: SignedDuration =
    SignedDuration::from_secs((SIDECAR_HEARTBEAT_SECONDS * HEARTBEATS_UNTIL_SILENT) as i64);

type Outcome = (Verdict, Option<Reason>);

const COVERED: Outcome = (Verdict::Covered, None);
const STARTING: Outcome = (Verdict::Starting, None);

fn unhealthy(reason: Reason) -> Outcome {
    (Verdict::Unhealthy, Some(reason))
}

fn tell_currency<T: Trace>(
    workload: &WorkloadView<'_, '_>,
    monitor: &Monitor,
    agent: &Agent,
    id: AgentId,
    verdict: &mut TaskVerdict,
    trace: &mut T,
) {
    let heartbeat = &agent.report.heartbeat;
    verdict.agent = Some(id);
    verdict.depth = Some(heartbeat.depth);
    let owner = owner_of(workload, monitor, agent);
    let wanted = owner.spec.agent.as_ref().map(|a| a.version.as_str());
    let policy = &*owner.policy_hash;
    verdict.currency = Some(if wanted.is_some_and(|v| v != &*agent.digest.version) {
        Currency::Outdated
    } else if !policy.is_empty() && &*agent.digest.policy != policy {
        Currency::Stale
    } else {
        Currency::Current
    });
    trace.fact(Source::Agent, Some(agent.report.received_at), || {
        let report = &agent.report;
        let address = if report.address_verified { "the task's own address" } else { "an unverified address" };
        let role = if report.signed { "its task's role signed" } else { "no role signed" };
        format!("{:?} agent in task {} names this task, from {address}, {role}", report.kind, id_of(&report.task))
    });
}

/// The monitor whose version and policy an agent has: a node's agent belongs to the monitor that owns the
/// cluster's daemon, whichever monitor selects the task that it watches.
fn owner_of<'m>(workload: &'m WorkloadView<'_, '_>, monitor: &'m Monitor, agent: &Agent) -> &'m Monitor {
    let cluster = workload.cluster;
    let desired = cluster.world.desired;
    if agent.report.kind == AgentKind::Sidecar || desired.monitors.len() < 2 {
        return monitor;
    }
    cluster.daemon_owner(workload.launch).unwrap_or(monitor)
}

/// Younger than its grace, counted from when it runs.
fn is_young(monitor: &Monitor, state: &TaskState, now: Timestamp) -> bool {
    if state.task.status < TaskStatus::Running {
        return true;
    }
    let born = state.task.started_at.or(state.task.created_at).unwrap_or(state.first_seen);
    now.duration_since(born) < SignedDuration::from_secs(monitor.spec.grace.as_secs() as i64)
}

/// Whoever was not heard yet may well have spoken: nobody listened before this controller began, and agents that were
/// there already speak at their next heartbeat.
fn listens_briefly<T: Trace>(world: World<'_>, patience: SignedDuration, trace: &mut T) -> bool {
    let began = world.fleet.born();
    let briefly = world.now.duration_since(began) < patience;
    if briefly {
        trace.detail(|| format!("the controller listens since {began}: its agent's next heartbeat is awaited"));
    }
    briefly
}

/// It is on its way out: that its agent goes with it is no fault.
fn is_leaving(state: &TaskState) -> bool {
    state.task.desired_stopped || state.task.status > TaskStatus::Running
}

fn with_sidecar<T: Trace>(
    workload: &WorkloadView<'_, '_>,
    monitor: &Monitor,
    state: &TaskState,
    fresh: Option<&Agent>,
    trace: &mut T,
) -> Outcome {
    let world = workload.cluster.world;
    let Some(container) = agent_container(state) else { return STARTING };
    trace.fact(Source::of(state.task.launch), Some(state.seen_at), || {
        format!("container {} is {}", container.name, container.status)
    });
    if is_leaving(state) && state.reported_at.is_some() {
        trace.fact(Source::of(state.task.launch), Some(state.seen_at), || "the task is being stopped".to_owned());
        return COVERED;
    }
    if let Some(reason) = container_failure(container, trace) {
        return unhealthy(reason);
    }
    if let Some(agent) = fresh
        && &*container.status == "RUNNING"
    {
        return match weakness(world, agent, Placement::Sidecar, monitor, trace) {
            Some(reason) => unhealthy(reason),
            None => COVERED,
        };
    }
    let runs = &*container.status == "RUNNING";
    if state.reported_at.is_none()
        && (is_young(monitor, state, world.now) || runs && listens_briefly(world, FIRST_OF_SIDECARS, trace))
    {
        return STARTING;
    }
    trace.detail(|| match (fresh, state.reported_at) {
        (Some(_), _) => {
            format!("{} says that container {} is {}", Source::of(state.task.launch), container.name, container.status)
        }
        (None, Some(_)) => "its agent reported before and is silent now".to_owned(),
        (None, None) => "its agent never reported".to_owned(),
    });
    unhealthy(Reason::AgentNotReporting)
}

fn without_sidecar<T: Trace>(
    workload: &WorkloadView<'_, '_>,
    monitor: &Monitor,
    state: &TaskState,
    trace: &mut T,
) -> Outcome {
    trace.fact(Source::of(state.task.launch), Some(state.seen_at), || {
        let names: Vec<_> = state.task.containers.iter().map(|c| &*c.name).collect();
        format!("no agent among its containers ({})", names.join(", "))
    });
    if is_young(monitor, state, workload.cluster.world.now) {
        return STARTING;
    }
    (Verdict::Uncovered, Some(services::task_reason(workload, monitor, &state.task, trace)))
}

fn on_node<T: Trace>(
    workload: &WorkloadView<'_, '_>,
    monitor: &Monitor,
    state: &TaskState,
    heard: Option<&Agent>,
    fresh: Option<&Agent>,
    placement: Placement,
    trace: &mut T,
) -> Outcome {
    let world = workload.cluster.world;
    if let Some(agent) = fresh {
        return match weakness(world, agent, placement, monitor, trace) {
            Some(reason) => unhealthy(reason),
            None => COVERED,
        };
    }
    let young = is_young(monitor, state, world.now) && state.reported_at.is_none();
    let daemons = state.task.node.as_deref().map_or(&[][..], |node| workload.cluster.daemons_on(node));
    if let Some(daemon) = daemons.iter().max_by_key(|d| d.first_seen) {
        trace.fact(Source::of(daemon.task.launch), Some(daemon.seen_at), || {
            format!("the node's agent is task {}, {:?}", daemon.task.id(), daemon.task.status)
        });
        if let Some(reason) = agent_container(daemon).and_then(|c| container_failure(c, trace)) {
            return unhealthy(reason);
        }
        let up_since = daemon.task.started_at.unwrap_or(daemon.first_seen);
        let patience = heard.map_or(FIRST_HEARTBEATS, Agent::silence_after);
        if daemon.task.status == TaskStatus::Running && world.now.duration_since(up_since) >= patience {
            if young || heard.is_none() && listens_briefly(world, FIRST_HEARTBEATS, trace) {
                return STARTING;
            }
            trace.detail(|| match heard {
                Some(agent) => format!("the node's agent is silent since {}", agent.report.received_at),
                None => format!("the node's agent (task {}) does not name this task", daemon.task.id()),
            });
            return unhealthy(Reason::AgentNotReporting);
        }
        if young {
            return STARTING;
        }
        trace.detail(|| match agent_container(daemon).and_then(|container| container.reason.as_deref()) {
            Some(why) => format!("the node's agent (task {}) does not start: {why}", daemon.task.id()),
            None => format!("the node's agent (task {}) is coming up", daemon.task.id()),
        });
        return (Verdict::Uncovered, Some(Reason::NodeWithoutAgent));
    }
    if young {
        return STARTING;
    }
    // ECS waits longer and longer between two tries: what failed last is why there is none now.
    let fallen = state.task.node.as_deref().and_then(|node| world.fleet.fallen_agent(node, world.now));
    if let Some(fallen) = fallen {
        trace.fact(Source::of(state.task.launch), Some(fallen.at), || {
            "the last agent task on the node failed".to_owned()
        });
        if let Some(reason) = container_failure(&fallen.value, trace) {
            return unhealthy(reason);
        }
    }
    if let Some(agent) = heard {
        trace.detail(|| format!("the node's agent is silent since {}", agent.report.received_at));
        return unhealthy(Reason::AgentNotReporting);
    }
    (Verdict::Uncovered, Some(services::node_reason(workload, &state.task, trace)))
}
