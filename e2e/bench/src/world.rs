//! In the demo's world: from exec to the stored finding, and what agents with nothing to do take.
//!
//! The agents are those that the controller placed: `ebpf` on the node, `ptrace` in the sidecar.

use crate::machine;
use crate::stats::{median, percentile};
use crate::table::{Row, with_unit};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tasuki_e2e::attack;
use tasuki_e2e::customer::{EC2_CLUSTER, FARGATE_CLUSTER, RunningTask};
use tasuki_e2e::process::until;
use tasuki_e2e::world::World;

/// Long enough for a loaded machine with two cores.
const LIMIT: Duration = Duration::from_secs(180);
/// Container of the agent in a task.
const SIDECAR: &str = "tasuki-agent";
/// What each exec of the measurement is found as.
const KIND: &str = "Execution:Runtime/NewBinaryExecuted";
/// Execs in one request to the application, which has to answer in 30 s.
const BATCH: usize = 40;
/// Milliseconds between two execs: each is a new file to hash, and the agent reads 32 MiB/s.
const PACE_MS: u64 = 60;

/// Builds the world, measures, and takes it down.
pub async fn measure(latency: bool, idle: bool, quick: bool) -> Result<Vec<Row>> {
    let mut world = World::start(|text| eprintln!("   {text}")).await?;
    let rows = in_world(&mut world, latency, idle, quick).await;
    let rows = match rows {
        Ok(rows) => Ok(rows),
        Err(error) => Err(error.context(world.controller_log())),
    };
    world.stop().await;
    rows
}

async fn in_world(world: &mut World, latency: bool, idle: bool, quick: bool) -> Result<Vec<Row>> {
    world.customer.clusters().await?;
    world.customer.workloads(&world.shop).await?;
    let agent = world.agent.clone();
    world.config.monitor("Enforce", &agent)?;
    world.start_controller().await?;
    let mut tasks = Vec::new();
    for (cluster, service) in [(EC2_CLUSTER, "web"), (FARGATE_CLUSTER, "checkout")] {
        let what = format!("{service} is covered");
        until(&what, LIMIT, || async { Ok(covered(&world.json(&["coverage"])?, service).then_some(())) }).await?;
        // While a deployment rolls, the task that is about to go may be the one that is named.
        let stays = |task: &RunningTask| service != "checkout" || task.containers.iter().any(|name| name == SIDECAR);
        let task =
            until(&what, LIMIT, || async { Ok(world.customer.task(cluster, service).await?.filter(stays)) }).await?;
        tasks.push(task);
    }
    let mut rows = Vec::new();
    if idle {
        rows.extend(idle_agents(if quick { 10 } else { 60 }).await?);
    }
    if latency {
        for (sensor, task) in ["ebpf", "ptrace"].into_iter().zip(&tasks) {
            rows.extend(exec_to_store(world, sensor, task, if quick { 40 } else { 200 }).await?);
        }
    }
    Ok(rows)
}

fn covered(coverage: &Value, workload: &str) -> bool {
    // The task of before the deployment is listed as missed for a while.
    let mut tasks = coverage["tasks"].as_array().into_iter().flatten().filter(|task| task["workload"] == workload);
    tasks.any(|task| task["verdict"] == "Covered")
}

