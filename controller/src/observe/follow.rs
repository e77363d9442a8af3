//! Reads that events ask for: gathered for a moment, so that a burst of events about one service
//! costs one call, and left out for what is known.

use super::event::Follow;
use super::reads::{DESCRIBE_BATCH, Reads, SERVICE_BATCH};
use crate::act::budget::Priority;
use crate::scope::{CallError, Kind, Scope};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tasuki_core::fleet::{Change, Str};
use tokio::sync::mpsc;

/// How long requests are gathered.
const GATHER: Duration = Duration::from_millis(200);
/// Requests that wait; more are dropped and counted, the sweep finds what they meant.
pub(super) const QUEUE: usize = 4096;
/// ARNs that are remembered as known.
const KNOWN: usize = 400_000;

/// What the fleet was told of already. Forgetting costs a call and nothing else, so a full set is
/// simply emptied.
#[derive(Debug)]
pub(super) struct Known {
    arns: Mutex<HashMap<Str, bool>>,
    bound: usize,
    emptied: AtomicU64,
}

impl Default for Known {
    fn default() -> Self {
        Self::bounded(KNOWN)
    }
}

impl Known {
    fn bounded(bound: usize) -> Self {
        Self { arns: Mutex::default(), bound, emptied: AtomicU64::new(0) }
    }

    pub(super) fn cluster(&self, arn: &Str) {
        self.insert(arn, true);
    }
    pub(super) fn service(&self, arn: &Str) {
        self.insert(arn, true);
    }
    /// A disconnected node is looked at again when a task names it.
    pub(super) fn node(&self, arn: &Str, connected: bool) {
        self.insert(arn, connected);
    }
    /// How often the set was full and had to be emptied.
    pub(super) fn emptied(&self) -> u64 {
        self.emptied.load(Ordering::Relaxed)
    }

    fn insert(&self, arn: &Str, fresh: bool) {
        let mut arns = self.lock();
        if arns.len() >= self.bound && !arns.contains_key(arn) {
            arns.clear();
            self.emptied.fetch_add(1, Ordering::Relaxed);
        }
        arns.insert(arn.clone(), fresh);
    }

    fn needed(&self, follow: &Follow) -> bool {
        let arn = match follow {
            Follow::Service { .. } => return true,
            Follow::UnknownService { service, .. } => service,
            Follow::UnknownNode { node, .. } => node,
            Follow::UnknownCluster { cluster } => cluster,
        };
        !self.lock().get(arn).copied().unwrap_or(false)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Str, bool>> {
        self.arns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes requests of one scope until the sender is gone.
pub(super) async fn follow(
    scope: Arc<Scope>,
    known: Arc<Known>,
    mut requests: mpsc::Receiver<Follow>,
    changes: mpsc::Sender<Change>,
) {
    while let Some(first) = requests.recv().await {
        let mut batch = BTreeSet::from([first]);
        let gathered = tokio::time::sleep(GATHER);
        tokio::pin!(gathered);
        loop {
            tokio::select! {
                () = &mut gathered => break,
                next = requests.recv() => match next {
                    Some(next) => { batch.insert(next); }
                    None => break,
                },
            }
        }
        batch.retain(|follow| known.needed(follow));
        if let Err(error) = read(&scope, &known, batch, &changes).await {
            tracing::warn!(scope = %scope.id, error = %error.detail(), "what an event hinted at is left to the sweep");
            if let Some(denied) = error.as_change()
                && changes.send(denied).await.is_err()
            {
                return;
            }
        }
    }
}

async fn read(
    scope: &Scope,
    known: &Known,
    batch: BTreeSet<Follow>,
    changes: &mpsc::Sender<Change>,
) -> Result<(), CallError> {
    let reads = Reads { scope, priority: Priority::Event };
    let mut clusters = BTreeSet::new();
    let mut services: BTreeMap<Str, BTreeSet<Str>> = BTreeMap::new();
    let mut nodes: BTreeMap<Str, BTreeSet<Str>> = BTreeMap::new();
    for follow in batch {
        match follow {
            Follow::Service { cluster, service } | Follow::UnknownService { cluster, service } => {
                services.entry(cluster).or_default().insert(service);
            }
            Follow::UnknownNode { cluster, node } => {
                nodes.entry(cluster).or_default().insert(node);
            }
            Follow::UnknownCluster { cluster } => {
                clusters.insert(cluster);
            }
        }
    }
    let read_at = Timestamp::now();
    let mut found = Vec::new();
    for arns in Vec::from_iter(clusters).chunks(DESCRIBE_BATCH) {
        for cluster in reads.clusters(arns).await? {
            known.cluster(&cluster.arn);
            found.push(Change::Cluster(Box::new(cluster)));
        }
    }
    for (cluster, arns) in nodes {
        for arns in Vec::from_iter(arns).chunks(DESCRIBE_BATCH) {
            for node in absent_is_none(reads.nodes(&cluster, arns).await)? {
                known.node(&node.arn, node.connected);
                found.push(Change::NodeRead { read_at, node: Box::new(node) });
            }
        }
    }
    for (cluster, arns) in services {
        for arns in Vec::from_iter(arns).chunks(SERVICE_BATCH) {
            let read = absent_is_none(reads.services(&cluster, arns).await)?;
            let gone = arns.iter().filter(|arn| !read.iter().any(|service| service.arn == **arn));
            found.extend(gone.map(|arn| Change::ServiceGone(arn.clone())));
            for service in read {
                known.service(&service.arn);
                found.push(Change::Service(Box::new(service)));
            }
        }
    }
    for change in found {
        if changes.send(change).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// A cluster that is gone has no services and no nodes.
fn absent_is_none<T>(result: Result<Vec<T>, CallError>) -> Result<Vec<T>, CallError> {
    match result {
        Err(error) if error.kind == Kind::Missing => Ok(Vec::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_not_read_again_but_a_disconnected_node_is() {
        let known = Known::default();
        let node = |node: &str| Follow::UnknownNode { cluster: "c".into(), node: node.into() };
        known.node(&"a".into(), true);
        known.node(&"b".into(), false);
        assert!(!known.needed(&node("a")));
        assert!(known.needed(&node("b")));
        assert!(known.needed(&node("c")));
        known.service(&"s".into());
        assert!(!known.needed(&Follow::UnknownService { cluster: "c".into(), service: "s".into() }));
        assert!(known.needed(&Follow::Service { cluster: "c".into(), service: "s".into() }));
    }

    #[test]
    fn the_set_of_known_arns_is_bounded_and_counts_when_it_is_full() {
        let known = Known::bounded(100);
        for index in 0..250 {
            known.service(&format!("s{index}").into());
            assert!(known.lock().len() <= 100);
        }
        assert_eq!(known.emptied(), 2);
        assert!(!known.needed(&Follow::UnknownCluster { cluster: "s249".into() }));
    }
}
