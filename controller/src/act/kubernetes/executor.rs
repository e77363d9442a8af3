//! Takes actions on a Kubernetes cluster and runs them.

use super::calls::{as_ourselves, last, refused};
use super::daemon_set::{Home, Role, daemon_set, heeds, name, with_heed};
use super::sidecars;
use crate::act::executor::{outcome, write_down};
use crate::act::outcome::{Outcome, Stop};
use crate::act::{Owned, OwnedKind};
use crate::events::{Events, about};
use crate::observe::kubernetes::{controller, node, pod_task};
use crate::scope::kubernetes::{ANCHOR, FIELD_MANAGER, Kubernetes, code, is_absent, labels, words};
use crate::store::{ActionRecord, Store};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tasuki_api::coverage::Reason;
use tasuki_api::kubernetes::{NEXT_BOTH, NEXT_LABEL, NEXT_ONLY, PodName};
use tasuki_core::action::{Action, ActionKind, AgentSpec, DAEMON_SERVICE, DAEMON_SERVICE_NEXT, HOLD};
use tasuki_core::fleet::{Change, LaunchType, Str};
use tokio::sync::Semaphore;

/// Calls at once: what one client may ask of an API server that others share.
const AT_ONCE: usize = 16;
/// The label's place in a node, as JSON Patch writes it.
const LABEL_PATH: &str = "/metadata/labels/tasuki.dev~1agent-next";

/// Executes actions in one cluster. Cheap to clone.
#[derive(Clone)]
pub struct KubernetesExecutor {
    scope: Kubernetes,
    store: Store,
    events: Events,
    turns: Arc<Semaphore>,
}

