//! Coverage: is every task watched, and if not, the one reason and the one next step.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The verdict on one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// A fresh heartbeat of a whole agent names this task, at the wanted depth.
    Covered,
    /// Selected, younger than its grace, not yet reported.
    Starting,
    /// An agent is placed but not doing its job.
    Unhealthy,
    /// No agent is placed.
    Uncovered,
    /// It ended, or outlived its grace, without any agent ever reporting it; kept for 24 h.
    Missed,
    /// No monitor selects it, or git or an allowed tag excludes it.
    Excluded,
}

/// How much a covering agent sees. Ordered: more is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Depth {
    /// Packets and sockets.
    Network,
    /// Processes and network.
    Process,
    /// Everything the kernel hooks give.
    Full,
}

/// Whether an agent's version and policy are the wanted ones; kept apart from coverage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Currency {
    /// Version and policy are the wanted ones.
    Current,
    /// Another version than the wanted one.
    Outdated,
    /// The wanted version with another policy than the wanted one.
    Stale,
}

/// How the agent gets to a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Placement {
    /// A container in the task (ECS Fargate, EKS Fargate).
    Sidecar,
    /// An ECS service with the DAEMON strategy.
    DaemonService,
    /// A managed daemon (ECS Managed Instances).
    ManagedDaemon,
    /// A Kubernetes DaemonSet.
    DaemonSet,
}

macro_rules! reasons {
    ($($(#[doc = $explain:literal])+ $name:ident => $next:literal $(, for pods: $pods:literal)?;)*) => {
        /// Why a task is not covered. Stable names; each has one explanation and one next step.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        pub enum Reason { $($(#[doc = $explain])+ $name,)* }

        impl Reason {
            /// Every reason, in the order of docs/reference/coverage-reasons.md.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
            /// One line: what is the matter.
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($explain),+).trim_ascii(),)* }
            }
            /// One line: the one thing that the user can do about it, for a task of ECS.
            pub fn next_step(self) -> &'static str {
                match self { $(Self::$name => $next,)* }
            }
            /// The same for a pod.
            pub fn next_step_for_pods(self) -> &'static str {
                // The last one stands: that of pods, where there is one.
                match self { $(Self::$name => [$next $(, $pods)?].last().copied().unwrap_or($next),)* }
            }
        }
    };
}

