//! Agents: wherever the cloud runs an agent's container, the agent's own delivery speaks for it, configured by the
//! environment that the controller gave to the container. What it says of itself is given here.

use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tasuki_agent::control::HeartbeatSource;
use tasuki_agent::deliver::{self, Handle};
use tasuki_api::agent::{AgentKind, Heartbeat};
use tasuki_api::finding::Finding;
use tasuki_cloud::cloud::Cloud;
use tasuki_cloud::ecs::{Task, short};
use tasuki_cloud::runtime::{TaskSpec, Virtual};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// The container's name.
const AGENT: &str = "tasuki-agent";

pub struct Agent {
    pub findings: mpsc::Sender<Finding>,
    pub handle: Handle,
    pub node: Option<String>,
    pub version: String,
}

pub struct Agents {
    cloud: Cloud,
    runtime: Arc<Virtual>,
    metadata: String,
    pub running: Mutex<BTreeMap<String, Agent>>,
    /// Versions whose agent never says anything.
    pub mute: Mutex<BTreeSet<String>>,
    door: AtomicU16,
    opened: AtomicBool,
    closed: Arc<AtomicBool>,
}

/// Tasks of the cloud that run and are to go on.
fn live(cloud: &Cloud) -> Vec<Task> {
    let world = cloud.world();
    let tasks = world.places.values().flat_map(|place| place.ecs.tasks.values());
    tasks.filter(|task| !task.stop_wanted && format!("{:?}", task.last_status) == "Running").cloned().collect()
}

struct Says {
    cloud: Cloud,
    task: String,
    node: Option<String>,
    version: String,
    started: jiff::Timestamp,
}

impl HeartbeatSource for Says {
    fn heartbeat(&self) -> Heartbeat {
        let tasks = match &self.node {
            None => vec![self.task.clone()],
            Some(node) => {
                let on = live(&self.cloud).into_iter().filter(|task| task.instance_arn.as_ref() == Some(node));
                on.map(|task| task.arn).collect()
            }
        };
        let depth = if self.node.is_some() { "Full" } else { "Process" };
        serde_json::from_value(json!({
            "time": jiff::Timestamp::now().to_string(), "startedAt": self.started.to_string(), "version": self.version,
            "sensors": [{"name": "ebpf", "whole": true}], "depth": depth, "kernel": "6.1", "policy": "", "tasks": tasks,
            "families": [], "unavailable": [], "usage": {}, "restarts": 0
        }))
        .unwrap()
    }
}

impl Agents {
    pub fn new(cloud: Cloud, runtime: Arc<Virtual>, metadata: String) -> Self {
        let (running, mute) = (Mutex::default(), Mutex::default());
        Self {
            cloud,
            runtime,
            metadata,
            running,
            mute,
            door: AtomicU16::new(0),
            opened: AtomicBool::new(false),
            closed: Arc::default(),
        }
    }

    /// Follows the cloud's containers.
    pub async fn keep(self: Arc<Self>) {
        loop {
            let live: BTreeSet<String> = live(&self.cloud).into_iter().map(|task| task.arn).collect();
            let gone: Vec<Agent> = {
                let mut running = self.running.lock().unwrap();
                let gone: Vec<String> = running.keys().filter(|arn| !live.contains(*arn)).cloned().collect();
                gone.iter().filter_map(|arn| running.remove(arn)).collect()
            };
            for agent in gone {
                tokio::spawn(agent.handle.stop());
            }
            for spec in self.runtime.specs().into_iter().filter(|spec| live.contains(&spec.task_arn)) {
                if !self.running.lock().unwrap().contains_key(&spec.task_arn)
                    && let Some(agent) = self.agent(&spec)
                {
                    self.running.lock().unwrap().insert(spec.task_arn.clone(), agent);
                }
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Starts the agent of a task, if it has one that speaks.
    pub fn agent(&self, spec: &TaskSpec) -> Option<Agent> {
        let container = spec.containers.iter().find(|container| container.name == AGENT)?;
        let digits = container.image.rsplit(':').next()?.trim_start_matches('0');
        let version = digits.chars().map(String::from).collect::<Vec<_>>().join(".");
        if self.mute.lock().unwrap().contains(&version) {
            return None;
        }
        let task = live(&self.cloud).into_iter().find(|task| task.arn == spec.task_arn)?;
        let node = task.instance_arn;
        let kind = if node.is_some() { AgentKind::Node } else { AgentKind::Sidecar };
        let variable = |name: &str| {
            let given =
                |name: &str| container.environment.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
            match name {
                // The same endpoint, at the address that it has on this machine.
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" => None,
                "AWS_CONTAINER_CREDENTIALS_FULL_URI" => {
                    given("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("{}{path}", self.metadata))
                }
                _ => given(name),
            }
        };
        let config = deliver::Config::from_environment(variable, kind, &version, None).unwrap();
        Some(self.start(config, &spec.task_arn, node, &version))
    }

    /// Starts an agent with a configuration of one's own.
    pub fn start(&self, mut config: deliver::Config, task: &str, node: Option<String>, version: &str) -> Agent {
        config.backoff = (Duration::from_millis(50), Duration::from_millis(500));
        let (findings, queue) = mpsc::channel(1000);
        let (cloud, task, started) = (self.cloud.clone(), task.to_owned(), jiff::Timestamp::now());
        let source = Says { cloud, task, node: node.clone(), version: version.to_owned(), started };
        let handle = deliver::start(config, Arc::new(source), watch::channel(Arc::default()).0, queue).unwrap();
        Agent { findings, handle, node, version: version.to_owned() }
    }

    /// Nodes on which an agent is enrolled, with the agents' versions.
    pub fn nodes(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut nodes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for agent in self.running.lock().unwrap().values().filter(|agent| agent.handle.status().enrolled) {
            if let Some(node) = &agent.node {
                nodes.entry(short(node).to_owned()).or_default().insert(agent.version.clone());
            }
        }
        nodes
    }

    /// Port by which agents reach the gateway.
    pub fn door(&self) -> u16 {
        if self.door.load(Ordering::SeqCst) == 0 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            self.door.store(free, Ordering::SeqCst);
        }
        self.door.load(Ordering::SeqCst)
    }

    /// Whether agents reach the gateway.
    pub fn shut(&self, shut: bool) {
        self.closed.store(shut, Ordering::SeqCst);
    }

    /// Passes connections on to the gateway's port while the door is open.
    pub async fn open_door(&self, to: u16) {
        if self.opened.swap(true, Ordering::SeqCst) {
            return;
        }
        let door = self.door();
        let listener = TcpListener::bind(("127.0.0.1", door)).await.unwrap();
        let closed = self.closed.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let closed = closed.clone();
                tokio::spawn(async move {
                    if closed.load(Ordering::SeqCst) {
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
                    let shut = async {
                        while !closed.load(Ordering::SeqCst) {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = shut => {}
                    }
                });
            }
        });
    }
}
