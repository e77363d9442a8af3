//! One Kubernetes cluster: how it is reached, what it is called, and where our objects stand in it.

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Api, Client};
use tasuki_api::kubernetes as names;
use tasuki_core::fleet::{Cluster, ScopeId, Str};

/// Name of the ConfigMap in the agents' namespace that owns whatever the controller makes: when the chart's
/// release goes, so does everything.
pub const ANCHOR: &str = "tasuki-anchor";
/// Name with which the controller's fields are kept apart from those of others.
pub const FIELD_MANAGER: &str = "tasuki";

/// Labels and annotations of the agents' DaemonSets.
pub mod labels {
    /// What the DaemonSet is for: [`SERVING`] or [`NEXT`].
    pub const ROLE: &str = "tasuki.dev/role";
    /// It serves.
    pub const SERVING: &str = "serving";
    /// It is being rolled out.
    pub const NEXT: &str = "next";
    /// Names what its pods run; in the selector, so that no DaemonSet takes another's pods.
    pub const AGENT: &str = "tasuki.dev/agent";
    /// Annotation: agent version.
    pub const VERSION: &str = "tasuki.dev/version";
    /// Annotation: fingerprint of the agent spec.
    pub const SPEC: &str = "tasuki.dev/spec";
    /// Annotation: monitor that wanted it.
    pub const MONITOR: &str = "tasuki.dev/monitor-owner";
    /// Annotation: its pods come to every node, as it becomes the serving one.
    pub const PROMOTING: &str = "tasuki.dev/promoting";
    /// The field's standard label for what a program is.
    pub const NAME: &str = "app.kubernetes.io/name";
    /// Its value on everything of the agent's.
    pub const AGENT_NAME: &str = "tasuki-agent";
}

/// A cluster and how it is reached. Cheap to clone.
#[derive(Clone)]
pub struct Kubernetes {
    /// Its API server.
    pub client: Client,
    /// Its name, which monitors select it by.
    pub cluster: Str,
    /// Namespace of the controller.
    pub namespace: Str,
    /// Namespace of the agents.
    pub agent_namespace: Str,
    /// The chart brings what sidecars are added by (`sidecars.live`).
    pub live_sidecars: bool,
}

impl Kubernetes {
    /// Its scope.
    pub fn scope(&self) -> ScopeId {
        ScopeId::kubernetes(&self.cluster)
    }
    /// Its name in the fleet.
    pub fn arn(&self) -> Str {
        names::cluster(&self.cluster).into()
    }
    /// The reference by which what is made in a namespace belongs to the chart's release there; `None` where the
    /// chart did not make its anchor.
    ///
    /// # Errors
    /// Where the API server refuses or does not answer.
    pub async fn anchor(&self, namespace: &str) -> kube::Result<Option<OwnerReference>> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let uid = maps.get_opt(ANCHOR).await?.and_then(|anchor| anchor.metadata.uid);
        Ok(uid.map(|uid| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: ANCHOR.to_owned(),
            uid,
            ..OwnerReference::default()
        }))
    }
    /// As the fleet has it.
    pub fn as_cluster(&self) -> Cluster {
        Cluster {
            arn: self.arn(),
            name: self.cluster.clone(),
            scope: self.scope(),
            aws_scope: Str::default(),
            tags: Default::default(),
            capacity_providers: Vec::new(),
        }
    }
}

/// What an API server's refusal means, in one line: who may not do what, or what is wrong.
pub fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => {
            let cause = std::error::Error::source(other).map(|cause| format!(": {cause}")).unwrap_or_default();
            let text = other.to_string();
            if cause.is_empty() || text.ends_with(cause.trim_start_matches(": ")) {
                text
            } else {
                format!("{text}{cause}")
            }
        }
    }
}

/// Whether the API server says that there is no such thing.
pub fn is_absent(error: &kube::Error) -> bool {
    code(error) == Some(404)
}

/// Whether the API server says that somebody else was first.
pub fn is_conflict(error: &kube::Error) -> bool {
    code(error) == Some(409)
}

/// HTTP status of a refusal; `None` where there was no answer.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
