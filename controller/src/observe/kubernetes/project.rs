//! From Kubernetes objects to the nouns of the fleet. A projection: a pod's environment and volumes
//! are never kept.

use crate::scope::kubernetes::{Kubernetes, labels};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{self as spec, ContainerState, ContainerStatus, Node, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use std::collections::BTreeMap;
use tasuki_api::kubernetes::{self as names, NEXT_BOTH, NEXT_LABEL, NEXT_ONLY, PodName};
use tasuki_core::action::{DAEMON_SERVICE, DAEMON_SERVICE_NEXT, HOLD, NEXT, OWNER_TAG, PROMOTING};
use tasuki_core::fleet::{self, Container, Definition, LaunchType, Service, SidecarMark, Str, Taint, Task, TaskStatus};

/// Static pods are named by the hash of their file: the kubelet's own uid of them, which cgroups have.
const STATIC_UID: &str = "kubernetes.io/config.hash";
/// Label that a ReplicaSet adds to the name of its Deployment.
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Longest reason that is kept of a container, bytes.
const REASON: usize = 300;

fn at(time: Option<&Time>) -> Option<Timestamp> {
    time.map(|time| time.0)
}

/// Rises with each change of an object (Kubernetes 1.35 says so of every API; before, etcd's did).
fn version(meta: &ObjectMeta) -> i64 {
    meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0)
}

/// A pod's name in the fleet; `None` for one without a name or uid, which no API server sends.
pub fn pod_name(cluster: &str, meta: &ObjectMeta) -> Option<Str> {
    let fixed = meta.annotations.as_ref().and_then(|annotations| annotations.get(STATIC_UID));
    let uid = fixed.or(meta.uid.as_ref())?;
    let (namespace, name) = (meta.namespace.as_deref()?, meta.name.as_deref()?);
    Some(PodName { cluster, namespace, uid, name }.to_string().into())
}

/// What made an object and looks after it.
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The workload that owns a pod, as `KIND/NAMESPACE/NAME`.
pub fn workload(meta: &ObjectMeta) -> String {
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let owner = controller(meta);
    let Some(owner) = owner else { return format!("Pod/{namespace}/{}", meta.name.as_deref().unwrap_or_default()) };
    let hash = meta.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    match hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())).and_then(|name| name.strip_suffix('-')) {
        Some(deployment) if owner.kind == "ReplicaSet" => format!("Deployment/{namespace}/{deployment}"),
        _ => format!("{}/{namespace}/{}", owner.kind, owner.name),
    }
}

/// Why a pod's container does not run, or what it ended of; `None` where nothing is wrong.
pub fn failure(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let (word, exit_code, reason) = words(status.state.as_ref(), status.last_state.as_ref());
    match exit_code {
        Some(0) => None,
        Some(code) => Some(format!("{} (exit code {code})", reason.unwrap_or_default())),
        None => reason.filter(|_| word == "PENDING"),
    }
}

/// How the DaemonSets of the agent are called in the fleet: their name to their role there.
pub type Roles = BTreeMap<String, &'static str>;

