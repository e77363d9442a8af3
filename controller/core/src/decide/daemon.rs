//! The daemon of one cluster and launch type: created, rolled in waves without a moment without an
//! agent, rolled back.
//!
//! Two services: *serving* (`tasuki`, stays away from nodes with `tasuki.hold`) and *next*
//! (`tasuki-next`, comes only to nodes with `tasuki.next`). A node is in one of three states:
//!
//! ```text
//!            put next            next agent heard: put hold
//!   Old ───────────────▶ Placing ───────────────────────────▶ Moved        roll (forward)
//!  serving              serving+next                          next
//!    ▲                     │  ▲                                 │
//!    └── serving heard: ───┘  └──────── delete hold ────────────┘          settle (hand back)
//!        delete next
//! ```
//! The cluster, by what serving and next run (W: the wanted agent):
//!
//! ```text
//!  no serving ─▶ create serving(W)
//!  serving = W, nothing of next left ─▶ steady
//!  serving ≠ W, no room for two ─▶ update serving in place, watch, revert if silent
//!  serving ≠ W, next = W ─▶ roll waves; all moved ─▶ update serving to W ─▶ settle ─▶ delete next
//!  serving ≠ W, failed or next ≠ W ─▶ settle ─▶ delete next                (rollback is the mirror)
//! ```
//! Everything but deadlines, soaks and failures is read from the fleet each time, so a crash between
//! any two calls resumes where it was.

use super::daemon_view::{Daemons, NodeView, Placed};
use super::services::{DAEMON_CALLS, unwilling};
use super::trace::Silent;
use super::view::{ClusterView, Wanted};
use crate::action::{Action, ActionKind, HOLD, NEXT, PROMOTING};
use crate::desired::Monitor;
use crate::fleet::{LaunchType, Service, Str};
use crate::memory::{Failure, Rollout};
use jiff::{SignedDuration, Timestamp};
use tasuki_api::desired::{Handover, OnFailure};

/// So long agents stay in a Kubernetes cluster that no monitor selects any more.
pub(super) const UNSELECTED: SignedDuration = SignedDuration::from_mins(10);
/// So long a pod waits for room beside the one that it takes over from; then that one goes first.
const CROWDED: SignedDuration = SignedDuration::from_secs(30);

/// What a step wants done and remembered.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub actions: Vec<Action>,
    /// The rollout from now on.
    pub rollout: Option<Rollout>,
    /// An agent that failed here just now.
    pub failed: Option<(Str, Failure)>,
    /// Kubernetes: since when no monitor selects the cluster, although it has agents.
    pub unselected: Option<Timestamp>,
}

/// Names an agent in [`Memory::failed`](crate::memory::Memory): its image, and what else it was run
/// with, so that more memory is a new try.
pub(super) fn failure_key(wanted: &Wanted) -> Str {
    failed_as(&wanted.agent.image, &wanted.agent_print)
}

/// What a failure of this agent is remembered by.
pub(super) fn failed_as(image: &str, print: &str) -> Str {
    format!("{image} ({print})").into()
}

/// The next step for one launch type of a cluster, and its key in memory.
pub(super) fn step(cluster: &ClusterView<'_>, launch: LaunchType) -> (Str, Step) {
    let daemons = Daemons::new(cluster, launch);
    let step = next_step(&daemons);
    (daemons.key, step)
}

fn next_step(daemons: &Daemons<'_, '_>) -> Step {
    let (cluster, world, launch) = (daemons.cluster, daemons.cluster.world, daemons.launch);
    let held = world.memory.rollouts.get(&daemons.key).cloned();
    if daemons.is_idle() && held.is_none() {
        return Step::default();
    }
    let monitor = world.desired.select_cluster(cluster.cluster, launch);
    let Some((monitor, wanted)) = monitor.and_then(|m| world.desired.monitors.get(m).zip(cluster.wanted(m))) else {
        // A monitor without an agent only reports; what is there stays.
        return match monitor {
            None if launch == LaunchType::Kubernetes => forsaken(daemons, held),
            None if cluster.may_remove() => remove(daemons),
            _ => Step { rollout: held, ..Step::default() },
        };
    };
    let blocked = unwilling(world.desired.frozen, monitor, &mut Silent).is_some()
        || cluster.denied(&DAEMON_CALLS).is_some()
        || world.fleet.obstruction(cluster.arn, world.now).is_some();
    if blocked {
        return Step { rollout: held, ..Step::default() };
    }
    let mut roll = Roll { daemons, monitor, wanted: &wanted, now: world.now, step: Step::default() };
    roll.step.rollout = held;
    roll.decide();
    roll.step
}

