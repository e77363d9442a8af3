//! The text of one file to documents and problems.

use super::check::{self, Report};
use super::kinds;
use super::problem::{Level, Problem, owner};
use super::shape::{self, Fault};
use super::yaml::{self, Chunk, Path, at};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::OnceLock;
use tasuki_api::desired::{API_VERSION, Document};

/// Documents in one file; more than this is a mistake of whatever wrote it.
pub const MAX_DOCUMENTS: usize = 1000;
/// Problems that are reported of one document.
const MAX_PROBLEMS: usize = 50;

/// One document of a file, good or bad.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// Kind and name, where they could be told.
    pub id: Option<(String, String)>,
    /// Line of the file, from 1, on which it begins; 0 for an object, which stands in no file.
    pub line: usize,
    /// The document; absent where it is refused.
    pub document: Option<Document>,
    /// What is wrong with it, ready to be shown.
    pub problems: Vec<Problem>,
    /// Its text, so that checks across documents can point into it; an object has none.
    text: Option<String>,
}

/// Reads every document of a file's text.
pub fn parse(file: &str, text: &str) -> (Vec<Parsed>, Vec<Problem>) {
    let chunks = yaml::split(text);
    if chunks.is_empty() {
        let mut empty = Problem::file(file, "the file holds no document".to_owned(), Vec::new());
        empty.level = Level::Warning;
        return (Vec::new(), vec![empty]);
    }
    let mut problems = Vec::new();
    if chunks.len() > MAX_DOCUMENTS {
        let message = format!("{} documents in one file; only the first {MAX_DOCUMENTS} are read", chunks.len());
        problems.push(Problem::file(file, message, vec!["split it into several files".to_owned()]));
    }
    (chunks.iter().take(MAX_DOCUMENTS).map(|chunk| one(file, *chunk)).collect(), problems)
}

impl Parsed {
    /// Adds a problem at `path`, found by a check across documents. An error refuses the document.
    pub fn add(&mut self, file: &str, level: Level, path: &Path, at_key: bool, message: String, help: Vec<String>) {
        let subject = self.id.as_ref().map(|(kind, name)| format!("{kind}/{name}"));
        let chunk = self.text.as_deref().map(|text| Chunk { text, line: self.line.saturating_sub(1) });
        self.problems.push(problem(file, chunk, subject, level, Fault { path: path.clone(), at_key, message, help }));
        if level == Level::Error {
            self.document = None;
        }
    }
}

/// Judges an object that came as a value, not as text. Its problems stand on no line.
pub fn object(file: &str, value: Value) -> Parsed {
    Parsed { id: None, line: 0, document: None, problems: Vec::new(), text: None }.judged(file, None, value)
}

fn one(file: &str, chunk: Chunk<'_>) -> Parsed {
    let text = Some(chunk.text.to_owned());
    let mut parsed = Parsed { id: None, line: chunk.line + 1, document: None, problems: Vec::new(), text };
    match yaml::read(chunk.text) {
        Ok(value) => parsed.judged(file, Some(chunk), value),
        Err(refused) => {
            let fault = Fault { path: Path::default(), at_key: false, message: refused.message, help: Vec::new() };
            let at = refused.at.unwrap_or_default();
            parsed.problems.push(placed(file, chunk, None, Level::Error, fault, at));
            // What the document is can often still be told, so that its last good version is known.
            parsed.id = guess(chunk.text);
            parsed
        }
    }
}

impl Parsed {
    /// Judges what was read.
    fn judged(mut self, file: &str, chunk: Option<Chunk<'_>>, mut value: Value) -> Self {
        let mut faults = Vec::new();
        let kind = header(&mut value, &mut faults);
        let name = value["metadata"]["name"].as_str().map(str::to_owned);
        let subject = match (&kind, &name) {
            (Some(kind), Some(name)) => {
                self.id = Some((kind.clone(), name.clone()));
                Some(format!("{kind}/{name}"))
            }
            (Some(kind), None) => Some(kind.clone()),
            _ => None,
        };
        let mut report = Report::default();
        if let Some(kind) = &kind {
            let schema = schema(kind);
            shape::walk(schema, schema, &mut value, &Path::default(), &mut faults);
            let refused = !faults.is_empty();
            self.document = typed(kind, &mut value, refused, &mut faults);
            if let Some(document) = &self.document {
                check::document(document, &mut report);
            }
        }
        report.0.retain(|(_, later)| !faults.iter().any(|fault| fault.hides(&later.path)));
        let problems = faults.into_iter().map(|fault| (Level::Error, fault)).chain(report.0);
        let problems =
            problems.take(MAX_PROBLEMS).map(|(level, fault)| problem(file, chunk, subject.clone(), level, fault));
        self.problems.extend(problems);
        if self.problems.iter().any(|problem| problem.level == Level::Error) {
            self.document = None;
        }
        self
    }
}

