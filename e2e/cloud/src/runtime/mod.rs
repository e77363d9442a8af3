//! What the cloud asks of the thing that really runs containers.
//!
//! The state machine in [`crate::ecs`] plays the ECS control plane: it decides *that* a task runs, where, and when it has
//! to end. A [`Runtime`] plays the ECS agent (or Fargate): it makes the containers of one task run and says what
//! became of them.
//!
//! ```text
//!  state machine ── start_task(TaskSpec) ─▶ Runtime      pull, network, create, start in dependsOn order
//!                ◀── RuntimeEvent ────────               PullStarted … ContainerStarted … ContainerExited
//!                ── stop_task(arn) ──────▶               SIGTERM, stopTimeout, SIGKILL, reverse order
//!                ◀── TaskStopped ─────────               every container is gone, the network is released
//!                ── remove_task(arn) ────▶               forget it, delete leftovers
//! ```
//!
//! # Who does what
//! | the state machine | the runtime |
//! |---|---|
//! | validates the definition, applies overrides, resolves defaults | runs exactly the [`TaskSpec`] it is given |
//! | `lastStatus`, `version`, EventBridge events, service scheduling | `dependsOn` order and conditions, start timeouts |
//! | an essential container ended, so the task must: calls `stop_task` | stop order (dependents first), stop timeouts |
//! | counts restarts for the API | applies `restartPolicy` and `healthCheck` |
//! | serves metadata and credentials documents | makes 169.254.170.2 reachable from the containers |
//!
//! # Guarantees that a runtime gives
//! * No method blocks: each one hands its work to the runtime's own threads or tasks and returns.
//! * Events of one task arrive in the order in which they happened. `TaskStopped` is the last one of its task and comes
//!   exactly once for each `start_task`, whether the task never started, ended by itself, or was stopped.
//! * `ContainerStarted` comes before `ContainerExited` of the same container; a container that never started reports
//!   `ContainerFailed` instead, or nothing when the task was stopped first.
//! * `stop_task` and `remove_task` may be repeated and may name an unknown task: both are then without effect.
//!
//! # What it may rely on
//! * `attach` is called once, before anything else.
//! * The spec is valid: container names are unique, `dependsOn` names exist and have no cycle, `mountPoints` name a volume.

pub mod docker;
mod spec;
mod virtual_time;

pub use spec::*;
pub use virtual_time::{Script, Virtual};

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

/// Runs the containers of tasks. See the module page for the contract.
pub trait Runtime: Send + Sync + 'static {
    /// Gives the runtime the way back. Called once, before any task is started.
    fn attach(&self, events: UnboundedSender<RuntimeEvent>);

    /// Makes a task run: pull each image, make the network and PID namespaces that the modes ask for, create and start the
    /// containers in `dependsOn` order. Returns at once; progress and failure come as events.
    fn start_task(&self, spec: TaskSpec);

    /// Ends a task: containers in reverse dependency order, each with SIGTERM (or the image's stop signal), SIGKILL after its
    /// [`ContainerSpec::stop_timeout`]. Also cancels a task that is still pulling. Ends with `TaskStopped`.
    fn stop_task(&self, task_arn: &str);

    /// Deletes what is left of a stopped task (containers, networks, scratch volumes). Called after `TaskStopped`.
    fn remove_task(&self, task_arn: &str);

    /// The latest sample of a container's resource use, in the Docker Engine's `/containers/<id>/stats` JSON shape, for the
    /// metadata endpoint's `/stats`. `None` when there is no sample; it must not wait for one.
    fn stats(&self, _task_arn: &str, _container: &str) -> Option<serde_json::Value> {
        None
    }

    /// When the runtime next wants [`Runtime::advance`], on virtual time. A runtime that lives on real time says `None`.
    fn next_due(&self) -> Option<Timestamp> {
        None
    }

    /// Does everything that is due by `now`, on virtual time. Events that it sends are taken before time moves on.
    fn advance(&self, _now: Timestamp) {}
}

