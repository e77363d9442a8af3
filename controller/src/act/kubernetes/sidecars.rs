//! Sidecars that the API server adds: what a namespace is offered, and the trial before.
//!
//! The policy that adds them is the chart's. The controller writes one ConfigMap of its own, which the policy reads,
//! and makes Jobs that run `tasuki-agent --version` once, which another policy holds to that form.

use super::calls::{as_ourselves, last, refused};
use crate::act::outcome::Stop;
use crate::scope::kubernetes::{FIELD_MANAGER, Kubernetes, code, is_absent, is_conflict, labels, words};
use crate::scope::sidecars::{
    self, CLUSTER, GATEWAY, GATEWAY_CA, MAP, Offer, POLICY, POLICY_KEY, PROBE, probe as probe_name,
};
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange};
use kube::api::{ListParams, Patch, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tasuki_api::coverage::Reason;
use tasuki_core::action::{AgentSpec, SIDECAR};
use tasuki_core::fleet::{Change, Str};
use tasuki_core::transform::sidecar;

/// A trial that takes longer has failed, seconds: an image that is pulled slowly would hold pods up just as long.
const DEADLINE: u32 = 120;
/// What a trial left is there to be read for so long, seconds; then it is tried again where it failed.
const KEPT: u32 = 600;

/// Tries in a namespace whether a pod there gets the agent's image and may run it.
pub(super) async fn probe(
    scope: &Kubernetes,
    service: &Str,
    agent: &AgentSpec,
    changes: &mut Vec<Change>,
) -> Result<(), Stop> {
    let namespace = last(service);
    room(scope, namespace).await?;
    let owner = policy(scope).await?;
    let name = probe_name(&agent.fingerprint());
    let jobs: Api<Job> = Api::namespaced(scope.client.clone(), namespace);
    let job: Job = serde_json::from_value(job(&name, namespace, agent, &owner))
        .map_err(|error| Stop::Answer(format!("Job {name}: {error}")))?;
    match jobs.create(&made_by_us(), &job).await {
        Ok(_) => {
            // Until its pod is seen nothing else says so.
            let detail = format!("Job {name} tries the agent's image in namespace {namespace}");
            let (target, reason) = (service.clone(), Reason::StartedBeforeMonitoring);
            changes.push(Change::Obstructed { target, reason, detail });
            Ok(())
        }
        Err(error) if is_conflict(&error) => {
            let why = format!(
                "Job {name} in namespace {namespace} tried the agent and no pod of it ran; `kubectl describe job {name} -n \
                 {namespace}` says why, and it is tried again once the Job is gone"
            );
            Err(Stop::Blocked(Reason::ImageNotPullable, why))
        }
        Err(error) => Err(denied("create jobs", &error)),
    }
}

/// A pod that fits its namespace's bounds for pods may not fit them with a sidecar.
async fn room(scope: &Kubernetes, namespace: &str) -> Result<(), Stop> {
    let ranges: Api<LimitRange> = Api::namespaced(scope.client.clone(), namespace);
    let ranges = ranges.list(&ListParams::default()).await.map_err(|error| denied("list limitranges", &error))?;
    let bounds = |range: &LimitRange| {
        let items = range.spec.iter().flat_map(|spec| &spec.limits);
        let mut of_pods = items.filter(|item| item.type_ == "Pod");
        of_pods.any(|item| item.max.is_some() || item.max_limit_request_ratio.is_some())
    };
    match ranges.items.iter().find(|range| bounds(range)) {
        None => Ok(()),
        Some(range) => {
            let name = range.name_any();
            let why =
                format!("LimitRange {name} of namespace {namespace} bounds whole pods, and a sidecar counts in them");
            Err(Stop::Blocked(Reason::NoRoom, why))
        }
    }
}

/// Lets new pods of a namespace have the sidecar.
pub(super) async fn offer(scope: &Kubernetes, namespace: &str, agent: &AgentSpec) -> Result<(), Stop> {
    room(scope, namespace).await?;
    // Pods that were made since the first offer should have had one.
    let before = offers(scope).await.map_err(|error| denied("list configmaps", &error))?;
    let since = before.get(namespace).map_or_else(Timestamp::now, |offer| offer.at);
    let offer = Offer::new(agent, since).map_err(Stop::Changed)?;
    let data = json!({
        (GATEWAY): agent.gateway.url,
        (GATEWAY_CA): agent.gateway.ca,
        (POLICY_KEY): agent.gateway.policy_key,
        (CLUSTER): scope.cluster,
        (namespace): offer.to_string(),
    });
    match merge(scope, &json!({"data": data})).await {
        Err(error) if is_absent(&error) => {}
        other => return other.map_err(|error| denied("patch configmaps", &error)),
    }
    // It goes with the policy that reads it, so that an offer is never older than the right to make it.
    let owner = policy(scope).await?;
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {
            "name": MAP,
            "labels": {(labels::NAME): "tasuki", "app.kubernetes.io/managed-by": "tasuki"},
            "ownerReferences": [owner],
        },
        "data": data,
    }))
    .map_err(|error| Stop::Answer(format!("ConfigMap {MAP}: {error}")))?;
    maps(scope).create(&made_by_us(), &map).await.map(drop).map_err(|error| denied("create configmaps", &error))
}

