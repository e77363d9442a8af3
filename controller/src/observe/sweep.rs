//! The sweep: everything of one scope, read in the fewest calls that ECS allows.
//!
//! *Calls* for C clusters with N tasks, S services and I nodes: ListClusters ⌈C/100⌉,
//! DescribeClusters ⌈C/100⌉; and of each cluster its lists (one call even where empty) and
//! descriptions: ⌈N/100⌉·2 + ⌈S/100⌉ + ⌈S/10⌉ + ⌈I/100⌉·2.
//! *Guarantees*: a cluster is reported as swept only if all of it was read; a cluster that refuses
//! does not stop the others.

use super::follow::Known;
use super::reads::Reads;
use crate::act::budget::Priority;
use crate::scope::{CallError, Kind, Scope};
use futures_util::StreamExt;
use jiff::Timestamp;
use std::collections::BTreeMap;
use tasuki_core::fleet::{Change, Cluster};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

/// Clusters of one scope that are read side by side; the budget sets the pace, this hides latency.
const SIDE_BY_SIDE: usize = 8;

/// What a sweep read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub clusters: usize,
    pub services: usize,
    pub tasks: usize,
    pub nodes: usize,
    /// Clusters that could not be read in full.
    pub failed: usize,
}

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Call(#[from] CallError),
    /// Nobody takes changes any more: the program is stopping.
    #[error("the engine has stopped")]
    Stopped,
}

/// Reads `scope` in full and reports it to `changes`. Refused calls are reported too, each API once.
pub(super) async fn sweep(scope: &Scope, known: &Known, changes: &Sender<Change>) -> Result<Totals, Ended> {
    let began = Instant::now();
    let mut denied = BTreeMap::new();
    let result = clusters(scope, known, changes, &mut denied).await;
    if let Err(Ended::Call(error)) = &result {
        note(&mut denied, error);
    }
    // After ScopeSwept, so that what is refused still stands when the scope counts as read.
    for change in denied.into_values() {
        changes.send(change).await.map_err(|_| Ended::Stopped)?;
    }
    let totals = result?;
    tracing::info!(
        scope = %scope.id, clusters = totals.clusters, services = totals.services, tasks = totals.tasks,
        nodes = totals.nodes, failed = totals.failed, seconds = began.elapsed().as_secs_f64(), "swept"
    );
    Ok(totals)
}

async fn clusters(
    scope: &Scope,
    known: &Known,
    changes: &Sender<Change>,
    denied: &mut BTreeMap<&'static str, Change>,
) -> Result<Totals, Ended> {
    let reads = Reads { scope, priority: Priority::Sweep };
    let read_at = Timestamp::now();
    let arns = reads.list_clusters().await?;
    let clusters = reads.clusters(&arns).await?;
    tracing::info!(scope = %scope.id, clusters = clusters.len(), "sweep begins");
    let mut found = Vec::with_capacity(clusters.len());
    for cluster in &clusters {
        found.push(cluster.arn.clone());
        known.cluster(&cluster.arn);
        changes.send(Change::Cluster(Box::new(cluster.clone()))).await.map_err(|_| Ended::Stopped)?;
    }
    let mut totals = Totals { clusters: clusters.len(), ..Totals::default() };
    let of = clusters.len();
    let mut reading = futures_util::stream::iter(clusters)
        .map(|cluster| async move {
            let result = one(reads, known, &cluster, changes).await;
            (cluster, result)
        })
        .buffer_unordered(SIDE_BY_SIDE);
    let mut done = 0_usize;
    while let Some((cluster, result)) = reading.next().await {
        done += 1;
        match result {
            Ok(part) => {
                totals.services += part.services;
                totals.tasks += part.tasks;
                totals.nodes += part.nodes;
            }
            Err(Ended::Call(error)) => {
                totals.failed += 1;
                tracing::warn!(scope = %scope.id, cluster = %cluster.name, error = %error.detail(), "cluster is not swept");
                note(denied, &error);
            }
            Err(Ended::Stopped) => return Err(Ended::Stopped),
        }
        if done.is_multiple_of(50) {
            tracing::info!(scope = %scope.id, done, of, tasks = totals.tasks, "sweep goes on");
        }
    }
    let swept = Change::ScopeSwept { scope: scope.id.clone(), read_at, clusters: found };
    changes.send(swept).await.map_err(|_| Ended::Stopped)?;
    Ok(totals)
}

async fn one(reads: Reads<'_>, known: &Known, cluster: &Cluster, changes: &Sender<Change>) -> Result<Totals, Ended> {
    let read_at = Timestamp::now();
    let arn = &cluster.arn;
    let services = reads.list_services(arn).await?;
    for service in reads.services(arn, &services).await? {
        known.service(&service.arn);
        changes.send(Change::Service(Box::new(service))).await.map_err(|_| Ended::Stopped)?;
    }
    // Nodes before tasks, so that a task never names a node that is not there yet.
    let nodes = reads.list_nodes(arn).await?;
    for node in reads.nodes(arn, &nodes).await? {
        known.node(&node.arn, node.connected);
        changes.send(Change::NodeRead { read_at, node: Box::new(node) }).await.map_err(|_| Ended::Stopped)?;
    }
    let tasks = reads.list_tasks(arn).await?;
    for task in reads.tasks(arn, &tasks).await? {
        changes.send(Change::TaskRead { read_at, task: Box::new(task) }).await.map_err(|_| Ended::Stopped)?;
    }
    let totals = Totals { clusters: 1, services: services.len(), tasks: tasks.len(), nodes: nodes.len(), failed: 0 };
    tracing::debug!(cluster = %cluster.name, ?totals, "cluster is swept");
    let swept = Change::Swept { cluster: arn.clone(), read_at, tasks, services, nodes };
    changes.send(swept).await.map_err(|_| Ended::Stopped)?;
    Ok(totals)
}

fn note(denied: &mut BTreeMap<&'static str, Change>, error: &CallError) {
    if error.kind == Kind::Denied
        && let Some(change) = error.as_change()
    {
        denied.entry(error.api).or_insert(change);
    }
}
