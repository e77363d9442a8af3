//! The service scheduler: brings what runs closer to what is wanted, one step per wake-up.
//!
//! A service is woken when something about it changed. Its step looks at the tasks as they are, starts and stops what the
//! deployment configuration allows now, and never waits: what it started wakes it again.

use std::time::Duration;

use super::lifecycle::Order;
use super::service::{Rollout, Scheduling, Service};
use super::tags::{self, Tag};
use super::{Definition, Ecs, Task, deployment, place};
use crate::clock::later;
use crate::effect::{Ctx, Timer};
use crate::runtime::LaunchType;

/// Longest pause between two tries to start a task.
const MAX_RETRY: Duration = Duration::from_secs(900);
/// How often a task that could not be placed is tried again without any change.
const PLACEMENT_RETRY: Duration = Duration::from_secs(30);

impl Ecs {
    /// Tasks of a service that are not forgotten.
    pub(super) fn tasks_of<'a>(&'a self, service: &'a Service) -> impl Iterator<Item = &'a Task> {
        self.tasks.of(&service.cluster_arn).filter(move |t| t.service.as_deref() == Some(&service.name))
    }

    /// How many tasks the service wants: its number, or one per matching instance.
    pub(super) fn desired(&self, service: &Service) -> usize {
        if service.status != "ACTIVE" {
            return 0;
        }
        match service.scheduling {
            Scheduling::Replica => service.desired,
            Scheduling::Daemon => self.eligible(service).len(),
        }
    }

    /// Instances that a DAEMON service wants a task on.
    fn eligible(&self, service: &Service) -> Vec<String> {
        let all = self.candidates(&service.cluster_arn, service.launch_type);
        all.filter(|i| service.constraints.allow(i)).map(|i| i.arn.clone()).collect()
    }

    /// Plans a look at a service for now.
    pub(super) fn wake_service(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(service) = self.services.get_mut(arn).filter(|s| s.is_active()) else { return };
        if !std::mem::replace(&mut service.woken, true) {
            ctx.after(Duration::ZERO, Timer::Service(arn.to_owned()));
        }
    }

    /// Something about the instances of a cluster changed: daemons and services that wait for room look again.
    pub(super) fn wake_services(&mut self, ctx: &mut Ctx<'_>, cluster_arn: &str) {
        let concerned: Vec<String> = self
            .services
            .values()
            .filter(|s| s.cluster_arn == cluster_arn && s.launch_type != LaunchType::Fargate)
            .map(|s| s.arn.clone())
            .collect();
        for arn in concerned {
            self.wake_service(ctx, &arn);
        }
    }

    pub(super) fn wake_service_of(&mut self, ctx: &mut Ctx<'_>, task_arn: &str) {
        if let Some(arn) = self.service_arn_of(task_arn) {
            self.wake_service(ctx, &arn);
        }
    }

    fn service_arn_of(&self, task_arn: &str) -> Option<String> {
        let task = self.tasks.get(task_arn)?;
        let name = task.service.as_deref()?;
        self.any_service(&task.cluster_arn, name).filter(|s| s.is_active()).map(|s| s.arn.clone())
    }

    /// A task of a service became healthy: the circuit breaker starts counting anew.
    pub(super) fn service_task_healthy(&mut self, ctx: &mut Ctx<'_>, task_arn: &str) {
        let Some(arn) = self.service_arn_of(task_arn) else { return };
        let started_by = self.tasks.get(task_arn).and_then(|t| t.started_by.clone());
        if let Some(service) = self.services.get_mut(&arn) {
            let mine = service.deployments.iter_mut().find(|d| Some(&d.id) == started_by.as_ref());
            if let Some(deployment) = mine {
                deployment.consecutive = 0;
                service.retry_at = None;
            }
        }
        self.wake_service(ctx, &arn);
    }

