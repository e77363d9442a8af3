//! The life of one task.
//!
//! ```text
//!  resolve images ─▶ pause container ─▶ start what its dependencies allow ◀─┐
//!                                             │  started, healthy, exited ──┘
//!                                             ▼  nothing left, or told to stop
//!                        stop in reverse order ─▶ TaskStopped
//! ```

use super::{Engine, cgroup, config, image};
use crate::runtime::*;
use bollard::models::HealthStatusEnum;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions, StopContainerOptionsBuilder,
};
use futures_util::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// How far a container is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Waiting,
    Running {
        healthy: bool,
    },
    Exited {
        code: i32,
    },
    /// It never started, or waits for something that cannot come.
    Failed,
}

/// What the watchers of single containers report.
enum Word {
    Exited { container: usize, code: i32, oom: bool },
    Health { container: usize, health: Health },
}

struct Life {
    engine: Arc<Engine>,
    spec: Arc<TaskSpec>,
    events: UnboundedSender<RuntimeEvent>,
    images: Vec<Option<String>>,
    states: Vec<State>,
    started: Vec<Option<Instant>>,
    restarts: Vec<u32>,
    words: UnboundedSender<Word>,
    began: Instant,
}

/// Runs a task from its first pull to `TaskStopped`.
pub(super) async fn run(
    engine: Arc<Engine>,
    spec: Arc<TaskSpec>,
    mut stop: watch::Receiver<bool>,
    events: UnboundedSender<RuntimeEvent>,
) {
    let count = spec.containers.len();
    let (words, heard) = unbounded_channel();
    let mut life = Life {
        engine,
        spec,
        events,
        images: vec![None; count],
        states: vec![State::Waiting; count],
        started: vec![None; count],
        restarts: vec![0; count],
        words,
        began: Instant::now(),
    };
    let ready = tokio::select! {
        biased;
        () = told_to_stop(&mut stop) => false,
        ready = life.prepare() => ready,
    };
    if ready {
        life.live(heard, &mut stop).await;
    }
    life.end().await;
    life.say(RuntimeEventKind::TaskStopped);
}

/// Returns once the task is to stop. The borrow of the channel does not outlive this function, so
/// that futures which await it stay `Send`.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that the runtime itself is gone, and so must be its tasks.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Deletes what is left of a stopped task.
pub(super) async fn remove(engine: &Engine, spec: &TaskSpec) {
    let names = spec.containers.iter().map(|container| config::container_name(engine, spec, container));
    for name in names.chain([config::pause_name(engine, spec)]) {
        let force = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        // Most are gone already: removal is repeated without effect.
        let _ = engine.client.remove_container(&name, Some(force)).await;
    }
    for volume in &spec.volumes {
        let shared = matches!(volume.source, VolumeSource::Docker { shared: true, .. });
        if let Some(name) = config::volume_name(engine, spec, volume).filter(|_| !shared) {
            let _ = engine.client.remove_volume(&name, None::<RemoveVolumeOptions>).await;
        }
    }
    cgroup::remove(spec);
}

impl Life {
    fn say(&self, kind: RuntimeEventKind) {
        // The cloud is gone when nobody listens; the containers are removed by its end.
        let _ = self.events.send(RuntimeEvent { task_arn: self.spec.task_arn.clone(), kind });
    }

    fn fail(&mut self, container: usize, kind: FailureKind, reason: String) {
        self.states[container] = State::Failed;
        let name = self.spec.containers[container].name.clone();
        self.say(RuntimeEventKind::ContainerFailed { container: name, kind, reason });
    }

