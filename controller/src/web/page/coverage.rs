//! Coverage: the clusters, one cluster's tasks, the facts behind one verdict.

use super::html::{address, table, text, time};
use crate::engine::{ClusterView, Explanation, View};
use crate::text::{many, percent, short_arn};
use jiff::Timestamp;
use std::collections::BTreeMap;
use tasuki_api::coverage::{Reason, TaskCoverage, Verdict};

/// Tasks of one page; more are counted, and named by the command line.
const MAX_ROWS: usize = 1000;

pub fn overview(view: &View, now: Timestamp) -> String {
    let c = &view.counts;
    let live = view.live_ratio.map_or("nothing is selected".to_owned(), |ratio| format!("{} live", percent(ratio)));
    let minutes = view.minutes_ratio.map(|r| format!(" · {} of task-minutes in 24 h", percent(r))).unwrap_or_default();
    let mut out = format!("<p class=\"headline\">{live}{minutes}</p>\n");
    out += &format!(
        "<p>{}: {} covered, {} starting, {} unhealthy, {} uncovered, {} missed, {} excluded</p>\n",
        many(c.total, "task"),
        c.covered,
        c.starting,
        c.unhealthy,
        c.uncovered,
        c.missed,
        c.excluded
    );
    if view.frozen {
        out +=
            "<p class=\"bad\" role=\"status\">Frozen: nothing is changed until <code>tasuki freeze --off</code>.</p>\n";
    }
    if !view.problems.is_empty() {
        let n = many(view.problems.len() as u64, "problem");
        out += &format!("<p class=\"bad\"><a href=\"/configuration\">{n} in the desired state</a></p>\n");
    }
    let rows: Vec<Vec<String>> = view.clusters.iter().map(|cluster| row(view, cluster)).collect();
    if !rows.is_empty() {
        out += &table(
            "Clusters",
            &["Cluster", "Scope", "Placement", "Tasks", "Covered", "Depth", "Agent", "Not covered"],
            &rows,
        );
    }
    out += &reasons(view);
    let scopes: Vec<Vec<String>> = view
        .scopes
        .iter()
        .map(|scope| {
            let age = |at: Option<Timestamp>| at.map_or("never".to_owned(), |at| time(at, now));
            let denied: Vec<String> = scope.denied.iter().map(|denied| text(denied)).collect();
            vec![
                text(&scope.scope),
                age(scope.swept_at),
                age(scope.event_at),
                scope.throttled.to_string(),
                denied.join("<br>"),
            ]
        })
        .collect();
    if !scopes.is_empty() {
        out +=
            &table("Scopes", &["Scope", "Last full sweep", "Last event", "Throttled calls", "Refused calls"], &scopes);
    }
    out
}

fn row(view: &View, cluster: &ClusterView) -> Vec<String> {
    let mut open: BTreeMap<Reason, u64> = BTreeMap::new();
    for task in view.tasks.iter().filter(|task| is_of(task, cluster) && is_open(task.verdict)) {
        if let Some(reason) = task.reason {
            *open.entry(reason).or_default() += 1;
        }
    }
    let open: Vec<String> = open.iter().map(|(reason, n)| format!("{n} {}", reason.name())).collect();
    let placements: Vec<String> = cluster.placements.iter().map(|p| format!("{p:?}")).collect();
    let versions: Vec<String> = cluster.versions.iter().map(|(version, n)| format!("{} ×{n}", text(version))).collect();
    vec![
        format!("<a href=\"/clusters/{}\">{}</a>", address(&cluster.arn), text(&cluster.name)),
        text(&cluster.scope),
        placements.join(", "),
        cluster.counts.total.to_string(),
        cluster.counts.live_ratio().map_or("–".to_owned(), percent),
        cluster.depth.map_or("–".to_owned(), |depth| format!("{depth:?}")),
        versions.join(", "),
        if open.is_empty() { "–".to_owned() } else { open.join(", ") },
    ]
}

/// Two accounts may have clusters of one name.
fn is_of(task: &TaskCoverage, cluster: &ClusterView) -> bool {
    task.cluster == cluster.name && task.scope == cluster.scope
}

fn is_open(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Unhealthy | Verdict::Uncovered | Verdict::Missed)
}

