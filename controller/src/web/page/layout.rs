//! What every page has around it.

use super::html::{text, time};
use jiff::Timestamp;

/// The views.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tab {
    /// What is not watched?
    Coverage,
    /// What happened?
    Findings,
    /// Which version is where?
    Rollout,
    /// What is in force?
    Configuration,
}

const TABS: [(Tab, &str, &str); 4] = [
    (Tab::Coverage, "/", "Coverage"),
    (Tab::Findings, "/findings", "Findings"),
    (Tab::Rollout, "/rollout", "Rollout"),
    (Tab::Configuration, "/configuration", "Configuration"),
];

/// Seconds between two looks of a page that is not still.
const REFRESH: u32 = 15;

/// One page's surroundings.
pub struct Frame {
    /// Which view.
    pub tab: Tab,
    /// Its title.
    pub title: String,
    /// It is not loaded again by itself.
    pub still: bool,
    /// Now.
    pub now: Timestamp,
}

impl Frame {
    /// The whole page; `at` is the age of its numbers.
    pub fn page(&self, at: Option<Timestamp>, body: &str) -> String {
        let title = text(&self.title);
        let links: String = TABS
            .iter()
            .map(|(tab, address, name)| {
                let current = if *tab == self.tab { " aria-current=\"page\"" } else { "" };
                format!("<li><a href=\"{address}\"{current}>{name}</a></li>")
            })
            .collect();
        // Whoever reads slowly must be able to stop the page from changing (WCAG 2.2.1, 2.2.2).
        let (refresh, motion) = match self.still {
            true => (String::new(), "<a href=\"?\">keep it fresh</a>".to_owned()),
            false => (
                format!("<meta http-equiv=\"refresh\" content=\"{REFRESH}\">"),
                format!("looked up every {REFRESH} s · <a href=\"?still=1\">hold still</a>"),
            ),
        };
        let age = at.map_or("no full sweep yet".to_owned(), |at| format!("as of {}", time(at, self.now)));
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">{refresh}\
             <title>{title} · Tasuki</title><link rel=\"stylesheet\" href=\"/style.css\"></head>\n<body>\
             <a class=\"skip\" href=\"#main\">To the content</a>\
             <header><strong>Tasuki</strong><nav aria-label=\"Views\"><ul>{links}</ul></nav></header>\n\
             <main id=\"main\"><h1>{title}</h1>\n<p class=\"age\">{age} · {motion}</p>\n{body}</main>\n</body></html>\n"
        )
    }
}