reasons! {
    /// An agent is placed and has not reported for three heartbeat intervals.
    AgentNotReporting => "look at the agent's log; check that the task can reach the gateway",
        for pods: "look at the agent's log; check that its pod can reach Service tasuki-gateway, port 8443";
    /// The agent's container has ended.
    AgentExited => "read the exit code and reason in `tasuki explain`, then the agent's log";
    /// The kernel ended the agent because it reached its memory limit.
    AgentOutOfMemory => "raise spec.agent.resources.memory",
        for pods: "raise spec.kubernetes.resources.memory";
    /// The agent's image cannot be pulled.
    ImagePullFailed => "check repository, digest and the execution role's ECR permissions",
        for pods: "check repository, digest and spec.kubernetes.imagePullSecrets";
    /// A probe that the policy needs could not be loaded.
    SensorDegraded => "run `tasuki-agent doctor` on the node; it names the probe and the cause",
        for pods: "run `tasuki-agent doctor` in the agent's pod; it names the probe and the cause";
    /// The agent sees less than the monitor demands.
    DepthBelowMinimum => "set pidMode: Task, or lower spec.ecs.fargate.minimumDepth";
    /// The agent lost more events than the gate allows.
    EventLoss => "raise the agent's memory and CPU share, or look for the noisy container in `tasuki explain`",
        for pods: "raise spec.kubernetes.resources, or look for the noisy container in `tasuki explain`";
    /// The agent is older than spec.agent.minimumVersion.
    BelowMinimumVersion => "let the rollout finish, or redeploy the service",
        for pods: "let the rollout finish";
    /// The agent's clock and the gateway's differ by more than 5 minutes.
    ClockSkew => "set the node's clock (chrony, Amazon Time Sync)",
        for pods: "set the node's clock (chrony)";
    /// Two keys claim to be this task's agent; the first one is kept.
    AgentIdentityConflict => "treat as a security event: look for a hostile container in the task";
    /// The owner's pipeline has not added the sidecar yet.
    AwaitingRender => "add what `tasuki render` prints to the task definition, or set delivery: Live for it",
        for pods: "add the sidecar that `tasuki render` prints, or set spec.kubernetes.delivery: Live";
    /// The definition carries the agent; this task started from an older one.
    NeedsNewDeployment => "wait for the deployment to finish, or force a new one";
    /// The task started before the monitor selected it; a running task cannot be changed.
    StartedBeforeMonitoring => "restart the task, or wait for its next deployment",
        for pods: "restart its workload when it suits its owner: `kubectl rollout restart`";
    /// No service owns this task, so nothing can replace it.
    StandaloneTask => "run it from a definition with the sidecar, which `tasuki render` prints";
    /// The task names one revision of its definition, so a new revision does not reach it.
    PinnedRevision => "run the family without a revision, or the revision that `tasuki explain` names";
    /// The service's deployment controller is CODE_DEPLOY or EXTERNAL.
    UnsupportedController => "add the sidecar in the pipeline that owns the task sets (`tasuki render`)";
    /// The service's deployments run lifecycle hooks.
    HasLifecycleHooks => "add the sidecar in the owner's pipeline (`tasuki render`)";
    /// A new deployment would interrupt the service.
    WouldInterrupt => "set minimumHealthyPercent above 0 and maximumPercent above 100, or delivery: Render";
    /// A task of the service is under scale-in protection.
    ProtectedTasks => "wait until the protection ends";
    /// The service is managed by ECS Express Mode.
    ManagedByExpress => "use a service of your own, or delivery: Render";
    /// The cluster is managed by AWS Batch.
    ManagedByBatch => "add the sidecar to the job definition (`tasuki render`)";
    /// Windows, a Fargate platform before 1.4.0, or a node that cannot carry an agent.
    UnsupportedPlatform => "move it to Linux and platform version 1.4.0 or later",
        for pods: "add the sidecar that `tasuki render` prints, or run it on a Linux node that can carry an agent";
    /// The agent's image does not exist for this processor.
    UnsupportedArchitecture => "publish the agent's image for this architecture, or move the task";
    /// The task has no network, so no agent can report.
    UnsupportedNetworkMode => "use networkMode awsvpc";
    /// The task has no execution role, so the agent's image cannot be pulled.
    MissingExecutionRole => "give the definition an executionRoleArn that may pull the agent's image";
    /// The execution role or the network, or a pod's namespace, does not let the agent's image be pulled and run.
    ImageNotPullable => "allow ecr:GetDownloadUrlForLayer and ecr:BatchGetImage, and reach ECR from the subnets",
        for pods: "let pods of the namespace pull and run the agent's image; `tasuki explain` quotes what refuses it";
    /// The gateway cannot be reached from the task's subnets.
    NoRoute => "open port 443 to the gateway's endpoint from the task's subnets and groups";
    /// The task has no memory, CPU, container slot or definition bytes left for an agent.
    NoRoom => "give the task the next size (or set sizing: Grow), or lower what its containers reserve",
        for pods: "take CPU and memory out of the quota, or add the sidecar that `tasuki render` prints";
    /// An image of the task must be PID 1 (s6-overlay, systemd) and cannot share its process namespace.
    PidNamespaceConflict => "set pidMode: Keep for it and accept depth Network";
    /// A deployment of the service is running; it is left alone.
    DeploymentInProgress => "nothing: it is retried when the deployment has ended";
    /// The service went back to a definition without the agent three times in a day.
    Contested => "let the owner's pipeline add the sidecar (`tasuki render`)";
    /// The last attempt made the service worse and was taken back.
    RolledBack => "read the cause in `tasuki explain`, then `tasuki rollout retry`";
    /// The node has no agent.
    NodeWithoutAgent => "look at the service event that `tasuki explain` quotes (no capacity, constraint)",
        for pods: "look at what `tasuki explain` quotes, and at the events of the agents' namespace";
    /// The node's kernel is too old or has no BTF.
    KernelUnsupported => "use an image with kernel 5.10 or later and CONFIG_DEBUG_INFO_BTF";
    /// AWS refuses a call that is needed.
    PermissionDenied => "add the statement that `tasuki explain` prints to the role that it names",
        for pods: "install the chart with enforce: true, or grant what `tasuki explain` names";
    /// The share of AWS's request limits is used up.
    BudgetExhausted => "nothing: it goes on as the budget refills; raise share in the AwsScope to go faster";
    /// The monitor is paused.
    Paused => "set spec.rollout.paused: false";
    /// Everything is frozen.
    Frozen => "run `tasuki freeze --off`, or set spec.rollout.frozen: false";
    /// The monitor only observes.
    ObserveOnly => "set spec.mode: Enforce; `tasuki plan` shows what it would do";
}

