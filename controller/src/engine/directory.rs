//! What the gateway may ask about the fleet, answered from it; a task that the fleet does not know
//! yet is read from ECS once, however many agents ask.

use super::gather::{Gather, parts};
use super::{Execute, Knowledge, Shared};
use crate::gateway::{Directory, DirectoryError, Known, TaskRole};
use crate::scope::Scopes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tasuki_api::agent::AgentKind;
use tasuki_api::desired::IdentityChoice;
use tasuki_api::kubernetes::PodName;
use tasuki_core::action::{Action, ActionKind, SIDECAR, is_daemon_service};
use tasuki_core::fleet::{Change, Task, TaskStatus};
use tokio::sync::{Semaphore, mpsc};

/// How long an agent of a pod waits until the pods are known: its client gives up after 20 s.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long it waits for its pod's own status: that shows a container a moment after its start, and an agent may be
/// quicker.
const MOMENT: Duration = Duration::from_secs(3);
/// Agents that wait at once. Each holds some KiB; the largest clusters have 5 000 nodes.
const WAITING: usize = 8_192;

/// The engine's directory.
pub struct FleetDirectory {
    shared: Arc<Shared>,
    gather: Arc<Gather>,
    executor: Arc<dyn Execute>,
    changes: mpsc::Sender<Change>,
    waiting: Semaphore,
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
        Self { shared, gather, executor, changes, waiting: Semaphore::new(WAITING) }
    }

    /// The pod, once it is known whose agent runs in it. Agents ask from the first moment of this process on, and of
    /// their own pods: one that was told that there is no such pod would come back late.
    async fn pod(&self, name: &str) -> Result<Option<Known>, String> {
        let _place = self.waiting.try_acquire().map_err(|_| "too many agents wait for what is said of their pods")?;
        if !self.shared.are_pods_known() {
            let known = tokio::time::timeout(PATIENCE, self.shared.pods_known()).await;
            known.map_err(|_| "pods have not been listed yet")?;
        }
        // The watch brings a pod before its agent can ask, or as good as; one that it does not bring is none.
        let shown = tokio::time::timeout(MOMENT, self.shown(name)).await;
        Ok(shown.unwrap_or_else(|_| self.task(name)))
    }

    /// The pod, once its status shows the agent's container.
    async fn shown(&self, name: &str) -> Option<Known> {
        let mut taken = self.shared.taken();
        loop {
            let known = self.task(name);
            if known.as_ref().is_some_and(shows_agent) || taken.changed().await.is_err() {
                return known;
            }
        }
    }

    async fn read(&self, arn: &str) -> Result<Option<Known>, DirectoryError> {
        let failed = |source: String| DirectoryError { task: arn.to_owned(), source: source.into() };
        if PodName::parse(arn).is_some() {
            return self.pod(arn).await.map_err(failed);
        }
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

/// Whether there is nothing more to wait for: the agent's container was started, or nothing will be.
fn shows_agent(known: &Known) -> bool {
    let mut own = known.task.containers.iter().filter(|container| container.name == known.agent_container);
    let started = own.any(|container| container.runtime_id.is_some() && container.image_digest.is_some());
    started || known.task.status >= TaskStatus::Stopped
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::act::Owned;
    use crate::engine::Outcome;
    use jiff::Timestamp;
    use tasuki_core::decide::Decider;
    use tasuki_core::desired::Desired;
    use tasuki_core::fleet::Fleet;
    use tasuki_core::memory::Memory;

    /// Nothing is carried out here.
    struct Idle;

    impl Execute for Idle {
        fn execute<'a>(&'a self, _: &'a Action, _: &'a str) -> BoxFuture<'a, Outcome> {
            async { Outcome::default() }.boxed()
        }
        fn own_definitions(&self) -> BoxFuture<'_, Vec<Change>> {
            async { Vec::new() }.boxed()
        }
        fn inventory(&self) -> BoxFuture<'_, Result<Vec<Owned>, String>> {
            async { Ok(Vec::new()) }.boxed()
        }
    }

    const POD: &str = "k8s/c/pod/tasuki-agents/u-1/tasuki-agent-x";

    fn directory() -> (Arc<Shared>, FleetDirectory) {
        let now = Timestamp::UNIX_EPOCH;
        let shared = Arc::new(Shared::new(Knowledge {
            fleet: Fleet::new(now),
            decider: Decider::new(Arc::new(Desired::default()), Memory::default()),
            minutes: Default::default(),
            ended: Default::default(),
            approved: Default::default(),
        }));
        let (changes, _) = mpsc::channel(1);
        let scopes = Arc::new(Scopes::from_environment());
        (shared.clone(), FleetDirectory::new(shared, scopes, Arc::new(Idle), changes))
    }

    fn put(shared: &Shared, started: bool) {
        let container = serde_json::json!({
            "name": SIDECAR, "arn": "a", "runtime_id": started.then_some("c1"), "image": "i",
            "image_digest": started.then_some("sha256:d"), "status": "RUNNING", "exit_code": null, "reason": null
        });
        let task = serde_json::json!({
            "arn": POD, "cluster": "k8s/c", "group": "service:tasuki", "started_by": null, "definition": "d",
            "launch": "Kubernetes", "platform_version": null, "platform_family": null, "architecture": null,
            "node": "k8s/c/node/n", "containers": [container], "status": "Running", "desired_stopped": false,
            "version": if started { 2 } else { 1 },
            "created_at": null, "started_at": null, "stopped_at": null, "stop_code": null, "stopped_reason": null,
            "address": null
        });
        let task = Box::new(serde_json::from_value(task).unwrap());
        shared.take([Change::TaskRead { read_at: Timestamp::UNIX_EPOCH, task }], Timestamp::UNIX_EPOCH);
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_asks_before_the_pods_were_listed_is_answered_once_they_are() {
        let (shared, directory) = directory();
        let mut asked = directory.refresh(POD);
        assert!(futures_util::poll!(&mut asked).is_pending());
        put(&shared, true);
        assert!(futures_util::poll!(&mut asked).is_pending(), "its image may not be known as approved yet");
        shared.tell_pods_known();
        assert_eq!(asked.await.unwrap().map(|known| known.kind), Some(AgentKind::Node));
        let unknown = directory.refresh("k8s/c/pod/tasuki-agents/u-2/other").await.unwrap();
        assert_eq!(unknown, None, "from then on one that is not known is none");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_is_quicker_than_its_pods_status_is_answered_when_that_comes() {
        let (shared, directory) = directory();
        shared.tell_pods_known();
        let mut asked = directory.refresh(POD);
        assert!(futures_util::poll!(&mut asked).is_pending());
        put(&shared, false);
        assert!(futures_util::poll!(&mut asked).is_pending());
        put(&shared, true);
        let began = tokio::time::Instant::now();
        let own = asked.await.unwrap().unwrap().task.containers[0].runtime_id.clone();
        assert_eq!((own.as_deref(), began.elapsed()), (Some("c1"), Duration::ZERO));
        // Where it does not come, the gateway has to say so.
        let (shared, directory) = self::directory();
        shared.tell_pods_known();
        put(&shared, false);
        assert_eq!(directory.refresh(POD).await.unwrap().unwrap().task.containers[0].runtime_id, None);
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_wait_for_ever_and_only_so_many_wait() {
        let (shared, directory) = directory();
        let error = directory.refresh(POD).await.unwrap_err();
        assert!(error.source.to_string().contains("not been listed"), "{}", error.source);
        let _all = directory.waiting.acquire_many(WAITING as u32).await.unwrap();
        let error = directory.refresh(POD).await.unwrap_err();
        assert!(error.source.to_string().contains("too many"), "{}", error.source);
        shared.tell_pods_known();
        // A task of ECS is none of these: that no cluster has it is known at once.
        let task = "arn:aws:ecs:eu-west-1:111122223333:task/c/0af";
        assert_eq!(directory.refresh(task).await.unwrap(), None);
    }
}
