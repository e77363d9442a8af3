//! A task: its data and how the API and the events show it.
//!
//! ```text
//!  PROVISIONING ─▶ PENDING ─▶ (ACTIVATING) ─▶ RUNNING ─▶ (DEACTIVATING, STOPPING) ─▶ DEPROVISIONING ─▶ STOPPED
//! ```
//! PROVISIONING and DEPROVISIONING exist only where a network interface is attached (`awsvpc`). The states in parentheses
//! raise no event and no version of their own, as a real task was seen to do. Transitions are in [`super::lifecycle`].

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::tags::Tag;
use super::without_nulls;
use crate::clock::{epoch, iso};
use crate::runtime::{BoundPort, Health, LaunchType, Protocol};

/// `lastStatus` of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// The network interface is being attached.
    Provisioning,
    /// Images are pulled, containers made.
    Pending,
    /// Every container has started or will not.
    Running,
    /// Containers end.
    Stopping,
    /// The network interface is being detached.
    Deprovisioning,
    /// It is over.
    Stopped,
}

impl Status {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Provisioning => "PROVISIONING",
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Deprovisioning => "DEPROVISIONING",
            Self::Stopped => "STOPPED",
        }
    }
}

/// What a task takes from a container instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// CPU units.
    pub cpu: i64,
    /// MiB.
    pub memory: i64,
    /// Fixed host ports.
    pub ports: Vec<u16>,
}

/// A network interface.
#[derive(Debug, Clone)]
pub struct Eni {
    /// Attachment id.
    pub attachment: String,
    /// `eni-…`.
    pub id: String,
    /// Subnet.
    pub subnet: String,
    /// MAC address.
    pub mac: String,
    /// Address, once known.
    pub ipv4: Option<String>,
}

/// A container of a task.
#[derive(Debug, Clone)]
pub struct Container {
    /// Name.
    pub name: String,
    /// ARN.
    pub arn: String,
    /// Image as in the definition.
    pub image: String,
    /// The task ends when it does.
    pub essential: bool,
    /// It has a health check.
    pub checked: bool,
    /// `PENDING`, `RUNNING` or `STOPPED`.
    pub last_status: &'static str,
    /// Docker id.
    pub runtime_id: Option<String>,
    /// Docker name.
    pub docker_name: Option<String>,
    /// Repository digest.
    pub image_digest: Option<String>,
    /// Image id.
    pub image_id: Option<String>,
    /// Own address, `bridge` only.
    pub ipv4: Option<String>,
    /// Ports bound on the host.
    pub ports: Vec<BoundPort>,
    /// Exit code.
    pub exit_code: Option<i32>,
    /// Why it is not running.
    pub reason: Option<String>,
    /// Health check's verdict.
    pub health: Option<Health>,
    /// Restarts by its policy.
    pub restarts: u32,
    /// Definition's `cpu`.
    pub cpu: u32,
    /// Definition's `memory`.
    pub memory: Option<u32>,
    /// Definition's `memoryReservation`.
    pub memory_reservation: Option<u32>,
    /// Last part of its metadata path.
    pub metadata_token: String,
    /// Labels, for metadata.
    pub labels: std::collections::BTreeMap<String, String>,
    /// When it was created (started, as far as this cloud sees).
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// A task.
#[derive(Debug, Clone)]
pub struct Task {
    /// ARN.
    pub arn: String,
    /// 32 hex digits.
    pub id: String,
    /// Cluster ARN.
    pub cluster_arn: String,
    /// Task definition ARN.
    pub definition_arn: String,
    /// Family.
    pub family: String,
    /// Revision.
    pub revision: u32,
    /// In definition order.
    pub containers: Vec<Container>,
    /// Where it is.
    pub last_status: Status,
    /// `desiredStatus` is STOPPED.
    pub stop_wanted: bool,
    /// Grows with each change that raises an event.
    pub version: u64,
    /// `service:NAME` or `family:NAME` or the caller's.
    pub group: String,
    /// `ecs-svc/<id>` or the caller's.
    pub started_by: Option<String>,
    /// Launch type.
    pub launch_type: LaunchType,
    /// Capacity provider, when one was asked for.
    pub capacity_provider: Option<String>,
    /// Container instance.
    pub instance_arn: Option<String>,
    /// Service name, for tasks of services.
    pub service: Option<String>,
    /// `awsvpc` interface.
    pub eni: Option<Eni>,
    /// Security groups asked for.
    pub security_groups: Vec<String>,
    /// Task-level CPU as text.
    pub cpu: String,
    /// Task-level memory as text.
    pub memory: String,
    /// What it takes from an instance.
    pub needs: Needs,
    /// Overrides as given, filled as ECS does.
    pub overrides: Value,
    /// `enableExecuteCommand`.
    pub exec: bool,
    /// Tags.
    pub tags: Vec<Tag>,
    /// Has counted as healthy for its service.
    pub healthy: bool,
    /// Credentials id, when it has a role.
    pub credentials_id: Option<String>,
    /// Availability zone.
    pub zone: String,
    /// `stopCode`.
    pub stop_code: Option<&'static str>,
    /// `stoppedReason`.
    pub stopped_reason: Option<String>,
    /// The runtime was told to start it.
    pub handed_over: bool,
    /// Times, by what happened.
    pub times: Times,
}

/// When what happened to a task.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// `createdAt`.
    pub created: Timestamp,
    /// `connectivityAt`.
    pub connected: Option<Timestamp>,
    /// `pullStartedAt`.
    pub pull_started: Option<Timestamp>,
    /// `pullStoppedAt`.
    pub pull_stopped: Option<Timestamp>,
    /// `startedAt`.
    pub started: Option<Timestamp>,
    /// `stoppingAt`.
    pub stopping: Option<Timestamp>,
    /// `executionStoppedAt`.
    pub execution_stopped: Option<Timestamp>,
    /// `stoppedAt`.
    pub stopped: Option<Timestamp>,
}

