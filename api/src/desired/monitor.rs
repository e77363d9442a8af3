//! `RuntimeMonitor`: where the agent goes, which version, how it is rolled and what it may do.

use super::choices::*;
use super::pods::KubernetesSpec;
use super::units::{Duration, Ratio, Size};
use crate::coverage::Depth;
use crate::finding::Severity;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

spec! {
    /// Where the agent goes and which version of it.
    pub struct RuntimeMonitorSpec {
        /// Whether anything may be changed.
        #[serde(default)]
        pub mode: Mode,
        /// The highest wins where two monitors select one task; a tie is an error on both.
        #[serde(default)]
        pub priority: i32,
        /// What is selected.
        #[serde(default)]
        pub targets: Targets,
        /// The agent to place. Required to enforce; without it the monitor only reports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub agent: Option<AgentSpec>,
        /// How ECS tasks get their agent.
        #[serde(default)]
        pub ecs: EcsSpec,
        /// How Kubernetes pods get their agent.
        #[serde(default)]
        pub kubernetes: KubernetesSpec,
        /// How a new version is rolled out.
        #[serde(default)]
        pub rollout: RolloutSpec,
        /// What is needed for agents to reach the gateway.
        #[serde(default)]
        pub network: NetworkSpec,
        /// Rules switched off or changed, and responses switched on.
        #[serde(default)]
        pub detection: DetectionSpec,
        /// How long a new task may go without an agent before it is counted as not covered.
        #[serde(default = "two_minutes")]
        pub grace: Duration,
        /// Whether `tasuki.dev/monitor=false` on a resource excludes it. Off, so that an
        /// application team cannot switch its own monitoring off unseen.
        #[serde(default)]
        pub allow_tag_exclusion: bool,
        /// Exclusions that git grants, each with its reason.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub exclusions: Vec<Exclusion>,
    }

    /// What a monitor selects. Nothing given selects nothing: a monitor never grows by itself.
    pub struct Targets {
        /// ECS clusters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ecs: Option<EcsTargets>,
        /// Kubernetes clusters.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub kubernetes: Option<KubernetesTargets>,
    }

    /// Which ECS tasks are selected.
    pub struct EcsTargets {
        /// `AwsScope` names; empty means all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub scopes: Vec<String>,
        /// Cluster names, with `*` and `?`.
        #[serde(default)]
        pub clusters: NameFilter,
        /// Tags of cluster, service and task definition.
        #[serde(default)]
        pub tags: TagFilter,
        /// Kinds of compute; empty means all.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub compute: Vec<Compute>,
    }

    /// Which pods are selected.
    pub struct KubernetesTargets {
        /// Cluster names; `self` is the cluster that the controller runs in.
        #[serde(default)]
        pub clusters: NameFilter,
        /// Namespaces.
        #[serde(default)]
        pub namespaces: NameFilter,
    }

    /// Names to take and names to leave, with `*` and `?`.
    pub struct NameFilter {
        /// Empty takes every name.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub include: Vec<String>,
        /// Wins over `include`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub exclude: Vec<String>,
    }

    /// Tags to take and tags to leave: key to values, with `*` and `?`.
    pub struct TagFilter {
        /// Every key must be present with one of its values.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub include: BTreeMap<String, Vec<String>>,
        /// Any key present with one of its values excludes.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub exclude: BTreeMap<String, Vec<String>>,
    }

    /// An exclusion that git grants.
    pub struct Exclusion {
        /// Cluster, service or family names, with `*` and `?`, as `cluster/service`.
        pub matches: String,
        /// Why; shown wherever the exclusion is counted.
        pub reason: String,
        /// When it ends (RFC 3339).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>", extend("format" = "date-time"))]
        pub until: Option<jiff::Timestamp>,
    }

    /// The agent to place.
    pub struct AgentSpec {
        /// The wanted version.
        #[schemars(length(max = 64))]
        pub version: String,
        /// Older agents are `Unhealthy`; merely not the newest is `currency`, not health.
        #[schemars(length(max = 64))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub minimum_version: Option<String>,
        /// Where its image is.
        pub image: ImageSpec,
        /// How it sees.
        #[serde(default)]
        pub sensor: SensorChoice,
        /// What it may use.
        #[serde(default)]
        pub resources: AgentResources,
        /// When a syscall tracepoint may be attached (tier 2: it costs every syscall of the host).
        #[serde(default)]
        pub syscall_tracepoints: SyscallTracepoints,
        /// How it proves whose agent it is.
        #[serde(default)]
        pub identity: IdentityChoice,
    }

    /// An image by digest.
    pub struct ImageSpec {
        /// Repository; `{region}` is replaced by the task's Region.
        pub repository: String,
        /// `sha256:…` of the (multi-architecture) image index.
        #[schemars(length(max = 80))]
        pub digest: String,
        /// `sha256:…` of the images that the index names, one per platform: ECS reports these for what runs. An agent
        /// may run any of them.
        #[schemars(length(max = 16), inner(length(max = 80)))]
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub platform_digests: Vec<String>,
    }

    /// What one agent may use.
    pub struct AgentResources {
        /// Hard limit.
        #[serde(default = "memory_128mi")]
        pub memory: Size,
        /// Share of the node's or the task's CPU that is planned for; the agent reports what it takes and does not throttle itself.
        #[serde(default = "percent_10")]
        pub cpu: Ratio,
    }

    /// How ECS tasks get their agent.
    pub struct EcsSpec {
        /// Tasks on Fargate.
        #[serde(default)]
        pub fargate: FargateSpec,
        /// Tasks on Managed Instances.
        #[serde(default)]
        pub managed_instances: ManagedInstancesSpec,
    }

    /// Tasks on Fargate.
    pub struct FargateSpec {
        /// Who adds the sidecar.
        #[serde(default)]
        pub delivery: Delivery,
        /// Services (as `cluster/service`, with `*` and `?`) whose delivery differs.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub delivery_for: BTreeMap<String, Delivery>,
        /// Whether the task's containers share their process namespace with the sidecar.
        #[serde(default)]
        pub pid_mode: PidMode,
        /// What a broken agent does to the application.
        #[serde(default)]
        pub startup: Startup,
        /// How it is found out beforehand whether the agent can run.
        #[serde(default)]
        pub preflight: Preflight,
        /// Less depth than this is not `Covered`.
        #[serde(default = "depth_process")]
        pub minimum_depth: Depth,
        /// Whether a new agent version may restart application tasks.
        #[serde(default)]
        pub on_outdated: OnOutdated,
        /// Whether a full task may be moved to the next Fargate size (the bill changes).
        #[serde(default)]
        pub sizing: Sizing,
        /// Tasks that no service owns.
        #[serde(default)]
        pub standalone: Standalone,
    }

    /// Tasks on Managed Instances.
    pub struct ManagedInstancesSpec {
        /// Whether ECS replaces an instance whose agent fails.
        #[serde(default)]
        pub critical: bool,
        /// When instances may be replaced to place or roll the agent.
        #[serde(default)]
        pub replace_instances: ReplaceInstances,
    }

    /// How a new version is rolled out.
    pub struct RolloutSpec {
        /// Steps, in order.
        #[schemars(length(max = 16))]
        #[serde(default = "two_waves")]
        pub waves: Vec<Wave>,
        /// What must hold for a wave to count as good.
        #[serde(default)]
        pub gates: Gates,
        /// What a failed gate does.
        #[serde(default)]
        pub on_failure: OnFailure,
        /// When tasks or instances may be replaced; empty means always.
        #[schemars(length(max = 16))]
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub windows: Vec<Window>,
        /// No call that replaces a task or an instance; new nodes still get their agent.
        #[serde(default)]
        pub paused: bool,
        /// Stop everything.
        #[serde(default)]
        pub frozen: bool,
        /// How long an agent may take to report before the step counts as failed.
        #[serde(default = "five_minutes")]
        pub deadline: Duration,
    }

    /// One step of a rollout.
    pub struct Wave {
        /// Shown in status.
        #[schemars(length(max = 64))]
        pub name: String,
        /// Share of all units that are on the new version when this wave is done.
        pub take: Ratio,
        /// How long the gates must hold before the next wave.
        #[serde(default)]
        pub soak: Duration,
        /// Share of the units that may be changing at once.
        #[serde(default = "percent_10")]
        pub max_unavailable: Ratio,
    }

    /// What must hold for a wave to count as good.
    pub struct Gates {
        /// At least this share of the wave's agents reports and is whole.
        #[serde(default = "percent_99")]
        pub healthy_agents: Ratio,
        /// At most this share of events is lost.
        #[serde(default = "permille_1")]
        pub event_loss: Ratio,
        /// At most this many restarts per agent.
        #[serde(default = "one")]
        pub restarts: u32,
        /// At most this share of a core on average.
        #[serde(default = "percent_15")]
        pub agent_cpu: Ratio,
    }

    /// A weekly window in which tasks or instances may be replaced.
    pub struct Window {
        /// Days on which it opens.
        #[schemars(length(max = 7))]
        pub days: Vec<Day>,
        /// `HH:MM`.
        #[schemars(length(max = 16))]
        pub from: String,
        /// `HH:MM`; earlier than `from` means the next day.
        #[schemars(length(max = 16))]
        pub to: String,
        /// IANA name; UTC where absent.
        #[serde(default = "utc")]
        pub timezone: String,
    }

    /// What is needed for agents to reach the gateway.
    pub struct NetworkSpec {
        /// Who makes VPC endpoints.
        #[serde(default)]
        pub vpc_endpoints: VpcEndpoints,
    }

    /// Rules switched off or changed, and responses switched on.
    pub struct DetectionSpec {
        /// Finding types that are not reported, and severities that differ.
        #[serde(default)]
        pub rules: RuleOverrides,
        /// Finding type to response.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub response: BTreeMap<String, Response>,
    }

    /// Changes to the built-in rules.
    pub struct RuleOverrides {
        /// Finding types that are switched off.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub disable: Vec<String>,
        /// Finding type to severity.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub severity: BTreeMap<String, Severity>,
    }
}