impl KubernetesExecutor {
    /// Acts in `scope`, keeps the action log in `store` and tells the cluster by `events`.
    pub fn new(scope: Kubernetes, store: Store, events: Events) -> Self {
        Self { scope, store, events, turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Executes one action; `desired` names the desired state that it was decided on, for the action log.
    pub async fn execute(&self, action: &Action, desired: &str) -> Outcome {
        // Never closed.
        let _turn = self.turns.acquire().await;
        let mut changes = Vec::new();
        let result = Box::pin(self.step(action, &mut changes)).await;
        let record = ActionRecord {
            at: Timestamp::now(),
            desired: desired.to_owned(),
            action: action.clone(),
            before: None,
            after: None,
            request_ids: Vec::new(),
            error: result.as_ref().err().map(Stop::text),
        };
        write_down(&self.store, &record, false).await;
        self.tell(action, record.error.as_deref());
        outcome(action, result, changes)
    }

    /// An Event on the node that it is about, or on the monitor that wanted it.
    fn tell(&self, action: &Action, error: Option<&str>) {
        let about = match &action.kind {
            ActionKind::PutAttribute { node, .. }
            | ActionKind::DeleteAttribute { node, .. }
            | ActionKind::DeleteAgent { node, .. } => ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(last(node).to_owned()),
                ..ObjectReference::default()
            },
            _ => about("RuntimeMonitor", &action.monitor, ""),
        };
        let what = crate::act::executor::name(&action.kind);
        let target = last(action.target());
        match error {
            None => self.events.action(about, what, &format!("{target}: {}", action.why)),
            Some(error) => self.events.warning(about, &format!("{what}Failed"), &format!("{target}: {error}")),
        }
    }

    async fn step(&self, action: &Action, changes: &mut Vec<Change>) -> Result<(), Stop> {
        match &action.kind {
            ActionKind::CreateDaemon { service, agent, .. } => {
                let role = if **service == *DAEMON_SERVICE_NEXT { Role::Next } else { Role::Serving };
                self.create(role, agent, &action.monitor).await
            }
            ActionKind::DeleteDaemon { service } => self.delete(service).await,
            ActionKind::PromoteDaemon { service, serving } => self.promote(service, serving.as_ref()).await,
            ActionKind::SettleDaemon { service } => self.settle(service).await,
            ActionKind::DeleteAgent { task, .. } => self.end(task, changes).await,
            ActionKind::ProbeImage { service, agent } => sidecars::probe(&self.scope, service, agent, changes).await,
            ActionKind::OfferSidecar { service, agent } => sidecars::offer(&self.scope, last(service), agent).await,
            ActionKind::WithdrawSidecar { service } => sidecars::withdraw(&self.scope, last(service)).await,
            ActionKind::PutAttribute { node, name } => {
                let only = **name == *HOLD;
                let patch = match only {
                    true => json!([
                        {"op": "test", "path": LABEL_PATH, "value": NEXT_BOTH},
                        {"op": "replace", "path": LABEL_PATH, "value": NEXT_ONLY},
                    ]),
                    false => json!([{"op": "add", "path": LABEL_PATH, "value": NEXT_BOTH}]),
                };
                self.label(node, patch, changes).await
            }
            ActionKind::DeleteAttribute { node, name } => {
                let patch = match **name == *HOLD {
                    true => json!([
                        {"op": "test", "path": LABEL_PATH, "value": NEXT_ONLY},
                        {"op": "replace", "path": LABEL_PATH, "value": NEXT_BOTH},
                    ]),
                    false => json!([{"op": "remove", "path": LABEL_PATH}]),
                };
                self.label(node, patch, changes).await
            }
            ActionKind::DescribeDefinition { .. }
            | ActionKind::UpdateDaemon { .. }
            | ActionKind::RevertDaemon { .. }
            | ActionKind::Inject { .. }
            | ActionKind::Uninject { .. }
            | ActionKind::RollBack { .. }
            | ActionKind::Deregister { .. } => Err(Stop::Changed("a Kubernetes cluster has none of these".to_owned())),
        }
    }

    fn sets(&self) -> Api<DaemonSet> {
        Api::namespaced(self.scope.client.clone(), &self.scope.agent_namespace)
    }

    async fn held(&self, name: &str) -> Result<Option<DaemonSet>, Stop> {
        self.sets().get_opt(name).await.map_err(|error| refused("get daemonsets", &error))
    }

    async fn create(&self, role: Role, agent: &AgentSpec, monitor: &str) -> Result<(), Stop> {
        let Some(pods) = &agent.pods else {
            return Err(Stop::Changed("the agent is not one for pods".to_owned()));
        };
        let namespace = &self.scope.agent_namespace;
        let anchor = anchor(&self.scope).await?;
        let home = Home { cluster: &self.scope.cluster, namespace, monitor, anchor: &anchor };
        let name = name(agent);
        if self.held(&name).await?.is_some_and(|held| held.metadata.deletion_timestamp.is_some()) {
            return Err(Stop::Changed(format!("DaemonSet {name} of an earlier try is still going")));
        }
        let set = daemon_set(agent, pods, role, &home);
        // Ours alone by name and selector: whoever else wrote into it did so by mistake.
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.sets()
            .patch(&name, &params, &Patch::Apply(&set))
            .await
            .map_err(|error| refused("patch daemonsets", &error))?;
        Ok(())
    }

    async fn delete(&self, arn: &str) -> Result<(), Stop> {
        let name = last(arn);
        let Some(held) = self.held(name).await?.filter(is_ours) else { return Ok(()) };
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: held.metadata.uid, resource_version: None }),
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match self.sets().delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(refused("delete daemonsets", &error)),
        }
    }

    /// The next DaemonSet comes to every node; then the one that served goes; then its role is changed. Each is
    /// skipped where an earlier run did it.
    async fn promote(&self, arn: &str, serving: Option<&Str>) -> Result<(), Stop> {
        let held = self.ours(arn).await?;
        let is_promoting = held.annotations().contains_key(labels::PROMOTING);
        if !is_promoting {
            self.heed(&held, None, json!({"annotations": {(labels::PROMOTING): "true"}})).await?;
        }
        if let Some(serving) = serving {
            self.delete(serving).await?;
        }
        let labels = json!({"metadata": {"labels": {(labels::ROLE): labels::SERVING}}});
        self.merge(&held.name_any(), labels).await
    }

    async fn settle(&self, arn: &str) -> Result<(), Stop> {
        let held = self.ours(arn).await?;
        if !held.annotations().contains_key(labels::PROMOTING) {
            return Ok(());
        }
        self.heed(&held, Some(heeds(Role::Serving)), json!({"annotations": {(labels::PROMOTING): null}})).await
    }

    /// Deletes an agent's pod, as long as it is the one that was meant. What is refused is done by the controller of
    /// DaemonSets.
    async fn end(&self, task: &str, changes: &mut Vec<Change>) -> Result<(), Stop> {
        let pod = PodName::parse(task).filter(|pod| *pod.namespace == *self.scope.agent_namespace);
        let Some(pod) = pod else { return Err(Stop::Changed(format!("{task} is no agent's pod"))) };
        let preconditions = Some(Preconditions { uid: Some(pod.uid.to_owned()), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        let pods: Api<Pod> = Api::namespaced(self.scope.client.clone(), &self.scope.agent_namespace);
        match pods.delete(pod.name, &params).await {
            Ok(deleted) => {
                let Some(leaving) = deleted.left() else { return Ok(()) };
                let roles = controller(&leaving.metadata)
                    .map(|owner| (owner.name.clone(), DAEMON_SERVICE))
                    .into_iter()
                    .collect();
                let on_node = |_: &str| (LaunchType::Kubernetes, "linux".into());
                let read_at = Timestamp::now();
                changes.extend(
                    pod_task(&self.scope, &leaving, &roles, on_node)
                        .map(|task| Change::TaskRead { read_at, task: Box::new(task) }),
                );
                Ok(())
            }
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) if code(&error) == Some(409) => Err(Stop::Changed(words(&error))),
            // It goes without us too, only later: nothing is held up.
            Err(error) => Err(Stop::Answer(format!("delete pods: {}", words(&error)))),
        }
    }

    async fn ours(&self, arn: &str) -> Result<DaemonSet, Stop> {
        let name = last(arn);
        let held = self.held(name).await?.filter(is_ours).filter(|held| held.metadata.deletion_timestamp.is_none());
        held.ok_or_else(|| Stop::Changed(format!("DaemonSet {name} is gone")))
    }

    /// Changes how a DaemonSet heeds the hand-over, as long as it is still the one that was read.
    async fn heed(&self, held: &DaemonSet, heeds: Option<Value>, mut metadata: Value) -> Result<(), Stop> {
        let terms = with_heed(terms_of(held), heeds.as_ref()).map_err(|error| Stop::Changed(error.to_string()))?;
        metadata["resourceVersion"] = json!(held.metadata.resource_version);
        let affinity =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
        let patch = json!({"metadata": metadata, "spec": {"template": {"spec": {"affinity": affinity}}}});
        self.merge(&held.name_any(), patch).await
    }

    async fn merge(&self, name: &str, patch: Value) -> Result<(), Stop> {
        let patched = self.sets().patch(name, &as_ourselves(), &Patch::Merge(&patch)).await;
        patched.map(drop).map_err(|error| refused("patch daemonsets", &error))
    }

    async fn label(&self, arn: &str, patch: Value, changes: &mut Vec<Change>) -> Result<(), Stop> {
        let patch: json_patch::Patch =
            serde_json::from_value(patch).map_err(|error| Stop::Changed(error.to_string()))?;
        let nodes: Api<Node> = Api::all(self.scope.client.clone());
        match nodes.patch(last(arn), &as_ourselves(), &Patch::<Node>::Json(patch)).await {
            Ok(changed) => {
                let read_at = Timestamp::now();
                changes
                    .extend(node(&self.scope, &changed).map(|node| Change::NodeRead { read_at, node: Box::new(node) }));
                Ok(())
            }
            // The label is not what it was: the watch tells what it is.
            Err(error) if code(&error) == Some(422) => Err(Stop::Changed(words(&error))),
            Err(error) => Err(refused("patch nodes", &error)),
        }
    }

    /// What Tasuki made here, as the API server says now.
    ///
    /// # Errors
    /// Where it refuses or does not answer.
    pub async fn inventory(&self) -> Result<Vec<Owned>, String> {
        let ours = ListParams::default().labels(&format!("{}={}", labels::NAME, labels::AGENT_NAME));
        let labelled = ListParams::default().labels(NEXT_LABEL);
        let nodes: Api<Node> = Api::all(self.scope.client.clone());
        let sets = self.sets().list(&ours).await.map_err(|error| words(&error))?;
        let nodes = nodes.list(&labelled).await.map_err(|error| words(&error))?;
        let owned = |kind| Owned { scope: self.scope.scope(), cluster: self.scope.arn(), kind };
        let name = |set: &DaemonSet| {
            tasuki_api::kubernetes::daemon_set(&self.scope.cluster, &self.scope.agent_namespace, &set.name_any())
        };
        let sets = sets.items.iter().filter(|set| is_ours(set));
        let sets = sets.map(|set| owned(OwnedKind::Daemon { service: name(set).into() }));
        let offers = match self.scope.live_sidecars {
            true => sidecars::offers(&self.scope).await.map_err(|error| words(&error))?,
            false => BTreeMap::new(),
        };
        let offer = |namespace: &String| OwnedKind::Offer {
            service: tasuki_api::kubernetes::sidecar(&self.scope.cluster, namespace).into(),
        };
        let attribute = |node: &Node| OwnedKind::Attribute {
            node: tasuki_api::kubernetes::node(&self.scope.cluster, &node.name_any()).into(),
            name: NEXT_LABEL.into(),
        };
        let sets = sets.chain(offers.keys().map(|namespace| owned(offer(namespace))));
        Ok(sets.chain(nodes.items.iter().map(|node| owned(attribute(node)))).collect())
    }
}

