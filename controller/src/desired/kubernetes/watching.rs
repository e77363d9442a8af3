//! One watch per kind, for ever.

use super::definitions::Fit;
use super::resource;
use crate::crds::{GROUP, plural};
use crate::scope::kubernetes::{code, is_absent};
use futures_util::StreamExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use std::pin::pin;
use tokio::sync::mpsc;

/// Something that a watch saw.
#[derive(Debug)]
pub enum Change {
    /// Every object of a kind: what is not in here is gone.
    All(&'static str, Vec<DynamicObject>),
    /// An object as it is now.
    One(&'static str, Box<DynamicObject>),
    /// An object that is gone, by name.
    Gone(&'static str, String),
    /// A kind cannot be listed, and why; holds until [`Change::All`].
    Trouble(&'static str, String),
    /// How the stored definition of a kind compares with ours.
    Definition(&'static str, Fit),
}

/// Follows one kind until `changes` is closed. A failure is retried with growing pauses.
pub async fn follow(client: Client, kind: &'static str, changes: mpsc::Sender<Change>) {
    let api = Api::<DynamicObject>::all_with(client, &resource(kind));
    loop {
        let stream = watcher(api.clone(), watcher::Config::default());
        let mut stream = pin!(stream.modify(|object| object.managed_fields_mut().clear()).default_backoff());
        let (mut all, mut said) = (Vec::new(), String::new());
        while let Some(event) = stream.next().await {
            let change = match event {
                Ok(watcher::Event::Init) => {
                    all.clear();
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    all.push(object);
                    continue;
                }
                Ok(watcher::Event::InitDone) => {
                    said.clear();
                    Change::All(kind, std::mem::take(&mut all))
                }
                Ok(watcher::Event::Apply(object)) => Change::One(kind, Box::new(object)),
                Ok(watcher::Event::Delete(object)) => Change::Gone(kind, object.name_any()),
                Err(error) => {
                    let words = trouble(kind, &error);
                    if words == said {
                        continue;
                    }
                    tracing::warn!(kind, "{words}");
                    said.clone_from(&words);
                    // Only a list says when it gets through again.
                    if !matches!(error, watcher::Error::InitialListFailed(_)) {
                        continue;
                    }
                    Change::Trouble(kind, words)
                }
            };
            if changes.send(change).await.is_err() {
                return;
            }
        }
    }
}

/// What is the matter with a watch, and what to do.
fn trouble(kind: &str, error: &watcher::Error) -> String {
    let plural = plural(kind).unwrap_or(kind);
    let refused = match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => code(error),
        _ => None,
    };
    match (refused, error) {
        (_, watcher::Error::InitialListFailed(error)) if is_absent(error) => format!(
            "the definition {plural}.{GROUP} is not installed: run `kubectl apply --server-side -f manifests/crds/`, \
             or `helm upgrade` with crds.enabled=true"
        ),
        (Some(401 | 403), _) => format!(
            "the API server does not let this service account list and watch {plural}.{GROUP}: \
             add the chart's ClusterRole `tasuki` (verbs get, list, watch)"
        ),
        _ => format!("{plural}.{GROUP} cannot be watched, trying again: {error}"),
    }
}