fn two_minutes() -> Duration {
    Duration::from_secs(120)
}
fn five_minutes() -> Duration {
    Duration::from_secs(300)
}
fn memory_128mi() -> Size {
    Size::from_mib(128)
}
fn percent_10() -> Ratio {
    Ratio::from_percent(10)
}
fn percent_15() -> Ratio {
    Ratio::from_percent(15)
}
fn percent_99() -> Ratio {
    Ratio::from_percent(99)
}
fn permille_1() -> Ratio {
    "0.1%".parse().unwrap_or_default()
}
fn one() -> u32 {
    1
}
fn utc() -> String {
    "UTC".to_owned()
}
fn depth_process() -> Depth {
    Depth::Process
}
fn two_waves() -> Vec<Wave> {
    let wave = |name: &str, take, soak| Wave {
        name: name.to_owned(),
        take: Ratio::from_percent(take),
        soak: Duration::from_secs(soak),
        max_unavailable: percent_10(),
    };
    vec![wave("canary", 5, 600), wave("rest", 100, 0)]
}

default_is_empty_document!(
    RuntimeMonitorSpec,
    Targets,
    EcsTargets,
    KubernetesTargets,
    NameFilter,
    TagFilter,
    AgentResources,
    EcsSpec,
    FargateSpec,
    ManagedInstancesSpec,
    RolloutSpec,
    Gates,
    NetworkSpec,
    DetectionSpec,
    RuleOverrides
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_monitor_observes_and_selects_nothing() {
        let spec = RuntimeMonitorSpec::default();
        assert_eq!(spec.mode, Mode::Observe);
        assert_eq!(spec.targets.ecs, None);
        assert_eq!(spec.rollout.waves.len(), 2);
        assert_eq!(spec.rollout.gates.event_loss.to_string(), "0.1%");
        let _ = (EcsTargets::default(), KubernetesTargets::default(), Gates::default(), RuleOverrides::default());
    }

    #[test]
    fn an_unknown_field_is_an_error_that_lists_the_valid_ones() {
        let error = serde_json::from_str::<Wave>(r#"{"name":"a","take":"5%","maxUnavailabel":"10%"}"#).unwrap_err();
        assert!(error.to_string().contains("maxUnavailabel") && error.to_string().contains("`maxUnavailable`"));
    }
}
