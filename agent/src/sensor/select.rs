//! Choosing sensors: which the kernel and the capabilities allow, and why not a better one.
//!
//! Each sensor is started by one small function below; everything else knows only [`Sensor`].

use super::ebpf::{self, EbpfSensor, cgroups::Hierarchy};
use super::fanotify::{self, FanotifySensor};
use super::inotify::InotifySensor;
use super::network::NetworkSensor;
use super::outbox::Outbox;
use super::ptrace::{PtraceConfig, PtraceSensor, WatchdogCommand};
use super::recent::RecentProcesses;
use super::{Output, Sensor, SensorError, replay::Replay, snapshot};
use crate::workload::cgroup::sees_host;
use std::path::PathBuf;
use std::sync::Arc;

/// Hidden subcommand of the agent: the tracer's watchdog, with the agent's process id after it.
pub const WATCHDOG: &str = "watchdog";

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// The best that the kernel and the capabilities allow.
    #[default]
    Auto,
    /// Kernel programs: nodes.
    Ebpf,
    /// Process tracing and packets: sidecars with SYS_PTRACE.
    Ptrace,
    /// Packets and sockets: any sidecar.
    Network,
    /// A recording.
    Replay,
}

/// What sensors need to know.
#[derive(Clone, Debug, Default)]
pub struct SensorOptions {
    /// The recording to play.
    pub events: Option<PathBuf>,
    /// Event families that the rules in force need; the others may be left out.
    pub families: Vec<&'static str>,
    /// Memory that rings may be sized by, MiB; absent means no limit is known.
    pub memory_mib: Option<u64>,
}

/// The sensors that were started, the best one first.
pub struct Started {
    /// Running sensors.
    pub sensors: Vec<Box<dyn Sensor>>,
    /// Why not a better one, one line each.
    pub notes: Vec<String>,
}

/// Starts what was asked for.
///
/// # Errors
/// When the sensor that was asked for, or with `Auto` every sensor, cannot be started here.
pub fn start(choice: Choice, options: &SensorOptions, output: Output) -> Result<Started, SensorError> {
    match choice {
        Choice::Replay => {
            let path = options.events.as_ref().ok_or_else(|| SensorError::Unavailable {
                sensor: "replay",
                reason: "no recording was named; add --events FILE".to_owned(),
            })?;
            let sensor: Box<dyn Sensor> = Box::new(Replay::start(path, output)?);
            Ok(Started { sensors: vec![sensor], notes: Vec::new() })
        }
        Choice::Auto if options.events.is_some() => start(Choice::Replay, options, output),
        Choice::Auto => {
            // The order is by depth: Full, Process, Network.
            let mut notes = Vec::new();
            for next in [Choice::Ebpf, Choice::Ptrace, Choice::Network] {
                if next == Choice::Ptrace && sees_host() {
                    notes.push("ptrace: on a node it would stop every process; `sensor: Ptrace` has it so".to_owned());
                    continue;
                }
                match start(next, options, output.clone()) {
                    Ok(started) => {
                        notes.extend(started.notes);
                        return Ok(Started { notes, ..started });
                    }
                    Err(SensorError::Unavailable { sensor, reason }) => notes.push(format!("{sensor}: {reason}")),
                    Err(error) => notes.push(error.to_string()),
                }
            }
            Err(SensorError::Unavailable { sensor: "auto", reason: notes.join("; ") })
        }
        Choice::Ebpf => ebpf(options, output),
        Choice::Ptrace => ptrace(options, output),
        Choice::Network => network(options, Outbox::new(output)),
    }
}

