//! What decide wants done. Each action carries the state that it was decided on; act re-reads it
//! and drops the action if it changed.

use crate::fleet::{LaunchType, ScopeId, Str};
use serde::{Deserialize, Serialize};
use tasuki_api::coverage::Reason;
use tasuki_api::desired::{NodeSelector, Preempt, Toleration};

/// Name of the daemon service that serves, and of its definition family.
pub const DAEMON_SERVICE: &str = "tasuki";
/// Name of the daemon service with the version that is being rolled out.
pub const DAEMON_SERVICE_NEXT: &str = "tasuki-next";
/// [`DAEMON_SERVICE`] for External nodes: a daemon service has one launch type.
pub const EXTERNAL_DAEMON_SERVICE: &str = "tasuki-external";
/// [`DAEMON_SERVICE_NEXT`] for External nodes.
pub const EXTERNAL_DAEMON_SERVICE_NEXT: &str = "tasuki-external-next";
/// Tag of a Kubernetes daemon that is becoming the serving one: it comes to every node, whatever its label.
pub const PROMOTING: &str = "tasuki.dev/promoting";
/// Tag of what a Kubernetes namespace is offered: the quota there that sidecars would use up.
pub const QUOTA: &str = "tasuki.dev/quota";
/// Begins the names of Jobs that try an agent's image in a Kubernetes namespace.
pub const PROBE: &str = "tasuki-probe-";
/// Begins the names of services that stand for what a Kubernetes namespace is offered.
const SIDECARS: &str = "sidecar/";
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
    /// Fingerprint of the agent spec that it was made from.
    pub const SPEC: &str = "tasuki.dev/spec";
    /// On a container of the customer's: `required` says that it must be PID 1.
    pub const PID_ONE: &str = "tasuki.dev/pid1";
}

/// Whether a service of this name is one of the daemon services.
pub fn is_daemon_service(name: &str) -> bool {
    [DAEMON_SERVICE, DAEMON_SERVICE_NEXT, EXTERNAL_DAEMON_SERVICE, EXTERNAL_DAEMON_SERVICE_NEXT].contains(&name)
}

/// Name of the service that stands for what a Kubernetes namespace is offered.
pub fn sidecar_service(namespace: &str) -> String {
    format!("{SIDECARS}{namespace}")
}

/// The namespace of such a service; `None` for every other one.
pub fn sidecar_namespace(service: &str) -> Option<&str> {
    service.strip_prefix(SIDECARS)
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
        /// What it is to be judged for; none for a daemon's own definition.
        sidecar: Option<SidecarSpec>,
    },
    /// Create a daemon service (registering its definition first).
    CreateDaemon {
        /// [`DAEMON_SERVICE`], [`DAEMON_SERVICE_NEXT`], or their External counterparts.
        service: Str,
        /// [`LaunchType::Ec2`] or [`LaunchType::External`]; to be sent explicitly.
        launch: LaunchType,
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
    /// Point a daemon service back at a definition that it ran before.
    RevertDaemon {
        /// Service ARN.
        service: Str,
        /// Definition that it ran when this was decided.
        from: Str,
        /// Definition that it runs from now on.
        to: Str,
    },
    /// Kubernetes: make the next daemon the serving one, and delete the one that served.
    PromoteDaemon {
        /// The next daemon.
        service: Str,
        /// The one that served, where it is still there.
        serving: Option<Str>,
    },
    /// Kubernetes: a promoted daemon stays away from nodes in hand-over again.
    SettleDaemon {
        /// The daemon.
        service: Str,
    },
    /// Kubernetes: end the old agent on a node that was handed over. The controller of DaemonSets would do so itself,
    /// with one of the twenty requests a second that it allows itself for all nodes.
    DeleteAgent {
        /// The node.
        node: Str,
        /// The agent's pod.
        task: Str,
    },
    /// Kubernetes: try in a namespace whether its pods get the agent's image, may run it, and can.
    ProbeImage {
        /// The namespace's service.
        service: Str,
        /// What is tried.
        agent: AgentSpec,
    },
    /// Kubernetes: new pods of a namespace that need a sidecar get this one.
    OfferSidecar {
        /// The namespace's service.
        service: Str,
        /// What they run.
        agent: AgentSpec,
    },
    /// Kubernetes: new pods of a namespace get no sidecar.
    WithdrawSidecar {
        /// The namespace's service.
        service: Str,
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
    /// What its pods have beyond that, in Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<PodsSpec>,
}

/// What of a monitor shapes the agent's pods, and nothing that does not: each change of it is rolled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodsSpec {
    /// Nodes that carry them.
    pub nodes: NodeSelector,
    /// Taints that they tolerate.
    pub tolerations: Vec<Toleration>,
    /// CPU request, in Kubernetes' notation.
    pub cpu: String,
    /// Whether they may evict others.
    pub preempt: Preempt,
    /// Secrets with which their image is pulled.
    pub pull_secrets: Vec<String>,
}

/// Nothing in it is a float.
impl Eq for PodsSpec {}

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

/// The first 16 hexadecimal digits of the SHA-256 of a value's JSON: names a spec in a label.
fn fingerprint(value: &impl Serialize) -> Str {
    // Serialising these plain structs cannot fail; an empty text would only cost one more update.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    hex::encode(&digest.as_ref()[..8]).into()
}

impl AgentSpec {
    /// CPU that its container asks for in a pod, in Kubernetes' notation.
    pub fn pod_cpu(&self) -> &str {
        self.pods.as_ref().map_or("50m", |pods| &pods.cpu)
    }
    /// Names this spec; equal specs have equal names.
    pub fn fingerprint(&self) -> Str {
        fingerprint(self)
    }
}

impl SidecarSpec {
    /// Names this spec; equal specs have equal names.
    pub fn fingerprint(&self) -> Str {
        fingerprint(self)
    }
}

impl Action {
    /// What it changes: no two actions on one target may be under way at once.
    pub fn target(&self) -> &Str {
        match &self.kind {
            ActionKind::DescribeDefinition { definition, .. } | ActionKind::Deregister { definition } => definition,
            ActionKind::CreateDaemon { .. } => &self.cluster,
            ActionKind::UpdateDaemon { service, .. }
            | ActionKind::RevertDaemon { service, .. }
            | ActionKind::DeleteDaemon { service }
            | ActionKind::PromoteDaemon { service, .. }
            | ActionKind::SettleDaemon { service }
            | ActionKind::ProbeImage { service, .. }
            | ActionKind::OfferSidecar { service, .. }
            | ActionKind::WithdrawSidecar { service }
            | ActionKind::Inject { service, .. }
            | ActionKind::Uninject { service, .. }
            | ActionKind::RollBack { service, .. } => service,
            ActionKind::PutAttribute { node, .. } | ActionKind::DeleteAttribute { node, .. } => node,
            ActionKind::DeleteAgent { task, .. } => task,
        }
    }

    /// Whether it only reads.
    pub fn only_reads(&self) -> bool {
        matches!(self.kind, ActionKind::DescribeDefinition { .. })
    }
}
