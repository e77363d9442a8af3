//! Deciding: 100 000 tasks in 1 000 clusters, in full and for one change.

use crate::machine;
use crate::stats::{median, percentile};
use crate::table::Row;
use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Instant;
use tasuki_core::decide::Decider;
use tasuki_core::fleet::{Applied, Change, Fleet};

// One fleet for this and for the crate's own example, which profiles it.
#[path = "../../../controller/core/examples/decide_cost/synthetic.rs"]
mod synthetic;

const SECTION: &str = "decide";
/// Changes of each kind.
const CHANGES: usize = 2_000;
/// Full decisions.
const ROUNDS: usize = 21;

/// Runs [`part`] as a process of its own.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let (tasks, clusters) = if quick { ("5000", "50") } else { ("100000", "1000") };
    let answer = machine::answer(machine::part(&["decide", tasks, clusters])?)?;
    let get = |name: &str| machine::number(&answer, name);
    let mut rows = vec![
        Row::within(
            SECTION,
            &format!("full decision, {tasks} tasks in {clusters} clusters, median"),
            get("full_ms")?,
            "ms",
            50.0,
        ),
        Row::noted(SECTION, "the first one, nothing decided before", &format!("{:.0} ms", get("first_ms")?)),
    ];
    for (name, what) in KINDS {
        let (middle, high) = (get(&format!("{name}_us"))?, get(&format!("{name}_p99_us"))?);
        rows.push(Row::within(SECTION, &format!("one change: {what}, median"), middle, "µs", 50.0));
        rows.push(Row::noted(SECTION, &format!("one change: {what}, p99"), &format!("{high:.1} µs")));
    }
    rows.push(Row::noted(SECTION, "resident, fleet and verdicts", &format!("{:.0} MiB", get("resident_mib")?)));
    Ok(rows)
}

/// Kinds of change: name in the answer, name for people.
const KINDS: [(&str, &str); 4] = [
    ("task", "a task"),
    ("heartbeat", "a node's heartbeat that says nothing new"),
    ("service", "a service"),
    ("node", "a node, which has its own tasks decided"),
];

/// Fills a fleet and decides over it.
pub fn part(tasks: usize, clusters: usize) -> Result<Value> {
    ensure!(clusters > 0 && tasks >= clusters, "at least one cluster, and a task in each");
    let now = Timestamp::now();
    let mut fleet = synthetic::fleet(tasks, clusters, now);
    let mut decider = synthetic::decider();
    let ms = |began: Instant| began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    drop(decider.decide_all(&fleet, now));
    let first = ms(began);
    let full: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            drop(decider.decide_all(&fleet, now));
            ms(began)
        })
        .collect();
    let mut answer = json!({
        "first_ms": first,
        "full_ms": median(&full),
        "resident_mib": machine::resident(std::process::id())?,
    });
    for (name, _) in KINDS {
        let changes = (0..CHANGES).map(|turn| {
            let (cluster, version) = (turn % clusters, 100 + turn);
            synthetic::change(name, cluster, version, tasks / clusters, now)
        });
        let times = one_by_one(&mut decider, &mut fleet, changes, now);
        answer[format!("{name}_us")] = json!(median(&times));
        answer[format!("{name}_p99_us")] = json!(percentile(&times, 99));
    }
    Ok(answer)
}

fn one_by_one(
    decider: &mut Decider,
    fleet: &mut Fleet,
    changes: impl Iterator<Item = Change>,
    now: Timestamp,
) -> Vec<f64> {
    let mut times = Vec::new();
    for change in changes {
        let applied: Applied = fleet.apply(change, now);
        let began = Instant::now();
        drop(decider.decide(fleet, &applied, now));
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times
}
