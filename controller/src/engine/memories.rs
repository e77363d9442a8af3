//! What decide remembers, kept where it outlives what it must outlive.
//!
//! All of it goes into the store. What belongs to rollouts in a Kubernetes cluster goes into a
//! ConfigMap as well: the store there lies on a volume that goes with its pod, and a version that
//! failed must not be tried again because a node was drained.

use crate::scope::kubernetes::{FIELD_MANAGER, Kubernetes, words};
use crate::store::Store;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tasuki_core::fleet::Str;
use tasuki_core::memory::Memory;

/// The ConfigMap, in the controller's namespace.
pub const CONFIG_MAP: &str = "tasuki-rollout";
/// Its key.
const KEY: &str = "memory";

/// Keeps memory.
pub struct Memories {
    store: Store,
    cluster: Option<Kubernetes>,
    /// What the ConfigMap holds.
    written: Option<String>,
}

impl Memories {
    /// In the store, and of rollouts in `cluster` in that cluster.
    pub fn new(store: Store, cluster: Option<Kubernetes>) -> Self {
        Self { store, cluster, written: None }
    }

    /// What was kept before. What the cluster holds of its own rollouts is believed before the store.
    ///
    /// # Errors
    /// Where either cannot be read: deciding on half of it would do things twice.
    pub async fn load(&mut self) -> anyhow::Result<Memory> {
        use anyhow::Context;
        let mut memory = self.store.memory().await.context("what was decided before cannot be read")?;
        let Some(cluster) = &self.cluster else { return Ok(memory) };
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let held = maps.get_opt(CONFIG_MAP).await.map_err(|error| {
            anyhow::anyhow!("ConfigMap {}/{CONFIG_MAP} cannot be read: {}", cluster.namespace, words(&error))
        })?;
        let Some(text) = held.and_then(|map| map.data).and_then(|mut data| data.remove(KEY)) else { return Ok(memory) };
        let kept: Memory = serde_json::from_str(&text).with_context(|| {
            format!(
                "ConfigMap {}/{CONFIG_MAP} holds no memory of rollouts; delete it to forget them",
                cluster.namespace
            )
        })?;
        let arn = cluster.arn();
        memory.failed.retain(|key, _| *key != arn);
        memory.rollouts.retain(|key, _| *key != arn);
        memory.unselected.retain(|key, _| *key != arn);
        memory.failed.extend(kept.failed);
        memory.rollouts.extend(kept.rollouts);
        memory.unselected.extend(kept.unselected);
        self.written = Some(text);
        Ok(memory)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// Where it is not kept in full; what rests on it must wait.
    pub async fn keep(&mut self, memory: &Memory) -> Result<(), String> {
        let failed = |error: &dyn std::error::Error| {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        };
        self.store.set_memory(memory).await.map_err(|error| failed(&error))?;
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let text = serde_json::to_string(&of_cluster(memory, &cluster.arn())).map_err(|error| failed(&error))?;
        let nothing = memory.rollouts.is_empty() && memory.failed.is_empty() && memory.unselected.is_empty();
        if self.written.as_ref() == Some(&text) || (self.written.is_none() && nothing) {
            return Ok(());
        }
        let what = |error: &kube::Error| format!("ConfigMap {}/{CONFIG_MAP}: {}", cluster.namespace, words(error));
        let owner = cluster.anchor(&cluster.namespace).await.map_err(|error| what(&error))?;
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CONFIG_MAP, "ownerReferences": owner.into_iter().collect::<Vec<_>>()},
            "data": {(KEY): text},
        });
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        maps.patch(CONFIG_MAP, &params, &Patch::Apply(&map)).await.map_err(|error| what(&error))?;
        self.written = Some(text);
        Ok(())
    }
}

/// What of it belongs to rollouts in this cluster.
fn of_cluster(memory: &Memory, arn: &Str) -> Memory {
    fn only<T: Clone>(all: &std::collections::BTreeMap<Str, T>, arn: &Str) -> std::collections::BTreeMap<Str, T> {
        all.iter().filter(|(key, _)| *key == arn).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
    Memory {
        failed: only(&memory.failed, arn),
        rollouts: only(&memory.rollouts, arn),
        unselected: only(&memory.unselected, arn),
        ..Memory::default()
    }
}
