//! The transitions of a task: created, provisioned, started, stopping, stopped.
//!
//! One function per transition; each moves `version` exactly when ECS raises an event for it.

use serde_json::{Value, json};

use super::place::needs;
use super::tags::Tag;
use super::task::{Container, Eni, Form, Status, Task, Times, full_overrides};
use super::{Definition, Ecs, cluster_name, spec};
use crate::auth::identity::TaskRole;
use crate::effect::{Ctx, Effect, Timer};
use crate::runtime::{LaunchType, RuntimeEvent, RuntimeEventKind};

/// Everything that a new task gets from who asked for it.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub cluster_arn: String,
    pub launch_type: LaunchType,
    pub capacity_provider: Option<String>,
    pub group: String,
    pub started_by: Option<String>,
    pub service: Option<String>,
    pub network: Option<Value>,
    pub overrides: Option<Value>,
    pub tags: Vec<Tag>,
    pub exec: bool,
}

impl Ecs {
    /// A new task, PROVISIONING (with an interface) or PENDING; its ARN.
    pub(super) fn create_task(
        &mut self,
        ctx: &mut Ctx<'_>,
        definition: &Definition,
        order: &Order,
        instance_arn: Option<String>,
    ) -> String {
        let id = ctx.hex_id();
        let cluster = cluster_name(&order.cluster_arn).to_owned();
        let arn = ctx.arn(format!("task/{cluster}/{id}"));
        let aws = order.network.as_ref().and_then(|n| n.get("awsvpcConfiguration"));
        let strings = |member: &str| -> Vec<String> {
            let list = aws.and_then(|a| a.get(member)).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let eni = (definition.text("networkMode") == Some("awsvpc")).then(|| Eni {
            attachment: ctx.uuid(),
            id: ctx.ec2_id("eni"),
            subnet: strings("subnets").into_iter().next().unwrap_or_default(),
            mac: "0a:00:00:00:00:00".into(),
            ipv4: None,
        });
        let role = order
            .overrides
            .as_ref()
            .and_then(|o| o.get("taskRoleArn")?.as_str())
            .or_else(|| definition.text("taskRoleArn"))
            .filter(|role| !role.is_empty());
        let credentials_id = role.map(|_| ctx.uuid());
        if let (Some(role), Some(credentials)) = (role, &credentials_id) {
            let grant = TaskRole { role_arn: role.into(), session: id.clone() };
            ctx.effects.push(Effect::Grant(credentials.clone(), grant));
        }
        let containers = containers(ctx, definition, &cluster, &id);
        let names: Vec<String> = containers.iter().map(|c: &Container| c.name.clone()).collect();
        let size = |kind: &str| {
            let overridden = order.overrides.as_ref().and_then(|o| o.get(kind)?.as_str());
            overridden.or_else(|| definition.text(kind)).unwrap_or_default().to_owned()
        };
        let task = Task {
            arn: arn.clone(),
            id,
            cluster_arn: order.cluster_arn.clone(),
            definition_arn: definition.arn.clone(),
            family: definition.family.clone(),
            revision: definition.revision,
            containers,
            last_status: if eni.is_some() { Status::Provisioning } else { Status::Pending },
            stop_wanted: false,
            version: 0,
            group: order.group.clone(),
            started_by: order.started_by.clone(),
            launch_type: order.launch_type,
            capacity_provider: order.capacity_provider.clone(),
            instance_arn: instance_arn.clone(),
            service: order.service.clone(),
            eni,
            security_groups: strings("securityGroups"),
            cpu: size("cpu"),
            memory: size("memory"),
            needs: needs(definition),
            overrides: full_overrides(order.overrides.as_ref(), names.into_iter()),
            exec: order.exec,
            tags: order.tags.clone(),
            healthy: false,
            credentials_id,
            zone: format!("{}a", ctx.place.region),
            stop_code: None,
            stopped_reason: None,
            handed_over: false,
            times: Times { created: ctx.now, ..Times::default() },
        };
        let provisioning = task.last_status == Status::Provisioning;
        self.tasks.insert(task);
        self.task_changed(ctx, &arn);
        if let Some(instance) = instance_arn {
            self.instance_changed(ctx, &instance);
        }
        if provisioning {
            ctx.after(ctx.settings.provision, Timer::TaskProvisioned(arn.clone()));
        } else {
            self.hand_over(ctx, &arn);
        }
        arn
    }

    /// PROVISIONING → PENDING: the interface is there, containers can be made.
    pub(super) fn provisioned(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(task) = self.tasks.get_mut(arn).filter(|t| t.last_status == Status::Provisioning) else { return };
        if task.stop_wanted {
            return self.deprovision(ctx, arn);
        }
        task.last_status = Status::Pending;
        self.task_changed(ctx, arn);
        self.hand_over(ctx, arn);
    }

    fn hand_over(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(task) = self.tasks.get(arn) else { return };
        let Ok(definition) = self.definition(&task.definition_arn) else { return };
        let instance = task.instance_arn.as_ref().and_then(|i| self.instances.get(i));
        let order = spec::task_spec(ctx, task, definition, instance);
        for (container, labels) in order.containers.iter().map(|c| (c.name.clone(), c.labels.clone())) {
            if let Some(container) = self.tasks.get_mut(arn).and_then(|t| t.container_mut(&container)) {
                container.labels = labels;
            }
        }
        if let Some(task) = self.tasks.get_mut(arn) {
            task.handed_over = true;
            // The execution environment is connected from here on.
            task.times.connected = Some(ctx.now);
        }
        ctx.effects.push(Effect::Start(Box::new(order)));
    }

    /// `desiredStatus` becomes STOPPED. Without effect on a task that is already on its way out.
    pub(super) fn stop_task(&mut self, ctx: &mut Ctx<'_>, arn: &str, code: &'static str, reason: &str) {
        let Some(task) = self.tasks.get_mut(arn).filter(|t| t.is_live()) else { return };
        task.stop_wanted = true;
        task.stop_code = Some(code);
        task.stopped_reason = Some(reason.to_owned());
        task.times.stopping = Some(ctx.now);
        let handed_over = task.handed_over;
        self.task_changed(ctx, arn);
        if handed_over {
            ctx.effects.push(Effect::Stop(arn.to_owned()));
        }
        self.wake_service_of(ctx, arn);
    }

    /// Every container has ended: detach the interface, or be over at once.
    fn deprovision(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(task) = self.tasks.get_mut(arn).filter(|t| t.last_status < Status::Deprovisioning) else { return };
        task.times.execution_stopped.get_or_insert(ctx.now);
        for container in &mut task.containers {
            container.last_status = "STOPPED";
        }
        if task.eni.is_none() {
            return self.stopped(ctx, arn);
        }
        task.last_status = Status::Deprovisioning;
        self.task_changed(ctx, arn);
        ctx.after(ctx.settings.deprovision, Timer::TaskDeprovisioned(arn.to_owned()));
    }

    /// DEPROVISIONING → STOPPED.
    pub(super) fn stopped(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(task) = self.tasks.get_mut(arn).filter(|t| !t.is_stopped()) else { return };
        task.last_status = Status::Stopped;
        task.stop_wanted = true;
        task.times.stopped = Some(ctx.now);
        let (instance, credentials) = (task.instance_arn.clone(), task.credentials_id.clone());
        self.task_changed(ctx, arn);
        ctx.effects.push(Effect::Remove(arn.to_owned()));
        ctx.effects.extend(credentials.map(Effect::Revoke));
        ctx.after(ctx.settings.retention, Timer::TaskForgotten(arn.to_owned()));
        if let Some(instance) = instance {
            self.instance_changed(ctx, &instance);
        }
        self.service_task_stopped(ctx, arn);
        let cluster = self.tasks.get(arn).map(|t| t.cluster_arn.clone()).unwrap_or_default();
        // Room became free: anybody may have waited for it.
        self.wake_services(ctx, &cluster);
    }

    /// The instance is gone and with it all that ran there.
    pub(super) fn lose_tasks_of(&mut self, ctx: &mut Ctx<'_>, instance_arn: &str) {
        let lost: Vec<String> = self.tasks_on(instance_arn).map(|t| t.arn.clone()).collect();
        for arn in lost {
            let reason = format!("Host EC2 (instance {}) terminated.", super::short(instance_arn));
            self.stop_task(ctx, &arn, "InfrastructureHealth", &reason);
        }
    }

    /// What the runtime says.
    pub(crate) fn runtime_event(&mut self, ctx: &mut Ctx<'_>, event: RuntimeEvent) {
        let arn = event.task_arn;
        let Some(task) = self.tasks.get_mut(&arn) else { return };
        let ec2 = task.launch_type != LaunchType::Fargate;
        match event.kind {
            RuntimeEventKind::PullStarted => task.times.pull_started = Some(ctx.now),
            RuntimeEventKind::PullStopped => task.times.pull_stopped = Some(ctx.now),
            RuntimeEventKind::NetworkReady { private_ipv4, mac } => {
                if let Some(eni) = &mut task.eni {
                    eni.ipv4 = Some(private_ipv4);
                    eni.mac = mac.unwrap_or_else(|| eni.mac.clone());
                }
            }
            RuntimeEventKind::ContainerStarted {
                container,
                runtime_id,
                docker_name,
                image_digest,
                image_id,
                ipv4,
                ports,
                restart_count,
            } => {
                let Some(container) = task.container_mut(&container) else { return };
                container.last_status = "RUNNING";
                container.runtime_id = Some(runtime_id);
                container.docker_name = Some(docker_name);
                container.image_digest = image_digest;
                container.image_id = image_id;
                container.ipv4 = ipv4;
                container.ports = ports;
                container.restarts = restart_count;
                container.exit_code = None;
                container.started_at = Some(ctx.now);
                let running = task.is_running();
                if !self.run_if_complete(ctx, &arn) && (ec2 || running) {
                    self.task_changed(ctx, &arn);
                }
            }
            RuntimeEventKind::ContainerHealth { container, health } => {
                if let Some(container) = task.container_mut(&container) {
                    container.health = Some(health);
                }
                self.task_changed(ctx, &arn);
                self.judge_health(ctx, &arn);
            }
            RuntimeEventKind::ContainerExited { container, exit_code, oom_killed } => {
                let Some(container) = task.container_mut(&container) else { return };
                container.last_status = "STOPPED";
                container.exit_code = Some(exit_code);
                container.finished_at = Some(ctx.now);
                if oom_killed {
                    container.reason = Some("OutOfMemoryError: Container killed due to memory usage".into());
                }
                let essential = container.essential;
                if !task.is_live() {
                    return;
                }
                if essential {
                    self.stop_task(ctx, &arn, "EssentialContainerExited", "Essential container in task exited");
                } else if !self.run_if_complete(ctx, &arn) {
                    self.task_changed(ctx, &arn);
                }
            }
            RuntimeEventKind::ContainerFailed { container, kind, reason } => {
                let text = format!("{}: {reason}", kind.as_str());
                let Some(container) = task.container_mut(&container) else { return };
                container.last_status = "STOPPED";
                container.reason = Some(text.clone());
                container.finished_at = Some(ctx.now);
                if container.essential {
                    self.stop_task(ctx, &arn, "TaskFailedToStart", &text);
                } else if !self.run_if_complete(ctx, &arn) {
                    self.task_changed(ctx, &arn);
                }
            }
            RuntimeEventKind::TaskFailed { kind, reason } => {
                self.stop_task(ctx, &arn, "TaskFailedToStart", &format!("{}: {reason}", kind.as_str()));
            }
            RuntimeEventKind::TaskStopped => {
                if task.is_live() {
                    task.stop_code = Some("EssentialContainerExited");
                    task.stopped_reason = Some("Essential container in task exited".into());
                    task.stop_wanted = true;
                }
                self.deprovision(ctx, &arn);
            }
        }
    }

    /// PENDING → RUNNING when every container runs or is over. True when it happened.
    fn run_if_complete(&mut self, ctx: &mut Ctx<'_>, arn: &str) -> bool {
        let Some(task) = self.tasks.get_mut(arn) else { return false };
        let ready = task.containers.iter().all(|c| c.last_status != "PENDING");
        if task.last_status != Status::Pending || task.stop_wanted || !ready {
            return false;
        }
        task.last_status = Status::Running;
        task.times.started = Some(ctx.now);
        let instance = task.instance_arn.clone();
        let checked = task.containers.iter().any(|c| c.essential && c.checked);
        self.task_changed(ctx, arn);
        if let Some(instance) = instance {
            self.instance_changed(ctx, &instance);
        }
        if checked {
            self.judge_health(ctx, arn);
        } else {
            ctx.after(ctx.settings.steady_after, Timer::TaskSteady(arn.to_owned()));
        }
        self.wake_service_of(ctx, arn);
        true
    }

    fn judge_health(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(task) = self.tasks.get(arn).filter(|t| t.is_live()) else { return };
        match task.health() {
            "HEALTHY" if task.is_running() => self.steady(ctx, arn),
            "UNHEALTHY" if task.service.is_some() => {
                self.stop_task(ctx, arn, "ServiceSchedulerInitiated", "Task failed container health checks");
            }
            _ => {}
        }
    }

    /// A task counts as healthy for its service from now on.
    pub(super) fn steady(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(task) = self.tasks.get_mut(arn).filter(|t| t.is_running() && t.is_live()) else { return };
        if !std::mem::replace(&mut task.healthy, true) {
            self.service_task_healthy(ctx, arn);
        }
    }

    /// Version and event.
    fn task_changed(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        let Some(task) = self.tasks.get_mut(arn) else { return };
        task.version += 1;
        let detail = task.view(Form::Event, false, ctx.now);
        ctx.emit("ECS Task State Change", vec![arn.to_owned()], detail);
    }
}

fn containers(ctx: &mut Ctx<'_>, definition: &Definition, cluster: &str, id: &str) -> Vec<Container> {
    let number = |c: &Value, member: &str| c.get(member).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let text = |c: &Value, member: &str| c.get(member).and_then(Value::as_str).unwrap_or_default().to_owned();
    definition
        .containers()
        .map(|c| Container {
            name: text(c, "name"),
            arn: container_arn(ctx, cluster, id),
            image: text(c, "image"),
            essential: c.get("essential") != Some(&json!(false)),
            checked: c.get("healthCheck").is_some_and(|h| !super::validate::is_empty(h)),
            last_status: "PENDING",
            runtime_id: None,
            docker_name: None,
            image_digest: None,
            image_id: None,
            ipv4: None,
            ports: Vec::new(),
            exit_code: None,
            reason: None,
            health: None,
            restarts: 0,
            cpu: number(c, "cpu").unwrap_or(0),
            memory: number(c, "memory"),
            memory_reservation: number(c, "memoryReservation"),
            metadata_token: format!("{id}-{}", ctx.decimal_id()),
            labels: Default::default(),
            started_at: None,
            finished_at: None,
        })
        .collect()
}

fn container_arn(ctx: &mut Ctx<'_>, cluster: &str, id: &str) -> String {
    let unique = ctx.uuid();
    ctx.arn(format!("container/{cluster}/{id}/{unique}"))
}
