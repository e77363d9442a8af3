//! Desired state on its way in: when the directory, the freeze or a scope's freshness changes,
//! everything that depends on it is brought in step, and the loop gets what is in force.

use super::view::Context;
use super::{Inputs, ProblemView, ScopeView, Shared};
use crate::act::Executor;
use crate::desired::Loaded;
use crate::gateway::{Gateway, PolicyStore};
use crate::observe::Observer;
use crate::observe::kubernetes::KubernetesStatus;
use crate::scope::Scopes;
use crate::sinks::Sinks;
use crate::store::Store;
use crate::tally::Tally;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tasuki_api::desired::{Document, ImageSpec};
use tasuki_core::action::GatewaySpec;
use tasuki_core::desired::Desired;
use tasuki_core::fleet::{Change, ScopeId, Str};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// How often the freshness of scopes is looked at.
const FRESHNESS: Duration = Duration::from_secs(1);
/// How long after a problem that may pass by itself everything is brought in step again.
const RETRY: Duration = Duration::from_secs(15);
/// Digests that stay approved for one monitor: the wanted ones and those before them, from which
/// nodes and tasks are still being rolled.
const APPROVED: usize = 64;
/// Setting: digests that each monitor's agents may run.
pub(super) const APPROVED_SETTING: &str = "agents.approved";