/// Lets new pods of a namespace have none.
pub(super) async fn withdraw(scope: &Kubernetes, namespace: &str) -> Result<(), Stop> {
    match merge(scope, &json!({"data": {(namespace): null}})).await {
        Err(error) if !is_absent(&error) => Err(denied("patch configmaps", &error)),
        _ => Ok(()),
    }
}

/// The namespaces that are offered sidecars, as the API server says now.
pub(super) async fn offers(scope: &Kubernetes) -> kube::Result<BTreeMap<String, Offer>> {
    let named = ListParams::default().fields(&format!("metadata.name={MAP}"));
    Ok(maps(scope).list(&named).await?.items.first().map(sidecars::offers).unwrap_or_default())
}

fn made_by_us() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn maps(scope: &Kubernetes) -> Api<ConfigMap> {
    Api::namespaced(scope.client.clone(), &scope.agent_namespace)
}

async fn merge(scope: &Kubernetes, patch: &Value) -> kube::Result<()> {
    maps(scope).patch(MAP, &as_ourselves(), &Patch::Merge(patch)).await.map(drop)
}

/// A reference to the chart's policy: when it goes, trials go.
async fn policy(scope: &Kubernetes) -> Result<Value, Stop> {
    let kind = ApiResource {
        group: "admissionregistration.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "admissionregistration.k8s.io/v1".to_owned(),
        kind: "MutatingAdmissionPolicy".to_owned(),
        plural: "mutatingadmissionpolicies".to_owned(),
    };
    let policies: Api<DynamicObject> = Api::all_with(scope.client.clone(), &kind);
    match policies.get_metadata(POLICY).await {
        Ok(found) => Ok(json!({
            "apiVersion": kind.api_version, "kind": kind.kind, "name": POLICY, "uid": found.uid().unwrap_or_default(),
        })),
        Err(error) if is_absent(&error) => Err(not_granted("get mutatingadmissionpolicies", &error)),
        Err(error) => Err(denied("get mutatingadmissionpolicies", &error)),
    }
}

/// What a refusal means: a right that is missing, or what the namespace does not let in.
fn denied(call: &str, error: &kube::Error) -> Stop {
    let detail = words(error);
    match code(error) {
        Some(403) if detail.contains("is being terminated") => Stop::Changed(format!("{call}: {detail}")),
        Some(403) if detail.contains(" cannot ") && detail.contains(" resource ") => not_granted(call, error),
        Some(403) => Stop::Blocked(Reason::ImageNotPullable, format!("{call}: {detail}")),
        _ => refused(call, error),
    }
}

fn not_granted(call: &str, error: &kube::Error) -> Stop {
    let why = format!(
        "{call}: {}; delivery Live wants the chart's `sidecars.live: true`, and Kubernetes 1.36 or newer",
        words(error)
    );
    Stop::Blocked(Reason::PermissionDenied, why)
}

/// The Job of a trial: the sidecar as pods would have it, without what makes it an agent.
fn job(name: &str, namespace: &str, agent: &AgentSpec, owner: &Value) -> Value {
    let mut container = sidecar(agent, "");
    if let Some(fields) = container.as_object_mut() {
        for field in ["restartPolicy", "env", "volumeMounts"] {
            fields.remove(field);
        }
        fields.insert("args".to_owned(), json!(["--version"]));
        // On a node that has the image already nothing else would show that this namespace may pull it.
        fields.insert("imagePullPolicy".to_owned(), json!("Always"));
    }
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {(labels::NAME): SIDECAR, "app.kubernetes.io/managed-by": "tasuki"},
            "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": DEADLINE,
            "ttlSecondsAfterFinished": KEPT,
            "template": {
                "metadata": {"labels": {(PROBE): agent.fingerprint()}},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [container],
                },
            },
        },
    })
}