/// The reference by which what is made in the agents' namespace goes when the chart goes.
async fn anchor(scope: &Kubernetes) -> Result<OwnerReference, Stop> {
    let namespace = &scope.agent_namespace;
    let found = scope.anchor(namespace).await.map_err(|error| match code(&error) {
        // Every mode may read it: with the namespace its rights went.
        Some(403) => {
            let what = format!("namespace {namespace} or the chart's rights in it are gone; install the chart again");
            Stop::Blocked(Reason::PermissionDenied, format!("{what} (get configmaps: {})", words(&error)))
        }
        _ => refused("get configmaps", &error),
    });
    found?.ok_or_else(|| {
        let why = format!(
            "ConfigMap {ANCHOR} is not in namespace {namespace}: without it nothing would go when the chart goes; \
             install the chart again"
        );
        Stop::Blocked(Reason::PermissionDenied, why)
    })
}

fn terms_of(set: &DaemonSet) -> &[NodeSelectorTerm] {
    let affinity = || {
        let affinity = set.spec.as_ref()?.template.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
        Some(&affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms)
    };
    affinity().map(Vec::as_slice).unwrap_or_default()
}

/// A DaemonSet that the controller made.
fn is_ours(set: &DaemonSet) -> bool {
    set.annotations().contains_key(labels::SPEC)
}
