//! A runtime without containers, on the cloud's clock, that does what a test's script says.
//!
//! Every image pulls in 2 s, starts in 1 s and runs for ever, unless [`Virtual::script`] says otherwise.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;

use super::*;
use crate::clock::{Clock, later};

/// What happens to containers of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Script {
    /// How long the pull takes.
    pub pull: Duration,
    /// How long it takes from "may start" to started.
    pub start: Duration,
    /// The pull fails with these words.
    pub pull_failure: Option<String>,
    /// The start fails with these words.
    pub start_failure: Option<String>,
    /// The container ends by itself after this long, with this code.
    pub exit_after: Option<(Duration, i32)>,
    /// The end counts as an out-of-memory kill.
    pub oom: bool,
    /// SIGTERM has no effect: the container ends with 137 after its stop timeout. Otherwise it ends with `stop_code` at once.
    pub ignores_sigterm: bool,
    /// Exit code after SIGTERM.
    pub stop_code: i32,
    /// When the container has a health check: its verdict, 1 s after the start period. `None`: it stays `UNKNOWN`.
    pub health: Option<Health>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            pull: Duration::from_secs(2),
            start: Duration::from_secs(1),
            pull_failure: None,
            start_failure: None,
            exit_after: None,
            oom: false,
            ignores_sigterm: false,
            stop_code: 0,
            health: Some(Health::Healthy),
        }
    }
}

/// The runtime of tests. See the module page.
#[derive(Debug)]
pub struct Virtual {
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sink: Option<UnboundedSender<RuntimeEvent>>,
    scripts: HashMap<String, Script>,
    tasks: HashMap<String, Task>,
    due: BTreeMap<(Timestamp, u64), Step>,
    serial: u64,
}

#[derive(Debug)]
struct Task {
    spec: TaskSpec,
    stopping: bool,
    address: String,
    runs: HashMap<String, Run>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Waiting,
    Starting,
    Running { since: Timestamp },
    Ended { code: i32 },
    Failed,
}

#[derive(Debug)]
struct Run {
    phase: Phase,
    health: Option<Health>,
    restarts: u32,
    /// Grows with each start, so that a step meant for an earlier life is void.
    life: u64,
}

#[derive(Debug, Clone)]
struct Step {
    task: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Pull,
    Pulled,
    Started { container: String },
    Health { container: String, life: u64 },
    Ended { container: String, life: u64, code: i32, oom: bool },
    Stopped,
}

impl Virtual {
    /// A runtime on `clock`, with nothing scripted.
    pub fn new(clock: Clock) -> Self {
        Self { clock, state: Mutex::default() }
    }

    /// From now on, containers of `image` (the exact string of the definition) behave as `script` says.
    pub fn script(&self, image: impl Into<String>, script: Script) {
        self.state().scripts.insert(image.into(), script);
    }

    /// Ends a running container now. False when there is no such running container.
    pub fn exit(&self, task_arn: &str, container: &str, code: i32) -> bool {
        let now = self.clock.now();
        let mut state = self.state();
        let Some(run) = state.tasks.get(task_arn).and_then(|task| task.runs.get(container)) else { return false };
        if !matches!(run.phase, Phase::Running { .. }) {
            return false;
        }
        let life = run.life;
        state.plan(now, task_arn, What::Ended { container: container.to_owned(), life, code, oom: false });
        true
    }