    /// Images and namespaces. False where the task as a whole cannot run.
    async fn prepare(&mut self) -> bool {
        self.say(RuntimeEventKind::PullStarted);
        let mut known: HashMap<String, Result<String, String>> = HashMap::new();
        for index in 0..self.spec.containers.len() {
            let reference = self.spec.containers[index].image.clone();
            if !known.contains_key(&reference) {
                let found = image::resolve(&self.engine, &reference).await.map(|image| image.id);
                known.insert(reference.clone(), found);
            }
            match &known[&reference] {
                Ok(id) => self.images[index] = Some(id.clone()),
                Err(reason) => self.fail(index, FailureKind::CannotPullContainer, reason.clone()),
            }
        }
        self.say(RuntimeEventKind::PullStopped);
        if self.images.iter().all(Option::is_none) {
            return false;
        }
        cgroup::limit(&self.spec);
        if config::needs_pause(&self.spec)
            && let Err(reason) = self.start_pause().await
        {
            self.say(RuntimeEventKind::TaskFailed {
                kind: FailureKind::ResourceInitialization,
                reason: reason.to_string(),
            });
            return false;
        }
        true
    }

    async fn start_pause(&self) -> Result<(), bollard::errors::Error> {
        let name = config::pause_name(&self.engine, &self.spec);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let client = &self.engine.client;
        client.create_container(Some(options), config::pause(&self.engine, &self.spec)).await?;
        client.start_container(&name, None).await?;
        if self.spec.network_mode != NetworkMode::Awsvpc {
            return Ok(());
        }
        let inspected = client.inspect_container(&name, None).await?;
        let networks = inspected.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        if let Some(endpoint) = networks.into_values().next() {
            self.say(RuntimeEventKind::NetworkReady {
                private_ipv4: endpoint.ip_address.unwrap_or_default(),
                mac: endpoint.mac_address.filter(|mac| !mac.is_empty()),
            });
        }
        Ok(())
    }

    /// Starts what may start and listens, until nothing is left or the task is told to stop.
    async fn live(&mut self, mut heard: UnboundedReceiver<Word>, stop: &mut watch::Receiver<bool>) {
        loop {
            self.start_what_may().await;
            if !self.states.iter().any(|state| matches!(state, State::Waiting | State::Running { .. })) {
                return;
            }
            let next_timeout = self.next_timeout();
            tokio::select! {
                biased;
                () = told_to_stop(stop) => return,
                Some(word) = heard.recv() => self.hear(word).await,
                () = tokio::time::sleep(next_timeout.saturating_duration_since(Instant::now())) => self.give_up_waiting(),
            }
        }
    }

    async fn start_what_may(&mut self) {
        // One start can allow the next, so this goes round until nothing moves.
        loop {
            let ready = (0..self.states.len())
                .find(|&index| self.states[index] == State::Waiting && self.may_start(index) == Some(true));
            let never = (0..self.states.len())
                .find(|&index| self.states[index] == State::Waiting && self.may_start(index).is_none());
            match (ready, never) {
                (Some(index), _) => self.start(index).await,
                (None, Some(index)) => self.fail(
                    index,
                    FailureKind::TaskFailedToStart,
                    "a container that it depends on did not reach its condition".to_owned(),
                ),
                (None, None) => return,
            }
        }
    }

    /// Whether every dependency holds; `None` where one never will.
    fn may_start(&self, index: usize) -> Option<bool> {
        let mut all = true;
        for dependency in &self.spec.containers[index].depends_on {
            let at = self.spec.containers.iter().position(|container| container.name == dependency.container)?;
            let holds = match (dependency.condition, self.states[at]) {
                (_, State::Waiting) => Some(false),
                (DependencyCondition::Complete, State::Failed) => Some(true),
                (_, State::Failed) => None,
                (DependencyCondition::Start, _) => Some(true),
                (DependencyCondition::Healthy, State::Running { healthy }) => Some(healthy),
                (DependencyCondition::Healthy, State::Exited { .. }) => None,
                (DependencyCondition::Complete | DependencyCondition::Success, State::Running { .. }) => Some(false),
                (DependencyCondition::Complete, State::Exited { .. }) => Some(true),
                (DependencyCondition::Success, State::Exited { code }) => (code == 0).then_some(true),
            };
            all &= holds?;
        }
        Some(all)
    }

