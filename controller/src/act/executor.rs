//! Takes actions, runs them, and writes down what became of them.

use super::outcome::{Outcome, Stop, Verdict};
use super::run::Run;
use super::{attribute, daemon, definition, rollback, sidecar};
use crate::act::budget::Priority;
use crate::scope::{Kind, Scopes};
use crate::store::{ActionRecord, Store};
use jiff::Timestamp;
use std::sync::Arc;
use tasuki_api::coverage::Reason;
use tasuki_core::action::{Action, ActionKind, Blocked};
use tasuki_core::fleet::{Change, LaunchType, ScopeId, Str};

/// Executes actions. Cheap to clone.
#[derive(Clone)]
pub struct Executor {
    pub(super) scopes: Arc<Scopes>,
    pub(super) store: Store,
}

impl Executor {
    /// Acts through `scopes` and keeps journal and action log in `store`.
    pub fn new(scopes: Arc<Scopes>, store: Store) -> Self {
        Self { scopes, store }
    }

    /// Every scope that it may act in.
    pub fn scopes(&self) -> Vec<ScopeId> {
        self.scopes.all().iter().map(|scope| scope.id.clone()).collect()
    }

    /// Executes one action: reads again what it was decided on, drops it if that changed, makes its
    /// calls. `desired` names the desired state that it was decided on, for the action log.
    ///
    /// Never two at once on one [`Action::target`].
    pub async fn execute(&self, action: &Action, desired: &str) -> Outcome {
        let Some(scope) = self.scopes.get(&action.scope) else {
            let why = format!("no AwsScope names {} any more", action.scope);
            return Outcome { verdict: Verdict::Dropped(why), changes: Vec::new() };
        };
        let run = Run::new(scope, &self.store, action, priority(&action.kind));
        // Boxed: the futures of a dozen SDK calls would otherwise lie in this one.
        let result = Box::pin(step(&run)).await;
        let trail = run.into_trail();
        let error = result.as_ref().err().map(Stop::text);
        let record = ActionRecord {
            at: Timestamp::now(),
            desired: desired.to_owned(),
            action: action.clone(),
            before: trail.before,
            after: trail.after,
            request_ids: trail.request_ids,
            error,
        };
        let waits = matches!(&result, Err(Stop::Blocked(Reason::BudgetExhausted, _)));
        write_down(&self.store, &record, waits).await;
        outcome(action, result, trail.changes)
    }
}

async fn step(run: &Run<'_>) -> Result<(), Stop> {
    match &run.action.kind {
        ActionKind::DescribeDefinition { definition, sidecar } => {
            definition::describe(run, definition, sidecar.as_ref()).await
        }
        ActionKind::CreateDaemon { service, launch, agent } => daemon::create(run, service, *launch, agent).await,
        ActionKind::UpdateDaemon { service, from, agent } => daemon::update(run, service, from, agent).await,
        ActionKind::RevertDaemon { service, from, to } => daemon::revert(run, service, from, to).await,
        ActionKind::DeleteDaemon { service } => daemon::delete(run, service).await,
        ActionKind::PutAttribute { node, name } => attribute::put(run, node, name).await,
        ActionKind::DeleteAttribute { node, name } => attribute::delete(run, node, name).await,
        ActionKind::Inject { service, from, sidecar } => sidecar::inject(run, service, from, sidecar).await,
        ActionKind::Uninject { service, from } => sidecar::uninject(run, service, from).await,
        ActionKind::RollBack { service, deployment, definition } => {
            rollback::roll_back(run, service, deployment, definition).await
        }
        ActionKind::Deregister { definition } => definition::deregister(run, definition).await,
        ActionKind::PromoteDaemon { .. }
        | ActionKind::SettleDaemon { .. }
        | ActionKind::DeleteAgent { .. }
        | ActionKind::ProbeImage { .. }
        | ActionKind::OfferSidecar { .. }
        | ActionKind::WithdrawSidecar { .. } => Err(Stop::Changed("ECS has none of these".to_owned())),
    }
}

