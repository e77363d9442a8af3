//! What namespaces are offered in sidecars, what quotas they would use up, and how trials of images went: each
//! namespace as the service that decide has for it.

use super::project;
use crate::scope::kubernetes::Kubernetes;
use crate::scope::sidecars::{self, Offer};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};
use tasuki_api::kubernetes as names;
use tasuki_core::action::{QUOTA, sidecar_service};
use tasuki_core::fleet::{Definition, Deployment, LaunchType, RolloutState, Service, SidecarMark, Str};

/// What a quota counts of a sidecar's.
const COUNTED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// What is known of the namespaces of one cluster.
#[derive(Default)]
pub(super) struct Offers {
    offers: BTreeMap<String, Offer>,
    /// Namespace to the quotas that count CPU or memory.
    quotas: BTreeMap<String, BTreeSet<String>>,
    /// The same, while they are listed.
    listing: BTreeMap<String, BTreeSet<String>>,
    /// Namespace to the pods that try an image: by uid, so that one that is made anew is another.
    trials: BTreeMap<String, BTreeMap<String, Deployment>>,
    /// Uids of those in the list that is under way.
    listed_trials: BTreeSet<String>,
}

impl Offers {
    /// Takes the ConfigMap, or that it is gone; answers the namespaces that may have changed.
    pub fn take(&mut self, map: Option<&ConfigMap>) -> BTreeSet<String> {
        let before = std::mem::replace(&mut self.offers, map.map(sidecars::offers).unwrap_or_default());
        before.into_keys().chain(self.offers.keys().cloned()).collect()
    }

    /// A list of quotas begins.
    pub fn list_quotas(&mut self) {
        self.listing = BTreeMap::new();
    }

    /// Takes one of the list.
    pub fn listed_quota(&mut self, quota: &ResourceQuota) {
        put(&mut self.listing, quota, true);
    }

    /// The list is complete; answers the namespaces that may have changed.
    pub fn all_quotas_listed(&mut self) -> BTreeSet<String> {
        let before = std::mem::replace(&mut self.quotas, std::mem::take(&mut self.listing));
        before.into_keys().chain(self.quotas.keys().cloned()).collect()
    }

    /// Takes a quota, or that it is gone; answers its namespace.
    pub fn quota(&mut self, quota: &ResourceQuota, is_there: bool) -> Option<String> {
        put(&mut self.quotas, quota, is_there)
    }

    /// A list of pods begins.
    pub fn list_trials(&mut self) {
        self.listed_trials.clear();
    }

    /// The list is complete; answers the namespaces of trials that were not in it.
    pub fn all_trials_listed(&mut self) -> BTreeSet<String> {
        let listed = std::mem::take(&mut self.listed_trials);
        let mut changed = BTreeSet::new();
        self.trials.retain(|namespace, trials| {
            let before = trials.len();
            trials.retain(|uid, _| listed.contains(uid));
            if trials.len() != before {
                changed.insert(namespace.clone());
            }
            !trials.is_empty()
        });
        changed
    }

    /// Takes a pod that may try an image, or that it is gone; answers its namespace where it does.
    pub fn trial(&mut self, pod: &Pod, is_there: bool) -> Option<String> {
        let spec = tried(pod)?;
        let (namespace, uid) = (pod.namespace()?, pod.uid()?);
        let held = self.trials.entry(namespace.clone()).or_default();
        match is_there {
            true => {
                self.listed_trials.insert(uid.clone());
                held.insert(uid, trial(pod, spec));
            }
            false => drop(held.remove(&uid)),
        }
        if held.is_empty() {
            self.trials.remove(&namespace);
        }
        Some(namespace)
    }

    /// A namespace as a service, and what it is offered as that service's definition; `None` where nothing is known
    /// of it.
    pub fn service(&self, scope: &Kubernetes, namespace: &str) -> Option<(Service, Option<Definition>)> {
        let (offer, quotas) = (self.offers.get(namespace), self.quotas.get(namespace));
        let trials = self.trials.get(namespace);
        if offer.is_none() && quotas.is_none() && trials.is_none() {
            return None;
        }
        let mut trials: Vec<Deployment> = trials.into_iter().flat_map(|trials| trials.values().cloned()).collect();
        trials.sort_by_key(|trial| std::cmp::Reverse(trial.created_at));
        let arn: Str = names::sidecar(&scope.cluster, namespace).into();
        let definition = offer.map(|offer| Definition {
            // Another offer is another definition.
            arn: format!("{arn}/{}", offer.spec).into(),
            hash: offer.spec.clone(),
            active: true,
            containers: Vec::new(),
            task_role: None,
            sidecar: Some(SidecarMark {
                version: offer.version.clone(),
                image: offer.image.clone(),
                source: None,
                source_hash: None,
                spec: Some(offer.spec.clone()),
            }),
            obstacle: None,
            judged_for: None,
        });
        let quota = quotas.and_then(|quotas| quotas.first());
        let service = Service {
            definition: definition.as_ref().map_or_else(Str::default, |definition| definition.arn.clone()),
            launch: LaunchType::KubernetesVirtual,
            deployments: trials,
            tags: quota.map(|quota| (QUOTA.to_owned(), quota.clone())).into_iter().collect(),
            created_at: offer.map(|offer| offer.at),
            ..project::service(scope, arn, &sidecar_service(namespace))
        };
        Some((service, definition))
    }
}

