//! Delivery: the spool, and the way to the gateway.
//!
//! ```text
//!  pipeline ─▶ queue ─▶ spool ─▶ relay ─▶ HTTPS ─▶ gateway
//!                                  └─▶ control (policy) ─▶ watch ─▶ pipeline
//! ```
//!
//! *Expected flow*: [`start`] once; findings go into the queue; [`Handle::stop`] at the end. *Guarantees*: a
//! finding that was spooled is sent until the gateway has a receipt for it; the gateway's absence
//! costs nothing until the spool is full. *Caveats*: in memory (sidecars) a crash loses what waits.

mod backoff;
mod client;
mod connect;
mod http;
mod key;
mod metadata;
mod origin;
mod presign;
mod record;
mod relay;
mod spool;
mod state;

pub use client::sha256_hex;
pub use http::HttpError;
pub use key::{KeyError, KeyHome};
pub use metadata::METADATA_URI;
pub use origin::{Origin, OriginError, kind};
pub use presign::{Binding, CredentialSource, PresignError, presign};
pub use spool::{DISK_BYTES, MEMORY_BYTES, SpoolCounters};
pub use state::of_pod;

use crate::control::{HeartbeatSource, PolicyKeeper, PolicyProblem, PublicKey};
use crate::workload::kubernetes::{Here, HereError};
use backoff::Backoff;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use client::Client;
use http::{Http, Scheme};
use key::AgentKey;
use relay::Relay;
use spool::Spool;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tasuki_api::agent::{AgentKind, Policy, env};
use tasuki_api::finding::Finding;
use tokio::sync::{Notify, mpsc, watch};
use url::Url;

/// The kubelet's directory with one directory a pod.
const POD_LOGS: &str = "/var/log/pods";

/// What delivery is told at start.
#[derive(Debug)]
pub struct Config {
    /// The gateway.
    pub gateway: Url,
    /// PEM of the only authority that is trusted; the roots compiled in where absent.
    pub authority: Option<String>,
    /// The controller's key; without it no policy is taken.
    pub policy_key: Option<PublicKey>,
    /// Who the agent is.
    pub origin: Origin,
    /// What the agent speaks for.
    pub kind: AgentKind,
    /// The agent's version.
    pub version: String,
    /// Directory for spool and policy; `None` keeps both in memory.
    pub state: Option<PathBuf>,
    /// In Kubernetes: the kubelet's directory of pods, by which agents that are gone are known; the parent
    /// of [`Config::state`] has a directory for each agent then.
    pub pods: Option<PathBuf>,
    /// Bound of the spool, bytes.
    pub spool_bytes: u64,
    /// Where the key lives.
    pub key: KeyHome,
    /// Least and most time between two tries.
    pub backoff: (Duration, Duration),
    /// Time at the end for what waits.
    pub farewell: Duration,
}

