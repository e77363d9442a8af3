//! The `ebpf` sensor: what happens on this machine, from the kernel's own hooks (tier 0; DNS on tier 1 where it can be had).
//!
//! `btf` and `offsets` learn the running kernel, `loader` puts the programs in, `proof` sees whether they are met, `reader`
//! empties their rings, `decode` makes events of records, `counters` keeps the balance. Nothing here knows tasks or rules.
//!
//! Guarantees: every event that a hook meets is counted once, as submitted, filtered or lost;
//! dropping the sensor detaches every program. Caveats: a TCP connect has no local port yet; an
//! accept is laid to the process that called listen(); DNS over TCP is seen as a connection only.

pub mod btf;
pub mod cgroups;
mod counters;
mod decode;
mod loader;
mod offsets;
mod proof;
mod reader;
mod rings;
#[cfg(test)]
mod tests;

pub use counters::Filtered;
pub use rings::RingSizes;

use super::fanotify::Roots;
use super::recent::RecentProcesses;
use super::{Output, Sensor, SensorError};
use aya::maps::{Array, RingBuf};
use cgroups::Hierarchy;
use counters::CounterMap;
use loader::{Dns, Loaded};
use reader::{Alarm, Rings, Shared};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use tasuki_api::agent::{Counters, FamilyState, SensorState};
use tasuki_api::coverage::Depth;
use tasuki_probe_abi::{Family, Settings};

const NAME: &str = "ebpf";

/// How the sensor is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's memory limit, bytes; the rings take at most 40 % of it.
    pub memory_limit: Option<u64>,
    /// Exact ring sizes instead of computed ones.
    pub rings: Option<RingSizes>,
    /// A task's repeated connects to one destination are reported once in this time.
    pub connect_window: Duration,
    /// Exec and fork events per second and cgroup (each); 0 for no limit.
    pub process_rate: u64,
    /// Exec and fork events that a cgroup may send at once (each).
    pub process_burst: u64,
    /// Leave out what the agent itself does.
    pub skip_own: bool,
    /// Look for DNS messages among all packets, as on kernels whose functions cannot be followed.
    pub dns_among_packets: bool,
    /// The cgroup hierarchy that names tasks, where it is not the one that this host's mounts suggest.
    pub hierarchy: Option<Hierarchy>,
    /// Where processes are remembered for sensors that only get process ids.
    pub recent: Arc<RecentProcesses>,
    /// The file sensor that is told of new containers, and whose events come before the execs of
    /// what was written.
    pub files: Option<Arc<Roots>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory_limit: None,
            rings: None,
            connect_window: Duration::from_secs(10),
            // Twice what two cores can do (16,000 to 19,000 exec/s were measured): a limit for
            // the container that would crowd out the others, not for a busy one.
            process_rate: 40_000,
            process_burst: 80_000,
            skip_own: true,
            dns_among_packets: false,
            hierarchy: None,
            recent: Arc::default(),
            files: None,
        }
    }
}

/// A running `ebpf` sensor.
pub struct EbpfSensor {
    loaded: Option<Loaded>,
    counters: CounterMap,
    shared: Arc<Shared>,
    recent: Arc<RecentProcesses>,
    reader: Option<JoinHandle<()>>,
    rings: RingSizes,
    shrunk: bool,
    hierarchy: Hierarchy,
    dns: Dns,
    /// What [`EbpfSensor::missed`] said of each family when the programs were taken out.
    missed: [u64; Family::ALL.len()],
}

impl EbpfSensor {
    /// Loads and attaches the programs, and begins to hand events to `output`.
    ///
    /// # Errors
    /// [`SensorError::Unavailable`] where the kernel has no BTF, does not take the maps, or takes
    /// none of the programs; the reason says what is missing.
    pub fn start(options: &Options, output: Output) -> Result<Self, SensorError> {
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let wanted = RingSizes::wanted(cpus);
        let rings = options.rings.unwrap_or_else(|| wanted.within(options.memory_limit));
        let hierarchy = options.hierarchy.clone().unwrap_or_else(Hierarchy::of_host);
        let settings = Settings {
            connect_window: u64::try_from(options.connect_window.as_nanos()).unwrap_or(u64::MAX),
            process_rate: options.process_rate.min(1_000_000_000),
            process_burst: options.process_burst.clamp(1, 1_000_000),
            own_pid: if options.skip_own { std::process::id() } else { 0 },
            tcp_from_cgroup: 0,
        };
        let dns = if options.dns_among_packets { Dns::Packets } else { Dns::Datagrams };
        let mut loaded = loader::load(settings, rings, &hierarchy, dns)?;
        if loaded.is_nothing() {
            let (program, reason) = loaded.problems.swap_remove(0);
            return Err(SensorError::Unavailable { sensor: NAME, reason: format!("{program}: {reason}") });
        }
        let counters = CounterMap::new(take(&mut loaded, "COUNTERS")?).map_err(map_error)?;
        let mut ring = |name| RingBuf::try_from(take(&mut loaded, name)?).map_err(map_error);
        let (network, dns, process) = (ring("NETWORK")?, ring("DNS")?, ring("PROCESS")?);
        let alarm = Alarm::new(Array::try_from(take(&mut loaded, "AWAKE")?).map_err(map_error)?);
        let readable = Rings { network, dns, process, alarm };
        let shared = Arc::new(Shared::default());
        let recent = Arc::clone(&options.recent);
        let reader = {
            let (shared, recent, files) = (Arc::clone(&shared), Arc::clone(&recent), options.files.clone());
            reader::spawn("tasuki-ebpf", move || reader::run(readable, &output, &shared, &recent, files)).map_err(
                |source| SensorError::System { sensor: NAME, what: "starting the reader thread".into(), source },
            )?
        };
        Ok(Self {
            dns: loaded.dns,
            loaded: Some(loaded),
            counters,
            shared,
            recent,
            reader: Some(reader),
            rings,
            shrunk: rings.total() < wanted.total(),
            hierarchy,
            missed: Default::default(),
        })
    }

