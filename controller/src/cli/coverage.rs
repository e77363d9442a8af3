//! `tasuki coverage`: what is not watched, and what do I do about it?

use super::client::{AskError, Client};
use super::exit::Exit;
use super::table::{fixed, number, render, text};
use super::terminal::Terminal;
use super::{Output, Watch};
use crate::engine::{ClusterView, View};
use crate::text::{escape, escape_to, many, percent, short_arn};
use jiff::Timestamp;
use std::collections::BTreeMap;
use tasuki_api::coverage::{Counts, Reason, TaskCoverage, Verdict};

/// Arguments of `tasuki coverage`.
#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  tasuki coverage\n  tasuki coverage --cluster 'shop-*' --reason WouldInterrupt\n  tasuki coverage -o json | jq '.tasks[] | select(.verdict == \"Uncovered\") | .task'\n\nExit: 0 all selected tasks are covered or starting, 1 some are not, 2 could not tell."
)]
pub struct CoverageArgs {
    /// Only clusters of this name (`*` and `?`)
    #[arg(long)]
    pub cluster: Option<String>,
    /// Only tasks with this reason
    #[arg(long)]
    pub reason: Option<String>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
    /// Repeat
    #[command(flatten)]
    pub watch: Watch,
}

/// Asks and shows once.
pub async fn once(args: &CoverageArgs, client: &Client, terminal: Terminal) -> Result<(String, Exit), AskError> {
    let mut query = Vec::new();
    query.extend(args.cluster.clone().map(|cluster| ("cluster", cluster)));
    if let Some(reason) = &args.reason {
        query.push(("reason", super::explain::reason(reason).map(Reason::name).unwrap_or(reason).to_owned()));
    }
    let view: View = client.get("coverage", &query).await?;
    let exit = exit(&view);
    let text = match args.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&view).unwrap_or_default()),
        output => screen(&view, output == Output::Wide, terminal, Timestamp::now()),
    };
    Ok((text, exit))
}

/// 0 all selected tasks are covered or starting; 1 some are not; 2 could not tell.
pub fn exit(view: &View) -> Exit {
    let counts = &view.counts;
    match view.at {
        None => Exit::Unknown,
        Some(_) if counts.unhealthy + counts.uncovered + counts.missed > 0 => Exit::Bad,
        Some(_) if counts.covered + counts.starting == 0 => Exit::Unknown,
        Some(_) => Exit::Good,
    }
}

/// The whole screen.
pub fn screen(view: &View, wide: bool, terminal: Terminal, now: Timestamp) -> String {
    let Some(at) = view.at else {
        return "COVERAGE  not known yet: the first full sweep is still under way\n".to_owned();
    };
    let mut out = headline(view, terminal);
    let old = now.as_second() - at.as_second();
    if old > 60 {
        out += &format!("as of {}; the controller has not judged since\n", crate::text::ago(at, now));
    }
    if view.counts.total == view.counts.excluded {
        out += "no monitor selects any task; `tasuki check DIR` says what is selected\n";
    }
    if view.frozen {
        out += "FROZEN: nothing is changed until `tasuki freeze --off`\n";
    }
    if !view.problems.is_empty() {
        let n = view.problems.len() as u64;
        out += &format!("{} in the desired state: see `tasuki check DIR`\n", many(n, "problem"));
    }
    for scope in view.scopes.iter().filter(|scope| !scope.denied.is_empty()) {
        let first = escape_to(&scope.denied[0], terminal.width.saturating_sub(40));
        out += &format!("{}: {} refused: {first}\n", scope.scope, many(scope.denied.len() as u64, "call"));
    }
    if !view.clusters.is_empty() {
        out += &clusters(view, wide, terminal);
    }
    for cluster in &view.clusters {
        if let Some((rollout, why)) = cluster.rollout.as_ref().and_then(|of| Some((of, of.why.as_ref()?))) {
            let (version, what) = (escape(&rollout.version), rollout.standing());
            out += &format!("{}: the rollout of {version} {what}: {}\n", name(view, cluster), escape(why));
        }
        let Some(failed) = &cluster.failed else { continue };
        out += &format!(
            "{}: {} failed {} and is not tried again: {}\n  → name another version, or `tasuki rollout retry {}`\n",
            name(view, cluster),
            escape(&failed.version),
            crate::text::ago(failed.at, now),
            escape(&failed.why),
            escape(&cluster.name)
        );
    }
    out + &reasons(&view.tasks, terminal)
}

fn headline(view: &View, terminal: Terminal) -> String {
    let c = &view.counts;
    let live = view.live_ratio.map_or("nothing selected".to_owned(), |ratio| format!("{} live", percent(ratio)));
    let minutes = view.minutes_ratio.map(|ratio| format!(" · {} of task-minutes in 24 h", percent(ratio)));
    let left = format!("COVERAGE  {live}{}", minutes.unwrap_or_default());
    let right = format!(
        "{}  {} covered  {} starting  {} unhealthy  {} uncovered  {} missed  {} excluded",
        many(c.total, "task"),
        c.covered,
        c.starting,
        c.unhealthy,
        c.uncovered,
        c.missed,
        c.excluded
    );
    let gap = terminal.width.saturating_sub(left.chars().count() + right.chars().count());
    match gap {
        0..2 => format!("{left}\n          {right}\n"),
        gap => format!("{left}{}{right}\n", " ".repeat(gap.min(10))),
    }
}