    /// A task of a service is over: count it when it never became healthy.
    pub(super) fn service_task_stopped(&mut self, ctx: &mut Ctx<'_>, task_arn: &str) {
        let Some(arn) = self.service_arn_of(task_arn) else { return };
        let Some(task) = self.tasks.get(task_arn) else { return };
        let unhealthy = task.stopped_reason.as_deref() == Some("Task failed container health checks");
        let by_itself = matches!(task.stop_code, Some("TaskFailedToStart" | "EssentialContainerExited")) || unhealthy;
        let (failed, started_by) = (by_itself && !task.healthy, task.started_by.clone());
        let desired = self.services.get(&arn).map_or(0, |s| self.desired(s));
        if failed && let Some(service) = self.services.get_mut(&arn) {
            let threshold = service.threshold(desired);
            let breaker = service.breaker.is_some();
            let mine = service.deployments.iter_mut().enumerate().find(|(_, d)| Some(&d.id) == started_by.as_ref());
            if let Some((at, deployment)) = mine {
                deployment.failed += 1;
                deployment.consecutive += 1;
                deployment.updated = ctx.now;
                let (count, running) = (deployment.consecutive, deployment.rollout == Rollout::InProgress);
                let pause = ctx.settings.retry.saturating_mul(1 << (count - 1).min(16)).min(MAX_RETRY);
                service.retry_at = Some(later(ctx.now, pause));
                if count == 3 {
                    service.say(
                        ctx,
                        format!("(service {}) is unable to consistently start tasks successfully.", service.name),
                    );
                    service_action(service, ctx, "WARN", "SERVICE_TASK_START_IMPAIRED", None);
                }
                if breaker && running && at == 0 && count >= threshold {
                    deployment::fail(service, ctx);
                }
            }
        }
        self.wake_service(ctx, &arn);
    }

    /// One step of a service.
    pub(super) fn reconcile(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(service) = self.services.get_mut(arn) else { return };
        service.woken = false;
        let service = service.clone();
        if !service.is_active() || service.controller != super::service::Controller::Ecs {
            return;
        }
        match service.scheduling {
            Scheduling::Replica => self.step_replica(ctx, &service),
            Scheduling::Daemon => self.step_daemon(ctx, &service),
        }
        self.settle(ctx, arn);
    }

    fn step_replica(&mut self, ctx: &mut Ctx<'_>, service: &Service) {
        let Some(primary) = service.primary() else { return };
        let desired = self.desired(service);
        let draining = |t: &Task| {
            let instance = t.instance_arn.as_ref().and_then(|i| self.instances.get(i));
            instance.is_some_and(|i| i.status != "ACTIVE")
        };
        let live: Vec<&Task> = self.tasks_of(service).filter(|t| t.is_live()).collect();
        let (new, old): (Vec<&Task>, Vec<&Task>) =
            live.iter().partition(|t| t.started_by.as_deref() == Some(&primary.id) && !draining(t));
        let healthy = live.iter().filter(|t| t.healthy).count();
        let gave_up = primary.rollout == Rollout::Failed;
        let need = if gave_up { 0 } else { desired.saturating_sub(new.len()) };
        let room = service.upper(desired).saturating_sub(live.len());
        let blocked = need > 0 && (room == 0 || service.waiting);

        let mut stop: Vec<String> = Vec::new();
        // Too many: the youngest go first, and those that are not healthy before those that are.
        let mut surplus: Vec<&&Task> = new.iter().collect();
        surplus.sort_by_key(|t| (t.healthy, std::cmp::Reverse(t.times.created)));
        stop.extend(surplus.iter().take(new.len().saturating_sub(desired)).map(|t| t.arn.clone()));
        // The old ones: as many as the minimum lets go, unhealthy ones first.
        let floor = if blocked { service.lower(desired) } else { desired };
        let mut may_stop = healthy.saturating_sub(floor);
        let new_is_complete = new.iter().filter(|t| t.healthy).count() >= desired;
        for task in old.iter().filter(|t| !t.healthy) {
            if blocked || new_is_complete {
                stop.push(task.arn.clone());
            }
        }
        for task in old.iter().filter(|t| t.healthy) {
            if may_stop > 0 && !gave_up {
                may_stop -= 1;
                stop.push(task.arn.clone());
            }
        }
        for arn in stop {
            self.stop_for_service(ctx, service, &arn);
        }
        let count = need.min(room);
        if count > 0 {
            self.start_for_service(ctx, service, (0..count).map(|_| None).collect());
        } else if need == 0 {
            self.set_waiting(&service.arn, false);
        }
    }

