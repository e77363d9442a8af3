//! Who watches what: one sweeper and one reader of hints a scope, one poller a queue.

use super::follow::{self, Known, follow};
use super::queue::{Poller, QueueCounters};
use super::sweep::{Ended, sweep};
use crate::act::budget::{Counters, Group};
use crate::scope::{QueueId, Scope, Scopes};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tasuki_core::fleet::{Change, ScopeId};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Watches every scope of a [`Scopes`]. Dropping it stops all watching.
pub struct Observer {
    scopes: Arc<Scopes>,
    changes: mpsc::Sender<Change>,
    known: Arc<Known>,
    watched: BTreeMap<ScopeId, Watched>,
    pollers: BTreeMap<QueueId, Polled>,
}

struct Watched {
    scope: Arc<Scope>,
    reads: mpsc::Sender<super::event::Follow>,
    shared: Arc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

struct Polled {
    scopes: BTreeSet<ScopeId>,
    counters: Arc<QueueCounters>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    now: Notify,
    swept_at: Mutex<Option<Timestamp>>,
    tried: AtomicBool,
}

/// How fresh what is known of a scope is.
#[derive(Clone, Debug)]
pub struct ScopeStatus {
    /// Account and Region.
    pub scope: ScopeId,
    /// When the last full sweep ended.
    pub swept_at: Option<Timestamp>,
    /// A sweep was tried to its end, whether or not everything could be read.
    pub tried: bool,
    /// When the last event was taken from the queue.
    pub event_at: Option<Timestamp>,
    /// What each API group has seen since start.
    pub budget: Vec<(Group, Counters)>,
}

impl Observer {
    /// Watches nothing until [`Self::sync`].
    pub fn new(scopes: Arc<Scopes>, changes: mpsc::Sender<Change>) -> Self {
        Self { scopes, changes, known: Arc::default(), watched: BTreeMap::new(), pollers: BTreeMap::new() }
    }

    /// Watches what [`Scopes`] names now: after each [`Scopes::sync`]. What did not change goes on
    /// undisturbed; a new or changed scope is swept at once.
    pub fn sync(&mut self) {
        let wanted: BTreeMap<_, _> = self.scopes.all().into_iter().map(|scope| (scope.id.clone(), scope)).collect();
        // A poller holds the read queues of its scopes, so it goes with any of them.
        let mut stale = BTreeSet::new();
        self.watched.retain(|id, watched| {
            let same = wanted.get(id).is_some_and(|scope| Arc::ptr_eq(scope, &watched.scope));
            if !same {
                stale.insert(id.clone());
            }
            same
        });
        for (id, scope) in wanted {
            self.watched.entry(id).or_insert_with(|| Watched::start(scope, self.known.clone(), self.changes.clone()));
        }
        let queues = self.scopes.queues();
        self.pollers
            .retain(|queue, polled| queues.get(queue) == Some(&polled.scopes) && polled.scopes.is_disjoint(&stale));
        for (queue, scopes) in queues {
            if self.pollers.contains_key(&queue) {
                continue;
            }
            let Some(client) = self.scopes.sqs(&queue.region) else { continue };
            let reads = |id: &ScopeId| Some((id.clone(), self.watched.get(id)?.reads.clone()));
            let counters = Arc::new(QueueCounters::default());
            let poller = Poller {
                client,
                queue: queue.clone(),
                scopes: scopes.iter().filter_map(reads).collect(),
                changes: self.changes.clone(),
                counters: counters.clone(),
            };
            self.pollers.insert(queue, Polled { scopes, counters, task: tokio::spawn(poller.run()) });
        }
    }

    /// The registry that it follows.
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Sweeps every scope now instead of at its next turn.
    pub fn sweep_now(&self) {
        for watched in self.watched.values() {
            watched.shared.now.notify_one();
        }
    }

    /// How fresh everything is.
    pub fn status(&self) -> Vec<ScopeStatus> {
        let status = |(id, watched): (&ScopeId, &Watched)| ScopeStatus {
            scope: id.clone(),
            swept_at: *watched.shared.swept_at.lock().unwrap_or_else(PoisonError::into_inner),
            tried: watched.shared.tried.load(Ordering::Relaxed),
            event_at: self.pollers.values().filter_map(|polled| polled.counters.last_event(id)).max(),
            budget: watched.scope.budget.counters(),
        };
        self.watched.iter().map(status).collect()
    }

    /// What each queue has brought since it is polled, for metrics.
    pub fn queues(&self) -> impl Iterator<Item = (&QueueId, &QueueCounters)> {
        self.pollers.iter().map(|(queue, polled)| (queue, &*polled.counters))
    }

    /// How often the memory of known ARNs was full, for metrics.
    pub fn known_emptied(&self) -> u64 {
        self.known.emptied()
    }
}

impl Watched {
    fn start(scope: Arc<Scope>, known: Arc<Known>, changes: mpsc::Sender<Change>) -> Self {
        let (reads, requests) = mpsc::channel(follow::QUEUE);
        let shared = Arc::new(Shared::default());
        let sweeper = sweeps(scope.clone(), known.clone(), changes.clone(), shared.clone());
        let tasks = [tokio::spawn(sweeper), tokio::spawn(follow(scope.clone(), known, requests, changes))];
        Self { scope, reads, shared, tasks }
    }
}

async fn sweeps(scope: Arc<Scope>, known: Arc<Known>, changes: mpsc::Sender<Change>, shared: Arc<Shared>) {
    loop {
        let began = Instant::now();
        match sweep(&scope, &known, &changes).await {
            Ok(totals) if totals.failed == 0 => {
                *shared.swept_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Timestamp::now());
            }
            Ok(_) => {}
            Err(Ended::Call(error)) => {
                tracing::warn!(scope = %scope.id, error = %error.detail(), "scope is not swept; tried again at its next turn");
            }
            Err(Ended::Stopped) => return,
        }
        shared.tried.store(true, Ordering::Relaxed);
        let next = began + scope.spec.sweep_interval.to_std();
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = shared.now.notified() => {}
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        self.task.abort();
    }
}
