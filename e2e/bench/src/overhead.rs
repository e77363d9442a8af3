//! What other programs pay: the same work with the agent and without it, in interleaved pairs.
//!
//! Each pair runs in the opposite order of the one before, so that a machine that warms up or tires
//! favours neither; the figure is the median of the pairs' ratios.

use crate::agent::Agent;
use crate::loops;
use crate::machine;
use crate::redis::Redis;
use crate::room::Room;
use crate::stats::median;
use crate::table::Row;
use anyhow::{Context, Result};
use std::process::Command;

const SECTION: &str = "overhead";

/// How much work.
struct Amount {
    /// Pairs of the loops.
    pairs: usize,
    /// Pairs of redis, whose times scatter by more than its budget.
    redis_pairs: usize,
    /// Thousands of system calls in a chunk of a loop.
    scale: usize,
    requests: u32,
}

/// Both sensors.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let amount = if quick {
        Amount { pairs: 2, redis_pairs: 2, scale: 10, requests: 20_000 }
    } else {
        Amount { pairs: 31, redis_pairs: 61, scale: 30, requests: 200_000 }
    };
    let mut rows = of_sensor("ebpf", None, &amount)?;
    let room = Room::open()?;
    rows.extend(of_sensor("ptrace", Some(&room), &amount)?);
    Ok(rows)
}

/// Times of one phase: of each loop, or of redis by wall time and by the server's processor time.
type Times = Vec<f64>;

fn of_sensor(sensor: &str, room: Option<&Room>, amount: &Amount) -> Result<Vec<Row>> {
    let directory = tempfile::Builder::new().prefix("tasuki-bench-").tempdir()?;
    let redis = Redis::start(room)?;
    let start = || Agent::start(sensor, room, directory.path());
    let loops = pairs(amount.pairs, || loops_once(room, amount.scale), start)?;
    let requests = pairs(amount.redis_pairs, || redis_once(room, &redis, amount.requests), start)?;
    let exec = if sensor == "ebpf" { 1.05 } else { 1.35 };
    let figures = [
        ("getppid", Some(1.01), &loops, 0),
        ("read of 1 byte", Some(1.01), &loops, 1),
        ("pipe, 1 byte", Some(1.01), &loops, 2),
        ("fork+exec+exit", Some(exec), &loops, 3),
        ("redis GET, time per request", Some(1.01), &requests, 0),
        ("redis GET, server's processor time", None, &requests, 1),
    ];
    let mut rows = Vec::new();
    for (what, budget, pairs, at) in figures {
        let column = |all: &[Times]| -> Vec<f64> { all.iter().filter_map(|times| times.get(at).copied()).collect() };
        let (on, off) = (column(&pairs.with), column(&pairs.without));
        let ratios: Vec<f64> = on.iter().zip(&off).map(|(on, off)| on / off).collect();
        let ratio = median(&ratios);
        let times = |all: &[f64]| crate::table::with_unit(median(all) / 1e3, "µs");
        let spread = ratios.iter().map(|ratio| (ratio - median(&ratios)).abs()).collect::<Vec<_>>();
        let what = format!(
            "{sensor}: {what} ({} → {}; {} pairs, ratios scatter by ±{:.3})",
            times(&off),
            times(&on),
            ratios.len(),
            median(&spread)
        );
        rows.push(match budget {
            Some(budget) => Row::within(SECTION, &what, ratio, "×", budget),
            None => Row::noted(SECTION, &what, &crate::table::with_unit(ratio, "×")),
        });
    }
    Ok(rows)
}

/// Phases with the agent and without it, by pair.
#[derive(Default)]
struct Pairs {
    with: Vec<Times>,
    without: Vec<Times>,
}

fn pairs(count: usize, phase: impl Fn() -> Result<Times>, agent: impl Fn() -> Result<Agent>) -> Result<Pairs> {
    let with = || -> Result<Times> {
        let agent = agent()?;
        let times = phase();
        drop(agent);
        times
    };
    let mut pairs = Pairs::default();
    for pair in 0..count {
        if pair % 2 == 0 {
            pairs.without.push(phase()?);
            pairs.with.push(with()?);
        } else {
            pairs.with.push(with()?);
            pairs.without.push(phase()?);
        }
    }
    Ok(pairs)
}

/// The core that loops stay on: the last one, away from redis-server.
fn core() -> usize {
    std::thread::available_parallelism().map_or(0, |count| count.get() - 1)
}

fn loops_once(room: Option<&Room>, scale: usize) -> Result<Times> {
    let (core, scale) = (core().to_string(), scale.to_string());
    let command = match room {
        None => machine::part(&["loops", &core, &scale])?,
        Some(room) => {
            let mut command: Command = room.command(machine::own()?);
            command.args(["part", "loops", &core, &scale]);
            command
        }
    };
    loops::times(&machine::answer(command)?).context("the loops")
}

fn redis_once(room: Option<&Room>, redis: &Redis, requests: u32) -> Result<Times> {
    let run = redis.run(room, requests)?;
    Ok(vec![run.request_ns, run.server_ns])
}
