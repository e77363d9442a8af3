//! Request budgets: a token bucket per API group, one [`Budget`] per account and Region.
//!
//! ECS throttles per account and Region, and the customer's own pipelines share its buckets, so
//! Tasuki takes only a share of each. *Expected flow*: every attempt takes a token first; a
//! throttled attempt reports itself, which empties the bucket and halves the share for a minute.
//! *Guarantees*: within any span of `t` seconds at most `burst·share + rate·share·t` tokens are
//! given (never less than one at once), and of those who wait the most urgent goes first.
//! *Assumptions*: time is tokio's, so tests can move it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a throttled call halves the share of its group.
const HALVED_FOR: Duration = Duration::from_secs(60);

macro_rules! groups {
    ($($(#[doc = $doc:literal])+ $name:ident: $burst:literal, $rate:literal;)*) => {
        /// ECS's API groups. Numbers: burst and refill per second, from
        /// <https://docs.aws.amazon.com/AmazonECS/latest/APIReference/request-throttling.html>.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Group { $($(#[doc = $doc])+ $name,)* }

        impl Group {
            /// Every group.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// AWS's published limits: tokens at once, tokens a second.
            pub fn limits(self) -> (f64, f64) {
                match self { $(Self::$name => ($burst, $rate),)* }
            }
            /// The name that metrics use.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

groups! {
    /// DescribeClusters, ListClusters.
    ClusterRead: 50.0, 20.0;
    /// DescribeTasks, ListTasks, DescribeContainerInstances, ListContainerInstances, ListAttributes.
    ClusterResourceRead: 100.0, 20.0;
    /// RunTask, StopTask, PutAttributes, DeleteAttributes and their kin.
    ClusterResourceModify: 100.0, 40.0;
    /// DescribeServices, ListServices.
    ServiceRead: 100.0, 20.0;
    /// CreateService, UpdateService, DeleteService. StopServiceDeployment is in no published
    /// group; it is counted here, the stricter choice.
    ServiceModify: 50.0, 5.0;
    /// ListServiceDeployments, DescribeServiceDeployments, DescribeServiceRevisions.
    ServiceDeploymentRead: 50.0, 20.0;
    /// DescribeTaskDefinition, ListTaskDefinitions, ListTaskDefinitionFamilies.
    DefinitionRead: 50.0, 20.0;
    /// RegisterTaskDefinition, DeregisterTaskDefinition.
    DefinitionModify: 20.0, 1.0;
    /// GetTaskProtection.
    TaskProtection: 200.0, 80.0;
}

/// Who goes first where several wait for one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Taking back what made a service worse.
    Safety,
    /// An action of decide.
    Action,
    /// A read that an event asked for.
    Event,
    /// A read of the sweep.
    Sweep,
    /// Deregistering old revisions, inventories.
    Tidy,
}

/// The patience of the caller ended before a token came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token of {} came within {patience:?}; it goes on as the budget refills", .group.name())]
pub struct Exhausted {
    /// The group that is used up.
    pub group: Group,
    /// How long was waited.
    pub patience: Duration,
}

/// What a group has seen since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens given: attempts made.
    pub taken: u64,
    /// Of these, how many had to wait.
    pub waited: u64,
    /// Attempts that AWS throttled.
    pub throttled: u64,
}

/// The budget of one account and Region.
#[derive(Debug)]
pub struct Budget {
    buckets: Vec<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    group: Group,
    state: Mutex<State>,
    changed: Notify,
    taken: AtomicU64,
    waited: AtomicU64,
    throttled: AtomicU64,
}

#[derive(Debug)]
struct State {
    share: f64,
    tokens: f64,
    updated: Instant,
    halved_until: Instant,
    waiting: BTreeSet<(Priority, u64)>,
    next_ticket: u64,
}

impl Budget {
    /// A budget of `share` (0.0 to 1.0) of AWS's limits, full at the start.
    pub fn new(share: f64) -> Self {
        let now = Instant::now();
        let bucket = |&group: &Group| {
            let state = State {
                share,
                tokens: capacity(group, share),
                updated: now,
                halved_until: now,
                waiting: BTreeSet::new(),
                next_ticket: 0,
            };
            Bucket {
                group,
                state: Mutex::new(state),
                changed: Notify::new(),
                taken: AtomicU64::new(0),
                waited: AtomicU64::new(0),
                throttled: AtomicU64::new(0),
            }
        };
        Self { buckets: Group::ALL.iter().map(bucket).collect() }
    }

    /// Changes the share; who waits now is served by the new one.
    pub fn set_share(&self, share: f64) {
        for bucket in &self.buckets {
            let mut state = bucket.lock();
            state.refill(bucket.group, Instant::now());
            state.share = share;
            state.tokens = state.tokens.min(capacity(bucket.group, share));
            drop(state);
            bucket.changed.notify_waiters();
        }
    }

    /// Takes one token of `group`, waiting until there is one and no one more urgent waits.
    ///
    /// # Errors
    /// [`Exhausted`] when `patience` ends first; without patience it never fails.
    pub async fn take(&self, group: Group, priority: Priority, patience: Option<Duration>) -> Result<(), Exhausted> {
        let bucket = self.bucket(group);
        let ticket = bucket.queue(priority);
        let began = Instant::now();
        let deadline = patience.map(|patience| began + patience);
        loop {
            let changed = bucket.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = Instant::now();
            let wake = match bucket.lock().try_take(group, ticket.key, now) {
                Turn::Taken => {
                    bucket.taken.fetch_add(1, Ordering::Relaxed);
                    if now > began {
                        bucket.waited.fetch_add(1, Ordering::Relaxed);
                    }
                    return Ok(());
                }
                Turn::In(wait) => Some(now + wait),
                Turn::NotFirst => None,
            };
            if let (Some(deadline), Some(patience)) = (deadline, patience)
                && now >= deadline
            {
                return Err(Exhausted { group, patience });
            }
            match (wake, deadline) {
                (Some(wake), Some(deadline)) => {
                    tokio::select! { () = &mut changed => {}, () = tokio::time::sleep_until(wake.min(deadline)) => {} }
                }
                (Some(at), None) | (None, Some(at)) => {
                    tokio::select! { () = &mut changed => {}, () = tokio::time::sleep_until(at) => {} }
                }
                (None, None) => changed.await,
            }
        }
    }

    /// AWS throttled a call of `group`: its bucket is emptied and its share halved for a minute.
    pub fn throttled(&self, group: Group) {
        let bucket = self.bucket(group);
        bucket.throttled.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut state = bucket.lock();
        state.refill(group, now);
        state.tokens = 0.0;
        state.halved_until = now + HALVED_FOR;
    }

    /// What each group has seen since start.
    pub fn counters(&self) -> Vec<(Group, Counters)> {
        let read = |bucket: &Bucket| Counters {
            taken: bucket.taken.load(Ordering::Relaxed),
            waited: bucket.waited.load(Ordering::Relaxed),
            throttled: bucket.throttled.load(Ordering::Relaxed),
        };
        self.buckets.iter().map(|bucket| (bucket.group, read(bucket))).collect()
    }

    fn bucket(&self, group: Group) -> &Bucket {
        // One bucket a group, in the order of `ALL`, which is the order of the discriminants.
        &self.buckets[group as usize]
    }
}

/// A bucket always holds one token, or a small share could never call at all.
fn capacity(group: Group, share: f64) -> f64 {
    (group.limits().0 * share).max(1.0)
}

enum Turn {
    Taken,
    In(Duration),
    NotFirst,
}

impl State {
    fn refill(&mut self, group: Group, now: Instant) {
        let rate = group.limits().1 * self.share;
        let halved = self.halved_until.min(now).saturating_duration_since(self.updated).as_secs_f64();
        let whole = now.saturating_duration_since(self.updated).as_secs_f64() - halved;
        let share = if now < self.halved_until { self.share / 2.0 } else { self.share };
        self.tokens = (self.tokens + rate * (whole + halved / 2.0)).min(capacity(group, share));
        self.updated = now;
    }

    fn try_take(&mut self, group: Group, key: (Priority, u64), now: Instant) -> Turn {
        self.refill(group, now);
        if self.waiting.first() != Some(&key) {
            return Turn::NotFirst;
        }
        // Sums of fractions fall short of 1 by rounding alone.
        if self.tokens >= 1.0 - 1e-9 {
            self.tokens -= 1.0;
            return Turn::Taken;
        }
        let share = if now < self.halved_until { self.share / 2.0 } else { self.share };
        let rate = (group.limits().1 * share).max(1e-6);
        // Rounded up to the timer's own step, so that waking early does not spin.
        Turn::In(Duration::from_secs_f64((1.0 - self.tokens) / rate).max(Duration::from_millis(1)))
    }
}

impl Bucket {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, priority: Priority) -> Ticket<'_> {
        let mut state = self.lock();
        let key = (priority, state.next_ticket);
        state.next_ticket += 1;
        state.waiting.insert(key);
        Ticket { bucket: self, key }
    }
}

/// A place in the queue; leaving it, served or cancelled, wakes the others.
struct Ticket<'a> {
    bucket: &'a Bucket,
    key: (Priority, u64),
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.bucket.lock().waiting.remove(&self.key);
        self.bucket.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn paused() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_span_ever_gives_more_than_the_share(
            share in 0.01f64..1.0,
            group in 0usize..Group::ALL.len(),
            gaps in proptest::collection::vec(0u64..3_000, 1..120),
        ) {
            let group = Group::ALL[group];
            let (burst, rate) = group.limits();
            let taken = paused().block_on(async {
                let budget = Budget::new(share);
                let start = Instant::now();
                let mut taken = Vec::new();
                for gap in gaps {
                    tokio::time::sleep(Duration::from_millis(gap)).await;
                    budget.take(group, Priority::Sweep, None).await.unwrap();
                    taken.push(start.elapsed().as_secs_f64());
                }
                taken
            });
            for (i, from) in taken.iter().enumerate() {
                for (j, to) in taken.iter().enumerate().skip(i) {
                    let allowed = (burst * share).max(1.0) + rate * share * (to - from) + 1e-6;
                    prop_assert!((j - i + 1) as f64 <= allowed, "{} tokens in {} s", j - i + 1, to - from);
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_most_urgent_goes_first_and_the_rest_in_the_order_of_arrival() {
        let budget = Arc::new(Budget::new(0.25));
        for _ in 0..5 {
            budget.take(Group::DefinitionModify, Priority::Action, None).await.unwrap();
        }
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = Vec::new();
        for (name, priority) in [
            ("tidy", Priority::Tidy),
            ("sweep 1", Priority::Sweep),
            ("sweep 2", Priority::Sweep),
            ("roll back", Priority::Safety),
        ] {
            let (budget, order) = (budget.clone(), order.clone());
            waiters.push(tokio::spawn(async move {
                budget.take(Group::DefinitionModify, priority, None).await.unwrap();
                order.lock().unwrap().push(name);
            }));
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        for waiter in waiters {
            waiter.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["roll back", "sweep 1", "sweep 2", "tidy"]);
        // A quarter of one token a second: four tokens take sixteen seconds.
        assert_eq!(start.elapsed().as_secs(), 16);
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_call_halves_the_share_for_a_minute() {
        let budget = Budget::new(0.5);
        let start = Instant::now();
        budget.throttled(Group::ServiceModify);
        let mut taken = 0;
        while budget.take(Group::ServiceModify, Priority::Action, Some(Duration::from_secs(2))).await.is_ok() {
            taken += 1;
            if start.elapsed() >= Duration::from_secs(59) {
                break;
            }
        }
        // Half of the 2.5 a second that the share is worth, for a minute.
        assert!((72..=75).contains(&taken), "{taken}");
        tokio::time::sleep(Duration::from_secs(30)).await;
        let start = Instant::now();
        for _ in 0..75 {
            budget.take(Group::ServiceModify, Priority::Action, None).await.unwrap();
        }
        assert_eq!(start.elapsed().as_secs(), 20, "25 at once, then 2.5 a second");
        assert_eq!(budget.counters()[Group::ServiceModify as usize].1.throttled, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_and_a_cancelled_waiter_leaves_the_queue() {
        let budget = Arc::new(Budget::new(0.05));
        budget.take(Group::DefinitionModify, Priority::Action, None).await.unwrap();
        let refused = budget.take(Group::DefinitionModify, Priority::Action, Some(Duration::from_secs(3))).await;
        assert_eq!(refused.unwrap_err().group, Group::DefinitionModify);
        let other = budget.clone();
        let waiter = tokio::spawn(async move { other.take(Group::DefinitionModify, Priority::Safety, None).await });
        tokio::task::yield_now().await;
        waiter.abort();
        assert!(waiter.await.unwrap_err().is_cancelled());
        budget.take(Group::DefinitionModify, Priority::Tidy, None).await.unwrap();
        let counters = budget.counters()[Group::DefinitionModify as usize].1;
        assert_eq!((counters.taken, counters.waited), (2, 1));
    }
}
