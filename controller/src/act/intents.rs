//! What a former process began and did not end: found out by looking, never by repeating.

use super::Executor;
use super::definition::CONTENT_TAG;
use super::executor::name;
use super::raw;
use crate::act::budget::Priority;
use crate::observe::reads::Reads;
use crate::scope::{CallError, Scope};
use crate::store::{ActionRecord, Intent, StoreError};
use jiff::Timestamp;
use tasuki_core::action::ActionKind;
use tasuki_core::fleet::Str;
use tasuki_core::transform::content_hash;

impl Executor {
    /// Looks what became of every open intent, writes it to the action log and closes it. An
    /// intent whose scope cannot be asked stays open. Call before the first action; returns how many
    /// were closed.
    ///
    /// # Errors
    /// [`StoreError`] where the journal cannot be read or written.
    pub async fn resolve_intents(&self) -> Result<usize, StoreError> {
        let mut closed = 0;
        for intent in self.store.open_intents().await? {
            let Some(scope) = self.scopes.get(&intent.action.scope) else {
                tracing::warn!(call = %intent.call, scope = %intent.action.scope, "intent of a scope that no AwsScope names stays open");
                continue;
            };
            let found = match look(&scope, &intent).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(call = %intent.call, error = %error.detail(), "intent stays open");
                    continue;
                }
            };
            tracing::info!(call = %intent.call, target = %intent.action.target(), took_effect = found.is_some(), "intent of a former process is resolved");
            let error = "the process ended during the call; what it did was found by looking".to_owned();
            let record = ActionRecord {
                at: Timestamp::now(),
                desired: String::new(),
                action: intent.action.clone(),
                before: None,
                after: found,
                request_ids: Vec::new(),
                error: Some(error),
            };
            self.store.log_action(&record, intent.action.target(), name(&intent.action.kind)).await?;
            self.store.close_intent(intent.id).await?;
            closed += 1;
        }
        Ok(closed)
    }
}

/// What the call left behind, if it took effect.
async fn look(scope: &Scope, intent: &Intent) -> Result<Option<String>, CallError> {
    if intent.call == "ecs:RegisterTaskDefinition" {
        let (family, hash) = intent.marker.split_once(' ').unwrap_or_default();
        let latest = raw::describe(scope, Priority::Action, family).await?;
        return Ok(latest
            // Ours by its tag, the owner's by its content.
            .filter(|latest| latest.tag(CONTENT_TAG) == Some(hash) || content_hash(&latest.definition) == hash)
            .map(|latest| latest.arn().to_string()));
    }
    let service: &Str = match &intent.action.kind {
        ActionKind::CreateDaemon { service, .. } => service,
        _ => intent.action.target(),
    };
    let reads = Reads { scope, priority: Priority::Action };
    let found = reads.services(&intent.action.cluster, std::slice::from_ref(service)).await?.pop();
    Ok(match intent.call.as_str() {
        "ecs:UpdateService" => found.filter(|s| *s.definition == *intent.marker).map(|s| s.definition.to_string()),
        "ecs:DeleteService" => found.is_none_or(|s| !s.active).then(|| "deleted".to_owned()),
        _ => found.filter(|s| s.active).map(|s| s.definition.to_string()),
    })
}
