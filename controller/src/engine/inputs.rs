//! Desired state on its way in: when the directory, the freeze or a scope's freshness changes,
//! everything that depends on it is brought in step, and the loop gets what is in force.

use super::view::Context;
use super::{Inputs, ProblemView, ScopeView, Shared};
use crate::act::Executor;
use crate::desired::Loaded;
use crate::gateway::{Gateway, PolicyStore};
use crate::observe::Observer;
use crate::scope::Scopes;
use crate::store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::desired::Document;
use tasuki_core::action::GatewaySpec;
use tasuki_core::desired::Desired;
use tasuki_core::fleet::Str;
use tokio::sync::watch;

/// How often the freshness of scopes is looked at.
const FRESHNESS: Duration = Duration::from_secs(1);
/// Digests that stay approved for one monitor: the wanted one and those before it, from which
/// nodes and tasks are still being rolled.
const APPROVED: usize = 10;
/// Setting: digests that each monitor's agents may run.
pub(super) const APPROVED_SETTING: &str = "agents.approved";

/// What is brought in step.
pub(super) struct Source {
    pub desired: watch::Receiver<Arc<Loaded>>,
    pub frozen: watch::Receiver<bool>,
    pub scopes: Arc<Scopes>,
    pub observer: Observer,
    pub executor: Executor,
    /// The journal of an earlier run was gone through: nothing is changed before.
    pub resolved: bool,
    pub policies: Arc<PolicyStore>,
    pub gateway: Arc<Gateway>,
    pub gateway_spec: GatewaySpec,
    pub shared: Arc<Shared>,
    pub store: Store,
    pub inputs: watch::Sender<Inputs>,
}

impl Source {
    /// Follows until every receiver of inputs is gone.
    pub async fn run(mut self) {
        let mut beat = tokio::time::interval(FRESHNESS);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut problems = self.configure().await;
        loop {
            tokio::select! {
                () = self.inputs.closed() => return,
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    problems = self.configure().await;
                }
                changed = self.frozen.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    problems = self.configure().await;
                }
                _ = beat.tick() => self.refresh(&problems),
            }
        }
    }

    /// Puts what the directory holds into force. Returns what is wrong with it.
    async fn configure(&mut self) -> Vec<ProblemView> {
        let loaded = self.desired.borrow_and_update().clone();
        let frozen = *self.frozen.borrow_and_update();
        let documents: Vec<Document> = loaded.documents.values().map(|document| (**document).clone()).collect();
        let mut problems: Vec<ProblemView> = loaded
            .problems
            .iter()
            .map(|problem| ProblemView {
                subject: problem.subject.clone().unwrap_or_else(|| problem.file.clone()),
                message: format!("{}:{}: {}", problem.file, problem.line, problem.message),
            })
            .collect();
        let mut wrong = |subject: String, message: String| problems.push(ProblemView { subject, message });
        if let Err(error) = self.policies.update(&documents).await {
            wrong("policy".to_owned(), format!("agents keep the policy that they have: {error}"));
        }
        for (name, error) in self.gateway.suppress(&documents) {
            wrong(format!("Suppression/{name}"), error.to_string());
        }
        let scopes: BTreeMap<Str, _> = documents
            .iter()
            .filter_map(|document| match document {
                Document::AwsScope(scope) => Some((Str::from(scope.metadata.name.as_str()), scope.spec.clone())),
                _ => None,
            })
            .collect();
        for problem in self.scopes.sync(&scopes).await {
            wrong(format!("AwsScope/{}", problem.document), problem.message);
        }
        if !self.resolved {
            match self.executor.resolve_intents().await {
                Ok(closed) => {
                    tracing::debug!(closed, "the journal of the last run is settled");
                    self.resolved = true;
                }
                Err(error) => wrong("journal".to_owned(), format!("nothing is changed until it can be read: {error}")),
            }
        }
        self.observer.sync();
        self.approve(&documents).await;
        let (desired, more) = Desired::compile(
            &documents,
            self.gateway_spec.clone(),
            frozen,
            &self.policies.hash(monitor_name(&documents)),
        );
        for problem in more {
            wrong(format!("{}/{}", problem.kind, problem.name), format!("{}: {}", problem.path, problem.message));
        }
        problems.dedup();
        let context =
            Context { desired: loaded.hash.clone(), frozen, problems: problems.clone(), scopes: self.scope_views() };
        let ready = self.ready();
        self.inputs.send_replace(Inputs { desired: Arc::new(desired), context, ready });
        problems
    }

    /// Notes what became fresh, where anything did.
    fn refresh(&self, problems: &[ProblemView]) {
        let (scopes, ready) = (self.scope_views(), self.ready());
        self.inputs.send_if_modified(|inputs| {
            let same = inputs.context.scopes == scopes && inputs.ready == ready && inputs.context.problems == problems;
            (inputs.context.scopes, inputs.ready) = (scopes, ready);
            !same
        });
    }

    /// Every scope was read in full once. Without any there is nothing to wait for.
    fn ready(&self) -> bool {
        self.resolved && self.observer.status().iter().all(|status| status.swept_at.is_some())
    }

    fn scope_views(&self) -> Vec<ScopeView> {
        let known = self.shared.read();
        let view = |status: crate::observe::ScopeStatus| ScopeView {
            denied: known
                .fleet
                .denied(&status.scope)
                .map(|(api, denied)| format!("{api}: {}", denied.detail))
                .collect(),
            throttled: status.budget.iter().map(|(_, counters)| counters.throttled).sum(),
            scope: status.scope.to_string(),
            swept_at: status.swept_at,
            event_at: status.event_at,
        };
        self.observer.status().into_iter().map(view).collect()
    }

    /// Adds each monitor's digest to those that its agents may run, the newest last.
    async fn approve(&self, documents: &[Document]) {
        let mut approved = self.shared.read().approved.clone();
        for document in documents {
            if let Document::RuntimeMonitor(monitor) = document
                && let Some(agent) = &monitor.spec.agent
            {
                let digests = approved.entry(monitor.metadata.name.as_str().into()).or_default();
                let digest = Str::from(agent.image.digest.as_str());
                digests.retain(|known| *known != digest);
                digests.push(digest);
                if digests.len() > APPROVED {
                    digests.remove(0);
                }
            }
        }
        if approved == self.shared.read().approved {
            return;
        }
        let text = serde_json::to_string(&approved).unwrap_or_default();
        if let Err(error) = self.store.set_setting(APPROVED_SETTING, &text).await {
            tracing::warn!(%error, "the approved digests would not outlive a restart");
        }
        self.shared.write().approved = approved;
    }
}

/// The first monitor's name: its policy is what currency is measured by.
fn monitor_name(documents: &[Document]) -> Option<&str> {
    documents.iter().find_map(|document| match document {
        Document::RuntimeMonitor(monitor) => Some(monitor.metadata.name.as_str()),
        _ => None,
    })
}
