//! The real programs on the real kernel. Needs root and BTF.

use super::*;
use crate::event::{Event, EventKind, Exec, ProcessKey, Stdio};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio as Io};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Instant;
use tasuki_api::agent::Counters;

const DEADLINE: Duration = Duration::from_secs(20);

/// A sensor, and all that it has said so far.
struct Running {
    sensor: EbpfSensor,
    input: Receiver<Vec<Event>>,
    seen: Vec<Event>,
}

fn everything() -> Options {
    Options { connect_window: Duration::ZERO, process_rate: 0, skip_own: false, ..Options::default() }
}

impl Running {
    fn start(options: Options) -> Self {
        let (output, input) = sync_channel(1024);
        let sensor = EbpfSensor::start(&options, output).expect("the ebpf sensor needs root and BTF");
        Self { sensor, input, seen: Vec::new() }
    }

    /// Waits for an event that `pick` likes.
    fn wait<T>(&mut self, what: &str, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut from = 0;
        loop {
            if let Some(found) = self.seen[from..].iter().find_map(&mut pick) {
                return found;
            }
            from = self.seen.len();
            match self.input.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(batch) => self.seen.extend(batch),
                Err(error) => panic!("no {what} within {DEADLINE:?} ({error}); state {:?}", self.sensor.state()),
            }
        }
    }

    fn exec(&mut self, what: &str, mut pick: impl FnMut(&Exec) -> bool) -> (ProcessKey, Exec, Event) {
        self.wait(what, |event| match &event.kind {
            EventKind::Exec(exec) if pick(exec) => Some((event.process?, (**exec).clone(), event.clone())),
            _ => None,
        })
    }

    fn counters(&self, name: &str) -> Counters {
        self.sensor.families().into_iter().find(|family| family.name == name).unwrap().counters
    }
}

fn balanced(counters: &Counters) -> bool {
    counters.seen == counters.submitted + counters.filtered + counters.ring_full + counters.oversize + counters.map_full
}

/// A program with a name of its own.
fn program(folder: &tempfile::TempDir, name: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::copy("/bin/true", &path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn every_program_attaches_here() {
    let running = Running::start(everything());
    let state = running.sensor.state();
    assert!(state.whole, "{:?}", state.detail);
    for family in running.sensor.families() {
        assert_eq!(family.problem, None, "{}", family.name);
    }
}

#[test]
fn an_exec_is_seen_with_arguments_file_and_lineage() {
    let folder = tempfile::tempdir().unwrap();
    let path = program(&folder, "tasuki-exec");
    let mut running = Running::start(everything());
    let mut child = Command::new(&path)
        .args(["first", "second word"])
        .current_dir(folder.path())
        .env("LD_LIBRARY_PATH", "/nowhere")
        .stdin(Io::piped())
        .stdout(Io::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    child.wait().unwrap();
    let (key, exec, event) = running.exec("exec", |exec| exec.filename.ends_with("tasuki-exec"));
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(key.pid, pid);
    assert_eq!(exec.arguments, [path.to_str().unwrap(), "first", "second word"]);
    assert!(!exec.truncated);
    assert_eq!(exec.filename, path.to_str().unwrap());
    assert_eq!(exec.executable.as_deref(), path.to_str());
    assert_eq!(exec.cwd.as_deref(), folder.path().to_str());
    assert_eq!(exec.environment, [("LD_LIBRARY_PATH".to_owned(), "/nowhere".to_owned())]);
    assert_eq!(exec.script, None);
    assert_eq!(exec.name, "tasuki-exec");
    assert_eq!(exec.parent.pid, std::process::id());
    assert_eq!(exec.namespace_pid, pid);
    let file = exec.file.unwrap();
    assert_eq!((file.device, file.inode, file.size), (metadata.dev(), metadata.ino(), metadata.size()));
    assert_eq!((u64::from(file.links), file.mode, file.owner), (metadata.nlink(), metadata.mode(), metadata.uid()));
    assert_eq!(file.ctime, metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec());
    assert!(!exec.memfd);
    assert_eq!(exec.stdio[0], Stdio::Pipe);
    assert_eq!(exec.stdio[1], Stdio::Other);
    assert_eq!((exec.credentials.uid, exec.credentials.euid, exec.previous_euid), (0, 0, 0));
    assert_ne!(exec.credentials.capabilities, 0);
    let namespace = |kind: &str| std::fs::metadata(format!("/proc/self/ns/{kind}")).unwrap().ino();
    assert_eq!((exec.mount_namespace, exec.pid_namespace), (namespace("mnt"), namespace("pid")));
    assert_eq!(event.cgroup.map(|id| id.0), running.sensor.hierarchy().of_process(std::process::id()));
    // The fork came before, and leads to the same process.
    let forked = running.wait("fork", |event| match event.kind {
        EventKind::Fork { child } if child == key => event.process,
        _ => None,
    });
    assert_eq!(forked, exec.parent);
    let code = running.wait("exit", |event| match event.kind {
        EventKind::Exit { code } if event.process == Some(key) => Some(code),
        _ => None,
    });
    assert_eq!(code, 0);
    let _ = RecvTimeoutError::Timeout;
}
