//! Findings: stored once however often they are sent, kept up to a bound.

use super::{Result, Store, corrupt, doing, micros};
use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Row};
use tasuki_api::finding::{Finding, Severity};
use ulid::Ulid;

/// A finding and what became of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredFinding {
    /// The finding, resource stamped.
    #[serde(flatten)]
    pub finding: Finding,
    /// When the gateway stored it first.
    pub stored_at: Timestamp,
    /// Name of the suppression that keeps it from being sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suppressed: Option<String>,
}

/// Which findings are wanted.
#[derive(Clone, Debug, Default)]
pub struct FindingFilter {
    /// Seen at or after this time.
    pub since: Option<Timestamp>,
    /// At least this severe.
    pub minimum_severity: Option<Severity>,
    /// Exactly this type.
    pub kind: Option<String>,
    /// Exactly this cluster ARN.
    pub cluster: Option<String>,
    /// Suppressed ones too.
    pub suppressed: bool,
    /// At most so many, the newest first; 0 means 100.
    pub limit: u32,
}

impl Store {
    /// Stores findings of one agent. An id that is known is updated (count, last seen), never
    /// doubled; an id that is known from *another* agent is left alone. Returns the new ones' ids.
    pub async fn insert_findings(
        &self,
        agent: &str,
        findings: &[(Finding, Option<String>)],
        now: Timestamp,
    ) -> Result<Vec<Ulid>> {
        let mut new = Vec::new();
        let mut transaction = self.pool.begin().await.map_err(doing("begin storing findings"))?;
        for (finding, suppressed) in findings {
            let body = serde_json::to_string(finding).map_err(corrupt("finding"))?;
            let id = finding.id.to_string();
            let inserted = sqlx::query(
                "INSERT INTO findings (id, agent, type, severity, cluster, task, first_seen, last_seen, stored_at, suppressed, body)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (id) DO NOTHING",
            )
            .bind(&id)
            .bind(agent)
            .bind(&finding.kind)
            .bind(finding.severity as i64)
            .bind(finding.resource.cluster.as_deref().unwrap_or_default())
            .bind(finding.resource.task.as_deref().unwrap_or_default())
            .bind(micros(finding.first_seen))
            .bind(micros(finding.last_seen))
            .bind(micros(now))
            .bind(suppressed.as_deref())
            .bind(&body)
            .execute(&mut *transaction)
            .await
            .map_err(doing("store a finding"))?;
            if inserted.rows_affected() == 1 {
                new.push(finding.id);
                continue;
            }
            sqlx::query(
                "UPDATE findings SET last_seen = $1, body = $2 WHERE id = $3 AND agent = $4 AND last_seen < $1",
            )
            .bind(micros(finding.last_seen))
            .bind(&body)
            .bind(&id)
            .bind(agent)
            .execute(&mut *transaction)
            .await
            .map_err(doing("update a finding"))?;
        }
        transaction.commit().await.map_err(doing("commit findings"))?;
        Ok(new)
    }

    /// Findings that match, the newest first.
    pub async fn findings(&self, filter: &FindingFilter) -> Result<Vec<StoredFinding>> {
        // Every condition is always bound, so that one statement serves all filters.
        let sql = format!(
            "SELECT body, stored_at, suppressed FROM findings
             WHERE last_seen >= $1 AND severity >= $2 AND ($3 = '' OR type = $3) AND ($4 = '' OR cluster = $4){}
             ORDER BY last_seen DESC, id DESC LIMIT $5",
            if filter.suppressed { "" } else { " AND suppressed IS NULL" }
        );
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(filter.since.map_or(0, micros))
            .bind(filter.minimum_severity.unwrap_or_default() as i64)
            .bind(filter.kind.as_deref().unwrap_or_default())
            .bind(filter.cluster.as_deref().unwrap_or_default())
            .bind(i64::from(if filter.limit == 0 { 100 } else { filter.limit }))
            .fetch_all(&self.pool)
            .await
            .map_err(doing("read findings"))?;
        rows.iter().map(stored).collect()
    }

