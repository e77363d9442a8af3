//! What ECS says there is. A projection: task definitions may hold secrets, so only what verdicts
//! need is kept.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// An interned ARN or name: cloned often, compared often, changed never.
pub type Str = Arc<str>;

/// Whether two names are equal; quick where they are one copy, as the fleet's names mostly are.
pub fn is(a: &Str, b: &Str) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// One AWS account and Region, or one Kubernetes cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ScopeId {
    /// 12 digits, or [`ScopeId::KUBERNETES`].
    pub account: Str,
    /// Such as `eu-west-1`; the name of a Kubernetes cluster.
    pub region: Str,
}

impl ScopeId {
    /// What stands in place of an account where the scope is a Kubernetes cluster.
    pub const KUBERNETES: &str = "kubernetes";

    /// The scope of a Kubernetes cluster.
    pub fn kubernetes(cluster: &str) -> Self {
        Self { account: Self::KUBERNETES.into(), region: cluster.into() }
    }
    /// Whether it is a Kubernetes cluster.
    pub fn is_kubernetes(&self) -> bool {
        &*self.account == Self::KUBERNETES
    }
}

impl std::fmt::Display for ScopeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.account, self.region)
    }
}

/// An ECS cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// ARN.
    pub arn: Str,
    /// Name.
    pub name: Str,
    /// Account and Region.
    pub scope: ScopeId,
    /// The `AwsScope` document through which it was found.
    pub aws_scope: Str,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Capacity providers.
    pub capacity_providers: Vec<String>,
}

impl Cluster {
    /// Launch types whose nodes carry a daemon.
    pub fn daemon_launches(&self) -> &'static [LaunchType] {
        match self.scope.is_kubernetes() {
            true => &[LaunchType::Kubernetes],
            false => &[LaunchType::Ec2, LaunchType::External],
        }
    }
}

/// Where a task runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LaunchType {
    /// AWS's own hosts.
    #[default]
    Fargate,
    /// The customer's EC2 instances.
    Ec2,
    /// ECS Anywhere.
    External,
    /// ECS Managed Instances.
    ManagedInstances,
    /// A Kubernetes node that can carry the agent's DaemonSet.
    Kubernetes,
    /// A Kubernetes node that cannot: EKS Fargate, virtual nodes, Windows.
    KubernetesVirtual,
}

impl LaunchType {
    /// Whether it is a pod's.
    pub fn is_kubernetes(self) -> bool {
        matches!(self, Self::Kubernetes | Self::KubernetesVirtual)
    }
}

/// The states of a task, in their order; [`TaskStatus::Stopped`] is final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TaskStatus {
    /// Resources are being made ready.
    #[default]
    Provisioning,
    /// Waiting for the agent of ECS.
    Pending,
    /// Containers run, registrations are under way.
    Activating,
    /// Runs.
    Running,
    /// Registrations are being undone.
    Deactivating,
    /// Containers are being stopped.
    Stopping,
    /// Resources are being given back.
    Deprovisioning,
    /// Ended.
    Stopped,
}

/// An ECS task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// ARN.
    pub arn: Str,
    /// Cluster ARN.
    pub cluster: Str,
    /// `service:NAME` or `family:NAME`.
    pub group: Str,
    /// `ecs-svc/<deployment id>` for a service's task.
    pub started_by: Option<Str>,
    /// Task-definition ARN with revision.
    pub definition: Str,
    /// Where it runs.
    pub launch: LaunchType,
    /// Fargate platform version, such as `1.4.0`.
    pub platform_version: Option<Str>,
    /// `Linux`, `WINDOWS_SERVER_2022_CORE`, …
    pub platform_family: Option<Str>,
    /// `x86_64` or `arm64`.
    pub architecture: Option<Str>,
    /// Container-instance ARN.
    pub node: Option<Str>,
    /// Containers.
    pub containers: Vec<Container>,
    /// What it is.
    pub status: TaskStatus,
    /// Whether it should stop.
    pub desired_stopped: bool,
    /// Rises with each change.
    pub version: i64,
    /// When it was asked for.
    pub created_at: Option<Timestamp>,
    /// When it became RUNNING.
    pub started_at: Option<Timestamp>,
    /// When it became STOPPED.
    pub stopped_at: Option<Timestamp>,
    /// Such as `EssentialContainerExited`.
    pub stop_code: Option<Str>,
    /// For people.
    pub stopped_reason: Option<Str>,
    /// The task's own address (awsvpc).
    pub address: Option<IpAddr>,
}