/// Delivery cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// A variable is missing or wrong.
    #[error("{variable} {problem}")]
    Variable {
        /// Environment variable.
        variable: &'static str,
        /// What is wrong and what to do.
        problem: &'static str,
    },
    /// The downward API.
    #[error("the agent does not know its pod")]
    Pod(#[from] HereError),
    /// The policy key.
    #[error("the policy key cannot be used")]
    PolicyKey(#[from] PolicyProblem),
    /// The credentials' place.
    #[error("the task role's credentials cannot be found")]
    Credentials(#[from] PresignError),
    /// The HTTP client.
    #[error("the connection to the gateway cannot be prepared")]
    Http(#[from] HttpError),
    /// The key.
    #[error("the agent has no key")]
    Key(#[from] KeyError),
}

impl Config {
    /// Reads the environment that the controller, and ECS or Kubernetes, give to an agent's container.
    /// `state` is a directory of the agent's own (a node's disk), or `None` in a sidecar.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
        kind: AgentKind,
        version: &str,
        state: Option<PathBuf>,
    ) -> Result<Self, DeliverError> {
        let wrong = |variable, problem| DeliverError::Variable { variable, problem };
        let gateway =
            variable(env::GATEWAY).ok_or_else(|| wrong(env::GATEWAY, "is not set; give https://host:port"))?;
        let gateway: Url = gateway.parse().map_err(|_| wrong(env::GATEWAY, "is not a URL; give https://host:port"))?;
        if gateway.scheme() != "https" || gateway.host_str().is_none() {
            return Err(wrong(env::GATEWAY, "does not begin with https://; nothing is sent in the clear"));
        }
        let authority = variable(env::GATEWAY_CA).filter(|text| !text.trim().is_empty());
        let authority =
            authority.map(|text| BASE64.decode(text.trim()).ok().and_then(|pem| String::from_utf8(pem).ok()));
        let authority = match authority {
            Some(None) => return Err(wrong(env::GATEWAY_CA, "is not base64 of a PEM certificate")),
            Some(pem) => pem,
            None => None,
        };
        let policy_key = variable(env::POLICY_KEY).map(|text| PublicKey::from_base64(&text)).transpose()?;
        let (origin, pods) = match Here::from_env(&variable).transpose()? {
            Some(here) => (Origin::pod(&here), Some(PathBuf::from(POD_LOGS))),
            None => (task(&variable)?, None),
        };
        Ok(Self {
            gateway,
            authority,
            policy_key,
            origin,
            pods,
            kind,
            version: version.to_owned(),
            spool_bytes: if state.is_some() { DISK_BYTES } else { MEMORY_BYTES },
            key: KeyHome::choose(state.as_deref(), variable(crate::supervisor::KEY).as_deref()),
            state,
            backoff: (Duration::from_secs(1), Duration::from_secs(60)),
            farewell: Duration::from_millis(1500),
        })
    }
}

/// The origin of an agent in an ECS task.
fn task(variable: &impl Fn(&str) -> Option<String>) -> Result<Origin, DeliverError> {
    let wrong = |variable, problem| DeliverError::Variable { variable, problem };
    let metadata_uri = variable(METADATA_URI).ok_or_else(|| {
        wrong(METADATA_URI, "is not set; the agent runs outside ECS and Kubernetes, or platform version < 1.4.0")
    })?;
    let sts_endpoint = variable("AWS_ENDPOINT_URL_STS").map(|url| url.parse()).transpose();
    Ok(Origin::Task {
        metadata_uri,
        credentials: CredentialSource::find(variable)?,
        sts_endpoint: sts_endpoint.map_err(|_| wrong("AWS_ENDPOINT_URL_STS", "is not a URL"))?,
    })
}

/// What the parts of delivery share.
struct Shared {
    spool: Mutex<Spool>,
    arrived: Notify,
    enrolled: watch::Sender<bool>,
    batch: AtomicUsize,
    sent: AtomicU64,
    refused: AtomicU64,
    queue_dropped: AtomicU64,
    heartbeats: AtomicU64,
    failures: AtomicU64,
    enroll_failures: AtomicU64,
    policy_refused: AtomicU64,
    skew_ms: AtomicI64,
    said: Mutex<String>,
}

impl Shared {
    fn spool(&self) -> MutexGuard<'_, Spool> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs a problem once, not at every try.
    fn say(&self, what: &'static str, detail: &str) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if *said != detail {
            tracing::warn!(detail, "{what}");
            detail.clone_into(&mut said);
        } else {
            tracing::debug!(detail, "{what}");
        }
    }
}

/// What delivery did so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// There is a session.
    pub enrolled: bool,
    /// Findings that wait.
    pub waiting: usize,
    /// Findings that the gateway has.
    pub sent: u64,
    /// Findings that the gateway will never take.
    pub refused: u64,
    /// Heartbeats that were answered.
    pub heartbeats: u64,
    /// Exchanges that failed.
    pub failures: u64,
    /// Enrolments that failed.
    pub enroll_failures: u64,
    /// Policies that did not count.
    pub policy_refused: u64,
    /// This clock minus the gateway's, milliseconds.
    pub skew_ms: i64,
    /// The spool's own counters.
    pub spool: SpoolCounters,
}

/// Running delivery.
pub struct Handle {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Handle {
    /// What it did so far.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let (waiting, spool) = {
            let spool = shared.spool();
            (spool.len(), spool.counters())
        };
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Status {
            enrolled: *shared.enrolled.borrow(),
            waiting,
            sent: read(&shared.sent),
            refused: read(&shared.refused),
            heartbeats: read(&shared.heartbeats),
            failures: read(&shared.failures),
            enroll_failures: read(&shared.enroll_failures),
            policy_refused: read(&shared.policy_refused),
            skew_ms: shared.skew_ms.load(Ordering::Relaxed),
            spool,
        }
    }

    /// Changes as sessions come and go.
    pub fn enrolled(&self) -> watch::Receiver<bool> {
        self.shared.enrolled.subscribe()
    }

    /// Counts findings that never got into the queue, because it was full: they are losses too.
    pub fn count_dropped(&self, findings: u64) {
        self.shared.queue_dropped.fetch_add(findings, Ordering::Relaxed);
    }

    /// Spools what is in the queue, sends what it can within [`Config::farewell`], and ends.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Starts delivery: findings from `queue` to the gateway, policies from it to `policy`.
///
/// # Errors
/// Where the configuration cannot work. A gateway that is away, or a disk that cannot be written, is
/// no error: the first is waited for, without the second the spool is in memory.
pub fn start(
    mut config: Config,
    source: Arc<dyn HeartbeatSource>,
    policy: watch::Sender<Arc<Policy>>,
    mut queue: mpsc::Receiver<Finding>,
) -> Result<Handle, DeliverError> {
    let gateway = Http::new(Scheme::Https(config.authority.as_deref()))?;
    let local = Http::new(Scheme::Local)?;
    let mut spool = match &config.state {
        None => Spool::memory(config.spool_bytes),
        Some(state) => Spool::open(&state.join("spool"), config.spool_bytes).unwrap_or_else(|error| {
            tracing::warn!(error = %http::chain(&error), "findings wait in memory");
            Spool::memory(MEMORY_BYTES.min(config.spool_bytes))
        }),
    };
    if let (Some(own), Some(logs)) = (&config.state, &config.pods) {
        let findings = state::inherit(own, logs, &mut spool);
        if findings > 0 {
            tracing::info!(findings, "taken over from agents that are gone");
        }
    }
    let key = AgentKey::open(std::mem::replace(&mut config.key, KeyHome::Process))?;
    let keeper = PolicyKeeper::open(config.policy_key.clone(), config.state.as_deref(), policy);
    let shared = Arc::new(Shared {
        spool: Mutex::new(spool),
        arrived: Notify::new(),
        enrolled: watch::Sender::new(false),
        batch: AtomicUsize::new(100),
        sent: AtomicU64::default(),
        refused: AtomicU64::default(),
        queue_dropped: AtomicU64::default(),
        heartbeats: AtomicU64::default(),
        failures: AtomicU64::default(),
        enroll_failures: AtomicU64::default(),
        policy_refused: AtomicU64::default(),
        skew_ms: AtomicI64::default(),
        said: Mutex::default(),
    });
    let stop = watch::Sender::new(false);
    let client = Client::new(gateway, config.gateway.clone(), key);
    let relay = Relay {
        client,
        local,
        source,
        policy: keeper,
        shared: shared.clone(),
        findings_backoff: Backoff::new(config.backoff),
        findings_after: tokio::time::Instant::now(),
        config,
    };
    let (intake, mut stopping) = (shared.clone(), stop.subscribe());
    let spooled = watch::Sender::new(false);
    let done = spooled.subscribe();
    let intake = tokio::spawn(async move {
        let mut batch = Vec::new();
        loop {
            let open = tokio::select! {
                received = queue.recv_many(&mut batch, 64) => received > 0,
                _ = stopping.wait_for(|stop| *stop) => {
                    while let Ok(finding) = queue.try_recv() {
                        batch.push(finding);
                    }
                    false
                }
            };
            let (shared, findings) = (intake.clone(), std::mem::take(&mut batch));
            if !findings.is_empty() {
                // Disk and sync block; the loop to the gateway must not wait for them.
                let _ = tokio::task::spawn_blocking(move || shared.spool().append(&findings)).await;
                intake.arrived.notify_one();
            }
            if !open {
                spooled.send_replace(true);
                return;
            }
        }
    });
    // The relay is told to stop only when all that was in the queue is spooled.
    let relay = tokio::spawn(relay.run(done_and(stop.subscribe(), done)));
    Ok(Handle { shared, stop, tasks: vec![intake, relay] })
}

/// Becomes true when both are.
fn done_and(mut stop: watch::Receiver<bool>, mut spooled: watch::Receiver<bool>) -> watch::Receiver<bool> {
    let (both, result) = watch::channel(false);
    tokio::spawn(async move {
        let stopped = stop.wait_for(|stop| *stop).await.is_ok();
        let drained = spooled.wait_for(|done| *done).await.is_ok();
        both.send_replace(stopped || drained);
    });
    result
}
