//! Where `tasuki freeze` is kept: in the store, or in a cluster's own ConfigMap, which anybody with
//! kubectl can set too.

use crate::desired::kubernetes::freeze as config_map;
use crate::scope::kubernetes::{Kubernetes, words};
use crate::store::{FROZEN, Store};
use tokio::sync::watch;

/// Freezes, and lets go again.
pub enum Freezer {
    /// In the store; the engine is told by the channel.
    Store(Store, watch::Sender<bool>),
    /// In the cluster; the engine is told by the watch.
    Cluster(Kubernetes),
}

impl Freezer {
    /// Freezes, or lets go. Of the store's, it is in force either way.
    ///
    /// # Errors
    /// What is not as ordered, and what to do.
    pub async fn set(&self, on: bool) -> Result<(), String> {
        let word = if on { "frozen" } else { "no longer frozen" };
        match self {
            Self::Store(store, now) => {
                let kept = store.set_setting(FROZEN, if on { "true" } else { "false" }).await;
                now.send_replace(on);
                kept.map_err(|error| {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        on,
                        "the freeze would not outlive a restart"
                    );
                    format!(
                        "everything is {word}, but not after a restart: {error}; order it again once that is mended"
                    )
                })
            }
            Self::Cluster(cluster) => config_map::set(cluster, on).await.map_err(|error| {
                let (name, detail) = (config_map::NAME, words(&error));
                format!("nothing is {word}: ConfigMap {}/{name} was not written: {detail}", cluster.namespace)
            }),
        }
    }
}
