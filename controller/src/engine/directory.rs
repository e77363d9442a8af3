//! What the gateway may ask about the fleet, answered from it; a task that the fleet does not know
//! yet is read from ECS once, however many agents ask.

use super::gather::{Gather, parts};
use super::{Execute, Knowledge, Shared};
use crate::gateway::{Directory, DirectoryError, Known, TaskRole};
use crate::scope::Scopes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tasuki_api::agent::AgentKind;
use tasuki_api::desired::IdentityChoice;
use tasuki_api::kubernetes::PodName;
use tasuki_core::action::{Action, ActionKind, SIDECAR, is_daemon_service};
use tasuki_core::fleet::{Change, Task};
use tokio::sync::mpsc;

/// The engine's directory.
pub struct FleetDirectory {
    shared: Arc<Shared>,
    gather: Arc<Gather>,
    executor: Arc<dyn Execute>,
    changes: mpsc::Sender<Change>,
}

impl FleetDirectory {
    /// A directory over the engine's knowledge; what it reads itself goes to `changes` too.
    pub fn new(
        shared: Arc<Shared>,
        scopes: Arc<Scopes>,
        executor: Arc<dyn Execute>,
        changes: mpsc::Sender<Change>,
    ) -> Self {
        let gather = Gather::new(shared.clone(), scopes, changes.clone());
        Self { shared, gather, executor, changes }
    }

    async fn read(&self, arn: &str) -> Result<Option<Known>, DirectoryError> {
        if PodName::parse(arn).is_some() {
            // The watch brings a pod long before its agent can ask; one that it did not bring is none.
            return Ok(self.task(arn));
        }
        let failed = |source: String| DirectoryError { task: arn.to_owned(), source: source.into() };
        let Some(task) = self.gather.task(arn).await.map_err(failed)? else { return Ok(None) };
        let known = self.shared.read().known(task.clone());
        if known.role != TaskRole::Unknown {
            return Ok(Some(known));
        }
        // The role stands in the definition, which nothing has asked for yet.
        let Some((scope, cluster)) = parts(arn) else { return Ok(None) };
        let describe = Action {
            scope,
            cluster,
            monitor: known.monitor.clone().unwrap_or_default(),
            why: "an agent of a task with this definition enrols".to_owned(),
            kind: ActionKind::DescribeDefinition { definition: task.definition.clone(), sidecar: None },
        };
        let outcome = self.executor.execute(&describe, "").await;
        let mut role = TaskRole::Unknown;
        for change in outcome.changes {
            if let Change::Definition(definition) = &change
                && definition.arn == task.definition
            {
                role = definition.task_role.clone().map_or(TaskRole::None, TaskRole::Role);
            }
            // The engine is gone only while everything ends.
            let _ = self.changes.send(change).await;
        }
        Ok(Some(Known { role, ..known }))
    }
}

impl Knowledge {
    /// What is known of a task, from ECS and desired state alone.
    fn known(&self, task: Arc<Task>) -> Known {
        let daemon = task.service_name().is_some_and(is_daemon_service);
        let verdict = self.decider.verdict(&task.cluster, &task.group, &task.arn);
        let desired = self.decider.desired();
        let by_verdict = verdict.and_then(|verdict| verdict.monitor).map(usize::from);
        let by_cluster = || {
            let cluster = self.fleet.cluster(&task.cluster)?.cluster.as_ref()?;
            desired.select_cluster(&cluster.value, task.launch)
        };
        let monitor = by_verdict.or_else(by_cluster).and_then(|index| desired.monitors.get(index));
        let approved = monitor.and_then(|monitor| self.approved.get(&monitor.name)).cloned().unwrap_or_default();
        let identity = monitor.and_then(|monitor| monitor.spec.agent.as_ref()).map(|agent| agent.identity);
        let role = match self.fleet.definition(&task.definition) {
            _ if task.launch.is_kubernetes() => TaskRole::None,
            None => TaskRole::Unknown,
            Some(definition) => definition.task_role.clone().map_or(TaskRole::None, TaskRole::Role),
        };
        Known {
            monitor: monitor.map(|monitor| monitor.name.clone()),
            kind: if daemon { AgentKind::Node } else { AgentKind::Sidecar },
            agent_container: SIDECAR.into(),
            approved_digests: approved.into(),
            role,
            identity: identity.unwrap_or(IdentityChoice::Auto),
            task,
        }
    }

    fn live_or_ended(&self, arn: &str) -> Option<Arc<Task>> {
        let live = self.fleet.task(arn).map(|state| Arc::new((*state.task).clone()));
        live.or_else(|| self.ended.get(arn).cloned())
    }
}

impl Directory for FleetDirectory {
    fn task(&self, arn: &str) -> Option<Known> {
        let known = self.shared.read();
        known.live_or_ended(arn).map(|task| known.known(task))
    }

    fn refresh<'a>(&'a self, arn: &'a str) -> BoxFuture<'a, Result<Option<Known>, DirectoryError>> {
        self.read(arn).boxed()
    }

    fn tasks_on(&self, node: &str) -> Vec<Arc<Task>> {
        let known = self.shared.read();
        let live = known.fleet.tasks_on(node).map(|state| Arc::new((*state.task).clone()));
        live.chain(known.ended.on(node).cloned()).collect()
    }
}