    /// Processes seen lately, for sensors that only get process ids.
    pub fn recent(&self) -> Arc<RecentProcesses> {
        Arc::clone(&self.recent)
    }

    /// The cgroup hierarchy whose ids the events carry.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// What the in-kernel filters dropped, by family and filter name; zeros for a family whose
    /// counters cannot be read, which [`Sensor::families`] tells.
    pub fn filtered(&self) -> Vec<(&'static str, Filtered)> {
        Family::ALL
            .into_iter()
            .map(|family| (family.name(), self.counters.read(family).unwrap_or_default().1))
            .collect()
    }

    /// The programs that give a family, how that is written for people, and its tier.
    fn hooks(&self, family: Family) -> (&'static [&'static str], &'static str, u8) {
        match family {
            Family::Exec => (&["process_exec"], "tp_btf/sched_process_exec", 0),
            Family::Fork => (&["process_fork"], "tp_btf/sched_process_fork", 0),
            Family::Exit => (&["process_exit"], "tp_btf/sched_process_exit", 0),
            Family::Connect => (
                &["socket_state", "connect4", "connect6", "sendmsg4", "sendmsg6"],
                "tp_btf/inet_sock_set_state, cgroup/connect4+6, cgroup/sendmsg4+6",
                0,
            ),
            Family::Accept | Family::Listen => (&["socket_state"], "tp_btf/inet_sock_set_state", 0),
            Family::Dns => match self.dns {
                Dns::Datagrams => {
                    (&["sent4", "sent6", "received"], "fentry/ip_send_skb+ip6_send_skb, fentry/skb_consume_udp", 1)
                }
                Dns::Packets => (&["packet_out", "packet_in"], "cgroup_skb/egress+ingress", 0),
            },
        }
    }

    /// Runs that the kernel left out, because one of the family's programs was running on that processor already. A
    /// program of several families counts in the first.
    fn missed(&self, family: Family) -> u64 {
        let Some(loaded) = &self.loaded else { return self.missed.get(family as usize).copied().unwrap_or_default() };
        if matches!(family, Family::Accept | Family::Listen) {
            return 0;
        }
        self.hooks(family).0.iter().map(|program| loaded.misses(program)).sum()
    }

    fn family(&self, family: Family) -> FamilyState {
        let (programs, mut hook, tier) = self.hooks(family);
        let mut reasons: Vec<_> = match &self.loaded {
            None => vec!["the sensor was stopped".to_owned()],
            Some(loaded) => programs
                .iter()
                .filter_map(|name| loaded.problem(name).map(|reason| format!("{name}: {reason}")))
                .collect(),
        };
        // One program of several that fails leaves a gap; all of them leave nothing.
        if self.loaded.is_none() || reasons.len() == programs.len() {
            hook = "";
        }
        let mut counters = self.counters.read(family).map(|(counters, _)| counters).unwrap_or_else(|error| {
            reasons.push(format!("its counters cannot be read: {error}"));
            Counters::default()
        });
        counters.missed = self.missed(family);
        FamilyState {
            name: family.name().into(),
            hook: hook.into(),
            tier: Some(tier),
            problem: (!reasons.is_empty()).then(|| reasons.join("; ")),
            counters,
        }
    }
}

fn take(loaded: &mut Loaded, name: &str) -> Result<aya::maps::Map, SensorError> {
    loaded.ebpf.take_map(name).ok_or_else(|| SensorError::Unavailable {
        sensor: NAME,
        reason: format!("the probes' object has no map {name}: agent and probes do not fit each other"),
    })
}

fn map_error(error: aya::maps::MapError) -> SensorError {
    SensorError::Unavailable { sensor: NAME, reason: format!("a map of the probes cannot be used: {error}") }
}

impl Sensor for EbpfSensor {
    fn name(&self) -> &'static str {
        NAME
    }

    fn depth(&self) -> Depth {
        Depth::Full
    }

    fn state(&self) -> SensorState {
        let mut details = Vec::new();
        match &self.loaded {
            None => details.push("stopped".to_owned()),
            Some(loaded) => {
                details.extend(loaded.problems.iter().map(|(program, reason)| format!("{program}: {reason}")));
            }
        }
        if self.shared.closed.load(Ordering::Acquire) {
            details.push("nobody takes its events".to_owned());
        }
        let refused = self.shared.refused.load(Ordering::Relaxed);
        if refused > 0 {
            details.push(format!("{refused} records were refused: agent and probes do not fit each other"));
        }
        let whole = details.is_empty();
        details.extend(self.loaded.as_ref().and_then(|loaded| loaded.note.clone()));
        if self.shrunk {
            details.push(format!("rings take {} KiB to fit the memory limit", self.rings.total() / 1024));
        }
        SensorState { name: NAME.into(), whole, detail: (!details.is_empty()).then(|| details.join("; ")) }
    }

    fn families(&self) -> Vec<FamilyState> {
        Family::ALL.into_iter().map(|family| self.family(family)).collect()
    }

    fn stop(&mut self) {
        self.missed = Family::ALL.map(|family| self.missed(family));
        // First the programs, so that the reader's last look finds everything.
        self.loaded = None;
        self.shared.stop.store(true, Ordering::Release);
        if let Some(reader) = self.reader.take() {
            // A panic in the reader was printed already; there is nothing left to hold.
            let _ = reader.join();
        }
    }
}

impl Drop for EbpfSensor {
    fn drop(&mut self) {
        self.stop();
    }
}
