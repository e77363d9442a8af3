//! `tasuki-agent run`.

use super::Exit;
use super::report::{self, Report};
use crate::detect::{Engine, EngineCell};
use crate::finding::turn::Turn;
use crate::finding::{FindingSink, StdoutSink};
use crate::health;
use crate::memory;
use crate::pipeline::priority::{self, Priority};
use crate::pipeline::{Pipeline, oom, world::World};
use crate::sensor::replay::{self, Recorder};
use crate::sensor::select::{self, Choice, SensorOptions};
use crate::workload::cgroup::sees_host;
use crate::workload::{Source, host};
use anyhow::Context;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tasuki_api::agent::{Policy, env};
use tasuki_api::finding::Agent;

pub(super) const EXAMPLES: &str = "\
Examples:
  tasuki-agent run --stdout                              needs no controller: findings as JSON lines
  tasuki-agent run --stdout --record events.jsonl        also keep every event, to try rules on later
  tasuki-agent run --stdout --events events.jsonl        find in a recording what would be found today
  tasuki-agent run --stdout --policy policy.json         with your own rules and threat lists

Standard output has findings only, one JSON object a line; everything else goes to standard error.";

/// Batches that wait for the pipeline. A sensor blocks when there are more, and then its kernel
/// buffer fills, where loss is counted.
const QUEUE: usize = 64;

#[derive(clap::Args)]
pub(super) struct Run {
    /// Print findings on standard output instead of sending them to a gateway.
    #[arg(long)]
    stdout: bool,
    /// How to see.
    #[arg(long, value_enum, env = env::SENSOR, default_value = "auto")]
    sensor: Choice,
    /// Keep every event in this file, as JSON lines.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Play this recording instead of watching the machine.
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Rules, lists and responses to obey, as JSON or YAML.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl Run {
    pub(super) fn main(self) -> anyhow::Result<Exit> {
        logging();
        let policy = policy(self.policy.as_deref())?;
        let engine = Engine::compile(&policy)?;
        for problem in engine.problems() {
            tracing::warn!(kind = problem.kind, reason = problem.reason, "not in force");
        }
        let replaying = self.events.is_some() || self.sensor == Choice::Replay;
        let options = SensorOptions {
            events: self.events.clone(),
            families: engine.families(),
            memory_mib: std::env::var(env::MEMORY_MIB).ok().and_then(|text| text.parse().ok()),
        };
        if !replaying
            && sees_host()
            && let Err(refused) = host::join_cgroup_namespace()
        {
            tracing::warn!(
                refused,
                "the host's cgroup namespace is closed to the agent; some events will lack their container"
            );
        }
        let source = Source::from_env()?;
        if !replaying && matches!(source, Source::Kubernetes(_)) {
            let (score, refused) = oom::spare();
            tracing::info!(score, refused, "out-of-memory score");
        }
        let mut world = match &self.events {
            Some(path) => replay::world(path)?,
            None => World::live(source).context("starting the agent's threads")?,
        };
        let got = if replaying { Priority { nice: 0, autogroup: false, refused: None } } else { priority::raise() };
        tracing::info!(nice = got.nice, autogroup = got.autogroup, refused = got.refused, "scheduling priority");
        let (output, events) = std::sync::mpsc::sync_channel(QUEUE);
        let started = select::start(self.sensor, &options, output)?;
        for note in &started.notes {
            tracing::info!(reason = note, "no better sensor");
        }
        let best = started.sensors.first().context("no sensor was started")?;
        if !replaying && best.name() != "ebpf" {
            world.asks_who_listens();
        }
        let agent = Agent { version: report::version(), depth: best.depth(), sensor: best.name().to_owned() };
        memory::give_back();
        tracing::info!(sensor = agent.sensor, rules = engine.rules().len(), "watching");
        let families: Vec<_> = started.sensors.iter().flat_map(|sensor| sensor.families()).collect();
        for missing in engine.unavailable(&families) {
            tracing::debug!(kind = missing.kind, reason = missing.reason, "unavailable");
        }
        let seed = if replaying { 0 } else { rand::random() };
        let (sink, reporting): (Box<dyn FindingSink>, _) = if self.stdout || replaying {
            (Box::new(StdoutSink::new(std::io::stdout())), None)
        } else {
            let (queue, reporting) = report::prepare()?;
            (Box::new(queue), Some(reporting))
        };
        let recorder = self.record.as_deref().map(|path| create(path, &world)).transpose()?;
        let (engine, tasks) = (EngineCell::new(engine), world.tasks_handle());
        let mut pipeline = Pipeline::new(world, engine.clone(), agent, sink, seed);
        if let Some(recorder) = recorder {
            pipeline = pipeline.with_recorder(recorder);
        }
        if let Some(path) = reporting.as_ref().and_then(|reporting| reporting.turn.clone()) {
            pipeline = pipeline.in_turn(Turn::new(path));
        }
        let stats = pipeline.stats();
        let worker = std::thread::Builder::new().name("pipeline".into()).spawn(move || pipeline.run(&events))?;
        let report = Arc::new(Report::new(started.sensors, engine.clone(), tasks, stats.clone(), &got));
        if !replaying {
            let asked = report.clone();
            if let Err(error) = health::serve(move || asked.ready()) {
                tracing::warn!(%error, "`tasuki-agent healthy` will get no answer");
            }
        }
        let mut worker = Some(worker);
        let mut whole = true;
        let mut drain = || whole = worker.take().is_none_or(|worker| worker.join().is_ok());
        match reporting {
            Some(reporting) => reporting.run(report.clone(), engine, &mut drain)?,
            None => {
                report.accept();
                if !replaying {
                    until_stopped()?;
                    report.stop();
                }
                drain();
            }
        }
        anyhow::ensure!(whole, "the pipeline ended unexpectedly; please report it with its log");
        let problem = report.problem();
        tracing::info!(stats = ?stats, "stopped");
        match problem.filter(|_| replaying) {
            Some(problem) => anyhow::bail!("{problem}"),
            None => Ok(Exit::Good),
        }
    }
}

fn create(path: &Path, world: &World) -> anyhow::Result<Recorder> {
    Recorder::create(path, world).with_context(|| format!("{}: cannot be made", path.display()))
}

/// A policy from a file, or the default one.
pub(super) fn policy(path: Option<&Path>) -> anyhow::Result<Policy> {
    let Some(path) = path else { return Ok(Policy::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    // JSON is YAML, so one reader serves both.
    serde_yaml::from_str(&text).with_context(|| format!("{}: is no policy", path.display()))
}

/// Log lines go to standard error, which `RUST_LOG` chooses among.
pub(super) fn logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Fails only if a subscriber was set already, and then that one is used.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
}

/// Waits for SIGTERM or SIGINT.
fn until_stopped() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(report::stopped())
}
