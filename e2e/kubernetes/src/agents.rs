//! The agents' side on nodes of KWOK: for each pod of the agents that KWOK claims to run, a session with the gateway.
//!
//! ```text
//!  watch on pods ─▶ pods of each node ──────────────┐
//!        └─▶ a pod of the agents runs ─▶ its token ─▶ the agent's own delivery ─▶ gateway
//!                 └─ it is told to stop: the session ends, as with SIGTERM
//! ```
//! Enrolment, signatures, heartbeats and policies are those of the crate `tasuki-agent`; only what a kubelet and a
//! sensor would give is made up here: the environment from the pod's own spec, its projected token by TokenRequest,
//! and which pods run on the node.
//!
//! *Caveats*: every session comes from 127.0.0.1. From some 20 agents on, start the controller with
//! [`Agents::LIMITS`], or the gateway takes them for one flooding client.

use crate::plane::ControlPlane;
use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tasuki_agent::control::HeartbeatSource;
use tasuki_agent::deliver::{self, KeyHome, Origin};
use tasuki_api::agent::{AgentKind, Heartbeat, Policy, SensorState, Usage};
use tasuki_api::coverage::Depth;
use tasuki_api::finding::Finding;
use tasuki_api::kubernetes::{PodName, env};
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;
use url::Url;

/// Where agents run.
const NAMESPACE: &str = "tasuki-agents";
/// Their container.
const CONTAINER: &str = "tasuki-agent";
/// Tokens asked for at once; a cluster has a kubelet on each node, and this one has to share a machine.
const TOKENS: usize = 16;
/// By which a static pod is known on its node.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// The agents of one cluster; dropping it ends all of them. Each takes some 200 KiB.
pub struct Agents {
    shared: Arc<Shared>,
    following: AbortHandle,
}

struct Shared {
    accounts: Api<ServiceAccount>,
    gateway: Url,
    tokens: Semaphore,
    muted: watch::Sender<BTreeSet<String>>,
    state: Mutex<State>,
    directory: TempDir,
}

#[derive(Default)]
struct State {
    /// Of each node the pods that run there, by their uid.
    nodes: HashMap<String, BTreeMap<String, Name>>,
    /// The agents, by their pod's uid.
    agents: HashMap<String, Running>,
    /// Nodes on whose kernel an agent sees the network only.
    old_kernels: BTreeSet<String>,
    /// Nodes whose agent went while no other one there had spoken.
    gaps: Vec<String>,
}

