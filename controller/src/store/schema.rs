//! The tables, as a list of migrations that only ever grows.

use super::{Result, doing};
use sqlx::{AnyPool, Row};

/// One entry a version: statements that bring the tables from the version before to this one.
const MIGRATIONS: &[&[&str]] = &[
    &[
        "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        "CREATE TABLE findings (
        id TEXT PRIMARY KEY, agent TEXT NOT NULL, type TEXT NOT NULL, severity BIGINT NOT NULL,
        cluster TEXT NOT NULL, task TEXT NOT NULL, first_seen BIGINT NOT NULL, last_seen BIGINT NOT NULL,
        stored_at BIGINT NOT NULL, suppressed TEXT, sent BIGINT NOT NULL DEFAULT 0, body TEXT NOT NULL)",
        "CREATE INDEX findings_by_time ON findings (last_seen)",
        "CREATE INDEX findings_unsent ON findings (sent, stored_at)",
        "CREATE TABLE actions (
        at BIGINT NOT NULL, scope TEXT NOT NULL, cluster TEXT NOT NULL, target TEXT NOT NULL,
        kind TEXT NOT NULL, body TEXT NOT NULL)",
        "CREATE INDEX actions_by_time ON actions (at)",
        "CREATE TABLE intents (id TEXT PRIMARY KEY, opened_at BIGINT NOT NULL, body TEXT NOT NULL)",
    ],
    &[
        "CREATE TABLE agent_pins (
        task TEXT NOT NULL, runtime_id TEXT NOT NULL, public_key TEXT NOT NULL, signed BIGINT NOT NULL,
        heard_at BIGINT NOT NULL, contender_at BIGINT NOT NULL, PRIMARY KEY (task, runtime_id))",
        "CREATE TABLE deliveries (finding TEXT NOT NULL, sink TEXT NOT NULL, PRIMARY KEY (finding, sink))",
    ],
];

/// Brings the tables up to date; each version is one transaction.
pub(super) async fn migrate(pool: &AnyPool) -> Result<()> {
    sqlx::query("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
        .execute(pool)
        .await
        .map_err(doing("create its tables"))?;
    let mut transaction = pool.begin().await.map_err(doing("begin a migration"))?;
    let row = sqlx::query("SELECT COUNT(*) FROM schema_version")
        .fetch_one(&mut *transaction)
        .await
        .map_err(doing("read its version"))?;
    let done: i64 = row.try_get(0).map_err(doing("read its version"))?;
    for (version, statements) in MIGRATIONS.iter().enumerate().skip(usize::try_from(done).unwrap_or(0)) {
        for statement in *statements {
            sqlx::query(*statement).execute(&mut *transaction).await.map_err(doing("create its tables"))?;
        }
        sqlx::query("INSERT INTO schema_version (version) VALUES ($1)")
            .bind(i64::try_from(version).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await
            .map_err(doing("record its version"))?;
    }
    transaction.commit().await.map_err(doing("commit a migration"))
}
