//! Pods as they are read from the API server: without the record of who manages which of their fields, which is half
//! of a pod's bytes and took four fifths of the time of reading it.

use k8s_openapi::Resource as _;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A pod with as much of its metadata as is looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Parts")]
pub(super) struct LeanPod(pub(super) Pod);

#[derive(Deserialize)]
struct Parts {
    metadata: Metadata,
    spec: Option<PodSpec>,
    status: Option<PodStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    annotations: Option<BTreeMap<String, String>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    name: Option<String>,
    namespace: Option<String>,
    owner_references: Option<Vec<OwnerReference>>,
    resource_version: Option<String>,
    uid: Option<String>,
}

impl From<Parts> for LeanPod {
    fn from(Parts { metadata, spec, status }: Parts) -> Self {
        let metadata = ObjectMeta {
            annotations: metadata.annotations,
            creation_timestamp: metadata.creation_timestamp,
            deletion_timestamp: metadata.deletion_timestamp,
            labels: metadata.labels,
            name: metadata.name,
            namespace: metadata.namespace,
            owner_references: metadata.owner_references,
            resource_version: metadata.resource_version,
            uid: metadata.uid,
            ..ObjectMeta::default()
        };
        Self(Pod { metadata, spec, status })
    }
}

impl Resource for LeanPod {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Pod::KIND.into()
    }
    fn group((): &()) -> Cow<'_, str> {
        Pod::GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        Pod::VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        Pod::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.0.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.0.metadata
    }
}
