//! A cluster of claimed nodes: how soon coverage is right, how soon a change is told, what is written while nothing
//! happens, and how long a roll of all nodes takes beside the one that Kubernetes itself offers.
//!
//! ```text
//!  API server, etcd, controller manager ◀── KWOK: nodes, and what kubelets would say
//!        ▲                                    agents: the real delivery code, a session each, in this process
//!        └── the controller, a process ◀──────┘
//! ```
//! *Caveats*: all of it shares this machine, so processor time that a cluster would have elsewhere is part of each
//! figure.

mod fill;
mod told;
mod turn;

use crate::machine;
use crate::stats::{median, percentile};
use crate::table::Row;
use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tasuki_e2e_kubernetes::{Agents, Kwok, Options, Release};
use told::Told;

const SECTION: &str = "kubernetes";
/// A controller manager of its own speed places agents on a thousand nodes in a minute or two.
const LIMIT: Duration = Duration::from_secs(600);
/// How often is looked whether something has happened: each look at 10 000 pods costs the controller some milliseconds.
const LOOK: Duration = Duration::from_millis(50);

/// How much of it.
struct Size {
    nodes: usize,
    pods: usize,
    changes: usize,
    idle: Duration,
}

/// Builds the cluster, measures, and takes it down. What was measured before something failed is kept.
pub async fn measure(quick: bool, idle: Duration, rows: &mut Vec<Row>) -> Result<()> {
    let size = match quick {
        true => Size { nodes: 50, pods: 500, changes: 20, idle: Duration::from_secs(20) },
        false => Size { nodes: 1_000, pods: 10_000, changes: 200, idle },
    };
    // Each agent holds a connection, and so does the gateway, a child of this process.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let files = tempfile::Builder::new().prefix("tasuki-bench-").tempdir()?;
    let audit = told::audited(files.path())?;
    let options = Options { apiserver: audit, ..Options::default() };
    let mut release = Release::with(options, &["enforce=true", "defaultMonitor=false"]).await?;
    let mut kwok = Kwok::start(&release.plane).await?;
    let done = in_cluster(&mut release, &mut kwok, &size, files.path(), rows).await;
    let done = done.map_err(|error| match release.controller() {
        Ok(controller) => error.context(controller.log()),
        Err(_) => error,
    });
    drop(kwok);
    done
}

