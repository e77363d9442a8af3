//! What the agents' own reports, and ECS on the agents' containers, prove.

use super::trace::{Source, Trace};
use super::view::World;
use crate::action::SIDECAR;
use crate::desired::Monitor;
use crate::fleet::{Agent, AgentId, Container, TaskState};
use jiff::SignedDuration;
use tasuki_api::agent::{Heartbeat, OLDEST_KERNEL, kernel_version};
use tasuki_api::coverage::{Depth, Placement, Reason};
use tasuki_api::desired::SensorChoice;
use tasuki_api::kubernetes::PodName;

/// Clocks may differ by this much (docs of [`Reason::ClockSkew`]).
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);
/// A second key is held against the agent for this long after it was last seen.
const CONFLICT_AGE: SignedDuration = SignedDuration::from_hours(1);

/// The best agent that names this task and may: a fresh and whole one before a fresh one before
/// the one heard last.
pub(super) fn best_agent<'a>(world: World<'a>, state: &TaskState) -> Option<(AgentId, &'a Agent)> {
    let candidates = state.agents.iter().filter_map(|id| world.fleet.agent(*id).map(|agent| (*id, agent)));
    candidates
        .filter(|(_, agent)| agent.speaks_for(&state.task))
        .max_by_key(|(_, agent)| (agent.is_fresh(world.now), agent.is_whole(), agent.report.received_at))
}

/// Its kernel is older than what a node agent needs, or does not describe its types.
fn is_kernel_unsupported(heartbeat: &Heartbeat) -> bool {
    let version = kernel_version(&heartbeat.kernel);
    let is_old = version > (0, 0) && version < OLDEST_KERNEL;
    is_old || heartbeat.sensors.iter().any(|s| s.detail.as_deref().is_some_and(|detail| detail.contains("BTF")))
}

/// What is wrong with a fresh agent, the gravest first.
pub(super) fn weakness<T: Trace>(
    world: World<'_>,
    agent: &Agent,
    placement: Placement,
    monitor: &Monitor,
    trace: &mut T,
) -> Option<Reason> {
    let report = &agent.report;
    let heartbeat = &report.heartbeat;
    let heard = Some(report.received_at);
    if let Some(at) = report.conflict
        && world.now.duration_since(at) < CONFLICT_AGE
    {
        trace.detail(|| format!("a second key claimed to be the agent of task {} at {at}", id_of(&report.task)));
        return Some(Reason::AgentIdentityConflict);
    }
    trace.fact(Source::Agent, heard, || format!("version {}", heartbeat.version));
    if let Some(minimum) = &monitor.minimum_version
        && agent.digest.number.as_ref().is_none_or(|version| version < minimum)
    {
        trace.detail(|| {
            let wanted = monitor.spec.agent.as_ref().and_then(|a| a.minimum_version.as_deref()).unwrap_or("?");
            format!("version {} is below {wanted}", heartbeat.version)
        });
        return Some(Reason::BelowMinimumVersion);
    }
    if !agent.is_whole() {
        trace.detail(|| match heartbeat.sensors.iter().find(|s| !s.whole) {
            Some(broken) => format!("{}: {}", broken.name, broken.detail.as_deref().unwrap_or("does not work")),
            None => "no sensor is in use".to_owned(),
        });
        return Some(Reason::SensorDegraded);
    }
    trace.fact(Source::Agent, heard, || {
        let names: Vec<_> = heartbeat.sensors.iter().map(|s| s.name.as_str()).collect();
        format!("sensor {} is whole, depth {:?}", names.join(" + "), heartbeat.depth)
    });
    let minimum = match placement {
        // In a pod it gets no privilege that would let it see processes.
        Placement::Sidecar if PodName::parse(&report.task).is_some() => Depth::Network,
        Placement::Sidecar => monitor.spec.ecs.fargate.minimum_depth,
        // A node agent that sees no processes does not do its job.
        _ => Depth::Process,
    };
    if heartbeat.depth < minimum {
        trace.detail(|| {
            let why = heartbeat.sensors.iter().find_map(|s| s.detail.as_deref()).unwrap_or("the agent gives no cause");
            format!("sees {:?} on kernel {}, {minimum:?} is demanded: {why}", heartbeat.depth, heartbeat.kernel)
        });
        let sensor = monitor.spec.agent.as_ref().map(|agent| agent.sensor).unwrap_or_default();
        let wanted = matches!(sensor, SensorChoice::Auto | SensorChoice::Ebpf);
        let kernel = placement != Placement::Sidecar && wanted && is_kernel_unsupported(heartbeat);
        return Some(if kernel { Reason::KernelUnsupported } else { Reason::DepthBelowMinimum });
    }
    let gate = monitor.spec.rollout.gates.event_loss;
    if agent.loss > gate.as_fraction() {
        trace.detail(|| {
            format!("lost {:.2}% of its events since the heartbeat before, {gate} is allowed", agent.loss * 100.0)
        });
        return Some(Reason::EventLoss);
    }
    if agent.loses_findings(world.now) {
        trace.detail(|| {
            let lost = heartbeat.usage.spool_dropped;
            format!("lost {lost} findings since it started, before the gateway took them (a full spool, most often)")
        });
        return Some(Reason::EventLoss);
    }
    let skew = agent.clock_skew();
    if skew.abs() > CLOCK_SKEW {
        trace.detail(|| {
            format!(
                "its clock is {} s {} the gateway's",
                skew.abs().as_secs(),
                if skew.is_negative() { "behind" } else { "before" }
            )
        });
        return Some(Reason::ClockSkew);
    }
    None
}

/// Why ECS says that an agent's container does not run; `None` while it runs or comes up.
pub(super) fn container_failure<T: Trace>(container: &Container, trace: &mut T) -> Option<Reason> {
    let why = container.reason.as_deref().unwrap_or_default();
    let reason = if why.contains("CannotPull") || why.contains("ImagePull") {
        Reason::ImagePullFailed
    } else if &*container.status != "STOPPED" {
        return None;
    } else if why.contains("OutOfMemory") {
        Reason::AgentOutOfMemory
    } else {
        Reason::AgentExited
    };
    trace.detail(|| match (container.exit_code, why) {
        (Some(code), "") => format!("container {} ended with exit code {code}", container.name),
        (Some(code), why) => format!("container {} ended with exit code {code}: {why}", container.name),
        (None, "") => format!("container {} ended; ECS gives no exit code", container.name),
        (None, why) => format!("container {}: {why}", container.name),
    });
    Some(reason)
}

/// The agent's own container of a task, if it has one.
pub(super) fn agent_container(state: &TaskState) -> Option<&Container> {
    state.task.containers.iter().find(|c| &*c.name == SIDECAR)
}

/// The last part of an ARN.
pub(super) fn id_of(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}
