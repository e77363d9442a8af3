//! Sweeps make the fleet right: what a full reading does not list is gone, unless something newer
//! than the reading says that it is there.

use super::{Applied, Fleet, ScopeId, Str};
use jiff::Timestamp;
use std::collections::HashSet;

impl Fleet {
    /// Removes what a full reading of a cluster, begun at `read_at`, does not list.
    pub(super) fn reconcile(
        &mut self,
        cluster: &str,
        read_at: Timestamp,
        tasks: &[Str],
        services: &[Str],
        nodes: &[Str],
        now: Timestamp,
    ) -> Applied {
        let Some(state) = self.clusters.get(cluster) else { return Applied::default() };
        let listed: HashSet<&str> = tasks.iter().chain(services).chain(nodes).map(|s| &**s).collect();
        let is_gone = |arn: &str, seen_at: Timestamp| seen_at < read_at && !listed.contains(arn);
        let gone_tasks: Vec<_> = state
            .workloads
            .values()
            .flat_map(|w| w.values())
            .filter(|t| is_gone(&t.task.arn, t.seen_at))
            .map(|t| t.task.clone())
            .collect();
        let gone_services: Vec<Str> =
            state.services.values().filter(|s| is_gone(&s.value.arn, s.at)).map(|s| s.value.arn.clone()).collect();
        let gone_nodes: Vec<Str> =
            state.nodes.iter().filter(|(arn, n)| is_gone(arn, n.at)).map(|(arn, _)| arn.clone()).collect();
        let mut applied = Applied::default();
        for task in gone_tasks {
            applied.merge(self.end_task(task, now));
        }
        for service in gone_services {
            applied.merge(self.remove_service(&service));
        }
        for node in gone_nodes {
            applied.merge(self.remove_node(&node));
        }
        applied.clusters.dedup();
        applied
    }

    /// Removes the clusters of a scope that a full reading does not list, and forgets older refusals.
    pub(super) fn reconcile_scope(
        &mut self,
        scope: &ScopeId,
        read_at: Timestamp,
        clusters: &[Str],
        now: Timestamp,
    ) -> Applied {
        let mut applied = Applied::default();
        if let Some(denied) = self.denied.get_mut(scope) {
            let before = denied.len();
            denied.retain(|_, refusal| refusal.at >= read_at);
            if denied.len() != before {
                applied.clusters = self.clusters_of(scope);
            }
        }
        let listed: HashSet<&str> = clusters.iter().map(|s| &**s).collect();
        let gone: Vec<Str> = self
            .clusters
            .iter()
            .filter(|(arn, state)| {
                let of_scope = state.cluster.as_ref().is_some_and(|c| c.value.scope == *scope && c.at < read_at);
                of_scope && !listed.contains(&***arn)
            })
            .map(|(arn, _)| arn.clone())
            .collect();
        for arn in gone {
            applied.merge(self.reconcile(&arn, read_at, &[], &[], &[], now));
            if let Some(state) = self.clusters.get_mut(&arn) {
                state.cluster = None;
                if state.is_empty() {
                    self.clusters.remove(&arn);
                }
            }
            applied.clusters.push(arn);
        }
        applied
    }

    /// ARNs of the described clusters of a scope.
    pub(super) fn clusters_of(&self, scope: &ScopeId) -> Vec<Str> {
        let of_scope = |s: &super::ClusterState| s.cluster.as_ref().is_some_and(|c| c.value.scope == *scope);
        self.clusters.iter().filter(|(_, state)| of_scope(state)).map(|(arn, _)| arn.clone()).collect()
    }
}
