//! Configuration: what is in force, what was refused and why.

use super::html::{lines, table, text};
use crate::engine::View;
use crate::web::ConfigView;

pub fn body(config: &ConfigView, view: &View) -> String {
    let mut out = format!("<p>In force: <span class=\"mono\">{}</span></p>\n", text(&config.hash));
    if !view.desired.is_empty() && view.desired != config.hash {
        out += &format!("<p>The last verdicts are of <span class=\"mono\">{}</span>.</p>\n", text(&view.desired));
    }
    let rows: Vec<Vec<String>> = config
        .documents
        .iter()
        .map(|document| {
            let state = if document.held {
                "<span class=\"bad\">its last good version; the newest is refused</span>"
            } else {
                "as written"
            };
            vec![format!("{}/{}", text(&document.kind), text(&document.name)), state.to_owned()]
        })
        .collect();
    out += &match rows.is_empty() {
        true => "<p>No document is in force: nothing is watched.</p>\n".to_owned(),
        false => table("Documents in force", &["Document", "State"], &rows),
    };
    if !config.problems.is_empty() {
        out += "<h2>Problems</h2>\n";
        for problem in &config.problems {
            out += &format!("<pre tabindex=\"0\">{}</pre>\n", lines(&problem.render(false, 120)));
        }
    }
    let named: Vec<_> = view
        .problems
        .iter()
        .filter(|problem| !config.problems.iter().any(|p| p.render(false, 120) == problem.message))
        .collect();
    if !named.is_empty() {
        out += "<h2>Problems that the engine found</h2>\n";
        for problem in named {
            out += &format!("<pre tabindex=\"0\">{}\n{}</pre>\n", text(&problem.subject), lines(&problem.message));
        }
    }
    out
}