    async fn start(&mut self, index: usize) {
        let Some(image) = self.images[index].clone() else { return };
        let (engine, spec) = (Arc::clone(&self.engine), Arc::clone(&self.spec));
        let container = &spec.containers[index];
        let name = config::container_name(&engine, &spec, container);
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let body = config::container(&engine, &spec, container, &image);
        if let Err(error) = engine.client.create_container(Some(options), body).await {
            return self.fail(index, FailureKind::CannotCreateContainer, error.to_string());
        }
        if let Err(error) = engine.client.start_container(&name, None).await {
            return self.fail(index, FailureKind::CannotStartContainer, error.to_string());
        }
        self.running(index, &name, image).await;
    }

    /// A container runs: says so and sets its watchers on it.
    async fn running(&mut self, index: usize, name: &str, image: String) {
        let inspected = self.engine.client.inspect_container(name, None).await.ok();
        let id = inspected.as_ref().and_then(|found| found.id.clone()).unwrap_or_default();
        let networks = inspected.and_then(|found| found.network_settings);
        let ports = networks.as_ref().and_then(|settings| settings.ports.clone()).unwrap_or_default();
        let own = networks.and_then(|settings| settings.networks).unwrap_or_default().into_values().next();
        let check = self.spec.containers[index].health_check.is_some();
        self.states[index] = State::Running { healthy: !check };
        self.started[index] = Some(Instant::now());
        self.say(RuntimeEventKind::ContainerStarted {
            container: self.spec.containers[index].name.clone(),
            runtime_id: id,
            docker_name: name.to_owned(),
            image_digest: Some(image.clone()),
            image_id: Some(image),
            ipv4: own.and_then(|endpoint| endpoint.ip_address).filter(|address| !address.is_empty()),
            ports: bound(&ports),
            restart_count: self.restarts[index],
        });
        tokio::spawn(watch_exit(Arc::clone(&self.engine), name.to_owned(), index, self.words.clone()));
        if check {
            tokio::spawn(watch_health(Arc::clone(&self.engine), name.to_owned(), index, self.words.clone()));
        }
    }

    async fn hear(&mut self, word: Word) {
        match word {
            Word::Health { container, health } => {
                if let State::Running { healthy } = &mut self.states[container] {
                    *healthy = health == Health::Healthy;
                    let name = self.spec.containers[container].name.clone();
                    self.say(RuntimeEventKind::ContainerHealth { container: name, health });
                }
            }
            Word::Exited { container, code, oom } => {
                if self.should_restart(container, code) {
                    let name = config::container_name(&self.engine, &self.spec, &self.spec.containers[container]);
                    self.restarts[container] += 1;
                    if self.engine.client.start_container(&name, None).await.is_ok() {
                        let image = self.images[container].clone().unwrap_or_default();
                        return self.running(container, &name, image).await;
                    }
                }
                self.exited(container, code, oom);
            }
        }
    }

    fn exited(&mut self, container: usize, exit_code: i32, oom_killed: bool) {
        self.states[container] = State::Exited { code: exit_code };
        let name = self.spec.containers[container].name.clone();
        self.say(RuntimeEventKind::ContainerExited { container: name, exit_code, oom_killed });
    }

    fn should_restart(&self, index: usize, code: i32) -> bool {
        let Some(policy) = &self.spec.containers[index].restart_policy else { return false };
        let ran = self.started[index].map_or(Duration::ZERO, |started| started.elapsed());
        ran >= policy.restart_attempt_period && !policy.ignored_exit_codes.contains(&code)
    }

    /// ECS gives a dependency three minutes where the dependent names no time of its own.
    fn wait_limit(&self, index: usize) -> Instant {
        self.began + self.spec.containers[index].start_timeout.unwrap_or(Duration::from_secs(180))
    }