/// What is brought in step.
pub(super) struct Source {
    pub desired: watch::Receiver<Arc<Loaded>>,
    pub frozen: watch::Receiver<bool>,
    pub scopes: Arc<Scopes>,
    pub observer: Observer,
    /// The Kubernetes cluster and how fresh what is known of it is.
    pub kubernetes: Option<(ScopeId, watch::Receiver<KubernetesStatus>)>,
    pub executor: Executor,
    pub sinks: Sinks,
    pub changes: mpsc::Sender<Change>,
    /// What the queues brought, for metrics.
    pub queue_tally: Arc<Tally>,
    /// Scopes of which the fleet was told which definitions are ours.
    pub told: BTreeSet<ScopeId>,
    /// When to try again what did not depend on the documents alone.
    pub retry_at: Option<Instant>,
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
        self.follow().await;
        self.sinks.stop().await;
    }

    async fn follow(&mut self) {
        let mut beat = tokio::time::interval(FRESHNESS);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut problems = self.configure().await;
        let mut unread = self.kubernetes.as_ref().map(|(_, status)| status.clone());
        loop {
            tokio::select! {
                () = self.inputs.closed() => return,
                // A second is much of the time that a start may take.
                () = tried(&mut unread) => self.refresh(&problems),
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
                _ = beat.tick() => {
                    if self.retry_at.is_some_and(|at| Instant::now() >= at) {
                        problems = self.configure().await;
                    }
                    self.refresh(&problems);
                }
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
                message: match problem.line {
                    0 => problem.brief(),
                    line => format!("{}:{line}: {}", problem.file, problem.message),
                },
            })
            .collect();
        let mut passing = false;
        let mut wrong = |subject: String, message: String| problems.push(ProblemView { subject, message });
        if let Err(error) = self.policies.update(&documents).await {
            passing = true;
            wrong("policy".to_owned(), format!("agents keep the policy that they have: {error}"));
        }
        for (name, error) in self.gateway.suppress(&documents) {
            wrong(format!("Suppression/{name}"), error.to_string());
        }
        for (name, error) in self.sinks.update(&documents).await {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            wrong(format!("FindingSink/{name}"), format!("{error}{cause}"));
        }
        let scopes: BTreeMap<Str, _> = documents
            .iter()
            .filter_map(|document| match document {
                Document::AwsScope(scope) => Some((Str::from(scope.metadata.name.as_str()), scope.spec.clone())),
                _ => None,
            })
            .collect();
        for problem in self.scopes.sync(&scopes).await {
            passing = true;
            wrong(format!("AwsScope/{}", problem.document), problem.message);
        }
        if !self.resolved {
            match self.executor.resolve_intents().await {
                Ok(closed) => {
                    tracing::debug!(closed, "the journal of the last run is settled");
                    self.resolved = true;
                }
                Err(error) => {
                    passing = true;
                    wrong("journal".to_owned(), format!("nothing is changed until it can be read: {error}"));
                }
            }
        }
        self.observer.sync();
        self.approve(&documents).await;
        let policy = |monitor: &str| self.policies.hash(Some(monitor));
        let (desired, more) = Desired::compile(&documents, self.gateway_spec.clone(), frozen, policy);
        for problem in more {
            wrong(format!("{}/{}", problem.kind, problem.name), format!("{}: {}", problem.path, problem.message));
        }
        problems.dedup();
        self.retry_at = passing.then(|| Instant::now() + RETRY);
        let context =
            Context { desired: loaded.hash.clone(), frozen, problems: problems.clone(), scopes: self.scope_views() };
        let (ready, swept) = self.ready();
        self.inputs.send_replace(Inputs { desired: Arc::new(desired), context, ready, swept });
        problems
    }

    /// Notes what became fresh, where anything did.
    fn refresh(&mut self, problems: &[ProblemView]) {
        let (scopes, (ready, swept)) = (self.scope_views(), self.ready());
        self.count_queues();
        self.tell_own(&swept);
        self.inputs.send_if_modified(|inputs| {
            let before = (&inputs.context.scopes, inputs.ready, &inputs.swept);
            let same = before == (&scopes, ready, &swept) && inputs.context.problems == problems;
            (inputs.context.scopes, inputs.ready, inputs.swept) = (scopes, ready, swept);
            !same
        });
    }

    /// Whether a sweep of every scope was tried to its end (without any there is nothing to wait for), and
    /// the scopes that were read in full. A scope that cannot be read does not stop the others.
    fn ready(&self) -> (bool, BTreeSet<ScopeId>) {
        let status = self.observer.status();
        let cluster = self.kubernetes.as_ref().map(|(scope, status)| (scope.clone(), status.borrow().clone()));
        let tried = cluster.as_ref().is_none_or(|(_, status)| status.tried);
        let ready = self.resolved && tried && status.iter().all(|status| status.tried);
        let swept = status.into_iter().filter(|status| status.swept_at.is_some() && self.resolved);
        let cluster = cluster.filter(|(_, status)| status.swept_at.is_some()).map(|(scope, _)| scope);
        (ready, swept.map(|status| status.scope).chain(cluster).collect())
    }

    /// Tells the fleet once which definitions are ours: a process that has just started knows none, and only
    /// what is known is pruned.
    fn tell_own(&mut self, swept: &BTreeSet<ScopeId>) {
        self.told.retain(|scope| swept.contains(scope));
        for scope in swept {
            if scope.is_kubernetes() || !self.told.insert(scope.clone()) {
                continue;
            }
            let (scope, executor, changes) = (scope.clone(), self.executor.clone(), self.changes.clone());
            tokio::spawn(async move {
                match executor.own_definitions(&scope).await {
                    Ok(own) => {
                        for change in own {
                            if changes.send(change).await.is_err() {
                                return;
                            }
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%scope, error = %error.detail(), "own definitions are not known; old revisions stay for now");
                    }
                }
            });
        }
    }

    fn count_queues(&self) {
        let mut sums = [0; 7];
        for (_, counters) in self.observer.queues() {
            let all = [
                &counters.received,
                &counters.used,
                &counters.ignored,
                &counters.unusable,
                &counters.foreign,
                &counters.dropped_reads,
                &counters.failed_polls,
            ];
            for (sum, counter) in sums.iter_mut().zip(all) {
                *sum += counter.load(Ordering::Relaxed);
            }
        }
        let names = ["Received", "Used", "Ignored", "Unusable", "Foreign", "DroppedReads", "FailedPolls"];
        for (name, sum) in names.into_iter().zip(sums) {
            self.queue_tally.set(name, sum);
        }
        self.queue_tally.set("KnownEmptied", self.observer.known_emptied());
    }

    fn scope_views(&self) -> Vec<ScopeView> {
        let known = self.shared.read();
        let denied = |scope: &ScopeId| -> Vec<String> {
            known.fleet.denied(scope).map(|(api, denied)| format!("{api}: {}", denied.detail)).collect()
        };
        let cluster = self.kubernetes.as_ref().map(|(scope, status)| {
            let status = status.borrow();
            let (swept_at, event_at) = (status.swept_at, status.event_at);
            ScopeView { scope: scope.to_string(), swept_at, event_at, denied: denied(scope), throttled: 0 }
        });
        let view = |status: crate::observe::ScopeStatus| ScopeView {
            denied: denied(&status.scope),
            throttled: status.budget.iter().map(|(_, counters)| counters.throttled).sum(),
            scope: status.scope.to_string(),
            swept_at: status.swept_at,
            event_at: status.event_at,
        };
        self.observer.status().into_iter().map(view).chain(cluster).collect()
    }

    /// Adds each monitor's digests, of the index and of the images in it, to those that its agents may run,
    /// the newest last.
    async fn approve(&self, documents: &[Document]) {
        let mut approved = self.shared.read().approved.clone();
        for document in documents {
            if let Document::RuntimeMonitor(monitor) = document
                && let Some(agent) = &monitor.spec.agent
            {
                add_digests(approved.entry(monitor.metadata.name.as_str().into()).or_default(), &agent.image);
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

/// Returns once, as soon as the cluster was listed in full or refused.
async fn tried(unread: &mut Option<watch::Receiver<KubernetesStatus>>) {
    if let Some(status) = unread
        && status.wait_for(|status| status.tried).await.is_ok()
    {
        *unread = None;
        return;
    }
    std::future::pending().await
}

/// Makes an image's digests the newest of `approved`.
fn add_digests(approved: &mut Vec<Str>, image: &ImageSpec) {
    let wanted: Vec<Str> =
        image.platform_digests.iter().chain([&image.digest]).map(|digest| Str::from(digest.as_str())).collect();
    approved.retain(|known| !wanted.contains(known));
    approved.extend(wanted);
    approved.drain(..approved.len().saturating_sub(APPROVED));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_may_run_the_index_and_any_image_in_it_and_the_oldest_go_first() {
        let mut approved = Vec::new();
        let image = |name: &str, platforms: &[String]| ImageSpec {
            repository: "r".to_owned(),
            digest: name.to_owned(),
            platform_digests: platforms.to_vec(),
        };
        add_digests(&mut approved, &image("old", &[]));
        add_digests(&mut approved, &image("new", &["amd64".to_owned(), "arm64".to_owned()]));
        add_digests(&mut approved, &image("old", &[]));
        assert_eq!(approved.iter().map(|digest| &**digest).collect::<Vec<_>>(), ["amd64", "arm64", "new", "old"]);
        let many: Vec<String> = (0..APPROVED - 2).map(|platform| platform.to_string()).collect();
        add_digests(&mut approved, &image("newest", &many));
        assert_eq!((approved.len(), &*approved[0], &*approved[APPROVED - 1]), (APPROVED, "old", "newest"));
    }
}