/// eBPF with fanotify beside it: both give what the other cannot.
fn ebpf(options: &SensorOptions, output: Output) -> Result<Started, SensorError> {
    let hierarchy = Hierarchy::of_host();
    let recent = Arc::<RecentProcesses>::default();
    let mut notes = Vec::new();
    let files = fanotify::Options { recent: recent.clone(), hierarchy: hierarchy.clone(), skip_own: true };
    let mut files = FanotifySensor::start(files, output.clone())
        .map_err(|error| notes.push(format!("fanotify: {error}; what a container writes is not seen")))
        .ok();
    let options = ebpf::Options {
        memory_limit: options.memory_mib.map(|mib| mib << 20),
        hierarchy: Some(hierarchy),
        recent: recent.clone(),
        files: files.as_mut().map(FanotifySensor::roots),
        ..ebpf::Options::default()
    };
    let sensor = EbpfSensor::start(&options, output.clone())?;
    // After the start, so that no process falls between the two.
    match snapshot::existing(Some(sensor.hierarchy())) {
        Ok(existing) => {
            recent.learn(&existing);
            if let Some(roots) = &options.files {
                roots.meet(&existing);
            }
            // Nobody reads yet; a full queue must not hold the start.
            if output.try_send(existing).is_err() {
                notes.push("the cgroups of running processes are read when they are needed".to_owned());
            }
        }
        Err(error) => notes.push(format!("running processes cannot be listed: {error}")),
    }
    let mut sensors: Vec<Box<dyn Sensor>> = vec![Box::new(sensor)];
    sensors.extend(files.map(|files| Box::new(files) as Box<dyn Sensor>));
    Ok(Started { sensors, notes })
}

/// ptrace, with packets and inotify beside it.
fn ptrace(options: &SensorOptions, output: Output) -> Result<Started, SensorError> {
    let config = PtraceConfig { watchdog: Some(watchdog()?), limits: Default::default() };
    let outbox = Outbox::new(output);
    let (packets, files) = (outbox.beside(), outbox.beside());
    let mut started = Started { sensors: vec![Box::new(PtraceSensor::start(config, outbox)?)], notes: Vec::new() };
    started.add("network", network(options, packets));
    started.add("inotify", inotify(files));
    Ok(started)
}

/// Packets and sockets.
fn network(_options: &SensorOptions, outbox: Outbox) -> Result<Started, SensorError> {
    Ok(Started { sensors: vec![Box::new(NetworkSensor::start(outbox)?)], notes: Vec::new() })
}

fn inotify(outbox: Outbox) -> Result<Started, SensorError> {
    Ok(Started { sensors: vec![Box::new(InotifySensor::start(outbox)?)], notes: Vec::new() })
}

impl Started {
    /// Adds a sensor that is of use but not what was asked for: without it there is a note.
    fn add(&mut self, name: &str, other: Result<Started, SensorError>) {
        match other {
            Ok(other) => {
                self.sensors.extend(other.sensors);
                self.notes.extend(other.notes);
            }
            Err(error) => self.notes.push(format!("{name}: {error}")),
        }
    }
}

/// This program, as its own watchdog.
fn watchdog() -> Result<WatchdogCommand, SensorError> {
    let system =
        |source| SensorError::System { sensor: "ptrace", what: "finding the agent's own program".to_owned(), source };
    let program = std::env::current_exe().map_err(system)?;
    Ok(WatchdogCommand { program, arguments: vec![WATCHDOG.into()] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;

    /// Needs root and BTF.
    #[test]
    fn a_node_lacks_only_what_is_not_built_and_knows_who_was_there_before() {
        let (output, input) = std::sync::mpsc::sync_channel(64);
        let mut started = start(Choice::Ebpf, &SensorOptions::default(), output).unwrap();
        assert!(started.notes.is_empty(), "{:?}", started.notes);
        let families: Vec<_> = started.sensors.iter().flat_map(|sensor| sensor.families()).collect();
        let missing = crate::detect::types::unavailable(&families);
        let surprising: Vec<_> =
            missing.iter().filter(|one| !one.reason.contains("no sensor of this version")).collect();
        let [release_agent] = &surprising[..] else { panic!("{surprising:?}") };
        assert_eq!(release_agent.kind, "PrivilegeEscalation:Runtime/CGroupsReleaseAgentModified");
        started.sensors.iter_mut().for_each(|sensor| sensor.stop());
        let families: Vec<_> = started.sensors.iter().flat_map(|sensor| sensor.families()).collect();
        let all = crate::detect::types::TYPES.len();
        assert_eq!(crate::detect::types::unavailable(&families).len(), all, "a stopped sensor gives nothing");
        drop(started);
        let mut events = input.into_iter().flatten();
        let own = std::process::id();
        assert!(events.any(|event| {
            matches!(event.kind, EventKind::Existing(_)) && event.process.is_some_and(|key| key.pid == own)
        }));
    }
}
