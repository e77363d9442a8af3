//! The loop itself.
//!
//! ```text
//!  changes ─┐                                      ┌─▶ store (memory) ─▶ actions ─▶ execute ─┐
//!  config ──┼─▶ apply ─▶ decide ─▶ verdicts ───────┤                                         │
//!  clock ───┘      ▲                               └─▶ view (at most three times a second)   │
//!                  └──────────── outcomes (what was done, as changes) ◀──────────────────────┘
//! ```
//!
//! *Guarantees*: memory is stored before the actions that follow from it are taken; no two actions
//! on one target at once; a failed one waits, longer each time; nothing is changed in a scope before
//! it was read in full once, so that a half-known fleet never looks empty.

use super::flight::Flights;
use super::uninstall::{Step, Uninstall};
use super::view::{self, Context};
use super::{Freezer, Memories, Request, Shared, View, plan};
use crate::act::Owned;
use crate::processor;
use crate::store::Store;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tasuki_core::action::Action;
use tasuki_core::decide::Decision;
use tasuki_core::desired::Desired;
use tasuki_core::fleet::{Change, ScopeId, Str};
use tokio::sync::{mpsc, watch};

/// Deadlines and soaks are checked this often, and everything is judged anew.
const TICK: Duration = Duration::from_secs(1);
/// The shortest time between two views.
const VIEW: Duration = Duration::from_millis(300);
/// How old a view may be in which only times and what agents used would be others.
const STALE: Duration = Duration::from_secs(5);
/// After changes so many times as long passes as they took until the next are taken, so that what comes one by one is
/// taken together: …
const REST: u32 = 4;
/// … but never longer than this.
const LONGEST_REST: Duration = Duration::from_millis(50);
/// Changes that are applied under one lock.
const BATCH: usize = 1024;

/// What an action brought.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What is known now, fed back at once.
    pub changes: Vec<Change>,
    /// It should be tried again later.
    pub failed: bool,
}

/// Carries out actions.
pub trait Execute: Send + Sync + 'static {
    /// Carries out one; `desired` names the desired state for the action log.
    fn execute<'a>(&'a self, action: &'a Action, desired: &'a str) -> BoxFuture<'a, Outcome>;
    /// What the fleet should know of Tasuki's own definitions, in every scope that can be read.
    fn own_definitions(&self) -> BoxFuture<'_, Vec<Change>>;
    /// What Tasuki made, in every scope, as AWS says now.
    fn inventory(&self) -> BoxFuture<'_, Result<Vec<Owned>, String>>;
}

/// What changes from outside: desired state, compiled, and what is shown beside it.
#[derive(Clone)]
pub struct Inputs {
    /// Desired state.
    pub desired: Arc<Desired>,
    /// Scopes, problems, hash.
    pub context: Context,
    /// Of every scope that is configured a sweep was tried to its end.
    pub ready: bool,
    /// Scopes that were read in full: only there anything is changed.
    pub swept: BTreeSet<ScopeId>,
}

/// The loop's parts.
pub struct Work {
    /// Fleet and verdicts.
    pub shared: Arc<Shared>,
    /// Settings go here.
    pub store: Store,
    /// Memory goes here.
    pub memories: Memories,
    /// Carries out actions.
    pub executor: Arc<dyn Execute>,
    /// Changes from observe, gateway and act.
    pub changes: mpsc::Receiver<Change>,
    /// Desired state and what is shown beside it.
    pub inputs: watch::Receiver<Inputs>,
    /// Questions and orders.
    pub requests: mpsc::Receiver<Request>,
    /// What is shown.
    pub view: watch::Sender<Arc<View>>,
    /// `tasuki freeze`; the assembly recompiles desired state when it changes.
    pub freezer: Freezer,
}

struct Running {
    work: Work,
    flights: Flights,
    landed: mpsc::UnboundedSender<Landing>,
    /// Something in the view is another now; otherwise only times and what agents used are.
    dirty: bool,
    shown: Instant,
    /// Processor time of the last one.
    view_cost: Duration,
    uninstalling: Option<Uninstall>,
    /// What is in force.
    inputs: Option<Inputs>,
    /// Memory changed and the store did not take it: nothing that may rest on it is begun.
    unkept: bool,
    /// What the first full list of a Kubernetes cluster held was applied. That it was read says less: what was read
    /// waits among the changes.
    listed: bool,
}

/// What comes back from calls.
enum Landing {
    Acted(Str, Outcome),
    /// Own definitions, for an uninstall.
    Described(Vec<Change>),
    /// What AWS holds, for an uninstall.
    Counted(Result<Vec<Owned>, String>),
}

