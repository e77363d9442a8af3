//! Whose process it is: cgroup id → cgroup path → container id → container and task.
//!
//! ```text
//!  event ─ cgroup id ─▶ cgroups (scan, /proc/PID/cgroup) ─▶ container id ─▶ names (introspection,
//!        └ pid ───────▶ /proc/PID/cgroup, mount namespace ┘     metadata, kubelet's links, recording)
//! ```
//! An event never waits for a name: [`Workloads::place`] answers at once with what is known, and
//! [`Workloads::describe`] gives the name when it has come.

pub mod cgroup;
pub mod ecs;
pub mod host;
pub mod kubernetes;
pub mod names;
pub mod path;

use crate::event::{CgroupId, ProcessKey};
use cgroup::Cgroups;
use lru::LruCache;
use names::Names;
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::sync::Arc;

/// Containers remembered by mount namespace and by id.
const CACHE: usize = 4_096;

/// Where a process lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In no container.
    Host,
    /// In a container, with the parts that its cgroup path names.
    Container(Arc<ContainerPath>),
    /// In a PID namespace of its own, so in some container, but its cgroup names none.
    Unnamed,
    /// Not known yet, or no more.
    Unknown,
}

impl Place {
    /// Whether the process is in a container, as far as is known.
    pub fn in_container(&self) -> bool {
        matches!(self, Self::Container(_) | Self::Unnamed)
    }

    /// Runtime id of the container.
    pub fn container_id(&self) -> Option<&str> {
        match self {
            Self::Container(container) => Some(&container.id),
            _ => None,
        }
    }
}

/// What a cgroup path says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ContainerPath {
    /// Runtime id of the container.
    pub id: String,
    /// ECS task id (the last part of its ARN), where the path has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_id: Option<String>,
    /// Kubernetes pod uid, where the path has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
}

/// A container by its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Description {
    /// Runtime id.
    pub id: String,
    /// Name in the task definition.
    pub name: String,
    /// Image as it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `sha256:…` of what runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// When it started, nanoseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<i64>,
    /// Its task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<Arc<TaskNames>>,
}

/// A task by its names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TaskNames {
    /// ARN; in Kubernetes the text of a [`tasuki_api::kubernetes::PodName`].
    pub arn: String,
    /// Cluster ARN or name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Service, where the endpoint says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Task-definition family and revision, as `family:revision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// `FARGATE`, `EC2`, `EXTERNAL`, `KUBERNETES`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launch_type: Option<String>,
    /// Container instance ARN, or `k8s/CLUSTER/node/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// Where names come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// The ECS agent's introspection API on a node.
    Introspection(String),
    /// Task metadata v4 in a sidecar: the value of `ECS_CONTAINER_METADATA_URI_V4`.
    Metadata(String),
    /// The kubelet's links on a node, or the own pod alone in a sidecar.
    Kubernetes(kubernetes::Here),
    /// Only what a recording says; nothing of this machine is read.
    Recording,
}

impl Source {
    /// What this process's environment says: the kubelet's links in a pod, metadata v4 where this is
    /// a task that does not see its host, else the introspection API (`TASUKI_INTROSPECTION`
    /// overrides its address).
    ///
    /// # Errors
    /// In a pod whose environment lacks what the downward API gives.
    pub fn from_env() -> Result<Self, kubernetes::HereError> {
        if let Some(here) = kubernetes::Here::from_env(|name| std::env::var(name).ok()) {
            return here.map(Self::Kubernetes);
        }
        let introspection = std::env::var("TASUKI_INTROSPECTION").ok();
        Ok(match (introspection, std::env::var("ECS_CONTAINER_METADATA_URI_V4").ok()) {
            (Some(base), _) => Self::Introspection(base),
            (None, Some(base)) if !cgroup::sees_host() => Self::Metadata(base),
            (None, _) => Self::Introspection("http://127.0.0.1:51678".to_owned()),
        })
    }

    /// Whether names are those of one task or pod only, the agent's own.
    pub fn is_sidecar(&self) -> bool {
        match self {
            Self::Metadata(_) => true,
            Self::Kubernetes(here) => here.node.is_none(),
            Self::Introspection(_) | Self::Recording => false,
        }
    }
}

/// The resolver.
#[derive(Debug)]
pub struct Workloads {
    cgroups: Cgroups,
    names: Names,
    by_mount_namespace: LruCache<u64, Arc<ContainerPath>>,
    host_pid_namespace: Option<u64>,
    live: bool,
    sidecar: bool,
    evictions: u64,
}

impl Workloads {
    /// A resolver that reads this machine, or nothing where `source` is a recording.
    ///
    /// # Errors
    /// When the thread that asks for names cannot be started.
    pub fn start(source: Source) -> std::io::Result<Self> {
        let live = !matches!(source, Source::Recording);
        let sidecar = source.is_sidecar();
        Ok(Self {
            cgroups: if live { Cgroups::of_this_machine() } else { Cgroups::default() },
            names: Names::start(source)?,
            by_mount_namespace: LruCache::new(NonZeroUsize::MIN.saturating_add(CACHE - 1)),
            host_pid_namespace: (live && !sidecar).then(|| cgroup::host_namespace("pid")).flatten(),
            live,
            sidecar,
            evictions: 0,
        })
    }

