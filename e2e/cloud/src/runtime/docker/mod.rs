//! Tasks as real containers of a Docker Engine on this machine.
//!
//! Containers of one task share what ECS makes them share, through a pause container that holds the
//! task's network, PID and IPC namespaces. Their cgroups lie below `/ecs/<task id>`, as the ECS agent
//! lays them. A bridge of the cloud's own plays the VPC; the host owns 169.254.170.2 on it, so that
//! the metadata and credentials endpoints answer at AWS's own address.
//!
//! *Caveats*: every container instance is this one machine, so a cluster has one that runs anything.
//! Images are those that the engine holds; nothing is pulled. The digest of an image is its id.
//! `awslogs` becomes the engine's own log.

mod cgroup;
mod config;
mod image;
mod network;
mod task;

use super::{Runtime, RuntimeEvent, TaskSpec};
use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveContainerOptionsBuilder};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

/// Label on everything that the cloud makes; its value is the cloud's name.
pub const LABEL: &str = "dev.tasuki.local-cloud";

/// How long the network may be held by containers that are going.
const LAST_WAIT: Duration = Duration::from_secs(10);

/// Where the Docker Engine is and what the cloud's own things are called there.
#[derive(Clone, Debug)]
pub struct Options {
    /// `unix:///var/run/docker.sock`.
    pub host: String,
    /// Names the network and labels the containers; two clouds on one engine need two names. At
    /// most 15 bytes, since the bridge is called so too.
    pub name: String,
    /// First three octets of the /24 that plays the VPC.
    pub subnet: [u8; 3],
}

impl Default for Options {
    fn default() -> Self {
        Self { host: "unix:///var/run/docker.sock".to_owned(), name: "tasuki-cloud".to_owned(), subnet: [172, 31, 250] }
    }
}

/// What the engine, or the host, would not do.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The Docker Engine refused or is not there.
    #[error("the Docker Engine at {host} could not {doing}")]
    Engine {
        /// Where.
        host: String,
        /// What was asked.
        doing: &'static str,
        /// Its answer.
        #[source]
        source: bollard::errors::Error,
    },
    /// The host refused.
    #[error("could not {doing}; the local cloud needs root for it")]
    Host {
        /// What was tried.
        doing: String,
        /// The host's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A running task, as far as the outside may touch it.
struct Handle {
    stop: watch::Sender<bool>,
    spec: Arc<TaskSpec>,
}

/// The runtime. See the module page.
pub struct Docker {
    engine: Arc<Engine>,
    events: OnceLock<UnboundedSender<RuntimeEvent>>,
    tasks: Mutex<HashMap<String, Handle>>,
    executor: tokio::runtime::Handle,
}

/// The engine with what every task needs to know of it.
pub(super) struct Engine {
    client: bollard::Docker,
    options: Options,
}

impl Engine {
    fn error(&self, doing: &'static str) -> impl FnOnce(bollard::errors::Error) -> DockerError {
        let host = self.options.host.clone();
        move |source| DockerError::Engine { host, doing, source }
    }
}

impl Docker {
    /// Connects to the engine and makes bridge, metadata address and pause image. Must be called
    /// inside a tokio runtime, which the tasks then live on.
    pub async fn start(options: Options) -> Result<Self, DockerError> {
        let host = options.host.clone();
        let client = bollard::Docker::connect_with_host(&host).map_err(|source| DockerError::Engine {
            host,
            doing: "be reached",
            source,
        })?;
        let engine = Engine { client, options };
        engine.client.ping().await.map_err(engine.error("answer a ping"))?;
        engine.remove_leftovers().await?;
        network::create(&engine).await?;
        image::ensure_pause(&engine).await?;
        Ok(Self {
            engine: Arc::new(engine),
            events: OnceLock::new(),
            tasks: Mutex::default(),
            executor: tokio::runtime::Handle::current(),
        })
    }

    /// The host's address on the bridge: where tasks reach a server on this machine.
    pub fn gateway(&self) -> Ipv4Addr {
        network::gateway(&self.engine.options)
    }

    /// Removes every container, the network and the metadata address.
    pub async fn shut_down(&self) -> Result<(), DockerError> {
        // A container that is going when it is asked to holds its endpoint for a moment longer.
        let deadline = Instant::now() + LAST_WAIT;
        loop {
            self.engine.remove_leftovers().await?;
            match network::remove(&self.engine).await {
                Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(200)).await,
                removed => return removed,
            }
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<String, Handle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Containers of an earlier run under the same name.
    async fn remove_leftovers(&self) -> Result<(), DockerError> {
        let label = format!("{LABEL}={}", self.options.name);
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let list = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        for container in self.client.list_containers(Some(list)).await.map_err(self.error("list containers"))? {
            let force = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
            let id = container.id.unwrap_or_default();
            if let Err(error) = self.client.remove_container(&id, Some(force)).await {
                tracing::debug!(%error, id, "a leftover container went by itself");
            }
        }
        Ok(())
    }
}

impl Runtime for Docker {
    fn attach(&self, events: UnboundedSender<RuntimeEvent>) {
        if self.events.set(events).is_err() {
            tracing::warn!("attached twice; the first one stays");
        }
    }

    fn start_task(&self, spec: TaskSpec) {
        let Some(events) = self.events.get().cloned() else {
            tracing::error!(task = spec.task_arn, "started before attach; nobody would hear of it");
            return;
        };
        let (stop, stopped) = watch::channel(false);
        let spec = Arc::new(spec);
        self.tasks().insert(spec.task_arn.clone(), Handle { stop, spec: Arc::clone(&spec) });
        self.executor.spawn(task::run(Arc::clone(&self.engine), spec, stopped, events));
    }

    fn stop_task(&self, task_arn: &str) {
        if let Some(task) = self.tasks().get(task_arn) {
            task.stop.send_replace(true);
        }
    }

    fn remove_task(&self, task_arn: &str) {
        if let Some(task) = self.tasks().remove(task_arn) {
            task.stop.send_replace(true);
            let engine = Arc::clone(&self.engine);
            self.executor.spawn(async move { task::remove(&engine, &task.spec).await });
        }
    }
}