/// Kubernetes: a monitor that was deleted may be on its way back (a release that is applied anew, a branch that is
/// switched), so its agents stay for a while.
fn forsaken(daemons: &Daemons<'_, '_>, held: Option<Rollout>) -> Step {
    let world = daemons.cluster.world;
    if daemons.serving.is_none() && daemons.next.is_none() && daemons.nodes.iter().all(|node| !node.next) {
        return Step::default();
    }
    let since = world.memory.unselected.get(&daemons.key).copied().unwrap_or(world.now);
    let over = world.now.duration_since(since) >= UNSELECTED && !world.desired.frozen;
    let mut step = if over { remove(daemons) } else { Step { rollout: held, ..Step::default() } };
    step.unselected = Some(since);
    step
}

/// Takes everything out: no monitor selects the cluster any more.
pub(super) fn remove(daemons: &Daemons<'_, '_>) -> Step {
    let mut step = Step::default();
    let act = |kind| daemons.action(kind, "", "no monitor selects the cluster any more");
    for service in [daemons.serving, daemons.next].into_iter().flatten() {
        step.actions.push(act(ActionKind::DeleteDaemon { service: service.arn.clone() }));
    }
    for node in &daemons.nodes {
        // One change of a node at a time; the other attribute follows.
        let name = if node.hold { HOLD } else { NEXT };
        if node.hold || node.next {
            step.actions.push(act(ActionKind::DeleteAttribute { node: node.node.arn.clone(), name: name.into() }));
        }
    }
    step
}

pub(super) struct Roll<'a, 'c, 'd> {
    pub daemons: &'d Daemons<'a, 'c>,
    pub monitor: &'a Monitor,
    wanted: &'d Wanted,
    pub now: Timestamp,
    step: Step,
}

impl<'a> Roll<'a, '_, '_> {
    fn act(&mut self, kind: ActionKind, why: impl Into<String>) {
        let action = self.daemons.action(kind, &self.monitor.name, why);
        self.step.actions.push(action);
    }

    fn create(&mut self, service: &str, why: String) {
        let (launch, agent) = (self.daemons.launch, self.wanted.agent.clone());
        self.act(ActionKind::CreateDaemon { service: service.into(), launch, agent }, why);
    }

    fn decide(&mut self) {
        let daemons = self.daemons;
        let Some(serving) = daemons.serving else {
            if daemons.name_taken {
                return;
            }
            if let Some(next) = daemons.next.filter(|next| next.tags.contains_key(PROMOTING)) {
                return self.promote(next, None);
            }
            if daemons.nodes.iter().any(|n| n.eligible) {
                self.create(daemons.serving_name, format!("nodes of {} have no agent", daemons.cluster.cluster.name));
            }
            return;
        };
        let Some(serving_print) = self.print_of(serving) else { return };
        let next_print = match daemons.next {
            Some(next) => match self.print_of(next) {
                Some(print) => Some(print),
                None => return,
            },
            None => None,
        };
        if daemons.promoted() {
            // Whatever is wanted by now: first it heeds the hand-over again, or the next one would be everywhere at once.
            return self.settle_promoted(serving);
        }
        let is_wanted = |print: &Option<Str>| print.as_ref() == Some(&self.wanted.agent_print);
        let in_place = self.step.rollout.as_ref().is_some_and(|r| r.in_place);
        let going_back = self.step.rollout.as_ref().is_some_and(|r| r.rolling_back.is_some());
        let failed = self.has_failed();
        if is_wanted(&serving_print) {
            match in_place {
                true => self.watch_in_place(serving),
                false => self.settle(),
            }
        } else if in_place && going_back {
            // Reverted: what runs now is what ran before.
            self.step.rollout = None;
        } else if going_back {
            self.settle();
        } else if failed {
            match self.monitor.spec.rollout.on_failure {
                OnFailure::Rollback => self.settle(),
                OnFailure::Pause => {}
            }
        } else if next_print.as_ref().is_some_and(|print| !is_wanted(print)) {
            self.settle();
        } else if self.monitor.spec.rollout.paused {
        } else if daemons.next.is_some() {
            self.roll(serving);
        } else {
            self.start(serving);
        }
    }