    /// Where a process lives, from what the event carries. `mount` and `pid_namespace` are 0 where
    /// the event does not carry them.
    pub fn place(
        &mut self,
        cgroup: Option<CgroupId>,
        process: Option<ProcessKey>,
        mount_namespace: u64,
        pid_namespace: u64,
    ) -> Place {
        if let Some(cgroup) = cgroup {
            match self.cgroups.lookup(cgroup) {
                cgroup::Known::Container(container) => return Place::Container(container),
                cgroup::Known::Host => return Place::Host,
                cgroup::Known::No => {}
            }
        } else if let Some(container) = self.by_mount_namespace.get(&mount_namespace) {
            return Place::Container(container.clone());
        }
        if self.live
            && let Some(container) = process.and_then(|key| self.ask_proc(key, cgroup))
        {
            if mount_namespace != 0 {
                self.remember_namespace(mount_namespace, &container);
            }
            return Place::Container(container);
        }
        if self.live
            && let Some(id) = cgroup
            && self.cgroups.rescan()
        {
            // A new directory may have been found; look once more.
            let known = self.cgroups.lookup(id);
            self.cgroups.found(known != cgroup::Known::No);
            match known {
                cgroup::Known::Container(container) => return Place::Container(container),
                cgroup::Known::Host => return Place::Host,
                cgroup::Known::No => {}
            }
        }
        if self.sidecar {
            // Everything that a sidecar sees is in its task.
            return self.names.only_container().map_or(Place::Unnamed, Place::Container);
        }
        match self.host_pid_namespace {
            Some(host) if pid_namespace == host => Place::Host,
            Some(_) if pid_namespace != 0 => Place::Unnamed,
            _ => Place::Unknown,
        }
    }

    fn ask_proc(&mut self, key: ProcessKey, cgroup: Option<CgroupId>) -> Option<Arc<ContainerPath>> {
        let (container, path) = cgroup::with_path(key.pid)?;
        let container = Arc::new(container);
        if let Some(cgroup) = cgroup {
            // The process may have moved since the event (runc init moves into its container), and
            // then its present cgroup says nothing about the one that the event names.
            if !self.cgroups.is_at(cgroup, &path) {
                return None;
            }
            self.cgroups.learn(cgroup, container.clone());
        }
        Some(container)
    }

    fn remember_namespace(&mut self, namespace: u64, container: &Arc<ContainerPath>) {
        if self.by_mount_namespace.len() == CACHE && !self.by_mount_namespace.contains(&namespace) {
            self.evictions += 1;
        }
        self.by_mount_namespace.put(namespace, container.clone());
    }

    /// The names of a container. Asks for them, at most every so often, where they are not known.
    pub fn describe(&mut self, container: &ContainerPath) -> Option<Arc<Description>> {
        self.names.get(container)
    }

    /// Whether names can still come (false in a replay, where waiting is pointless).
    pub fn may_learn(&self) -> bool {
        self.live
    }

    /// Puts in what a recording says.
    pub fn learn(&mut self, cgroup: CgroupId, container: Option<Arc<ContainerPath>>) {
        match container {
            Some(container) => self.cgroups.learn(cgroup, container),
            None => self.cgroups.learn_host(cgroup),
        }
    }

    /// Puts in what a recording says of a mount namespace.
    pub fn learn_namespace(&mut self, namespace: u64, container: &Arc<ContainerPath>) {
        self.remember_namespace(namespace, container);
    }

    /// Puts in a container's names that a recording gives.
    pub fn learn_names(&mut self, description: Description) {
        self.names.learn(description);
    }

    /// ARNs of the running tasks that this agent sees, for heartbeats.
    pub fn tasks_seen(&self) -> Vec<String> {
        self.names.tasks()
    }

    /// A handle with which another thread reads [`Workloads::tasks_seen`].
    pub fn tasks_handle(&self) -> names::TasksHandle {
        self.names.handle()
    }

    /// Entries pushed out of full caches.
    pub fn evictions(&self) -> u64 {
        self.evictions + self.cgroups.evictions() + self.names.evictions()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_places_without_reading_this_machine() {
        let mut workloads = Workloads::start(Source::Recording).unwrap();
        let container = Arc::new(ContainerPath { id: "c1".into(), ..ContainerPath::default() });
        workloads.learn(CgroupId(7), Some(container.clone()));
        workloads.learn(CgroupId(1), None);
        let own = crate::process::snapshot::key_of(std::process::id());
        assert_eq!(workloads.place(Some(CgroupId(7)), own, 0, 0), Place::Container(container.clone()));
        assert_eq!(workloads.place(Some(CgroupId(1)), own, 0, 0), Place::Host);
        assert_eq!(workloads.place(Some(CgroupId(9)), own, 5, 5), Place::Unknown);
        assert_eq!(workloads.describe(&container), None);
        workloads.learn_names(Description { id: "c1".into(), name: "web".into(), ..Description::default() });
        assert_eq!(workloads.describe(&container).unwrap().name, "web");
    }
}