fn clusters(view: &View, wide: bool, terminal: Terminal) -> String {
    let mut reasons: BTreeMap<(&str, &str), BTreeMap<Reason, u64>> = BTreeMap::new();
    for task in &view.tasks {
        if let (Some(reason), true) = (task.reason, is_open(task.verdict)) {
            *reasons.entry((&task.scope, &task.cluster)).or_default().entry(reason).or_default() += 1;
        }
    }
    let row = |cluster: &ClusterView| {
        let open = reasons.get(&(cluster.scope.as_str(), cluster.name.as_str())).map(|reasons| {
            let mut sorted: Vec<_> = reasons.iter().collect();
            sorted.sort_by(|a, b| b.1.cmp(a.1));
            sorted.iter().map(|(reason, n)| format!("{n} {}", reason.name())).collect::<Vec<_>>().join(", ")
        });
        let placements: Vec<String> = cluster.placements.iter().map(|placement| format!("{placement:?}")).collect();
        let mut row = vec![
            name(view, cluster),
            dash(placements.join(", ")),
            cluster.counts.total.to_string(),
            cluster.counts.live_ratio().map_or("–".to_owned(), percent),
            cluster.depth.map_or("–".to_owned(), |depth| format!("{depth:?}")),
            currency(cluster),
            dash(open.unwrap_or_default()),
        ];
        if wide {
            row.insert(1, escape(&cluster.scope));
        }
        row
    };
    let mut columns = vec![
        fixed("CLUSTER"),
        fixed("PLACEMENT"),
        number("TASKS"),
        number("COVERED"),
        fixed("DEPTH"),
        fixed("CURRENCY"),
        text("NOT COVERED"),
    ];
    if wide {
        columns.insert(1, fixed("SCOPE"));
    }
    render(&columns, view.clusters.iter().map(row).collect(), terminal)
}

/// The name, with its scope before it where two clusters have one name.
fn name(view: &View, cluster: &ClusterView) -> String {
    let twins = view.clusters.iter().filter(|other| other.name == cluster.name).count();
    if twins > 1 { escape(&format!("{}/{}", cluster.scope, cluster.name)) } else { escape(&cluster.name) }
}

fn dash(text: String) -> String {
    if text.is_empty() { "–".to_owned() } else { text }
}

/// `1.4.2 ✓`, or `1.4.1 → 12 %` while it is on its way.
fn currency(cluster: &ClusterView) -> String {
    let all: u64 = cluster.versions.iter().map(|(_, n)| n).sum();
    let Some(wanted) = &cluster.wanted_version else {
        return cluster.versions.iter().max_by_key(|(_, n)| n).map_or("–".to_owned(), |(v, _)| escape(v));
    };
    let new: u64 = cluster.versions.iter().filter(|(version, _)| version == wanted).map(|(_, n)| n).sum();
    match all {
        0 => "–".to_owned(),
        _ if new == all => format!("{} ✓", escape(wanted)),
        _ => {
            let old = cluster.versions.iter().filter(|(v, _)| v != wanted).max_by_key(|(_, n)| n);
            let old = old.map(|(version, _)| escape(version)).unwrap_or_default();
            format!("{old} → {}", percent(new as f64 / all as f64))
        }
    }
}

fn is_open(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Unhealthy | Verdict::Uncovered | Verdict::Missed)
}

/// One line a reason: how many, an example, and the one next step.
fn reasons(tasks: &[TaskCoverage], terminal: Terminal) -> String {
    let mut groups: BTreeMap<(Verdict, Reason), Vec<&TaskCoverage>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| is_open(task.verdict)) {
        if let Some(reason) = task.reason {
            groups.entry((task.verdict, reason)).or_default().push(task);
        }
    }
    let mut out = String::new();
    for verdict in [Verdict::Uncovered, Verdict::Unhealthy, Verdict::Missed] {
        let mut rows: Vec<(usize, Vec<String>)> = Vec::new();
        for ((_, reason), tasks) in groups.iter().filter(|((v, _), _)| *v == verdict) {
            let example = tasks[0];
            let what = example.detail.as_deref().map_or_else(|| reason.explanation().to_owned(), escape);
            let next = example.next_step.as_deref().map_or_else(|| reason.next_step().to_owned(), escape);
            let place = format!("{}/{}", escape(&example.cluster), escape(short_arn(&example.workload)));
            rows.push((
                tasks.len(),
                vec![
                    format!("  {}", reason.name()),
                    tasks.len().to_string(),
                    format!("{place}: {what}"),
                    format!("→ {next}"),
                ],
            ));
        }
        if rows.is_empty() {
            continue;
        }
        rows.sort_by(|a, b| b.0.cmp(&a.0).then(a.1[0].cmp(&b.1[0])));
        let sum: usize = rows.iter().map(|(n, _)| n).sum();
        let name = format!("{verdict:?}").to_lowercase();
        out += &format!("\n{sum} {name}, by reason (`tasuki explain REASON|TASK` for more)\n");
        let columns = [fixed("  REASON"), number("TASKS"), text("FOR EXAMPLE"), text("NEXT STEP")];
        out += &render(&columns, rows.into_iter().map(|(_, row)| row).collect(), terminal);
    }
    out
}

/// Counts over the tasks that a filter left.
pub fn counts(tasks: &[TaskCoverage]) -> Counts {
    let mut counts = Counts::default();
    tasks.iter().for_each(|task| counts.add(task.verdict));
    counts
}
