//! Desired state as decide needs it: resolved, compiled, in order of priority.
//!
//! [`Desired::compile`] turns documents into it and says what is wrong with them. A problem never
//! stops the other documents: what can be used is in force.

mod names;
mod nodes;
mod problems;
mod version;
mod window;

pub use names::Names;
pub use problems::Problem;
pub use version::Version;
pub use window::Windows;

use crate::action::{AgentSpec, GatewaySpec, PodsSpec, SidecarSpec};
use crate::fleet::{Cluster, LaunchType, Node, ScopeId, Service, Str, Taint};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;
use tasuki_api::desired::{AwsScopeSpec, Compute, Delivery, Document, Mode, PidMode};
use tasuki_api::desired::{RuntimeMonitorSpec, SensorChoice, Sizing, Startup};
use wildmatch::WildMatch;

/// Tag, label or annotation that excludes a resource where the monitor allows it.
pub const EXCLUSION_TAG: &str = "tasuki.dev/monitor";

/// Desired state.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Monitors, the highest priority first; equal ones by name.
    pub monitors: Vec<Monitor>,
    /// `AwsScope` documents by name.
    pub scopes: BTreeMap<Str, AwsScopeSpec>,
    /// How agents find and trust the gateway, unless a scope says otherwise.
    pub gateway: GatewaySpec,
    /// `tasuki freeze` is on.
    pub frozen: bool,
}

/// A monitor, compiled.
#[derive(Clone, Debug)]
pub struct Monitor {
    /// Its name.
    pub name: Str,
    /// As it is written.
    pub spec: RuntimeMonitorSpec,
    /// Windows in which tasks or instances may be replaced.
    pub windows: Windows,
    /// Oldest agent that still counts.
    pub minimum_version: Option<Version>,
    /// Hash of the policy that its agents should have; empty where none is in force.
    pub policy_hash: Str,
    clusters: Names,
    kubernetes_clusters: Names,
    namespaces: Names,
    tags_include: Vec<(String, Vec<WildMatch>)>,
    tags_exclude: Vec<(String, Vec<WildMatch>)>,
    deliveries: Vec<(WildMatch, Delivery)>,
    exclusions: Vec<(WildMatch, usize)>,
}

/// What a monitor makes of one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection<'a> {
    /// It does not select it.
    No,
    /// It selects it.
    Yes,
    /// It selects it, and git excludes it for this reason.
    ExcludedByGit(&'a str),
    /// It selects it, and a tag excludes it, which it allows.
    ExcludedByTag,
}