async fn in_cluster(
    release: &mut Release,
    kwok: &mut Kwok,
    size: &Size,
    files: &Path,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let what = |text: &str| format!("{text}, {} nodes, {} pods", size.nodes, size.pods);
    say("nodes and pods");
    let nodes = kwok.nodes("bench", size.nodes, &BTreeMap::new()).await?;
    let client = release.plane.client().await?;
    fill::pods(&client, &nodes, size.pods).await?;
    release.apply(&turn::monitor("0.1.0", "Overlap")).await?;

    say("agents are placed");
    release.start_controller(&Agents::LIMITS).await?;
    let agents = Agents::start(&release.plane, &release.gateway).await?;
    let began = Instant::now();
    covered(release, size).await?;
    let placed = format!("{:.0} s", began.elapsed().as_secs_f64());
    rows.push(Row::noted(SECTION, &what("every pod covered, from no agent's pod at all"), &placed));

    say("the controller starts again, and no agent has a session");
    // With the keys that they had: others would be strangers, who wait.
    agents.mute("0.1.0");
    release.stop_controller();
    rows.extend(from_start(release, size, &agents, "no agent had a session").await?);

    say("the controller starts again, and every agent had a session with the one before");
    release.stop_controller();
    rows.extend(from_start(release, size, &agents, "every agent had one with the controller before").await?);

    say("changes");
    let pid = release.controller()?.process().id();
    let mut told = Told::new(&client, &release.controller()?.web, &nodes);
    let (api, metrics) = told.changes(size.changes).await?;
    for (name, times) in [("`explain`", api), ("metrics and coverage", metrics)] {
        let name = format!("a pod made or deleted → {name} of the controller's API say so");
        let (p50, p99) = (median(&times), percentile(&times, 99));
        rows.push(Row::within(SECTION, &format!("{name}, p50 of {}", times.len()), p50, "s", 1.0));
        rows.push(Row::within(SECTION, &format!("{name}, p99 of {}", times.len()), p99, "s", 1.0));
    }
    let status = told.status(if size.changes > 50 { 6 } else { 2 }).await?;
    let longest = percentile(&status, 100);
    rows.push(Row::within(
        SECTION,
        &format!("… → the monitor's status says so, longest of {}", status.len()),
        longest,
        "s",
        10.0,
    ));

    say("nothing happens");
    // The status follows the last change.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let (before, used) = (told::writes(files)?, machine::processor_seconds(pid)?);
    tokio::time::sleep(size.idle).await;
    let (after, used) = (told::writes(files)?, machine::processor_seconds(pid)? - used);
    let idle = size.idle.as_secs();
    let written = told::difference(&before, &after);
    let others: Vec<_> = written.keys().filter(|what| !told::is_quiet(what)).collect();
    let shown = |all: &BTreeMap<String, u64>| {
        all.iter().map(|(what, count)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
    };
    let what_written = format!("writes of the controller in {idle} idle seconds: {}", shown(&written));
    let count: u64 = others.iter().filter_map(|what| written.get(*what)).sum();
    rows.push(Row::must(SECTION, &what_written, &count.to_string(), "0 but the lease and Events", count == 0));
    let share = format!("{:.1} % of a core", used / size.idle.as_secs_f64() * 100.0);
    rows.push(Row::noted(SECTION, "controller's processor time meanwhile", &share));
    rows.push(Row::within(SECTION, &what("controller's memory"), machine::resident(pid)?, "MiB", 150.0));

    say("a roll of all nodes, old and new agent side by side");
    let width = turn::width(size.nodes);
    let gaps = agents.gaps().len();
    let overlap = turn::ours(release, &agents, size.nodes, ("0.1.0", "0.1.1"), "Overlap").await?;
    let gaps = agents.gaps().len() - gaps;
    say("a roll of all nodes, the old agent first");
    let first = turn::ours(release, &agents, size.nodes, ("0.1.1", "0.1.2"), "DeleteFirst").await?;
    rows.push(Row::within(SECTION, &what("controller's memory at its highest"), machine::peak(pid)?, "MiB", 150.0));
    let simulators = format!("{:.0} MiB", machine::resident(std::process::id())?);
    rows.push(Row::noted(
        SECTION,
        &format!("memory of the measuring process, with {} agents in it", size.nodes),
        &simulators,
    ));
    drop(agents);
    release.stop_controller();
    say("Kubernetes' own roll of a DaemonSet");
    let native = turn::native(release, &client, size.nodes).await?;
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let ratio = |time: Duration| time.as_secs_f64() / native.as_secs_f64();
    let rolled = format!("roll of {} nodes, {width} at once", size.nodes);
    rows.push(Row::noted(SECTION, &format!("{rolled}, native RollingUpdate"), &seconds(native)));
    let name = format!("{rolled}, new agent beside the old one ({}) against native", seconds(overlap.moved));
    rows.push(Row::within(SECTION, &name, ratio(overlap.moved), "×", 1.2));
    rows.push(Row::must(SECTION, "nodes in hand-over without an agent", &gaps.to_string(), "0", gaps == 0));
    rows.push(Row::noted(SECTION, "… until the labels are gone, too", &seconds(overlap.settled)));
    let name = format!("{rolled}, the old agent first ({}) against native", seconds(first.moved));
    rows.push(Row::within(SECTION, &name, ratio(first.moved), "×", 1.0));
    Ok(())
}

fn say(what: &str) {
    eprintln!("   {} {SECTION}: {what}", jiff::Zoned::now().strftime("%H:%M:%S"));
}

/// Waits until every pod is covered.
async fn covered(release: &mut Release, size: &Size) -> Result<u64> {
    let web = release.controller()?.web.clone();
    let deadline = Instant::now() + LIMIT;
    let mut silent = 0;
    loop {
        let tasks = told::tasks(&web).await.unwrap_or_default();
        silent = silent.max(tasks.get("Unhealthy AgentNotReporting").copied().unwrap_or_default());
        if tasks.get("Covered").is_some_and(|covered| *covered as usize >= size.pods) {
            return Ok(silent);
        }
        ensure!(Instant::now() < deadline, "not every pod was covered within {LIMIT:?}: {tasks:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// From the start of the controller's process until coverage is right; agents that were mute speak as soon as they can.
async fn from_start(release: &mut Release, size: &Size, agents: &Agents, what: &str) -> Result<Vec<Row>> {
    let gateway = release.gateway.clone();
    let spoken = async {
        while tokio::net::TcpStream::connect(&gateway).await.is_err() {
            tokio::time::sleep(LOOK).await;
        }
        agents.unmute("0.1.0");
    };
    let (started, ()) = tokio::join!(release.start_controller(&Agents::LIMITS), spoken);
    started?;
    let pid = release.controller()?.process().id();
    let ready = machine::age(pid)?;
    let silent = covered(release, size).await?;
    let seconds = machine::age(pid)?;
    let name = format!("controller's start → coverage right; {what} ({ready:.1} s until it had read everything)");
    let wrong = format!("pods told AgentNotReporting until then; {what}");
    Ok(vec![Row::within(SECTION, &name, seconds, "s", 5.0), Row::noted(SECTION, &wrong, &silent.to_string())])
}
