//! Container instances: what they offer, what is left of it, and who may be placed on them.

use indexmap::IndexMap;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::tags::Tag;
use super::{Ecs, Task};
use crate::clock::{epoch, iso};
use crate::effect::Ctx;

/// A container instance.
#[derive(Debug, Clone)]
pub struct Instance {
    /// ARN.
    pub arn: String,
    /// Cluster ARN.
    pub cluster_arn: String,
    /// `i-…`, or `mi-…` for an external one.
    pub ec2_instance_id: String,
    /// True for ECS Anywhere.
    pub external: bool,
    /// Attributes, value optional.
    pub attributes: IndexMap<String, Option<String>>,
    /// CPU units it offers.
    pub cpu: u32,
    /// Memory it offers, MiB.
    pub memory: u32,
    /// `ACTIVE`, `DRAINING` or `INACTIVE`.
    pub status: &'static str,
    /// The ECS agent on it is connected.
    pub agent_connected: bool,
    /// Tags.
    pub tags: Vec<Tag>,
    /// Grows with each change.
    pub version: u64,
    registered_at: Timestamp,
}

/// What a new container instance looks like.
#[derive(Debug, Clone)]
pub struct InstanceOptions {
    /// CPU units.
    pub cpu: u32,
    /// Memory, MiB.
    pub memory: u32,
    /// ECS Anywhere.
    pub external: bool,
    /// Attributes beside the built-in ones.
    pub attributes: Vec<(String, Option<String>)>,
    /// `ecs.instance-type`.
    pub instance_type: String,
    /// `ecs.cpu-architecture`, `x86_64` or `arm64`.
    pub architecture: String,
}

impl Default for InstanceOptions {
    fn default() -> Self {
        Self {
            cpu: 2048,
            memory: 7_800,
            external: false,
            attributes: Vec::new(),
            instance_type: "t3.large".into(),
            architecture: if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }.into(),
        }
    }
}

impl Instance {
    /// Short id, the last part of the ARN.
    pub fn id(&self) -> &str {
        super::short(&self.arn)
    }

    pub(super) fn new(ctx: &mut Ctx<'_>, cluster: &str, options: InstanceOptions) -> Self {
        let id = ctx.hex_id();
        let zone = format!("{}a", ctx.place.region);
        let mut attributes: IndexMap<String, Option<String>> = IndexMap::new();
        for (name, value) in [
            ("ecs.os-type", "linux"),
            ("ecs.os-family", "LINUX"),
            ("ecs.cpu-architecture", options.architecture.as_str()),
            ("ecs.instance-type", options.instance_type.as_str()),
            ("ecs.availability-zone", zone.as_str()),
        ] {
            attributes.insert(name.into(), Some(value.into()));
        }
        for name in [
            "com.amazonaws.ecs.capability.docker-remote-api.1.18",
            "com.amazonaws.ecs.capability.privileged-container",
            "com.amazonaws.ecs.capability.task-iam-role",
            "ecs.capability.task-eni",
            "ecs.capability.pid-ipc-namespace-sharing",
            "ecs.capability.container-ordering",
        ] {
            attributes.insert(name.into(), None);
        }
        if options.external {
            attributes.insert("ecs.capability.external".into(), None);
            attributes.shift_remove("ecs.capability.task-eni");
        }
        attributes.extend(options.attributes);
        Self {
            arn: ctx.arn(format!("container-instance/{cluster}/{id}")),
            cluster_arn: ctx.arn(format!("cluster/{cluster}")),
            ec2_instance_id: ctx.ec2_id(if options.external { "mi" } else { "i" }),
            external: options.external,
            attributes,
            cpu: options.cpu,
            memory: options.memory,
            status: "ACTIVE",
            agent_connected: true,
            tags: Vec::new(),
            version: 0,
            registered_at: ctx.now,
        }
    }

    #[cfg(test)]
    pub(super) fn for_test(options: InstanceOptions) -> Self {
        use rand::SeedableRng;
        let place = crate::effect::Place { account: "111122223333".into(), region: "eu-west-1".into() };
        let mut effects = Vec::new();
        let mut ctx = Ctx {
            now: Timestamp::UNIX_EPOCH,
            place: &place,
            caller: "test",
            settings: &crate::settings::Settings::default(),
            rng: &mut rand::rngs::StdRng::seed_from_u64(1),
            effects: &mut effects,
        };
        Self::new(&mut ctx, "c", options)
    }
}