    /// Fingerprint of what a service runs; asks for its description where that is not known yet.
    #[allow(clippy::option_option)] // unknown, and known to carry none, are two answers
    fn print_of(&mut self, service: &Service) -> Option<Option<Str>> {
        match self.daemons.cluster.world.fleet.definition(&service.definition) {
            Some(definition) => Some(definition.sidecar.as_ref().and_then(|mark| mark.spec.clone())),
            None => {
                let definition = service.definition.clone();
                let why = format!("service {} runs a definition that is not known yet", service.name);
                self.act(ActionKind::DescribeDefinition { definition, sidecar: None }, why);
                None
            }
        }
    }

    fn has_failed(&self) -> bool {
        let failed = self.daemons.cluster.world.memory.failed.get(&self.daemons.key);
        failed.is_some_and(|f| f.contains_key(&failure_key(self.wanted)))
    }

    /// A new version: its service beside the old one, or in place where no two agents fit.
    fn start(&mut self, serving: &Service) {
        let memory = self.daemons.cluster.world.memory;
        let key = failure_key(self.wanted);
        // What failed in one cluster is not tried in the next one.
        let failed_elsewhere = memory.failed.values().any(|failures| failures.contains_key(&key));
        if failed_elsewhere || !self.monitor.windows.are_open(self.now) {
            return;
        }
        let tight = self.daemons.nodes.iter().filter(|n| n.eligible && !n.next);
        let in_place = self.daemons.launch != LaunchType::Kubernetes
            && tight.clone().any(|n| n.node.free_memory < self.wanted.agent.memory_mib);
        if in_place && memory.rollouts.iter().any(|(k, r)| r.in_place && *k != self.daemons.key) {
            return; // one cluster at a time
        }
        let mut rollout = self.new_rollout(serving);
        rollout.in_place = in_place;
        let (version, previous) = (rollout.version.clone(), rollout.previous.clone());
        self.step.rollout = Some(rollout);
        if in_place {
            let (service, from) = (serving.arn.clone(), serving.definition.clone());
            let agent = self.wanted.agent.clone();
            let why = format!("roll {previous} to {version} in place: a node has no room for two agents");
            self.act(ActionKind::UpdateDaemon { service, from, agent }, why);
        } else {
            self.create(self.daemons.next_name, format!("roll {previous} to {version}"));
        }
    }

    fn new_rollout(&self, serving: &Service) -> Rollout {
        let fleet = self.daemons.cluster.world.fleet;
        let mark = fleet.definition(&serving.definition).and_then(|d| d.sidecar.as_ref());
        Rollout {
            image: self.wanted.agent.image.clone(),
            version: self.wanted.agent.version.clone(),
            previous: mark.map(|m| m.version.clone()).unwrap_or_default(),
            wave: 0,
            soaking_since: None,
            step_since: self.now,
            rolling_back: None,
            from_definition: Some(serving.definition.clone()),
            in_place: false,
            progress: 0,
        }
    }

    fn fail(&mut self, rollout: &mut Rollout, why: String) {
        self.step.failed = Some((failure_key(self.wanted), Failure { at: self.now, why: why.clone() }));
        if self.monitor.spec.rollout.on_failure == OnFailure::Rollback {
            rollout.rolling_back = Some(why);
        }
    }

    /// Forward: node by node, wave by wave.
    fn roll(&mut self, serving: &Service) {
        let mut rollout = self.step.rollout.take().unwrap_or_else(|| self.new_rollout(serving));
        for node in self.daemons.nodes.iter().filter(|n| n.next && n.is_full()) {
            let (node, name) = (node.node.arn.clone(), NEXT.into());
            self.act(ActionKind::DeleteAttribute { node, name }, "the node has room for no agent at all");
        }
        // What has no room for any agent can neither move nor fail; it gets the version that serves in the end.
        let nodes: Vec<&NodeView<'_>> = self.daemons.nodes.iter().filter(|n| n.eligible && !n.is_full()).collect();
        let (moved, placing): (Vec<_>, Vec<_>) = nodes.iter().copied().filter(|n| n.next).partition(|n| n.has_moved());
        let progress = (moved.len() * 2 + placing.len()) as u64;
        if progress != rollout.progress {
            (rollout.progress, rollout.step_since) = (progress, self.now);
        }
        for node in nodes.iter().filter(|n| n.hold && !n.next) {
            // Nothing of ours leaves a node so: someone else set it, and the node has no agent.
            let (node, name) = (node.node.arn.clone(), HOLD.into());
            self.act(ActionKind::DeleteAttribute { node, name }, "the node is held without a next agent");
        }
        for node in &placing {
            let arn = node.node.arn.clone();
            if node.next_agent.is_healthy() && !node.sees_less() {
                let kind = ActionKind::PutAttribute { node: arn, name: HOLD.into() };
                self.act(kind, "the new agent reports: the old one may go");
            } else if !node.hold && self.makes_way(node) {
                let kind = ActionKind::PutAttribute { node: arn, name: HOLD.into() };
                self.act(kind, "the node has no room for two agents: the old one goes first");
            } else if self.is_awaited(node) && self.is_late(&rollout, node) {
                let why = format!(
                    "node {}: the new agent did not report within {}{}",
                    super::evidence::id_of(&node.node.arn),
                    self.monitor.spec.rollout.deadline,
                    node.trouble()
                );
                self.fail(&mut rollout, why);
                self.step.rollout = Some(rollout);
                return;
            }
        }
        for node in nodes.iter().filter(|n| n.next && n.hold && self.daemons.launch == LaunchType::Kubernetes) {
            let Some(old) = node.serving_agent.stays() else { continue };
            let (node, task) = (node.node.arn.clone(), old.task.arn.clone());
            self.act(ActionKind::DeleteAgent { node, task }, "the node was handed over");
        }
        self.waves(serving, &mut rollout, &nodes, &moved, &placing);
        self.step.rollout = Some(rollout);
    }

