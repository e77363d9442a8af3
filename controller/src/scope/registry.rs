//! Which scopes there are: kept in step with the `AwsScope` documents.

use super::{Scope, clients, words};
use crate::act::budget::Budget;
use aws_config::SdkConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tasuki_api::desired::AwsScopeSpec;
use tasuki_core::fleet::{ScopeId, Str};
use tokio::sync::OnceCell;

/// A document, or a part of one, that cannot be reached as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the `AwsScope` document.
    pub document: Str,
    /// What is the matter and what to do.
    pub message: String,
}

/// A queue that brings events of some scopes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueueId {
    /// URL.
    pub url: Str,
    /// Region that it is in.
    pub region: Str,
}

/// Every scope, by account and Region.
#[derive(Debug)]
pub struct Scopes {
    /// Read from the environment when a document first needs it: a controller that watches Kubernetes alone asks
    /// nothing of AWS.
    base: OnceCell<SdkConfig>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    scopes: BTreeMap<ScopeId, Arc<Scope>>,
    /// Outlives a change of its document: tokens taken stay taken.
    budgets: BTreeMap<ScopeId, Arc<Budget>>,
    own_account: Option<Str>,
}

impl Scopes {
    /// Made from this configuration.
    pub fn new(base: SdkConfig) -> Self {
        Self { base: OnceCell::new_with(Some(clients::settle(base))), state: Mutex::default() }
    }

    /// Made from the environment's configuration, once a document needs it.
    pub fn from_environment() -> Self {
        Self { base: OnceCell::new(), state: Mutex::default() }
    }

    async fn base(&self) -> Result<&SdkConfig, String> {
        self.base.get_or_try_init(clients::base).await
    }

    /// Brings the scopes in step with the documents, in the order of their names. Scopes whose
    /// document did not change keep their clients. Returns what cannot be reached and why; the
    /// rest works.
    pub async fn sync(&self, documents: &BTreeMap<Str, AwsScopeSpec>) -> Vec<Problem> {
        let mut problems = Vec::new();
        if documents.is_empty() {
            self.lock().scopes.clear();
            return problems;
        }
        let base = match self.base().await {
            Ok(base) => base,
            Err(message) => {
                let problem = |document: &Str| Problem { document: document.clone(), message: message.clone() };
                return documents.keys().map(problem).collect();
            }
        };
        let mut wanted: BTreeMap<ScopeId, (Str, Arc<AwsScopeSpec>)> = BTreeMap::new();
        for (document, spec) in documents {
            let accounts = match self.accounts(base, spec).await {
                Ok(accounts) => accounts,
                Err(message) => {
                    problems.push(Problem { document: document.clone(), message });
                    self.keep(document, &mut wanted);
                    continue;
                }
            };
            let spec = Arc::new(spec.clone());
            for account in &accounts {
                for region in &spec.regions {
                    let id = ScopeId { account: account.clone(), region: region.as_str().into() };
                    if let Some((other, _)) = wanted.get(&id) {
                        let message = format!("{id} belongs to AwsScope/{other} already; take it out of one of them");
                        problems.push(Problem { document: document.clone(), message });
                        continue;
                    }
                    wanted.insert(id, (document.clone(), spec.clone()));
                }
            }
        }
        let mut scopes = BTreeMap::new();
        for (id, (document, spec)) in wanted {
            let scope = match self.get(&id) {
                Some(known) if known.document == document && known.spec == spec => known,
                _ => Arc::new(self.build(base, &id, document, spec).await),
            };
            scopes.insert(id, scope);
        }
        self.lock().scopes = scopes;
        problems
    }

    /// The scope of this account and Region.
    pub fn get(&self, id: &ScopeId) -> Option<Arc<Scope>> {
        self.lock().scopes.get(id).cloned()
    }

    /// Every scope.
    pub fn all(&self) -> Vec<Arc<Scope>> {
        self.lock().scopes.values().cloned().collect()
    }

    /// Every event queue, each once, with the scopes that it serves.
    pub fn queues(&self) -> BTreeMap<QueueId, BTreeSet<ScopeId>> {
        let mut queues: BTreeMap<QueueId, BTreeSet<ScopeId>> = BTreeMap::new();
        for scope in self.lock().scopes.values() {
            let Some(url) = &scope.spec.event_queue else { continue };
            let first = scope.spec.regions.first().map_or("", String::as_str);
            let region = clients::queue_region(url).unwrap_or(first);
            let queue = QueueId { url: url.as_str().into(), region: region.into() };
            queues.entry(queue).or_default().insert(scope.id.clone());
        }
        queues
    }

    /// SQS with the process's own credentials: the queue is Tasuki's. `None` before the first scope.
    pub fn sqs(&self, region: &str) -> Option<aws_sdk_sqs::Client> {
        self.base.get().map(|base| clients::queue_client(base, region))
    }

    /// EventBridge with the process's own credentials.
    ///
    /// # Errors
    /// Where the environment's configuration cannot be used.
    pub async fn event_bridge(&self, region: &str) -> Result<aws_sdk_eventbridge::Client, String> {
        Ok(aws_sdk_eventbridge::Client::new(&clients::in_region(self.base().await?, region)))
    }

    async fn build(&self, base: &SdkConfig, id: &ScopeId, document: Str, spec: Arc<AwsScopeSpec>) -> Scope {
        let read = clients::as_role(base, id, spec.read_role_name.as_deref(), &spec).await;
        let act = clients::as_role(base, id, spec.act_role_name.as_deref(), &spec).await;
        let share = spec.share.as_fraction();
        let budget = self.lock().budgets.entry(id.clone()).or_insert_with(|| Arc::new(Budget::new(share))).clone();
        budget.set_share(share);
        tracing::info!(scope = %id, document = %document, share, "clients are made");
        Scope {
            id: id.clone(),
            document,
            budget,
            read: aws_sdk_ecs::Client::new(&read),
            act: aws_sdk_ecs::Client::new(&act),
            spec,
        }
    }

    /// A document that cannot be resolved just now keeps the scopes that it had.
    fn keep(&self, document: &Str, wanted: &mut BTreeMap<ScopeId, (Str, Arc<AwsScopeSpec>)>) {
        for scope in self.lock().scopes.values().filter(|scope| scope.document == *document) {
            wanted.entry(scope.id.clone()).or_insert_with(|| (document.clone(), scope.spec.clone()));
        }
    }

    async fn accounts(&self, base: &SdkConfig, spec: &AwsScopeSpec) -> Result<Vec<Str>, String> {
        if !spec.accounts.is_empty() {
            return Ok(spec.accounts.iter().map(|account| account.as_str().into()).collect());
        }
        if let Some(own) = self.lock().own_account.clone() {
            return Ok(vec![own]);
        }
        let region = spec.regions.first().map_or("us-east-1", String::as_str);
        let sts = aws_sdk_sts::Client::new(&clients::in_region(base, region));
        let identity = sts.get_caller_identity().send().await.map_err(|error| {
            let cause = words(&error);
            format!("sts:GetCallerIdentity in {region} failed: {cause}; check the controller's credentials, or list accounts")
        })?;
        let own: Str = identity.account().unwrap_or_default().into();
        self.lock().own_account = Some(own.clone());
        Ok(vec![own])
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
