//! The journal of intents and the action log.
//!
//! An intent is written before a call that is not idempotent and closed after it. On start, open
//! intents are resolved by looking at what is there, not by repeating the call.

use super::{Result, Store, corrupt, doing, micros};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sqlx::Row;
use tasuki_core::action::Action;
use ulid::Ulid;

/// A call that is about to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Its id.
    pub id: Ulid,
    /// The action that it is part of.
    pub action: Action,
    /// The call, such as `ecs:RegisterTaskDefinition`.
    pub call: String,
    /// What makes the call recognisable afterwards, such as a content hash.
    pub marker: String,
}

/// One line of the append-only action log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActionRecord {
    /// When it ended.
    pub at: Timestamp,
    /// The desired state that it was decided on (commit or content hash).
    pub desired: String,
    /// What was done.
    pub action: Action,
    /// What it was before, in short (a definition ARN, a count).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// AWS's request ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_ids: Vec<String>,
    /// Why it failed or was dropped; absent where it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Store {
    /// Writes an intent before its call.
    pub async fn open_intent(&self, intent: &Intent, now: Timestamp) -> Result<()> {
        let body = serde_json::to_string(intent).map_err(corrupt("intent"))?;
        sqlx::query("INSERT INTO intents (id, opened_at, body) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING")
            .bind(intent.id.to_string())
            .bind(micros(now))
            .bind(body)
            .execute(&self.pool)
            .await
            .map_err(doing("write an intent"))?;
        Ok(())
    }

    /// Closes an intent after its call, whatever the call's answer was.
    pub async fn close_intent(&self, id: Ulid) -> Result<()> {
        sqlx::query("DELETE FROM intents WHERE id = $1")
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(doing("close an intent"))?;
        Ok(())
    }

    /// Intents that no one closed, the oldest first.
    pub async fn open_intents(&self) -> Result<Vec<Intent>> {
        let rows = sqlx::query("SELECT body FROM intents ORDER BY opened_at, id")
            .fetch_all(&self.pool)
            .await
            .map_err(doing("read intents"))?;
        let read = |row: &sqlx::any::AnyRow| -> Result<Intent> {
            let body: String = row.try_get(0).map_err(doing("read intents"))?;
            serde_json::from_str(&body).map_err(corrupt("intent"))
        };
        rows.iter().map(read).collect()
    }

    /// Adds a line to the action log. `target` is the ARN that was acted on; `kind` names the action.
    pub async fn log_action(&self, record: &ActionRecord, target: &str, kind: &str) -> Result<()> {
        let body = serde_json::to_string(record).map_err(corrupt("action record"))?;
        sqlx::query("INSERT INTO actions (at, scope, cluster, target, kind, body) VALUES ($1, $2, $3, $4, $5, $6)")
            .bind(micros(record.at))
            .bind(record.action.scope.to_string())
            .bind(record.action.cluster.to_string())
            .bind(target)
            .bind(kind)
            .bind(body)
            .execute(&self.pool)
            .await
            .map_err(doing("write the action log"))?;
        Ok(())
    }

    /// Deletes lines of the action log from before `before`, and of the rest all but about the newest `keep`.
    /// Returns how many went.
    pub async fn prune_actions(&self, before: Timestamp, keep: u32) -> Result<u64> {
        let wrong = "prune the action log";
        let last = sqlx::query("SELECT at FROM actions ORDER BY at DESC LIMIT 1 OFFSET $1")
            .bind(i64::from(keep))
            .fetch_optional(&self.pool)
            .await
            .map_err(doing(wrong))?;
        let last: Option<i64> = last.map(|row| row.try_get(0)).transpose().map_err(doing(wrong))?;
        let before = last.map_or(micros(before), |last| micros(before).max(last.saturating_add(1)));
        let gone = sqlx::query("DELETE FROM actions WHERE at < $1").bind(before);
        Ok(gone.execute(&self.pool).await.map_err(doing(wrong))?.rows_affected())
    }

    /// The newest lines of the action log, the newest first.
    pub async fn actions(&self, limit: u32) -> Result<Vec<ActionRecord>> {
        let rows = sqlx::query("SELECT body FROM actions ORDER BY at DESC LIMIT $1")
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(doing("read the action log"))?;
        let read = |row: &sqlx::any::AnyRow| -> Result<ActionRecord> {
            let body: String = row.try_get(0).map_err(doing("read the action log"))?;
            serde_json::from_str(&body).map_err(corrupt("action record"))
        };
        rows.iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tasuki_core::action::ActionKind;
    use tasuki_core::fleet::ScopeId;

    fn action() -> Action {
        Action {
            scope: ScopeId { account: "111122223333".into(), region: "eu-west-1".into() },
            cluster: "c".into(),
            monitor: "m".into(),
            why: "test".to_owned(),
            kind: ActionKind::DeleteDaemon { service: "s".into() },
        }
    }

    #[tokio::test]
    async fn an_intent_stays_until_it_is_closed_and_the_log_only_grows() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let now = Timestamp::from_second(1).unwrap();
        let intent =
            Intent { id: Ulid(5), action: action(), call: "ecs:DeleteService".to_owned(), marker: "x".to_owned() };
        store.open_intent(&intent, now).await.unwrap();
        store.open_intent(&intent, now).await.unwrap();
        assert_eq!(store.open_intents().await.unwrap(), std::slice::from_ref(&intent));
        store.close_intent(intent.id).await.unwrap();
        assert!(store.open_intents().await.unwrap().is_empty());
        let mut record = ActionRecord {
            at: now,
            desired: "d".to_owned(),
            action: action(),
            before: None,
            after: None,
            request_ids: vec![],
            error: None,
        };
        store.log_action(&record, "s", "DeleteDaemon").await.unwrap();
        record.at = Timestamp::from_second(2).unwrap();
        store.log_action(&record, "s", "DeleteDaemon").await.unwrap();
        assert_eq!(store.actions(10).await.unwrap().len(), 2);
        assert_eq!(store.actions(1).await.unwrap()[0].at, record.at);
    }
}