struct Running {
    node: String,
    version: String,
    speaks: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Agents {
    /// Arguments with which the gateway takes ten thousand agents from one address.
    pub const LIMITS: [&str; 4] =
        ["--gateway-connections-per-address", "20000", "--gateway-requests-per-address", "20000"];

    /// Follows the agents' pods and speaks for each one at the gateway, `127.0.0.1:port`.
    ///
    /// # Errors
    /// Where the API server cannot be asked.
    pub async fn start(plane: &ControlPlane, gateway: &str) -> Result<Self> {
        let client = plane.client().await?;
        let shared = Arc::new(Shared {
            accounts: Api::namespaced(client.clone(), NAMESPACE),
            gateway: format!("https://{gateway}").parse().with_context(|| format!("{gateway} is no address"))?,
            tokens: Semaphore::new(TOKENS),
            muted: watch::Sender::default(),
            state: Mutex::default(),
            directory: tempfile::Builder::new().prefix("agents-").tempdir_in(plane.directory())?,
        });
        let following = tokio::spawn(follow(client, shared.clone())).abort_handle();
        Ok(Self { shared, following })
    }

    /// Silences the agents of this version, as if they hung: their pods go on running.
    pub fn mute(&self, version: &str) {
        self.shared.muted.send_if_modified(|muted| muted.insert(version.to_owned()));
    }

    /// Gives a node a kernel on which an agent sees the network only.
    pub fn age_kernel(&self, node: &str) {
        self.shared.state().old_kernels.insert(node.to_owned());
    }

    /// Lets them speak again.
    pub fn unmute(&self, version: &str) {
        self.shared.muted.send_if_modified(|muted| muted.remove(version));
    }

    /// How many agents of this version speak.
    pub fn speaking(&self, version: &str) -> usize {
        let state = self.shared.state();
        let muted = self.shared.muted.borrow();
        state.agents.values().filter(|agent| agent.version == version && agent.speaks(&muted)).count()
    }

    /// Nodes whose last agent that spoke went, each as often as that happened: a hand-over without an agent, or the
    /// end of the node or of its DaemonSet.
    pub fn gaps(&self) -> Vec<String> {
        self.shared.state().gaps.clone()
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        // The follower holds all the agents' tasks, and ends them as it goes.
        self.following.abort();
    }
}

impl Running {
    /// It has begun to report. That comes before anyone can have heard it, so who acts on having heard it is never
    /// taken for one who did not wait.
    fn speaks(&self, muted: &BTreeSet<String>) -> bool {
        self.speaks.load(Ordering::SeqCst) && !muted.contains(&self.version)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is running of a pod from now on.
    fn put(self: &Arc<Self>, pod: &Pod, tasks: &mut JoinSet<()>) {
        let Some(seen) = Seen::of(pod) else { return };
        let mut state = self.state();
        let node = state.nodes.entry(seen.node.clone()).or_default();
        match seen.runs {
            true => node.insert(seen.uid.clone(), seen.name.clone()),
            false => node.remove(&seen.uid),
        };
        if seen.name.namespace != NAMESPACE || !seen.runs || seen.leaving {
            return self.end(&mut state, &seen.uid);
        }
        if !state.agents.contains_key(&seen.uid) {
            let (uid, node, version) = (seen.uid.clone(), seen.node.clone(), version(pod));
            let speaks = Arc::<AtomicBool>::default();
            let agent = Agent { shared: self.clone(), version: version.clone(), seen, speaks: speaks.clone() };
            let task = tasks.spawn(agent.run(pod.clone()));
            state.agents.insert(uid, Running { node, version, speaks, task });
        }
    }

    fn gone(&self, pod: &Pod) {
        let Some(seen) = Seen::of(pod) else { return };
        let mut state = self.state();
        if let Some(node) = state.nodes.get_mut(&seen.node) {
            node.remove(&seen.uid);
        }
        self.end(&mut state, &seen.uid);
    }

    /// Of what was there before a list only what the list has is left.
    fn keep(&self, listed: &BTreeSet<String>) {
        let mut state = self.state();
        state.nodes.values_mut().for_each(|pods| pods.retain(|uid, _| listed.contains(uid)));
        let gone: Vec<String> = state.agents.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
        gone.iter().for_each(|uid| self.end(&mut state, uid));
    }

    /// An agent's pod is told to stop, or is gone.
    fn end(&self, state: &mut State, uid: &str) {
        let Some(agent) = state.agents.remove(uid) else { return };
        agent.task.abort();
        let muted = self.muted.borrow();
        let left = state.agents.values().any(|other| other.node == agent.node && other.speaks(&muted));
        if agent.speaks(&muted) && !left {
            state.gaps.push(agent.node);
        }
    }
}

async fn follow(client: Client, shared: Arc<Shared>) {
    let mut pods = watcher(Api::<Pod>::all(client), watcher::Config::default()).default_backoff().boxed();
    let mut tasks = JoinSet::new();
    let mut listed = BTreeSet::new();
    while let Some(event) = pods.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(pod)) => {
                listed.extend(pod.uid());
                shared.put(&pod, &mut tasks);
            }
            Ok(Event::InitDone) => shared.keep(&listed),
            Ok(Event::Apply(pod)) => shared.put(&pod, &mut tasks),
            Ok(Event::Delete(pod)) => shared.gone(&pod),
            // The watch begins again by itself.
            Err(_) => {}
        }
        while tasks.try_join_next().is_some() {}
    }
}

/// What a kubelet knows of a pod on its node.
struct Seen {
    uid: String,
    node: String,
    name: Name,
    runs: bool,
    leaving: bool,
}

/// By which a node's agent names a pod.
#[derive(Clone)]
struct Name {
    namespace: String,
    uid: String,
    name: String,
}

impl Seen {
    fn of(pod: &Pod) -> Option<Self> {
        let (uid, namespace, name) = (pod.uid()?, pod.namespace()?, pod.name_any());
        let fixed = pod.annotations().get(STATIC_UID);
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        Some(Self {
            name: Name { namespace, uid: fixed.unwrap_or(&uid).clone(), name },
            uid,
            node: pod.spec.as_ref()?.node_name.clone().filter(|node| !node.is_empty())?,
            runs: phase == Some("Running"),
            leaving: pod.metadata.deletion_timestamp.is_some(),
        })
    }
}

fn version(pod: &Pod) -> String {
    pod.labels().get("app.kubernetes.io/version").cloned().unwrap_or_default()
}

/// An agent in its pod.
struct Agent {
    shared: Arc<Shared>,
    version: String,
    seen: Seen,
    speaks: Arc<AtomicBool>,
}

impl Agent {
    async fn run(self, pod: Pod) {
        let mut muted = self.shared.muted.subscribe();
        let mut session = None;
        let mut renewal = Instant::now();
        loop {
            if Instant::now() >= renewal {
                match self.renew(&pod).await {
                    // As the kubelet does (pkg/kubelet/token).
                    Ok(lifetime) => renewal = Instant::now() + lifetime * 4 / 5,
                    Err(error) => {
                        self.say(&error);
                        renewal = Instant::now() + Duration::from_secs(1);
                    }
                }
            }
            if muted.borrow_and_update().contains(&self.version) {
                session = None;
                self.speaks.store(false, Ordering::SeqCst);
            } else if session.is_none() && self.token().exists() {
                session = self.enrol(&pod).inspect_err(|error| self.say(error)).ok();
            }
            tokio::select! {
                () = tokio::time::sleep_until(renewal) => {}
                changed = muted.changed() => if changed.is_err() { return },
            }
        }
    }

