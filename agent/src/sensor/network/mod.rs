//! The `network` sensor: connections and DNS of a task, seen from any sidecar that has NET_RAW
//! (a Fargate default) and shares the task's network namespace.
//!
//! Here live the packet and raw sockets with their filters, the exact questions to sock_diag, and the search
//! for the process behind a socket. A list of all sockets is asked for every few seconds and fills gaps;
//! where segments are very many (`load`), connections over loopback are told by it alone, several times a second.
//! What a DNS message means is nobody's business here.
//!
//! **Caveats.** A connection that is closed before this thread has asked for its socket is told
//! without a process (on a full machine that takes milliseconds). Without a shared PID namespace no process can be named. UDP other than DNS is not
//! seen. IPv6 extension headers are not followed.

mod diag;
mod filter;
mod load;
mod owner;
mod packet;
mod taps;
mod watch;

use super::outbox::{FamilyCounters, Outbox};
use super::{Sensor, SensorError};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use tasuki_api::agent::{FamilyState, SensorState};
use tasuki_api::coverage::Depth;

const NAME: &str = "network";

/// Counts since the sensor started.
#[derive(Debug, Default)]
struct Report {
    network: FamilyCounters,
    dns: FamilyCounters,
    unnamed: AtomicU64,
    skipped: AtomicU64,
    evictions: AtomicU64,
    /// Connections over loopback that were gone before a list could show them.
    unlisted: AtomicU64,
    /// Whether packets are spared.
    spared: AtomicBool,
}

/// The running sensor.
pub struct NetworkSensor {
    report: Arc<Report>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl NetworkSensor {
    /// Opens the sockets and starts the thread.
    ///
    /// # Errors
    /// `Unavailable` without CAP_NET_RAW; `System` where a socket or the thread cannot be had.
    pub fn start(outbox: Outbox) -> Result<Self, SensorError> {
        let system = |what: &str| {
            let what = what.to_owned();
            move |source| SensorError::System { sensor: NAME, what, source }
        };
        let taps = taps::Taps::open().map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => SensorError::Unavailable {
                sensor: NAME,
                reason: "CAP_NET_RAW is missing: do not drop NET_RAW from the agent's container, and run it as user 0"
                    .to_owned(),
            },
            _ => system("opening the packet sockets")(error),
        })?;
        let diag = diag::Diag::open().map_err(system("opening sock_diag"))?;
        let report = Arc::new(Report::default());
        let stop = Arc::new(AtomicBool::new(false));
        let watch = watch::Watch::new(taps, diag, outbox, report.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || watch.run())
            .map_err(system("starting the thread"))?;
        Ok(Self { report, stop, thread: Some(thread) })
    }
}

impl Sensor for NetworkSensor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn depth(&self) -> Depth {
        Depth::Network
    }

    fn state(&self) -> SensorState {
        let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let detail = ended.then(|| "its thread has ended: the agent must be started anew".to_owned());
        SensorState { name: NAME.to_owned(), whole: !ended, detail }
    }

    fn families(&self) -> Vec<FamilyState> {
        let mut problems = Vec::new();
        for (counter, what) in [
            (&self.report.unnamed, "events have no process: the socket was gone or its holder is not visible"),
            (&self.report.skipped, "sockets were not looked for: searching had used up its 5 % of a core"),
            (
                &self.report.unlisted,
                "connections, about, were gone before they were listed, while packets were too many to look at",
            ),
            (&self.report.evictions, "sockets and connections were forgotten: the memory was full"),
        ] {
            let count = counter.load(Ordering::Relaxed);
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        }
        let family = |name: &str, hook: &str, counters: &FamilyCounters, problem| FamilyState {
            name: name.to_owned(),
            hook: hook.to_owned(),
            tier: None,
            problem,
            counters: counters.snapshot(),
        };
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        let spared = self.report.spared.load(Ordering::Relaxed);
        let (network, dns) = if spared {
            ("packet/syn (outgoing), sock_diag", "packet/53 (outgoing), raw/udp")
        } else {
            ("packet/syn, sock_diag", "packet/53")
        };
        let unseen = spared.then(|| {
            "answers over TCP, and TCP over loopback, are not seen while packets are too many to look at".to_owned()
        });
        vec![family("network", network, &self.report.network, problem), family("dns", dns, &self.report.dns, unseen)]
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && let Ok(Err(error)) = thread.join()
        {
            tracing::error!(%error, "the network sensor ended by an error");
        }
    }
}

impl Drop for NetworkSensor {
    fn drop(&mut self) {
        self.stop();
    }
}
