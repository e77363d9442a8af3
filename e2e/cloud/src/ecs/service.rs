//! Services and their deployments: the data, and the small rules that need no other part of ECS.

use std::collections::VecDeque;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::place::Constraints;
use super::tags::Tag;
use crate::effect::Ctx;
use crate::runtime::LaunchType;

/// Service events kept, as DescribeServices shows.
const MAX_EVENTS: usize = 100;
/// Finished service deployments kept. AWS keeps 90 days; a long run must not grow without end.
pub(super) const MAX_RECORDS: usize = 500;

/// `schedulingStrategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// A number of tasks.
    Replica,
    /// One task per instance.
    Daemon,
}

/// `deploymentController.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// ECS itself.
    Ecs,
    /// CodeDeploy drives deployments; this cloud only refuses what ECS refuses then.
    CodeDeploy,
    /// Task sets; only stored.
    External,
}

impl Controller {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ecs => "ECS",
            Self::CodeDeploy => "CODE_DEPLOY",
            Self::External => "EXTERNAL",
        }
    }
}

/// `rolloutState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollout {
    /// Not there yet.
    InProgress,
    /// Every task is healthy and no older one is left.
    Completed,
    /// The circuit breaker gave up, or it was stopped.
    Failed,
}

impl Rollout {
    /// The API's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "IN_PROGRESS",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
        }
    }
}

/// One entry of `deployments[]`.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// `ecs-svc/<19 digits>`, the `startedBy` of its tasks.
    pub id: String,
    /// Task definition ARN.
    pub definition_arn: String,
    /// Service revision ARN.
    pub revision_arn: String,
    /// Network configuration of its tasks.
    pub network: Option<Value>,
    /// `rolloutState`.
    pub rollout: Rollout,
    /// `rolloutStateReason`.
    pub reason: String,
    /// `failedTasks`.
    pub failed: usize,
    /// Failures since a task was last healthy; the circuit breaker counts these.
    pub consecutive: usize,
    /// When it began.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}

/// One service deployment (`ListServiceDeployments`): outlives the entry in `deployments[]`.
#[derive(Debug, Clone)]
pub struct Record {
    /// ARN.
    pub arn: String,
    /// Id of the deployment that it stands for; a rollback's once one began.
    pub deployment: String,
    /// `status`.
    pub status: &'static str,
    /// `statusReason`.
    pub reason: Option<String>,
    /// Revisions that were running when it began.
    pub sources: Vec<String>,
    /// Revision that it brings.
    pub target: String,
    /// Revision that a rollback brings back, with its reason and start.
    pub rollback: Option<(String, String, Timestamp)>,
    /// When it began.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// When a stop was asked for.
    pub stopped: Option<Timestamp>,
}

/// A service revision: what a deployment brings.
#[derive(Debug, Clone)]
pub struct Revision {
    /// ARN.
    pub arn: String,
    /// Task definition ARN.
    pub definition_arn: String,
    /// Network configuration.
    pub network: Option<Value>,
    /// When it was made.
    pub created: Timestamp,
}

/// An entry of `events[]`.
#[derive(Debug, Clone)]
pub struct ServiceEvent {
    /// UUID.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// What.
    pub message: String,
}

/// A service.
#[derive(Debug, Clone)]
pub struct Service {
    /// ARN.
    pub arn: String,
    /// Name.
    pub name: String,
    /// Cluster ARN.
    pub cluster_arn: String,
    /// `ACTIVE`, `DRAINING` or `INACTIVE`.
    pub status: &'static str,
    /// REPLICA or DAEMON.
    pub scheduling: Scheduling,
    /// `desiredCount` of a REPLICA service.
    pub desired: usize,
    /// Launch type of its tasks.
    pub launch_type: LaunchType,
    /// Capacity provider, when one was asked for.
    pub provider: Option<String>,
    /// Who deploys.
    pub controller: Controller,
    /// `placementConstraints`, parsed.
    pub constraints: Constraints,
    /// `minimumHealthyPercent`.
    pub minimum: usize,
    /// `maximumPercent`.
    pub maximum: usize,
    /// Circuit breaker: enabled, with rollback.
    pub breaker: Option<bool>,
    /// Task definition ARN of the newest deployment (or of a CODE_DEPLOY or EXTERNAL service as created).
    pub definition_arn: String,
    /// Members that this cloud stores and shows without acting on them.
    pub kept: Map<String, Value>,
    /// Tags.
    pub tags: Vec<Tag>,
    /// `propagateTags`.
    pub propagate: String,
    /// `enableECSManagedTags`.
    pub managed_tags: bool,
    /// `enableExecuteCommand`.
    pub exec: bool,
    /// Newest (PRIMARY) first.
    pub deployments: Vec<Deployment>,
    /// Newest first.
    pub records: VecDeque<Record>,
    /// Oldest first.
    pub revisions: Vec<Revision>,
    /// Newest first.
    pub events: VecDeque<ServiceEvent>,
    /// When it was created.
    pub created: Timestamp,
    /// Who created it.
    pub created_by: String,
    /// No new task before that time.
    pub(super) retry_at: Option<Timestamp>,
    /// A wake-up is already planned for now.
    pub(super) woken: bool,
    /// The steady state was announced and still holds.
    pub(super) steady: bool,
    /// A task could not be placed; look again when room may be free.
    pub(super) waiting: bool,
}

impl Service {
    /// ACTIVE or DRAINING.
    pub fn is_active(&self) -> bool {
        self.status != "INACTIVE"
    }

    /// The newest deployment.
    pub fn primary(&self) -> Option<&Deployment> {
        self.deployments.first()
    }

    /// Adds to `events[]`.
    pub(super) fn say(&mut self, ctx: &mut Ctx<'_>, message: impl Into<String>) {
        let event = ServiceEvent { id: ctx.uuid(), at: ctx.now, message: message.into() };
        self.events.push_front(event);
        self.events.truncate(MAX_EVENTS);
    }

    /// Tasks that must stay healthy while `desired` are wanted.
    pub(super) fn lower(&self, desired: usize) -> usize {
        (desired * self.minimum).div_ceil(100)
    }

    /// Tasks that may run while `desired` are wanted.
    pub(super) fn upper(&self, desired: usize) -> usize {
        (desired * self.maximum / 100).max(usize::from(desired > 0 && self.maximum >= 100))
    }

    /// Failures in a row after which the circuit breaker trips: half of what is wanted, 3 to 200.
    pub(super) fn threshold(&self, desired: usize) -> usize {
        desired.div_ceil(2).clamp(3, 200)
    }

    pub(super) fn record_mut(&mut self, deployment: &str) -> Option<&mut Record> {
        self.records.iter_mut().find(|record| record.deployment == deployment)
    }
}