impl Task {
    /// Name of the service that owns it.
    pub fn service_name(&self) -> Option<&str> {
        self.group.strip_prefix("service:")
    }
    /// Whether it runs where only a sidecar can watch it, and one can be added: EKS Fargate.
    pub fn needs_sidecar(&self) -> bool {
        self.launch == LaunchType::KubernetesVirtual && self.platform_family.as_deref() == Some("fargate")
    }
    /// The task id: the last part of its ARN.
    pub fn id(&self) -> &str {
        self.arn.rsplit('/').next().unwrap_or(&self.arn)
    }
}

/// A container of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Name in the definition.
    pub name: Str,
    /// ContainerARN.
    pub arn: Str,
    /// DockerId; absent until it was started.
    pub runtime_id: Option<Str>,
    /// Image as it was asked for.
    pub image: Str,
    /// `sha256:…` of what runs.
    pub image_digest: Option<Str>,
    /// Such as `RUNNING`.
    pub status: Str,
    /// Exit code, once it ended.
    pub exit_code: Option<i32>,
    /// Such as `CannotPullContainerError: …`.
    pub reason: Option<Str>,
}

/// What rolls a service's tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeploymentController {
    /// ECS itself.
    #[default]
    Ecs,
    /// AWS CodeDeploy.
    CodeDeploy,
    /// The owner's own, by task sets.
    External,
}

/// How ECS rolls a service's tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// Replace step by step.
    #[default]
    Rolling,
    /// BLUE_GREEN, LINEAR or CANARY.
    TrafficShifting,
}

/// An ECS service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// ARN.
    pub arn: Str,
    /// Cluster ARN.
    pub cluster: Str,
    /// Name.
    pub name: Str,
    /// Task-definition ARN that it should run.
    pub definition: Str,
    /// ACTIVE; a DRAINING or INACTIVE service is being deleted.
    pub active: bool,
    /// What rolls its tasks.
    pub controller: DeploymentController,
    /// How.
    pub strategy: Strategy,
    /// DAEMON instead of REPLICA.
    pub daemon: bool,
    /// Where its tasks run.
    pub launch: LaunchType,
    /// Tasks wanted.
    pub desired: u32,
    /// Tasks that run.
    pub running: u32,
    /// minimumHealthyPercent.
    pub minimum_healthy: u32,
    /// maximumPercent.
    pub maximum: u32,
    /// Lifecycle hooks run in its deployments.
    pub has_hooks: bool,
    /// Managed by ECS Express Mode.
    pub express: bool,
    /// Its deployments, the primary one first.
    pub deployments: Vec<Deployment>,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// Fargate platform version that it asks for, such as `LATEST`.
    pub platform_version: Option<Str>,
    /// Subnets of its tasks.
    pub subnets: Vec<Str>,
    /// Security groups of its tasks.
    pub security_groups: Vec<Str>,
    /// The newest service events, the newest first, at most five.
    pub events: Vec<Str>,
    /// When it was created.
    pub created_at: Option<Timestamp>,
}

/// One deployment of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Id, `ecs-svc/…`.
    pub id: Str,
    /// PRIMARY.
    pub primary: bool,
    /// Task-definition ARN.
    pub definition: Str,
    /// How far it is.
    pub rollout: RolloutState,
    /// For people.
    pub rollout_reason: Option<Str>,
    /// Tasks wanted.
    pub desired: u32,
    /// Tasks that wait.
    pub pending: u32,
    /// Tasks that run.
    pub running: u32,
    /// Tasks that failed to start.
    pub failed: u32,
    /// When it began.
    pub created_at: Option<Timestamp>,
}

/// How far a deployment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutState {
    /// Under way.
    #[default]
    InProgress,
    /// Done.
    Completed,
    /// Given up.
    Failed,
}

/// An ECS container instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Container-instance ARN.
    pub arn: Str,
    /// Cluster ARN.
    pub cluster: Str,
    /// EC2 instance id, or `mi-…` for External.
    pub instance_id: Option<Str>,
    /// ACTIVE; DRAINING and others get no daemon task.
    pub active: bool,
    /// The agent of ECS is connected, or the kubelet (the node is Ready).
    pub connected: bool,
    /// Since when it is, or is not; the fleet sets this, by its own clock.
    pub turned_at: Option<Timestamp>,
    /// Attributes, such as `ecs.os-type`; a custom one without value maps to "".
    pub attributes: BTreeMap<String, String>,
    /// Taints that keep pods away, and so an agent that does not tolerate them; ECS has none.
    pub taints: Vec<Taint>,
    /// Free memory, MiB.
    pub free_memory: u32,
    /// Free CPU units.
    pub free_cpu: u32,
    /// Where it stands.
    pub launch: LaunchType,
    /// Rises with each change.
    pub version: i64,
}