impl Desired {
    /// Compiles documents. `policy_hash` gives the hash of the policy in force for a monitor's agents.
    pub fn compile(
        documents: &[Document],
        gateway: GatewaySpec,
        frozen: bool,
        policy_hash: impl Fn(&str) -> String,
    ) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut desired = Self { gateway, frozen, ..Self::default() };
        for document in documents {
            if let Document::AwsScope(scope) = document {
                desired.scopes.insert(scope.metadata.name.as_str().into(), scope.spec.clone());
            }
        }
        for document in documents {
            if let Document::RuntimeMonitor(monitor) = document {
                let name = monitor.metadata.name.as_str();
                problems::of_monitor(name, &monitor.spec, &desired.scopes, &mut problems);
                let mut compiled = Monitor::compile(name, &monitor.spec, &mut problems);
                compiled.policy_hash = policy_hash(name).into();
                desired.monitors.push(compiled);
            }
        }
        desired.monitors.sort_by(|a, b| b.spec.priority.cmp(&a.spec.priority).then_with(|| a.name.cmp(&b.name)));
        problems::of_ties(&desired.monitors, &mut problems);
        (desired, problems)
    }

    /// The monitor that selects a workload, and what it makes of it. `service` is absent for a
    /// standalone task; `workload` is the service's or family's name.
    pub fn select(
        &self,
        cluster: &Cluster,
        service: Option<&Service>,
        workload: &str,
        launch: LaunchType,
        now: Timestamp,
    ) -> Option<(usize, Selection<'_>)> {
        self.monitors.iter().enumerate().find_map(|(index, monitor)| {
            match monitor.select(cluster, service, workload, launch, now) {
                Selection::No => None,
                selection => Some((index, selection)),
            }
        })
    }

    /// The monitor that owns a cluster's daemon for one kind of node: the highest that selects the
    /// cluster by name, scope, compute and the cluster's own tags.
    pub fn select_cluster(&self, cluster: &Cluster, launch: LaunchType) -> Option<usize> {
        self.monitors.iter().position(|m| m.targets(cluster, launch) && m.tags_select(&[&cluster.tags]))
    }

    /// The agent that a monitor wants in one scope; none where the monitor names no agent.
    pub fn agent(&self, monitor: &Monitor, scope: &ScopeId, aws_scope: &str) -> Option<AgentSpec> {
        let agent = monitor.spec.agent.as_ref()?;
        let aws = self.scopes.get(aws_scope);
        let repository = agent.image.repository.replace("{region}", &scope.region);
        let mut gateway = self.gateway.clone();
        if let Some(url) = aws.and_then(|a| a.gateway.as_deref()) {
            gateway.url = url.into();
        }
        let role = |role: Option<&String>| role.map(|r| Str::from(r.as_str()));
        let pods = &monitor.spec.kubernetes;
        let memory = if scope.is_kubernetes() { pods.resources.memory } else { agent.resources.memory };
        Some(AgentSpec {
            version: agent.version.as_str().into(),
            image: format!("{repository}@{}", agent.image.digest).into(),
            sensor: match agent.sensor {
                SensorChoice::Auto => "auto",
                SensorChoice::Ebpf => "ebpf",
                SensorChoice::Ptrace => "ptrace",
                SensorChoice::Network => "network",
            }
            .into(),
            memory_mib: u32::try_from(memory.as_mib()).unwrap_or(u32::MAX),
            cpu: agent.resources.cpu.to_string().into(),
            task_role: role(aws.and_then(|a| a.agent_task_role.as_ref())),
            execution_role: role(aws.and_then(|a| a.agent_execution_role.as_ref())),
            gateway,
            pods: scope.is_kubernetes().then(|| PodsSpec {
                nodes: pods.nodes.clone(),
                tolerations: pods.tolerations.clone(),
                cpu: pods.resources.cpu.clone(),
                preempt: pods.preempt,
                pull_secrets: pods.image_pull_secrets.clone(),
            }),
        })
    }

    /// The monitor of this name that places agents, or the only one that does.
    ///
    /// # Errors
    /// Where there is none, or a name is needed: what to do.
    pub fn placing(&self, name: Option<&str>) -> Result<&Monitor, String> {
        let placing: Vec<_> = self.monitors.iter().filter(|monitor| monitor.spec.agent.is_some()).collect();
        let found = match (name, placing.as_slice()) {
            (None, []) => return Err("no monitor names an agent; add spec.agent with version and image".to_owned()),
            (None, [only]) => Some(*only),
            (None, _) => None,
            (Some(name), placing) => placing.iter().find(|monitor| *monitor.name == *name).copied(),
        };
        found.ok_or_else(|| {
            let names: Vec<_> = placing.iter().map(|monitor| &*monitor.name).collect();
            format!("name with --monitor which of those that name an agent: {}", names.join(", "))
        })
    }

    /// The sidecar that a monitor wants in one scope. Roles stay the owner's.
    pub fn sidecar(&self, monitor: &Monitor, scope: &ScopeId, aws_scope: &str) -> Option<SidecarSpec> {
        let mut agent = self.agent(monitor, scope, aws_scope)?;
        (agent.task_role, agent.execution_role) = (None, None);
        let fargate = &monitor.spec.ecs.fargate;
        Some(SidecarSpec {
            agent,
            share_processes: fargate.pid_mode == PidMode::Task,
            fail_closed: fargate.startup == Startup::FailClosed,
            grow: fargate.sizing == Sizing::Grow,
        })
    }
}

impl Monitor {
    fn compile(name: &str, spec: &RuntimeMonitorSpec, problems: &mut Vec<Problem>) -> Self {
        let ecs = spec.targets.ecs.clone().unwrap_or_default();
        let kubernetes = spec.targets.kubernetes.clone().unwrap_or_default();
        let compile_tags = |tags: &BTreeMap<String, Vec<String>>| {
            tags.iter().map(|(k, v)| (k.clone(), v.iter().map(|p| WildMatch::new(p)).collect())).collect()
        };
        Self {
            name: name.into(),
            windows: Windows::compile(name, &spec.rollout.windows, problems),
            minimum_version: spec.agent.as_ref().and_then(|a| a.minimum_version.as_deref()).and_then(Version::parse),
            policy_hash: Str::default(),
            clusters: Names::compile(&ecs.clusters),
            kubernetes_clusters: Names::compile(&kubernetes.clusters),
            namespaces: Names::compile(&kubernetes.namespaces),
            tags_include: compile_tags(&ecs.tags.include),
            tags_exclude: compile_tags(&ecs.tags.exclude),
            deliveries: spec.ecs.fargate.delivery_for.iter().map(|(p, d)| (WildMatch::new(p), *d)).collect(),
            exclusions: spec.exclusions.iter().enumerate().map(|(i, e)| (WildMatch::new(&e.matches), i)).collect(),
            spec: spec.clone(),
        }
    }