    /// The specs of tasks that were started and not removed, for assertions.
    pub fn specs(&self) -> Vec<TaskSpec> {
        self.state().tasks.values().map(|task| task.spec.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runtime for Virtual {
    fn attach(&self, events: UnboundedSender<RuntimeEvent>) {
        self.state().sink = Some(events);
    }

    fn start_task(&self, spec: TaskSpec) {
        let now = self.clock.now();
        let mut state = self.state();
        let arn = spec.task_arn.clone();
        let number = state.serial;
        let address = format!("10.0.{}.{}", (number / 250) % 250, number % 250 + 4);
        let runs = spec
            .containers
            .iter()
            .map(|c| (c.name.clone(), Run { phase: Phase::Waiting, health: None, restarts: 0, life: 0 }))
            .collect();
        state.tasks.insert(arn.clone(), Task { spec, stopping: false, address, runs });
        state.plan(now, &arn, What::Pull);
    }

    fn stop_task(&self, task_arn: &str) {
        let now = self.clock.now();
        self.state().stop(now, task_arn);
    }

    fn remove_task(&self, task_arn: &str) {
        let mut state = self.state();
        state.tasks.remove(task_arn);
        state.due.retain(|_, step| step.task != task_arn);
    }

    fn next_due(&self) -> Option<Timestamp> {
        self.state().due.keys().next().map(|(at, _)| *at)
    }

    fn advance(&self, now: Timestamp) {
        let mut state = self.state();
        while let Some(entry) = state.due.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let at = entry.key().0;
            let step = entry.remove();
            state.run(at, step);
        }
    }
}

impl State {
    fn plan(&mut self, at: Timestamp, task: &str, what: What) {
        self.serial += 1;
        self.due.insert((at, self.serial), Step { task: task.to_owned(), what });
    }

    fn say(&self, task: &str, kind: RuntimeEventKind) {
        if let Some(sink) = &self.sink {
            // A closed channel means that the cloud is gone; nobody is left to tell.
            let _ = sink.send(RuntimeEvent { task_arn: task.to_owned(), kind });
        }
    }

    fn script_for(&self, task: &str, container: &str) -> Script {
        let image = self.tasks.get(task).and_then(|t| t.spec.containers.iter().find(|c| c.name == container));
        image.and_then(|c| self.scripts.get(&c.image)).cloned().unwrap_or_default()
    }

    fn run(&mut self, at: Timestamp, step: Step) {
        let Some(task) = self.tasks.get(&step.task) else { return };
        let stopping = task.stopping;
        let arn = step.task;
        match step.what {
            What::Stopped => self.say(&arn, RuntimeEventKind::TaskStopped),
            What::Ended { container, life, code, oom } => self.ended(at, &arn, &container, life, code, oom),
            _ if stopping => {}
            What::Pull => {
                self.say(&arn, RuntimeEventKind::PullStarted);
                let longest = self.longest_pull(&arn);
                self.plan(later(at, longest), &arn, What::Pulled);
            }
            What::Pulled => self.pulled(at, &arn),
            What::Started { container } => self.started(at, &arn, &container),
            What::Health { container, life } => self.health(at, &arn, &container, life),
        }
    }

    fn longest_pull(&self, arn: &str) -> Duration {
        let names = self.container_names(arn);
        names.iter().map(|name| self.script_for(arn, name).pull).max().unwrap_or_default()
    }

    fn container_names(&self, arn: &str) -> Vec<String> {
        self.tasks.get(arn).map(|t| t.spec.containers.iter().map(|c| c.name.clone()).collect()).unwrap_or_default()
    }

    fn pulled(&mut self, at: Timestamp, arn: &str) {
        for container in self.container_names(arn) {
            if let Some(reason) = self.script_for(arn, &container).pull_failure {
                self.set_phase(arn, &container, Phase::Failed);
                self.say(
                    arn,
                    RuntimeEventKind::ContainerFailed { container, kind: FailureKind::CannotPullContainer, reason },
                );
            }
        }
        self.say(arn, RuntimeEventKind::PullStopped);
        if let Some(task) = self.tasks.get(arn) {
            let private_ipv4 = task.address.clone();
            self.say(arn, RuntimeEventKind::NetworkReady { private_ipv4, mac: Some("0e:00:00:00:00:01".into()) });
        }
        self.start_ready(at, arn);
    }

    fn set_phase(&mut self, arn: &str, container: &str, phase: Phase) {
        if let Some(run) = self.tasks.get_mut(arn).and_then(|task| task.runs.get_mut(container)) {
            run.phase = phase;
        }
    }

    /// Starts every waiting container whose dependencies have reached their conditions.
    fn start_ready(&mut self, at: Timestamp, arn: &str) {
        let Some(task) = self.tasks.get(arn) else { return };
        if task.stopping {
            return;
        }
        let met = |dependency: &Dependency| {
            let Some(run) = task.runs.get(&dependency.container) else { return false };
            match (dependency.condition, run.phase) {
                (DependencyCondition::Start, Phase::Running { .. } | Phase::Ended { .. }) => true,
                (DependencyCondition::Complete, Phase::Ended { .. }) => true,
                (DependencyCondition::Success, Phase::Ended { code }) => code == 0,
                (DependencyCondition::Healthy, Phase::Running { .. }) => run.health == Some(Health::Healthy),
                _ => false,
            }
        };
        let ready: Vec<String> = task
            .spec
            .containers
            .iter()
            .filter(|c| task.runs.get(&c.name).is_some_and(|run| run.phase == Phase::Waiting))
            .filter(|c| c.depends_on.iter().all(met))
            .map(|c| c.name.clone())
            .collect();
        for container in ready {
            self.set_phase(arn, &container, Phase::Starting);
            let start = self.script_for(arn, &container).start;
            self.plan(later(at, start), arn, What::Started { container });
        }
    }

    fn started(&mut self, at: Timestamp, arn: &str, container: &str) {
        let script = self.script_for(arn, container);
        if let Some(reason) = script.start_failure {
            self.set_phase(arn, container, Phase::Failed);
            let kind = FailureKind::CannotStartContainer;
            let container = container.to_owned();
            return self.say(arn, RuntimeEventKind::ContainerFailed { container, kind, reason });
        }
        self.serial += 1;
        let life = self.serial;
        let Some(task) = self.tasks.get_mut(arn) else { return };
        let Some(spec) = task.spec.containers.iter().find(|c| c.name == container) else { return };
        let health_start = spec.health_check.as_ref().map(|check| check.start_period);
        let docker_name = format!("ecs-{}-{}-{}", task.spec.family, task.spec.revision, container);
        let ports = bound_ports(spec);
        let image_digest = Some(digest(&spec.image));
        let name = format!("{arn}/{container}/{life}");
        let runtime_id = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes()));
        let fargate = task.spec.launch_type == LaunchType::Fargate;
        let runtime_id = if fargate { fargate_id(&runtime_id) } else { runtime_id };
        let Some(run) = task.runs.get_mut(container) else { return };
        run.phase = Phase::Running { since: at };
        run.life = life;
        let event = RuntimeEventKind::ContainerStarted {
            container: container.to_owned(),
            runtime_id,
            docker_name,
            image_id: image_digest.clone(),
            image_digest,
            ipv4: None,
            ports,
            restart_count: run.restarts,
        };
        self.say(arn, event);
        if let Some((after, code)) = script.exit_after {
            let what = What::Ended { container: container.to_owned(), life, code, oom: script.oom };
            self.plan(later(at, after), arn, what);
        }
        if let Some(start) = health_start {
            let first = later(later(at, start), Duration::from_secs(1));
            self.plan(first, arn, What::Health { container: container.to_owned(), life });
        }
        self.start_ready(at, arn);
    }