/// A taint of a Kubernetes node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Key.
    pub key: Str,
    /// Value; may be empty.
    pub value: Str,
    /// `NoSchedule` or `NoExecute`; others keep nobody away.
    pub effect: Str,
}

/// What of a task definition verdicts and transforms need to know. Never environment or secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// ARN with revision.
    pub arn: Str,
    /// Hexadecimal SHA-256 of its content without the read-only fields.
    pub hash: Str,
    /// ACTIVE.
    pub active: bool,
    /// Container names, in order.
    pub containers: Vec<Str>,
    /// Role with which its tasks' own calls are made.
    #[serde(default)]
    pub task_role: Option<Str>,
    /// The sidecar that it carries, if one.
    pub sidecar: Option<SidecarMark>,
    /// Why the sidecar cannot be added, judged by [`crate::transform`]; `None` where it can.
    pub obstacle: Option<(tasuki_api::coverage::Reason, String)>,
    /// Fingerprint of the [`crate::action::SidecarSpec`] that `obstacle` was judged for; `None`
    /// where it was not judged.
    #[serde(default)]
    pub judged_for: Option<Str>,
}

/// What a sidecar's labels say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidecarMark {
    /// Agent version.
    pub version: Str,
    /// Image with digest.
    pub image: Str,
    /// Definition that it was added to; absent where the owner's pipeline added it.
    pub source: Option<Str>,
    /// Hash of that definition's content.
    pub source_hash: Option<Str>,
    /// Fingerprint of the agent spec that it was made from; absent where the owner's pipeline made it.
    #[serde(default)]
    pub spec: Option<Str>,
}

/// Something that observe found out.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A cluster exists.
    Cluster(Box<Cluster>),
    /// A service exists.
    Service(Box<Service>),
    /// A service is gone.
    ServiceGone(Str),
    /// A node exists, as an event says: a hint, which a later reading overrules.
    Node(Box<Node>),
    /// A node exists, as ECS itself says.
    NodeRead {
        /// When the reading began.
        read_at: Timestamp,
        /// What was read.
        node: Box<Node>,
    },
    /// A node is gone.
    NodeGone(Str),
    /// A task exists, or has ended, as an event says: a hint, which a later reading overrules.
    Task(Box<Task>),
    /// A task exists, or has ended, as ECS itself says.
    TaskRead {
        /// When the reading began.
        read_at: Timestamp,
        /// What was read.
        task: Box<Task>,
    },
    /// A definition was described.
    Definition(Box<Definition>),
    /// An agent was heard.
    Agent(Box<super::AgentReport>),
    /// A cluster was read in full at `read_at` (when the reading began): whatever of it was known
    /// before and is in none of the lists is gone. Tasks that are gone become tombstones.
    Swept {
        /// Cluster ARN.
        cluster: Str,
        /// When the reading began.
        read_at: Timestamp,
        /// ARNs of all its tasks.
        tasks: Vec<Str>,
        /// ARNs of all its services.
        services: Vec<Str>,
        /// ARNs of all its nodes.
        nodes: Vec<Str>,
    },
    /// A scope was read in full: clusters not in the list are gone.
    ScopeSwept {
        /// Account and Region.
        scope: ScopeId,
        /// When the reading began.
        read_at: Timestamp,
        /// ARNs of all its clusters.
        clusters: Vec<Str>,
    },
    /// A scope refuses a call that is needed.
    Denied {
        /// Account and Region.
        scope: ScopeId,
        /// Such as `ecs:ListTasks`.
        api: String,
        /// Who was refused, and AWS's words.
        detail: String,
    },
    /// Act found something in the way of an action that decide could not see (protected tasks, a
    /// probe that failed, a budget that is used up). Believed for [`super::OBSTRUCTION_AGE`].
    Obstructed {
        /// Service or cluster ARN.
        target: Str,
        /// Reason.
        reason: tasuki_api::coverage::Reason,
        /// Detail.
        detail: String,
    },
}