/// New binaries executed one by one, each its own finding.
async fn exec_to_store(world: &World, sensor: &str, task: &RunningTask, count: usize) -> Result<Vec<Row>> {
    let mut begun = BTreeMap::new();
    for from in (0..count).step_by(BATCH) {
        let line = format!("/opt/lab/tasuki-lab execs {from} {BATCH} {PACE_MS}");
        let printed = attack::inject(task.address, &line).await?;
        for line in printed.lines() {
            let (path, micros) = line.split_once(' ').with_context(|| format!("execs printed: {printed}"))?;
            begun.insert(path.to_owned(), micros.parse::<i64>()?);
        }
    }
    let wanted = begun.len();
    let found = until("every exec is found", Duration::from_secs(20), || async {
        let found = stored(world, task)?;
        Ok((found.len() >= wanted).then_some(found))
    })
    .await;
    // What is missing is told as a figure, not as a failure of the benchmark.
    let found = found.or_else(|_| stored(world, task))?;
    ensure!(!found.is_empty(), "none of {wanted} execs was found");
    let since = |part: fn(&Found) -> i64| -> Vec<f64> {
        found.iter().filter_map(|(path, found)| Some((part(found) - begun.get(path)?) as f64 / 1e3)).collect()
    };
    let times = since(|found| found.stored);
    let seen = median(&since(|found| found.seen));
    let hashed = found.values().filter(|found| found.hashed).count();
    let section = "latency";
    let what = |which: &str| {
        format!("{sensor}: exec of a new binary → finding stored by the gateway, {which} of {}", times.len())
    };
    let missing = wanted - times.len();
    let (p50, p99) = (median(&times), percentile(&times, 99));
    Ok(vec![
        Row::within(section, &what("p50"), p50, "ms", 20.0),
        Row::within(section, &what("p99"), p99, "ms", 100.0),
        Row::noted(
            section,
            &format!("{sensor}: findings with the program's SHA-256"),
            &format!("{hashed} of {}", found.len()),
        ),
        Row::noted(section, &format!("{sensor}: of it until the hook met the exec, p50"), &with_unit(seen, "ms")),
        Row::must(section, &format!("{sensor}: execs without a finding"), &missing.to_string(), "0", missing == 0),
    ])
}

/// When an exec was met and its finding stored, microseconds since 1970.
struct Found {
    seen: i64,
    stored: i64,
    /// It carries the program's SHA-256.
    hashed: bool,
}

/// Every finding of the kind in a task, by the path of its program.
fn stored(world: &World, task: &RunningTask) -> Result<BTreeMap<String, Found>> {
    let all = world.json(&["findings", "--limit", "1000", "--type", KIND])?;
    let mut found = BTreeMap::new();
    for finding in all.as_array().into_iter().flatten().filter(|finding| finding["resource"]["task"] == *task.arn) {
        let path = finding["process"]["executable"].as_str().unwrap_or_default();
        let time = |field: &str| -> Result<i64> {
            let text = finding[field].as_str().with_context(|| format!("a finding without {field}"))?;
            Ok(text.parse::<Timestamp>()?.as_microsecond())
        };
        let hashed = finding["process"]["sha256"].is_string();
        if path.starts_with("/tmp/execs/") {
            found.insert(path.to_owned(), Found { seen: time("firstSeen")?, stored: time("storedAt")?, hashed });
        }
    }
    Ok(found)
}

/// Processor time and memory of the placed agents, supervisors and watchdogs included.
async fn idle_agents(seconds: u64) -> Result<Vec<Row>> {
    // What was placed a moment ago still reads names and hashes.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let own = namespace(std::process::id());
    let all = machine::running("/tasuki-agent");
    let (nodes, sidecars): (Vec<u32>, Vec<u32>) = all.into_iter().partition(|pid| namespace(*pid) == own);
    ensure!(!nodes.is_empty() && !sidecars.is_empty(), "an agent is missing: node {nodes:?}, sidecar {sidecars:?}");
    let time = |pids: &[u32]| pids.iter().map(|pid| machine::processor_seconds(*pid)).sum::<Result<f64>>();
    let before = (time(&nodes)?, time(&sidecars)?);
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let elapsed = began.elapsed().as_secs_f64();
    let used = (time(&nodes)? - before.0, time(&sidecars)? - before.1);
    let mut rows = Vec::new();
    for (sensor, pids, used) in [("ebpf", nodes, used.0), ("ptrace", sidecars, used.1)] {
        let what = format!("{sensor}: processor over {elapsed:.0} s, share of a core");
        rows.push(Row::within("idle", &what, used / elapsed * 100.0, "%", 0.3));
        let memory: Vec<f64> = pids.iter().map(|pid| machine::resident(*pid)).collect::<Result<_>>()?;
        let largest = memory.iter().copied().fold(0.0, f64::max);
        rows.push(Row::within("idle", &format!("{sensor}: resident, the agent's process"), largest, "MiB", 40.0));
        let sum: f64 = memory.iter().sum();
        let what = format!("{sensor}: resident, its {} processes added up (shared pages count in each)", pids.len());
        rows.push(Row::noted("idle", &what, &format!("{sum:.1} MiB")));
    }
    Ok(rows)
}

fn namespace(pid: u32) -> Option<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}
