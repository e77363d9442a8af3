//! Names of containers by runtime id: a cache filled by a thread that asks ECS, at the start,
//! every so often, and sooner when something unknown was met.

use super::ecs::{self, Answer};
use super::{ContainerPath, Description, Source};
use lru::LruCache;
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

    /// Why the last question to ECS failed, if it did.
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
        let shared = Shared { by_id, tasks: Vec::new(), only: None, evictions: 0, problem: None };
        let shared = Arc::new(Mutex::new(shared));
        if matches!(source, Source::Recording) {
            return Ok(Self { shared, ask: None });
        }
        let (ask, asked) = sync_channel::<()>(1);
        let into = shared.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("names".into()).spawn(move || {
            loop {
                let answer = runtime.block_on(ecs::ask(&source));
                let mut shared = into.lock().unwrap_or_else(PoisonError::into_inner);
                match answer {
                    Ok(answer) => shared.take(answer),
                    Err(error) => {
                        let text = error.to_string();
                        if shared.problem.as_ref() != Some(&text) {
                            tracing::debug!(error = text, "ECS did not say which tasks run here");
                        }
                        shared.problem = Some(text);
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
        let found = self.lock().by_id.get(&container.id).cloned();
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
