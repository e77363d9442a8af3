//! What agents talk to: authentication, policy, heartbeats, findings.
//!
//! ```text
//!  door (limits, proxy protocol, TLS) ─▶ routes ─▶ enroll ─▶ evidence · sts or token · pin ─▶ session
//!                                          ├─────▶ heartbeat ─▶ Change::Agent ─▶ engine
//!                                          ├─────▶ findings ─▶ stamp ─▶ suppress ─▶ store
//!                                          └─────▶ policy
//! ```
//!
//! What an agent says about itself is compared, never kept: resource fields come from the
//! [`Directory`]. Nothing here decides coverage or changes AWS. docs/concepts/identity.md explains
//! the checks and their limits.

pub mod directory;
mod enroll;
pub mod evidence;
mod findings;
mod heartbeat;
mod keys;
mod limits;
mod listen;
mod nonces;
mod place;
mod pods;
mod policy;
mod refuse;
mod routes;
mod sessions;
mod sts;
mod tls;
mod tokens;

pub use directory::{Directory, DirectoryError, Known, TaskRole};
pub use keys::{KeysError, KeysFrom, keep_keys};
pub use limits::Limits;
pub use pods::AgentPods;
pub use policy::{Bundle, PolicyError, PolicyStore};
pub use refuse::Code;
pub use sts::StsEndpoint;
pub use tls::{Authority, Certificate};
pub use tokens::{ApiReviewer, ReviewError, Reviewed, TokenReviewer};

use crate::cidr::Cidr;
use crate::http::{Http, HttpError};
use crate::sinks::{FilterError, Suppressions};
use crate::store::{GATEWAY_ID, Store, StoreError};
use crate::tally::Tally;
use axum_server::Handle;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hyper_util::rt::TokioTimer;
use jiff::{SignedDuration, Timestamp};
use limits::{Buckets, Connections};
use listen::Door;
use nonces::Nonces;
use sessions::Sessions;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use sts::Sts;
use tasuki_api::agent::{HEARTBEATS_UNTIL_SILENT, NODE_HEARTBEAT_SECONDS, SIDECAR_HEARTBEAT_SECONDS};
use tasuki_api::desired::Document;
use tasuki_core::fleet::Change;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::task::TaskTracker;

/// Heartbeats of silence after which another key may take over.
const SILENT_INTERVALS: i32 = HEARTBEATS_UNTIL_SILENT as i32;
/// Bodies read at once: 256 of at most 1 MiB.
const BODIES: usize = 256;
/// Pods that are proved at once.
const PODS_PROVED: usize = 64;

/// Wall clock; tests give their own.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the gateway is told at start.
#[derive(Clone)]
pub struct Config {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Its certificate.
    pub certificate: Certificate,
    /// Where STS is.
    pub sts: StsEndpoint,
    /// Load balancers that speak proxy protocol v2 (their addresses).
    pub proxies: Vec<Cidr>,
    /// What it bears.
    pub limits: Limits,
    /// Seconds between heartbeats of a node agent.
    pub node_heartbeat_seconds: u64,
    /// Seconds between heartbeats of a sidecar.
    pub sidecar_heartbeat_seconds: u64,
    /// Where Tasuki's agents run in Kubernetes.
    pub agent_pods: AgentPods,
    /// Wall clock.
    pub clock: Clock,
}

impl Config {
    /// Defaults, with the gateway's own authority.
    pub fn new(listen: SocketAddr, names: Vec<String>) -> Self {
        Self {
            listen,
            certificate: Certificate::Own { names },
            sts: StsEndpoint::Aws,
            proxies: Vec::new(),
            limits: Limits::default(),
            node_heartbeat_seconds: NODE_HEARTBEAT_SECONDS,
            sidecar_heartbeat_seconds: SIDECAR_HEARTBEAT_SECONDS,
            agent_pods: AgentPods::default(),
            clock: Arc::new(Timestamp::now),
        }
    }
}

