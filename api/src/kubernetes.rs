//! How Kubernetes objects are named where ECS has ARNs, and the labels that both sides agree on.
//!
//! A name never changes while its object lives, and no later object has it again: a pod's holds its
//! uid. The last part is what people read.

use std::fmt;

/// Audience of the tokens with which agents enrol.
pub const TOKEN_AUDIENCE: &str = "tasuki.dev/gateway";
/// Where the projected token lies in the agent's container.
pub const TOKEN_PATH: &str = "/var/run/secrets/tasuki.dev/token";
/// Longest token that is read or looked at, bytes. Projected tokens are about 1.2 KiB.
pub const LONGEST_TOKEN: usize = 8 << 10;
/// Label of a node in hand-over: [`NEXT_BOTH`] or [`NEXT_ONLY`].
pub const NEXT_LABEL: &str = "tasuki.dev/agent-next";
/// Both agents run on the node.
pub const NEXT_BOTH: &str = "both";
/// The new agent alone runs on the node.
pub const NEXT_ONLY: &str = "only";

/// Environment of the agent's container, beside that of [`crate::agent::env`].
pub mod env {
    /// The cluster's name, as the controller has it: the first part of every name.
    pub const CLUSTER: &str = "TASUKI_CLUSTER";
    /// `metadata.namespace`.
    pub const NAMESPACE: &str = "TASUKI_POD_NAMESPACE";
    /// `metadata.name`.
    pub const NAME: &str = "TASUKI_POD_NAME";
    /// `metadata.uid`.
    pub const UID: &str = "TASUKI_POD_UID";
    /// `spec.nodeName`.
    pub const NODE: &str = "TASUKI_NODE_NAME";
}

/// A pod: `k8s/CLUSTER/pod/NAMESPACE/UID/NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodName<'a> {
    /// Cluster.
    pub cluster: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// `metadata.uid`.
    pub uid: &'a str,
    /// `metadata.name`.
    pub name: &'a str,
}

impl<'a> PodName<'a> {
    /// Reads a name; `None` where it is none of a pod (an ECS task's ARN is not).
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.strip_prefix("k8s/")?.split('/');
        let (cluster, kind) = (parts.next()?, parts.next()?);
        let (namespace, uid, name) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = kind == "pod" && parts.next().is_none();
        let filled = [cluster, namespace, uid, name].iter().all(|part| !part.is_empty());
        (whole && filled).then_some(Self { cluster, namespace, uid, name })
    }
}

impl fmt::Display for PodName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k8s/{}/pod/{}/{}/{}", self.cluster, self.namespace, self.uid, self.name)
    }
}

/// Whether a name is one of these, and not an ARN.
pub fn is_name(text: &str) -> bool {
    text.starts_with("k8s/")
}

/// Name of a cluster: `k8s/CLUSTER`.
pub fn cluster(cluster: &str) -> String {
    format!("k8s/{cluster}")
}

/// Name of a node: `k8s/CLUSTER/node/NAME`.
pub fn node(cluster: &str, name: &str) -> String {
    format!("k8s/{cluster}/node/{name}")
}

/// Name of one of the agent's DaemonSets: `k8s/CLUSTER/daemonset/NAMESPACE/NAME`.
pub fn daemon_set(cluster: &str, namespace: &str, name: &str) -> String {
    format!("k8s/{cluster}/daemonset/{namespace}/{name}")
}

/// Name of what a namespace is offered in sidecars: `k8s/CLUSTER/sidecar/NAMESPACE`.
pub fn sidecar(cluster: &str, namespace: &str) -> String {
    format!("k8s/{cluster}/sidecar/{namespace}")
}

#[cfg(test)]
mod tests {
    use super::PodName;

    #[test]
    fn a_pods_name_is_read_as_it_was_written() {
        let pod = PodName { cluster: "self", namespace: "shop", uid: "1-2", name: "web-0" };
        assert_eq!(pod.to_string(), "k8s/self/pod/shop/1-2/web-0");
        assert_eq!(PodName::parse(&pod.to_string()), Some(pod));
        for wrong in [
            "arn:aws:ecs:eu-west-1:1:task/c/abc",
            "k8s/self/node/n",
            "k8s/self/pod/shop//web-0",
            "k8s/self/pod/shop/1/web-0/x",
        ] {
            assert_eq!(PodName::parse(wrong), None, "{wrong}");
        }
    }
}
