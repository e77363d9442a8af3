//! What the gateway may ask about the fleet. The engine implements it; tests give plain data.

use futures_util::future::BoxFuture;
use std::sync::Arc;
use tasuki_api::agent::AgentKind;
use tasuki_api::desired::IdentityChoice;
use tasuki_core::fleet::{Str, Task};

/// What ECS or Kubernetes, and the desired state, say about one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// The task.
    pub task: Arc<Task>,
    /// The monitor that selects it, if one.
    pub monitor: Option<Str>,
    /// What an agent in this task may speak for: [`AgentKind::Node`] only for a task of a daemon that
    /// Tasuki placed.
    pub kind: AgentKind,
    /// Name that the agent's container must have.
    pub agent_container: Str,
    /// Image digests that an agent here may run: the wanted one, those that it is rolled from and
    /// to, each as index and as the images that the index names.
    pub approved_digests: Arc<[Str]>,
    /// The task's role; [`TaskRole::None`] for pods.
    pub role: TaskRole,
    /// How an agent here proves whose agent it is.
    pub identity: IdentityChoice,
}

/// The role with which a task's own calls are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskRole {
    /// The task has none.
    None,
    /// ARN of its role (from the definition, or the override that it was started with).
    Role(Str),
    /// Not known yet; an enrolment waits for it.
    Unknown,
}

/// ECS or Kubernetes could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("the fleet could not be refreshed for {task}")]
pub struct DirectoryError {
    /// Task that was asked for.
    pub task: String,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What the gateway may ask about the fleet.
///
/// *Guarantees wanted*: answers come from ECS or Kubernetes, never from an agent. A task that ended less than an
/// hour ago is still known, as findings about it may arrive late.
pub trait Directory: Send + Sync + 'static {
    /// The task as the fleet has it now; no I/O.
    fn task(&self, arn: &str) -> Option<Known>;

    /// The task as ECS says now: callers are gathered into one DescribeTasks per cluster and
    /// moment. For a pod one GET, or what the watch has. `None` where there is no such task.
    fn refresh<'a>(&'a self, arn: &'a str) -> BoxFuture<'a, Result<Option<Known>, DirectoryError>>;

    /// The tasks on a node (a container instance, or `k8s/CLUSTER/node/NAME`), those that ended less than an hour ago too; no I/O.
    fn tasks_on(&self, node: &str) -> Vec<Arc<Task>>;
}
