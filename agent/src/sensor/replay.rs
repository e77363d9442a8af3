//! Recordings: events as JSON lines, with notes on what the machine said about them, and the
//! sensor that plays them. The same bytes give the same findings.
//!
//! One line is one JSON object with one member:
//! `{"header":…}` first, then `{"event":…}`, and between them the notes `{"place":…}`,
//! `{"names":…}`, `{"hash":…}`, `{"stdio":…}`, `{"listening":…}`. All notes are read before the first event.

use super::{Output, Sensor, SensorError};
use crate::event::{CgroupId, Event, FileId, ProcessKey, Stdio};
use crate::pipeline::world::{LookedUp, Subject, World};
use crate::process::hash::Sha256;
use crate::workload::{ContainerPath, Description, Place};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use tasuki_api::agent::{Counters, FamilyState, SensorState};
use tasuki_api::coverage::Depth;

/// Version of the format.
const VERSION: u32 = 1;
/// Bytes of a line that are read; an event has at most about 20 KiB.
const MAX_LINE: u64 = 256 << 10;
/// Notes that are read or written.
const MAX_NOTES: usize = 200_000;
/// Events handed on at once.
const BATCH: usize = 256;

/// First line of a recording.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Version of the format.
    pub version: u32,
    /// Time of day minus time since boot, nanoseconds.
    pub boot: i64,
    /// The host's mount namespace, where the agent saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_mount_namespace: Option<u64>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first.
    Header(Header),
    /// Where the processes of a cgroup, or of a mount namespace, live.
    Place {
        /// The cgroup.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cgroup: Option<CgroupId>,
        /// The mount namespace.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mount_namespace: Option<u64>,
        /// The container; absent for the host.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        container: Option<ContainerPath>,
    },
    /// A container's names.
    Names(Description),
    /// Hash of a file, hexadecimal.
    Hash {
        /// The file.
        file: FileId,
        /// Its SHA-256.
        sha256: String,
    },
    /// Descriptors of a process as they were when they mattered.
    Stdio {
        /// The process.
        process: ProcessKey,
        /// Descriptors 0 to 2.
        stdio: [Stdio; 3],
    },
    /// A process listened, as was found when it mattered.
    Listening(ProcessKey),
    /// An event.
    Event(Event),
}

/// Why a recording cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be read.
    #[error("{path}: cannot be read")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A line is not of this format.
    #[error("{path}:{line}: not a line of a recording; see `tasuki-agent run --record`")]
    Line {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of a later version.
    #[error("{path}: version {found} of the format; this agent reads up to {VERSION}")]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Reads a recording line by line.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    number: usize,
}

impl Lines {
    /// Opens a recording.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let file = File::open(path).map_err(|source| RecordingError::Io { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), number: 0 })
    }
}

impl Iterator for Lines {
    type Item = Result<Line, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut text = Vec::new();
            let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut text);
            self.number += 1;
            match read {
                Ok(0) => return None,
                Ok(_) => {}
                Err(source) => return Some(Err(RecordingError::Io { path: self.path.clone(), source })),
            }
            let text = text.trim_ascii();
            if text.is_empty() || text.starts_with(b"#") {
                continue;
            }
            let line = serde_json::from_slice(text);
            let (path, number) = (self.path.clone(), self.number);
            return Some(line.map_err(|source| RecordingError::Line { path, line: number, source }));
        }
    }
}

/// The world of a recording: its header and all its notes.
///
/// # Errors
/// When the recording cannot be read.
pub fn world(path: &Path) -> Result<World, RecordingError> {
    let io = |source| RecordingError::Io { path: path.to_owned(), source };
    let mut world = World::recorded(0, None).map_err(io)?;
    let mut notes = 0;
    for line in Lines::open(path)? {
        let line = line?;
        if matches!(line, Line::Event(_)) {
            continue;
        }
        notes += 1;
        if notes > MAX_NOTES {
            break;
        }
        match line {
            Line::Header(header) if header.version > VERSION => {
                return Err(RecordingError::Version { path: path.to_owned(), found: header.version });
            }
            Line::Header(header) => {
                if notes == 1 {
                    world = World::recorded(header.boot, header.host_mount_namespace).map_err(io)?;
                }
            }
            note => apply(&mut world, note),
        }
    }
    Ok(world)
}

/// Puts a note into a world.
pub fn apply(world: &mut World, note: Line) {
    match note {
        Line::Place { cgroup, mount_namespace, container } => {
            let container = container.map(Arc::new);
            if let (Some(namespace), Some(container)) = (mount_namespace, &container) {
                world.workloads.learn_namespace(namespace, container);
            }
            if let Some(cgroup) = cgroup {
                world.workloads.learn(cgroup, container);
            }
        }
        Line::Names(description) => world.workloads.learn_names(description),
        Line::Hash { file, sha256 } => {
            let mut hash = [0; 32];
            if hex::decode_to_slice(sha256, &mut hash).is_ok() {
                world.hasher.learn(&file, hash);
            }
        }
        Line::Stdio { process, stdio } => world.note_stdio(process, stdio),
        Line::Listening(process) => world.note_listening(process),
        Line::Header(_) | Line::Event(_) => {}
    }
}

/// Writes a recording.
pub struct Recorder {
    out: Box<dyn Write + Send>,
    noted: HashSet<(Option<CgroupId>, u64, String, bool)>,
    /// Lines that could not be written.
    pub lost: u64,
}

impl Recorder {
    /// Starts a recording with its header.
    pub fn new(out: Box<dyn Write + Send>, world: &World) -> Self {
        let mut recorder = Self { out, noted: HashSet::new(), lost: 0 };
        let host_mount_namespace = world.host_mount_namespace();
        recorder.write(&Line::Header(Header { version: VERSION, boot: world.boot, host_mount_namespace }));
        recorder
    }

