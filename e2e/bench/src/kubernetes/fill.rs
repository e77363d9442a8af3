//! Pods by the thousand, without the controllers that make them: those would take minutes, at twenty requests a second.

use super::LIMIT;
use anyhow::Result;
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tasuki_e2e::process::until;

/// Namespace of the application.
pub const NAMESPACE: &str = "shop";
/// Pods of one workload.
const EACH: usize = 100;
/// Requests at once.
const AT_ONCE: usize = 32;

fn typed<K: serde::de::DeserializeOwned>(object: Value) -> Result<K> {
    Ok(serde_json::from_value(object)?)
}

/// Makes `count` pods, spread over the nodes, and waits until all run. What owns them is a ConfigMap: something that no
/// controller wants to have more or fewer of.
pub async fn pods(client: &Client, nodes: &[String], count: usize) -> Result<()> {
    let once = PostParams::default();
    let namespace = typed(json!({"metadata": {"name": NAMESPACE}}))?;
    Api::<Namespace>::all(client.clone()).create(&once, &namespace).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    until("the namespace has its account", LIMIT, || async { Ok(accounts.get_opt("default").await?) }).await?;
    let owners: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    for workload in 0..count.div_ceil(EACH) {
        let owner = owners.create(&once, &typed(json!({"metadata": {"name": format!("web-{workload}")}}))?).await?;
        let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(),
                            "uid": owner.uid(), "controller": true}]);
        let first = workload * EACH;
        let made = stream::iter(first..count.min(first + EACH)).map(|number| {
            let node = nodes[number % nodes.len()].clone();
            let (pods, once, owner) = (&pods, &once, &owner);
            async move {
                pods.create(once, &pod(&format!("web-{number}"), &node, owner)?).await.map_err(anyhow::Error::from)
            }
        });
        made.buffer_unordered(AT_ONCE).try_for_each(|_| async { Ok(()) }).await?;
    }
    let waiting = ListParams::default().fields("status.phase!=Running").limit(1);
    until("every pod runs", LIMIT, || async { Ok(pods.list(&waiting).await?.items.is_empty().then_some(())) }).await
}

/// A pod of the application on a node, owned by these.
pub fn pod(name: &str, node: &str, owners: &Value) -> Result<Pod> {
    typed(json!({
        "metadata": {"name": name, "labels": {"app": "web"}, "ownerReferences": owners},
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": false,
            "containers": [{"name": "web", "image": "registry.test/web:1"}],
        },
    }))
}

/// Deletes a pod at once.
pub async fn delete(pods: &Api<Pod>, name: &str) -> Result<()> {
    pods.delete(name, &DeleteParams::default().grace_period(0)).await?;
    Ok(())
}
