//! What a controller in a Kubernetes cluster has beside everything else: desired state from custom
//! resources, their status, the watches, the lease.

use super::View;
use crate::act::kubernetes::KubernetesExecutor;
use crate::cli::{KubernetesArgs, RunArgs};
use crate::desired::{self, Loaded};
use crate::events::Events;
use crate::gateway::{ApiReviewer, TokenReviewer};
use crate::lease::{Held, Lease};
use crate::observe::kubernetes::{self as pods, KubernetesStatus};
use crate::scope::kubernetes::Kubernetes;
use crate::status;
use crate::store::Store;
use anyhow::Context;
use jiff::Timestamp;
use std::sync::Arc;
use tasuki_core::fleet::{Change, ScopeId};
use tokio::sync::{mpsc, watch};

/// Name of the lease that lets one controller act.
const LEASE: &str = "tasuki";

/// Name of the controller's own pod, which is its host's name.
fn pod() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| "tasuki".to_owned())
}

/// Waits until no other controller of this cluster is at work.
pub(super) async fn lead(args: &RunArgs, cluster: &Kubernetes) -> Held {
    let identity = format!("{}_{}", pod(), ulid::Ulid::new());
    // A controller that waits is alive, and not ready.
    let (waits, words) = watch::channel("the lease was not asked for yet");
    let waiting = tokio::spawn(crate::web::wait(args.listen, words));
    let held = Lease::acquire(cluster, LEASE, &identity, &waits).await;
    waiting.abort();
    // Its end gives the address back; that it was aborted is no news.
    let _ = waiting.await;
    held
}

/// Brings the gateway's keys in the store and in the cluster's Secret to the same.
pub(super) async fn keys(cluster: &Kubernetes, store: &Store) -> anyhow::Result<()> {
    let owner = cluster.anchor(&cluster.namespace).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the release's anchor cannot be read; the keys will outlive the release");
        None
    });
    let (client, namespace) = (cluster.client.clone(), &cluster.namespace);
    crate::gateway::keep_keys(client, namespace, owner, store, Timestamp::now()).await?;
    Ok(())
}

/// The part of the gateway that asks whose token it is.
pub(super) fn reviewer(cluster: &Kubernetes) -> Arc<dyn TokenReviewer> {
    Arc::new(ApiReviewer::new(cluster.client.clone()))
}

/// Desired state from custom resources.
pub(super) async fn desired(
    args: &KubernetesArgs,
    cluster: &Kubernetes,
) -> anyhow::Result<watch::Receiver<Arc<Loaded>>> {
    let options = desired::kubernetes::Options {
        default_monitor: args.default_monitor().context("the default monitor")?,
        cluster: cluster.cluster.to_string(),
    };
    let (loaded, _following) = desired::kubernetes::follow(cluster.client.clone(), options).await;
    Ok(loaded)
}

/// Whether everything is frozen, from the cluster's ConfigMap.
pub(super) async fn frozen(cluster: &Kubernetes) -> watch::Receiver<bool> {
    desired::kubernetes::freeze::follow(cluster.client.clone(), &cluster.namespace).await.0
}

/// Begins to watch; answers how fresh what is known is.
pub(super) fn observe(
    cluster: Kubernetes,
    changes: mpsc::Sender<Change>,
) -> (ScopeId, watch::Receiver<KubernetesStatus>) {
    let (sender, status) = watch::channel(KubernetesStatus::default());
    let (scope, events) = (cluster.scope(), Events::new(cluster.client.clone(), &pod()));
    tokio::spawn(pods::watch(cluster, changes, sender, events));
    (scope, status)
}

/// Who acts in the cluster, and says so in Events.
pub(super) fn executor(cluster: &Kubernetes, store: Store) -> KubernetesExecutor {
    KubernetesExecutor::new(cluster.clone(), store, Events::new(cluster.client.clone(), &pod()))
}

/// Writes coverage and rollouts into the status of monitors.
pub(super) fn tell(cluster: &Kubernetes, view: watch::Receiver<Arc<View>>, desired: watch::Receiver<Arc<Loaded>>) {
    // It ends when the view does.
    let _writing = status::write(cluster.client.clone(), view, desired);
}