/// Something that happened to a task's containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeEvent {
    /// The task, as given in [`TaskSpec::task_arn`].
    pub task_arn: String,
    /// What happened.
    pub kind: RuntimeEventKind,
}

/// The kinds of [`RuntimeEvent`]. A container is named as in the task definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEventKind {
    /// The first image pull began (`pullStartedAt`).
    PullStarted,
    /// The last image of the task is on the machine (`pullStoppedAt`).
    PullStopped,
    /// The task's network is up. For `awsvpc` this is the task's own address; `bridge` and `host` tasks may leave it out.
    NetworkReady {
        /// IPv4 address as other tasks and the gateway see it, such as `172.30.0.7`.
        private_ipv4: String,
        /// MAC address of that interface, lower case with colons, when known.
        mac: Option<String>,
    },
    /// A container runs. Sent again, with a higher `restart_count`, when the restart policy started it anew.
    ContainerStarted {
        /// Container name.
        container: String,
        /// Container id, as the container's cgroup is named: 64 hex digits of Docker's, or `<32 hex>-<10 digits>` as
        /// Fargate has it.
        runtime_id: String,
        /// The name that Docker knows the container by.
        docker_name: String,
        /// Repository digest `sha256:…` of the image, when the image has one.
        image_digest: Option<String>,
        /// Image id `sha256:…` (of the config), for metadata's `ImageID`.
        image_id: Option<String>,
        /// Address in the container's own network, for `bridge`; `None` when it shares the task's.
        ipv4: Option<String>,
        /// Host ports that were bound, one per port mapping that has one.
        ports: Vec<BoundPort>,
        /// How often the restart policy has started it; 0 at first.
        restart_count: u32,
    },
    /// A health check changed its verdict.
    ContainerHealth {
        /// Container name.
        container: String,
        /// The new verdict.
        health: Health,
    },
    /// A started container ended and will not be restarted.
    ContainerExited {
        /// Container name.
        container: String,
        /// Exit status; 128 + n when signal n ended it.
        exit_code: i32,
        /// The kernel's out-of-memory killer ended it. The cloud reports `OutOfMemoryError`.
        oom_killed: bool,
    },
    /// A container could not be started. The cloud puts [`FailureKind::as_str`] before the text, as ECS does.
    ContainerFailed {
        /// Container name.
        container: String,
        /// Which step failed.
        kind: FailureKind,
        /// The engine's own words.
        reason: String,
    },
    /// The task as a whole could not be set up (network, namespaces, volumes) before any container was made.
    TaskFailed {
        /// Which step failed.
        kind: FailureKind,
        /// The engine's own words.
        reason: String,
    },
    /// Every container has ended and the network is released. The last event of a task.
    TaskStopped,
}

/// A port of a container that is reachable on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPort {
    /// Port inside the container.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
}

/// Verdict of a container's health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The check passed.
    Healthy,
    /// The check failed `retries` times after its start period.
    Unhealthy,
}

/// Why something did not start; the names are ECS's own, as they appear in `reason` and `stoppedReason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The image could not be pulled.
    CannotPullContainer,
    /// The container could not be created.
    CannotCreateContainer,
    /// The container was created and could not be started.
    CannotStartContainer,
    /// A dependency did not reach its condition, or not within the start timeout.
    TaskFailedToStart,
    /// Network, volumes or namespaces could not be made.
    ResourceInitialization,
}

impl FailureKind {
    /// The word that ECS puts before the reason.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CannotPullContainer => "CannotPullContainerError",
            Self::CannotCreateContainer => "CannotCreateContainerError",
            Self::CannotStartContainer => "CannotStartContainerError",
            Self::TaskFailedToStart => "TaskFailedToStart",
            Self::ResourceInitialization => "ResourceInitializationError",
        }
    }
}