    fn step_daemon(&mut self, ctx: &mut Ctx<'_>, service: &Service) {
        let Some(primary) = service.primary() else { return };
        let eligible = if service.status == "ACTIVE" { self.eligible(service) } else { Vec::new() };
        let mut healthy = self.tasks_of(service).filter(|t| t.is_live() && t.healthy).count();
        let lower = service.lower(eligible.len());
        let mut stop = Vec::new();
        let mut violated = false;
        for task in self.tasks_of(service).filter(|t| t.is_live()) {
            let Some(instance) = task.instance_arn.as_ref().and_then(|i| self.instances.get(i)) else { continue };
            if !eligible.contains(&instance.arn) {
                // On a draining instance the daemon leaves last.
                let others =
                    self.tasks_on(&instance.arn).any(|t| t.is_live() && t.service.is_some() && !self.is_daemon_task(t));
                if instance.status != "DRAINING" || !others || service.status != "ACTIVE" {
                    violated |= instance.status == "ACTIVE" && service.status == "ACTIVE";
                    stop.push(task.arn.clone());
                }
            } else if task.started_by.as_deref() != Some(&primary.id) && primary.rollout != Rollout::Failed {
                if !task.healthy {
                    stop.push(task.arn.clone());
                } else if healthy > lower {
                    healthy -= 1;
                    stop.push(task.arn.clone());
                }
            }
        }
        if violated && let Some(service) = self.services.get_mut(&service.arn) {
            service_action(service, ctx, "WARN", "SERVICE_DAEMON_PLACEMENT_CONSTRAINT_VIOLATED", None);
        }
        for arn in stop {
            self.stop_for_service(ctx, service, &arn);
        }
        if primary.rollout == Rollout::Failed {
            return;
        }
        // The old one must be gone before the new one starts: there is never more than one per instance.
        let empty =
            |arn: &&String| !self.tasks_of(service).any(|t| t.instance_arn.as_ref() == Some(arn) && !t.is_stopped());
        let free: Vec<Option<String>> = eligible.iter().filter(empty).cloned().map(Some).collect();
        if free.is_empty() {
            self.set_waiting(&service.arn, false);
        } else {
            self.start_for_service(ctx, service, free);
        }
    }

    fn is_daemon_task(&self, task: &Task) -> bool {
        let name = task.service.as_deref().unwrap_or_default();
        self.any_service(&task.cluster_arn, name).is_some_and(|s| s.scheduling == Scheduling::Daemon)
    }

    fn set_waiting(&mut self, arn: &str, waiting: bool) {
        if let Some(service) = self.services.get_mut(arn) {
            service.waiting = waiting;
        }
    }

    fn stop_for_service(&mut self, ctx: &mut Ctx<'_>, service: &Service, task_arn: &str) {
        let reason = match service.primary() {
            Some(primary) if self.tasks.get(task_arn).is_some_and(|t| t.started_by.as_deref() != Some(&primary.id)) => {
                format!("Scaling activity initiated by (deployment {})", primary.id)
            }
            _ => format!("Scaling activity initiated by (service {})", service.name),
        };
        self.stop_task(ctx, task_arn, "ServiceSchedulerInitiated", &reason);
        if let Some(found) = self.services.get_mut(&service.arn) {
            let id = super::short(task_arn).to_owned();
            found.steady = false;
            found.say(ctx, format!("(service {}) has stopped 1 running tasks: (task {id}).", service.name));
        }
    }

