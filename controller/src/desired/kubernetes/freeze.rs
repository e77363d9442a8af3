//! `tasuki freeze` in a cluster: the ConfigMap `tasuki-freeze`, which anyone with kubectl can set too.
//!
//! It outlives every restart and needs neither git nor the store. No ConfigMap means not frozen.

use crate::scope::kubernetes::{FIELD_MANAGER, Kubernetes};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use std::pin::pin;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Name of the ConfigMap.
pub const NAME: &str = "tasuki-freeze";
/// Its key; `"true"` freezes.
const KEY: &str = "frozen";

fn is_frozen(map: &ConfigMap) -> bool {
    map.data.as_ref().and_then(|data| data.get(KEY)).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
}

/// Follows the ConfigMap in `namespace`. Returns once it is known; until then nothing may change.
/// The task ends when every receiver is dropped.
pub async fn follow(client: Client, namespace: &str) -> (watch::Receiver<bool>, JoinHandle<()>) {
    let api = Api::<ConfigMap>::namespaced(client, namespace);
    let (sender, mut receiver) = watch::channel(None);
    let (known, frozen) = watch::channel(true);
    let task = tokio::spawn(async move {
        let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut stream = pin!(watcher(api, config).default_backoff());
        let (mut listed, mut said) = (false, false);
        loop {
            let event = tokio::select! {
                () = known.closed() => return,
                event = stream.next() => event,
            };
            let now = match event {
                None => return,
                Some(Ok(watcher::Event::Init)) => {
                    listed = false;
                    continue;
                }
                Some(Ok(watcher::Event::InitApply(map))) => {
                    listed = is_frozen(&map);
                    continue;
                }
                Some(Ok(watcher::Event::InitDone)) => listed,
                Some(Ok(watcher::Event::Apply(map))) => is_frozen(&map),
                Some(Ok(watcher::Event::Delete(_))) => false,
                Some(Err(error)) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%error, "ConfigMap {NAME} cannot be watched; what was last known holds");
                    }
                    continue;
                }
            };
            said = false;
            known.send_if_modified(|held| std::mem::replace(held, now) != now);
            sender.send_replace(Some(()));
        }
    });
    // The task sends before it can end by itself.
    let _ = receiver.wait_for(Option::is_some).await;
    (frozen, task)
}

/// Stops every change, or allows it again.
pub async fn set(cluster: &Kubernetes, frozen: bool) -> Result<(), kube::Error> {
    let owners: Vec<_> = cluster.anchor(&cluster.namespace).await?.into_iter().collect();
    let api = Api::<ConfigMap>::namespaced(cluster.client.clone(), &cluster.namespace);
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME, "labels": { "app.kubernetes.io/name": "tasuki" }, "ownerReferences": owners },
        "data": { KEY: frozen.to_string() },
    });
    api.patch(NAME, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&map)).await.map(drop)
}