    /// Starts a recording in a file that only its owner reads: events hold command lines.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(path: &Path, world: &World) -> std::io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self::new(Box::new(BufWriter::new(file)), world))
    }

    /// Records an event, after what was not noted yet of where it happened.
    pub fn record(&mut self, event: &Event, subject: Option<&Subject>) {
        if let Some(subject) = subject {
            self.note(subject);
        }
        self.write(&Line::Event(event.clone()));
    }

    /// Records a hash.
    pub fn hash(&mut self, file: &FileId, sha256: &Sha256) {
        self.write(&Line::Hash { file: *file, sha256: hex::encode(sha256) });
    }

    /// Records what was looked up about a process.
    pub fn looked_up(&mut self, process: ProcessKey, found: LookedUp) {
        self.write(&match found {
            LookedUp::Stdio(stdio) => Line::Stdio { process, stdio },
            LookedUp::Listening => Line::Listening(process),
        });
    }

    /// Hands everything to the file.
    pub fn flush(&mut self) {
        if self.out.flush().is_err() {
            self.lost += 1;
        }
    }

    fn note(&mut self, subject: &Subject) {
        let container = match &subject.place {
            Place::Container(container) => Some(ContainerPath::clone(container)),
            Place::Host => None,
            Place::Unnamed | Place::Unknown => return,
        };
        let mount = subject.entry.as_ref().map_or(0, |entry| entry.mount_namespace);
        let id = container.as_ref().map_or_else(String::new, |container| container.id.clone());
        let named = subject.description.is_some();
        if self.noted.len() >= MAX_NOTES || !self.noted.insert((subject.cgroup, mount, id, named)) {
            return;
        }
        // A host process may sit in a container's cgroup for a moment (runc init): its cgroup
        // says nothing about the container.
        if container.is_some() || subject.cgroup.is_some() {
            let cgroup = subject.cgroup;
            let mount_namespace = (mount != 0 && cgroup.is_none()).then_some(mount);
            self.write(&Line::Place { cgroup, mount_namespace, container });
        }
        if let Some(description) = &subject.description {
            self.write(&Line::Names(Description::clone(description)));
        }
    }

    fn write(&mut self, line: &Line) {
        let written = serde_json::to_string(line).map(|text| writeln!(self.out, "{text}"));
        if !matches!(written, Ok(Ok(()))) {
            self.lost += 1;
        }
    }
}

/// The sensor that plays a recording.
pub struct Replay {
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    played: Arc<AtomicU64>,
    problem: Arc<std::sync::Mutex<Option<String>>>,
}

impl Replay {
    /// Starts to play a recording's events.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread cannot be started.
    pub fn start(path: &Path, output: Output) -> Result<Self, SensorError> {
        let system = |what: &str, source| SensorError::System { sensor: "replay", what: what.to_owned(), source };
        let lines = Lines::open(path).map_err(|error| SensorError::Unavailable {
            sensor: "replay",
            reason: format!(
                "{error}: {}",
                std::error::Error::source(&error).map_or_else(String::new, ToString::to_string)
            ),
        })?;
        let (stop, played, problem) = (Arc::new(AtomicBool::new(false)), Arc::default(), Arc::default());
        let (stopped, count, told) = (Arc::clone(&stop), Arc::clone(&played), Arc::clone(&problem));
        let thread = std::thread::Builder::new()
            .name("replay".into())
            .spawn(move || play(lines, &output, &stopped, &count, &told))
            .map_err(|source| system("starting its thread", source))?;
        Ok(Self { thread: Some(thread), stop, played, problem })
    }

    /// Waits until everything was played. Returns what went wrong, if something did.
    pub fn wait(&mut self) -> Option<String> {
        if let Some(thread) = self.thread.take() {
            // A panic of the thread would be a bug; its events were handed on before it.
            let _ = thread.join();
        }
        self.problem.lock().map_or(None, |problem| problem.clone())
    }
}

fn play(
    lines: Lines,
    output: &Output,
    stop: &AtomicBool,
    played: &AtomicU64,
    problem: &std::sync::Mutex<Option<String>>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    for line in lines {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        match line {
            Ok(Line::Event(event)) => batch.push(event),
            Ok(_) => {}
            Err(error) => {
                if let Ok(mut problem) = problem.lock() {
                    *problem = Some(error.to_string());
                }
                break;
            }
        }
        if batch.len() == BATCH {
            played.fetch_add(BATCH as u64, Ordering::Relaxed);
            if output.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).is_err() {
                return;
            }
        }
    }
    played.fetch_add(batch.len() as u64, Ordering::Relaxed);
    // A receiver that is gone wants no events.
    let _ = output.send(batch);
}

impl Sensor for Replay {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn depth(&self) -> Depth {
        Depth::Full
    }

    fn state(&self) -> SensorState {
        let detail = self.problem.lock().map_or(None, |problem| problem.clone());
        SensorState { name: self.name().to_owned(), whole: detail.is_none(), detail }
    }

    fn families(&self) -> Vec<FamilyState> {
        let played = self.played.load(Ordering::Relaxed);
        let counters = Counters { seen: played, submitted: played, ..Counters::default() };
        let family = |name: &str| FamilyState {
            name: name.to_owned(),
            hook: "recording".to_owned(),
            tier: None,
            problem: None,
            counters: if name == "process" { counters } else { Counters::default() },
        };
        ["process", "credentials", "network", "dns", "file", "cgroup_file"].map(family).to_vec()
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wait();
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
