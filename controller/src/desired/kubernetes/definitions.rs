//! Whether the stored definitions know all that this version knows.
//!
//! Beside an older one nothing is enforced: the API server may have dropped, without a word, what was to hold a
//! monitor back.

use super::watching::Change;
use crate::crds::{GROUP, lacking, plural};
use crate::scope::kubernetes::{code, is_absent, words};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use std::time::Duration;
use tokio::sync::mpsc;

/// Pause before a definition that does not fit, or was not read, is looked at again.
const AGAIN: Duration = Duration::from_secs(5);
/// Pause before one that fits is: an older one may take its place.
const BEAT: Duration = Duration::from_secs(300);
/// What a definition lacks is named up to this many fields.
const NAMED: usize = 3;

/// How a stored definition compares with ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It has all of it; or there is none, and no object of its kind either.
    Whole,
    /// It is older; what is the matter, in words.
    Older(String),
    /// That cannot be told; why.
    Unreadable(String),
}

/// Follows the definition of one kind until `changes` is closed.
pub async fn follow(client: Client, kind: &'static str, changes: mpsc::Sender<Change>) {
    let resource = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let resource = ApiResource::from_gvk_with_plural(&resource, "customresourcedefinitions");
    let api = Api::<DynamicObject>::all_with(client, &resource);
    let name = format!("{}.{GROUP}", plural(kind).unwrap_or(kind));
    let mut last = None;
    while !changes.is_closed() {
        let (fit, pause) = match api.get(&name).await {
            Ok(stored) => match older(&name, &lacking(kind, &stored.data)) {
                None => (Fit::Whole, BEAT),
                Some(words) => (Fit::Older(words), AGAIN),
            },
            Err(error) if is_absent(&error) => (Fit::Whole, AGAIN),
            Err(error) if matches!(code(&error), Some(401 | 403)) => (unreadable(&name, &words(&error)), AGAIN),
            // What was known holds; before anything was, nothing is in force.
            Err(error) => {
                tracing::debug!(kind, %error, "a definition was not read, trying again");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        if last.as_ref() != Some(&fit) {
            if let Fit::Older(words) | Fit::Unreadable(words) = &fit {
                tracing::warn!(kind, "{words}");
            }
            last = Some(fit.clone());
            if changes.send(Change::Definition(kind, fit)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
    }
}

fn older(name: &str, lacks: &[String]) -> Option<String> {
    let named = lacks.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = match lacks.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!lacks.is_empty())
        .then(|| format!("the definition {name} in the cluster is older than the controller: it lacks {named}{more}"))
}

fn unreadable(name: &str, why: &str) -> Fit {
    Fit::Unreadable(format!(
        "it cannot be told whether the definition {name} is as new as the controller: {why}; \
         add the chart's ClusterRole `tasuki-resources` (verb get)"
    ))
}