    /// Starts one task per entry: on that instance (DAEMON), or wherever there is room.
    fn start_for_service(&mut self, ctx: &mut Ctx<'_>, service: &Service, where_to: Vec<Option<String>>) {
        if let Some(at) = service.retry_at.filter(|at| *at > ctx.now) {
            let wait = Duration::try_from(at.duration_since(ctx.now)).unwrap_or(MAX_RETRY);
            return ctx.after(wait, Timer::Service(service.arn.clone()));
        }
        let Some(primary) = service.primary().cloned() else { return };
        let Ok(definition) = self.definition(&primary.definition_arn).cloned() else { return };
        let needs = place::needs(&definition);
        let order = service_order(service, &primary, &definition);
        let (mut started, mut refused) = (Vec::new(), None);
        for target in where_to {
            let placed = match (&target, service.launch_type) {
                (_, LaunchType::Fargate) => Ok(None),
                (Some(arn), _) => match self.instances.get(arn) {
                    Some(instance) => self.fits(instance, &needs, &service.constraints).map(|()| target.clone()),
                    None => continue,
                },
                (None, kind) => {
                    self.pick(&service.cluster_arn, kind, &needs, &service.constraints, &order.group).map(Some)
                }
            };
            match placed {
                Ok(instance) => started.push(self.create_task(ctx, &definition, &order, instance)),
                Err(why) => refused = Some(why),
            }
        }
        let Some(found) = self.services.get_mut(&service.arn) else { return };
        if !started.is_empty() {
            let ids: Vec<String> = started.iter().map(|arn| format!("(task {})", super::short(arn))).collect();
            found.steady = false;
            found.say(ctx, format!("(service {}) has started {} tasks: {}.", service.name, ids.len(), ids.join(" ")));
        }
        match refused {
            None => found.waiting = false,
            Some(why) => {
                if !std::mem::replace(&mut found.waiting, true) {
                    found.say(ctx, why.sentence(&service.name));
                    service_action(found, ctx, "ERROR", "SERVICE_TASK_PLACEMENT_FAILURE", Some(why.code));
                    // With room refused, a deployment may stop old tasks down to the minimum: look again.
                    self.wake_service(ctx, &service.arn);
                }
                ctx.after(PLACEMENT_RETRY, Timer::Service(service.arn.clone()));
            }
        }
    }

    /// Completion, steady state, and the end of a deleted service.
    fn settle(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(service) = self.services.get(arn) else { return };
        let desired = self.desired(service);
        let primary_id = service.primary().map(|p| p.id.clone());
        let (mut healthy, mut live, mut left, mut others) = (0, 0, 0, 0);
        for task in self.tasks_of(service).filter(|t| !t.is_stopped()) {
            left += 1;
            if task.started_by != primary_id {
                others += 1;
            } else if task.is_live() {
                live += 1;
                healthy += usize::from(task.healthy);
            }
        }
        let Some(service) = self.services.get_mut(arn) else { return };
        if service.status == "DRAINING" {
            if left == 0 {
                service.status = "INACTIVE";
                service.deployments.clear();
                ctx.after(ctx.settings.retention, Timer::ServiceForgotten(arn.to_owned()));
            }
            return;
        }
        if others > 0 || healthy < desired || live != desired {
            return;
        }
        if service.primary().is_some_and(|p| p.rollout == Rollout::InProgress) {
            deployment::complete(service, ctx);
        }
        if !std::mem::replace(&mut service.steady, true) {
            service.say(ctx, format!("(service {}) has reached a steady state.", service.name));
            service_action(service, ctx, "INFO", "SERVICE_STEADY_STATE", None);
        }
    }
}

fn service_order(service: &Service, primary: &super::service::Deployment, definition: &Definition) -> Order {
    let mut all: Vec<Tag> = Vec::new();
    if service.managed_tags {
        let cluster = super::cluster_name(&service.cluster_arn).to_owned();
        all.push(Tag { key: "aws:ecs:clusterName".into(), value: cluster });
        all.push(Tag { key: "aws:ecs:serviceName".into(), value: service.name.clone() });
    }
    match service.propagate.as_str() {
        "TASK_DEFINITION" => tags::merge(&mut all, definition.tags.clone()),
        "SERVICE" => tags::merge(&mut all, service.tags.clone()),
        _ => {}
    }
    Order {
        cluster_arn: service.cluster_arn.clone(),
        launch_type: service.launch_type,
        capacity_provider: service.provider.clone(),
        group: format!("service:{}", service.name),
        started_by: Some(primary.id.clone()),
        service: Some(service.name.clone()),
        network: primary.network.clone(),
        overrides: None,
        tags: all,
        exec: service.exec,
    }
}

/// An `ECS Service Action`.
pub(super) fn service_action(service: &Service, ctx: &mut Ctx<'_>, kind: &str, name: &str, reason: Option<&str>) {
    let mut detail = serde_json::json!({
        "eventType": kind, "eventName": name, "clusterArn": service.cluster_arn, "createdAt": crate::clock::iso(ctx.now),
    });
    if let Some(reason) = reason {
        detail["reason"] = reason.into();
    }
    ctx.emit("ECS Service Action", vec![service.arn.clone()], detail);
}
