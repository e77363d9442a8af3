//! The `ptrace` sensor: processes of a task, seen from a sidecar that has SYS_PTRACE and shares
//! the task's PID namespace (`pidMode: task`).
//!
//! Here live the tracer thread, what it reads at an exec, and the watchdog that frees the
//! application if the tracer hangs. Packets and files are other sensors' work. What an event
//! means is nobody's business here.
//!
//! **Guarantees.** No stop per system call; signals and job control are the application's own;
//! the application outlives the agent, however that ends. **Caveats.** An application that traces
//! itself cannot be traced, and one that wants to, later, is refused by the kernel. The agent, its
//! supervisor and its watchdog are not traced. Each fork and exec waits three times for the tracer
//! to get a processor: on a machine without a free one that is milliseconds, not microseconds. A
//! file system that hangs (NFS) holds the tracer at its exec, and not even SIGKILL ends it then.

mod affinity;
mod exec;
mod newcomers;
mod report;
mod seize;
mod shed;
mod sys;
mod table;
mod tracer;
mod watchdog;

pub use watchdog::{WatchdogCommand, watchdog_main};

use super::outbox::Outbox;
use super::proc::Status;
use super::{Sensor, SensorError};
use report::Report;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tasuki_api::agent::{FamilyState, SensorState};
use tasuki_api::coverage::Depth;
use watchdog::{Heartbeat, Watchdog};

const NAME: &str = "ptrace";
/// CAP_SYS_PTRACE of include/uapi/linux/capability.h.
const SYS_PTRACE: u64 = 1 << 19;

/// How much the tracer takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Signals to one process in a second: 2,000 cost it about 3 % of a core.
    pub signals_per_second: u32,
    /// New threads of one process in a second: 2,000 cost it about 6 % of a core.
    pub threads_per_second: u32,
    /// Threads that are traced at the same time; each takes about 100 bytes.
    pub threads: usize,
    /// How long a process that passed a limit is let go.
    pub shed_for: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { signals_per_second: 2000, threads_per_second: 2000, threads: 32_768, shed_for: Duration::from_secs(60) }
    }
}

/// What the sensor is started with.
#[derive(Clone, Debug, Default)]
pub struct PtraceConfig {
    /// How to start the watchdog. Without one, a tracer that hangs would hold the application:
    /// leave it out in tests only.
    pub watchdog: Option<WatchdogCommand>,
    /// How much it takes on.
    pub limits: Limits,
}

/// The running sensor.
pub struct PtraceSensor {
    report: Arc<Report>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
    watchdog: Option<(WatchdogCommand, Mutex<Option<Watchdog>>)>,
    heartbeat: Heartbeat,
}

impl PtraceSensor {
    /// Starts the watchdog and the tracer, and returns when every process that may be traced is.
    ///
    /// # Errors
    /// `Unavailable` without CAP_SYS_PTRACE; `System` where the watchdog or the thread cannot start.
    pub fn start(config: PtraceConfig, outbox: Outbox) -> Result<Self, SensorError> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |source| SensorError::System { sensor: NAME, what, source }
        };
        let status = Status::read(std::process::id()).map_err(system("reading /proc/self/status"))?;
        if status.credentials.capabilities & SYS_PTRACE == 0 {
            return Err(SensorError::Unavailable {
                sensor: NAME,
                reason: "CAP_SYS_PTRACE is missing: add SYS_PTRACE to linuxParameters.capabilities.add of the \
                         agent's container, and run it as user 0"
                    .to_owned(),
            });
        }
        let heartbeat = Heartbeat::new().map_err(system("creating the heartbeat"))?;
        let watchdog = match config.watchdog {
            Some(command) => {
                let watchdog = Watchdog::start(&command, &heartbeat).map_err(system("starting the watchdog"))?;
                Some((command, Mutex::new(Some(watchdog))))
            }
            None => None,
        };
        let report = Arc::new(Report::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, readied) = sync_channel(1);
        let thread = {
            let heartbeat = heartbeat.try_clone().map_err(system("sharing the heartbeat"))?;
            let (report, stop) = (report.clone(), stop.clone());
            std::thread::Builder::new()
                .name(NAME.to_owned())
                .spawn(move || {
                    let tracer = tracer::Tracer::new(config.limits, report, outbox, heartbeat, stop);
                    tracer.run(move || {
                        let _ = ready.send(());
                    })
                })
                .map_err(system("starting the tracer thread"))?
        };
        // Fails where the thread has ended, and then it says why below.
        let _ = readied.recv();
        let mut sensor = Self { report, stop, thread: Some(thread), watchdog, heartbeat };
        if sensor.ended() {
            let end = sensor.thread.take().map(JoinHandle::join);
            let source = match end {
                Some(Ok(Err(error))) => error,
                _ => io::Error::other("the tracer thread ended"),
            };
            return Err(system("tracing")(source));
        }
        Ok(sensor)
    }

    fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Starts the watchdog anew if somebody killed it.
    fn watched(&self) -> bool {
        let Some((command, watchdog)) = &self.watchdog else { return true };
        let mut watchdog = watchdog.lock().unwrap_or_else(PoisonError::into_inner);
        if watchdog.as_mut().is_some_and(Watchdog::alive) {
            return true;
        }
        tracing::warn!("the watchdog has ended; starting another");
        *watchdog = Watchdog::start(command, &self.heartbeat).ok();
        watchdog.is_some()
    }
}

impl Sensor for PtraceSensor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn depth(&self) -> Depth {
        Depth::Process
    }

    fn state(&self) -> SensorState {
        let detail = if self.ended() {
            Some("the tracer has ended: the agent must be started anew")
        } else if !self.watched() {
            Some("the watchdog cannot be started")
        } else if self.report.seized.load(Ordering::Relaxed) == 0 {
            Some("no process can be traced: set pidMode to task in the task definition")
        } else {
            None
        };
        SensorState { name: NAME.to_owned(), whole: detail.is_none(), detail: detail.map(str::to_owned) }
    }

    /// Where the application waits for the agent, there is no process to trace at first.
    fn blind(&self) -> Option<String> {
        let watched = !self.ended() && self.watched();
        if watched { None } else { self.state().detail }
    }

    fn families(&self) -> Vec<FamilyState> {
        if self.ended() {
            let gone = "the tracer has ended: the agent must be started anew".to_owned();
            return vec![FamilyState { hook: String::new(), problem: Some(gone), ..self.report.family() }];
        }
        vec![self.report.family()]
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            tracing::error!(%error, "the tracer ended by an error; the kernel has freed what it traced");
        }
        // After the tracer, so that nothing is traced without a watchdog.
        self.watchdog = None;
    }
}

impl Drop for PtraceSensor {
    fn drop(&mut self) {
        self.stop();
    }
}