/// The verdict on one task with all that explains it: a row of `tasuki coverage -o json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskCoverage {
    /// Task ARN, or pod as `cluster/namespace/name`.
    pub task: String,
    /// `account/region` or Kubernetes cluster.
    pub scope: String,
    /// Cluster name.
    pub cluster: String,
    /// Service, task-definition family or Kubernetes owner.
    pub workload: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Why not covered; absent where covered or starting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// What makes the reason concrete for this task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_step: Option<String>,
    /// The monitor that selected it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitor: Option<String>,
    /// How an agent gets, or would get, to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// How much its agent sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<Depth>,
    /// Whether its agent is the wanted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub currency: Option<Currency>,
    /// Version of its agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// Finding types that this task's agent cannot see, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<Unavailable>,
    /// Since when this verdict holds.
    #[schemars(with = "String")]
    pub since: Timestamp,
}

/// A finding type that an agent cannot see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unavailable {
    /// Finding type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is missing.
    pub reason: String,
}

/// Counts over a set of tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All tasks, excluded ones too.
    pub total: u64,
    /// See [`Verdict`].
    pub covered: u64,
    /// See [`Verdict`].
    pub starting: u64,
    /// See [`Verdict`].
    pub unhealthy: u64,
    /// See [`Verdict`].
    pub uncovered: u64,
    /// See [`Verdict`].
    pub missed: u64,
    /// See [`Verdict`].
    pub excluded: u64,
}

impl Counts {
    /// Counts one task.
    pub fn add(&mut self, verdict: Verdict) {
        self.add_many(verdict, 1);
    }

    /// Counts `number` tasks.
    pub fn add_many(&mut self, verdict: Verdict, number: u64) {
        self.total += number;
        *match verdict {
            Verdict::Covered => &mut self.covered,
            Verdict::Starting => &mut self.starting,
            Verdict::Unhealthy => &mut self.unhealthy,
            Verdict::Uncovered => &mut self.uncovered,
            Verdict::Missed => &mut self.missed,
            Verdict::Excluded => &mut self.excluded,
        } += number;
    }

    /// Covered by selected tasks that live now; absent where nothing is selected, which is not health.
    pub fn live_ratio(&self) -> Option<f64> {
        let selected = self.total - self.excluded - self.starting - self.missed;
        (selected > 0).then(|| self.covered as f64 / selected as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_explains_itself_in_one_line_and_names_a_next_step() {
        for reason in Reason::ALL {
            for text in [reason.explanation(), reason.next_step(), reason.next_step_for_pods()] {
                assert!(text.len() > 10 && !text.contains('\n') && text == text.trim(), "{reason:?}: {text:?}");
            }
        }
    }

    #[test]
    fn nothing_selected_has_no_ratio() {
        let mut counts = Counts::default();
        counts.add(Verdict::Excluded);
        assert_eq!(counts.live_ratio(), None);
        counts.add(Verdict::Covered);
        counts.add(Verdict::Starting);
        counts.add(Verdict::Missed);
        assert_eq!(counts.live_ratio(), Some(1.0));
        counts.add(Verdict::Uncovered);
        assert_eq!(counts.live_ratio(), Some(0.5));
    }
}