impl Work {
    /// Runs until the senders of changes are gone or `stop` says so.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let (landed, mut landings) = mpsc::unbounded_channel();
        let mut running = Running {
            work: self,
            flights: Flights::default(),
            landed,
            dirty: true,
            shown: Instant::now(),
            view_cost: Duration::ZERO,
            uninstalling: None,
            inputs: None,
            unkept: false,
            listed: false,
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut show = tokio::time::interval(VIEW);
        show.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        let mut rested = tokio::time::Instant::now();
        running.configure();
        loop {
            tokio::select! {
                () = told_to_stop(&mut stop) => return,
                count = receive(&mut running.work.changes, &mut batch, rested) => {
                    if count == 0 {
                        return;
                    }
                    let began = tokio::time::Instant::now();
                    running.take(std::mem::take(&mut batch)).await;
                    rested = tokio::time::Instant::now() + (began.elapsed() * REST).min(LONGEST_REST);
                }
                Some(landing) = landings.recv() => running.land(landing).await,
                changed = running.work.inputs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    if running.configure() {
                        running.tick().await;
                    }
                }
                Some(request) = running.work.requests.recv() => running.answer(request).await,
                _ = tick.tick() => running.tick().await,
                _ = show.tick() => running.show(),
            }
        }
    }
}

/// Changes that have come, not before `rested`.
async fn receive(changes: &mut mpsc::Receiver<Change>, batch: &mut Vec<Change>, rested: tokio::time::Instant) -> usize {
    tokio::time::sleep_until(rested).await;
    changes.recv_many(batch, BATCH).await
}