/// Notes a quota that counts CPU or memory, or that it is gone; answers its namespace.
fn put(quotas: &mut BTreeMap<String, BTreeSet<String>>, quota: &ResourceQuota, is_there: bool) -> Option<String> {
    let namespace = quota.namespace()?;
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let counts = hard.is_some_and(|hard| hard.keys().any(|key| COUNTED.contains(&key.as_str())));
    let held = quotas.entry(namespace.clone()).or_default();
    match is_there && counts {
        true => held.insert(quota.name_any()),
        false => held.remove(&quota.name_any()),
    };
    if held.is_empty() {
        quotas.remove(&namespace);
    }
    Some(namespace)
}

/// The agent spec that a pod tries: by the Job that owns it, since anybody may write a label. `None` for every other pod.
fn tried(pod: &Pod) -> Option<&str> {
    let spec = pod.metadata.labels.as_ref()?.get(sidecars::PROBE)?;
    let owner = project::controller(&pod.metadata)?;
    (owner.kind == "Job" && owner.name == sidecars::probe(spec)).then_some(spec)
}

/// How it goes.
fn trial(pod: &Pod, spec: &str) -> Deployment {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
    let why = project::failure(pod);
    let rollout = match phase {
        "Succeeded" => RolloutState::Completed,
        "Failed" => RolloutState::Failed,
        _ if why.is_some() => RolloutState::Failed,
        _ => RolloutState::InProgress,
    };
    Deployment {
        id: pod.name_any().into(),
        primary: false,
        definition: spec.into(),
        rollout,
        rollout_reason: why.map(Str::from),
        desired: 1,
        pending: 0,
        running: 0,
        failed: 0,
        created_at: pod.metadata.creation_timestamp.as_ref().map(|time| time.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "tasuki-probe-abc-1", "namespace": "shop", "uid": "u", "labels": {(sidecars::PROBE): "abc"},
                "ownerReferences": [
                    {"apiVersion": "batch/v1", "kind": "Job", "name": "tasuki-probe-abc", "uid": "j", "controller": true},
                ],
            },
            "spec": {"containers": [{"name": "tasuki-agent", "image": "i"}]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_trial_says_how_it_went() {
        let waiting = |reason: &str| json!({"name": "tasuki-agent", "ready": false, "restartCount": 0, "image": "i", "imageID": "", "state": {"waiting": {"reason": reason, "message": "no such image"}}});
        let ended = json!({"name": "tasuki-agent", "ready": false, "restartCount": 0, "image": "i", "imageID": "", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}});
        for (status, rollout, why) in [
            (json!({"phase": "Pending"}), RolloutState::InProgress, None),
            (json!({"phase": "Succeeded"}), RolloutState::Completed, None),
            (
                json!({"phase": "Pending", "containerStatuses": [waiting("ErrImagePull")]}),
                RolloutState::Failed,
                Some("CannotPull: ErrImagePull: no such image"),
            ),
            (
                json!({"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}),
                RolloutState::InProgress,
                None,
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [ended]}),
                RolloutState::Failed,
                Some("Error (exit code 1)"),
            ),
        ] {
            let pod = pod(status);
            let found = trial(&pod, tried(&pod).unwrap());
            assert_eq!((found.rollout, found.rollout_reason.as_deref()), (rollout, why));
            assert_eq!(&*found.definition, "abc");
        }
    }

    #[test]
    fn a_label_alone_is_no_trial_and_a_trial_that_is_gone_from_the_list_is_gone() {
        let mut offers = Offers::default();
        let mut forged = pod(json!({"phase": "Succeeded"}));
        forged.metadata.owner_references = None;
        assert_eq!(offers.trial(&forged, true), None);
        assert_eq!(offers.trial(&pod(json!({"phase": "Failed"})), true).as_deref(), Some("shop"));
        offers.list_trials();
        assert_eq!(offers.all_trials_listed().into_iter().collect::<Vec<_>>(), ["shop"]);
        assert!(offers.trials.is_empty());
    }

    #[test]
    fn only_quotas_that_a_sidecar_counts_in_are_known_and_they_go_again() {
        let mut offers = Offers::default();
        let quota = |name: &str, hard: Value| -> ResourceQuota {
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {"hard": hard}}))
                .unwrap()
        };
        let (pods, memory) = (quota("pods", json!({"pods": "4"})), quota("memory", json!({"limits.memory": "1Gi"})));
        offers.quota(&pods, true);
        assert!(offers.quotas.is_empty());
        offers.quota(&memory, true);
        assert_eq!(offers.quotas["shop"].first().unwrap(), "memory");
        offers.quota(&memory, false);
        assert!(offers.quotas.is_empty());
    }

    #[test]
    fn what_a_map_offers_is_known_and_what_it_no_longer_offers_is_not() {
        let mut offers = Offers::default();
        let text = "1 r@sha256:a auto 128 10% 50m abc 2026-01-02T03:04:05Z";
        let map = |data: Value| -> ConfigMap { serde_json::from_value(json!({"data": data})).unwrap() };
        let changed = offers.take(Some(&map(json!({"shop": text, "gateway.url": "https://g", "bad": "x"}))));
        assert_eq!(changed.into_iter().collect::<Vec<_>>(), ["shop"]);
        assert_eq!(offers.take(None).into_iter().collect::<Vec<_>>(), ["shop"]);
        assert!(offers.offers.is_empty());
    }
}