    /// Whether it may change anything.
    pub fn enforces(&self) -> bool {
        self.spec.mode == Mode::Enforce
    }

    /// How long an agent has to report in a rollout.
    pub fn deadline(&self) -> SignedDuration {
        SignedDuration::from_secs(self.spec.rollout.deadline.as_secs() as i64)
    }

    /// Whether the API server is to add sidecars to pods.
    pub fn offers_sidecars(&self) -> bool {
        self.enforces() && self.spec.kubernetes.delivery == Delivery::Live
    }

    /// Whether a node with these labels is to carry the agent.
    pub fn takes_node(&self, labels: &BTreeMap<String, String>) -> bool {
        self.spec.kubernetes.nodes.match_expressions.iter().all(|expression| nodes::matches(expression, labels))
    }

    /// The first taint of a node that keeps the agent away.
    pub fn untolerated<'n>(&self, node: &'n Node) -> Option<&'n Taint> {
        node.taints.iter().find(|taint| !nodes::tolerate(&self.spec.kubernetes.tolerations, taint))
    }

    /// Who adds the sidecar to this service.
    pub fn delivery(&self, cluster: &str, service: &str) -> Delivery {
        if self.deliveries.is_empty() {
            return self.spec.ecs.fargate.delivery;
        }
        let name = format!("{cluster}/{service}");
        let found = self.deliveries.iter().find(|(pattern, _)| pattern.matches(&name));
        found.map_or(self.spec.ecs.fargate.delivery, |(_, delivery)| *delivery)
    }

    /// Whether it selects a cluster's tasks on this kind of compute, as far as the cluster says.
    fn targets(&self, cluster: &Cluster, launch: LaunchType) -> bool {
        let compute = match launch {
            LaunchType::Fargate => Compute::Fargate,
            LaunchType::Ec2 => Compute::Ec2,
            LaunchType::External => Compute::External,
            LaunchType::ManagedInstances => Compute::ManagedInstances,
            LaunchType::Kubernetes | LaunchType::KubernetesVirtual => {
                return self.spec.targets.kubernetes.is_some() && self.kubernetes_clusters.take(&cluster.name);
            }
        };
        self.spec.targets.ecs.as_ref().is_some_and(|ecs| {
            (ecs.scopes.is_empty() || ecs.scopes.iter().any(|s| **s == *cluster.aws_scope))
                && (ecs.compute.is_empty() || ecs.compute.contains(&compute))
                && self.clusters.take(&cluster.name)
        })
    }

    fn tags_select(&self, tags: &[&BTreeMap<String, String>]) -> bool {
        let has = |key: &str, values: &[WildMatch]| {
            tags.iter().any(|t| t.get(key).is_some_and(|value| values.iter().any(|p| p.matches(value))))
        };
        self.tags_include.iter().all(|(key, values)| has(key, values))
            && !self.tags_exclude.iter().any(|(key, values)| has(key, values))
    }

    fn select(
        &self,
        cluster: &Cluster,
        service: Option<&Service>,
        workload: &str,
        launch: LaunchType,
        now: Timestamp,
    ) -> Selection<'_> {
        if !self.targets(cluster, launch) {
            return Selection::No;
        }
        if launch.is_kubernetes() && !namespace_of(workload).is_some_and(|name| self.namespaces.take(name)) {
            return Selection::No;
        }
        let none = BTreeMap::new();
        let tags = [&cluster.tags, service.map_or(&none, |s| &s.tags)];
        if !self.tags_select(&tags) {
            return Selection::No;
        }
        if !self.exclusions.is_empty() {
            let name = format!("{}/{workload}", cluster.name);
            for (pattern, index) in &self.exclusions {
                let Some(exclusion) = self.spec.exclusions.get(*index) else { continue };
                let in_force = exclusion.until.is_none_or(|until| now < until);
                // A pattern without a slash names a whole cluster or a workload in any cluster.
                let whole =
                    !exclusion.matches.contains('/') && (pattern.matches(&cluster.name) || pattern.matches(workload));
                if in_force && (whole || pattern.matches(&name)) {
                    return Selection::ExcludedByGit(&exclusion.reason);
                }
            }
        }
        let tagged = tags.iter().any(|t| t.get(EXCLUSION_TAG).is_some_and(|v| v == "false"));
        if tagged && self.spec.allow_tag_exclusion {
            return Selection::ExcludedByTag;
        }
        Selection::Yes
    }
}

/// The namespace in a pod's workload, which is `KIND/NAMESPACE/NAME`.
pub(crate) fn namespace_of(workload: &str) -> Option<&str> {
    workload.split('/').nth(1)
}