    fn waves(
        &mut self,
        serving: &Service,
        rollout: &mut Rollout,
        nodes: &[&NodeView<'_>],
        moved: &[&NodeView<'_>],
        placing: &[&NodeView<'_>],
    ) {
        let waves = &self.monitor.spec.rollout.waves;
        loop {
            let Some(wave) = waves.get(rollout.wave) else { return };
            let target = wave.take.of(nodes.len());
            if moved.len() < target {
                rollout.soaking_since = None;
                if !self.monitor.windows.are_open(self.now) || self.daemons.takes_nodes_down() {
                    return;
                }
                let at_once = wave.max_unavailable.of(nodes.len()).max(1).saturating_sub(placing.len());
                let missing = target.saturating_sub(moved.len() + placing.len());
                let old = nodes.iter().filter(|n| !n.next && !n.hold && n.node.connected);
                for node in old.take(at_once.min(missing)) {
                    let (node, name) = (node.node.arn.clone(), NEXT.into());
                    self.act(
                        ActionKind::PutAttribute { node, name },
                        format!("wave {}: {}", wave.name, rollout.version),
                    );
                }
                return;
            }
            // What cannot be asked is no evidence. Where every node is away, none was handed over.
            let here: Vec<_> = moved.iter().copied().filter(|n| self.is_judged(n)).collect();
            let away = |n: &NodeView<'_>| n.lost || n.eligible && !n.node.connected;
            let nobody = here.is_empty() && (!moved.is_empty() || self.daemons.nodes.iter().any(away));
            if !placing.is_empty() || nobody {
                rollout.soaking_since = rollout.soaking_since.filter(|_| !nobody);
                return;
            }
            let since = *rollout.soaking_since.get_or_insert(self.now);
            if let Some(why) = self.daemons.gate_violation(&self.monitor.spec.rollout.gates, &here, self.now) {
                self.fail(rollout, format!("wave {}: {why}", wave.name));
                return;
            }
            if self.now.duration_since(since) < SignedDuration::from_secs(wave.soak.as_secs() as i64) {
                return;
            }
            if rollout.wave + 1 < waves.len() {
                (rollout.wave, rollout.soaking_since, rollout.step_since) = (rollout.wave + 1, None, self.now);
                continue;
            }
            if self.daemons.takes_nodes_down() || here.len() < moved.len() {
                return;
            }
            if moved.len() == nodes.len()
                && let (LaunchType::Kubernetes, Some(next)) = (self.daemons.launch, self.daemons.next)
            {
                return self.promote(next, Some(serving));
            }
            if moved.len() == nodes.len() {
                let (service, from) = (serving.arn.clone(), serving.definition.clone());
                let agent = self.wanted.agent.clone();
                let why = format!("every node runs {}: it becomes the serving agent", rollout.version);
                self.act(ActionKind::UpdateDaemon { service, from, agent }, why);
            }
            return;
        }
    }

    /// Whether the old agent of a node in hand-over goes before the new one runs.
    fn makes_way(&self, node: &NodeView<'_>) -> bool {
        self.daemons.launch == LaunchType::Kubernetes
            && (self.monitor.spec.kubernetes.handover == Handover::DeleteFirst || self.waits_for_room(&node.next_agent))
    }

    /// Its pod has found no room for so long that the other one has to go first.
    fn waits_for_room(&self, agent: &Placed<'_>) -> bool {
        agent.crowded_since().is_some_and(|since| self.now.duration_since(since) >= CROWDED)
    }

    /// Kubernetes: the next daemon becomes the serving one where it stands.
    fn promote(&mut self, next: &Service, serving: Option<&Service>) {
        let (service, serving) = (next.arn.clone(), serving.map(|serving| serving.arn.clone()));
        self.act(
            ActionKind::PromoteDaemon { service, serving },
            "every node runs the new agent: it serves from now on",
        );
    }

    /// What was promoted is on every node: the labels of the hand-over go, then it heeds them again.
    fn settle_promoted(&mut self, serving: &Service) {
        let labelled = self.daemons.nodes.iter().filter(|n| n.next || n.hold);
        let arns: Vec<Str> = labelled.map(|n| n.node.arn.clone()).collect();
        if arns.is_empty() {
            self.act(ActionKind::SettleDaemon { service: serving.arn.clone() }, "the rollout is done");
            self.step.rollout = None;
        }
        for node in arns {
            self.act(ActionKind::DeleteAttribute { node, name: NEXT.into() }, "the rollout is done");
        }
    }

    /// Hand back: what serving runs is what is to stay. Finish and rollback alike.
    fn settle(&mut self) {
        let nodes = &self.daemons.nodes;
        let total = nodes.iter().filter(|n| n.eligible).count();
        let at_once = self.monitor.spec.rollout.waves.last().map_or(1, |w| w.max_unavailable.of(total)).max(1);
        let mut waiting = nodes.iter().filter(|n| n.next && !n.hold && n.eligible && self.is_awaited(n)).count();
        let mut left = 0;
        for node in nodes {
            let arn = node.node.arn.clone();
            if node.hold {
                left += 1;
                if waiting < at_once || !self.is_awaited(node) {
                    waiting += usize::from(self.is_awaited(node));
                    let kind = ActionKind::DeleteAttribute { node: arn, name: HOLD.into() };
                    self.act(kind, "the serving agent comes back");
                }
            } else if node.next {
                left += 1;
                let (serving, next) = (&node.serving_agent, &node.next_agent);
                // One that is not whole is as good as the next one, if that is not either. No daemon starts on a node that
                // drains, and on one that is away, or mute, with its next agent there is nothing to wait for.
                let is_back = serving.is_healthy() || serving.is_heard() && !next.is_healthy();
                let is_over = !node.eligible || self.is_mute(node) || !self.is_awaited(node) && !next.is_heard();
                if is_back || is_over {
                    let kind = ActionKind::DeleteAttribute { node: arn, name: NEXT.into() };
                    self.act(kind, "the serving agent reports: the next one may go");
                } else if self.waits_for_room(&node.serving_agent) {
                    let kind = ActionKind::DeleteAttribute { node: arn, name: NEXT.into() };
                    self.act(kind, "the node has no room for two agents: the next one goes first");
                }
            }
        }
        match self.daemons.next {
            Some(next) if left == 0 => {
                let kind = ActionKind::DeleteDaemon { service: next.arn.clone() };
                self.act(kind, "no node needs the next agent any more");
            }
            None if left == 0 => self.step.rollout = None,
            _ => {}
        }
    }

    /// Serving was updated itself: do the new agents come?
    fn watch_in_place(&mut self, serving: &Service) {
        let Some(mut rollout) = self.step.rollout.take() else { return };
        // One that is disconnected is waited for until it counts as lost; the version is judged by the others.
        let nodes = self.daemons.nodes.iter().filter(|n| n.eligible);
        let silent: Vec<_> = nodes.clone().filter(|n| !n.serving_agent.is_healthy()).collect();
        let progress = 1 + (nodes.count() - silent.len()) as u64;
        if rollout.rolling_back.is_none() && progress != rollout.progress {
            (rollout.progress, rollout.step_since) = (progress, self.now);
        }
        if silent.is_empty() {
            return;
        }
        if let Some(first) = silent.iter().find(|n| self.could_start(n))
            && self.is_late(&rollout, first)
            && rollout.rolling_back.is_none()
            && !self.has_failed()
        {
            let why = format!(
                "node {}: the new agent did not report within {}{}",
                super::evidence::id_of(&first.node.arn),
                self.monitor.spec.rollout.deadline,
                first.serving_agent.trouble()
            );
            self.fail(&mut rollout, why);
        }
        if let (Some(why), Some(to)) = (&rollout.rolling_back, &rollout.from_definition) {
            let (service, from) = (serving.arn.clone(), serving.definition.clone());
            self.act(ActionKind::RevertDaemon { service, from, to: to.clone() }, why.clone());
        }
        self.step.rollout = Some(rollout);
    }
}