/// Which of the two ways of writing a task is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// DescribeTasks: epoch times, `ElasticNetworkInterface`.
    Api,
    /// An event: ISO times, `eni`, `updatedAt`.
    Event,
}

impl Task {
    /// `lastStatus` is STOPPED.
    pub fn is_stopped(&self) -> bool {
        self.last_status == Status::Stopped
    }

    /// `lastStatus` is RUNNING.
    pub fn is_running(&self) -> bool {
        self.last_status == Status::Running
    }

    /// On its way to RUNNING.
    pub fn is_pending(&self) -> bool {
        self.last_status < Status::Running
    }

    /// Wanted, and not over.
    pub fn is_live(&self) -> bool {
        !self.stop_wanted && !self.is_stopped()
    }

    /// `desiredStatus`.
    pub fn desired_status(&self) -> &'static str {
        if self.stop_wanted { "STOPPED" } else { "RUNNING" }
    }

    /// The container with this name.
    pub fn container_mut(&mut self, name: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.name == name)
    }

    /// `healthStatus`: that of the essential containers with a check.
    pub fn health(&self) -> &'static str {
        let mut verdicts = self.containers.iter().filter(|c| c.essential && c.checked).map(|c| c.health).peekable();
        if verdicts.peek().is_none() {
            return "UNKNOWN";
        }
        let verdicts: Vec<_> = verdicts.collect();
        if verdicts.contains(&Some(Health::Unhealthy)) {
            "UNHEALTHY"
        } else if verdicts.contains(&None) {
            "UNKNOWN"
        } else {
            "HEALTHY"
        }
    }

    /// The task as JSON. `now` is the event's `updatedAt`.
    pub fn view(&self, form: Form, with_tags: bool, now: Timestamp) -> Value {
        let time = |at: Timestamp| if form == Form::Api { epoch(at) } else { json!(iso(at)) };
        let mut view = json!({
            "attachments": self.attachments(form),
            "availabilityZone": self.zone,
            "clusterArn": self.cluster_arn,
            "connectivity": if self.times.connected.is_some() { json!("CONNECTED") } else { Value::Null },
            "containerInstanceArn": self.instance_arn,
            "capacityProviderName": self.capacity_provider,
            "containers": self.containers.iter().map(|c| self.container_view(c)).collect::<Vec<_>>(),
            "cpu": if self.cpu.is_empty() { Value::Null } else { json!(self.cpu) },
            "memory": if self.memory.is_empty() { Value::Null } else { json!(self.memory) },
            "desiredStatus": self.desired_status(),
            "enableExecuteCommand": self.exec,
            "group": self.group,
            "lastStatus": self.last_status.as_str(),
            "launchType": self.launch_type.as_str(),
            "overrides": self.overrides,
            "startedBy": self.started_by,
            "stopCode": self.stop_code,
            "stoppedReason": self.stopped_reason,
            "taskArn": self.arn,
            "taskDefinitionArn": self.definition_arn,
            "version": self.version,
        });
        let times = &self.times;
        for (name, at) in [
            ("createdAt", Some(times.created)),
            ("connectivityAt", times.connected),
            ("pullStartedAt", times.pull_started),
            ("pullStoppedAt", times.pull_stopped),
            ("startedAt", times.started),
            ("stoppingAt", times.stopping),
            ("executionStoppedAt", times.execution_stopped),
            ("stoppedAt", times.stopped),
        ] {
            view[name] = at.map_or(Value::Null, time);
        }
        if self.launch_type == LaunchType::Fargate {
            view["platformVersion"] = "1.4.0".into();
            view["platformFamily"] = "Linux".into();
            view["ephemeralStorage"] = json!({"sizeInGiB": 20});
        }
        match form {
            Form::Api => {
                view["tags"] = if with_tags { json!(self.tags) } else { json!([]) };
                view["healthStatus"] = self.health().into();
                let arch = json!({"name": "ecs.cpu-architecture", "value": if cfg!(target_arch = "aarch64") { "arm64" } else { "x86_64" }});
                view["attributes"] = json!([arch]);
            }
            Form::Event => view["updatedAt"] = iso(now).into(),
        }
        without_nulls(view)
    }

    fn attachments(&self, form: Form) -> Value {
        let Some(eni) = &self.eni else { return json!([]) };
        let status = match self.last_status {
            Status::Provisioning => "PRECREATED",
            Status::Stopped => "DELETED",
            _ => "ATTACHED",
        };
        let mut details = vec![json!({"name": "subnetId", "value": eni.subnet})];
        if self.last_status != Status::Provisioning {
            details.push(json!({"name": "networkInterfaceId", "value": eni.id}));
            details.push(json!({"name": "macAddress", "value": eni.mac}));
            if let Some(ipv4) = &eni.ipv4 {
                details.push(json!({"name": "privateIPv4Address", "value": ipv4}));
            }
        }
        let kind = if form == Form::Api { "ElasticNetworkInterface" } else { "eni" };
        json!([{"id": eni.attachment, "type": kind, "status": status, "details": details}])
    }

    fn container_view(&self, container: &Container) -> Value {
        let interfaces: Vec<Value> = match &self.eni {
            Some(eni) if self.last_status > Status::Provisioning => {
                vec![without_nulls(json!({"attachmentId": eni.attachment, "privateIpv4Address": eni.ipv4}))]
            }
            _ => Vec::new(),
        };
        let mut view = json!({
            "containerArn": container.arn,
            "taskArn": self.arn,
            "name": container.name,
            "image": container.image,
            "imageDigest": container.image_digest,
            "runtimeId": container.runtime_id,
            "lastStatus": container.last_status,
            "exitCode": container.exit_code,
            "reason": container.reason,
            "networkInterfaces": interfaces,
            "healthStatus": match container.health {
                Some(Health::Healthy) => "HEALTHY",
                Some(Health::Unhealthy) => "UNHEALTHY",
                None => "UNKNOWN",
            },
            "cpu": container.cpu.to_string(),
            "memory": container.memory.map(|m| m.to_string()),
            "memoryReservation": container.memory_reservation.map(|m| m.to_string()),
        });
        if self.eni.is_none() {
            let bindings = container.ports.iter().map(|port| {
                json!({"bindIP": "0.0.0.0", "containerPort": port.container_port, "hostPort": port.host_port,
                       "protocol": if port.protocol == Protocol::Tcp { "tcp" } else { "udp" }})
            });
            view["networkBindings"] = bindings.collect();
        }
        without_nulls(view)
    }
}

/// `overrides` with an entry for each container, as ECS shows it.
pub(super) fn full_overrides(given: Option<&Value>, names: impl Iterator<Item = String>) -> Value {
    let mut overrides = given.and_then(Value::as_object).cloned().unwrap_or_else(Map::new);
    let list = overrides.entry("containerOverrides").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        for name in names {
            if !list.iter().any(|o| o.get("name").and_then(Value::as_str) == Some(name.as_str())) {
                list.push(json!({"name": name}));
            }
        }
    }
    overrides.entry("inferenceAcceleratorOverrides").or_insert_with(|| json!([]));
    Value::Object(overrides)
}