/// What the gateway works with.
pub struct Parts {
    /// Keeps findings, keys and settings.
    pub store: Store,
    /// What ECS and Kubernetes say.
    pub directory: Arc<dyn Directory>,
    /// Policies; [`PolicyStore::update`] puts new ones into force.
    pub policies: Arc<PolicyStore>,
    /// Where heartbeats go.
    pub changes: mpsc::Sender<Change>,
    /// For STS.
    pub http: Http,
    /// Looks at pods' tokens; `None` where there is no Kubernetes, and pods are refused.
    pub reviewer: Option<Arc<dyn TokenReviewer>>,
}

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address cannot be listened on.
    #[error("the gateway cannot listen on {address}; is it in use, or not this machine's?")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no certificate to show.
    #[error("the gateway could not {what}")]
    Certificate {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store failed.
    #[error("the gateway's keys could not be read or kept")]
    Store(#[from] StoreError),
    /// The HTTP client cannot be made.
    #[error("the gateway cannot call STS")]
    Http(#[from] HttpError),
}

/// Everything that the handlers share.
struct Inner {
    id: String,
    started_at: Timestamp,
    clock: Clock,
    limits: Limits,
    node_heartbeat_seconds: u64,
    sidecar_heartbeat_seconds: u64,
    store: Store,
    directory: Arc<dyn Directory>,
    policies: Arc<PolicyStore>,
    changes: mpsc::Sender<Change>,
    sts: Sts,
    reviewer: Option<Arc<dyn TokenReviewer>>,
    agent_pods: AgentPods,
    nonces: Nonces,
    sessions: Sessions,
    buckets: Buckets,
    bodies: Semaphore,
    pods_proved: Semaphore,
    suppressions: RwLock<Arc<Suppressions>>,
    stored: watch::Sender<u64>,
    tally: Arc<Tally>,
}

impl Inner {
    fn suppressions(&self) -> Arc<Suppressions> {
        self.suppressions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The running gateway.
pub struct Gateway {
    inner: Arc<Inner>,
    address: SocketAddr,
    authority: Option<String>,
    server: Handle<SocketAddr>,
    tasks: TaskTracker,
    stop: watch::Sender<bool>,
}

impl Gateway {
    /// Starts to listen; when this returns, agents may come.
    pub async fn start(config: Config, parts: Parts) -> Result<Self, GatewayError> {
        let now = (config.clock)();
        let store = parts.store;
        let id = store.setting_or_insert(GATEWAY_ID, &BASE64.encode(rand::random::<[u8; 16]>())).await?;
        let (tls, authority) = match &config.certificate {
            Certificate::Own { names } => {
                let authority = Authority::open(&store, now).await?;
                (authority.server(names, now)?, Some(authority))
            }
            Certificate::Files { chain, key } => (tls::from_files(chain, key)?, None),
        };
        let tls = RustlsConfig::from_config(tls);
        let listen_error = |source| GatewayError::Listen { address: config.listen, source };
        let listener = std::net::TcpListener::bind(config.listen).map_err(listen_error)?;
        listener.set_nonblocking(true).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;

        let limits = config.limits;
        let tally = Arc::new(Tally::default());
        let inner = Arc::new(Inner {
            id,
            started_at: now,
            clock: config.clock,
            limits,
            node_heartbeat_seconds: config.node_heartbeat_seconds.max(1),
            sidecar_heartbeat_seconds: config.sidecar_heartbeat_seconds.max(1),
            store,
            directory: parts.directory,
            policies: parts.policies,
            changes: parts.changes,
            sts: Sts::new(parts.http, config.sts),
            reviewer: parts.reviewer,
            agent_pods: config.agent_pods,
            nonces: Nonces::new(limits.sessions),
            sessions: Sessions::new(limits.sessions),
            buckets: Buckets::new(limits.requests_per_second, limits.burst, limits.sessions),
            bodies: Semaphore::new(BODIES),
            pods_proved: Semaphore::new(PODS_PROVED),
            suppressions: RwLock::default(),
            stored: watch::Sender::new(0),
            tally: tally.clone(),
        });
        let door = Door {
            connections: Connections::new(limits.connections, limits.connections_per_address),
            proxies: config.proxies.into(),
            tally,
        };
        let server = Handle::new();
        let acceptor = RustlsAcceptor::new(tls.clone()).handshake_timeout(Duration::from_secs(10)).acceptor(door);
        let mut listening = axum_server::from_tcp(listener)
            .map_err(listen_error)?
            .acceptor(acceptor)
            .handle(server.clone())
            .http1_only()
            .first_request_timeout(Duration::from_secs(15));
        // Also how long an idle connection is kept: agents' clients give theirs up earlier.
        listening.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
        let service = routes::router(inner.clone()).into_make_service();
        let tasks = TaskTracker::new();
        let stop = watch::Sender::new(false);
        tasks.spawn(async move {
            if let Err(error) = listening.serve(service).await {
                tracing::error!(%error, "the gateway no longer listens");
            }
        });
        let pem = authority.as_ref().map(|authority| authority.pem.clone());
        tasks.spawn(keep(inner.clone(), stop.subscribe()));
        tasks.spawn(renew(config.certificate, authority, tls, inner.clock.clone(), stop.subscribe()));
        tracing::info!(%address, gateway = %inner.id, "gateway listens");
        Ok(Self { inner, address, authority: pem, server, tasks, stop })
    }

    /// Address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Value of `TASUKI_GATEWAY_CA`: base64 of the authority's PEM; `None` with the user's own files.
    pub fn authority(&self) -> Option<String> {
        self.authority.as_ref().map(|pem| BASE64.encode(pem))
    }

    /// Puts suppressions into force. Those that cannot be used are returned by name; they suppress
    /// nothing.
    pub fn suppress(&self, documents: &[Document]) -> Vec<(String, FilterError)> {
        let (suppressions, problems) = Suppressions::new(documents);
        *self.inner.suppressions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(suppressions);
        problems
    }

    /// Changes whenever findings were stored: what the sinks wait for.
    pub fn stored(&self) -> watch::Receiver<u64> {
        self.inner.stored.subscribe()
    }

    /// What was taken and refused, by stable name.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.inner.tally
    }

    /// Sessions that are open.
    pub fn sessions(&self) -> usize {
        self.inner.sessions.len()
    }

    /// How the agent of a task proved who it is: whether it came from the task's own address, and whether
    /// the task's role signed or the pod's token was taken. `None` where it has no session here.
    pub fn identity(&self, task: &str) -> Option<(evidence::Address, bool)> {
        self.inner.sessions.of_task(task).map(|session| (session.address, session.signed))
    }

    /// Stops listening, lets requests under way end within `grace`, and writes down who was heard.
    pub async fn stop(self, grace: Duration) {
        self.server.graceful_shutdown(Some(grace));
        self.stop.send_replace(true);
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Writes down every 5 s who was heard, in one transaction, and forgets keys of dead tasks daily.
async fn keep(inner: Arc<Inner>, mut stop: watch::Receiver<bool>) {
    let mut rounds = 0u64;
    loop {
        let stopping = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => true,
            () = tokio::time::sleep(Duration::from_secs(5)) => false,
        };
        if let Err(error) = inner.store.agents_heard(&inner.sessions.heard()).await {
            tracing::warn!(%error, "the store could not note when agents were heard");
        }
        if rounds.is_multiple_of(17_280) {
            let before = (inner.clock)() - SignedDuration::from_hours(7 * 24);
            if let Err(error) = inner.store.prune_pins(before).await {
                tracing::warn!(%error, "the store could not forget keys of ended tasks");
            }
        }
        if stopping {
            return;
        }
        rounds += 1;
    }
}

/// Shows a new certificate before the old one expires; connections under way keep theirs.
async fn renew(
    certificate: Certificate,
    authority: Option<Authority>,
    tls: RustlsConfig,
    clock: Clock,
    mut stop: watch::Receiver<bool>,
) {
    let mut made = clock();
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(Duration::from_secs(3600)) => {}
        }
        let renewed = match (&certificate, &authority) {
            (Certificate::Own { names }, Some(authority)) if tls::due(made, clock()) => {
                authority.server(names, clock())
            }
            (Certificate::Files { chain, key }, _) => tls::from_files(chain, key),
            _ => continue,
        };
        match renewed {
            Ok(config) => {
                made = clock();
                tls.reload_from_config(config);
            }
            Err(error) => {
                tracing::error!(%error, cause = ?std::error::Error::source(&error).map(ToString::to_string), "the old certificate stays")
            }
        }
    }
}
