//! The monitor that a new installation begins with. It is the controller's own until somebody changes it.

use super::resource;
use crate::scope::kubernetes::{FIELD_MANAGER, is_absent, is_conflict};
use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tasuki_api::desired::{API_VERSION, Mode};

/// Says that the monitor is the controller's own.
const OWN: &str = "tasuki.dev/default-monitor";
/// Its name.
const NAME: &str = "default";

/// Below whatever anyone writes: a monitor of one's own takes over without a word about this one.
const PRIORITY: i32 = -1000;

/// What the first monitor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultMonitor {
    /// Whether anything may be changed.
    pub mode: Mode,
    /// The agent to place: version, repository and digest.
    pub agent: Option<(String, String, String)>,
}

impl DefaultMonitor {
    fn object(&self, cluster: &str) -> Value {
        let mut spec = json!({"mode": self.mode, "priority": PRIORITY, "targets": {"kubernetes": {"clusters": {"include": [cluster]}}}});
        if let Some((version, repository, digest)) = &self.agent {
            spec["agent"] = json!({"version": version, "image": {"repository": repository, "digest": digest}});
        }
        json!({
            "apiVersion": API_VERSION,
            "kind": "RuntimeMonitor",
            "metadata": {"name": NAME, "annotations": {(OWN): "true"}},
            "spec": spec,
        })
    }
}

/// Makes `RuntimeMonitor/default` where no monitor exists (`any`), and brings it up to date where it is still the
/// controller's own. `None` where there is nothing to do.
pub async fn apply(
    client: &Client,
    cluster: &str,
    wanted: &DefaultMonitor,
    any: bool,
) -> Result<Option<DynamicObject>, kube::Error> {
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource("RuntimeMonitor"));
    let held = match api.get(NAME).await {
        Ok(held) => Some(held),
        Err(error) if is_absent(&error) => None,
        Err(error) => return Err(error),
    };
    let is_own = held.as_ref().is_some_and(|held| held.annotations().contains_key(OWN));
    if (held.is_none() && any) || (held.is_some() && !is_own) {
        return Ok(None);
    }
    let object = wanted.object(cluster);
    if held.is_some_and(|held| held.data.get("spec").is_some_and(|spec| includes(spec, &object["spec"]))) {
        return Ok(None);
    }
    match api.patch(NAME, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&object)).await {
        Ok(made) => {
            tracing::info!(cluster, mode = ?wanted.mode, "RuntimeMonitor/default is as the installation says");
            Ok(Some(made))
        }
        Err(error) if is_conflict(&error) => {
            tracing::info!("RuntimeMonitor/default was changed by somebody else, and is left alone");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether everything that `wanted` says is in `held`, which has defaults beside.
fn includes(held: &Value, wanted: &Value) -> bool {
    match (held, wanted) {
        (Value::Object(held), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| held.get(key).is_some_and(|held| includes(held, value)))
        }
        (held, wanted) => held == wanted,
    }
}