/// CPU units, MiB and fixed host ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Room {
    pub cpu: i64,
    pub memory: i64,
    pub ports: Vec<u16>,
}

impl Ecs {
    /// What the tasks on an instance leave free (`ports`: those that are taken).
    pub(super) fn room(&self, instance: &Instance) -> Room {
        let mut room =
            Room { cpu: instance.cpu.into(), memory: instance.memory.into(), ports: vec![22, 2375, 2376, 51678] };
        for task in self.tasks_on(&instance.arn) {
            room.cpu -= task.needs.cpu;
            room.memory -= task.needs.memory;
            room.ports.extend(&task.needs.ports);
        }
        room
    }

    pub(super) fn tasks_on<'a>(&'a self, instance_arn: &'a str) -> impl Iterator<Item = &'a Task> {
        let cluster_arn = self.instances.get(instance_arn).map_or("", |instance| &instance.cluster_arn);
        self.tasks.of(cluster_arn).filter(move |t| t.instance_arn.as_deref() == Some(instance_arn) && !t.is_stopped())
    }

    /// The instance as DescribeContainerInstances (`event: false`) or an event's detail shows it.
    pub(super) fn instance_view(&self, instance: &Instance, event: bool, with_tags: bool, now: Timestamp) -> Value {
        let room = self.room(instance);
        let resources = |cpu: i64, memory: i64, ports: &[u16]| {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            json!([
                {"name": "CPU", "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": cpu},
                {"name": "MEMORY", "type": "INTEGER", "doubleValue": 0.0, "longValue": 0, "integerValue": memory},
                {"name": "PORTS", "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0, "integerValue": 0, "stringSetValue": ports},
                {"name": "PORTS_UDP", "type": "STRINGSET", "doubleValue": 0.0, "longValue": 0, "integerValue": 0, "stringSetValue": []},
            ])
        };
        let attributes: Vec<Value> = instance
            .attributes
            .iter()
            .map(|(name, value)| match value {
                Some(value) => json!({"name": name, "value": value}),
                None => json!({"name": name}),
            })
            .collect();
        let mut view = json!({
            "containerInstanceArn": instance.arn,
            "ec2InstanceId": instance.ec2_instance_id,
            "version": instance.version,
            "versionInfo": {"agentVersion": "1.105.1", "agentHash": "*00000000", "dockerVersion": "DockerVersion: 25.0.8"},
            "remainingResources": resources(room.cpu, room.memory, &room.ports),
            "registeredResources": resources(instance.cpu.into(), instance.memory.into(), &[22, 2375, 2376, 51678]),
            "status": instance.status,
            "agentConnected": instance.agent_connected,
            "runningTasksCount": self.tasks_on(&instance.arn).filter(|t| t.is_running()).count(),
            "pendingTasksCount": self.tasks_on(&instance.arn).filter(|t| t.is_pending()).count(),
            "attributes": attributes,
            "registeredAt": if event { json!(iso(instance.registered_at)) } else { epoch(instance.registered_at) },
            "attachments": [],
        });
        if event {
            view["clusterArn"] = instance.cluster_arn.clone().into();
            view["accountType"] = "TASK_ACCOUNT".into();
            view["updatedAt"] = iso(now).into();
            // An event names the numbers only that belong to the type.
            for side in ["registeredResources", "remainingResources"] {
                for resource in view[side].as_array_mut().into_iter().flatten() {
                    if let Some(resource) = resource.as_object_mut() {
                        resource.retain(|name, _| name != "doubleValue" && name != "longValue");
                        if resource.contains_key("stringSetValue") {
                            resource.shift_remove("integerValue");
                        }
                    }
                }
            }
        } else {
            view["tags"] = if with_tags { json!(instance.tags) } else { json!([]) };
        }
        view
    }

    /// Notes a change of an instance: version, event, and services that may place or move tasks.
    pub(super) fn instance_changed(&mut self, ctx: &mut Ctx<'_>, arn: &str) {
        if let Some(instance) = self.instances.get_mut(arn) {
            instance.version += 1;
        }
        let Some(instance) = self.instances.get(arn) else { return };
        let detail = self.instance_view(instance, true, false, ctx.now);
        ctx.emit("ECS Container Instance State Change", vec![arn.to_owned()], detail);
    }
}
