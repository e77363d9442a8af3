//! The monitor that a new installation begins with: it observes, and changes nothing.

use super::{is_conflict, resource};
use kube::Client;
use kube::api::{Api, DynamicObject, PostParams};
use serde_json::json;

/// Below whatever anyone writes: a monitor of one's own takes over without a word about this one.
const PRIORITY: i32 = -1000;

/// Makes `RuntimeMonitor/default`. `None` where somebody else made it first.
pub async fn create(client: &Client, cluster: &str) -> Result<Option<DynamicObject>, kube::Error> {
    let resource = resource("RuntimeMonitor");
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let monitor = DynamicObject::new("default", &resource).data(json!({
        "spec": { "mode": "Observe", "priority": PRIORITY, "targets": { "kubernetes": { "clusters": { "include": [cluster] } } } },
    }));
    match api.create(&PostParams { field_manager: Some("tasuki".to_owned()), ..PostParams::default() }, &monitor).await
    {
        Ok(made) => {
            tracing::info!(cluster, "RuntimeMonitor/default was made: it observes every pod and changes nothing");
            Ok(Some(made))
        }
        Err(error) if is_conflict(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
