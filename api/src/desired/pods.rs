//! How Kubernetes pods get their agent: the part of `RuntimeMonitor` that shapes its DaemonSet.

use super::choices::*;
use super::units::Size;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

spec! {
    /// How Kubernetes pods get their agent.
    pub struct KubernetesSpec {
        /// Nodes that are to carry the agent, beside those that cannot (Windows, Fargate, virtual nodes); empty means all.
        #[serde(default)]
        pub nodes: NodeSelector,
        /// Tolerations of the agent's pods; every taint by default.
        #[schemars(length(max = 64))]
        #[serde(default = "every_taint")]
        pub tolerations: Vec<Toleration>,
        /// What the agent's container asks for and may use.
        #[serde(default)]
        pub resources: PodResources,
        /// Whether it may evict others where a node is full.
        #[serde(default)]
        pub preempt: Preempt,
        /// Whether pods wait for a new node's agent.
        #[serde(default)]
        pub startup: NodeStartup,
        /// How a node changes from one agent to the next.
        #[serde(default)]
        pub handover: Handover,
        /// Secrets in the agent's namespace with which its image is pulled.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub image_pull_secrets: Vec<String>,
        /// How pods without a node of ours get their sidecar; `Live` is for EKS Fargate, where the chart has `sidecars.live`.
        #[serde(default)]
        pub delivery: Delivery,
    }

    /// A selection of nodes by their labels.
    pub struct NodeSelector {
        /// All must hold.
        #[schemars(length(max = 32))]
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub match_expressions: Vec<NodeExpression>,
    }

    /// One condition on a node's labels.
    pub struct NodeExpression {
        /// Label.
        pub key: String,
        /// How it is compared.
        pub operator: NodeOperator,
        /// Values for `In`, `NotIn`, `Gt` and `Lt`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub values: Vec<String>,
    }

    /// A toleration, as Kubernetes has it.
    pub struct Toleration {
        /// Taint's key; every key where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub key: Option<String>,
        /// `Exists` or `Equal`.
        #[serde(default)]
        pub operator: TolerationOperator,
        /// Taint's value, for `Equal`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub value: Option<String>,
        /// `NoSchedule`, `PreferNoSchedule`, `NoExecute`; every effect where absent.
        #[schemars(length(max = 32))]
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub effect: Option<String>,
    }

    /// What the agent's container asks for and may use. Its memory request equals its limit; it has no CPU limit,
    /// since a throttled agent loses events.
    pub struct PodResources {
        /// CPU request, in Kubernetes' notation.
        #[schemars(length(max = 16))]
        #[serde(default = "fifty_millicores")]
        pub cpu: String,
        /// Memory request and limit.
        #[serde(default = "memory_256mi")]
        pub memory: Size,
    }
}

fn every_taint() -> Vec<Toleration> {
    vec![Toleration { key: None, operator: TolerationOperator::Exists, value: None, effect: None }]
}
fn fifty_millicores() -> String {
    "50m".to_owned()
}
fn memory_256mi() -> Size {
    Size::from_mib(256)
}

default_is_empty_document!(KubernetesSpec, NodeSelector, PodResources);