/// What a pod says. `launches` gives the launch type of a node; `roles` those of the agent's own DaemonSets.
pub fn pod_task(
    scope: &Kubernetes,
    pod: &Pod,
    roles: &Roles,
    platform: impl Fn(&str) -> (LaunchType, Str),
) -> Option<Task> {
    let meta = &pod.metadata;
    let unknown = PodStatus::default();
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref().unwrap_or(&unknown));
    let namespace = meta.namespace.as_deref()?;
    let owner = controller(meta);
    let own = owner.filter(|owner| owner.kind == "DaemonSet" && *namespace == *scope.agent_namespace);
    let own = own.and_then(|owner| Some((roles.get(&owner.name)?, &owner.name)));
    let (group, definition) = match own {
        Some((role, daemon)) => (format!("service:{role}"), names::daemon_set(&scope.cluster, namespace, daemon)),
        None => (workload(meta), String::new()),
    };
    let node = spec.node_name.as_deref().filter(|name| !name.is_empty());
    let node = node.or_else(|| own.and_then(|_| meant_for(spec)));
    let (launch, family) = node.map_or((LaunchType::Kubernetes, Str::default()), platform);
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let ended = matches!(phase, "Succeeded" | "Failed");
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    let waits = unscheduled.map(|condition| {
        let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
        shortened(&format!("{reason}: {}", condition.message.as_deref().unwrap_or_default()))
    });
    let statuses = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
    let by_name: BTreeMap<&str, &ContainerStatus> = statuses.map(|status| (status.name.as_str(), status)).collect();
    // An init container that ended has done its work; one that restarts always is a sidecar and stays.
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let arn = pod_name(&scope.cluster, meta)?;
    let containers = spec.containers.iter().chain(sidecars).map(|container| {
        let status = by_name.get(container.name.as_str());
        let mut one =
            container_of(&arn, &container.name, container.image.as_deref().unwrap_or_default(), status.copied());
        one.reason = one.reason.or_else(|| waits.clone().map(Str::from));
        one
    });
    Some(Task {
        containers: containers.collect(),
        cluster: names::cluster(&scope.cluster).into(),
        group: group.into(),
        started_by: None,
        definition: definition.into(),
        launch,
        platform_version: None,
        platform_family: Some(family).filter(|family| !family.is_empty()),
        architecture: None,
        node: node.map(|name| names::node(&scope.cluster, name).into()),
        status: match phase {
            _ if ended => TaskStatus::Stopped,
            "Running" if meta.deletion_timestamp.is_some() => TaskStatus::Stopping,
            "Running" => TaskStatus::Running,
            _ => TaskStatus::Pending,
        },
        desired_stopped: meta.deletion_timestamp.is_some(),
        version: version(meta),
        created_at: at(meta.creation_timestamp.as_ref()),
        started_at: at(status.start_time.as_ref()).filter(|_| phase != "Pending"),
        stopped_at: if ended { last_end(&by_name) } else { None },
        stop_code: ended.then(|| phase.into()),
        stopped_reason: status.reason.as_deref().map(Str::from),
        address: status.pod_ip.as_deref().and_then(|ip| ip.parse().ok()),
        arn,
    })
}

/// What [`pod_task`] reads of a pod, and no more.
pub fn outline(pod: &Pod) -> Pod {
    let meta = &pod.metadata;
    let kept = |map: &Option<BTreeMap<String, String>>, key: &str| {
        let value = map.as_ref()?.get(key)?.clone();
        Some(BTreeMap::from([(key.to_owned(), value)]))
    };
    let containers = |all: &[spec::Container]| {
        let one = |container: &spec::Container| spec::Container {
            name: container.name.clone(),
            image: container.image.clone(),
            restart_policy: container.restart_policy.clone(),
            ..spec::Container::default()
        };
        all.iter().map(one).collect::<Vec<_>>()
    };
    Pod {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            creation_timestamp: meta.creation_timestamp.clone(),
            deletion_timestamp: meta.deletion_timestamp.clone(),
            owner_references: meta.owner_references.clone(),
            labels: kept(&meta.labels, TEMPLATE_HASH),
            annotations: kept(&meta.annotations, STATIC_UID),
            ..ObjectMeta::default()
        },
        spec: pod.spec.as_ref().map(|spec| PodSpec {
            node_name: spec.node_name.clone(),
            affinity: spec.affinity.clone(),
            containers: containers(&spec.containers),
            init_containers: spec.init_containers.as_deref().map(containers),
            ..PodSpec::default()
        }),
        status: pod.status.clone(),
    }
}

/// The node that a DaemonSet made a pod for: known before there is room for it, and where there never is.
fn meant_for(spec: &PodSpec) -> Option<&str> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let name = fields.into_iter().find(|field| field.key == "metadata.name" && field.operator == "In")?;
    name.values.as_ref()?.first().map(String::as_str)
}

fn container_of(pod: &str, name: &str, image: &str, status: Option<&ContainerStatus>) -> Container {
    let state = status.and_then(|status| status.state.as_ref());
    let (word, exit_code, reason) = words(state, status.and_then(|status| status.last_state.as_ref()));
    let id = status.and_then(|status| status.container_id.as_deref());
    let runs = status.map(|status| status.image_id.as_str()).unwrap_or_default();
    Container {
        name: name.into(),
        arn: format!("{pod}/{name}").into(),
        runtime_id: id.and_then(|id| id.split_once("://")).map(|(_, id)| id.into()),
        image: image.into(),
        image_digest: runs.rsplit_once("sha256:").map(|(_, digest)| format!("sha256:{digest}").into()),
        status: word.into(),
        exit_code,
        reason: reason.map(Str::from),
    }
}

