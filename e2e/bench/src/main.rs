//! `tasuki-bench`: measures Tasuki on this machine and prints a Markdown table.
//!
//! ```text
//!  tasuki-bench decide sweep ─▶ one file per section ─▶ rows ─▶ table
//!                                   └─▶ `tasuki-bench part …`: the same program as a process of its own
//! ```
//! *Expected flow*: build everything in release, run as root, put the table into docs/benchmarks.md.
//! *Guarantees*: nothing is asserted on time and nothing is written. *Caveats*: figures of a busy
//! machine are noise, so the load average stands beside each.

mod agent;
mod decide;
mod kubernetes;
mod loops;
mod machine;
mod overhead;
mod redis;
mod room;
mod stats;
mod storm;
mod sweep;
mod table;
mod world;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::time::Duration;
use table::{Row, Table};

/// Measures Tasuki on this machine and prints a Markdown table.
///
/// Needs root, for overhead redis-server and redis-tools, and for kubernetes what tools/kubernetes.sh builds. Takes about
/// seven minutes, and as long again and the ten idle minutes for kubernetes.
#[derive(Parser)]
#[command(name = "tasuki-bench", version)]
struct Arguments {
    /// What to measure; everything where nothing is named.
    #[arg(value_enum, value_name = "SECTION")]
    sections: Vec<Section>,
    /// Fewer rounds and a smaller fleet: shows that it runs, not how fast.
    #[arg(long)]
    quick: bool,
    /// How long the cluster of `kubernetes` is watched while nothing happens, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    idle: u64,
}

/// One part of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Deciding over 100 000 tasks.
    Decide,
    /// Reading 100 000 tasks from ECS.
    Sweep,
    /// From exec to the stored finding, in the demo's world.
    Latency,
    /// What agents with nothing to do take, in the demo's world.
    Idle,
    /// What other programs pay.
    Overhead,
    /// Both cores full of fork and exec.
    Storm,
    /// A cluster of a thousand claimed nodes.
    Kubernetes,
}

impl Section {
    fn name(self) -> &'static str {
        match self {
            Self::Decide => "decide",
            Self::Sweep => "sweep",
            Self::Latency => "latency",
            Self::Idle => "idle",
            Self::Overhead => "overhead",
            Self::Storm => "storm",
            Self::Kubernetes => "kubernetes",
        }
    }
}

fn main() -> ExitCode {
    // rustls panics where two providers could be meant; an error means that one is installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.split_first() {
        Some((first, rest)) if first == "part" => part(rest).map(|()| true),
        _ => measure(&Arguments::parse()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tasuki-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the sections; false where one could not be measured.
fn measure(arguments: &Arguments) -> Result<bool> {
    let all = Section::value_variants();
    let sections = if arguments.sections.is_empty() { all } else { &arguments.sections[..] };
    let has = |section| sections.contains(&section);
    let runtime = tokio::runtime::Runtime::new()?;
    let mut table = Table::start();
    let mut whole = true;
    let mut take = |names: &[Section], rows: Result<Vec<Row>>| {
        let name = names.iter().map(|section| section.name()).collect::<Vec<_>>().join(", ");
        match rows {
            Ok(rows) => table.extend(rows),
            Err(error) => {
                whole = false;
                table.extend(vec![Row::failed(&name, &error)]);
            }
        }
    };
    let quick = arguments.quick;
    if has(Section::Decide) {
        take(&[Section::Decide], decide::measure(quick));
    }
    if has(Section::Sweep) {
        take(&[Section::Sweep], sweep::measure(quick));
    }
    if has(Section::Overhead) {
        take(&[Section::Overhead], overhead::measure(quick));
    }
    if has(Section::Storm) {
        take(&[Section::Storm], runtime.block_on(or_interrupted(storm::measure(quick))));
    }
    // One world serves both: it takes longer to build than to measure.
    let lived: Vec<_> = [Section::Latency, Section::Idle].into_iter().filter(|section| has(*section)).collect();
    if !lived.is_empty() {
        take(
            &lived,
            runtime.block_on(or_interrupted(world::measure(has(Section::Latency), has(Section::Idle), quick))),
        );
    }
    if has(Section::Kubernetes) {
        let idle = Duration::from_secs(arguments.idle);
        let mut rows = Vec::new();
        let done = runtime.block_on(or_interrupted(Box::pin(kubernetes::measure(quick, idle, &mut rows))));
        take(&[Section::Kubernetes], Ok(rows));
        if let Err(error) = done {
            take(&[Section::Kubernetes], Err(error));
        }
    }
    println!("{table}");
    Ok(whole)
}

/// Drops the work on Ctrl-C or SIGTERM, and with it ends all that it started.
async fn or_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => bail!("interrupted by Ctrl-C"),
        _ = terminate.recv() => bail!("interrupted by SIGTERM"),
    }
}

/// What this program does as a process of its own, so that memory and processor time are only its.
fn part(words: &[String]) -> Result<()> {
    let (name, rest) = words.split_first().context("part: which one?")?;
    let number = |at: usize| -> Result<usize> {
        rest.get(at).and_then(|text| text.parse().ok()).with_context(|| format!("part {name}: number {at} is missing"))
    };
    let answer = match name.as_str() {
        "decide" => decide::part(number(0)?, number(1)?)?,
        "cloud" => return sweep::cloud(number(0)?, number(1)?),
        "controller" => sweep::controller(rest.first().context("part controller: no endpoint")?)?,
        "loops" => loops::part(number(0)?, number(1)?)?,
        other => bail!("part {other}: there is none of this name"),
    };
    println!("{answer}");
    Ok(())
}