pub(super) fn outcome(action: &Action, result: Result<(), Stop>, mut changes: Vec<Change>) -> Outcome {
    let verdict = match result {
        Ok(()) => Verdict::Done,
        Err(Stop::Changed(what)) => Verdict::Dropped(what),
        Err(Stop::Blocked(reason, detail)) => Verdict::Blocked(blocked(action, reason, detail)),
        // The one placement that AWS's own documents disagree about: its answer is the truth.
        Err(Stop::Call(error)) if error.kind == Kind::Refused && is_external(action) => {
            Verdict::Blocked(blocked(action, Reason::UnsupportedPlatform, error.detail()))
        }
        Err(stop @ (Stop::Call(_) | Stop::Store(_) | Stop::Answer(_))) => Verdict::Failed(stop.text()),
    };
    if let Verdict::Blocked(Blocked { target, reason, detail }) = &verdict
        && !target.is_empty()
    {
        changes.push(match (action.only_reads(), reason) {
            (true, Reason::PermissionDenied) => Change::Denied {
                scope: action.scope.clone(),
                api: "ecs:DescribeTaskDefinition".to_owned(),
                detail: detail.clone(),
            },
            _ => Change::Obstructed { target: target.clone(), reason: *reason, detail: detail.clone() },
        });
    }
    Outcome { verdict, changes }
}

/// What the reason is told of: the service, or the cluster for what belongs to no service.
fn blocked(action: &Action, reason: Reason, detail: String) -> Blocked {
    let target: Str = match &action.kind {
        ActionKind::Inject { service, .. }
        | ActionKind::Uninject { service, .. }
        | ActionKind::RollBack { service, .. }
        | ActionKind::ProbeImage { service, .. }
        | ActionKind::OfferSidecar { service, .. }
        | ActionKind::WithdrawSidecar { service } => service.clone(),
        _ => action.cluster.clone(),
    };
    Blocked { target, reason, detail }
}

fn is_external(action: &Action) -> bool {
    matches!(&action.kind, ActionKind::CreateDaemon { launch: LaunchType::External, .. })
}

fn priority(kind: &ActionKind) -> Priority {
    match kind {
        ActionKind::RollBack { .. } | ActionKind::RevertDaemon { .. } => Priority::Safety,
        ActionKind::Deregister { .. } => Priority::Tidy,
        _ => Priority::Action,
    }
}

/// The name that the action log files it under.
pub(super) fn name(kind: &ActionKind) -> &'static str {
    match kind {
        ActionKind::DescribeDefinition { .. } => "DescribeDefinition",
        ActionKind::CreateDaemon { .. } => "CreateDaemon",
        ActionKind::UpdateDaemon { .. } => "UpdateDaemon",
        ActionKind::RevertDaemon { .. } => "RevertDaemon",
        ActionKind::DeleteDaemon { .. } => "DeleteDaemon",
        ActionKind::PutAttribute { .. } => "PutAttribute",
        ActionKind::DeleteAttribute { .. } => "DeleteAttribute",
        ActionKind::Inject { .. } => "Inject",
        ActionKind::Uninject { .. } => "Uninject",
        ActionKind::RollBack { .. } => "RollBack",
        ActionKind::Deregister { .. } => "Deregister",
        ActionKind::PromoteDaemon { .. } => "PromoteDaemon",
        ActionKind::SettleDaemon { .. } => "SettleDaemon",
        ActionKind::DeleteAgent { .. } => "DeleteAgent",
        ActionKind::ProbeImage { .. } => "ProbeImage",
        ActionKind::OfferSidecar { .. } => "OfferSidecar",
        ActionKind::WithdrawSidecar { .. } => "WithdrawSidecar",
    }
}

/// Writes down what became of an action. A budget that is used up is no event of the action's: it would fill the log.
pub(super) async fn write_down(store: &Store, record: &ActionRecord, waits: bool) {
    let action = &record.action;
    log(record);
    if !action.only_reads()
        && !waits
        && let Err(error) = store.log_action(record, action.target(), name(&action.kind)).await
    {
        tracing::error!(%error, action = name(&action.kind), "the action log cannot be written");
    }
}

fn log(record: &ActionRecord) {
    let action = &record.action;
    let (name, target) = (name(&action.kind), action.target());
    let (before, after) = (record.before.as_deref(), record.after.as_deref());
    match (&record.error, action.only_reads()) {
        (Some(error), _) => {
            tracing::warn!(action = name, %target, monitor = %action.monitor, before, after, %error, "action ended early");
        }
        (None, true) => tracing::debug!(action = name, %target, "read"),
        (None, false) => {
            tracing::info!(action = name, %target, monitor = %action.monitor, why = %action.why, before, after, "action is done");
        }
    }
}
