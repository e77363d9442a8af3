//! Reporting to the gateway: what the agent says of itself, and how policies come into force.

use crate::control::HeartbeatSource;
use crate::deliver::{self, Config};
use crate::detect::{Engine, EngineCell};
use crate::finding::FindingSink;
use crate::pipeline::{Stats, priority::Priority};
use crate::sensor::Sensor;
use crate::supervisor::{LAST_EXIT, RESTARTS};
use crate::workload::cgroup::sees_host;
use crate::workload::kubernetes::Here;
use crate::workload::names::TasksHandle;
use anyhow::Context;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tasuki_api::agent::{AgentKind, Heartbeat, Policy, Usage};
use tasuki_api::coverage::Depth;
use tasuki_api::finding::Finding;
use tokio::sync::{mpsc, watch};

/// Findings between the pipeline and the spool.
const QUEUE: usize = 256;
/// The node agent's own directory, where its definition mounts it.
const STATE: &str = "/var/lib/tasuki";
/// The lock in it.
const TURN: &str = "responds";

/// The version: that of the image where the image names one.
pub(super) fn version() -> String {
    let image = std::env::var("TASUKI_VERSION").ok().filter(|version| !version.is_empty());
    image.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
}

/// What the heartbeat is made from; shared with the pipeline's thread.
pub(super) struct Report {
    sensors: Mutex<Vec<Box<dyn Sensor>>>,
    engine: EngineCell,
    tasks: TasksHandle,
    stats: Arc<Stats>,
    started_at: Timestamp,
    version: String,
    kernel: String,
    prioritised: bool,
    depth: Depth,
    accepted: AtomicBool,
}

impl Report {
    pub fn new(
        sensors: Vec<Box<dyn Sensor>>,
        engine: EngineCell,
        tasks: TasksHandle,
        stats: Arc<Stats>,
        priority: &Priority,
    ) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let depth = sensors.iter().map(|sensor| sensor.depth()).max().unwrap_or(Depth::Network);
        let (started_at, version) = (Timestamp::now(), version());
        let prioritised = priority.refused.is_none();
        Self {
            sensors: Mutex::new(sensors),
            engine,
            tasks,
            stats,
            started_at,
            version,
            kernel,
            prioritised,
            depth,
            accepted: AtomicBool::new(false),
        }
    }

    /// The gateway has taken the agent, or none is needed.
    pub fn accept(&self) {
        self.accepted.store(true, Ordering::Relaxed);
    }

    /// Why the agent does not do its job yet. A gateway that went away later is no reason: what is found
    /// waits for it.
    pub fn ready(&self) -> Result<(), String> {
        let sensors = self.sensors();
        let best = sensors.first().ok_or("the agent is stopping")?;
        if let Some(reason) = best.blind() {
            return Err(format!("sensor {}: {reason}", best.name()));
        }
        match self.accepted.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("the gateway has not taken the agent yet; its log says what it tried".to_owned()),
        }
    }

    fn sensors(&self) -> MutexGuard<'_, Vec<Box<dyn Sensor>>> {
        self.sensors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with the first sensor that has something wrong.
    pub fn problem(&self) -> Option<String> {
        self.sensors().iter().find_map(|sensor| sensor.state().detail)
    }

    /// Lets go of everything that the sensors hold.
    pub fn stop(&self) {
        let mut sensors = self.sensors();
        // The last one first: a sensor may wait for one that was started before it, never for a later one.
        sensors.iter_mut().rev().for_each(|sensor| sensor.stop());
        // Now that nothing is counted any more the sums are exact.
        for family in sensors.iter().flat_map(|sensor| sensor.families()) {
            let counters = family.counters;
            tracing::info!(
                family = family.name,
                seen = counters.seen,
                submitted = counters.submitted,
                filtered = counters.filtered,
                lost = counters.lost(),
                "balance"
            );
        }
        // With the last sensor goes the last sender, and the pipeline ends when it has read all.
        sensors.clear();
    }
}

impl HeartbeatSource for Report {
    fn heartbeat(&self) -> Heartbeat {
        let (states, families): (Vec<_>, Vec<_>) = {
            let sensors = self.sensors();
            let states = sensors.iter().map(|sensor| sensor.state()).collect();
            (states, sensors.iter().flat_map(|sensor| sensor.families()).collect())
        };
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Heartbeat {
            time: Timestamp::now(),
            started_at: self.started_at,
            version: self.version.clone(),
            depth: self.depth,
            kernel: self.kernel.clone(),
            policy: String::new(),
            tasks: self.tasks.tasks(),
            unavailable: self.engine.load().unavailable(&families),
            sensors: states,
            families,
            usage: Usage {
                unnamed_events: read(&self.stats.unnamed) + read(&self.stats.unplaced),
                evictions: read(&self.stats.evictions),
                prioritised: self.prioritised,
                ..usage()
            },
            restarts: std::env::var(RESTARTS).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
            last_exit: std::env::var(LAST_EXIT).ok(),
        }
    }
}

