//! Desired state as Kubernetes objects: the same documents, checks and words as a directory.
//!
//! *Expected flow*: `watching` follows the seven kinds and `definitions` what the API server knows of
//! them, `objects` judges each object once per change, `accepted` writes what was found into its
//! status. *Guarantees*: nothing is in force before every kind was listed; nothing is enforced beside
//! a definition that is older than this program; an object that becomes bad keeps its last good version in force
//! until it is good again or gone; one malformed object stops no other. *Assumptions*: this process
//! holds the lease, since it writes status. *Caveats*: last good versions are kept in memory, so
//! they end with the process.

mod accepted;
mod definitions;
mod first;
pub mod freeze;
mod objects;
mod watching;

pub use first::DefaultMonitor;

use super::Loaded;
use super::follow::publish;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use objects::Objects;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::desired::{API_VERSION, Document};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use watching::Change;

/// Changes that come within this time of the first one are taken together.
const TOGETHER: Duration = Duration::from_millis(200);
/// Changes that wait; the watches wait when there are more.
const WAITING: usize = 256;

/// How objects are followed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Make a `RuntimeMonitor` named `default` where none exists at start; it is on every pod of `cluster`.
    pub default_monitor: Option<DefaultMonitor>,
    /// Name of the cluster that the controller runs in.
    pub cluster: String,
}

/// Follows the objects of every kind: the receiver holds what is in force, and changes when that or
/// the problems do. Returns when everything was listed once. Where the definitions are missing it
/// says so in the log and tries again. The task ends when every receiver is dropped.
pub async fn follow(client: Client, options: Options) -> (watch::Receiver<Arc<Loaded>>, JoinHandle<()>) {
    let (seen, mut changes) = mpsc::channel(WAITING);
    let mut watches = JoinSet::new();
    for kind in Document::KINDS {
        watches.spawn(watching::follow(client.clone(), kind, seen.clone()));
        watches.spawn(definitions::follow(client.clone(), kind, seen.clone()));
    }
    let mut objects = Objects::default();
    let (mut unlisted, mut undefined) = (BTreeSet::from(Document::KINDS), BTreeSet::from(Document::KINDS));
    while !(unlisted.is_empty() && undefined.is_empty()) {
        // `seen` is held here, so changes never end.
        if let Some(change) = changes.recv().await {
            match &change {
                Change::All(kind, _) => drop(unlisted.remove(kind)),
                Change::Definition(kind, _) => drop(undefined.remove(kind)),
                _ => {}
            }
            objects.take(change);
        }
    }
    if let Some(wanted) = &options.default_monitor {
        match first::apply(&client, &options.cluster, wanted, objects.has("RuntimeMonitor")).await {
            Ok(Some(made)) => drop(objects.take(Change::One("RuntimeMonitor", Box::new(made)))),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "RuntimeMonitor/default cannot be made or changed; write a monitor yourself");
            }
        }
    }
    let first = objects.load();
    let (wanted, receiver) = watch::channel(objects.verdicts(&first, jiff::Timestamp::now()));
    watches.spawn(accepted::write(client, receiver));
    let (sender, receiver) = watch::channel(Arc::new(first));
    let task = tokio::spawn(async move {
        // Dropped with this task, which ends them.
        let (_watches, _seen) = (watches, seen);
        loop {
            let change = tokio::select! {
                () = sender.closed() => return,
                change = changes.recv() => change,
            };
            let Some(change) = change else { return };
            let mut changed = objects.take(change);
            let end = tokio::time::sleep(TOGETHER);
            tokio::pin!(end);
            while let Some(change) = tokio::select! {
                change = changes.recv() => change,
                () = &mut end => None,
            } {
                changed |= objects.take(change);
            }
            if changed {
                let loaded = objects.load();
                wanted.send_replace(objects.verdicts(&loaded, jiff::Timestamp::now()));
                publish(&sender, loaded);
            }
        }
    });
    (receiver, task)
}

/// The API resource of one of our kinds.
pub fn resource(kind: &str) -> ApiResource {
    let gvk = GroupVersionKind::gvk(crate::crds::GROUP, crate::crds::VERSION, kind);
    match crate::crds::plural(kind) {
        Some(plural) => ApiResource::from_gvk_with_plural(&gvk, plural),
        None => ApiResource::from_gvk(&gvk),
    }
}

/// Applies (server-side) the status of one object as `manager`.
pub async fn apply_status(
    client: &Client,
    manager: &str,
    kind: &str,
    name: &str,
    status: &Value,
) -> Result<(), kube::Error> {
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource(kind));
    let object = json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": { "name": name }, "status": status });
    // Another writer of the same fields can only be an earlier version of ours.
    api.patch_status(name, &PatchParams::apply(manager).force(), &Patch::Apply(&object)).await.map(drop)
}

#[cfg(test)]
mod tests;