/// Returns once the loop is to stop. The borrow of the channel does not outlive this function, so
/// that the loop's future stays `Send`.
async fn told_to_stop(stop: &mut watch::Receiver<bool>) {
    // An error means that the program itself is going down.
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Running {
    /// Takes what is in force. Answers whether everything has to be judged anew: mostly only the times are others at
    /// which scopes were read.
    fn configure(&mut self) -> bool {
        let inputs = self.work.inputs.borrow_and_update().clone();
        let same = self.inputs.as_ref().is_some_and(|before| {
            let (a, b) = (&before.context, &inputs.context);
            Arc::ptr_eq(&before.desired, &inputs.desired)
                && (before.ready, &before.swept) == (inputs.ready, &inputs.swept)
                && (a.frozen, &a.desired, &a.problems) == (b.frozen, &b.desired, &b.problems)
        });
        if !same {
            self.work.shared.write().decider.set_desired(inputs.desired.clone());
            self.dirty = true;
            self.tell_pods_known();
        }
        self.inputs = Some(inputs);
        !same
    }

    /// Lets the agents of pods in that waited for it.
    fn tell_pods_known(&self) {
        if self.listed && self.work.inputs.borrow().ready && !self.work.shared.are_pods_known() {
            self.work.shared.tell_pods_known();
        }
    }

    async fn take(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        let listed = |change: &Change| matches!(change, Change::ScopeSwept { scope, .. } if scope.is_kubernetes());
        self.listed = self.listed || changes.iter().any(listed);
        let decision = self.work.shared.take(changes, Timestamp::now());
        self.tell_pods_known();
        self.carry_out(decision).await;
    }

    async fn tick(&mut self) {
        let now = Timestamp::now();
        let (decision, minutes) = {
            let mut known = self.work.shared.write();
            let decision = known.tick(now);
            let counts = known.decider.tally().counts(None);
            let minutes = self.ready() && known.minutes.take(&counts, now);
            (decision, minutes.then(|| serde_json::to_string(&known.minutes).unwrap_or_default()))
        };
        if let Some(text) = minutes
            && let Err(error) = self.work.store.set_setting(super::MINUTES, &text).await
        {
            tracing::warn!(%error, "task-minutes were not kept");
        }
        self.flights.expire(now);
        self.carry_out(decision).await;
        self.go_on_uninstalling();
    }

    fn ready(&self) -> bool {
        let inputs = self.work.inputs.borrow();
        inputs.ready && inputs.swept.iter().all(|scope| self.is_applied(scope))
    }

    /// What was read of the scope in full is in the fleet.
    fn is_applied(&self, scope: &ScopeId) -> bool {
        self.listed || !scope.is_kubernetes()
    }

    async fn carry_out(&mut self, decision: Decision) {
        self.dirty |= !decision.changed.is_empty() || !decision.actions.is_empty() || decision.memory_changed;
        if (decision.memory_changed || self.unkept) && !self.keep_memory().await {
            return;
        }
        if self.uninstalling.is_some() {
            return;
        }
        for action in decision.actions {
            if self.is_applied(&action.scope) && self.work.inputs.borrow().swept.contains(&action.scope) {
                self.start(action);
            }
        }
    }

    /// Whether the store has what was decided. What follows from it would be done twice after a crash, and
    /// the decider does not say again that it changed: everything waits until the store took it.
    async fn keep_memory(&mut self) -> bool {
        let memory = self.work.shared.read().decider.memory().clone();
        let kept = self.work.memories.keep(&memory).await;
        if let Err(error) = &kept
            && !self.unkept
        {
            tracing::error!(error, "actions wait until what they rest on is kept");
        }
        self.unkept = kept.is_err();
        !self.unkept
    }

    async fn land(&mut self, landing: Landing) {
        match landing {
            Landing::Acted(target, outcome) => {
                self.flights.end(&target, outcome.failed, Timestamp::now());
                self.take(outcome.changes).await;
            }
            Landing::Described(changes) => {
                self.take(changes).await;
                if let Some(uninstall) = &mut self.uninstalling {
                    uninstall.step = Step::Removing;
                }
                self.go_on_uninstalling();
            }
            Landing::Counted(Ok(owned)) => {
                let Some(mut uninstall) = self.uninstalling.take() else { return };
                if owned.is_empty() || uninstall.late() {
                    return uninstall.end(owned.iter().map(ToString::to_string).collect());
                }
                uninstall.again();
                self.uninstalling = Some(uninstall);
            }
            Landing::Counted(Err(error)) => {
                tracing::warn!(error, "uninstall: AWS could not be asked what Tasuki made");
                let Some(mut uninstall) = self.uninstalling.take() else { return };
                if uninstall.late() {
                    return uninstall.end(vec![format!("it is not known what is left: {error}")]);
                }
                uninstall.again();
                self.uninstalling = Some(uninstall);
            }
        }
    }

    fn start(&mut self, action: Action) {
        let target = action.target().clone();
        if !self.flights.begin(&target, Timestamp::now()) {
            return;
        }
        let (executor, landed) = (self.work.executor.clone(), self.landed.clone());
        let desired = self.work.inputs.borrow().context.desired.clone();
        tokio::spawn(async move {
            let outcome = executor.execute(&action, &desired).await;
            // The loop is gone only while everything ends.
            let _ = landed.send(Landing::Acted(target, outcome));
        });
    }

    /// A new view, unless nothing changed that matters; a large fleet's view costs more, so it comes less often:
    /// at most a tenth of one core goes into it.
    fn show(&mut self) {
        let age = self.shown.elapsed();
        if !(self.dirty || age >= STALE) || !self.ready() || age < self.view_cost * 10 {
            return;
        }
        let began = processor::of_thread();
        let context = self.work.inputs.borrow().context.clone();
        let view = view::build(&self.work.shared.read(), &context, Timestamp::now());
        self.work.view.send_replace(Arc::new(view));
        // Not the time that others had the processor: on a busy machine views would come ten times as much later.
        let cost = processor::of_thread().saturating_sub(began);
        (self.dirty, self.shown, self.view_cost) = (false, Instant::now(), cost);
    }

    async fn answer(&mut self, request: Request) {
        let now = Timestamp::now();
        match request {
            // Whoever asked may have gone meanwhile: an unheard answer is no loss.
            Request::Explain(text, answer) => {
                let _ = answer.send(view::explain(&self.work.shared.read(), &text, now));
            }
            Request::Plan(answer) => {
                let _ = answer.send(plan::plan(&self.work.shared.read(), now));
            }
            Request::Sidecar(monitor, answer) => {
                let _ = answer.send(self.work.shared.read().sidecar_of_pods(monitor.as_deref()));
            }
            Request::Freeze(on, answer) => {
                let _ = answer.send(self.work.freezer.set(on).await);
            }
            Request::Retry(cluster, answer) => {
                let forgotten = {
                    let known = &mut *self.work.shared.write();
                    known.decider.retry_cluster(&known.fleet, &cluster)
                };
                self.unkept |= forgotten > 0;
                self.flights.retry_all();
                self.tick().await;
                let _ = answer.send(forgotten);
            }
            Request::Uninstall(answer) => match &mut self.uninstalling {
                Some(uninstall) => uninstall.also(answer),
                None => match self.work.freezer.set(true).await {
                    Ok(()) => {
                        self.uninstalling = Some(Uninstall::new(answer, super::UNINSTALL_LIMIT));
                        self.go_on_uninstalling();
                    }
                    // After a restart everything would be put back.
                    Err(error) => {
                        let _ = answer.send(vec![format!("everything; nothing was taken out: {error}")]);
                    }
                },
            },
            Request::Inventory(answer) => {
                let executor = self.work.executor.clone();
                tokio::spawn(async move {
                    let _ = answer.send(executor.inventory().await);
                });
            }
        }
    }

    /// One round of an uninstall: what is still there is asked for again until nothing is.
    fn go_on_uninstalling(&mut self) {
        let Some(uninstall) = &mut self.uninstalling else { return };
        let (executor, landed) = (self.work.executor.clone(), self.landed.clone());
        match uninstall.step {
            Step::Describe(at) if Instant::now() >= at => {
                uninstall.step = Step::Describing;
                tokio::spawn(async move {
                    let _ = landed.send(Landing::Described(executor.own_definitions().await));
                });
            }
            Step::Removing => {
                let actions = tasuki_core::decide::uninstall(&self.work.shared.read().fleet);
                if !uninstall.late() && (!actions.is_empty() || self.flights.busy() > 0) {
                    for action in actions {
                        self.start(action);
                    }
                    return;
                }
                uninstall.step = Step::Counting;
                tokio::spawn(async move {
                    let _ = landed.send(Landing::Counted(executor.inventory().await));
                });
            }
            Step::Describe(_) | Step::Describing | Step::Counting => {}
        }
    }
}
