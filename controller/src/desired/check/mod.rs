//! What a schema cannot say: formats, sums, references. One file per family of kinds.

mod detection;
mod kubernetes;
mod monitor;
mod scopes;
mod set;
mod text;
mod types;

pub use set::set;
pub use text::is_name;

use super::problem::Level;
use super::shape::Fault;
use super::yaml::{Path, at};
use tasuki_api::desired::{Document, Metadata};

/// What the checks of one document found.
#[derive(Debug, Default)]
pub struct Report(pub Vec<(Level, Fault)>);

impl Report {
    /// Refuses the document.
    fn error(&mut self, path: Path, message: impl Into<String>, help: &str) {
        self.push(Level::Error, path, message.into(), help);
    }
    /// Takes the document, and says what is probably not meant.
    fn warning(&mut self, path: Path, message: impl Into<String>, help: &str) {
        self.push(Level::Warning, path, message.into(), help);
    }
    fn push(&mut self, level: Level, path: Path, message: String, help: &str) {
        let help = if help.is_empty() { Vec::new() } else { vec![help.to_owned()] };
        self.0.push((level, Fault { path, at_key: false, message, help }));
    }
    /// Refuses a text that is only white space.
    fn not_blank(&mut self, path: Path, text: &str, what: &str, help: &str) {
        if text.trim().is_empty() {
            self.error(path, format!("{what} is empty"), help);
        }
    }
}

/// Checks one document by itself.
pub fn document(document: &Document, report: &mut Report) {
    match document {
        Document::RuntimeMonitor(o) => (metadata(&o.metadata, report), monitor::monitor(&o.spec, report)).1,
        Document::AwsScope(o) => (metadata(&o.metadata, report), scopes::aws(&o.spec, report)).1,
        Document::KubernetesScope(o) => (metadata(&o.metadata, report), scopes::kubernetes(&o.spec, report)).1,
        Document::DetectionRule(o) => (metadata(&o.metadata, report), detection::rule(&o.spec, report)).1,
        Document::ThreatList(o) => (metadata(&o.metadata, report), detection::list(&o.spec, report)).1,
        Document::Suppression(o) => (metadata(&o.metadata, report), detection::suppression(&o.spec, report)).1,
        Document::FindingSink(o) => (metadata(&o.metadata, report), detection::sink(&o.spec, report)).1,
    }
}

fn metadata(metadata: &Metadata, report: &mut Report) {
    if !is_name(&metadata.name) {
        let message = format!("`{}` is not a name", text::short(&metadata.name));
        report.error(at!["metadata", "name"], message, "write lower-case letters, digits and `-`, at most 63");
    }
}
