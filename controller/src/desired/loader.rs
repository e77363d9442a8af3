//! A directory of YAML to what is in force.
//!
//! *Guarantees*: a document that becomes bad keeps its last good version in force until it is good
//! again or gone; a file that cannot be read keeps all of its documents; a directory that cannot be
//! read keeps everything. What is gone from git is gone from here.

use super::check::{self, is_name};
use super::kinds;
use super::parse::{Parsed, parse};
use super::problem::{Level, Problem};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tasuki_api::desired::{Document, Mode};

/// A file larger than this is not read (a Kubernetes object ends at 1.5 MiB too).
pub const MAX_FILE: u64 = 2 << 20;
/// Files that are read of one directory.
pub const MAX_FILES: usize = 1000;
/// How deep directories are followed.
const MAX_DEPTH: usize = 8;

/// Kind and name.
pub type Id = (String, String);

/// What is in force, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Documents in force by kind and name: new ones, and last good versions of bad ones.
    pub documents: BTreeMap<Id, Arc<Document>>,
    /// Documents of which a last good version is in force.
    pub held: HashSet<Id>,
    /// What is wrong, sorted by file and line.
    pub problems: Vec<Problem>,
    /// Hexadecimal SHA-256 of what is in force; the same content gives the same hash.
    pub hash: String,
    /// Files that were read.
    pub files: usize,
    /// Monitors that say Enforce and are in force as Observe, and why.
    pub held_back: BTreeMap<Id, String>,
    /// Objects that this came from, good or bad; a directory has none.
    pub origins: BTreeMap<Id, Origin>,
}

/// A Kubernetes object that a document came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.uid`.
    pub uid: String,
}

impl Loaded {
    /// The documents in force, by kind and name.
    pub fn documents(&self) -> Vec<Document> {
        self.documents.values().map(|document| Document::clone(document)).collect()
    }

    /// Puts every monitor that enforces into force as one that observes; returns which.
    pub(super) fn let_no_monitor_enforce(&mut self, why: &str) -> Vec<Id> {
        let mut ids = Vec::new();
        for (id, document) in &mut self.documents {
            let Document::RuntimeMonitor(monitor) = &**document else { continue };
            if monitor.spec.mode != Mode::Enforce {
                continue;
            }
            let mut monitor = monitor.clone();
            monitor.spec.mode = Mode::Observe;
            *document = Arc::new(Document::RuntimeMonitor(monitor));
            ids.push(id.clone());
        }
        self.held_back = ids.iter().map(|id| (id.clone(), why.to_owned())).collect();
        self.hash = hash(&self.documents);
        ids
    }

    /// Whether anything was refused.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.level == Level::Error)
    }
}

/// Loads a directory again and again, and remembers what was good.
#[derive(Debug, Default)]
pub struct Loader {
    /// Last good versions, and the files that they came from.
    good: BTreeMap<Id, (Arc<Document>, String)>,
}

impl Loader {
    /// Reads everything below `root` (or the one file that it is). Never fails: what is wrong is
    /// in `problems`.
    pub fn load(&mut self, root: &Path) -> Loaded {
        let mut problems = Vec::new();
        let mut unread = HashSet::new();
        let mut texts = Vec::new();
        let whole = match files(root, &mut problems) {
            Ok(files) => {
                for file in files {
                    let shown = file.display().to_string();
                    match read(&file) {
                        Ok(text) => texts.push((shown, text)),
                        Err(problem) => {
                            unread.insert(shown);
                            problems.push(*problem);
                        }
                    }
                }
                true
            }
            Err(problem) => {
                problems.push(*problem);
                false
            }
        };
        let files = texts.len();
        let (parsed, ids) = self.parse(texts, &mut problems);
        // A document that is too broken to be named may be any of those that stood in its file.
        let nameless: HashSet<String> =
            parsed.iter().filter(|(_, one)| one.id.is_none()).map(|(file, _)| file.clone()).collect();
        let keep = |id: &Id, file: &str| !whole || ids.contains(id) || unread.contains(file) || nameless.contains(file);
        Loaded { files, ..self.take(parsed, problems, keep) }
    }

    /// Forgets the last good version of one document.
    pub fn forget(&mut self, id: &Id) {
        self.good.remove(id);
    }

