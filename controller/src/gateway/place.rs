//! Where a finding happened. What the agent claims is looked up, never copied, but for one thing: a
//! pod's status shows a container a second or two after its start, so until then the id of a container
//! that a node's agent names by pod and name is the agent's word.

use super::directory::Known;
use super::{pods, sts::TaskArn};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use tasuki_api::agent::AgentKind;
use tasuki_api::finding::{self, Finding, Resource};
use tasuki_api::kubernetes::PodName;
use tasuki_core::fleet::{Container, LaunchType, Task};

/// How long a finding about a pod that is not known is kept back: the watch may be behind the node.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

/// Where a finding happened, or why it cannot be taken.
#[derive(Debug, PartialEq)]
pub enum Place {
    /// There.
    At(Box<Resource>),
    /// Where the agent may not speak for.
    Foreign(&'static str),
    /// Not known; ECS can be asked.
    NotYet,
    /// Not known; it will be, without asking.
    Later,
}

/// Finds out where a finding happened.
pub fn place(finding: &Finding, kind: AgentKind, own: &Known, tasks: &[Arc<Task>], now: Timestamp) -> Place {
    let claim = &finding.resource;
    let claimed = match &claim.task {
        None => None,
        Some(name) => match pods::named(tasks, name) {
            Some(task) => Some(task),
            None if kind == AgentKind::Node
                && PodName::parse(name).is_some()
                && now.duration_since(finding.last_seen) < PATIENCE =>
            {
                return Place::Later;
            }
            None => return Place::Foreign("ForeignTask: this agent may not speak for that task"),
        },
    };
    let container = claim.container.as_ref().filter(|container| !container.id.is_empty());
    let Some(container) = container else {
        return at(match (claimed, kind) {
            (Some(task), _) => stamp(task, None),
            (None, AgentKind::Sidecar) => stamp(&own.task, None),
            (None, AgentKind::Node) => node(&own.task),
        });
    };
    let id = container.id.as_str();
    let owner = tasks.iter().find(|task| task.containers.iter().any(|c| c.runtime_id.as_deref() == Some(id)));
    match (owner, claimed) {
        (Some(owner), Some(claimed)) if owner.arn != claimed.arn => {
            Place::Foreign("ForeignContainer: the container is another task's")
        }
        (Some(owner), _) => {
            let known = owner.containers.iter().find(|c| c.runtime_id.as_deref() == Some(id));
            at(stamp(owner, known.map(|known| (known, id))))
        }
        (None, Some(pod)) if is_pod(pod) => at(stamp_early(pod, container)),
        // A container on the node that ECS or Kubernetes did not start: the finding is the node's.
        (None, None) if kind == AgentKind::Node => at(node(&own.task)),
        (None, None) if is_pod(&own.task) => at(stamp_early(&own.task, container)),
        (None, _) => Place::NotYet,
    }
}

fn at(resource: Resource) -> Place {
    Place::At(Box::new(resource))
}

fn is_pod(task: &Task) -> bool {
    PodName::parse(&task.arn).is_some()
}

/// The pod of a container whose id it does not show yet.
fn stamp_early(pod: &Task, claimed: &finding::Container) -> Resource {
    let id = claimed.id.as_str();
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let container = pod.containers.iter().find(|container| is_id && *container.name == *claimed.name);
    stamp(pod, container.map(|container| (container, id)))
}

fn stamp(task: &Task, container: Option<(&Container, &str)>) -> Resource {
    let container = container.map(|(container, id)| finding::Container {
        name: container.name.to_string(),
        id: id.to_owned(),
        image: Some(container.image.to_string()),
        image_digest: container.image_digest.as_deref().map(str::to_owned),
    });
    let here = Resource { task: Some(task.arn.to_string()), container, ..node(task) };
    match PodName::parse(&task.arn) {
        Some(pod) => Resource {
            namespace: Some(pod.namespace.to_owned()),
            pod: Some(pod.name.to_owned()),
            workload: workload(task),
            ..here
        },
        None => Resource {
            service: task.service_name().map(str::to_owned),
            task_definition: Some(task.definition.to_string()),
            ..here
        },
    }
}

/// `Kind/name` of what owns a pod. The agents' own pods are grouped by what they do in a rollout; their
/// DaemonSet is their definition (`k8s/CLUSTER/daemonset/NAMESPACE/NAME`).
fn workload(pod: &Task) -> Option<String> {
    if pod.service_name().is_some() {
        let mut parts = pod.definition.strip_prefix("k8s/")?.split('/').skip(1);
        let (kind, name) = (parts.next()?, parts.nth(1)?);
        return (kind == "daemonset").then(|| format!("DaemonSet/{name}"));
    }
    let mut parts = pod.group.splitn(3, '/');
    let (kind, name) = (parts.next()?, parts.nth(1)?);
    Some(format!("{kind}/{name}"))
}

/// What is known of the place without a task.
fn node(task: &Task) -> Resource {
    let arn = TaskArn::parse(&task.arn);
    let launch = match task.launch {
        LaunchType::Fargate => "FARGATE",
        LaunchType::Ec2 => "EC2",
        LaunchType::External => "EXTERNAL",
        LaunchType::ManagedInstances => "MANAGED_INSTANCES",
        LaunchType::Kubernetes | LaunchType::KubernetesVirtual => "KUBERNETES",
    };
    Resource {
        account: arn.map(|arn| arn.account.to_owned()),
        region: arn.map(|arn| arn.region.to_owned()),
        cluster: Some(task.cluster.to_string()),
        launch_type: Some(launch.to_owned()),
        node: task.node.as_deref().map(str::to_owned),
        ..Resource::default()
    }
}