fn reasons(view: &View) -> String {
    let mut groups: BTreeMap<(Verdict, Reason), Vec<&TaskCoverage>> = BTreeMap::new();
    for task in view.tasks.iter().filter(|task| is_open(task.verdict)) {
        if let Some(reason) = task.reason {
            groups.entry((task.verdict, reason)).or_default().push(task);
        }
    }
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|((verdict, reason), tasks)| {
            let example = tasks[0];
            vec![
                reason.name().to_owned(),
                format!("{verdict:?}"),
                tasks.len().to_string(),
                format!("{} {}", link(example), text(example.detail.as_deref().unwrap_or(reason.explanation()))),
                text(example.next_step.as_deref().unwrap_or(reason.next_step())),
            ]
        })
        .collect();
    if rows.is_empty() {
        String::new()
    } else {
        table("Not covered, by reason", &["Reason", "Verdict", "Tasks", "For example", "Next step"], &rows)
    }
}

fn link(task: &TaskCoverage) -> String {
    format!("<a href=\"/explain?task={}\">{}</a>", address(&task.task), text(short_arn(&task.task)))
}

/// One cluster's tasks, by workload; `None` where there is no such cluster.
pub fn cluster(view: &View, arn: &str, now: Timestamp) -> Option<String> {
    let cluster = view.clusters.iter().find(|cluster| cluster.arn == arn)?;
    let mut tasks: Vec<&TaskCoverage> = view.tasks.iter().filter(|task| is_of(task, cluster)).collect();
    tasks.sort_by(|a, b| (!is_open(a.verdict), &a.workload, &a.task).cmp(&(!is_open(b.verdict), &b.workload, &b.task)));
    let mut out = format!("<p><span class=\"mono\">{}</span></p>\n", text(&cluster.arn));
    if tasks.len() > MAX_ROWS {
        out += &format!(
            "<p>The first {MAX_ROWS} of {} tasks; <code>tasuki coverage -o json</code> has them all.</p>\n",
            tasks.len()
        );
    }
    let rows: Vec<Vec<String>> = tasks
        .iter()
        .take(MAX_ROWS)
        .map(|task| {
            let class = match task.verdict {
                Verdict::Covered => "good",
                Verdict::Starting | Verdict::Excluded => "wait",
                _ => "bad",
            };
            vec![
                link(task),
                text(short_arn(&task.workload)),
                format!("<span class=\"{class}\">{:?}</span> {}", task.verdict, task.reason.map_or("", Reason::name)),
                task.depth.map_or("–".to_owned(), |depth| format!("{depth:?}")),
                format!(
                    "{} {}",
                    text(task.agent_version.as_deref().unwrap_or("–")),
                    task.currency.map_or(String::new(), |c| format!("{c:?}"))
                ),
                time(task.since, now),
            ]
        })
        .collect();
    Some(out + &table("Tasks", &["Task", "Workload", "Verdict", "Depth", "Agent", "Since"], &rows))
}

/// The facts behind one verdict.
pub fn explanation(explanation: &Explanation, now: Timestamp) -> String {
    let c = &explanation.coverage;
    let mut out = format!(
        "<p class=\"headline\">{:?} {}</p>\n<dl><dt>Task</dt><dd class=\"mono\">{}</dd><dt>Workload</dt><dd>{}</dd><dt>Cluster</dt><dd>{} ({})</dd><dt>Since</dt><dd>{}</dd></dl>\n",
        c.verdict,
        c.reason.map_or("", Reason::name),
        text(&c.task),
        text(&c.workload),
        text(&c.cluster),
        text(&c.scope),
        time(c.since, now)
    );
    out += "<h2>Facts, in the order in which they were judged</h2>\n<ol>\n";
    for fact in &explanation.facts {
        let age = fact.at.map(|at| format!(", {}", time(at, now))).unwrap_or_default();
        out += &format!("<li>{} ({}{age})</li>\n", text(&fact.text), text(&fact.source));
    }
    out += "</ol>\n";
    if let Some(detail) = &c.detail {
        out += &format!("<h2>Why</h2>\n<p>{}</p>\n", text(detail));
    }
    if let Some(next) = c.next_step.as_deref().or(c.reason.map(Reason::next_step)) {
        out += &format!("<h2>Next step</h2>\n<p>{}</p>\n", text(next));
    }
    out
}