    /// Puts documents that were read into force. `keep`: whether one that was good stays, by its
    /// name and the file that it came from.
    pub fn take(
        &mut self,
        mut parsed: Vec<(String, Parsed)>,
        mut problems: Vec<Problem>,
        keep: impl Fn(&Id, &str) -> bool,
    ) -> Loaded {
        self.good.retain(|id, (_, file)| keep(id, file));
        let held: HashSet<Id> = self.good.keys().cloned().collect();
        check::set(&mut parsed, &held);

        let mut fresh = HashSet::new();
        for (file, one) in parsed {
            problems.extend(one.problems);
            if let (Some(id), Some(document)) = (one.id, one.document) {
                fresh.insert(id.clone());
                self.good.insert(id, (Arc::new(document), file));
            }
        }
        problems.sort();
        problems.dedup();
        let documents: BTreeMap<Id, Arc<Document>> =
            self.good.iter().map(|(id, (document, _))| (id.clone(), document.clone())).collect();
        let held = documents.keys().filter(|id| !fresh.contains(*id)).cloned().collect();
        Loaded { hash: hash(&documents), documents, held, problems, ..Loaded::default() }
    }

    fn parse(&self, texts: Vec<(String, String)>, problems: &mut Vec<Problem>) -> (Vec<(String, Parsed)>, HashSet<Id>) {
        let (mut all, mut ids) = (Vec::new(), HashSet::new());
        for (file, text) in texts {
            let (documents, more) = parse(&file, &text);
            problems.extend(more);
            ids.extend(documents.iter().filter_map(|one| one.id.clone()));
            all.extend(documents.into_iter().map(|one| (file.clone(), one)));
        }
        (all, ids)
    }
}

/// The YAML files below `root`, sorted. Names that begin with a dot are left out: Kubernetes keeps
/// the real content of a mounted ConfigMap in `..data`, and shows it by links beside it.
fn files(root: &Path, problems: &mut Vec<Problem>) -> Result<Vec<PathBuf>, Box<Problem>> {
    let failed = |path: &Path, error: &std::io::Error| {
        let help = vec!["name a directory of .yaml files, or one such file".to_owned()];
        Box::new(Problem::file(&path.display().to_string(), format!("cannot be read: {}", words(error)), help))
    };
    if fs::metadata(root).map_err(|e| failed(root, &e))?.is_file() {
        return Ok(vec![root.to_owned()]);
    }
    let (mut found, mut todo) = (Vec::new(), vec![(root.to_owned(), 0)]);
    while let Some((dir, depth)) = todo.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if depth == 0 => return Err(failed(&dir, &error)),
            Err(error) => {
                problems.push(*failed(&dir, &error));
                continue;
            }
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            // Links to files are followed, links to directories are not: they may go in circles.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if depth < MAX_DEPTH {
                    todo.push((path, depth + 1));
                }
            } else if path.extension().is_some_and(|end| end == "yaml" || end == "yml") {
                found.push(path);
            }
        }
        if found.len() > MAX_FILES {
            let message = format!("more than {MAX_FILES} YAML files");
            return Err(Box::new(Problem::file(
                &root.display().to_string(),
                message,
                vec!["name a smaller directory".to_owned()],
            )));
        }
    }
    found.sort();
    if found.is_empty() {
        let mut none =
            Problem::file(&root.display().to_string(), "no .yaml or .yml file in here".to_owned(), Vec::new());
        none.level = Level::Warning;
        problems.push(none);
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String, Box<Problem>> {
    let shown = path.display().to_string();
    let failed = |message: String, help: &str| Box::new(Problem::file(&shown, message, vec![help.to_owned()]));
    let unreadable =
        |error: std::io::Error| failed(format!("cannot be read: {}", words(&error)), "check its owner and mode");
    // A FIFO or device would block or never end.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(failed("not a regular file".to_owned(), "only files are read"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(unreadable)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(format!("larger than {} MiB", MAX_FILE >> 20), "split it into several files"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        failed(format!("not text: byte {at} is not UTF-8"), "save it as UTF-8")
    })?;
    match text.bytes().position(|b| b == 0) {
        Some(at) => Err(failed(format!("not text: byte {at} is zero"), "save it as UTF-8")),
        None => Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text)),
    }
}

/// The system's words without its number.
fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn hash(documents: &BTreeMap<Id, Arc<Document>>) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for ((kind, name), document) in documents {
        debug_assert!(is_name(name));
        digest.update(format!("{kind}/{name}\n{}\n", kinds::content(document)).as_bytes());
    }
    hex::encode(digest.finish())
}
