//! The handle: a world behind a lock, its driver, and the doors for tests.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::auth::identity::TaskRole;
use crate::clock::{Clock, later};
use crate::ecs::InstanceOptions;
use crate::effect::Place;
use crate::error::ApiResult;
use crate::faults::Faults;
use crate::runtime::{Runtime, RuntimeEvent, Virtual};
use crate::settings::Settings;
use crate::world::World;

/// A running cloud. Clones are the same cloud.
#[derive(Clone)]
pub struct Cloud {
    inner: Arc<Inner>,
}

struct Inner {
    world: Mutex<World>,
    events: Mutex<UnboundedReceiver<RuntimeEvent>>,
    changed: Notify,
    seed: u64,
    clock: Clock,
}

/// How to make a cloud.
pub struct Options {
    /// Seed of ids and faults.
    pub seed: u64,
    /// Timings and options.
    pub settings: Settings,
    /// What goes wrong.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: rand::random(), settings: Settings::default(), faults: Faults::default() }
    }
}

impl Cloud {
    /// A cloud on `clock` whose containers `runtime` runs. Prints its seed to the log.
    pub fn new(clock: Clock, runtime: Arc<dyn Runtime>, options: Options) -> Self {
        let (sender, receiver) = unbounded_channel();
        runtime.attach(sender);
        tracing::info!(seed = options.seed, "local cloud");
        let world = World::new(clock.clone(), options.settings, options.faults, runtime, options.seed);
        let inner = Inner {
            world: Mutex::new(world),
            events: Mutex::new(receiver),
            changed: Notify::new(),
            seed: options.seed,
            clock,
        };
        Self { inner: Arc::new(inner) }
    }

    /// A cloud for tests: virtual time from now, no containers. Its runtime can be scripted. Prints its seed, for the test's
    /// output to name it.
    pub fn virtual_cloud(options: Options) -> (Self, Arc<Virtual>) {
        let start = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH);
        let clock = Clock::virtual_at(start);
        let runtime = Arc::new(Virtual::new(clock.clone()));
        println!("local cloud: seed {}", options.seed);
        (Self::new(clock, runtime.clone(), options), runtime)
    }

    /// The seed of this run.
    pub fn seed(&self) -> u64 {
        self.inner.seed
    }

    /// The cloud's time.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// The state, for a moment. Do not hold it across an await.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state through `work` and lets everybody who waits look again.
    pub fn change<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        let result = work(&mut self.world());
        self.settle();
        result
    }

    /// Waits are told when something changed.
    pub(crate) fn changed(&self) -> &Notify {
        &self.inner.changed
    }

    /// Runs what is due and takes what the runtime said, until nothing is left for this moment.
    pub fn settle(&self) {
        let mut world = self.world();
        let mut events = self.inner.events.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            world.run_due();
            let mut quiet = true;
            while let Ok(event) = events.try_recv() {
                world.runtime_event(event);
                quiet = false;
            }
            if quiet && world.next_due().is_none_or(|at| at > self.inner.clock.now()) {
                break;
            }
        }
        drop((world, events));
        self.inner.changed.notify_waiters();
    }

    /// Moves virtual time forward, running everything on the way at its own time. On a real clock it only settles.
    pub fn advance(&self, by: Duration) {
        let until = later(self.now(), by);
        self.settle();
        while self.inner.clock.is_virtual() {
            let next = self.world().next_due();
            match next.filter(|at| *at <= until) {
                Some(at) => self.inner.clock.set(at),
                None => break,
            }
            self.settle();
        }
        self.inner.clock.set(until);
        self.settle();
    }

    /// Drives a cloud on real time until the future is dropped: timers when they are due, runtime events when they come.
    pub async fn drive(&self) {
        loop {
            self.settle();
            let due = self.world().next_due();
            let wait = match due {
                Some(at) => Duration::try_from(at.duration_since(self.now())).unwrap_or_default(),
                None => Duration::from_millis(50),
            };
            // Runtime events come on a channel behind a lock; a short beat keeps the driver simple and is the cloud's resolution.
            tokio::time::sleep(wait.clamp(Duration::from_millis(5), Duration::from_millis(50))).await;
        }
    }

    /// Adds a root key of an account.
    pub fn add_root_key(&self, account: &str, access_key_id: &str, secret: &str) {
        self.world().identity.add_root(account, access_key_id, secret);
    }

    /// Adds a role with the principals that may assume it.
    pub fn add_role(&self, role_arn: &str, trust: Vec<String>, external_id: Option<String>) {
        let world = &mut *self.world();
        world.identity.add_role(role_arn, trust, external_id, &mut world.rng);
    }

    /// Replaces the faults.
    pub fn set_faults(&self, faults: Faults) {
        self.world().faults = faults;
    }

    /// Adds a container instance to a cluster; its ARN.
    ///
    /// # Errors
    /// `ClusterNotFoundException`.
    pub fn add_instance(&self, place: &Place, cluster: &str, options: InstanceOptions) -> ApiResult<String> {
        self.change(|world| world.with(place, "cloud", |region, ctx| region.ecs.add_instance(ctx, cluster, options)))
    }

    /// Connects or disconnects the ECS agent of an instance.
    ///
    /// # Errors
    /// When there is no such instance.
    pub fn set_agent_connected(&self, place: &Place, instance_arn: &str, connected: bool) -> ApiResult<()> {
        self.change(|world| {
            world.with(place, "cloud", |region, ctx| region.ecs.set_agent_connected(ctx, instance_arn, connected))
        })
    }

    /// Creates a cluster, as a start option does.
    ///
    /// # Errors
    /// `InvalidParameterException` for a bad name.
    pub fn add_cluster(&self, place: &Place, name: &str) -> ApiResult<()> {
        let request = serde_json::json!({"clusterName": name});
        let answer = self.change(|world| {
            world.with(place, "cloud", |region, ctx| crate::ecs::call(&mut region.ecs, ctx, "CreateCluster", request))
        });
        answer.map_or(Ok(()), |result| result.map(|_| ()))
    }

    /// Grants a credentials id outside any task, for tests of the credentials endpoint.
    pub fn grant(&self, credentials_id: &str, role_arn: &str, session: &str) {
        let role = TaskRole { role_arn: role_arn.into(), session: session.into() };
        self.world().identity.add_task_role(credentials_id, role);
    }
}
