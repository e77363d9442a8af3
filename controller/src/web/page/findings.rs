//! Findings: the list, and one with its lineage.

use super::super::api::FindingsQuery;
use super::html::{address, table, text, time};
use crate::store::StoredFinding;
use jiff::Timestamp;
use tasuki_api::finding::Process;

pub fn list(found: &[StoredFinding], query: &FindingsQuery, now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|stored| {
            let f = &stored.finding;
            // place() and what() escape for a terminal; text() makes them safe here.
            vec![
                format!("<a href=\"/findings/{}\">{}</a>", f.id, text(&f.kind)),
                format!("{:?}", f.severity),
                time(f.last_seen, now),
                f.count.to_string(),
                text(&crate::cli::place(f)),
                text(&crate::cli::what(f)),
            ]
        })
        .collect();
    let body = match rows.is_empty() {
        true => "<p>No finding matches.</p>\n".to_owned(),
        false => {
            table("Findings, the newest first", &["Type", "Severity", "Last seen", "Count", "Where", "What"], &rows)
        }
    };
    form(query) + &body
}

fn form(query: &FindingsQuery) -> String {
    let value = |value: &Option<String>| text(value.as_deref().unwrap_or_default());
    let options: String = ["", "Low", "Medium", "High", "Critical"]
        .iter()
        .map(|severity| {
            let selected = if query.severity.as_deref().unwrap_or_default() == *severity { " selected" } else { "" };
            let shown = if severity.is_empty() { "any" } else { severity };
            format!("<option value=\"{severity}\"{selected}>{shown}</option>")
        })
        .collect();
    format!(
        "<form method=\"get\" action=\"/findings\" role=\"search\">\
         <label>At least <select name=\"severity\">{options}</select></label>\
         <label>Type <input name=\"type\" value=\"{}\"></label>\
         <label>Cluster <input name=\"cluster\" value=\"{}\"></label>\
         <label>Since <input name=\"since\" value=\"{}\" placeholder=\"24h\"></label>\
         <button>Filter</button></form>\n",
        value(&query.kind),
        value(&query.cluster),
        value(&query.since)
    )
}

pub fn one(stored: &StoredFinding, now: Timestamp) -> String {
    let f = &stored.finding;
    let mut out =
        format!("<p class=\"headline\">{:?}: {}</p>\n<p>{}</p>\n<dl>", f.severity, text(&f.kind), text(&f.title));
    let mut entry = |name: &str, value: String| {
        if !value.is_empty() {
            out += &format!("<dt>{name}</dt><dd>{value}</dd>");
        }
    };
    entry("Id", f.id.to_string());
    entry("Last seen", time(f.last_seen, now));
    entry("First seen", format!("{}, ×{}", time(f.first_seen, now), f.count));
    let r = &f.resource;
    for (name, value) in [
        ("Account", &r.account),
        ("Region", &r.region),
        ("Cluster", &r.cluster),
        ("Service", &r.service),
        ("Namespace", &r.namespace),
        ("Pod", &r.pod),
        ("Workload", &r.workload),
        ("Task", &r.task),
        ("Task definition", &r.task_definition),
        ("Node", &r.node),
    ] {
        entry(name, value.as_deref().map(text).unwrap_or_default());
    }
    if let Some(c) = &r.container {
        entry(
            "Container",
            format!(
                "{} {} {}",
                text(&c.name),
                text(c.image.as_deref().unwrap_or_default()),
                text(c.image_digest.as_deref().unwrap_or_default())
            ),
        );
    }
    entry("What", text(&crate::cli::what(f)));
    entry("Suppressed by", stored.suppressed.as_deref().map(text).unwrap_or_default());
    let done = f.response.done.map(|done| {
        if done {
            ", done".to_owned()
        } else {
            format!(", not done: {}", text(f.response.detail.as_deref().unwrap_or("no reason given")))
        }
    });
    entry("Response", format!("{:?}{}", f.response.wanted, done.unwrap_or_default()));
    entry("Agent", format!("{} ({}, depth {:?})", text(&f.agent.version), text(&f.agent.sensor), f.agent.depth));
    out += "</dl>\n";
    if let Some(process) = &f.process {
        out += "<h2>Process, under its ancestors</h2>\n";
        out += &tree(process);
    }
    if !f.evidence.is_empty() {
        let rows: Vec<Vec<String>> =
            f.evidence.iter().map(|(name, value)| vec![text(name), text(&value.to_string())]).collect();
        out += &table("Evidence: facts that the rule tested", &["Fact", "Value"], &rows);
    }
    out += &format!(
        "<h2>Rule</h2>\n<p>{} (<span class=\"mono\">{}</span>) {}</p>\n",
        text(&f.rule.title),
        text(&f.rule.id),
        text(&f.rule.tags.join(" "))
    );
    for reference in &f.rule.references {
        // Rules may be a user's own; only plain web addresses become links.
        out += &match reference.starts_with("https://") {
            true => format!("<p><a rel=\"noreferrer\" href=\"{0}\">{0}</a></p>\n", text(reference)),
            false => format!("<p>{}</p>\n", text(reference)),
        };
    }
    if !f.rule.next_checks.is_empty() {
        let items: String = f.rule.next_checks.iter().map(|check| format!("<li>{}</li>", text(check))).collect();
        out += &format!("<h2>What to check next</h2>\n<ol>{items}</ol>\n");
    }
    let service = f.resource.task.as_deref();
    service.map_or(out.clone(), |task| {
        format!("{out}<p><a href=\"/explain?task={}\">How this task is covered</a></p>\n", address(task))
    })
}

/// Lineage as nested lists, which screen readers walk as a tree.
fn tree(process: &Process) -> String {
    let mut depth = 0;
    let mut out = String::new();
    let mut line = |executable: &str, arguments: &[String], pid: u32, uid: u32| {
        out += &format!(
            "<ul{}><li><span class=\"mono\">{}</span> (pid {pid}, uid {uid}) <code>{}</code>",
            if depth == 0 { " class=\"tree\"" } else { "" },
            text(executable),
            text(&arguments.join(" "))
        );
        depth += 1;
    };
    for ancestor in process.lineage.iter().rev() {
        line(&ancestor.executable, &ancestor.arguments, ancestor.pid, ancestor.uid);
    }
    line(&process.executable, &process.arguments, process.pid, process.uid);
    out + &"</li></ul>".repeat(depth) + "\n"
}
