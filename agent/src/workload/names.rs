//! Names of containers by runtime id: a cache filled by a thread that asks ECS, or reads the kubelet's
//! links, at the start, every so often, and sooner when something unknown was met or a link came.

use super::ecs::{self, Answer};
use super::kubernetes::{self, Reading};
use super::{ContainerPath, Description, Source, TaskNames};
use lru::LruCache;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Containers remembered.
const CACHE: usize = 4_096;
/// Between two questions when nothing unknown was met: stopped tasks must leave the heartbeat.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// At least this long between two questions.
const AT_MOST_EVERY: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Shared {
    by_id: LruCache<String, Arc<Description>>,
    by_pod: HashMap<String, Arc<TaskNames>>,
    tasks: Vec<String>,
    only: Option<Arc<ContainerPath>>,
    evictions: u64,
    problem: Option<String>,
}

impl Shared {
    fn put(&mut self, description: Description) {
        if self.by_id.len() == CACHE && !self.by_id.contains(&description.id) {
            self.evictions += 1;
        }
        self.by_id.put(description.id.clone(), Arc::new(description));
    }

    fn take(&mut self, answer: Answer) {
        self.only = answer.only;
        self.tasks = answer.tasks;
        self.by_pod = answer.pods.into_iter().collect();
        answer.containers.into_iter().for_each(|container| self.put(container));
        self.problem = None;
    }
}

/// The names.
#[derive(Debug)]
pub struct Names {
    shared: Arc<Mutex<Shared>>,
    ask: Option<SyncSender<()>>,
}

/// Reads which tasks are seen, from any thread.
#[derive(Clone, Debug)]
pub struct TasksHandle(Arc<Mutex<Shared>>);

impl TasksHandle {
    /// ARNs of the running tasks.
    pub fn tasks(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tasks.clone()
    }

    /// Why the last question failed, if it did.
    pub fn problem(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).problem.clone()
    }
}

impl Names {
    /// Starts asking.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(source: Source) -> std::io::Result<Self> {
        let by_id = LruCache::new(NonZeroUsize::MIN.saturating_add(CACHE - 1));
        let shared =
            Shared { by_id, by_pod: HashMap::new(), tasks: Vec::new(), only: None, evictions: 0, problem: None };
        let shared = Arc::new(Mutex::new(shared));
        if matches!(source, Source::Recording) {
            return Ok(Self { shared, ask: None });
        }
        let (ask, asked) = sync_channel::<()>(1);
        if let Source::Kubernetes(here) = &source
            && here.node.is_some()
            && let Err(error) = kubernetes::watch(&here.links, ask.clone())
        {
            tracing::warn!(links = %here.links.display(), %error, "new pods are noticed late; is the directory mounted?");
        }
        let into = shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("names".into()).spawn(move || {
            let mut last = Reading::default();
            loop {
                let answer = match &source {
                    Source::Kubernetes(here) => read(here, &mut last),
                    _ => runtime.block_on(ecs::ask(&source)).map_err(|error| error.to_string()),
                };
                let mut shared = into.lock().unwrap_or_else(PoisonError::into_inner);
                match answer {
                    Ok(answer) => shared.take(answer),
                    Err(error) => {
                        if shared.problem.as_ref() != Some(&error) {
                            tracing::debug!(error, "nothing says which tasks run here");
                        }
                        shared.problem = Some(error);
                    }
                }
                drop(shared);
                // The pause bounds what a storm of unknown containers can cost the ECS agent.
                std::thread::sleep(AT_MOST_EVERY);
                match asked.recv_timeout(REFRESH_EVERY) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { shared, ask: Some(ask) })
    }

    /// A container's names; asks for them where they are not known.
    pub fn get(&self, container: &ContainerPath) -> Option<Arc<Description>> {
        let found = {
            let mut shared = self.lock();
            let known = shared.by_id.get(&container.id).cloned();
            known.or_else(|| {
                let task = container.pod_uid.as_ref().and_then(|uid| shared.by_pod.get(uid)).cloned()?;
                let (id, name) = (container.id.clone(), "unknown".to_owned());
                Some(Arc::new(Description { id, name, task: Some(task), ..Description::default() }))
            })
        };
        if found.is_none()
            && let Some(ask) = &self.ask
        {
            match ask.try_send(()) {
                // Full means that a question is already on its way.
                Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
            }
        }
        found
    }

    /// Puts in names from elsewhere.
    pub fn learn(&self, description: Description) {
        self.lock().put(description);
    }

    /// In a sidecar: the only container beside the agent's own, if there is only one.
    pub fn only_container(&self) -> Option<Arc<ContainerPath>> {
        self.lock().only.clone()
    }

    /// ARNs of the running tasks.
    pub fn tasks(&self) -> Vec<String> {
        self.lock().tasks.clone()
    }

    /// A handle for another thread.
    pub fn handle(&self) -> TasksHandle {
        TasksHandle(self.shared.clone())
    }

    /// Entries pushed out because the cache was full.
    pub fn evictions(&self) -> u64 {
        self.lock().evictions
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the kubelet's links, and says what is odd about them when that changes.
fn read(here: &kubernetes::Here, last: &mut Reading) -> Result<Answer, String> {
    let (answer, reading) = kubernetes::ask(here)
        .map_err(|error| format!("{}: {error}; mount it from the host, read-only", here.links.display()))?;
    if (reading.refused, reading.beyond) != (last.refused, last.beyond) {
        tracing::warn!(refused = reading.refused, beyond = reading.beyond, "some of the kubelet's links are not used");
    }
    *last = reading;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::time::Instant;
    use tasuki_api::kubernetes::PodName;

    #[test]
    fn a_pod_that_comes_is_named_without_being_asked_for_and_one_that_goes_leaves_the_heartbeat() {
        const UID: &str = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
        let links = tempfile::tempdir().unwrap();
        let own = PodName { cluster: "self", namespace: "tasuki-agents", uid: UID, name: "own" }.to_string();
        let (node, links_at) = (Some("n".to_owned()), links.path().to_owned());
        let here = kubernetes::Here { cluster: "self".to_owned(), pod: own.clone(), node, links: links_at };
        let names = Names::start(Source::Kubernetes(here)).unwrap();
        let tasks = names.handle();
        let within = |holds: &dyn Fn() -> bool| {
            let until = Instant::now() + Duration::from_secs(25);
            while !holds() && Instant::now() < until {
                std::thread::yield_now();
            }
            assert!(holds());
        };
        within(&|| tasks.tasks() == [own.clone()]);
        let id = "a".repeat(64);
        let file = links.path().join(format!("web_shop_app-{id}.log"));
        symlink(format!("/var/log/pods/shop_web_{}/app/0.log", UID.replace('f', "e")), &file).unwrap();
        within(&|| tasks.tasks().len() == 2);
        let known = names.get(&ContainerPath { id: id.clone(), ..ContainerPath::default() }).unwrap();
        assert_eq!((known.name.as_str(), known.id.as_str()), ("app", id.as_str()));
        std::fs::remove_file(file).unwrap();
        within(&|| tasks.tasks() == [own.clone()]);
    }
}
