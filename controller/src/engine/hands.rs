//! Who carries an action out: AWS's executor, or that of the Kubernetes cluster.

use super::{Execute, Outcome};
use crate::act::kubernetes::KubernetesExecutor;
use crate::act::{Executor, Owned, Verdict};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tasuki_core::action::Action;
use tasuki_core::fleet::Change;

/// Both executors.
#[derive(Clone)]
pub struct Hands {
    /// For AWS.
    pub aws: Executor,
    /// For the Kubernetes cluster, where there is one.
    pub kubernetes: Option<KubernetesExecutor>,
}

impl Execute for Hands {
    fn execute<'a>(&'a self, action: &'a Action, desired: &'a str) -> BoxFuture<'a, Outcome> {
        async move {
            let done = match &self.kubernetes {
                Some(kubernetes) if action.scope.is_kubernetes() => kubernetes.execute(action, desired).await,
                _ => self.aws.execute(action, desired).await,
            };
            Outcome { failed: matches!(done.verdict, Verdict::Failed(_) | Verdict::Blocked(_)), changes: done.changes }
        }
        .boxed()
    }

    fn own_definitions(&self) -> BoxFuture<'_, Vec<Change>> {
        async move {
            let mut all = Vec::new();
            for scope in self.aws.scopes() {
                match self.aws.own_definitions(&scope).await {
                    Ok(own) => all.extend(own),
                    Err(error) => tracing::warn!(%scope, error = %error.detail(), "own definitions cannot be read"),
                }
            }
            all
        }
        .boxed()
    }

    fn inventory(&self) -> BoxFuture<'_, Result<Vec<Owned>, String>> {
        async move {
            let mut all = Vec::new();
            for scope in self.aws.scopes() {
                all.extend(self.aws.inventory(&scope).await.map_err(|error| error.detail())?);
            }
            if let Some(kubernetes) = &self.kubernetes {
                all.extend(kubernetes.inventory().await?);
            }
            Ok(all)
        }
        .boxed()
    }
}
