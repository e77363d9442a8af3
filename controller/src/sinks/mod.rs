//! Where findings go: each sink takes them from the store at its own pace, in order, at least once.
//!
//! ```text
//!  store ──undelivered for this sink──▶ worker ──filter──▶ target ──taken──▶ store (delivered)
//!                                          └── back-off, up to a minute, where it is not taken ──┘
//! ```
//!
//! One worker a sink, so that one that is away never holds up another. What waits, waits in the store;
//! a worker holds one batch. *Caveats*: a sink that takes a finding and loses the answer gets it
//! again (its id is the same).

mod filter;
mod guardduty;
mod target;
#[cfg(test)]
mod tests;

pub use filter::{Filter, FilterError, Suppressions};
pub use target::{Buses, Taken, Target, TargetError};

use crate::http::Http;
use crate::store::{Store, StoreError, StoredFinding};
use crate::tally::Tally;
use rand::Rng as _;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::desired::{Document, FindingSinkSpec};
use tasuki_api::finding::Severity;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A sink that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// Its filter.
    #[error("its filter cannot be used")]
    Filter(#[from] FilterError),
    /// Its target.
    #[error("its target cannot be used")]
    Target(#[from] TargetError),
}

/// The sinks in force.
pub struct Sinks {
    store: Store,
    http: Http,
    buses: Arc<dyn Buses>,
    stored: watch::Receiver<u64>,
    tally: Arc<Tally>,
    running: BTreeMap<String, Running>,
}

struct Running {
    spec: FindingSinkSpec,
    stop: watch::Sender<bool>,
    names: watch::Sender<Vec<String>>,
    worker: JoinHandle<()>,
}

impl Sinks {
    /// No sink yet. `stored` changes whenever findings were stored.
    pub fn new(store: Store, http: Http, buses: Arc<dyn Buses>, stored: watch::Receiver<u64>) -> Self {
        Self { store, http, buses, stored, tally: Arc::default(), running: BTreeMap::new() }
    }

    /// Puts the sinks of desired state into force; those that did not change go on. Sinks that cannot
    /// be used are returned by name.
    pub async fn update(&mut self, documents: &[Document]) -> Vec<(String, SinkError)> {
        let (mut wanted, mut problems) = (BTreeMap::new(), Vec::new());
        for document in documents {
            let Document::FindingSink(sink) = document else { continue };
            let made = Target::new(&sink.spec, &self.http, &self.buses)
                .map_err(SinkError::from)
                .and_then(|target| Ok((target, Filter::new(&sink.spec.filter)?)));
            match made {
                Ok((target, filter)) => {
                    wanted.insert(sink.metadata.name.clone(), (sink.spec.clone(), target, filter));
                }
                Err(error) => problems.push((sink.metadata.name.clone(), error)),
            }
        }
        let names: Vec<String> = wanted.keys().cloned().collect();
        let stale =
            |(name, running): &(&String, &Running)| wanted.get(*name).is_none_or(|(spec, ..)| *spec != running.spec);
        let stale: Vec<String> = self.running.iter().filter(stale).map(|(name, _)| name.clone()).collect();
        for name in stale {
            if let Some(running) = self.running.remove(&name) {
                running.end().await;
            }
        }
        for running in self.running.values() {
            running.names.send_replace(names.clone());
        }
        for (name, (spec, target, filter)) in wanted {
            if self.running.contains_key(&name) {
                continue;
            }
            let (stop, names) = (watch::Sender::new(false), watch::Sender::new(names.clone()));
            let worker = Worker {
                name: name.clone(),
                target,
                filter,
                minimum: spec.minimum_severity,
                store: self.store.clone(),
                tally: self.tally.clone(),
                names: names.subscribe(),
            };
            let worker = tokio::spawn(worker.run(self.stored.clone(), stop.subscribe()));
            self.running.insert(name, Running { spec, stop, names, worker });
        }
        if let Err(error) = self.store.prune_deliveries(&names).await {
            tracing::warn!(%error, "deliveries of sinks that are gone could not be forgotten");
        }
        problems
    }

    /// `SinkDelivered`, `SinkFiltered`, `SinkImpossible`, `SinkFailed`.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }

    /// Ends all sinks; what was not taken stays in the store.
    pub async fn stop(self) {
        for running in self.running.into_values() {
            running.end().await;
        }
    }
}

impl Running {
    async fn end(self) {
        self.stop.send_replace(true);
        let _ = self.worker.await;
    }
}

struct Worker {
    name: String,
    target: Target,
    filter: Filter,
    minimum: Severity,
    store: Store,
    tally: Arc<Tally>,
    names: watch::Receiver<Vec<String>>,
}

impl Worker {
    async fn run(self, mut stored: watch::Receiver<u64>, mut stop: watch::Receiver<bool>) {
        let mut failures = 0u32;
        loop {
            stored.mark_unchanged();
            // A batch that is under way is ended, not cut off, or it would be sent twice.
            let wait = match self.round().await {
                Ok(true) => {
                    failures = 0;
                    if *stop.borrow() {
                        return;
                    }
                    continue;
                }
                // Also looked at without being told: another replica may have stored findings.
                Ok(false) => Duration::from_secs(30),
                Err(()) => {
                    failures = failures.saturating_add(1);
                    let bound = Duration::from_millis(500 << failures.min(7)).min(Duration::from_secs(60));
                    rand::rng().random_range(bound / 2..=bound)
                }
            };
            let told = failures == 0;
            tokio::select! {
                () = stopped(&mut stop) => return,
                () = tokio::time::sleep(wait) => {}
                changed = stored.changed(), if told => if changed.is_err() { tokio::time::sleep(wait).await },
            }
        }
    }

    /// Sends one batch. True where there may be more.
    async fn round(&self) -> Result<bool, ()> {
        let store =
            |error: StoreError| tracing::error!(sink = %self.name, %error, "the sink cannot read or write the store");
        let batch = self.store.undelivered_findings(&self.name, self.target.batch()).await.map_err(store)?;
        if batch.is_empty() {
            return Ok(false);
        }
        let (wanted, filtered): (Vec<StoredFinding>, Vec<StoredFinding>) =
            batch.into_iter().partition(|stored| self.wants(stored));
        let mut done: Vec<_> = filtered.iter().map(|stored| stored.finding.id).collect();
        let (taken, result) = self.target.send(&wanted).await;
        for (name, n) in [
            ("SinkFiltered", done.len()),
            ("SinkDelivered", taken.delivered.len()),
            ("SinkImpossible", taken.impossible.len()),
            ("SinkFailed", usize::from(result.is_err())),
        ] {
            self.tally.add(name, n as u64);
        }
        if !taken.impossible.is_empty() {
            tracing::warn!(sink = %self.name, count = taken.impossible.len(), "findings that this sink can never take are left out");
        }
        done.extend(taken.delivered.into_iter().chain(taken.impossible));
        let names = self.names.borrow().clone();
        self.store.mark_delivered(&self.name, &done, &names).await.map_err(store)?;
        result.map(|()| true).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(sink = %self.name, %error, ?cause, "the sink did not take findings; they are sent again");
        })
    }

    fn wants(&self, stored: &StoredFinding) -> bool {
        stored.finding.severity >= self.minimum
            && serde_json::to_value(&stored.finding).is_ok_and(|finding| self.filter.holds(&finding))
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