    /// The finding with this id.
    pub async fn finding(&self, id: Ulid) -> Result<Option<StoredFinding>> {
        let row = sqlx::query("SELECT body, stored_at, suppressed FROM findings WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await
            .map_err(doing("read a finding"))?;
        row.as_ref().map(stored).transpose()
    }

    /// Findings that no sink has taken yet, the oldest first; suppressed ones never come.
    pub async fn unsent_findings(&self, limit: u32) -> Result<Vec<StoredFinding>> {
        let rows = sqlx::query(
            "SELECT body, stored_at, suppressed FROM findings WHERE sent = 0 AND suppressed IS NULL
             ORDER BY stored_at, id LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(doing("read unsent findings"))?;
        rows.iter().map(stored).collect()
    }

    /// Marks a finding as taken by every sink.
    pub async fn mark_sent(&self, id: Ulid) -> Result<()> {
        sqlx::query("UPDATE findings SET sent = 1 WHERE id = $1")
            .bind(id.to_string())
            .execute(&self.pool)
            .await
            .map_err(doing("mark a finding as sent"))?;
        Ok(())
    }

    /// Deletes the findings last seen before `before`, and of the rest all but the newest `keep`; with them
    /// goes what was noted of their delivery.
    pub async fn prune_findings(&self, before: Timestamp, keep: u32) -> Result<Pruned> {
        const OLD: &str = "last_seen < $1";
        const EXCESS: &str = "id IN (SELECT id FROM findings ORDER BY last_seen DESC LIMIT 1000000000 OFFSET $1)";
        let mut pruned = Pruned::default();
        for (which, bound) in [(OLD, micros(before)), (EXCESS, i64::from(keep))] {
            // Those that a sink still waits for go first, so that they can be told apart.
            for waiting in [" AND sent = 0 AND suppressed IS NULL", ""] {
                let gone = sqlx::query(AssertSqlSafe(format!("DELETE FROM findings WHERE {which}{waiting}")))
                    .bind(bound)
                    .execute(&self.pool)
                    .await
                    .map_err(doing("prune findings"))?
                    .rows_affected();
                pruned.all += gone;
                pruned.unsent += if waiting.is_empty() { 0 } else { gone };
            }
        }
        if pruned.all > 0 {
            self.prune_deliveries_of_gone().await?;
        }
        Ok(pruned)
    }
}

/// What [`Store::prune_findings`] deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// All.
    pub all: u64,
    /// Of these, findings that not every sink had taken; where there is no sink, all that were not suppressed.
    pub unsent: u64,
}

pub(super) fn stored(row: &sqlx::any::AnyRow) -> Result<StoredFinding> {
    let read = |_: ()| -> std::result::Result<(String, i64, Option<String>), sqlx::Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
    };
    let (body, stored_at, suppressed) = read(()).map_err(doing("read a finding"))?;
    Ok(StoredFinding {
        finding: serde_json::from_str(&body).map_err(corrupt("finding"))?,
        stored_at: Timestamp::from_microsecond(stored_at).unwrap_or(Timestamp::UNIX_EPOCH),
        suppressed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn finding(id: u128, second: i64, severity: &str) -> Finding {
        let time = Timestamp::from_second(second).unwrap().to_string();
        serde_json::from_value(json!({
            "id": Ulid(id).to_string(), "type": "T", "severity": severity, "title": "t", "firstSeen": time, "lastSeen": time,
            "count": 1, "resource": {"cluster": "c"}, "rule": {}, "agent": {"version": "1", "depth": "Full", "sensor": "ebpf"}
        }))
        .unwrap()
    }

    #[tokio::test]
    async fn a_finding_sent_twice_is_stored_once_and_updated() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let now = Timestamp::from_second(100).unwrap();
        let mut one = (finding(1, 10, "High"), None);
        assert_eq!(store.insert_findings("a", &[one.clone()], now).await.unwrap().len(), 1);
        (one.0.count, one.0.last_seen) = (7, Timestamp::from_second(20).unwrap());
        assert_eq!(store.insert_findings("a", &[one.clone()], now).await.unwrap().len(), 0);
        assert_eq!(store.finding(Ulid(1)).await.unwrap().unwrap().finding, one.0);
        // Another agent cannot overwrite it by guessing its id.
        one.0.count = 9;
        one.0.last_seen = Timestamp::from_second(30).unwrap();
        store.insert_findings("b", &[one.clone()], now).await.unwrap();
        assert_eq!(store.finding(Ulid(1)).await.unwrap().unwrap().finding.count, 7);
    }

    #[tokio::test]
    async fn filters_and_pruning_keep_the_newest() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let now = Timestamp::from_second(100).unwrap();
        let batch: Vec<_> = (1..=10u128)
            .map(|i| (finding(i, i as i64, if i % 2 == 0 { "High" } else { "Low" }), (i == 4).then(|| "s".to_owned())))
            .collect();
        store.insert_findings("a", &batch, now).await.unwrap();
        let high = FindingFilter { minimum_severity: Some(Severity::High), ..Default::default() };
        assert_eq!(store.findings(&high).await.unwrap().len(), 4, "five are High, one of them suppressed");
        assert_eq!(store.unsent_findings(100).await.unwrap().len(), 9);
        store.mark_sent(Ulid(1)).await.unwrap();
        assert_eq!(store.unsent_findings(100).await.unwrap().len(), 8);
        store.mark_delivered("one", &[Ulid(2), Ulid(7)], &["one".to_owned(), "two".to_owned()]).await.unwrap();
        let pruned = store.prune_findings(Timestamp::from_second(3).unwrap(), 5).await.unwrap();
        assert_eq!(pruned, Pruned { all: 5, unsent: 3 }, "1 was sent and 4 suppressed");
        assert_eq!(store.prune_deliveries(&["one".to_owned()]).await.unwrap(), 0, "only the delivery of 7 is left");
        let left = store.findings(&FindingFilter { suppressed: true, ..Default::default() }).await.unwrap();
        assert_eq!(left.iter().map(|f| f.finding.id.0).collect::<Vec<_>>(), [10, 9, 8, 7, 6]);
    }
}