    /// What goes wrong here is a test's own trouble.
    fn say(&self, error: &anyhow::Error) {
        eprintln!("agent in pod {} on {}: {error:#}", self.seen.name.name, self.seen.node);
    }

    fn token(&self) -> PathBuf {
        self.shared.directory.path().join(format!("{}.token", self.seen.uid))
    }

    /// Puts a token where the agent finds it, as the pod's projected volume asks for it; gives how long it is good.
    async fn renew(&self, pod: &Pod) -> Result<Duration> {
        let spec = pod.spec.as_ref().context("a pod without a spec")?;
        let sources = spec.volumes.iter().flatten().filter_map(|volume| volume.projected.as_ref()?.sources.as_ref());
        let projected = sources.flatten().find_map(|source| source.service_account_token.as_ref());
        let projected = projected.context("no token is projected into the pod")?;
        let account = spec.service_account_name.as_deref().unwrap_or("default");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: projected.audience.iter().cloned().collect(),
                expiration_seconds: projected.expiration_seconds,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(self.seen.name.name.clone()),
                    uid: Some(self.seen.uid.clone()),
                }),
            },
            ..TokenRequest::default()
        };
        let _turn = self.shared.tokens.acquire().await?;
        let answer = self.shared.accounts.create_token_request(account, &PostParams::default(), &request).await?;
        let status = answer.status.context("the API server gave no token")?;
        std::fs::write(self.token(), status.token)?;
        Ok(status.expiration_timestamp.0.duration_since(Timestamp::now()).unsigned_abs())
    }

    /// Begins to speak.
    fn enrol(&self, pod: &Pod) -> Result<Session> {
        let variable = |name: &str| environment(pod, name);
        let mut config = deliver::Config::from_environment(variable, AgentKind::Node, &self.version, None)?;
        let Origin::Pod { token, .. } = &mut config.origin else { bail!("its environment is not that of a pod") };
        *token = self.token();
        config.gateway = self.shared.gateway.clone();
        // A kubelet's log directory is none of a pod's that only seems to run.
        config.pods = None;
        config.key = KeyHome::File(self.shared.directory.path().join(format!("{}.key", self.seen.uid)));
        let source = Source {
            shared: self.shared.clone(),
            cluster: variable(env::CLUSTER).context("it is not told its cluster")?,
            node: self.seen.node.clone(),
            version: self.version.clone(),
            started_at: Timestamp::now(),
            speaks: self.speaks.clone(),
        };
        let (findings, queue) = mpsc::channel(1);
        let (obeyed, policy) = watch::channel(Arc::default());
        let handle = deliver::start(config, Arc::new(source), obeyed, queue)?;
        Ok(Session { _handle: handle, _findings: findings, _policy: policy })
    }
}

/// Delivery ends with its handle; the other two are the rest of an agent.
struct Session {
    _handle: deliver::Handle,
    _findings: mpsc::Sender<Finding>,
    _policy: watch::Receiver<Arc<Policy>>,
}

/// A variable of the agent's container, as the kubelet would set it.
fn environment(pod: &Pod, name: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let container = spec.containers.iter().find(|container| container.name == CONTAINER)?;
    let variable = container.env.iter().flatten().find(|variable| variable.name == name)?;
    let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
    match field.map(|field| field.field_path.as_str()) {
        None => variable.value.clone(),
        Some("metadata.namespace") => pod.namespace(),
        Some("metadata.name") => pod.metadata.name.clone(),
        Some("metadata.uid") => pod.uid(),
        Some("spec.nodeName") => spec.node_name.clone(),
        Some(_) => None,
    }
}

/// What an agent whose sensor is whole says of itself.
struct Source {
    shared: Arc<Shared>,
    cluster: String,
    node: String,
    version: String,
    started_at: Timestamp,
    speaks: Arc<AtomicBool>,
}

impl HeartbeatSource for Source {
    fn heartbeat(&self) -> Heartbeat {
        self.speaks.store(true, Ordering::SeqCst);
        let name = |pod: &Name| {
            PodName { cluster: &self.cluster, namespace: &pod.namespace, uid: &pod.uid, name: &pod.name }.to_string()
        };
        let state = self.shared.state();
        let (sensor, depth, kernel) = match state.old_kernels.contains(&self.node) {
            true => ("network", Depth::Network, "4.14.355-kwok"),
            false => ("ebpf", Depth::Full, "6.1.0-kwok"),
        };
        let tasks = state.nodes.get(&self.node).map(|pods| pods.values().map(name).collect());
        Heartbeat {
            time: Timestamp::now(),
            started_at: self.started_at,
            version: self.version.clone(),
            sensors: vec![SensorState { name: sensor.to_owned(), whole: true, detail: None }],
            depth,
            kernel: kernel.to_owned(),
            policy: String::new(),
            tasks: tasks.unwrap_or_default(),
            families: Vec::new(),
            unavailable: Vec::new(),
            usage: Usage { prioritised: true, ..Usage::default() },
            restarts: 0,
            last_exit: None,
        }
    }
}