/// What a container's state says, in the words that the fleet has for ECS containers.
fn words(state: Option<&ContainerState>, last: Option<&ContainerState>) -> (&'static str, Option<i32>, Option<String>) {
    let Some(state) = state else { return ("PENDING", None, None) };
    if state.running.is_some() {
        return ("RUNNING", None, None);
    }
    let ended = state.terminated.as_ref();
    if let Some(waiting) = &state.waiting {
        let why = waiting.reason.clone().unwrap_or_default();
        let message = waiting.message.as_deref().map(|message| format!(": {message}")).unwrap_or_default();
        let before = last.and_then(|last| last.terminated.as_ref());
        return match (why.as_str(), before) {
            // It waits because it ended, and what it ended of is the cause.
            ("CrashLoopBackOff", Some(before)) => (
                "STOPPED",
                Some(before.exit_code),
                Some(ending(before.reason.as_deref(), &shortened(&format!("{why}{message}")))),
            ),
            ("ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull", _) => {
                ("PENDING", None, Some(shortened(&format!("CannotPull: {why}{message}"))))
            }
            ("ContainerCreating" | "PodInitializing" | "", _) => ("PENDING", None, None),
            _ => ("PENDING", None, Some(shortened(&format!("{why}{message}")))),
        };
    }
    match ended {
        Some(ended) => (
            "STOPPED",
            Some(ended.exit_code),
            Some(ending(ended.reason.as_deref(), ended.message.as_deref().unwrap_or_default())),
        ),
        None => ("PENDING", None, None),
    }
}

fn ending(reason: Option<&str>, message: &str) -> String {
    match reason {
        Some("OOMKilled") => shortened(&format!("OutOfMemory: {message}")),
        Some(reason) if message.is_empty() => shortened(reason),
        Some(reason) => shortened(&format!("{reason}: {message}")),
        None => shortened(message),
    }
}

/// When the last container ended.
fn last_end(containers: &BTreeMap<&str, &ContainerStatus>) -> Option<Timestamp> {
    let ended = |status: &&&ContainerStatus| status.state.as_ref()?.terminated.as_ref()?.finished_at.clone();
    containers.values().filter_map(|status| ended(&status)).map(|time| time.0).max()
}

/// At most [`REASON`] bytes.
fn shortened(text: &str) -> String {
    let text = text.trim_end_matches([':', ' ']);
    let mut end = text.len().min(REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Whether a node can carry the agent's pod, and what it is.
pub fn platform_of(node: &Node) -> (LaunchType, Str) {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    let virtual_ = |family: &str| (LaunchType::KubernetesVirtual, Str::from(family));
    if label("eks.amazonaws.com/compute-type") == Some("fargate") {
        return virtual_("fargate");
    }
    if label("type") == Some("virtual-kubelet") {
        return virtual_("virtual-kubelet");
    }
    match label("kubernetes.io/os") {
        Some("linux") | None => {}
        Some(os) => return virtual_(os),
    }
    match label("kubernetes.io/arch") {
        Some("amd64" | "arm64") | None => (LaunchType::Kubernetes, "linux".into()),
        Some(other) => virtual_(other),
    }
}

/// What a node says. Its labels become attributes; the label of the hand-over becomes those of the daemon.
pub fn node(scope: &Kubernetes, node: &Node) -> Option<fleet::Node> {
    let meta = &node.metadata;
    let name = meta.name.as_deref()?;
    let (launch, _) = platform_of(node);
    let mut attributes: BTreeMap<String, String> = meta.labels.clone().unwrap_or_default();
    match attributes.get(NEXT_LABEL).map(String::as_str) {
        Some(NEXT_BOTH) => drop(attributes.insert(NEXT.to_owned(), String::new())),
        Some(NEXT_ONLY) => {
            attributes.insert(NEXT.to_owned(), String::new());
            attributes.insert(HOLD.to_owned(), String::new());
        }
        _ => {}
    }
    let ready = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Some(fleet::Node {
        arn: names::node(&scope.cluster, name).into(),
        cluster: scope.arn(),
        instance_id: meta.uid.as_deref().map(Str::from),
        active: true,
        connected: ready,
        turned_at: None,
        attributes,
        taints: taints(node),
        free_memory: 0,
        free_cpu: 0,
        launch,
        version: version(meta),
    })
}

/// The taints that keep pods away.
fn taints(node: &Node) -> Vec<Taint> {
    let all = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let hard = all.filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    let taint = |taint: &k8s_openapi::api::core::v1::Taint| Taint {
        key: taint.key.as_str().into(),
        value: taint.value.as_deref().unwrap_or_default().into(),
        effect: taint.effect.as_str().into(),
    };
    hard.map(taint).collect()
}

/// The role of one of the agent's DaemonSets; `None` for anybody else's.
pub fn role_of(set: &DaemonSet) -> Option<&'static str> {
    let meta = &set.metadata;
    let labels = meta.labels.as_ref()?;
    if labels.get(labels::NAME).map(String::as_str) != Some(labels::AGENT_NAME) || !annotation(meta, labels::SPEC) {
        return None;
    }
    match labels.get(labels::ROLE).map(String::as_str) {
        Some(labels::SERVING) => Some(DAEMON_SERVICE),
        Some(labels::NEXT) => Some(DAEMON_SERVICE_NEXT),
        _ => None,
    }
}

fn annotation(meta: &ObjectMeta, key: &str) -> bool {
    meta.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(key))
}

