//! Callers that ask for tasks of one cluster within a moment share one DescribeTasks.

use super::Shared;
use crate::act::budget::Priority;
use crate::observe::reads::{DESCRIBE_BATCH, Reads};
use crate::scope::Scopes;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tasuki_core::fleet::{Change, ScopeId, Str, Task};
use tokio::sync::{mpsc, oneshot};

/// How long the first caller waits for others.
const MOMENT: Duration = Duration::from_millis(20);

/// What a caller is told: the task where ECS knows it, or why it could not be asked.
type Answer = Result<Option<Arc<Task>>, String>;

#[derive(Default)]
struct Waiting {
    callers: Vec<(Str, oneshot::Sender<Answer>)>,
}

/// Reads tasks in batches.
pub(super) struct Gather {
    shared: Arc<Shared>,
    scopes: Arc<Scopes>,
    changes: mpsc::Sender<Change>,
    waiting: Mutex<HashMap<Str, Waiting>>,
}

/// Account, Region and cluster of a task ARN of the long form,
/// `arn:aws:ecs:<region>:<account>:task/<cluster>/<id>`.
pub(super) fn parts(task: &str) -> Option<(ScopeId, Str)> {
    let mut parts = task.splitn(6, ':');
    let (arn, partition, service) = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    let cluster = resource.strip_prefix("task/")?.split_once('/')?.0;
    if arn != "arn" || service != "ecs" {
        return None;
    }
    let scope = ScopeId { account: account.into(), region: region.into() };
    Some((scope, format!("arn:{partition}:ecs:{region}:{account}:cluster/{cluster}").into()))
}

impl Gather {
    pub fn new(shared: Arc<Shared>, scopes: Arc<Scopes>, changes: mpsc::Sender<Change>) -> Arc<Self> {
        Arc::new(Self { shared, scopes, changes, waiting: Mutex::default() })
    }

    /// The task as ECS says now.
    pub async fn task(self: &Arc<Self>, arn: &str) -> Answer {
        let Some((scope, cluster)) = parts(arn) else { return Ok(None) };
        // An agent cannot make us ask about clusters that are none of ours.
        if self.scopes.get(&scope).is_none() || self.shared.read().fleet.cluster(&cluster).is_none() {
            return Ok(None);
        }
        let (sender, receiver) = oneshot::channel();
        let first = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = waiting.entry(cluster.clone()).or_default();
            entry.callers.push((arn.into(), sender));
            entry.callers.len() == 1
        };
        if first {
            let this = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(MOMENT).await;
                this.read(&scope, &cluster).await;
            });
        }
        receiver.await.unwrap_or_else(|_| Err("the read was given up".to_owned()))
    }

    async fn read(&self, scope: &ScopeId, cluster: &Str) {
        let taken = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(cluster);
        let mut callers = taken.unwrap_or_default().callers;
        while !callers.is_empty() {
            let batch: Vec<_> = callers.drain(..callers.len().min(DESCRIBE_BATCH)).collect();
            let mut arns: Vec<Str> = batch.iter().map(|(arn, _)| arn.clone()).collect();
            arns.sort_unstable();
            arns.dedup();
            let read_at = Timestamp::now();
            let answer = match self.scopes.get(scope) {
                Some(scope) => {
                    let reads = Reads { scope: &scope, priority: Priority::Event };
                    reads.tasks(cluster, &arns).await.map_err(|error| error.detail())
                }
                None => Err(format!("{scope} is no longer configured")),
            };
            let tasks: Result<HashMap<Str, Arc<Task>>, String> =
                answer.map(|tasks| tasks.into_iter().map(|task| (task.arn.clone(), Arc::new(task))).collect());
            if let Ok(tasks) = &tasks {
                for task in tasks.values() {
                    // The engine is gone only while everything ends.
                    let task = Box::new((**task).clone());
                    let _ = self.changes.send(Change::TaskRead { read_at, task }).await;
                }
            }
            for (arn, caller) in batch {
                // A caller may have given up meanwhile.
                let _ = caller.send(tasks.as_ref().map(|tasks| tasks.get(&arn).cloned()).map_err(Clone::clone));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_arn_names_its_cluster_and_scope_and_nothing_else_does() {
        let (scope, cluster) = parts("arn:aws-cn:ecs:cn-north-1:111122223333:task/shop/0af").unwrap();
        assert_eq!(scope.to_string(), "111122223333/cn-north-1");
        assert_eq!(&*cluster, "arn:aws-cn:ecs:cn-north-1:111122223333:cluster/shop");
        for bad in ["", "x", "arn:aws:ecs:r:a:task/old-form", "arn:aws:ec2:r:a:task/c/t", "arn:aws:ecs:r:a:service/c/t"]
        {
            assert!(parts(bad).is_none(), "{bad}");
        }
    }
}
