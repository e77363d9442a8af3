//! The tasks of one account and Region, by ARN and by cluster, whose scheduler asks for its own all the
//! time. Within a cluster they are in the order of their creation.

use super::Task;
use indexmap::{IndexMap, IndexSet};
use std::collections::HashMap;

/// Tasks that are not forgotten.
#[derive(Debug, Default)]
pub struct Tasks {
    all: HashMap<String, Task>,
    of_cluster: IndexMap<String, IndexSet<String>>,
}

impl Tasks {
    /// By ARN.
    pub fn get(&self, arn: &str) -> Option<&Task> {
        self.all.get(arn)
    }

    /// By ARN. The task's cluster must stay the same.
    pub fn get_mut(&mut self, arn: &str) -> Option<&mut Task> {
        self.all.get_mut(arn)
    }

    /// Every task, cluster by cluster.
    pub fn values(&self) -> impl Iterator<Item = &Task> {
        self.of_cluster.values().flatten().filter_map(|arn| self.all.get(arn))
    }

    /// Those of a cluster, the oldest first.
    pub fn of(&self, cluster_arn: &str) -> impl Iterator<Item = &Task> {
        self.of_cluster.get(cluster_arn).into_iter().flatten().filter_map(|arn| self.all.get(arn))
    }

    pub(super) fn insert(&mut self, task: Task) {
        self.of_cluster.entry(task.cluster_arn.clone()).or_default().insert(task.arn.clone());
        self.all.insert(task.arn.clone(), task);
    }

    pub(super) fn remove(&mut self, arn: &str) {
        let Some(task) = self.all.remove(arn) else { return };
        if let Some(arns) = self.of_cluster.get_mut(&task.cluster_arn) {
            arns.shift_remove(arn);
        }
    }
}