/// Field managers beside `ours` that own a part of a DaemonSet's spec.
pub fn meddlers(set: &DaemonSet, ours: &str) -> Vec<String> {
    let entries = set.metadata.managed_fields.iter().flatten().filter(|entry| entry.subresource.is_none());
    let of_spec =
        entries.filter(|entry| entry.fields_v1.as_ref().is_some_and(|fields| fields.0.get("f:spec").is_some()));
    of_spec.filter_map(|entry| entry.manager.clone()).filter(|manager| manager != ours).collect()
}

/// A service of the cluster without what only ECS has.
pub fn service(scope: &Kubernetes, arn: Str, name: &str) -> Service {
    Service {
        arn,
        cluster: scope.arn(),
        name: name.into(),
        definition: Str::default(),
        active: true,
        controller: Default::default(),
        strategy: Default::default(),
        daemon: false,
        launch: LaunchType::Kubernetes,
        desired: 0,
        running: 0,
        minimum_healthy: 0,
        maximum: 100,
        has_hooks: false,
        express: false,
        deployments: Vec::new(),
        tags: BTreeMap::new(),
        platform_version: None,
        subnets: Vec::new(),
        security_groups: Vec::new(),
        events: Vec::new(),
        created_at: None,
    }
}

/// One of the agent's DaemonSets, as the daemon service that it is, and what it runs. `events` are why it could not
/// make pods, the newest first.
pub fn daemon(
    scope: &Kubernetes,
    set: &DaemonSet,
    role: &'static str,
    events: Vec<Str>,
) -> Option<(Service, Definition)> {
    let meta = &set.metadata;
    let noted = |key: &str| meta.annotations.as_ref().and_then(|annotations| annotations.get(key)).cloned();
    let (namespace, name) = (meta.namespace.as_deref()?, meta.name.as_deref()?);
    let arn: Str = names::daemon_set(&scope.cluster, namespace, name).into();
    let count = |of: fn(&DaemonSetStatus) -> i32| {
        set.status.as_ref().and_then(|status| u32::try_from(of(status)).ok()).unwrap_or(0)
    };
    let mut tags = BTreeMap::from([(OWNER_TAG.to_owned(), noted(labels::MONITOR).unwrap_or_default())]);
    if annotation(meta, labels::PROMOTING) {
        tags.insert(PROMOTING.to_owned(), String::new());
    }
    let template = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let containers = template.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let image = containers.first().and_then(|container| container.image.clone()).unwrap_or_default();
    let service = Service {
        definition: arn.clone(),
        active: meta.deletion_timestamp.is_none(),
        daemon: true,
        desired: count(|status| status.desired_number_scheduled),
        running: count(|status| status.number_ready),
        tags,
        events,
        created_at: at(meta.creation_timestamp.as_ref()),
        ..service(scope, arn.clone(), role)
    };
    let definition = Definition {
        arn,
        hash: meta.uid.as_deref().unwrap_or_default().into(),
        active: true,
        containers: containers.iter().map(|container| container.name.as_str().into()).collect(),
        task_role: None,
        sidecar: Some(SidecarMark {
            version: noted(labels::VERSION).unwrap_or_default().into(),
            image: image.into(),
            source: None,
            source_hash: None,
            spec: noted(labels::SPEC).map(Str::from),
        }),
        obstacle: None,
        judged_for: None,
    };
    Some((service, definition))
}
