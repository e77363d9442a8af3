//! The real programs on the real kernel. Needs root and BTF.

mod network;
mod process;

use super::*;
use crate::event::{Event, EventKind, Exec, ProcessKey};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

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
fn programs_attach_to_a_private_mount_of_cgroup_version_2() {
    use aya::programs::{CgroupAttachMode, CgroupSockAddr};
    let rings = RingSizes { process: 65_536, network: 65_536, dns: 65_536 };
    let mut loaded = loader::load(Settings::OPEN, rings, &Hierarchy::of_host(), Dns::Datagrams).unwrap();
    let program: &mut CgroupSockAddr = loaded.ebpf.program_mut("connect4").unwrap().try_into().unwrap();
    program.attach(cgroups::private_mount().unwrap(), CgroupAttachMode::Single).unwrap();
}
