//! What deciding costs: 100 000 tasks in 1 000 clusters, in full and for one change.
//!
//! `cargo run --release -p tasuki-core --example decide_cost [TASKS] [CLUSTERS]`. The figures that
//! count are `tasuki-bench decide`'s; this builds in a minute and is there to profile.

mod synthetic;

use jiff::Timestamp;
use std::time::{Duration, Instant};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (tasks, clusters) = (numbers.next().unwrap_or(100_000), numbers.next().unwrap_or(1_000));
    let now = Timestamp::now();
    let began = Instant::now();
    let mut fleet = synthetic::fleet(tasks, clusters, now);
    println!(
        "{} tasks, {} agents, {clusters} clusters; filled in {:?}, {} MiB resident",
        fleet.task_count(),
        fleet.agent_count(),
        began.elapsed(),
        resident()
    );
    let mut decider = synthetic::decider();
    let first = time(1, || drop(decider.decide_all(&fleet, now)));
    println!("first decision {first:?}, {} MiB resident", resident());
    let full = time(21, || drop(decider.decide_all(&fleet, now)));
    println!("full decision, median of 21: {full:?}");
    println!("{:?}", decider.tally().counts(None));
    for kind in ["task", "heartbeat", "service", "node"] {
        let (mut apply, mut decide) = (Vec::new(), Vec::new());
        for turn in 0..2_000 {
            let change = synthetic::change(kind, turn % clusters, 100 + turn, tasks / clusters, now);
            let start = Instant::now();
            let applied = fleet.apply(change, now);
            apply.push(start.elapsed());
            let start = Instant::now();
            drop(decider.decide(&fleet, &applied, now));
            decide.push(start.elapsed());
        }
        let high = percentile(&mut decide, 99);
        println!(
            "one {kind}: apply {:?}, decide {:?} (p99 {high:?})",
            percentile(&mut apply, 50),
            percentile(&mut decide, 50)
        );
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

fn time(rounds: usize, mut work: impl FnMut()) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    percentile(&mut times, 50)
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}
