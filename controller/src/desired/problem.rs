//! What is wrong with a document, and how it is shown.

use super::yaml::Path;
use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level as Title, Renderer, Snippet};
use serde::Serialize;

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// The document is refused.
    Error,
    /// The document is taken; something about it is probably not what was meant.
    Warning,
}

/// One problem, with all that is needed to show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// File, as it was named.
    pub file: String,
    /// Line from 1; 0 where the file could not be read at all.
    pub line: usize,
    /// Column from 1, in characters.
    pub column: usize,
    /// How much it matters.
    pub level: Level,
    /// What is wrong.
    pub message: String,
    /// `Kind/name`, where the document could be told.
    pub subject: Option<String>,
    /// Where in the document, such as `spec.rollout.waves[1]`; empty for all of it.
    pub path: String,
    /// What is valid, or what to do.
    pub help: Vec<String>,
    /// The line of the file.
    #[serde(skip)]
    pub source: String,
}

/// A line longer than this is not shown: it would say nothing.
const MAX_SHOWN: usize = 4096;

impl Problem {
    /// A problem of a file as a whole.
    pub fn file(file: &str, message: String, help: Vec<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            column: 0,
            level: Level::Error,
            message,
            subject: None,
            path: String::new(),
            help,
            source: String::new(),
        }
    }

    /// The problem as the engine's view shows it.
    pub fn to_view(&self) -> crate::engine::ProblemView {
        let subject = self.subject.clone().unwrap_or_else(|| self.file.clone());
        crate::engine::ProblemView { subject, message: self.render(false, 120) }
    }

    /// The problem on one line, without what it is about: where, what, and what to do.
    pub fn brief(&self) -> String {
        let at = if self.path.is_empty() { String::new() } else { format!("{}: ", self.path) };
        let help = self.help.join("; ").replace('\n', " ");
        let help = if help.is_empty() { help } else { format!(" ({help})") };
        format!("{at}{}{help}", self.message.replace('\n', " "))
    }

    /// `in Kind/name, spec.path[1]`, as far as known.
    fn place(&self) -> String {
        match (&self.subject, self.path.as_str()) {
            // An object stands in no file: its name is said already.
            (Some(subject), "") if *subject == self.file => String::new(),
            (Some(subject), path) if *subject == self.file => format!("at {path}"),
            (Some(subject), "") => format!("in {subject}"),
            (Some(subject), path) => format!("in {subject}, {path}"),
            (None, _) => String::new(),
        }
    }

    /// The problem as people read it. `width` is the terminal's.
    pub fn render(&self, colour: bool, width: usize) -> String {
        let title = match self.level {
            Level::Error => Title::ERROR,
            Level::Warning => Title::WARNING,
        };
        let mut group = if self.line == 0 || self.source.len() > MAX_SHOWN {
            let at =
                if self.line == 0 { self.file.clone() } else { format!("{}:{}:{}", self.file, self.line, self.column) };
            let place = self.place();
            let at = if place.is_empty() { at } else { format!("{at} {place}") };
            title.primary_title(self.message.as_str()).element(annotate_snippets::Origin::path(at))
        } else {
            let span = token(&self.source, self.column.saturating_sub(1));
            let label = AnnotationKind::Primary.span(span).label(self.place());
            let snippet = Snippet::source(self.source.as_str()).line_start(self.line).path(self.file.as_str());
            title.primary_title(self.message.as_str()).element(snippet.annotation(label))
        };
        for help in &self.help {
            group = group.element(Title::HELP.message(help.as_str()));
        }
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        renderer.decor_style(DecorStyle::Unicode).term_width(width).render(&[group])
    }
}

/// Shows only the parent of a path whose last step is what the caret points at.
pub fn owner(path: &Path) -> String {
    path.parent().to_string()
}

/// The bytes of the token that begins at character `column`.
fn token(line: &str, column: usize) -> std::ops::Range<usize> {
    let start = line.char_indices().nth(column).map_or(line.len(), |(i, _)| i);
    let rest = &line[start..];
    let in_flow = line[..start].matches(['[', '{']).count() > line[..start].matches([']', '}']).count();
    let len = match rest.chars().next() {
        Some(quote @ ('"' | '\'')) => rest[1..].find(quote).map_or(rest.len(), |i| i + 2),
        Some('[' | '{' | '|' | '>') => 1,
        _ => {
            let ends = [Some(": "), Some(" #"), in_flow.then_some(","), in_flow.then_some("}"), in_flow.then_some("]")];
            let end = ends.into_iter().flatten().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
            rest[..end].trim_end().trim_end_matches(':').len()
        }
    };
    start..(start + len).max((start + 1).min(line.len().max(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_covers_the_token() {
        let at = |line: &'static str, column| &line[token(line, column)];
        assert_eq!(at("  maxUnavailabel: 10%  # c", 2), "maxUnavailabel");
        assert_eq!(at("  take: 10%  # c", 8), "10%");
        assert_eq!(at("a: {b: 1, cé: 2}", 10), "cé");
        assert_eq!(at("a: [x, 'y z', w]", 7), "'y z'");
        assert_eq!(at("waves:", 0), "waves");
        assert_eq!(at("a: Custom:Runtime/X", 3), "Custom:Runtime/X");
        assert_eq!(at("", 0), "");
        assert_eq!(at("ab", 7), "");
    }
}