    fn health(&mut self, at: Timestamp, arn: &str, container: &str, life: u64) {
        let Some(health) = self.script_for(arn, container).health else { return };
        let Some(run) = self.tasks.get_mut(arn).and_then(|task| task.runs.get_mut(container)) else { return };
        if run.life != life || !matches!(run.phase, Phase::Running { .. }) {
            return;
        }
        run.health = Some(health);
        self.say(arn, RuntimeEventKind::ContainerHealth { container: container.to_owned(), health });
        self.start_ready(at, arn);
    }

    fn ended(&mut self, at: Timestamp, arn: &str, container: &str, life: u64, code: i32, oom: bool) {
        let Some(task) = self.tasks.get_mut(arn) else { return };
        let Some(run) = task.runs.get_mut(container) else { return };
        let Phase::Running { since } = run.phase else { return };
        if run.life != life {
            return;
        }
        let policy = task.spec.containers.iter().find(|c| c.name == container).and_then(|c| c.restart_policy.as_ref());
        let restarts = !task.stopping
            && policy.is_some_and(|policy| {
                !policy.ignored_exit_codes.contains(&code) && at >= later(since, policy.restart_attempt_period)
            });
        if restarts {
            run.restarts += 1;
            run.phase = Phase::Starting;
            return self.plan(
                later(at, Duration::from_secs(1)),
                arn,
                What::Started { container: container.to_owned() },
            );
        }
        run.phase = Phase::Ended { code };
        let stopping = task.stopping;
        let container = container.to_owned();
        self.say(arn, RuntimeEventKind::ContainerExited { container, exit_code: code, oom_killed: oom });
        if stopping {
            self.finish_if_over(at, arn);
        } else {
            self.start_ready(at, arn);
        }
    }

    fn stop(&mut self, now: Timestamp, arn: &str) {
        let Some(task) = self.tasks.get_mut(arn) else { return };
        if std::mem::replace(&mut task.stopping, true) {
            return;
        }
        let running: Vec<(String, u64, Duration)> = task
            .spec
            .containers
            .iter()
            .filter_map(|c| {
                let run = task.runs.get(&c.name)?;
                matches!(run.phase, Phase::Running { .. }).then(|| (c.name.clone(), run.life, c.stop_timeout))
            })
            .collect();
        for (container, life, timeout) in running {
            let script = self.script_for(arn, &container);
            let (after, code) =
                if script.ignores_sigterm { (timeout, 137) } else { (Duration::ZERO, script.stop_code) };
            self.plan(later(now, after), arn, What::Ended { container, life, code, oom: false });
        }
        self.finish_if_over(now, arn);
    }

    fn finish_if_over(&mut self, at: Timestamp, arn: &str) {
        let Some(task) = self.tasks.get(arn) else { return };
        if !task.runs.values().any(|run| matches!(run.phase, Phase::Running { .. })) {
            self.plan(at, arn, What::Stopped);
        }
    }
}

fn bound_ports(spec: &ContainerSpec) -> Vec<BoundPort> {
    let bind = |p: &PortMapping| BoundPort {
        container_port: p.container_port,
        host_port: if p.host_port == 0 { 32768 + p.container_port % 1000 } else { p.host_port },
        protocol: p.protocol,
    };
    spec.port_mappings.iter().map(bind).collect()
}

/// The digest in the reference, or one made from its text, so that the same image always has the same.
fn digest(image: &str) -> String {
    match image.split_once('@') {
        Some((_, digest)) => digest.to_owned(),
        None => {
            format!("sha256:{}", hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, image.as_bytes())))
        }
    }
}

/// Fargate shows container ids as 32 hex digits, a hyphen and 10 digits.
fn fargate_id(runtime_id: &str) -> String {
    let head: String = runtime_id.chars().take(32).collect();
    let tail = runtime_id.chars().skip(32).take(15).collect::<String>();
    let number = u64::from_str_radix(&tail, 16).unwrap_or(0) % 10_000_000_000;
    format!("{head}-{number:010}")
}
