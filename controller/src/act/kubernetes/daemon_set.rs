//! The agent's DaemonSet. Equal specs make the same bytes.

use crate::scope::kubernetes::labels;
use k8s_openapi::api::core::v1::NodeSelectorTerm;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};
use tasuki_api::desired::Preempt;
use tasuki_api::kubernetes::{NEXT_BOTH, NEXT_LABEL, NEXT_ONLY, env};
use tasuki_core::action::{AgentSpec, PodsSpec, SIDECAR};
use tasuki_core::transform::{field, pod_environment, token_mount, token_volume};

/// What the agent needs to see a whole node, one by one: kernel programs (BPF, PERFMON), marks of fanotify and private
/// mounts (SYS_ADMIN), other processes' memory and files (SYS_PTRACE, DAC_READ_SEARCH), its rings' memory and its own
/// score (SYS_RESOURCE), its share of the processor (SYS_NICE), packets and sockets (NET_ADMIN, NET_RAW), responses (KILL).
const CAPABILITIES: [&str; 10] = [
    "BPF",
    "PERFMON",
    "SYS_ADMIN",
    "SYS_PTRACE",
    "SYS_RESOURCE",
    "SYS_NICE",
    "NET_ADMIN",
    "NET_RAW",
    "DAC_READ_SEARCH",
    "KILL",
];
/// Seconds between SIGTERM and SIGKILL: the supervisor needs 2.
const STOP_SECONDS: u32 = 10;

/// What a DaemonSet is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It serves: it stays away from nodes that have the next agent only.
    Serving,
    /// It is rolled out: it comes only to nodes in hand-over.
    Next,
}

/// Where it stands and to whom it belongs.
#[derive(Clone, Debug)]
pub struct Home<'a> {
    /// Cluster.
    pub cluster: &'a str,
    /// Namespace of the agents.
    pub namespace: &'a str,
    /// The monitor that wants it.
    pub monitor: &'a str,
    /// What owns it.
    pub anchor: &'a OwnerReference,
}

/// Name of the DaemonSet that runs this agent.
pub fn name(agent: &AgentSpec) -> String {
    format!("{}-{}", labels::AGENT_NAME, &agent.fingerprint()[..10])
}

/// The condition by which a DaemonSet of this role heeds the hand-over.
pub fn heeds(role: Role) -> Value {
    match role {
        Role::Serving => json!({"key": NEXT_LABEL, "operator": "NotIn", "values": [NEXT_ONLY]}),
        Role::Next => json!({"key": NEXT_LABEL, "operator": "In", "values": [NEXT_BOTH, NEXT_ONLY]}),
    }
}

/// Terms of an affinity without the condition of the hand-over, and with `heeds` in its place where one is given.
pub fn with_heed(terms: &[NodeSelectorTerm], heeds: Option<&Value>) -> serde_json::Result<Value> {
    let mut terms = serde_json::to_value(terms)?;
    for term in terms.as_array_mut().into_iter().flatten() {
        if let Some(expressions) = term["matchExpressions"].as_array_mut() {
            expressions.retain(|expression| expression["key"] != NEXT_LABEL);
            expressions.extend(heeds.cloned());
        }
    }
    Ok(terms)
}

/// The DaemonSet, for server-side apply.
pub fn daemon_set(agent: &AgentSpec, pods: &PodsSpec, role: Role, home: &Home<'_>) -> Value {
    let print = &agent.fingerprint()[..10];
    let role_label = match role {
        Role::Serving => labels::SERVING,
        Role::Next => labels::NEXT,
    };
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": name(agent),
            "namespace": home.namespace,
            "labels": {
                (labels::NAME): labels::AGENT_NAME,
                "app.kubernetes.io/managed-by": "tasuki",
                (labels::ROLE): role_label,
                (labels::AGENT): print,
            },
            "annotations": {
                (labels::VERSION): agent.version,
                (labels::SPEC): agent.fingerprint(),
                (labels::MONITOR): home.monitor,
            },
            "ownerReferences": [home.anchor],
        },
        "spec": {
            "selector": {"matchLabels": {(labels::NAME): labels::AGENT_NAME, (labels::AGENT): print}},
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 0,
            "template": {
                "metadata": {
                    "labels": {
                        (labels::NAME): labels::AGENT_NAME,
                        "app.kubernetes.io/version": agent.version,
                        (labels::AGENT): print,
                    },
                    "annotations": {"kubectl.kubernetes.io/default-container": SIDECAR},
                },
                "spec": pod(agent, pods, role, home),
            },
        },
    })
}

fn pod(agent: &AgentSpec, pods: &PodsSpec, role: Role, home: &Home<'_>) -> Value {
    let mut expressions = vec![
        json!({"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}),
        json!({"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64", "arm64"]}),
        json!({"key": "eks.amazonaws.com/compute-type", "operator": "NotIn", "values": ["fargate"]}),
        json!({"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]}),
    ];
    expressions.extend(pods.nodes.match_expressions.iter().map(|e| match e.values.is_empty() {
        true => json!({"key": e.key, "operator": e.operator}),
        false => json!({"key": e.key, "operator": e.operator, "values": e.values}),
    }));
    expressions.push(heeds(role));
    let priority = match pods.preempt {
        Preempt::Never => "tasuki-agent",
        Preempt::LowerPriority => "tasuki-agent-preempting",
    };
    let volume = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    let mount =
        |name: &str, path: &str, read_only: bool| json!({"name": name, "mountPath": path, "readOnly": read_only});
    json!({
        "serviceAccountName": labels::AGENT_NAME,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "hostPID": true,
        "priorityClassName": priority,
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "tolerations": pods.tolerations,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": expressions}],
        }}},
        "imagePullSecrets": pods.pull_secrets.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
        "containers": [{
            "name": SIDECAR,
            "image": agent.image,
            "imagePullPolicy": "IfNotPresent",
            "env": variables(agent, home.cluster),
            "resources": {
                "requests": {"cpu": pods.cpu, "memory": format!("{}Mi", agent.memory_mib)},
                "limits": {"memory": format!("{}Mi", agent.memory_mib)},
            },
            "securityContext": {
                "runAsUser": 0,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": CAPABILITIES},
                "seccompProfile": {"type": "Unconfined"},
                "appArmorProfile": {"type": "Unconfined"},
                "seLinuxOptions": {"type": "spc_t"},
            },
            "volumeMounts": [
                token_mount("token"),
                mount("kernel", "/sys/kernel", false),
                mount("cgroup", "/sys/fs/cgroup", true),
                mount("names", "/var/log/containers", true),
                mount("pods", "/var/log/pods", true),
                mount("state", "/var/lib/tasuki", false),
            ],
        }],
        "volumes": [
            token_volume("token"),
            volume("kernel", "/sys/kernel", "Directory"),
            volume("cgroup", "/sys/fs/cgroup", "Directory"),
            volume("names", "/var/log/containers", "DirectoryOrCreate"),
            volume("pods", "/var/log/pods", "DirectoryOrCreate"),
            volume("state", "/var/lib/tasuki", "DirectoryOrCreate"),
        ],
    })
}

fn variables(agent: &AgentSpec, cluster: &str) -> Vec<Value> {
    let mut all = pod_environment(agent, cluster);
    all.push(field(env::NODE, "spec.nodeName"));
    all
}
