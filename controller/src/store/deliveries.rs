//! Which sink has taken which finding, so that one sink's trouble never holds up another.

use super::findings::{StoredFinding, stored};
use super::{Result, Store, doing};
use sqlx::Row;
use ulid::Ulid;

impl Store {
    /// Findings that `sink` has not taken yet, the oldest first; suppressed ones never come.
    pub async fn undelivered_findings(&self, sink: &str, limit: u32) -> Result<Vec<StoredFinding>> {
        let rows = sqlx::query(
            "SELECT body, stored_at, suppressed FROM findings WHERE sent = 0 AND suppressed IS NULL
             AND NOT EXISTS (SELECT 1 FROM deliveries WHERE deliveries.finding = findings.id AND deliveries.sink = $1)
             ORDER BY stored_at, id LIMIT $2",
        )
        .bind(sink)
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(doing("read undelivered findings"))?;
        rows.iter().map(stored).collect()
    }

    /// Notes that `sink` has taken these findings, and marks as sent those that every one of
    /// `sinks` has taken by now.
    pub async fn mark_delivered(&self, sink: &str, findings: &[Ulid], sinks: &[String]) -> Result<()> {
        let wrong = "note deliveries";
        let mut transaction = self.pool.begin().await.map_err(doing(wrong))?;
        for id in findings {
            let id = id.to_string();
            sqlx::query(
                "INSERT INTO deliveries (finding, sink) VALUES ($1, $2) ON CONFLICT (finding, sink) DO NOTHING",
            )
            .bind(&id)
            .bind(sink)
            .execute(&mut *transaction)
            .await
            .map_err(doing(wrong))?;
            let rows = sqlx::query("SELECT sink FROM deliveries WHERE finding = $1")
                .bind(&id)
                .fetch_all(&mut *transaction)
                .await
                .map_err(doing(wrong))?;
            let mut taken = Vec::with_capacity(rows.len());
            for row in &rows {
                taken.push(row.try_get::<String, _>(0).map_err(doing(wrong))?);
            }
            if sinks.iter().all(|sink| taken.contains(sink)) {
                for statement in
                    ["UPDATE findings SET sent = 1 WHERE id = $1", "DELETE FROM deliveries WHERE finding = $1"]
                {
                    sqlx::query(statement).bind(&id).execute(&mut *transaction).await.map_err(doing(wrong))?;
                }
            }
        }
        transaction.commit().await.map_err(doing(wrong))
    }

    /// Forgets deliveries of findings that are gone.
    pub(super) async fn prune_deliveries_of_gone(&self) -> Result<u64> {
        let gone = sqlx::query("DELETE FROM deliveries WHERE finding NOT IN (SELECT id FROM findings)");
        Ok(gone.execute(&self.pool).await.map_err(doing("prune deliveries"))?.rows_affected())
    }

    /// Forgets deliveries of findings that are gone, and of sinks that are not in `sinks`.
    pub async fn prune_deliveries(&self, sinks: &[String]) -> Result<u64> {
        let wrong = "prune deliveries";
        let mut gone = self.prune_deliveries_of_gone().await?;
        let rows =
            sqlx::query("SELECT DISTINCT sink FROM deliveries").fetch_all(&self.pool).await.map_err(doing(wrong))?;
        for row in &rows {
            let sink: String = row.try_get(0).map_err(doing(wrong))?;
            if !sinks.contains(&sink) {
                let deleted = sqlx::query("DELETE FROM deliveries WHERE sink = $1").bind(&sink).execute(&self.pool);
                gone += deleted.await.map_err(doing(wrong))?.rows_affected();
            }
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use serde_json::json;

    #[tokio::test]
    async fn each_sink_takes_each_finding_once_and_the_last_one_marks_it_sent() {
        let store = Store::open("sqlite::memory:").await.unwrap();
        let finding = serde_json::from_value(json!({
            "id": Ulid(1).to_string(), "type": "T", "severity": "High", "title": "t", "firstSeen": "2026-01-01T00:00:00Z",
            "lastSeen": "2026-01-01T00:00:00Z", "count": 1, "resource": {}, "rule": {},
            "agent": {"version": "1", "depth": "Full", "sensor": "ebpf"}
        }));
        store.insert_findings("a", &[(finding.unwrap(), None)], Timestamp::UNIX_EPOCH).await.unwrap();
        let sinks = ["one".to_owned(), "two".to_owned()];
        store.mark_delivered("one", &[Ulid(1)], &sinks).await.unwrap();
        assert_eq!(store.undelivered_findings("one", 9).await.unwrap().len(), 0);
        assert_eq!(store.undelivered_findings("two", 9).await.unwrap().len(), 1);
        assert_eq!(store.unsent_findings(9).await.unwrap().len(), 1);
        store.mark_delivered("two", &[Ulid(1)], &sinks).await.unwrap();
        assert_eq!(store.unsent_findings(9).await.unwrap().len(), 0);
        assert_eq!(store.prune_deliveries(&sinks).await.unwrap(), 0, "nothing is left behind");
    }
}