/// Processor time and memory of this process. Zero where /proc cannot be read.
fn usage() -> Usage {
    let stat = procfs::process::Process::myself().and_then(|own| own.stat()).ok();
    let ticks = procfs::ticks_per_second().max(1);
    Usage {
        cpu_ms: stat.as_ref().map_or(0, |stat| (stat.utime + stat.stime) * 1000 / ticks),
        memory_bytes: stat.map_or(0, |stat| stat.rss * procfs::page_size()),
        ..Usage::default()
    }
}

/// Hands findings to the spool's intake.
pub(super) struct Queue(mpsc::Sender<Finding>);

impl FindingSink for Queue {
    fn take(&mut self, finding: Finding) {
        // The intake only writes to the spool, so this waits for a disk at most. It is gone only
        // while everything ends.
        let _ = self.0.blocking_send(finding);
    }
}

/// The way to the gateway, made before the pipeline starts and run after.
pub(super) struct Reporting {
    config: Config,
    queue: mpsc::Receiver<Finding>,
    /// The lock on responses, where several agents may be on the node.
    pub turn: Option<PathBuf>,
}

/// Reads where the gateway is from the environment that the controller gives.
pub(super) fn prepare() -> anyhow::Result<(Queue, Reporting)> {
    let variable = |name: &str| std::env::var(name).ok();
    let base = Path::new(STATE);
    let (kind, state) = match Here::from_env(variable).transpose()? {
        Some(here) => {
            let uid = variable(tasuki_api::kubernetes::env::UID).unwrap_or_default();
            let own = base.is_dir().then(|| deliver::of_pod(base, &uid)).transpose();
            let own = own.with_context(|| format!("{STATE}: the agent's directory cannot be made"))?;
            (deliver::kind(&here), own)
        }
        None if sees_host() => (AgentKind::Node, base.is_dir().then(|| base.to_owned())),
        None => (AgentKind::Sidecar, None),
    };
    let config = Config::from_environment(variable, kind, &version(), state)
        .context("the agent cannot report; `tasuki-agent run --stdout` needs no gateway")?;
    let turn = (kind == AgentKind::Node && base.is_dir()).then(|| base.join(TURN));
    let (sender, queue) = mpsc::channel(QUEUE);
    Ok((Queue(sender), Reporting { config, queue, turn }))
}

impl Reporting {
    /// Reports until SIGTERM or SIGINT, then lets the sensors go, waits for the pipeline by `drain`,
    /// and sends what is left.
    pub fn run(self, report: Arc<Report>, engine: EngineCell, drain: impl FnOnce()) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        runtime.block_on(async {
            let (policies, mut policy) = watch::channel(Arc::new(Policy::default()));
            let delivery = deliver::start(self.config, report.clone(), policies, self.queue)?;
            let following = tokio::spawn(async move {
                while policy.changed().await.is_ok() {
                    let wanted = policy.borrow_and_update().clone();
                    let cell = engine.clone();
                    // Rules are compiled beside the loop that keeps heartbeats going.
                    let _ = tokio::task::spawn_blocking(move || obey(&wanted, &cell)).await;
                }
            });
            let (mut enrolled, taken) = (delivery.enrolled(), report.clone());
            let accepting = tokio::spawn(async move {
                if enrolled.wait_for(|enrolled| *enrolled).await.is_ok() {
                    taken.accept();
                }
            });
            stopped().await?;
            accepting.abort();
            report.stop();
            tokio::task::block_in_place(drain);
            // The supervisor gives two seconds in all.
            let _ = tokio::time::timeout(Duration::from_millis(1200), delivery.stop()).await;
            following.abort();
            Ok(())
        })
    }
}

/// Puts a policy into force, from the next event on. One that cannot be compiled leaves the old one.
fn obey(policy: &Policy, cell: &EngineCell) {
    match Engine::compile(policy) {
        Ok(engine) => {
            for problem in engine.problems() {
                tracing::warn!(kind = problem.kind, reason = problem.reason, "not in force");
            }
            tracing::info!(serial = policy.serial, rules = engine.rules().len(), "policy in force");
            cell.swap(engine);
        }
        Err(error) => tracing::error!(serial = policy.serial, %error, "the policy before it stays in force"),
    }
}

/// Waits for SIGTERM or SIGINT.
pub(super) async fn stopped() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
