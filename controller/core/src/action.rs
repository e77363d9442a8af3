//! What decide wants done. Each action carries the state that it was decided on; act re-reads it
//! and drops the action if it changed.

use crate::fleet::{ScopeId, Str};
use serde::{Deserialize, Serialize};
use tasuki_api::coverage::Reason;

/// Name of the daemon service that serves, and of its definition family.
pub const DAEMON_SERVICE: &str = "tasuki";
/// Name of the daemon service with the version that is being rolled out.
pub const DAEMON_SERVICE_NEXT: &str = "tasuki-next";
/// Node attribute: the serving daemon stays away.
pub const HOLD: &str = "tasuki.hold";
/// Node attribute: the next daemon may come.
pub const NEXT: &str = "tasuki.next";
/// Suffix of the families that carry an injected sidecar.
pub const FAMILY_SUFFIX: &str = "-tasuki";
/// Name of the sidecar's container.
pub const SIDECAR: &str = "tasuki-agent";
/// Tag on everything that Tasuki creates; its value is the monitor's name.
pub const OWNER_TAG: &str = "tasuki.dev/monitor-owner";

/// Docker labels of the sidecar.
pub mod labels {
    /// Agent version.
    pub const VERSION: &str = "tasuki.dev/version";
    /// Definition that it was added to.
    pub const SOURCE: &str = "tasuki.dev/source";
    /// Hash of that definition's content.
    pub const SOURCE_HASH: &str = "tasuki.dev/source-hash";
    /// What was changed in the customer's own containers, as JSON; the inverse undoes it.
    pub const ADDED: &str = "tasuki.dev/added";
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// Where.
    pub scope: ScopeId,
    /// Cluster ARN.
    pub cluster: Str,
    /// The monitor that wants it.
    pub monitor: Str,
    /// Why, for the action log.
    pub why: String,
    /// What.
    pub kind: ActionKind,
}

/// The kinds of action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ActionKind {
    /// Describe a definition, so that it can be judged.
    DescribeDefinition {
        /// ARN.
        definition: Str,
    },
    /// Create a daemon service (registering its definition first).
    CreateDaemon {
        /// [`DAEMON_SERVICE`] or [`DAEMON_SERVICE_NEXT`].
        service: Str,
        /// What it runs.
        agent: AgentSpec,
    },
    /// Point a daemon service at another agent.
    UpdateDaemon {
        /// Service ARN.
        service: Str,
        /// Definition that it ran when this was decided.
        from: Str,
        /// What it runs from now on.
        agent: AgentSpec,
    },
    /// Delete a daemon service.
    DeleteDaemon {
        /// Service ARN.
        service: Str,
    },
    /// Set a custom attribute on a node.
    PutAttribute {
        /// Container-instance ARN.
        node: Str,
        /// [`HOLD`] or [`NEXT`].
        name: Str,
    },
    /// Take a custom attribute from a node.
    DeleteAttribute {
        /// Container-instance ARN.
        node: Str,
        /// [`HOLD`] or [`NEXT`].
        name: Str,
    },
    /// Register the injected definition and point the service at it.
    Inject {
        /// Service ARN.
        service: Str,
        /// Definition that it ran when this was decided.
        from: Str,
        /// What is added.
        sidecar: SidecarSpec,
    },
    /// Point the service back at a definition without the sidecar.
    Uninject {
        /// Service ARN.
        service: Str,
        /// Definition that it ran when this was decided.
        from: Str,
    },
    /// Roll a running deployment back.
    RollBack {
        /// Service ARN.
        service: Str,
        /// Deployment id that it was decided on.
        deployment: Str,
        /// The definition that the deployment brought.
        definition: Str,
    },
    /// Deregister a definition of our own that nothing needs.
    Deregister {
        /// ARN.
        definition: Str,
    },
}

/// The agent as a daemon runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentSpec {
    /// Version.
    pub version: Str,
    /// Image with digest, Region filled in.
    pub image: Str,
    /// `auto`, `ebpf`, …
    pub sensor: Str,
    /// MiB.
    pub memory_mib: u32,
    /// Such as `10%`.
    pub cpu: Str,
    /// Permission-less task role.
    pub task_role: Option<Str>,
    /// Execution role.
    pub execution_role: Option<Str>,
    /// Environment that lets it find and trust the gateway (public values).
    pub gateway: GatewaySpec,
}

/// How an agent finds and trusts the gateway. No secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewaySpec {
    /// `https://host:port`.
    pub url: Str,
    /// Base64 of the PEM of its certificate authority.
    pub ca: Str,
    /// Base64 Ed25519 public key of policy bundles.
    pub policy_key: Str,
}

/// The agent as a sidecar runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidecarSpec {
    /// What runs.
    pub agent: AgentSpec,
    /// Set `pidMode: task` and SYS_PTRACE.
    pub share_processes: bool,
    /// Application containers wait for a healthy agent.
    pub fail_closed: bool,
    /// A full task may move to the next Fargate size.
    pub grow: bool,
}

/// Why an action is not taken now; becomes the coverage reason of the tasks that it would help.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// Service or cluster ARN.
    pub target: Str,
    /// Reason.
    pub reason: Reason,
    /// Detail.
    pub detail: String,
}