/// Checks what every document has: a mapping with the right `apiVersion` and a known `kind`.
fn header(value: &mut Value, faults: &mut Vec<Fault>) -> Option<String> {
    let mut fault = |path: Path, at_key, message: String, help: String| {
        faults.push(Fault { path, at_key, message, help: vec![help] });
    };
    let begin = || format!("a document begins with\napiVersion: {API_VERSION}\nkind: RuntimeMonitor");
    let Some(map) = value.as_object_mut() else {
        fault(Path::default(), false, "this is not a document".to_owned(), begin());
        return None;
    };
    match map.get("apiVersion").map(Value::as_str) {
        Some(Some(API_VERSION)) => {}
        None => fault(at!["apiVersion"], true, "missing field `apiVersion`".to_owned(), begin()),
        Some(other) => {
            let other: String = other.unwrap_or_default().chars().take(64).collect();
            let message = format!("apiVersion `{other}` is not `{API_VERSION}`");
            fault(at!["apiVersion"], false, message, "only documents of Tasuki belong in this directory".to_owned());
        }
    }
    // Said above in better words than the schema has.
    map.insert("apiVersion".to_owned(), API_VERSION.into());
    match map.get("kind").map(|kind| kind.as_str().unwrap_or_default()) {
        Some(kind) if Document::KINDS.contains(&kind) => return Some(kind.to_owned()),
        Some(kind) => {
            let message = shape::unknown("kind", kind, &Document::KINDS);
            fault(at!["kind"], false, message, shape::valid(&Document::KINDS));
        }
        None => fault(at!["kind"], true, "missing field `kind`".to_owned(), shape::valid(&Document::KINDS)),
    }
    None
}

/// The typed document. `refused`: the walk found faults, so what serde cannot read either is no news.
fn typed(kind: &str, value: &mut Value, refused: bool, faults: &mut Vec<Fault>) -> Option<Document> {
    let metadata = serde_json::from_value(value["metadata"].take()).ok()?;
    let spec = value.get_mut("spec").map_or(Value::Object(Map::new()), Value::take);
    match kinds::document(kind, metadata, spec)? {
        Ok(document) => Some(document),
        Err(_) if refused => None,
        Err(misfit) => {
            use serde_path_to_error::Segment;
            let steps = misfit.path.iter().filter_map(|segment| match segment {
                Segment::Seq { index } => Some((*index).into()),
                Segment::Map { key } => Some(key.into()),
                _ => None,
            });
            let path = Path(std::iter::once("spec".into()).chain(steps).collect());
            faults.push(Fault { path, at_key: false, message: misfit.message, help: Vec::new() });
            None
        }
    }
}

/// The schema of a whole document of `kind`; null for an unknown kind.
pub fn schema(kind: &str) -> &'static Value {
    static SCHEMAS: OnceLock<HashMap<&'static str, Value>> = OnceLock::new();
    let schemas = SCHEMAS.get_or_init(|| {
        Document::KINDS.iter().filter_map(|kind| kinds::schema_of(kind).map(|schema| (*kind, schema))).collect()
    });
    schemas.get(kind).unwrap_or(&Value::Null)
}

/// Kind and name of a document that is not YAML, from the lines where they usually stand.
fn guess(text: &str) -> Option<(String, String)> {
    let value = |line: &str, key: &str| {
        let rest = line.strip_prefix(key)?.trim().trim_matches(['"', '\'', '}', '{']).trim();
        (!rest.is_empty()).then(|| rest.to_owned())
    };
    let kind = text.lines().find_map(|line| value(line, "kind:"))?;
    let name = text.lines().find_map(|line| {
        value(line.trim_start(), "name:")
            .or_else(|| value(line, "metadata: { name:"))
            .or_else(|| value(line, "metadata: {name:"))
    })?;
    (Document::KINDS.contains(&kind.as_str()) && check::is_name(&name)).then_some((kind, name))
}

fn problem(file: &str, chunk: Option<Chunk<'_>>, subject: Option<String>, level: Level, fault: Fault) -> Problem {
    let Some(chunk) = chunk else {
        let path = fault.path.to_string();
        return Problem { level, subject, path, ..Problem::file(file, fault.message, fault.help) };
    };
    let at = yaml::locate(chunk.text, &fault.path, fault.at_key).unwrap_or_default();
    placed(file, chunk, subject, level, fault, at)
}

fn placed(
    file: &str,
    chunk: Chunk<'_>,
    subject: Option<String>,
    level: Level,
    fault: Fault,
    (line, column): (usize, usize),
) -> Problem {
    // An error at the very end stands on a line that does not exist: show the last one that does.
    let lines = chunk.text.lines().count();
    let line = line.min(lines.saturating_sub(1));
    let source = chunk.text.lines().nth(line).unwrap_or_default().trim_end().to_owned();
    Problem {
        file: file.to_owned(),
        line: chunk.line + line + 1,
        column: column.min(source.chars().count()) + 1,
        level,
        message: fault.message,
        subject,
        path: if fault.at_key { owner(&fault.path) } else { fault.path.to_string() },
        help: fault.help,
        source,
    }
}
