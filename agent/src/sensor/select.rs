//! Choosing sensors: which the kernel and the capabilities allow, and why not a better one.
//!
//! Each sensor is started by one small function below; everything else knows only [`Sensor`].

use super::ebpf::{self, EbpfSensor};
use super::inotify::InotifySensor;
use super::network::NetworkSensor;
use super::ptrace::{PtraceConfig, PtraceSensor, WatchdogCommand};
use super::{Output, Sensor, SensorError, replay::Replay};
use std::path::PathBuf;

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
        Choice::Network => network(options, output),
    }
}

/// eBPF with fanotify beside it: both give what the other cannot.
fn ebpf(options: &SensorOptions, output: Output) -> Result<Started, SensorError> {
    let memory_limit = options.memory_mib.map(|mib| mib << 20);
    let sensor = EbpfSensor::start(&ebpf::Options { memory_limit, ..ebpf::Options::default() }, output)?;
    Ok(Started { sensors: vec![Box::new(sensor)], notes: Vec::new() })
}

/// ptrace, with packets and inotify beside it.
fn ptrace(options: &SensorOptions, output: Output) -> Result<Started, SensorError> {
    let config = PtraceConfig { watchdog: Some(watchdog()?), limits: Default::default() };
    let mut started =
        Started { sensors: vec![Box::new(PtraceSensor::start(config, output.clone())?)], notes: Vec::new() };
    started.add("network", network(options, output.clone()));
    started.add("inotify", inotify(output));
    Ok(started)
}

/// Packets and sockets.
fn network(_options: &SensorOptions, output: Output) -> Result<Started, SensorError> {
    Ok(Started { sensors: vec![Box::new(NetworkSensor::start(output)?)], notes: Vec::new() })
}

fn inotify(output: Output) -> Result<Started, SensorError> {
    Ok(Started { sensors: vec![Box::new(InotifySensor::start(output)?)], notes: Vec::new() })
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