    fn next_timeout(&self) -> Instant {
        let waiting = (0..self.states.len()).filter(|&index| self.states[index] == State::Waiting);
        waiting.map(|index| self.wait_limit(index)).min().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600))
    }

    fn give_up_waiting(&mut self) {
        let now = Instant::now();
        for index in 0..self.states.len() {
            if self.states[index] == State::Waiting && self.wait_limit(index) <= now {
                self.fail(
                    index,
                    FailureKind::TaskFailedToStart,
                    "a dependency did not reach its condition in time".to_owned(),
                );
            }
        }
    }

    /// Stops what runs, dependents first, and the pause container last.
    async fn end(&mut self) {
        loop {
            let running = |index: &usize| matches!(self.states[*index], State::Running { .. });
            let needed = |index: usize| {
                let name = &self.spec.containers[index].name;
                (0..self.states.len())
                    .filter(running)
                    .any(|other| self.spec.containers[other].depends_on.iter().any(|d| d.container == *name))
            };
            let now: Vec<usize> = (0..self.states.len()).filter(running).filter(|&index| !needed(index)).collect();
            if now.is_empty() {
                break;
            }
            let ends = now.iter().map(|&index| stop_one(&self.engine, &self.spec, index));
            let ends = futures_util::future::join_all(ends).await;
            for (index, (code, oom)) in now.into_iter().zip(ends) {
                self.exited(index, code, oom);
            }
        }
        let force = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        let _ = self.engine.client.remove_container(&config::pause_name(&self.engine, &self.spec), Some(force)).await;
    }
}

async fn stop_one(engine: &Engine, spec: &TaskSpec, index: usize) -> (i32, bool) {
    let container = &spec.containers[index];
    let name = config::container_name(engine, spec, container);
    let seconds = i32::try_from(container.stop_timeout.as_secs()).unwrap_or(i32::MAX);
    let options = StopContainerOptionsBuilder::new().t(seconds).build();
    if let Err(error) = engine.client.stop_container(&name, Some(options)).await {
        tracing::debug!(%error, name, "the container ended by itself");
    }
    exit_of(engine, &name).await
}

/// Exit code, and whether the kernel ended it for its memory. 137 where the engine has forgotten it.
async fn exit_of(engine: &Engine, name: &str) -> (i32, bool) {
    let state = engine.client.inspect_container(name, None).await.ok().and_then(|found| found.state);
    let code = state.as_ref().and_then(|state| state.exit_code).and_then(|code| i32::try_from(code).ok());
    (code.unwrap_or(137), state.and_then(|state| state.oom_killed).unwrap_or(false))
}

async fn watch_exit(engine: Arc<Engine>, name: String, container: usize, words: UnboundedSender<Word>) {
    // A non-zero exit comes as an error of the stream; the code is read from the container itself.
    let mut wait = std::pin::pin!(engine.client.wait_container(&name, None));
    while wait.next().await.is_some_and(|answer| answer.is_ok()) {}
    let (code, oom) = exit_of(&engine, &name).await;
    let _ = words.send(Word::Exited { container, code, oom });
}

async fn watch_health(engine: Arc<Engine>, name: String, container: usize, words: UnboundedSender<Word>) {
    let mut last = None;
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    loop {
        beat.tick().await;
        let Ok(found) = engine.client.inspect_container(&name, None).await else { return };
        let Some(state) = found.state.filter(|state| state.running == Some(true)) else { return };
        let health = match state.health.and_then(|health| health.status) {
            Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
            Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
            _ => continue,
        };
        if last.replace(health) != Some(health) && words.send(Word::Health { container, health }).is_err() {
            return;
        }
    }
}

fn bound(ports: &bollard::models::PortMap) -> Vec<BoundPort> {
    let one = |(port, bindings): (&String, &Option<Vec<bollard::models::PortBinding>>)| {
        let (number, protocol) = port.split_once('/')?;
        let host = bindings.as_ref()?.first()?.host_port.as_ref()?.parse().ok()?;
        let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
        Some(BoundPort { container_port: number.parse().ok()?, host_port: host, protocol })
    };
    ports.iter().filter_map(one).collect()
}
