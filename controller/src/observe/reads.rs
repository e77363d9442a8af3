//! Reads of ECS in the largest batches that it takes, each through the scope's budget.

use super::api;
use crate::act::budget::Priority;
use crate::scope::{self, CallError, Scope};
use aws_sdk_ecs::types::{ClusterField, ServiceField};
use tasuki_core::fleet::{Cluster, Node, Service, Str, Task};

/// Tasks, nodes and clusters that one Describe call takes.
pub const DESCRIBE_BATCH: usize = 100;
/// Services that one DescribeServices call takes.
pub const SERVICE_BATCH: usize = 10;
/// Results of one List call; ListServices gives 10 unless asked for this.
const PAGE: i32 = 100;

type Result<T> = std::result::Result<T, CallError>;

/// Reads on one scope at one priority.
#[derive(Clone, Copy, Debug)]
pub struct Reads<'a> {
    /// Where.
    pub scope: &'a Scope,
    /// How urgent.
    pub priority: Priority,
}

/// All pages of one List call.
macro_rules! pages {
    ($self:ident, $api:expr, $operation:ident, $arns:ident, |$call:ident| $with:expr) => {{
        let mut arns: Vec<Str> = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let page = $self
                .scope
                .call($api, $self.priority, || {
                    let $call = $self.scope.read.$operation().max_results(PAGE).set_next_token(token.clone());
                    $with.send()
                })
                .await?;
            arns.extend(page.$arns().iter().map(|arn| Str::from(arn.as_str())));
            match page.next_token {
                Some(next) if !next.is_empty() && token.as_ref() != Some(&next) => token = Some(next),
                _ => break Ok(arns),
            }
        }
    }};
}

impl Reads<'_> {
    /// ARNs of all clusters.
    pub async fn list_clusters(&self) -> Result<Vec<Str>> {
        pages!(self, scope::api::LIST_CLUSTERS, list_clusters, cluster_arns, |call| call)
    }

    /// ARNs of all services of a cluster.
    pub async fn list_services(&self, cluster: &str) -> Result<Vec<Str>> {
        pages!(self, scope::api::LIST_SERVICES, list_services, service_arns, |call| call.cluster(cluster))
    }

    /// ARNs of all tasks of a cluster that should run.
    pub async fn list_tasks(&self, cluster: &str) -> Result<Vec<Str>> {
        pages!(self, scope::api::LIST_TASKS, list_tasks, task_arns, |call| call.cluster(cluster))
    }

    /// ARNs of all tasks of a service that should run.
    pub async fn list_tasks_of(&self, cluster: &str, service: &str) -> Result<Vec<Str>> {
        pages!(self, scope::api::LIST_TASKS, list_tasks, task_arns, |call| call.cluster(cluster).service_name(service))
    }

    /// ARNs of all nodes of a cluster.
    pub async fn list_nodes(&self, cluster: &str) -> Result<Vec<Str>> {
        pages!(self, scope::api::LIST_NODES, list_container_instances, container_instance_arns, |call| call
            .cluster(cluster))
    }

    /// Clusters with their tags; those that do not exist are left out, and deleted ones too.
    pub async fn clusters(&self, arns: &[Str]) -> Result<Vec<Cluster>> {
        let mut found = Vec::with_capacity(arns.len());
        for batch in arns.chunks(DESCRIBE_BATCH) {
            let output = self
                .scope
                .call(scope::api::DESCRIBE_CLUSTERS, self.priority, || {
                    self.scope.read.describe_clusters().set_clusters(names(batch)).include(ClusterField::Tags).send()
                })
                .await?;
            let active = output.clusters().iter().filter(|cluster| cluster.status() != Some("INACTIVE"));
            found.extend(active.filter_map(|cluster| api::cluster(cluster, &self.scope.id, &self.scope.document)));
        }
        Ok(found)
    }

    /// Services of one cluster with their tags; those that do not exist are left out.
    pub async fn services(&self, cluster: &str, arns: &[Str]) -> Result<Vec<Service>> {
        let mut found = Vec::with_capacity(arns.len());
        for batch in arns.chunks(SERVICE_BATCH) {
            let output = self
                .scope
                .call(scope::api::DESCRIBE_SERVICES, self.priority, || {
                    let call = self.scope.read.describe_services().cluster(cluster);
                    call.set_services(names(batch)).include(ServiceField::Tags).send()
                })
                .await?;
            found.extend(output.services().iter().filter_map(api::service));
        }
        Ok(found)
    }

    /// Tasks of one cluster; those that do not exist are left out.
    pub async fn tasks(&self, cluster: &str, arns: &[Str]) -> Result<Vec<Task>> {
        let mut found = Vec::with_capacity(arns.len());
        for batch in arns.chunks(DESCRIBE_BATCH) {
            let output = self
                .scope
                .call(scope::api::DESCRIBE_TASKS, self.priority, || {
                    self.scope.read.describe_tasks().cluster(cluster).set_tasks(names(batch)).send()
                })
                .await?;
            found.extend(output.tasks().iter().filter_map(api::task));
        }
        Ok(found)
    }

    /// Nodes of one cluster; those that do not exist are left out.
    pub async fn nodes(&self, cluster: &str, arns: &[Str]) -> Result<Vec<Node>> {
        let mut found = Vec::with_capacity(arns.len());
        for batch in arns.chunks(DESCRIBE_BATCH) {
            let output = self
                .scope
                .call(scope::api::DESCRIBE_NODES, self.priority, || {
                    let call = self.scope.read.describe_container_instances().cluster(cluster);
                    call.set_container_instances(names(batch)).send()
                })
                .await?;
            found.extend(output.container_instances().iter().filter_map(|node| api::node(node, cluster)));
        }
        Ok(found)
    }
}

fn names(arns: &[Str]) -> Option<Vec<String>> {
    Some(arns.iter().map(|arn| arn.to_string()).collect())
}
